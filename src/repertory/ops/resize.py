"""Bilinear resizing by MATLAB's rule: antialiased where it shrinks, reflected at the border."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from repertory.ops.backend import check


def reflected(index: Tensor, length: int) -> Tensor:
    """Indices outside ``0 .. length - 1`` folded back by half-sample symmetric reflection (``d c b a | a b c d``)."""
    folded = torch.remainder(index, 2 * length)
    return torch.where(folded < length, folded, 2 * length - 1 - folded)


@functools.lru_cache(maxsize=256)
def _taps(size: int, out: int) -> tuple[Tensor, Tensor]:
    """Source indices and weights of every output position, both (out, taps), on the CPU; weights in float64."""
    scale = out / size
    stretch = min(scale, 1.0)  # shrinking widens the triangle: that is the antialiasing
    centre = (torch.arange(out, dtype=torch.float64) + 0.5) / scale - 0.5
    half = 1.0 / stretch
    first = torch.floor(centre - half)
    position = first[:, None] + torch.arange(math.ceil(2 * half) + 2)
    weight = (1 - (stretch * (centre[:, None] - position)).abs()).clamp(min=0)
    weight = weight / weight.sum(1, keepdim=True)
    used = (weight > 0).any(0)
    return reflected(position.long(), size)[:, used], weight[:, used]


def _matrix(size: int, out: int) -> Tensor:
    index, weight = _taps(size, out)
    return torch.zeros(out, size, dtype=torch.float64).scatter_add_(1, index, weight)


def _along(image: Tensor, dim: int, out: int) -> Tensor:
    size = image.shape[dim]
    if size == out:
        return image  # the triangle then meets one sample only
    index, weight = (table.to(image.device) for table in _taps(size, out))
    weight = weight.to(image.dtype)
    shape = (out, 1) if dim == -2 else (out,)
    result = image.index_select(dim, index[:, 0]) * weight[:, 0].view(shape)
    for tap in range(1, index.shape[1]):
        result = torch.addcmul(result, image.index_select(dim, index[:, tap]), weight[:, tap].view(shape))
    return result


def imresize(image: Tensor, size: tuple[int, int], backend: str = "auto") -> Tensor:
    """Resize to an explicit size as MATLAB's ``imresize(image, size, 'bilinear')`` does.

    ``torch.nn.functional.interpolate(antialias=True)`` drops what lies outside the border; this reflects it.

    Args:
        image: (..., H, W), floating point; differentiable.
        size: height and width of the result, both at least 1.
        backend: ``reference`` multiplies by the two weight matrices; every other path gathers the few samples that a
            row of them names.

    Returns:
        (..., *size).

    Raises:
        ValueError: for a size below 1 or an unknown backend.
    """
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"size is {height}x{width}; both sides must be at least 1")
    if check(backend) == "reference":
        rows, columns = (_matrix(n, out).to(image) for n, out in zip(image.shape[-2:], size, strict=True))
        return rows @ image @ columns.T
    return _along(_along(image, -2, height), -1, width)
