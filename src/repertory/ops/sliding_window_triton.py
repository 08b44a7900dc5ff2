"""Filters of every pixel on CUDA: three Triton kernels, none of them scattering.

A program takes a tile of pixels of one head of one image; the gradient of the values is the same sum with every tap
mirrored. Gradients of the static filters are added up by a program a tap and share of the pixels, and then those
partial sums, so that a result does not depend on the order of programs. Tensors are read by their strides, so that
slices of a projection and channels-last maps need no copy. Sums are float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from repertory.ops.sliding_window import Window

PIXELS = 64  # of a tile
SHARES = 32  # of the pixels, each summed by its own program


@triton.jit
def _tile(pointer, y, x, channel, stride_c, stride_y, stride_x, inside):
    """Load (pixels, channels) of one head as float32, 0 where not ``inside``."""
    places = channel[None, :] * stride_c + (y * stride_y + x * stride_x)[:, None]
    return tl.load(pointer + places, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _row(pointer, y, x, stride_y, stride_x, inside):
    """Load (pixels) as float32, 0 where not ``inside``."""
    return tl.load(pointer + y * stride_y + x * stride_x, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _sum_kernel(
    value, weights, mul, add, out,
    height, width, rate,
    vb, vc, vy, vx, wb, wh, wt, wy, wx, ob, oc, oy, ox,
    D: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, WINDOW: tl.constexpr,
    MUL: tl.constexpr, ADD: tl.constexpr, MIRRORED: tl.constexpr,
):  # fmt: skip
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    channel = tl.arange(0, CHANNELS)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    y, x = pixel // width, pixel % width
    real = pixel < height * width
    value += image * vb + head * D * vc
    weights += image * wb + head * wh
    ghosts = (head * D + channel) * (WINDOW * WINDOW)
    total = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for tap in range(WINDOW * WINDOW):
        down = (tap // WINDOW - WINDOW // 2) * rate
        right = (tap % WINDOW - WINDOW // 2) * rate
        if MIRRORED:  # what the position that this tap comes from gave
            ty, tx = y - down, x - right
        else:
            ty, tx = y + down, x + right
        seen = real & (ty >= 0) & (ty < height) & (tx >= 0) & (tx < width)
        if MIRRORED:
            weight = _row(weights + tap * wt, ty, tx, wy, wx, seen)
        else:
            weight = _row(weights + tap * wt, y, x, wy, wx, real)
        kernel = tl.zeros((PIXELS, CHANNELS), tl.float32) + weight[:, None]
        if MUL:
            kernel *= tl.load(mul + ghosts + tap, mask=channel < D, other=0.0).to(tl.float32)[None, :]
        if ADD:
            kernel += tl.load(add + ghosts + tap, mask=channel < D, other=0.0).to(tl.float32)[None, :]
        total += kernel * _tile(value, ty, tx, channel, vc, vy, vx, seen[:, None] & (channel < D)[None, :])
    places = image * ob + (head * D + channel)[None, :] * oc + (y * oy + x * ox)[:, None]
    tl.store(out + places, total.to(out.dtype.element_ty), mask=real[:, None] & (channel < D)[None, :])


@triton.jit
def _weights_kernel(
    grad, value, mul, out,
    height, width, rate,
    gb, gc, gy, gx, vb, vc, vy, vx, ob, oh, ot, oy, ox,
    D: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, WINDOW: tl.constexpr, MUL: tl.constexpr,
):  # fmt: skip
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    channel = tl.arange(0, CHANNELS)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    y, x = pixel // width, pixel % width
    real = pixel < height * width
    known = (channel < D)[None, :]
    value += image * vb + head * D * vc
    ghosts = (head * D + channel) * (WINDOW * WINDOW)
    g = _tile(grad + image * gb + head * D * gc, y, x, channel, gc, gy, gx, real[:, None] & known)
    for tap in range(WINDOW * WINDOW):
        ty = y + (tap // WINDOW - WINDOW // 2) * rate
        tx = x + (tap % WINDOW - WINDOW // 2) * rate
        seen = real & (ty >= 0) & (ty < height) & (tx >= 0) & (tx < width)
        product = g * _tile(value, ty, tx, channel, vc, vy, vx, seen[:, None] & known)
        if MUL:
            product *= tl.load(mul + ghosts + tap, mask=channel < D, other=0.0).to(tl.float32)[None, :]
        places = image * ob + head * oh + tap * ot + y * oy + x * ox
        tl.store(out + places, tl.sum(product, 1).to(out.dtype.element_ty), mask=real)


@triton.jit
def _ghosts_kernel(
    grad, value, weights, to_mul, to_add,
    height, width, rate, tiles, batch, channels,
    gb, gc, gy, gx, vb, vc, vy, vx, wb, wh, wt, wy, wx,
    D: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, WINDOW: tl.constexpr,
    MUL: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    share, head, tap = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    channel = tl.arange(0, CHANNELS)
    known = (channel < D)[None, :]
    down = (tap // WINDOW - WINDOW // 2) * rate
    right = (tap % WINDOW - WINDOW // 2) * rate
    grad += head * D * gc
    value += head * D * vc
    weights += head * wh + tap * wt
    added = tl.zeros((CHANNELS,), tl.float32)
    scaled = tl.zeros((CHANNELS,), tl.float32)
    for step in range(share, tiles * batch, tl.num_programs(0)):
        image = (step // tiles).to(tl.int64)
        pixel = (step % tiles) * PIXELS + tl.arange(0, PIXELS)
        y, x = pixel // width, pixel % width
        ty, tx = y + down, x + right
        seen = (pixel < height * width) & (ty >= 0) & (ty < height) & (tx >= 0) & (tx < width)
        inside = seen[:, None] & known
        g = _tile(grad + image * gb, y, x, channel, gc, gy, gx, inside)
        product = g * _tile(value + image * vb, ty, tx, channel, vc, vy, vx, inside)
        if ADD:
            added += tl.sum(product, 0)
        if MUL:
            scaled += tl.sum(product * _row(weights + image * wb, y, x, wy, wx, seen)[:, None], 0)
    places = (share * channels + head * D + channel) * (WINDOW * WINDOW) + tap
    if ADD:
        tl.store(to_add + places, added, mask=channel < D)
    if MUL:
        tl.store(to_mul + places, scaled, mask=channel < D)


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for tensor in tensors for stride in tensor.stride()]


def _constants(value: Tensor, window: Window) -> dict[str, int]:
    depth = value.shape[1] // window.heads
    return {"D": depth, "CHANNELS": triton.next_power_of_2(depth), "PIXELS": PIXELS, "WINDOW": window.side}


def _launch(kernel: Any, grid: tuple[int, ...], value: Tensor, *arguments: Any, **constants: Any) -> None:
    with torch.cuda.device_of(value):
        kernel[grid](*arguments, **constants)


def _some(ghost: Tensor | None, value: Tensor) -> Tensor:
    """The ghost as kernels read it, or anything at all where there is none."""
    return value if ghost is None else ghost.contiguous()


def _total(
    value: Tensor, weights: Tensor, mul: Tensor | None, add: Tensor | None, window: Window, mirrored: bool
) -> Tensor:
    batch, _, height, width = value.shape
    out = torch.empty_like(value)
    _launch(
        _sum_kernel,
        (triton.cdiv(height * width, PIXELS), window.heads, batch),
        value,
        *(value, weights, _some(mul, value), _some(add, value), out),
        *(height, width, window.rate),
        *_strides(value, weights, out),
        **_constants(value, window),
        MUL=mul is not None,
        ADD=add is not None,
        MIRRORED=mirrored,
    )
    return out


def weighted_sum(value: Tensor, weights: Tensor, mul: Tensor | None, add: Tensor | None, window: Window) -> Tensor:
    """(B, C, H, W) of values (B, C, H, W), weights (B, heads, taps, H, W) and ghosts (C, taps) or None.

    Takes CUDA tensors of at most 32 bits and any strides; settings are checked already.
    """
    return _total(value, weights, mul, add, window, mirrored=False)


def gradients(
    grad: Tensor, value: Tensor, weights: Tensor, mul: Tensor | None, add: Tensor | None, window: Window
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of values, weights, factors and added filters, each of the type of its own."""
    batch, channels, height, width = value.shape
    to_value = _total(grad, weights, mul, add, window, mirrored=True).to(value.dtype)
    to_weights = torch.empty_like(weights)
    tiles = triton.cdiv(height * width, PIXELS)
    constants = _constants(value, window)
    _launch(
        _weights_kernel,
        (tiles, window.heads, batch),
        value,
        *(grad, value, _some(mul, value), to_weights),
        *(height, width, window.rate),
        *_strides(grad, value, to_weights),
        **constants,
        MUL=mul is not None,
    )
    if mul is None and add is None:
        return to_value, to_weights, None, None
    shares = min(SHARES, tiles * batch)
    partial = value.new_empty(2, shares, channels, window.taps, dtype=torch.float32)
    _launch(
        _ghosts_kernel,
        (shares, window.heads, window.taps),
        value,
        *(grad, value, weights, partial[0], partial[1]),
        *(height, width, window.rate, tiles, batch, channels),
        *_strides(grad, value, weights),
        **constants,
        MUL=mul is not None,
        ADD=add is not None,
    )
    to_mul = None if mul is None else partial[0].sum(0).to(mul.dtype)
    to_add = None if add is None else partial[1].sum(0).to(add.dtype)
    return to_value, to_weights, to_mul, to_add
