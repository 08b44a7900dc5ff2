"""Convolution of signs: 32 products of +-1 in one exclusive or, their sum by counting bits. For inference.

A weight is one bit, 1 for +1. An input is two: whether it is positive, and whether it counts at all; exact zeros do
not, nor does padding, so the result is exactly that of the float convolution of the signs. Of n terms that count, d of
which differ in sign from their weights, the sum is n - 2 d.

PyTorch counts no bits. Where a C compiler is found, ``binary_conv.c`` does (8 pixels at a time, nine words by full
adders); the plain path adds bits within words, in pairs, nibbles, octets and halves, several words sharing the wider
fields.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from repertory.ops.backend import being_traced, check, native

WORD = 32
_MOST = 15  # words counted together; their octets hold at most 120
_NINE = 9  # words that the compiled path counts together


class _Window(NamedTuple):
    """What a convolution looks through, all (vertical, horizontal)."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


def pack_signs(weight: Tensor) -> Tensor:
    """The signs of a kernel ``weight`` (O, C, kH, kW) as int32 (O, ceil(C / 32) kH kW), one bit each, 1 for +1.

    Channel c is bit c mod 32 of the words of its 32 channels, of which there is one for every tap.

    Raises:
        ValueError: not four dimensions, or a weight that is exactly 0 and so has no sign.
    """
    if weight.ndim != 4:
        raise ValueError(f"weight is {tuple(weight.shape)}; it must be (O, C, kH, kW)")
    zeros = int((weight == 0).sum())
    if zeros:
        raise ValueError(f"weight has {zeros} values of exactly 0; one bit says + or -, so it must have none")
    return _bits(weight)[0].flatten(1)


