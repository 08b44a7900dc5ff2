"""Every pixel's own filter applied to its neighbourhood, as ELSA defines it (arXiv 2112.12786).

The authors unfold the values, forty-nine copies of them for a 7 x 7 window, and build a filter for every channel at
every pixel. A sum over taps needs neither: each tap reads one shifted view of the padded values, the static filter that
is added is a depth-wise convolution, and the backward pass is written out and uses the same views.

:func:`pad`, :func:`windows` and :func:`mirrored` are shared with dilated attention.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from repertory.ops.backend import being_traced, check, compiled, needs_triton

_BLOCK = 131_072  # values of one eager step: what it reads and adds to stays in the second cache


def sliding_window_sum(
    value: Tensor,
    weights: Tensor,
    ghost_mul: Tensor | None = None,
    ghost_add: Tensor | None = None,
    *,
    dilation: int = 1,
    backend: str = "auto",
) -> Tensor:
    """Sum every position's neighbourhood with the weights of that position.

    With k x k taps o = (p, q) in row-major order, r the dilation and g the head of channel c,

        out[b, c, i, j] = sum_o (mul[c, o] weights[b, g, o, i, j] + add[c, o]) value[b, c, i + p r, j + q r],

    p and q from -(k - 1) / 2 to (k - 1) / 2. Values outside the map are zero; their weights still count, and nothing is
    normalised here.

    Args:
        value: (B, C, H, W); heads are contiguous slices of C / heads channels.
        weights: (B, heads, k * k, H, W), k odd; k is read from this shape.
        ghost_mul: (C, k, k), a static factor of each channel; None is 1.
        ghost_add: (C, k, k), a static filter of each channel that is added; None is 0.
        dilation: distance r between taps, in pixels.
        backend: ``reference`` (unfold and products), ``eager``, ``compiled`` by inductor, ``triton`` on CUDA, ``auto``
            the best for these arguments. Half precision is computed in float32 inside.

    Returns:
        (B, C, H, W), of the values' type; differentiable once, or as often as wanted by ``reference``.

    Raises:
        ValueError: for shapes that do not fit, an even window, or a dilation below 1.
    """
    check(backend)
    side = _check(value, weights, ghost_mul, ghost_add, dilation)
    window = Window(side, dilation, value.shape[1], weights.shape[1])
    wide = torch.promote_types(functools.reduce(torch.promote_types, (x.dtype for x in _given(value, weights))), _FLOAT)
    mul, add = (x if x is None else x.reshape(value.shape[1], side**2) for x in (ghost_mul, ghost_add))
    if not value.numel():
        return _nothing(value, weights, mul, add)
    if wide != torch.float64 and backend != "reference" and needs_triton(backend, value):
        return _Sum.apply(value, weights, mul, add, window, "triton")
    if backend == "triton":
        raise ValueError(f"backend is 'triton', which takes CUDA tensors below float64; value is {value.dtype}")
    values, filters = value.to(wide), weights.to(wide)
    mul, add = (x if x is None else x.to(wide) for x in (mul, add))
    if backend == "reference":
        out = _reference(values, filters, mul, add, window)
    elif being_traced():
        out = _sum(values, filters, mul, add, window)
    else:  # on a CPU eager was no slower than what takes inductor half a minute to compile
        out = _Sum.apply(values, filters, mul, add, window, "compiled" if backend == "compiled" else "eager")
    return out.to(value.dtype)


_FLOAT = torch.float32


@dataclass(frozen=True)
class Window:
    """``side`` x ``side`` taps ``rate`` apart, over ``channels`` in ``heads`` contiguous slices."""

    side: int
    rate: int
    channels: int
    heads: int

    @property
    def taps(self) -> int:
        """How many taps."""
        return self.side**2

    @property
    def padding(self) -> int:
        """Pixels by which taps reach over the border."""
        return self.rate * (self.side // 2)


def _given(*tensors: Tensor | None) -> Iterator[Tensor]:
    return (x for x in tensors if x is not None)


def _check(value: Tensor, weights: Tensor, mul: Tensor | None, add: Tensor | None, dilation: int) -> int:
    """The side of the window."""
    shape = tuple(value.shape)
    if value.ndim != 4:
        raise ValueError(f"value is {shape}; it must be (B, C, H, W)")
    expected = (shape[0], *weights.shape[1:3], *shape[2:])
    if weights.ndim != 5 or tuple(weights.shape) != expected:
        raise ValueError(
            f"weights are {tuple(weights.shape)}; with values {shape} they must be (B, heads, k * k, H, W)"
        )
    side = 1
    while side**2 < weights.shape[2]:  # no root is taken, so that a compiler may hold the number for a symbol
        side += 2
    if side**2 != weights.shape[2]:
        raise ValueError(f"weights have {weights.shape[2]} taps; their number must be the square of an odd side")
    if not weights.shape[1] or shape[1] % weights.shape[1]:
        raise ValueError(f"weights have {weights.shape[1]} heads; their number must divide the {shape[1]} channels")
    for name, ghost in (("ghost_mul", mul), ("ghost_add", add)):
        if ghost is not None and tuple(ghost.shape) != (shape[1], side, side):
            raise ValueError(f"{name} is {tuple(ghost.shape)}; it must be (C, k, k), {(shape[1], side, side)} here")
    if dilation < 1:
        raise ValueError(f"dilation is {dilation}; it must be at least 1")
    if not all(x.is_floating_point() for x in _given(value, weights, mul, add)):
        types = ", ".join(str(x.dtype) for x in _given(value, weights, mul, add))
        raise ValueError(f"value, weights and ghosts are {types}; they must be of floating types")
    return side


def _nothing(value: Tensor, weights: Tensor, mul: Tensor | None, add: Tensor | None) -> Tensor:
    """The empty output, still part of the graph of all that is given."""
    zero = sum((x.sum() for x in _given(weights, mul, add)), torch.zeros((), device=value.device))
    return value + 0 * zero.to(value.dtype)


def _reference(value: Tensor, weights: Tensor, mul: Tensor | None, add: Tensor | None, window: Window) -> Tensor:
    """The definition: unfolded values, a filter for every channel at every pixel, and their product."""
    batch, channels, height, width = value.shape
    unfolded = F.unfold(value, window.side, window.rate, window.padding)
    unfolded = unfolded.reshape(batch, channels, window.taps, height * width)
    filters = weights.flatten(3).repeat_interleave(channels // window.heads, 1)
    if mul is not None:
        filters = filters * mul[..., None]
    if add is not None:
        filters = filters + add[..., None]
    return torch.einsum("bctn,bctn->bcn", filters, unfolded).reshape(value.shape)


def pad(x: Tensor, padding: int) -> Tensor:
    """``x`` with ``padding`` zeros on each side of its last two dimensions."""
    return F.pad(x, (padding,) * 4)


def windows(x: Tensor, side: int, rate: int, height: int, width: int) -> list[Tensor]:
    """Views (…, H, W) of the padded map ``x``, one a tap, row by row."""
    starts = [rate * step for step in range(side)]
    return [x[..., top : top + height, left : left + width] for top in starts for left in starts]


def mirrored(x: Tensor, side: int, rate: int, height: int, width: int) -> list[Tensor]:
    """As :func:`windows`, each at the opposite tap: what the position that a tap comes *from* holds."""
    return windows(x, side, rate, height, width)[::-1]


def _split(x: Tensor, heads: int) -> Tensor:
    """(B, C, …) as (B, heads, C / heads, …)."""
    return x.unflatten(1, (heads, -1))


def _static(value: Tensor, add: Tensor, window: Window) -> Tensor:
    """The added filters: a depth-wise convolution."""
    kernels = add.reshape(-1, 1, window.side, window.side)
    return F.conv2d(value, kernels, padding=window.padding, dilation=window.rate, groups=window.channels)


def _factors(mul: Tensor, window: Window) -> list[Tensor]:
    """The static factors (heads, C / heads, 1, 1) of each tap."""
    return [factor.reshape(window.heads, -1, 1, 1) for factor in mul.unbind(1)]


def _sum(value: Tensor, weights: Tensor, mul: Tensor | None, add: Tensor | None, window: Window) -> Tensor:
    """(B, C, H, W) by plain operations on shifted views."""
    height, width = value.shape[2:]
    taps = windows(_split(pad(value, window.padding), window.heads), window.side, window.rate, height, width)
    if mul is not None:
        taps = [tap * factor for tap, factor in zip(taps, _factors(mul, window), strict=True)]
    products = (weights[:, :, index, None] * tap for index, tap in enumerate(taps))
    out = functools.reduce(torch.add, products).flatten(1, 2)
    return out if add is None else out + _static(value, add, window)


Gradients = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def _gradients(
    grad: Tensor, value: Tensor, weights: Tensor, mul: Tensor | None, add: Tensor | None, window: Window
) -> Gradients:
    """Gradients of values, weights, factors and added filters, by plain operations that only gather."""
    height, width = value.shape[2:]
    sizes = window.side, window.rate, height, width
    own = _split(grad, window.heads)
    products = [own * tap for tap in windows(_split(pad(value, window.padding), window.heads), *sizes)]
    factors = [None] * window.taps if mul is None else _factors(mul, window)
    to_weights = torch.stack([(p if f is None else p * f).sum(2) for p, f in zip(products, factors, strict=True)], 2)
    to_mul = to_add = None
    if mul is not None:
        to_mul = torch.stack([(p * weights[:, :, t, None]).sum((0, 3, 4)) for t, p in enumerate(products)], -1)
        to_mul = to_mul.flatten(0, 1)
    if add is not None:
        to_add = torch.stack([p.sum((0, 3, 4)) for p in products], -1).flatten(0, 1)
    # A value is summed by the positions at the opposite taps: gather their weights instead of scattering.
    padded = pad(weights.flatten(1, 2), window.padding).unflatten(1, (window.heads, window.taps))
    weight_taps = [x[:, :, t, None] for t, x in enumerate(mirrored(padded, *sizes))]
    grad_taps = mirrored(_split(pad(grad, window.padding), window.heads), *sizes)
    if mul is not None:
        grad_taps = [tap * factor for tap, factor in zip(grad_taps, _factors(mul, window), strict=True)]
    to_value = functools.reduce(torch.add, (w * g for w, g in zip(weight_taps, grad_taps, strict=True))).flatten(1, 2)
    if add is not None:
        to_value = to_value + _static(grad, add.flip(1), window)
    return to_value, to_weights, to_mul, to_add


@functools.cache
def _compiled_pair(window: Window) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """``_sum`` and ``_gradients`` for one setting, compiled for any size."""

    def total(value: Tensor, weights: Tensor, mul: Tensor | None, add: Tensor | None) -> Tensor:
        return _sum(value, weights, mul, add, window)

    def gradients(grad: Tensor, value: Tensor, weights: Tensor, mul: Tensor | None, add: Tensor | None) -> Gradients:
        return _gradients(grad, value, weights, mul, add, window)

    return compiled(total), compiled(gradients)


class _Rows:
    """Maps (…, H, W) laid out so that every tap of every row is one run of memory.

    A row keeps ``padding`` zeros behind it, which serve as those before the next; rows of zeros stand above and below.
    Tap (p, q) of all pixels then is the run of H * (W + padding) values that begins p rows and q values later.
    """

    def __init__(self, height: int, width: int, window: Window) -> None:
        self.height, self.width, self.padding = height, width, window.padding
        self.stride = width + window.padding
        self.run = height * self.stride
        steps = [window.rate * step for step in range(window.side)]
        self.starts = [down * self.stride + right for down in steps for right in steps]

    def padded(self, x: Tensor) -> Tensor:
        """(…, H, W) as (…, run + what taps reach beyond it), zeros around it."""
        flat = x.new_zeros(*x.shape[:-2], self.run + 2 * self.padding * (self.stride + 1))
        self.inner(flat).copy_(x)
        return flat

    def zeros(self, runs: Tensor) -> Tensor:
        """Zeros as ``padded`` has them, for as many ``runs``."""
        return runs.new_zeros(*runs.shape[:-1], self.run + 2 * self.padding * (self.stride + 1))

    def inner(self, flat: Tensor) -> Tensor:
        """The view (…, H, W) of the map inside ``padded``."""
        first = self.padding * (self.stride + 1)
        return self.plain(flat[..., first : first + self.run])

    def plain(self, run: Tensor) -> Tensor:
        """The view (…, H, W) of a run."""
        return run.unflatten(-1, (self.height, self.stride))[..., : self.width]

    def runs(self, x: Tensor) -> Tensor:
        """(…, H, W) as runs, zeros behind each row."""
        return F.pad(x, (0, self.padding)).flatten(-2)

    def taps(self, flat: Tensor) -> list[Tensor]:
        """The view of each tap."""
        return [flat[..., start : start + self.run] for start in self.starts]


def _blocks(entries: int, depth: int, run: int) -> Iterator[tuple[slice, slice]]:
    """Heads (of any image), and channels of each, in steps that fit the cache: some heads whole, or a part of one."""
    heads, channels = max(1, _BLOCK // (depth * run)), max(1, min(depth, _BLOCK // run))
    for head in range(0, entries, heads):
        for channel in range(0, depth, channels):
            yield slice(head, head + heads), slice(channel, channel + channels)


def _by_head(x: Tensor, window: Window) -> Tensor:
    """(B, C, …) as (B * heads, C / heads, …)."""
    return _split(x, window.heads).flatten(0, 1)


def _repeated(ghost: Tensor | None, batch: int, window: Window) -> Tensor | None:
    """(C, taps) as (B * heads, C / heads, taps), the same for every image."""
    return None if ghost is None else _by_head(ghost.expand(batch, *ghost.shape), window)


def _eager_sum(value: Tensor, weights: Tensor, mul: Tensor | None, add: Tensor | None, window: Window) -> Tensor:
    """As ``_sum``, some heads or channels at a time: what a step touches stays in the cache."""
    rows, batch = _Rows(value.shape[2], value.shape[3], window), len(value)
    values, filters, factors = _by_head(value, window), weights.flatten(0, 1), _repeated(mul, batch, window)
    out = torch.empty_like(values, memory_format=torch.contiguous_format)
    for heads, part in _blocks(values.shape[0], values.shape[1], rows.run):
        taps, own_weights = rows.taps(rows.padded(values[heads, part])), rows.runs(filters[heads])
        total, scaled = torch.zeros_like(taps[0]), torch.empty_like(taps[0])
        for index, tap in enumerate(taps):
            if factors is not None:
                tap = torch.mul(tap, factors[heads, part, index, None], out=scaled)
            total.addcmul_(own_weights[:, index, None], tap)
        out[heads, part] = rows.plain(total)
    out = out.reshape(value.shape)
    return out if add is None else out.add_(_static(value, add, window))


def _eager_gradients(
    grad: Tensor, value: Tensor, weights: Tensor, mul: Tensor | None, add: Tensor | None, window: Window
) -> Gradients:
    """As ``_gradients``, some heads or channels at a time, adding into the taps of one padded map."""
    rows, batch = _Rows(value.shape[2], value.shape[3], window), len(value)
    grads, values, filters = _by_head(grad, window), _by_head(value, window), weights.flatten(0, 1)
    factors = _repeated(mul, batch, window)
    shape = *values.shape[:2], window.taps
    to_factors, to_added = (None if x is None else x.new_empty(shape) for x in (mul, add))
    to_values = torch.empty_like(values, memory_format=torch.contiguous_format)
    to_filters = torch.zeros_like(filters, memory_format=torch.contiguous_format)
    for heads, part in _blocks(values.shape[0], values.shape[1], rows.run):
        own_grad, own_weights = rows.runs(grads[heads, part]), rows.runs(filters[heads])
        product, scaled, sums = torch.empty_like(own_grad), torch.empty_like(own_grad), torch.empty_like(own_weights)
        back = rows.zeros(own_grad)
        targets = rows.taps(back)
        for index, tap in enumerate(rows.taps(rows.padded(values[heads, part]))):
            torch.mul(own_grad, tap, out=product)
            if to_added is not None:
                torch.sum(product, 2, out=to_added[heads, part, index])
            spread = own_grad
            if factors is not None and to_factors is not None:
                to_factors[heads, part, index] = torch.linalg.vecdot(product, own_weights[:, index, None])
                spread = torch.mul(own_grad, factors[heads, part, index, None], out=scaled)
                torch.mul(spread, tap, out=product)
            torch.sum(product, 1, out=sums[:, index])
            targets[index].addcmul_(own_weights[:, index, None], spread)
        to_filters[heads] += rows.plain(sums)
        to_values[heads, part] = rows.inner(back)
    to_value = to_values.reshape(value.shape)
    if add is not None:
        to_value += _static(grad, add.flip(1), window)
    to_mul, to_add = (
        None if x is None else x.reshape(batch, window.channels, -1).sum(0) for x in (to_factors, to_added)
    )
    return to_value, to_filters.reshape(weights.shape), to_mul, to_add


def _forward(
    value: Tensor, weights: Tensor, mul: Tensor | None, add: Tensor | None, window: Window, path: str
) -> Tensor:
    if path == "triton":
        from repertory.ops.sliding_window_triton import weighted_sum

        return weighted_sum(value, weights, mul, add, window)
    if path == "compiled":
        return _compiled_pair(window)[0](value, weights, mul, add)
    return _eager_sum(value, weights, mul, add, window)


def _backward(
    grad: Tensor, value: Tensor, weights: Tensor, mul: Tensor | None, add: Tensor | None, window: Window, path: str
) -> Gradients:
    if path == "triton":
        from repertory.ops.sliding_window_triton import gradients

        return gradients(grad, value, weights, mul, add, window)
    if path == "compiled":
        return _compiled_pair(window)[1](grad.contiguous(), value, weights, mul, add)
    return _eager_gradients(grad, value, weights, mul, add, window)


def _looped(function: Any, info: Any, in_dims: tuple[Any, ...], inputs: tuple[Any, ...]) -> tuple[Any, Any]:
    """``function`` called for one vmapped entry after the other."""
    calls = []
    for entry in range(info.batch_size):
        own = (x if dim is None else x.select(dim, entry) for x, dim in zip(inputs, in_dims, strict=True))
        calls.append(function.apply(*own))
    if isinstance(calls[0], Tensor):
        return torch.stack(calls), 0
    stacked = tuple(None if x[0] is None else torch.stack(x) for x in zip(*calls, strict=True))
    return stacked, tuple(None if x is None else 0 for x in stacked)


class _Sum(torch.autograd.Function):
    """(B, C, H, W) by one of the fast paths, with its own backward pass."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return _forward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.settings = inputs[4:]
        ctx.save_for_backward(*inputs[:4])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return *_Gradients.apply(grads[0], *ctx.saved_tensors, *ctx.settings), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        return _looped(_Sum, info, in_dims, inputs)


class _Gradients(torch.autograd.Function):
    """The backward pass: a function of its own, so that it can be vmapped, and not differentiable again."""

    @staticmethod
    def forward(*inputs: Any) -> Gradients:
        return _backward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        raise RuntimeError("sliding_window_sum can be differentiated once; backend='reference' as often as wanted")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        return _looped(_Gradients, info, in_dims, inputs)
