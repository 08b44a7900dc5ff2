"""The joint bilateral filter as one Triton kernel: a block of pixels a program, weights in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 256


@triton.jit
def _kernel(
    image,
    guide,
    log_spatial,
    out,
    height,
    width,
    HALF_WIDTH: tl.constexpr,  # a kernel a window: some ten of them serve a whole pyramid
    C: tl.constexpr,
    G: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Up to three channels of image and guide; those absent are never loaded.
    pixels = height * width
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    batch = tl.program_id(1).to(tl.int64)
    image += batch * C * pixels
    guide += batch * G * pixels
    out += batch * (C + 1) * pixels
    inside = pixel < pixels
    y = pixel // width
    x = pixel % width
    centre0 = tl.load(guide + pixel, mask=inside, other=0.0)
    total = tl.zeros_like(centre0)
    sum0 = tl.zeros_like(centre0)
    sum1 = tl.zeros_like(centre0)
    sum2 = tl.zeros_like(centre0)
    centre1 = centre0
    centre2 = centre0
    if G > 1:
        centre1 = tl.load(guide + pixels + pixel, mask=inside, other=0.0)
    if G > 2:
        centre2 = tl.load(guide + 2 * pixels + pixel, mask=inside, other=0.0)
    side: tl.constexpr = 2 * HALF_WIDTH + 1
    for tap in range(0, side * side):
        there_y = y + tap // side - HALF_WIDTH
        there_x = x + tap % side - HALF_WIDTH
        valid = inside & (there_y >= 0) & (there_y < height) & (there_x >= 0) & (there_x < width)
        there = there_y * width + there_x
        difference = tl.load(guide + there, mask=valid, other=0.0) - centre0
        distance = difference * difference
        if G > 1:
            difference = tl.load(guide + pixels + there, mask=valid, other=0.0) - centre1
            distance += difference * difference
        if G > 2:
            difference = tl.load(guide + 2 * pixels + there, mask=valid, other=0.0) - centre2
            distance += difference * difference
        weight = tl.where(valid, tl.exp(tl.load(log_spatial + tap) - distance), 0.0)
        total += weight
        sum0 += weight * tl.load(image + there, mask=valid, other=0.0)
        if C > 1:
            sum1 += weight * tl.load(image + pixels + there, mask=valid, other=0.0)
        if C > 2:
            sum2 += weight * tl.load(image + 2 * pixels + there, mask=valid, other=0.0)
    tl.store(out + pixel, sum0 / total, mask=inside)
    if C > 1:
        tl.store(out + pixels + pixel, sum1 / total, mask=inside)
    if C > 2:
        tl.store(out + 2 * pixels + pixel, sum2 / total, mask=inside)
    tl.store(out + C * pixels + pixel, total, mask=inside)


def joint_bilateral_triton(image: Tensor, guide: Tensor, half_width: int, log_spatial: Tensor) -> Tensor:
    """(B, C + 1, H, W): the filtered image and the sum of weights; ``guide`` is scaled by 1 / (sqrt 2 sigma_r).

    Images of more than three channels run three at a time; ``ValueError`` for a guide of more than three.
    """
    if guide.shape[1] > 3:
        raise ValueError(f"guide has {guide.shape[1]} channels; the Triton path takes at most 3 (use backend='eager')")
    batch, _, height, width = image.shape
    guide, log_spatial = guide.contiguous(), log_spatial.contiguous()
    parts = []
    for group in image.split(3, dim=1):
        channels = group.shape[1]
        out = torch.empty(batch, channels + 1, height, width, dtype=image.dtype, device=image.device)
        grid = (triton.cdiv(height * width, _BLOCK), batch)
        _kernel[grid](
            group.contiguous(), guide, log_spatial, out, height, width, half_width, channels, guide.shape[1], _BLOCK
        )
        parts.append(out)
    return torch.cat([*(part[:, :-1] for part in parts), parts[-1][:, -1:]], 1)