def unpack_signs(words: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """The inverse of :func:`pack_signs`: -1 and 1 in ``shape`` (O, C, kH, kW)."""
    out_channels, channels, *kernel_size = shape
    bits = (words.view(out_channels, -1, 1, *kernel_size) >> _shifts(words)) & 1
    return (2 * bits.flatten(1, 2)[:, :channels] - 1).to(dtype)


def binary_conv2d(
    x: Tensor,
    words: Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    backend: str = "auto",
) -> Tensor:
    """The convolution of sign(``x``) with packed signs, exactly: whole numbers in the dtype of ``x``. No gradient.

    Args:
        x: (B, C, H, W), floating; its signs are taken here, that of 0 being 0.
        words: int32 (O, ceil(C / groups / 32) kH kW), made by :func:`pack_signs`.
        kernel_size: (vertical, horizontal), as all that follow.
        stride: as in ``F.conv2d``.
        padding: what it adds counts as 0.
        dilation: as in ``F.conv2d``.
        groups: as in ``F.conv2d``.
        backend: ``reference`` unpacks the weights for a float convolution; ``eager`` and ``compiled`` count bits;
            ``auto`` is compiled on a CPU with a C compiler; reference elsewhere, where the caller traces, and
            where a group has fewer than 4 channels.

    Returns:
        (B, O, H', W').

    Raises:
        TypeError: ``x`` is not floating, or ``words`` are not int32.
        ValueError: shapes that do not fit each other, or an unknown backend.
    """
    _check(x, words, kernel_size, groups, check(backend))
    window = _Window(kernel_size, stride, padding, dilation)
    if backend == "auto":
        backend = "compiled" if _worthwhile(x, groups) else "reference"
    if backend == "reference" or not len(x):
        weight = unpack_signs(words, (len(words), x.shape[1] // groups, *kernel_size), x.dtype)
        return F.conv2d(x.sign(), weight, None, stride, padding, dilation, groups)
    with torch.no_grad():
        if backend == "compiled" and x.device.type == "cpu" and (library := native("binary_conv")):
            return _compiled(library, x, words, window, groups)
        return _counted(x, words, window, groups)


def _check(x: Tensor, words: Tensor, kernel_size: tuple[int, int], groups: int, backend: str) -> None:
    if not x.is_floating_point():
        raise TypeError(f"x is {x.dtype}; it must be floating point")
    if words.dtype != torch.int32:
        raise TypeError(f"words are {words.dtype}; they must be int32, as pack_signs makes them")
    if x.ndim != 4:
        raise ValueError(f"x is {tuple(x.shape)}; it must be (B, C, H, W)")
    if groups < 1 or x.shape[1] % groups or len(words) % groups:
        raise ValueError(f"groups is {groups}; it must divide {x.shape[1]} input and {len(words)} output channels")
    expected = -(-x.shape[1] // groups // WORD) * math.prod(kernel_size)
    if words.ndim != 2 or words.shape[1] != expected:
        raise ValueError(f"words are {tuple(words.shape)}; for {x.shape[1]} channels they must be (O, {expected})")
    if backend == "triton":
        raise ValueError("backend is 'triton', for which there is no kernel; it must be another one")


def _worthwhile(x: Tensor, groups: int) -> bool:
    """Whether the compiled path can run, and words are not nearly empty, as those of depth-wise convolutions are."""
    return (
        x.shape[1] >= 4 * groups and x.device.type == "cpu" and not being_traced() and native("binary_conv") is not None
    )


def _compiled(library: ctypes.CDLL, x: Tensor, words: Tensor, window: _Window, groups: int) -> Tensor:
    """The convolution by ``binary_conv.c``."""
    batch, channels, height, width = x.shape
    rows, columns = _sides(x, window)
    given = (x if x.dtype == torch.float32 else x.sign().float()).contiguous()
    out = given.new_empty(batch, len(words), rows, columns)
    nines = F.pad(words, (0, -words.shape[1] % _NINE)).contiguous()
    sizes = batch * groups, groups, channels // groups, height, width, len(words) // groups, rows, columns
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (given, nines, out)]
    pairs = [(ctypes.c_int64 * 2)(*pair) for pair in window]
    if library.repertory_binary_conv(
        *pointers, *map(ctypes.c_int64, sizes), *pairs, ctypes.c_int(torch.get_num_threads())
    ):
        raise MemoryError(f"no memory for the packed form of {tuple(x.shape)}")
    return out.to(x.dtype)


def _sides(x: Tensor, window: _Window) -> tuple[int, int]:
    """Rows and columns of the output; ``ValueError`` where there are none."""
    kernel_size, stride, padding, dilation = window
    spans = [dilation[i] * (kernel_size[i] - 1) + 1 for i in range(2)]
    rows, columns = ((x.shape[i - 2] + 2 * padding[i] - spans[i]) // stride[i] + 1 for i in range(2))
    if min(rows, columns) < 1:
        raise ValueError(f"x with its padding is smaller than the kernel, which spans {spans[0]} x {spans[1]}")
    return rows, columns


def _counted(x: Tensor, words: Tensor, window: _Window, groups: int) -> Tensor:
    """The convolution by counting bits within words."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch * groups, channels // groups, height, width)
    columns = _columns(_bits(x), window)
    sides = columns.shape[-2:]
    columns = columns.view(2, batch, groups, -1, sides.numel())
    words = words.view(groups, -1, words.shape[1])
    size = _group_size(words.shape[-1])
    if lacking := -words.shape[-1] % size:
        columns, words = F.pad(columns, (0, 0, 0, lacking)), F.pad(words, (0, lacking))
    sums = _sums(size, columns.unflatten(3, (-1, size)), words.unflatten(2, (-1, size)))
    return sums.view(batch, -1, *sides).to(x.dtype)


def _group_size(words: int) -> int:
    """How many words to count together: at most 15, with as few as possible left over."""
    if words <= _MOST:
        return words
    return min(range(_MOST // 2 + 1, _MOST + 1), key=lambda size: (-words % size, -size))


def _shifts(words: Tensor) -> Tensor:
    return torch.arange(WORD, dtype=torch.int32, device=words.device).view(WORD, 1, 1)


def _bits(x: Tensor) -> Tensor:
    """Signs of ``x`` (N, C, H, W) and which of them count, one bit each: int32 (2, N, ceil(C / 32), H, W)."""
    if lacking := -x.shape[1] % WORD:
        x = F.pad(x, (0, 0, 0, 0, 0, lacking))
    words = x.reshape(len(x), -1, WORD, x.shape[2] * x.shape[3])
    return _packed(words).unflatten(-1, x.shape[2:])


def _packed(x: Tensor) -> Tensor:
    """Which values of ``x`` (N, W, 32, P) are positive, and which are not 0: int32 (2, N, W, P)."""
    channels = x.unbind(2)
    positive = [(channel > 0).to(torch.int32) << bit for bit, channel in enumerate(channels)]
    counting = [(channel != 0).to(torch.int32) << bit for bit, channel in enumerate(channels)]
    return torch.stack([functools.reduce(torch.bitwise_or, bits) for bits in (positive, counting)])


def _columns(bits: Tensor, window: _Window) -> Tensor:
    """``bits`` (2, N, W, H, W) under every tap of the kernel: (2, N, W, taps, rows, columns)."""
    rows, columns = _sides(bits, window)
    kernel_size, stride, padding, dilation = window
    bits = F.pad(bits, (padding[1], padding[1], padding[0], padding[0]))
    made = bits.new_empty(*bits.shape[:3], kernel_size[0] * kernel_size[1], rows, columns)
    for tap in range(made.shape[3]):
        down, across = (step * place for step, place in zip(dilation, divmod(tap, kernel_size[1]), strict=True))
        under = bits[..., down :: stride[0], across :: stride[1]]
        made[:, :, :, tap].copy_(under[..., :rows, :columns])
    return made


def _sums(size: int, columns: Tensor, words: Tensor) -> Tensor:
    """Sums of products (B, G, O, P) of ``columns`` (2, B, G, K, size, P) and ``words`` (G, O, K, size)."""
    signs, counting = columns.unbind(0)
    differing = [
        (signs[:, :, None, :, i] ^ words[None, :, :, :, i, None]) & counting[:, :, None, :, i] for i in range(size)
    ]
    terms = _halves_added(_count([counting[:, :, :, i] for i in range(size)]).sum(2, dtype=torch.int32))
    differences = _halves_added(_count(differing).sum(3, dtype=torch.int32))
    return (terms[:, :, None] - 2 * differences).to(torch.float32)


def _count(words: Sequence[Tensor]) -> Tensor:
    """Bits set in at most 15 ``words`` together, as two counts in the 16-bit halves of one word."""
    total: Tensor | None = None
    for first in range(0, len(words), 3):  # three counts of at most 4 fit into a nibble
        nibbles = functools.reduce(torch.add, [_in_nibbles(word) for word in words[first : first + 3]])
        octets = (nibbles & 0x0F0F0F0F) + ((nibbles >> 4) & 0x0F0F0F0F)
        total = octets if total is None else total + octets
    assert total is not None
    return (total & 0x00FF00FF) + ((total >> 8) & 0x00FF00FF)


def _in_nibbles(word: Tensor) -> Tensor:
    """Bits set in each nibble of ``word``."""
    pairs = word - ((word >> 1) & 0x55555555)
    return (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)


def _halves_added(words: Tensor) -> Tensor:
    return (words & 0xFFFF) + ((words >> 16) & 0xFFFF)
