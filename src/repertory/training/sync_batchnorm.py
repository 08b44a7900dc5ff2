"""Batch norm whose statistics are those of the whole global batch, on any device.

``torch.nn.SyncBatchNorm`` refuses CPU tensors; this one is made of differentiable all-reduces, so two gloo processes
compute what one process computes on both their batches.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm


class SyncBatchNorm(nn.Module):
    """Stands in for ``norm``, a batch norm of any rank, and keeps its parameters, buffers and their names.

    Input (B, C, …). Statistics are taken over all processes in training mode and are the running ones in evaluation;
    activation and dropout that timm folds into its batch norms follow.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.original = (norm,)  # in a tuple: not registered, its tensors are shared below
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
        if self.training or self.running_mean is None:
            mean, var = self._batch_statistics(x)
        else:
            mean, var = self.running_mean, self.running_var
        shape = (1, -1) + (1,) * (x.dim() - 2)
        y = (x.to(mean.dtype) - mean.view(shape)) * (var + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        y = y.to(x.dtype)
        for child in self.children():
            y = child(y)
        return y

    def _batch_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance (C,) over all processes; the second sum is taken about the mean for precision."""
        x = x if x.dtype == torch.float64 else x.float()
        over = [0, *range(2, x.dim())]
        count = _total(x.new_tensor([x.numel() // x.shape[1]]))
        mean = _total(x.sum(over)) / count
        var = _total((x - mean.view(1, -1, *[1] * (x.dim() - 2))).square().sum(over)) / count
        if self.training and self.running_mean is not None:
            self._track(mean.detach(), var.detach() * count / (count - 1).clamp(min=1))
        return mean, var

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
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


def _replace(module, kind, make):  # type: ignore[no-untyped-def]
    if isinstance(module, kind) and not isinstance(module, nn.SyncBatchNorm):
        return make(module)
    for name, child in module.named_children():
        setattr(module, name, _replace(child, kind, make))
    return module


def _restored(sync: SyncBatchNorm) -> nn.Module:
    norm = sync.original[0]
    norm.weight, norm.bias = sync.weight, sync.bias
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        setattr(norm, name, getattr(sync, name))
    return norm.train(sync.training)


def _total(value: Tensor) -> Tensor:
    """Sum over all processes, through which gradients flow."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return all_reduce(value)
    return value
