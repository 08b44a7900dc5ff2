"""Sliding-window dilated attention on CUDA: one Triton kernel forward, two backward, none of them scattering.

A program takes a tile of pixels of one head of one image. The softmax runs along the taps; only the logarithm of its
sum is kept, and the backward kernels compute the weights again. Tensors are read by their strides, so that slices of a
projection and channels-last maps need no copy. Sums are float32.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PIXELS = 64  # of a tile


@triton.jit
def _tile(pointer, pixel_y, pixel_x, channel, stride_c, stride_y, stride_x, inside):
    """Load (pixels, channels) of one head as float32, 0 where not ``inside``."""
    places = channel[None, :] * stride_c + (pixel_y * stride_y + pixel_x * stride_x)[:, None]
    return tl.load(pointer + places, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _forward_kernel(
    query, key, value, out, sums, rates,
    heads, per_group, height, width, scale,
    qb, qc, qy, qx, kb, kc, ky, kx, vb, vc, vy, vx,
    D: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    rate = tl.load(rates + head // per_group)
    channel = tl.arange(0, CHANNELS)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    y, x = pixel // width, pixel % width
    real = (pixel < height * width)[:, None] & (channel < D)[None, :]
    query += image * qb + head * D * qc
    key += image * kb + head * D * kc
    value += image * vb + head * D * vc
    q = _tile(query, y, x, channel, qc, qy, qx, real) * scale

    largest = tl.full((PIXELS,), float("-inf"), tl.float32)
    total = tl.zeros((PIXELS,), tl.float32)
    attended = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for tap in range(WINDOW * WINDOW):
        ty = y + (tap // WINDOW - WINDOW // 2) * rate
        tx = x + (tap % WINDOW - WINDOW // 2) * rate
        inside = real & ((ty >= 0) & (ty < height) & (tx >= 0) & (tx < width))[:, None]
        logit = tl.sum(q * _tile(key, ty, tx, channel, kc, ky, kx, inside), 1)  # 0 outside: padding is not masked
        new = tl.maximum(largest, logit)
        fade, weight = tl.exp(largest - new), tl.exp(logit - new)
        attended = attended * fade[:, None] + weight[:, None] * _tile(value, ty, tx, channel, vc, vy, vx, inside)
        total = total * fade + weight
        largest = new

    area = height * width
    places = (image * area + pixel[:, None]) * (heads * D) + head * D + channel[None, :]
    tl.store(out + places, (attended / total[:, None]).to(out.dtype.element_ty), mask=real)
    tl.store(sums + (image * heads + head) * area + pixel, largest + tl.log(total), mask=pixel < area)


@triton.jit
def _query_kernel(
    grad, query, key, value, sums, deltas, d_query, rates,
    heads, per_group, height, width, scale,
    gb, gc, gy, gx, qb, qc, qy, qx, kb, kc, ky, kx, vb, vc, vy, vx, db, dc, dy, dx,
    D: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    rate = tl.load(rates + head // per_group)
    channel = tl.arange(0, CHANNELS)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    y, x = pixel // width, pixel % width
    area = height * width
    real = (pixel < area)[:, None] & (channel < D)[None, :]
    key += image * kb + head * D * kc
    value += image * vb + head * D * vc
    q = _tile(query + image * qb + head * D * qc, y, x, channel, qc, qy, qx, real) * scale
    g = _tile(grad + image * gb + head * D * gc, y, x, channel, gc, gy, gx, real)
    here = (image * heads + head) * area + pixel
    log_sum = tl.load(sums + here, mask=pixel < area, other=0.0)
    delta = tl.load(deltas + here, mask=pixel < area, other=0.0)

    d = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for tap in range(WINDOW * WINDOW):
        ty = y + (tap // WINDOW - WINDOW // 2) * rate
        tx = x + (tap % WINDOW - WINDOW // 2) * rate
        inside = real & ((ty >= 0) & (ty < height) & (tx >= 0) & (tx < width))[:, None]
        k = _tile(key, ty, tx, channel, kc, ky, kx, inside)
        weight = tl.exp(tl.sum(q * k, 1) - log_sum)
        d_weight = tl.sum(g * _tile(value, ty, tx, channel, vc, vy, vx, inside), 1)
        d += (weight * (d_weight - delta) * scale)[:, None] * k
    places = image * db + (head * D + channel)[None, :] * dc + (y * dy + x * dx)[:, None]
    tl.store(d_query + places, d.to(d_query.dtype.element_ty), mask=real)


@triton.jit
def _key_value_kernel(
    grad, query, key, value, sums, deltas, d_key, d_value, rates,
    heads, per_group, height, width, scale,
    gb, gc, gy, gx, qb, qc, qy, qx, kb, kc, ky, kx, vb, vc, vy, vx, db, dc, dy, dx,
    D: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    rate = tl.load(rates + head // per_group)
    channel = tl.arange(0, CHANNELS)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    y, x = pixel // width, pixel % width
    area = height * width
    real = (pixel < area)[:, None] & (channel < D)[None, :]
    query += image * qb + head * D * qc
    grad += image * gb + head * D * gc
    k = _tile(key + image * kb + head * D * kc, y, x, channel, kc, ky, kx, real) * scale
    v = _tile(value + image * vb + head * D * vc, y, x, channel, vc, vy, vx, real)
    sums += (image * heads + head) * area
    deltas += (image * heads + head) * area

    dk = tl.zeros((PIXELS, CHANNELS), tl.float32)
    dv = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for tap in range(WINDOW * WINDOW):  # the queries that see this key; the window is its own mirror
        ty = y + (tap // WINDOW - WINDOW // 2) * rate
        tx = x + (tap % WINDOW - WINDOW // 2) * rate
        seen = (pixel < area) & (ty >= 0) & (ty < height) & (tx >= 0) & (tx < width)
        inside = real & seen[:, None]
        q = _tile(query, ty, tx, channel, qc, qy, qx, inside)
        g = _tile(grad, ty, tx, channel, gc, gy, gx, inside)
        there = ty * width + tx
        log_sum = tl.load(sums + there, mask=seen, other=0.0)
        delta = tl.load(deltas + there, mask=seen, other=0.0)
        weight = tl.exp(tl.sum(q * k, 1) - log_sum)  # where nothing is seen q and g are 0, and so is what is added
        dv += weight[:, None] * g
        dk += (weight * (tl.sum(g * v, 1) - delta) * scale)[:, None] * q
    places = image * db + (head * D + channel)[None, :] * dc + (y * dy + x * dx)[:, None]
    tl.store(d_key + places, dk.to(d_key.dtype.element_ty), mask=real)
    tl.store(d_value + places, dv.to(d_value.dtype.element_ty), mask=real)


@functools.cache
def _on_device(rates: tuple[int, ...], device: torch.device) -> Tensor:
    """The rates where kernels can read them, copied once."""
    return torch.tensor(rates, dtype=torch.int32, device=device)


class _Launch:
    """What the three kernels have in common: grid, sizes and constants of one call."""

    def __init__(self, query: Tensor, kernel_size: int, rates: tuple[int, ...], num_heads: int) -> None:
        batch, channels, height, width = query.shape
        head_dim = channels // num_heads
        self.grid = (triton.cdiv(height * width, PIXELS), num_heads, batch)
        self.rates = _on_device(rates, query.device)
        self.sizes = (num_heads, num_heads // len(rates), height, width, head_dim**-0.5)
        self.constants = {
            "D": head_dim,
            "CHANNELS": triton.next_power_of_2(head_dim),
            "PIXELS": PIXELS,
            "WINDOW": kernel_size,
        }

    def __call__(self, kernel: Any, tensors: tuple[Tensor, ...], strided: tuple[Tensor, ...]) -> None:
        strides = [stride for tensor in strided for stride in tensor.stride()]
        with torch.cuda.device_of(tensors[0]):
            kernel[self.grid](*tensors, self.rates, *self.sizes, *strides, **self.constants)


def attend(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: int, rates: tuple[int, ...], num_heads: int
) -> tuple[Tensor, Tensor]:
    """Output (B, C, H, W), laid out (B, H, W, C), and logarithms of the sums (B, heads, H * W) for the backward pass.

    Takes CUDA tensors (B, C, H, W) of at most 32 bits and any strides; settings are checked already.
    """
    batch, channels, height, width = query.shape
    out = query.new_empty(batch, height, width, channels)
    sums = query.new_empty(batch, num_heads, height * width, dtype=torch.float32)
    launch = _Launch(query, kernel_size, rates, num_heads)
    launch(_forward_kernel, (query, key, value, out, sums), (query, key, value))
    return out.permute(0, 3, 1, 2), sums


def gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    sums: Tensor,
    kernel_size: int,
    rates: tuple[int, ...],
    num_heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, (B, C, H, W) each, of ``grad`` (B, C, H, W), any strides."""
    products = grad.float() * out.float()
    deltas = products.unflatten(1, (num_heads, -1)).sum(2).flatten(2).contiguous()
    d_query, d_key, d_value = (query.new_empty(query.shape) for _ in range(3))
    read = (grad, query, key, value)
    launch = _Launch(query, kernel_size, rates, num_heads)
    launch(_query_kernel, (*read, sums, deltas, d_query), (*read, d_query))
    launch(_key_value_kernel, (*read, sums, deltas, d_key, d_value), (*read, d_key))
    return d_query, d_key, d_value
