"""Gaussian blur by the rule of MATLAB's ``fspecial`` and ``imfilter(…, 'symmetric')``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from repertory.ops.backend import check
from repertory.ops.resize import reflected


def gaussian_kernel(size: int, sigma: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """(size, size) samples of a Gaussian; those below machine epsilon of the greatest are 0; they sum to 1."""
    x = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    kernel = torch.exp(-(x[:, None] ** 2 + x[None, :] ** 2) / (2 * sigma**2))
    kernel = torch.where(kernel < torch.finfo(torch.float64).eps * kernel.max(), 0.0, kernel)
    return (kernel / kernel.sum()).to(dtype)


def _along(image: Tensor, dim: int, weights: list[float]) -> Tensor:
    length, half = image.shape[dim], len(weights) // 2
    index = reflected(torch.arange(-half, length + half, device=image.device), length)
    padded = image.index_select(dim, index)
    result = padded.narrow(dim, 0, length) * weights[0]
    for offset, weight in enumerate(weights[1:], 1):
        result = torch.add(result, padded.narrow(dim, offset, length), alpha=weight)
    return result


def gaussian_blur(image: Tensor, size: int = 5, sigma: float = 1.0, backend: str = "auto") -> Tensor:
    """Blur with a ``size`` x ``size`` Gaussian, the border reflected half-sample symmetrically.

    Args:
        image: (..., H, W), floating point; differentiable.
        size: side of the kernel in pixels, odd.
        sigma: standard deviation in pixels.
        backend: ``reference`` sums over the two-dimensional kernel; every other path filters rows, then columns.

    Raises:
        ValueError: for an even size, a sigma that is not positive, or an unknown backend.
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"size is {size}; it must be odd and at least 1")
    if not sigma > 0 or not math.isfinite(sigma):
        raise ValueError(f"sigma is {sigma}; it must be positive")
    if check(backend) != "reference":
        weights = gaussian_kernel(size, sigma).sum(0).tolist()
        return _along(_along(image, -2, weights), -1, weights)
    height, width = image.shape[-2:]
    rows, columns = (reflected(torch.arange(-(size // 2), n + size // 2), n).to(image.device) for n in (height, width))
    padded = image.index_select(-2, rows).index_select(-1, columns)
    windows = padded.unfold(-2, size, 1).unfold(-2, size, 1)
    return torch.einsum("...hwij,ij->...hw", windows, gaussian_kernel(size, sigma, image.dtype).to(image.device))
