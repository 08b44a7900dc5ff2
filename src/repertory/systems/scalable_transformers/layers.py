"""Layers whose parameters are used in part: a narrower input meets the leading channels of every tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

QKV_CROPS = ("fused", "per_projection")


class CroppedLinear(nn.Linear):
    """``nn.Linear`` that takes inputs narrower than itself, and gives as many outputs as it is asked for."""

    def cropped(self, out_features: int, in_features: int) -> tuple[Tensor, Tensor | None]:
        """Weight (out, in) and bias (out,) of that size: views of the leading rows and columns."""
        if (out_features, in_features) == tuple(self.weight.shape):
            return self.weight, self.bias
        bias = self.bias if self.bias is None else leading(self.bias, out_features)
        return leading(self.weight, out_features, in_features), bias

    def forward(self, input: Tensor, out_features: int | None = None) -> Tensor:
        """(…, C) with C at most ``in_features`` to (…, ``out_features``), all of them where none are named."""
        return F.linear(input, *self.cropped(out_features or self.out_features, input.shape[-1]))


class CroppedQKV(CroppedLinear):
    """Queries, keys and values in one projection, (3 C, C).

    Args:
        dim: C of the whole.
        bias: whether there is one.
        crop: ``fused`` takes the first 3 c rows of the matrix as it stands, as the authors' code does: keys of a
            narrower model are then rows that are queries in the whole. ``per_projection`` takes the leading c rows
            of queries, keys and values each.

    Raises:
        ValueError: for another crop.
    """

    def __init__(self, dim: int, bias: bool = True, crop: str = "fused") -> None:
        if crop not in QKV_CROPS:
            raise ValueError(f"qkv_crop is {crop!r}; it must be one of {', '.join(QKV_CROPS)}")
        super().__init__(dim, 3 * dim, bias)
        self.crop = crop

    def cropped(self, out_features: int, in_features: int) -> tuple[Tensor, Tensor | None]:
        """Weight (3 c, c) and bias (3 c,) of a model of c channels."""
        if self.crop == "fused" or out_features == self.out_features:
            return super().cropped(out_features, in_features)
        width = out_features // 3
        weight = leading(self.weight.unflatten(0, (3, -1)), 3, width, in_features).flatten(0, 1)
        bias = self.bias if self.bias is None else leading(self.bias.unflatten(0, (3, -1)), 3, width).flatten()
        return weight, bias

    def forward(self, input: Tensor, out_features: int | None = None) -> Tensor:
        """(…, c) to (…, 3 c)."""
        return super().forward(input, 3 * input.shape[-1])


class CroppedLayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` over the channels that come: statistics are those of the narrower input."""

    def forward(self, input: Tensor) -> Tensor:
        """(…, C) to (…, C), C at most the width of the layer."""
        width = input.shape[-1]
        return F.layer_norm(input, (width,), leading(self.weight, width), leading(self.bias, width), self.eps)


class FeedForward(nn.Module):
    """Two linear layers with ``act`` between; the hidden width is ``ratio`` times that of the tokens that come."""

    def __init__(self, dim: int, ratio: int, drop: float, act: Callable[[Tensor], Tensor] = F.gelu) -> None:
        super().__init__()
        self.ratio, self.act = ratio, act
        self.fc1, self.fc2 = CroppedLinear(dim, ratio * dim), CroppedLinear(ratio * dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) to (…, C)."""
        hidden = self.drop(self.act(self.fc1(x, self.ratio * x.shape[-1])))
        return self.drop(self.fc2(hidden, x.shape[-1]))


def leading(tensor: Tensor, *sizes: int) -> Tensor:
    """The first ``sizes`` entries of each dimension (of the first ones, where fewer are given): a view."""
    for dim, size in enumerate(sizes):
        if size != tensor.shape[dim]:
            tensor = tensor.narrow(dim, 0, size)
    return tensor


@torch.no_grad()
def copy_leading(whole: nn.Module, part: nn.Module) -> None:
    """Fill ``part``, of the same kind as ``whole`` but smaller, with what ``whole`` uses when it is cropped to it."""
    for name, module in part.named_modules():
        source: Any = whole.get_submodule(name)
        if isinstance(module, CroppedLinear):
            weight, bias = source.cropped(module.out_features, module.in_features)
            module.weight.copy_(weight)
            if bias is not None:
                module.bias.copy_(bias)
            continue
        for key, parameter in module.named_parameters(recurse=False):
            parameter.copy_(leading(getattr(source, key), *parameter.shape))
