"""AFFormer's frequency filter on CUDA: matrix products by cuBLAS, what surrounds them fused in four Triton kernels.

A program takes a tile of pixels and a block of channels that look through one window; windows are launched one after
the other. Tensors are read by their strides, so that any layout needs no copy. The high-pass and low-pass parts are
never stored: the backward pass computes them again. No kernel scatters; sums are float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from repertory.ops.frequency_filter import Settings, _heads, _image, _levels_of, _tokens, _windows

PIXELS, CHANNELS = 32, 32  # of a tile


@triton.jit
def _place(height, width, start, count, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """Pixel, row and column (PIXELS), channel (CHANNELS) of the map, and which of them are real."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inner = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    real = (pixel < height * width)[:, None] & (inner < count)[None, :]
    return pixel, pixel // width, pixel % width, start + inner, inner, real


@triton.jit
def _read(pointer, y, x, channel, stride_c, stride_y, stride_x, inside):
    """(pixels, channels) as float32, 0 where not ``inside``."""
    places = channel[None, :] * stride_c + (y * stride_y + x * stride_x)[:, None]
    return tl.load(pointer + places, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _high(
    value, weight, bias, y, x, channel, inner, real, count, height, width, vc, vy, vx, WINDOW: tl.constexpr
):  # fmt: skip
    """The high-pass part of a tile."""
    known = inner < count
    total = tl.zeros(real.shape, tl.float32) + tl.load(bias + inner, mask=known, other=0.0)[None, :]
    for tap in range(WINDOW * WINDOW):
        ty, tx = y + tap // WINDOW - WINDOW // 2, x + tap % WINDOW - WINDOW // 2
        inside = real & ((ty >= 0) & (ty < height) & (tx >= 0) & (tx < width))[:, None]
        factor = tl.load(weight + inner * (WINDOW * WINDOW) + tap, mask=known, other=0.0)
        total += factor[None, :] * _read(value, ty, tx, channel, vc, vy, vx, inside)
    return total


@triton.jit
def _low(pooled, bins, offsets, y, x, channel, real, height, width, per_level):
    """The low-pass part of a tile before its ReLU: its channels may be of several levels."""
    level = channel // per_level
    side = tl.load(bins + level, mask=channel >= 0, other=1)
    first = tl.load(offsets + level, mask=channel >= 0, other=0)
    down = (y.to(tl.float32) + 0.5)[:, None] * (side.to(tl.float32) / height)[None, :] - 0.5
    along = (x.to(tl.float32) + 0.5)[:, None] * (side.to(tl.float32) / width)[None, :] - 0.5
    down, along = tl.maximum(down, 0.0), tl.maximum(along, 0.0)
    last = (side - 1)[None, :]
    top, left = tl.minimum(down.to(tl.int32), last), tl.minimum(along.to(tl.int32), last)
    bottom, right = tl.minimum(top + 1, last), tl.minimum(left + 1, last)
    fall, lead = down - top.to(tl.float32), along - left.to(tl.float32)
    column = (channel - level * per_level)[None, :]
    start, stride = first[None, :], side[None, :]
    upper = tl.load(pooled + (start + top * stride + left) * per_level + column, mask=real, other=0.0) * (1 - lead)
    upper += tl.load(pooled + (start + top * stride + right) * per_level + column, mask=real, other=0.0) * lead
    lower = tl.load(pooled + (start + bottom * stride + left) * per_level + column, mask=real, other=0.0) * (1 - lead)
    lower += tl.load(pooled + (start + bottom * stride + right) * per_level + column, mask=real, other=0.0) * lead
    return upper * (1 - fall) + lower * fall


@triton.jit
def _forward_kernel(
    query, value, pooled, out, weight, bias, bins, offsets,
    start, count, height, width, channels, per_level, cells,
    qb, qc, qy, qx, vb, vc, vy, vx,
    WINDOW: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Add query * high + low to ``out`` (B, N, C)."""
    image = tl.program_id(2).to(tl.int64)
    pixel, y, x, channel, inner, real = _place(height, width, start, count, PIXELS, CHANNELS)
    known = tl.minimum(channel, channels - 1)
    high = _high(value + image * vb, weight, bias, y, x, channel, inner, real, count, height, width, vc, vy, vx, WINDOW)
    low = _low(pooled + image * cells * per_level, bins, offsets, y, x, known, real, height, width, per_level)
    q = _read(query + image * qb, y, x, channel, qc, qy, qx, real)
    places = (image * height * width + pixel[:, None]) * channels + channel[None, :]
    total = tl.load(out + places, mask=real, other=0.0) + q * high + tl.maximum(low, 0.0)
    tl.store(out + places, total, mask=real)


@triton.jit
def _query_kernel(
    grad, value, pooled, found, cut, weight, bias, bins, offsets,
    start, count, height, width, channels, per_level, cells,
    gb, gc, gy, gx, vb, vc, vy, vx,
    WINDOW: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Add grad * high to the queries' part of ``found`` (B, N, 3 C); write grad where low > 0 to ``cut`` (B, N, C)."""
    image = tl.program_id(2).to(tl.int64)
    pixel, y, x, channel, inner, real = _place(height, width, start, count, PIXELS, CHANNELS)
    known = tl.minimum(channel, channels - 1)
    high = _high(value + image * vb, weight, bias, y, x, channel, inner, real, count, height, width, vc, vy, vx, WINDOW)
    low = _low(pooled + image * cells * per_level, bins, offsets, y, x, known, real, height, width, per_level)
    g = _read(grad + image * gb, y, x, channel, gc, gy, gx, real)
    row = image * height * width + pixel[:, None]
    places = row * (3 * channels) + channel[None, :]
    tl.store(found + places, tl.load(found + places, mask=real, other=0.0) + g * high, mask=real)
    tl.store(cut + row * channels + channel[None, :], tl.where(low > 0, g, 0.0), mask=real)


@triton.jit
def _value_kernel(
    grad, query, found, weight,
    start, count, height, width, channels,
    gb, gc, gy, gx, qb, qc, qy, qx,
    WINDOW: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Add what the high-pass part asks of the values to their part of ``found`` (B, N, 3 C)."""
    image = tl.program_id(2).to(tl.int64)
    pixel, y, x, channel, inner, real = _place(height, width, start, count, PIXELS, CHANNELS)
    total = tl.zeros(real.shape, tl.float32)
    for tap in range(WINDOW * WINDOW):  # the places whose window holds this one through the opposite tap
        ty, tx = y - tap // WINDOW + WINDOW // 2, x - tap % WINDOW + WINDOW // 2
        inside = real & ((ty >= 0) & (ty < height) & (tx >= 0) & (tx < width))[:, None]
        factor = tl.load(weight + inner * (WINDOW * WINDOW) + tap, mask=inner < count, other=0.0)
        g = _read(grad + image * gb, ty, tx, channel, gc, gy, gx, inside)
        total += factor[None, :] * g * _read(query + image * qb, ty, tx, channel, qc, qy, qx, inside)
    places = (image * height * width + pixel[:, None]) * (3 * channels) + 2 * channels + channel[None, :]
    tl.store(found + places, tl.load(found + places, mask=real, other=0.0) + total, mask=real)


@triton.jit
def _weight_kernel(
    grad, query, value, partial,
    start, count, height, width,
    gb, gc, gy, gx, qb, qc, qy, qx, vb, vc, vy, vx,
    WINDOW: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write the sums of one tile for every tap, and for the bias after them: (B, tiles, taps + 1, count)."""
    image = tl.program_id(2).to(tl.int64)
    _, y, x, channel, inner, real = _place(height, width, start, count, PIXELS, CHANNELS)
    g = _read(grad + image * gb, y, x, channel, gc, gy, gx, real)
    to_high = g * _read(query + image * qb, y, x, channel, qc, qy, qx, real)
    row = (image * tl.num_programs(0) + tl.program_id(0)) * (WINDOW * WINDOW + 1)
    for tap in range(WINDOW * WINDOW):
        ty, tx = y + tap // WINDOW - WINDOW // 2, x + tap % WINDOW - WINDOW // 2
        inside = real & ((ty >= 0) & (ty < height) & (tx >= 0) & (tx < width))[:, None]
        product = tl.sum(to_high * _read(value + image * vb, ty, tx, channel, vc, vy, vx, inside), 0)
        tl.store(partial + (row + tap) * count + inner, product, mask=inner < count)
    tl.store(partial + (row + WINDOW * WINDOW) * count + inner, tl.sum(to_high, 0), mask=inner < count)


class _Launch:
    """What the kernels of one call have in common."""

    def __init__(self, qkv: Tensor, filters: Sequence[Tensor], settings: Settings) -> None:
        self.query, self.key, self.value = qkv.chunk(3, 1)
        batch, self.channels, height, width = self.query.shape
        self.batch, self.size, self.filters = batch, (height, width), filters
        bins = settings[1]
        offsets = [sum(cells**2 for cells in bins[:level]) for level in range(len(bins))]
        self.tables = tuple(torch.tensor(x, dtype=torch.int32, device=qkv.device) for x in (bins, offsets))
        self.pyramid = (self.channels // len(bins), sum(cells**2 for cells in bins))
        self.levels = _levels_of(height, width, bins, torch.float32, qkv.device)
        self.tiles = triton.cdiv(height * width, PIXELS)

    def windows(self) -> Iterator[tuple[slice, Tensor, Tensor, dict[str, int]]]:
        """(channels, kernel, bias, constants) of each window."""
        for group, weight, bias in _windows(self.filters):
            constants = {"WINDOW": weight.shape[-1], "PIXELS": PIXELS, "CHANNELS": CHANNELS}
            yield group, weight.contiguous(), bias.contiguous(), constants

    def __call__(
        self, kernel: Any, tensors: Sequence[Tensor], numbers: Sequence[int], strided: Sequence[Tensor], constants: Any
    ) -> None:
        """Run ``kernel``; the second of ``numbers`` is the window's count of channels."""
        grid = (self.tiles, triton.cdiv(numbers[1], CHANNELS), self.batch)
        strides = [stride for tensor in strided for stride in tensor.stride()]
        with torch.cuda.device_of(tensors[0]):
            kernel[grid](*tensors, *numbers, *strides, **constants)


def filtered(qkv: Tensor, filters: Sequence[Tensor], settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Output (B, C, H, W), and kernels and pooled values for the backward pass.

    Takes a CUDA tensor (B, 3 C, H, W) of at most 32 bits and any strides, and float32 kernels and biases; settings are
    checked already.
    """
    launch, num_heads = _Launch(qkv, filters, settings), settings[0]
    q, k, v = (_tokens(x).float() for x in (launch.query, launch.key, launch.value))
    kernels = _heads(k.softmax(1), num_heads).transpose(2, 3) @ _heads(v, num_heads)
    scale = kernels.shape[-1] ** -0.5
    out = (_heads(q, num_heads) @ (scale * kernels)).transpose(1, 2).reshape(q.shape)
    parts = zip(v.chunk(len(launch.levels), 2), launch.levels, strict=True)
    pooled = torch.cat([pooling @ part for part, (pooling, _) in parts], 1)
    for group, weight, bias, constants in launch.windows():
        tensors = (launch.query, launch.value, pooled, out, weight, bias, *launch.tables)
        numbers = (group.start, len(weight), *launch.size, launch.channels, *launch.pyramid)
        launch(_forward_kernel, tensors, numbers, (launch.query, launch.value), constants)
    return _image(out.to(qkv.dtype), launch.size), kernels, pooled


def gradients(
    grad: Tensor,
    qkv: Tensor,
    filters: Sequence[Tensor],
    kernels: Tensor,
    pooled: Tensor,
    settings: Settings,
) -> tuple[Tensor, ...]:
    """Gradients of ``qkv`` (B, 3 C, H, W) and of every kernel and bias, of ``grad`` (B, C, H, W) with any strides."""
    launch, num_heads = _Launch(qkv, filters, settings), settings[0]
    g, q, k, v = (_tokens(x).float() for x in (grad, launch.query, launch.key, launch.value))
    gh, qh, vh = (_heads(x, num_heads) for x in (g, q, v))
    scale = kernels.shape[-1] ** -0.5
    to_kernels = scale * (qh.transpose(2, 3) @ gh)
    share = k.softmax(1)
    mean = (kernels * to_kernels).sum(3).flatten(1)[:, None]
    found = torch.empty(*q.shape[:2], 3 * launch.channels, device=qkv.device)
    to_query, to_key, to_value = (_heads(x, num_heads) for x in found.chunk(3, 2))
    to_query.copy_(gh @ (scale * kernels).transpose(2, 3))
    to_key.copy_(_heads(share, num_heads) * (vh @ to_kernels.transpose(2, 3) - _heads(mean, num_heads)))
    to_value.copy_(_heads(share, num_heads) @ to_kernels)

    cut = torch.empty_like(g, memory_format=torch.contiguous_format)
    to_weights, to_biases = [], []
    for group, weight, bias, constants in launch.windows():
        numbers = (group.start, len(weight), *launch.size)
        tensors = (grad, launch.value, pooled, found, cut, weight, bias, *launch.tables)
        deep = (*numbers, launch.channels, *launch.pyramid)
        launch(_query_kernel, tensors, deep, (grad, launch.value), constants)
        launch(_value_kernel, (grad, launch.query, found, weight), deep[:5], (grad, launch.query), constants)
        taps = weight[0].numel()
        partial = torch.empty(launch.batch, launch.tiles, taps + 1, len(weight), device=qkv.device)
        strided = (grad, launch.query, launch.value)
        launch(_weight_kernel, (*strided, partial), numbers, strided, constants)
        sums = partial.sum((0, 1))
        to_weights.append(sums[:taps].T.reshape(weight.shape))
        to_biases.append(sums[taps])
    parts = zip(cut.chunk(len(launch.levels), 2), found.chunk(3, 2)[2].chunk(len(launch.levels), 2), strict=True)
    for (part, to_part), (pooling, resampling) in zip(parts, launch.levels, strict=True):
        to_part += pooling.T @ (resampling.T @ part)
    return _image(found.to(qkv.dtype), launch.size), *to_weights, *to_biases
