"""Batch norm whose statistics are those of the whole global batch, on any device.

``torch.nn.SyncBatchNorm`` refuses CPU tensors; this one is made of differentiable all-reduces, so two gloo processes
compute what one process computes on both their batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm


class SyncBatchNorm(nn.Module):
    """Stands in for ``norm``, a batch norm of any rank, and keeps its parameters, buffers and their names.

    Input (B, C, …). Statistics are taken over all processes in training mode and are the running ones in evaluation;
    dropout and activation, which timm folds into its batch norms, follow.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.original = (norm,)  # a tuple, so that its tensors, which are the ones below, are not registered twice
        self.eps, self.momentum = norm.eps, norm.momentum
        for name in ("weight", "bias"):
            self.register_parameter(name, getattr(norm, name))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))
        for name, child in norm.named_children():  # drop and act of timm's BatchNormAct2d
            self.add_module(name, child)
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised ``x``, of its shape and dtype."""
        if self.training or self.running_mean is None or self.running_var is None:
            mean, var = self._batch_statistics(x if x.dtype == torch.float64 else x.float())
        else:
            mean, var = self.running_mean, self.running_var
        y = (x.to(mean.dtype) - _spread(mean, x)) * _spread((var + self.eps).rsqrt(), x)
        if self.weight is not None:
            y = y * _spread(self.weight, x)
        if self.bias is not None:
            y = y + _spread(self.bias, x)
        y = y.to(x.dtype)
        for child in self.children():
            y = child(y)
        return y

    def _batch_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance (C,) over all processes; squares are summed about the mean, for precision."""
        over = [0, *range(2, x.dim())]
        count = _total(x.new_tensor([x.numel() // x.shape[1]]))
        mean = _total(x.sum(over)) / count
        var = _total((x - _spread(mean, x)).square().sum(over)) / count
        if self.training:
            self._track(mean.detach(), var.detach() * count / (count - 1).clamp(min=1))
        return mean, var

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics towards the batch's mean and unbiased variance."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(var.to(self.running_var.dtype), momentum)


def convert_sync_batchnorm(model: nn.Module) -> nn.Module:
    """Replace every batch norm in ``model`` (in place; the root is returned); state-dict names stay."""
    return _replace(model, _BatchNorm, SyncBatchNorm)


def revert_sync_batchnorm(model: nn.Module) -> nn.Module:
    """Put the ordinary batch norms back, with the parameters and statistics of now."""
    return _replace(model, SyncBatchNorm, _restored)


def _replace(module: nn.Module, kind: type[nn.Module], make: Callable[[Any], nn.Module]) -> nn.Module:
    if isinstance(module, kind):
        return make(module)
    for name, child in module.named_children():
        setattr(module, name, _replace(child, kind, make))
    return module


def _restored(sync: SyncBatchNorm) -> nn.Module:
    norm: Any = sync.original[0]
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(norm, name, getattr(sync, name))
    return norm.train(sync.training)


def _spread(statistic: Tensor, x: Tensor) -> Tensor:
    """(C,) as (1, C, 1, …), to meet ``x``."""
    return statistic.view(1, -1, *[1] * (x.dim() - 2))


def _total(value: Tensor) -> Tensor:
    """Sum over all processes, through which gradients flow."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return all_reduce(value)
    return value
