"""Criss-cross attention of maps on CUDA: three Triton kernels, each run along the columns and along the rows.

A program takes a block of one line: ``_score_kernel`` multiplies queries by keys and sums exponentials,
``_slope_kernel`` makes gradients of logits, ``_mix_kernel`` multiplies a line's matrix by what stands in the line. Kept
are the logits, H + W a pixel, and the logarithm of the sum that both lines share. Tensors are read by their strides,
without a copy; the second axis adds to what the first wrote. Sums are float32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 32  # positions of a line
CHANNELS = 64  # of a tile


@triton.jit
def _score_kernel(
    query, key, scores, sums, length, depth,
    qb, qc, ql, qp, kb, kc, kl, kp, sb, sl, sp,
    MASKED: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    line, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    query += image * qb + line * ql
    key += image * kb + line * kl
    scores += (image * tl.num_programs(1) + line) * length * length

    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, length, BLOCK):
        other = start + tl.arange(0, BLOCK)
        score = tl.zeros((BLOCK, BLOCK), tl.float32)
        for first in range(0, depth, CHANNELS):
            channel = first + tl.arange(0, CHANNELS)
            inside = (place < length)[:, None] & (channel < depth)[None, :]
            q = tl.load(query + place[:, None] * qp + channel[None, :] * qc, mask=inside, other=0.0).to(tl.float32)
            inside = (other < length)[None, :] & (channel < depth)[:, None]
            k = tl.load(key + other[None, :] * kp + channel[:, None] * kc, mask=inside, other=0.0).to(tl.float32)
            score += tl.dot(q, k, input_precision=PRECISION)
        hidden = (other >= length)[None, :]
        if MASKED:
            hidden = hidden | (other[None, :] == place[:, None])
        score = tl.where(hidden, float("-inf"), score)
        new = tl.maximum(largest, tl.max(score, 1))
        ground = tl.where(new == float("-inf"), 0.0, new)  # a line of one masked position has no logit at all
        total = total * tl.exp(largest - ground) + tl.sum(tl.exp(score - ground[:, None]), 1)
        largest = new
        real = (place < length)[:, None] & (other < length)[None, :]
        tl.store(scores + place[:, None] * length + other[None, :], score, mask=real)
    ground = tl.where(largest == float("-inf"), 0.0, largest)
    tl.store(sums + image * sb + line * sl + place * sp, ground + tl.log(total), mask=place < length)


@triton.jit
def _slope_kernel(
    grad, value, scores, sums, deltas, slopes, length, depth,
    gb, gc, gl, gp, vb, vc, vl, vp, sb, sl, sp,
    BLOCK: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    line, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    grad += image * gb + line * gl
    value += image * vb + line * vl
    matrix = (image * tl.num_programs(1) + line) * length * length
    here = image * sb + line * sl + place * sp
    log_sum = tl.load(sums + here, mask=place < length, other=0.0)
    delta = tl.load(deltas + here, mask=place < length, other=0.0)
    for start in range(0, length, BLOCK):
        other = start + tl.arange(0, BLOCK)
        slope = tl.zeros((BLOCK, BLOCK), tl.float32)
        for first in range(0, depth, CHANNELS):
            channel = first + tl.arange(0, CHANNELS)
            inside = (place < length)[:, None] & (channel < depth)[None, :]
            g = tl.load(grad + place[:, None] * gp + channel[None, :] * gc, mask=inside, other=0.0).to(tl.float32)
            inside = (other < length)[None, :] & (channel < depth)[:, None]
            v = tl.load(value + other[None, :] * vp + channel[:, None] * vc, mask=inside, other=0.0).to(tl.float32)
            slope += tl.dot(g, v, input_precision=PRECISION)
        real = (place < length)[:, None] & (other < length)[None, :]
        at = matrix + place[:, None] * length + other[None, :]
        score = tl.load(scores + at, mask=real, other=float("-inf"))
        tl.store(slopes + at, tl.exp(score - log_sum[:, None]) * (slope - delta[:, None]), mask=real)


@triton.jit
def _mix_kernel(
    matrix, sums, x, out, length, depth, tiles,
    xb, xc, xl, xp, ob, oc, ol, op, sb, sl, sp,
    WEIGHTS: tl.constexpr, TRANSPOSED: tl.constexpr, ADD: tl.constexpr,
    BLOCK: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    line, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    place = tl.program_id(0) // tiles * BLOCK + tl.arange(0, BLOCK)
    channel = tl.program_id(0) % tiles * CHANNELS + tl.arange(0, CHANNELS)
    matrix += (image * tl.num_programs(1) + line) * length * length
    sums += image * sb + line * sl
    x += image * xb + line * xl
    mixed = tl.zeros((BLOCK, CHANNELS), tl.float32)
    for start in range(0, length, BLOCK):
        other = start + tl.arange(0, BLOCK)
        real = (place < length)[:, None] & (other < length)[None, :]
        if TRANSPOSED:  # the matrix has queries before keys, and these places are keys
            weight = tl.load(matrix + other[None, :] * length + place[:, None], mask=real, other=0.0)
        else:
            weight = tl.load(matrix + place[:, None] * length + other[None, :], mask=real, other=0.0)
        if WEIGHTS:  # the matrix holds logits
            if TRANSPOSED:
                weight -= tl.load(sums + other * sp, mask=other < length, other=0.0)[None, :]
            else:
                weight -= tl.load(sums + place * sp, mask=place < length, other=0.0)[:, None]
            weight = tl.where(real, tl.exp(weight), 0.0)
        inside = (other < length)[:, None] & (channel < depth)[None, :]
        read = tl.load(x + other[:, None] * xp + channel[None, :] * xc, mask=inside, other=0.0).to(tl.float32)
        mixed += tl.dot(weight, read, input_precision=PRECISION)
    out += image * ob + line * ol
    at = out + place[:, None] * op + channel[None, :] * oc
    real = (place < length)[:, None] & (channel < depth)[None, :]
    if ADD:
        mixed += tl.load(at, mask=real, other=0.0)
    tl.store(at, mixed, mask=real)


def _strides(x: Tensor, axis: int) -> tuple[int, ...]:
    """Strides of (B, C, H, W) as batch, channel, line, position along ``axis`` (0: columns, 1: rows)."""
    batch, channel, y, right = x.stride()
    return (batch, channel, right, y) if axis == 0 else (batch, channel, y, right)


def _map_strides(x: Tensor, axis: int) -> tuple[int, ...]:
    """Strides of (B, H, W) as batch, line, position along ``axis``."""
    batch, y, right = x.stride()
    return (batch, right, y) if axis == 0 else (batch, y, right)


def _precision(x: Tensor) -> str:
    """How float32 tiles are multiplied: as float32 where the inputs are, by three passes of TensorFloat where it is."""
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < (8, 0):
        return "ieee"
    return "tf32x3" if x.dtype == torch.float32 else "tf32"


class _Axis:
    """Launches along one axis of maps like ``like`` (B, C, H, W)."""

    def __init__(self, like: Tensor, axis: int) -> None:
        self.batch, _, height, width = like.shape
        self.axis, self.precision, self.device = axis, _precision(like), like.device
        self.lines, self.length = (width, height) if axis == 0 else (height, width)

    def _run(self, kernel: Any, tiles: int, *arguments: Any, **constants: Any) -> None:
        grid = (triton.cdiv(self.length, BLOCK) * tiles, self.lines, self.batch)
        with torch.cuda.device_of(arguments[0]):
            kernel[grid](*arguments, **constants, BLOCK=BLOCK, CHANNELS=CHANNELS, PRECISION=self.precision)

    def matrices(self, like: Tensor) -> Tensor:
        """Room for a float32 matrix a line."""
        return like.new_empty(self.batch, self.lines, self.length, self.length, dtype=torch.float32)

    def scores(self, query: Tensor, key: Tensor, masked: bool) -> tuple[Tensor, Tensor]:
        """Logits of every line, and the logarithms of their sums, (B, H, W)."""
        scores = self.matrices(query)
        sums = query.new_empty(query.shape[:1] + query.shape[2:], dtype=torch.float32)
        strides = (*_strides(query, self.axis), *_strides(key, self.axis), *_map_strides(sums, self.axis))
        sizes = (self.length, query.shape[1])
        self._run(_score_kernel, 1, query, key, scores, sums, *sizes, *strides, MASKED=masked)
        return scores, sums

    def slopes(self, grad: Tensor, value: Tensor, scores: Tensor, sums: Tensor, deltas: Tensor) -> Tensor:
        """Gradients of the logits."""
        slopes = self.matrices(grad)
        strides = (*_strides(grad, self.axis), *_strides(value, self.axis), *_map_strides(sums, self.axis))
        sizes = (self.length, grad.shape[1])
        self._run(_slope_kernel, 1, grad, value, scores, sums, deltas, slopes, *sizes, *strides)
        return slopes

    def mix(self, matrix: Tensor, sums: Tensor, x: Tensor, out: Tensor, weights: bool, transposed: bool) -> None:
        """Write to ``out``, or add along the second axis, every line's matrix times ``x``; ``weights`` from logits."""
        tiles = triton.cdiv(x.shape[1], CHANNELS)
        strides = (*_strides(x, self.axis), *_strides(out, self.axis), *_map_strides(sums, self.axis))
        sizes = (self.length, x.shape[1], tiles)
        flags = {"WEIGHTS": weights, "TRANSPOSED": transposed, "ADD": self.axis == 1}
        self._run(_mix_kernel, tiles, matrix, sums, x, out, *sizes, *strides, **flags)


