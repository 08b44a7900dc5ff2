"""Criss-cross attention: every position attends to the lines through it, as CCNet defines it (arXiv 1811.11721).

The authors copy queries, keys and values once an axis and join the logits for one softmax. The fast paths here multiply
in place of that along each axis of one channels-last copy, a slice of channels at a time in memory that all slices
share; the softmax spans the axes through the largest logit and the sum that they share, and the backward pass is
written out and keeps only the weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from repertory.ops.backend import being_traced, check, compiled, needs_triton

_SLICE = 5 << 17  # elements of a slice of channels: large enough for matrix products, small beside the values
_TOGETHER = 16  # channels read at a time: a line of cache, and few enough pages of memory to know the way to
_BLOCK = 1 << 11  # positions written at a time: their lines of cache, one of every position, stay in the second level


def criss_cross_attention(
    query: Tensor, key: Tensor, value: Tensor, *, masked_axes: int | None = None, backend: str = "auto"
) -> Tensor:
    """Let every position attend to all positions that share all its coordinates but one.

    Position (i, j) of a map attends to column j and row i by one softmax over their H + W logits, which are not scaled.
    Its own position stands in every line through it; in the first ``masked_axes`` of them it is masked.

    Args:
        query: (B, D, H, W) or (B, D, T, H, W); D may differ from C.
        key: of the query's shape, type and device.
        value: (B, C, H, W) or (B, C, T, H, W), of the query's type and device.
        masked_axes: lines in which the own position is masked, counted from the first axis after the channels; all but
            the last when absent, so that it counts once, as in the paper: H + W - 1 or T + H + W - 2 positions.
        backend: ``reference`` (matrix products, one joined softmax), ``eager``, ``compiled`` by inductor, ``triton`` on
            CUDA for maps, ``auto`` the best for these arguments. Half precision is computed in float32 inside.

    Returns:
        Of the value's shape and type; differentiable once, or as often as wanted by ``reference``.

    Raises:
        ValueError: for shapes or types that do not fit, or ``masked_axes`` out of range.
    """
    check(backend)
    masked_axes = query.ndim - 3 if masked_axes is None else masked_axes
    _check(query, key, value, masked_axes)
    if not value.numel() or not query.numel():
        return value + (query.sum() + key.sum())  # no position or no width: nothing to attend to, still in the graph
    if backend == "reference":
        return _reference(query, key, value, masked_axes)
    if query.ndim == 4 and query.dtype != torch.float64 and needs_triton(backend, query):
        return _Attend.apply(query, key, value, masked_axes, "triton")[0]
    if backend == "triton":
        raise ValueError(
            "backend is 'triton', which takes CUDA tensors (B, D, H, W) below float64; "
            f"query is {tuple(query.shape)}, {query.dtype}"
        )
    if being_traced():
        half = query.dtype in (torch.float16, torch.bfloat16)
        query_, key_, value_ = (x.float() if half else x for x in (query, key, value))
        return _reference(query_, key_, value_, masked_axes).to(value.dtype)
    path = "eager" if backend == "auto" else backend  # mostly matrix products, which compiling leaves as they are
    return _Attend.apply(query, key, value, masked_axes, path)[0]


def _check(query: Tensor, key: Tensor, value: Tensor, masked_axes: int) -> None:
    if query.ndim not in (4, 5) or query.shape != key.shape:
        raise ValueError(
            f"query and key are {tuple(query.shape)} and {tuple(key.shape)}; "
            "they must be of one shape (B, D, H, W) or (B, D, T, H, W)"
        )
    if value.ndim != query.ndim or value.shape[:1] + value.shape[2:] != query.shape[:1] + query.shape[2:]:
        raise ValueError(
            f"value is {tuple(value.shape)}; apart from its channels it must have the shape of query, "
            f"{tuple(query.shape)}"
        )
    if not query.dtype == key.dtype == value.dtype or not query.is_floating_point():
        raise ValueError(
            f"query, key and value are {query.dtype}, {key.dtype} and {value.dtype}; they must be of one floating type"
        )
    if not 0 <= masked_axes <= query.ndim - 3:
        raise ValueError(f"masked_axes is {masked_axes}; it must lie between 0 and {query.ndim - 3} for this shape")


def _reference(query: Tensor, key: Tensor, value: Tensor, masked_axes: int) -> Tensor:
    """By one joined softmax; the line of an axis is the last dimension but one of a channels-last tensor."""
    query, key, value = (x.movedim(1, -1) for x in (query, key, value))
    sizes = query.shape[1:-1]
    logits = []
    for axis, size in enumerate(sizes):
        along = query.movedim(axis + 1, -2) @ key.movedim(axis + 1, -2).mT
        if axis < masked_axes:
            along = along.masked_fill(torch.eye(size, dtype=torch.bool, device=along.device), float("-inf"))
        logits.append(along.movedim(-2, axis + 1))
    weights = torch.cat(logits, -1).softmax(-1).split(list(sizes), -1)  # the last axis always has a finite logit
    out = torch.zeros_like(value)
    for axis, along in enumerate(weights):
        out = out + (along.movedim(axis + 1, -2) @ value.movedim(axis + 1, -2)).movedim(-2, axis + 1)
    return out.movedim(-1, 1)


# Below, one image: maps are (*sizes, channels), contiguous; ``lines`` are (lines, length, channels), the weights of an
# axis (lines, length, length), queries before keys.


def _read(source: Tensor, target: Tensor) -> Tensor:
    """``target`` (*sizes, C), filled with ``source`` (C, *sizes); as a matrix it is copied by one thread alone."""
    for start in range(0, source.shape[0], _TOGETHER):
        part = slice(start, start + _TOGETHER)
        target[..., part].copy_(source[part].movedim(0, -1))
    return target


def _write(target: Tensor, source: Tensor) -> None:
    """Fill ``target`` (C, *sizes) with ``source`` (*sizes, C), a block of positions at a time."""
    rows = max(1, _BLOCK // target.shape[2:].numel())
    for start in range(0, target.shape[1], rows):
        block = slice(start, start + rows)
        target[:, block].copy_(source[block].movedim(-1, 0))


def _write_fused(target: Tensor, source: Tensor) -> None:
    """As :func:`_write`, as one matrix: the compiler blocks that, and spreads it over all threads."""
    target.flatten(1).copy_(source.flatten(0, -2).t())


def _lines(x: Tensor, axis: int) -> Tensor:
    """The lines of (*sizes, C) along ``axis``; a view in two dimensions."""
    return x.movedim(axis, -2).reshape(-1, x.shape[axis], x.shape[-1])


def _map(lines: Tensor, axis: int, sizes: Sequence[int]) -> Tensor:
    """The inverse of :func:`_lines`: a view (*sizes, C)."""
    others = [size for index, size in enumerate(sizes) if index != axis]
    return lines.reshape(*others, *lines.shape[1:]).movedim(-2, axis)


def _mixed(weights: Sequence[Tensor], x: Tensor, total: Tensor, spare: Tensor) -> Tensor:
    """``total``: the sum over axes of ``weights`` times the lines of the map ``x``; ``spare`` is overwritten."""
    *others, last = range(x.ndim - 1)
    torch.bmm(weights[last], _lines(x, last), out=_lines(total, last))
    for axis in others:
        product = torch.bmm(weights[axis], _lines(x, axis), out=spare.view_as(_lines(total, axis)))
        total += _map(product, axis, x.shape[:-1])
    return total


def _add_products(matrices: Sequence[Tensor], x: Tensor, y: Tensor) -> None:
    """Add to the matrices of every axis the products of the lines of the maps ``x`` and ``y``."""
    for axis, matrix in enumerate(matrices):
        matrix.baddbmm_(_lines(x, axis), _lines(y, axis).mT)


def _normalise(logits: list[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    """Weights of the axes: exponentials of logits over the sum that the lines through a position share."""
    largest = functools.reduce(torch.maximum, (_map(x.amax(-1, True), a, sizes) for a, x in enumerate(logits)))
    raised = [(x - _lines(largest, axis)).exp() for axis, x in enumerate(logits)]
    total = sum((_map(x.sum(-1, True), axis, sizes) for axis, x in enumerate(raised)), torch.zeros_like(largest))
    return [x / _lines(total, axis) for axis, x in enumerate(raised)]


def _normalise_in_place(logits: list[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    """As :func:`_normalise`, into ``logits``."""
    largest = functools.reduce(torch.maximum, (_map(x.amax(-1, True), a, sizes) for a, x in enumerate(logits)))
    for axis, x in enumerate(logits):
        x.sub_(_lines(largest, axis)).exp_()
    share = functools.reduce(torch.add, (_map(x.sum(-1, True), a, sizes) for a, x in enumerate(logits))).reciprocal()
    return [x.mul_(_lines(share, axis)) for axis, x in enumerate(logits)]


def _to_logits(weights: list[Tensor], slopes: list[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    """Gradients of the logits, given those of the weights."""
    pairs = list(zip(weights, slopes, strict=True))
    parts = (_map((w * s).sum(-1, True), axis, sizes) for axis, (w, s) in enumerate(pairs))
    mean = functools.reduce(torch.add, parts)
    return [w * (s - _lines(mean, axis)) for axis, (w, s) in enumerate(pairs)]


def _to_logits_in_place(weights: list[Tensor], slopes: list[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    """As :func:`_to_logits`, into ``slopes``."""
    for w, s in zip(weights, slopes, strict=True):
        s.mul_(w)
    mean = functools.reduce(torch.add, (_map(s.sum(-1, True), axis, sizes) for axis, s in enumerate(slopes)))
    return [s.addcmul_(w, _lines(mean, a), value=-1) for a, (w, s) in enumerate(zip(weights, slopes, strict=True))]


class _Parts(NamedTuple):
    """What is not a matrix product."""

    normalise: Callable[[list[Tensor], Sequence[int]], list[Tensor]]
    to_logits: Callable[[list[Tensor], list[Tensor], Sequence[int]], list[Tensor]]
    read: Callable[[Tensor, Tensor], Tensor]
    write: Callable[[Tensor, Tensor], None]


@functools.cache
def _parts(path: str) -> _Parts:
    """In place, or fused by the compiler; reading gains nothing from it."""
    if path == "compiled":
        return _Parts(compiled(_normalise), compiled(_to_logits), _read, compiled(_write_fused))
    return _Parts(_normalise_in_place, _to_logits_in_place, _read, _write)


def _map_of(x: Tensor, room: Tensor, path: str) -> Tensor:
    """(C, *sizes) as a map: a view where its layout and type allow products, else read into ``room``."""
    moved = x.movedim(0, -1)
    if moved.stride(-1) == 1 and x.dtype == room.dtype:
        return moved
    return _parts(path).read(x, room)


class _Rooms:
    """Maps of so many positions and at most so many channels, which slice after slice is put into."""

    def __init__(self, count: int, x: Tensor, width: int) -> None:
        self.sizes = x.shape[2:]
        self.memory = [x.new_empty(self.sizes.numel() * width, dtype=_wide(x)) for _ in range(count)]

    def of(self, width: int) -> list[Tensor]:
        """The rooms as contiguous maps (*sizes, ``width``)."""
        used = self.sizes.numel() * width
        return [memory[:used].view(*self.sizes, width) for memory in self.memory]


def _slices(value: Tensor) -> list[slice]:
    """Even slices of the channels of ``value`` (B, C, *sizes); one on CUDA, where launches cost more than they save."""
    channels, most = value.shape[1], max(16, _SLICE // value.shape[2:].numel())
    count = 1 if value.is_cuda else -(-channels // most)
    step = -(-channels // count)
    return [slice(start, start + step) for start in range(0, channels, step)]


def _forward(query: Tensor, key: Tensor, value: Tensor, masked_axes: int, path: str) -> tuple[Tensor, ...]:
    """Output, and what the backward pass needs: the weights of every axis of the first image, of the second, …"""
    if path == "triton":
        from repertory.ops.criss_cross_triton import attend

        return attend(query, key, value, masked_axes)
    sizes, slices = tuple(query.shape[2:]), _slices(value)
    normalise, put = _parts(path).normalise, _parts(path).write
    rooms = _Rooms(3, value, max(slices[0].stop, query.shape[1]))
    out = _empty_like(value)
    kept: list[Tensor] = []
    for image in range(query.shape[0]):
        first, second, _ = rooms.of(query.shape[1])
        q, k = _map_of(query[image], first, path), _map_of(key[image], second, path)
        logits = [torch.bmm(_lines(q, axis), _lines(k, axis).mT) for axis in range(len(sizes))]
        for along in logits[:masked_axes]:
            along.diagonal(dim1=1, dim2=2).fill_(float("-inf"))
        weights = normalise(logits, sizes)
        kept += weights
        for part in slices:
            room, total, spare = rooms.of(out[image, part].shape[0])
            put(out[image, part], _mixed(weights, _map_of(value[image, part], room, path), total, spare))
    return out, *kept


def _backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, kept: Sequence[Tensor], path: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, each of its shape and type."""
    if path == "triton":
        from repertory.ops.criss_cross_triton import gradients

        columns, rows, sums, out = kept
        return gradients(grad, query, key, value, columns, rows, sums, out)
    sizes, slices = tuple(query.shape[2:]), _slices(value)
    to_logits, put = _parts(path).to_logits, _parts(path).write
    rooms = _Rooms(4, value, max(slices[0].stop, query.shape[1]))
    d_query, d_key, d_value = (_empty_like(x) for x in (query, key, value))
    for image in range(query.shape[0]):
        weights = list(kept[image * len(sizes) : (image + 1) * len(sizes)])
        slopes = [torch.zeros_like(x) for x in weights]
        for part in slices:
            first, second, total, spare = rooms.of(d_value[image, part].shape[0])
            g = _map_of(grad[image, part], first, path)
            _add_products(slopes, g, _map_of(value[image, part], second, path))
            put(d_value[image, part], _mixed([w.mT for w in weights], g, total, spare))
        slopes = to_logits(weights, slopes, sizes)
        first, second, total, spare = rooms.of(query.shape[1])
        put(d_query[image], _mixed(slopes, _map_of(key[image], first, path), total, spare))
        q = _map_of(query[image], second, path)
        put(d_key[image], _mixed([x.mT for x in slopes], q, total, spare))
    return d_query, d_key, d_value


def _empty_like(x: Tensor) -> Tensor:
    """Channels-last where ``x`` is, else contiguous: the positions of a channel are then one dimension."""
    if x.movedim(1, -1).is_contiguous():
        return x.new_empty(x.movedim(1, -1).shape).movedim(-1, 1)
    return x.new_empty(x.shape)


def _wide(x: Tensor) -> torch.dtype:
    """The type that is computed in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class _Attend(torch.autograd.Function):
    """One of the fast paths, with its own backward pass; what follows the output is kept for that."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return _forward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        out, *kept = output
        ctx.mark_non_differentiable(*kept)
        ctx.path = inputs[-1]
        ctx.save_for_backward(*inputs[:3], *kept, *((out,) if inputs[-1] == "triton" else ()))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Any, ...]:
        query, key, value, *kept = ctx.saved_tensors
        return *_backward(grad, query, key, value, kept, ctx.path), None, None
