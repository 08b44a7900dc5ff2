"""Frozen baseline: pyramid texture filtering in numpy float64, the bilateral filter as a loop over window offsets.

The plain vectorised form of the sheet's definition: one pass over the image an offset, one exponential an offset and
pixel, the window clipped by slicing. Shares nothing with ``repertory``.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import correlate1d

Array = np.ndarray


def joint_bilateral(image: Array, guide: Array, half_width: int, sigma_s: float, sigma_r: float) -> Array:
    """(H, W, C) float64 ``image`` filtered under ``guide``."""
    height, width = image.shape[:2]
    numerator, denominator = np.zeros_like(image), np.zeros((height, width, 1))
    for dy in range(-half_width, half_width + 1):
        for dx in range(-half_width, half_width + 1):
            if abs(dy) >= height or abs(dx) >= width:
                continue
            here = (slice(max(-dy, 0), height - max(dy, 0)), slice(max(-dx, 0), width - max(dx, 0)))
            there = (slice(max(dy, 0), height + min(dy, 0)), slice(max(dx, 0), width + min(dx, 0)))
            distance = ((guide[there] - guide[here]) ** 2).sum(2, keepdims=True)
            weight = np.exp(-distance / (2 * sigma_r**2) - (dy * dy + dx * dx) / (2 * sigma_s**2))
            numerator[here] += weight * image[there]
            denominator[here] += weight
    return numerator / denominator


def blur(image: Array) -> Array:
    """5 x 5 Gaussian, sigma 1, half-sample symmetric border."""
    kernel = np.exp(-(np.arange(-2, 3) ** 2) / 2)
    kernel /= kernel.sum()
    return correlate1d(correlate1d(image, kernel, axis=0, mode="reflect"), kernel, axis=1, mode="reflect")


def resize(image: Array, size: tuple[int, int]) -> Array:
    """MATLAB's bilinear rule by its few taps an axis."""
    for axis, out in enumerate(size):
        length = image.shape[axis]
        scale = out / length
        narrow = min(scale, 1.0)
        centre = (np.arange(out) + 0.5) / scale - 0.5
        position = np.floor(centre - 1 / narrow)[:, None] + np.arange(math.ceil(2 / narrow) + 2)
        weight = np.maximum(1 - np.abs(narrow * (centre[:, None] - position)), 0)
        weight /= weight.sum(1, keepdims=True)
        index = np.mod(position.astype(int), 2 * length)
        index = np.where(index < length, index, 2 * length - 1 - index)
        shape = [1] * image.ndim
        shape[axis] = out
        taps = range(index.shape[1])
        image = sum(np.take(image, index[:, k], axis=axis) * weight[:, k].reshape(shape) for k in taps)
    return image


def pyramid_texture_filter(
    image: Array, sigma_s: float = 5.0, sigma_r: float = 0.05, levels: int = 11, scale: float = 0.8
) -> Array:
    """(H, W, C) float64 filtered."""
    gaussian = [image]
    for _ in range(levels - 1):
        height, width = gaussian[-1].shape[:2]
        gaussian.append(resize(blur(gaussian[-1]), (math.floor(height * scale), math.floor(width * scale))))
    smooth = gaussian[-1]
    for level in range(levels - 2, -1, -1):
        fine = gaussian[level]
        sigma = sigma_s * scale**level
        narrow, wide = math.ceil(0.5 * sigma + 1), math.ceil(2 * sigma + 1)
        laplacian = fine - blur(resize(gaussian[level + 1], fine.shape[:2]))
        sharp = joint_bilateral(resize(smooth, fine.shape[:2]), fine, narrow, sigma, sigma_r)
        smooth = joint_bilateral(sharp + laplacian, sharp, wide, sigma, sigma_r)
        smooth = joint_bilateral(smooth, smooth, wide, sigma, sigma_r)
    return smooth