def _mixed(matrices: tuple[Tensor, Tensor], sums: Tensor, x: Tensor, weights: bool, transposed: bool) -> Tensor:
    out = x.new_empty(x.shape, dtype=torch.float32)
    for axis, matrix in enumerate(matrices):
        _Axis(x, axis).mix(matrix, sums, x, out, weights, transposed)
    return out.to(x.dtype)


def attend(query: Tensor, key: Tensor, value: Tensor, masked_axes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output (B, C, H, W), logits of columns and of rows, and the logarithms of their joint sums (B, H, W).

    Takes CUDA tensors (B, D or C, H, W) of at most 32 bits and any strides; arguments are checked already.
    """
    columns, by_column = _Axis(query, 0).scores(query, key, masked_axes > 0)
    rows, by_row = _Axis(query, 1).scores(query, key, masked_axes > 1)
    sums = torch.logaddexp(by_column, by_row)
    return _mixed((columns, rows), sums, value, weights=True, transposed=False), columns, rows, sums


def gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    columns: Tensor,
    rows: Tensor,
    sums: Tensor,
    out: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, each of its shape and type, of ``grad`` (B, C, H, W), any strides.

    What was masked has a logit of minus infinity, and so a weight and a slope of zero.
    """
    deltas = (grad.float() * out.float()).sum(1)
    scores = (columns, rows)
    slopes = (
        _Axis(grad, 0).slopes(grad, value, columns, sums, deltas),
        _Axis(grad, 1).slopes(grad, value, rows, sums, deltas),
    )
    d_value = _mixed(scores, sums, grad, weights=True, transposed=True)
    d_query = _mixed(slopes, sums, key, weights=False, transposed=False)
    return d_query, _mixed(slopes, sums, query, weights=False, transposed=True), d_value
