"""The parts of the frequency filter by ``frequency_filter.c``: on a CPU, in float32."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from repertory.ops.backend import native

LARGEST = 7  # side of a window
Lines = list[tuple[Tensor, Tensor, Tensor, Tensor]]  # of a level: pool of rows and columns, spread of rows and columns


class _Map(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("image", ctypes.c_int64), ("pixel", ctypes.c_int64))


class _Window(ctypes.Structure):
    _fields_ = (
        ("width", ctypes.c_int64),
        ("side", ctypes.c_int64),
        ("weights", ctypes.c_void_p),
        ("biases", ctypes.c_void_p),
    )


class _Level(ctypes.Structure):
    _fields_ = (
        ("width", ctypes.c_int64),
        ("bins", ctypes.c_int64),
        ("pool_rows", ctypes.c_void_p),
        ("pool_columns", ctypes.c_void_p),
        ("spread_rows", ctypes.c_void_p),
        ("spread_columns", ctypes.c_void_p),
    )


class _Sizes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in ("images", "height", "width", "groups"))


def possible(maps: Tensor, filters: Sequence[Tensor]) -> bool:
    """Whether ``frequency_filter.c`` can be had, and takes such maps and windows."""
    return (
        maps.device.type == "cpu"
        and maps.dtype == torch.float32
        and all(weight.shape[-1] <= LARGEST for weight in filters[: len(filters) // 2])
        and native("frequency_filter") is not None
    )


def attend(out: Tensor, query: Tensor, share: Tensor, value: Tensor, num_heads: int, size: Sequence[int]) -> Tensor:
    """Write the attention into ``out``, ``share`` being the key's softmax; return the kernels (B, heads, c, c)."""
    width = out.shape[2] // num_heads
    kernels = out.new_empty(len(out), num_heads, width, width)
    maps = [_map(x) for x in (query, share, value, out)]
    _run("repertory_attend", *maps, _pointer(kernels), *_heads(num_heads, width), _sizes(out, size, 0))
    return kernels


def attend_gradients(
    to_query: Tensor,
    to_key: Tensor,
    to_value: Tensor,
    grad: Tensor,
    query: Tensor,
    share: Tensor,
    value: Tensor,
    kernels: Tensor,
    size: Sequence[int],
) -> None:
    """Write the gradients of the attention; all (B, N, C), but ``kernels``."""
    maps = [_map(x) for x in (query, share, value, grad, to_query, to_key, to_value)]
    heads = _heads(kernels.shape[1], kernels.shape[2])
    _run("repertory_attend_gradients", *maps, _pointer(kernels), *heads, _sizes(grad, size, 0))


def add_high(out: Tensor, query: Tensor, value: Tensor, size: Sequence[int], filters: Sequence[Tensor]) -> None:
    """Add the high-pass part to ``out``; all (B, N, C), channels next to each other. Kernels come before biases."""
    filters = [x.contiguous() for x in filters]
    maps = [_map(x) for x in (query, value, out)]
    _run("repertory_high", *maps, _windows(filters), _sizes(out, size, len(filters) // 2))


def add_high_gradients(
    to_query: Tensor,
    to_value: Tensor,
    to_filters: Sequence[Tensor],
    grad: Tensor,
    query: Tensor,
    value: Tensor,
    size: Sequence[int],
    filters: Sequence[Tensor],
) -> None:
    """Add to the gradients, contiguous those of ``filters``, what ``grad`` means for the high-pass part."""
    filters = [x.contiguous() for x in filters]
    maps = [_map(x) for x in (query, value, grad, to_query, to_value)]
    windows = (_windows(filters), _windows(to_filters))
    _run("repertory_high_gradients", *maps, *windows, _sizes(grad, size, len(filters) // 2))


def add_low(out: Tensor, value: Tensor, size: Sequence[int], levels: Lines) -> Tensor:
    """Add the low-pass part to ``out`` (B, N, C); return its cells, (B, those of all levels, C / levels)."""
    cells = sum(pool.shape[1] ** 2 for pool, *_ in levels)
    pooled = out.new_empty(len(out), cells, out.shape[2] // len(levels))
    described = _levels(levels, pooled.shape[2])
    _run("repertory_low", _map(value), _map(out), _pointer(pooled), described, _sizes(out, size, len(levels)))
    return pooled


def add_low_gradients(to_value: Tensor, grad: Tensor, pooled: Tensor, size: Sequence[int], levels: Lines) -> None:
    """Add to the gradient of the value what ``grad`` (B, N, C) means for the low-pass part."""
    pooled, described = pooled.contiguous(), _levels(levels, pooled.shape[2])
    maps = _map(grad), _map(to_value)
    _run("repertory_low_gradients", *maps, _pointer(pooled), described, _sizes(grad, size, len(levels)))


def _run(name: str, *arguments: Any) -> None:
    library = native("frequency_filter")
    assert library is not None, "possible() comes first"
    function: Callable[..., int] = getattr(library, name)
    if function(*arguments, ctypes.c_int(torch.get_num_threads())):
        raise MemoryError("no memory for the working rows of the frequency filter")


def _pointer(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def _map(x: Tensor) -> Any:
    return ctypes.byref(_Map(x.data_ptr(), x.stride(0), x.stride(1)))


def _heads(num_heads: int, width: int) -> tuple[Any, ...]:
    return ctypes.c_int64(num_heads), ctypes.c_int64(width), ctypes.c_float(width**-0.5)


def _sizes(x: Tensor, size: Sequence[int], groups: int) -> Any:
    return ctypes.byref(_Sizes(len(x), *size, groups))


def _windows(filters: Sequence[Tensor]) -> Any:
    pairs = zip(filters[: len(filters) // 2], filters[len(filters) // 2 :], strict=True)
    made = [_Window(len(weight), weight.shape[-1], weight.data_ptr(), bias.data_ptr()) for weight, bias in pairs]
    return (_Window * len(made))(*made)


def _levels(levels: Lines, width: int) -> Any:
    made = [_Level(width, level[0].shape[1], *(matrix.data_ptr() for matrix in level)) for level in levels]
    return (_Level * len(made))(*made)
