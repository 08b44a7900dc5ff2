"""Sliding-window attention with dilated neighbourhoods, as DilateFormer defines it (arXiv 2302.01791).

The authors unfold keys and values, nine copies of each. Every fast path here reads shifted views of one padded copy
instead; the backward pass is written out, gathers and never scatters, and keeps only the attention weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from repertory.ops.backend import being_traced, check, compiled, compiler_found, needs_triton
from repertory.ops.sliding_window import mirrored as _mirrored
from repertory.ops.sliding_window import pad as _pad
from repertory.ops.sliding_window import windows as _windows

# Logits of one call from which inductor's compilation repays soon: a training step at 224 pixels and batch 16. A
# function of the arguments alone, so that a resumed run takes the path that the uncut one took.
_REPAYS = 20_000_000


def dilated_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: int,
    dilation: int | Sequence[int],
    num_heads: int,
    *,
    backend: str = "auto",
) -> Tensor:
    """Let every position attend to a dilated window around it.

    Position (i, j) attends to the ``kernel_size ** 2`` positions (i + p r, j + q r), p and q from
    -(kernel_size - 1) / 2 to (kernel_size - 1) / 2, with logits scaled by (C / num_heads) ** -0.5. Keys outside the map
    are zero and not masked: each counts with logit 0 and value 0, as in the authors' code.

    Args:
        query: (B, C, H, W); heads are contiguous slices of C / num_heads channels.
        key: (B, C, H, W), of the query's type and device.
        value: (B, C, H, W), likewise.
        kernel_size: odd side of the window.
        dilation: rate r for all heads, or one rate for each of as many contiguous groups of heads.
        num_heads: heads over all groups; must divide C.
        backend: ``reference`` (unfold and matrix products), ``eager``, ``compiled`` by inductor, ``triton`` on CUDA,
            ``auto`` the best for these arguments. Half precision is computed in float32 inside.

    Returns:
        (B, H, W, C), of the query's type; differentiable once, or as often as wanted by ``reference``.

    Raises:
        ValueError: for shapes or types that differ, an even window, a rate below 1, or numbers that do not divide.
    """
    check(backend)
    rates = (dilation,) if isinstance(dilation, int) else tuple(dilation)
    _check(query, key, value, kernel_size, rates, num_heads)
    if not query.numel():
        return (query + key + value).permute(0, 2, 3, 1)  # nothing to attend to, still part of the graph
    if backend == "reference":
        return _reference(query, key, value, kernel_size, rates, num_heads)
    half = query.dtype in (torch.float16, torch.bfloat16)
    if query.dtype != torch.float64 and needs_triton(backend, query):
        out, _ = _Attend.apply(query, key, value, kernel_size, rates, num_heads, "triton")
        return out.permute(0, 2, 3, 1)
    if backend == "triton":
        raise ValueError(f"backend is 'triton', which takes CUDA tensors below float64; query is {query.dtype}")
    query_, key_, value_ = (x.float() if half else x for x in (query, key, value))
    if being_traced():
        out, _ = _attend(query_, key_, value_, kernel_size, rates, num_heads)
    else:
        path = _path(backend, query, kernel_size, num_heads)
        out, _ = _Attend.apply(query_, key_, value_, kernel_size, rates, num_heads, path)
    return out.to(query.dtype).permute(0, 2, 3, 1)


def _check(query: Tensor, key: Tensor, value: Tensor, kernel_size: int, rates: tuple[int, ...], num_heads: int) -> None:
    if query.ndim != 4 or not query.shape == key.shape == value.shape:
        shapes = f"{tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
        raise ValueError(f"query, key and value are {shapes}; they must be of one shape (B, C, H, W)")
    if not query.dtype == key.dtype == value.dtype or not query.is_floating_point():
        raise ValueError(
            f"query, key and value are {query.dtype}, {key.dtype} and {value.dtype}; they must be of one floating type"
        )
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size is {kernel_size}; it must be odd and at least 1")
    if not rates or min(rates) < 1:
        raise ValueError(f"dilation is {rates}; it must be at least 1, or a sequence of such rates")
    if num_heads < 1 or query.shape[1] % num_heads:
        raise ValueError(f"num_heads is {num_heads}; it must divide the {query.shape[1]} channels")
    if num_heads % len(rates):
        raise ValueError(f"dilation has {len(rates)} rates; their number must divide num_heads, which is {num_heads}")


def _path(backend: str, query: Tensor, kernel_size: int, num_heads: int) -> str:
    batch, _, height, width = query.shape
    if backend == "compiled":
        return "compiled"
    logits = batch * num_heads * height * width * kernel_size**2
    return "compiled" if backend == "auto" and logits >= _REPAYS and compiler_found() and not query.is_cuda else "eager"


def _reference(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: int, rates: tuple[int, ...], num_heads: int
) -> Tensor:
    """(B, H, W, C) by unfolding keys and values, and matrix products."""
    batch, channels, height, width = query.shape
    heads, head_dim, groups = num_heads // len(rates), channels // num_heads, len(rates)
    outs = []
    for q, k, v, rate in zip(*(x.chunk(groups, 1) for x in (query, key, value)), rates, strict=True):
        padding = rate * (kernel_size // 2)
        k, v = (
            F.unfold(x, kernel_size, rate, padding).reshape(batch, heads, head_dim, kernel_size**2, height * width)
            for x in (k, v)
        )
        q = q.reshape(batch, heads, head_dim, height * width) * head_dim**-0.5
        weights = torch.einsum("bhdn,bhdtn->bhtn", q, k).softmax(2)
        outs.append(torch.einsum("bhtn,bhdtn->bhdn", weights, v).reshape(batch, -1, height, width))
    return torch.cat(outs, 1).permute(0, 2, 3, 1)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: int, rates: tuple[int, ...], num_heads: int
) -> tuple[Tensor, Tensor]:
    """Output (B, C, H, W) and attention weights (B, heads, taps, H, W), by plain operations on shifted views."""
    batch, channels, height, width = query.shape
    groups, head_dim = len(rates), channels // num_heads
    outs, all_weights = [], []
    for q, k, v, rate in zip(*(x.chunk(groups, 1) for x in (query, key, value)), rates, strict=True):
        padding = rate * (kernel_size // 2)
        q, k, v = (x.reshape(batch, -1, head_dim, *x.shape[-2:]) for x in (q, _pad(k, padding), _pad(v, padding)))
        logits = torch.stack([(q * tap).sum(2) for tap in _windows(k, kernel_size, rate, height, width)], 2)
        weights = (logits * head_dim**-0.5).softmax(2)
        taps = _windows(v, kernel_size, rate, height, width)
        out = sum((weights[:, :, index, None] * tap for index, tap in enumerate(taps)), torch.zeros_like(q))
        outs.append(out.reshape(batch, -1, height, width))
        all_weights.append(weights)
    return torch.cat(outs, 1), torch.cat(all_weights, 1)


def _gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weights: Tensor,
    kernel_size: int,
    rates: tuple[int, ...],
    num_heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, (B, C, H, W) each, by plain operations that only gather."""
    batch, channels, height, width = query.shape
    groups, head_dim, taps = len(rates), channels // num_heads, kernel_size**2
    results: tuple[list[Tensor], ...] = ([], [], [])
    split = (x.chunk(groups, 1) for x in (grad, query, key, value, weights))
    for g, q, k, v, a, rate in zip(*split, rates, strict=True):
        padding = rate * (kernel_size // 2)

        def heads(x: Tensor) -> Tensor:
            return x.reshape(batch, -1, head_dim, *x.shape[-2:])

        def views(x: Tensor, mirrored: bool = False) -> list[Tensor]:
            return (_mirrored if mirrored else _windows)(x, kernel_size, rate, height, width)  # noqa: B023

        own_grad = heads(g)
        to_weights = torch.stack([(own_grad * tap).sum(2) for tap in views(heads(_pad(v, padding)))], 2)
        to_logits = a * (to_weights - (a * to_weights).sum(2, keepdim=True)) * head_dim**-0.5
        key_taps = views(heads(_pad(k, padding)))
        to_query = sum((to_logits[:, :, t, None] * key_taps[t] for t in range(taps)), torch.zeros_like(own_grad))
        # A key is seen by the queries at the opposite taps: gather their logit gradients instead of scattering.
        padded_logits = _pad(to_logits.flatten(1, 2), padding).unflatten(1, (-1, taps))
        padded_weights = _pad(a.flatten(1, 2), padding).unflatten(1, (-1, taps))
        query_taps = views(heads(_pad(q, padding)), mirrored=True)
        grad_taps = views(heads(_pad(g, padding)), mirrored=True)
        logit_taps, weight_taps = views(padded_logits, mirrored=True), views(padded_weights, mirrored=True)
        to_key = sum((logit_taps[t][:, :, t, None] * query_taps[t] for t in range(taps)), torch.zeros_like(own_grad))
        to_value = sum((weight_taps[t][:, :, t, None] * grad_taps[t] for t in range(taps)), torch.zeros_like(own_grad))
        for result, found in zip(results, (to_query, to_key, to_value), strict=True):
            result.append(found.reshape(batch, -1, height, width))
    return torch.cat(results[0], 1), torch.cat(results[1], 1), torch.cat(results[2], 1)


@functools.cache
def _compiled_pair(
    kernel_size: int, rates: tuple[int, ...], num_heads: int
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """``_attend`` and ``_gradients`` for one setting, compiled for any size."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return _attend(query, key, value, kernel_size, rates, num_heads)

    def gradients(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        return _gradients(grad, query, key, value, weights, kernel_size, rates, num_heads)

    return compiled(attend), compiled(gradients)


def _eager_attend(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: int, rates: tuple[int, ...], num_heads: int
) -> tuple[Tensor, Tensor]:
    """As ``_attend``, an image and a group at a time: temporaries stay in the cache, and none is allocated a tap."""
    batch, channels, height, width = query.shape
    groups, head_dim = len(rates), channels // num_heads
    heads, per_group = num_heads // groups, channels // groups
    out = query.new_empty(batch, channels, height, width)
    weights = query.new_empty(batch, num_heads, kernel_size**2, height, width)
    product = query.new_empty(heads, head_dim, height, width)
    for group, rate in enumerate(rates):
        padding = rate * (kernel_size // 2)
        part = slice(group * per_group, (group + 1) * per_group)
        for image in range(batch):
            q = query[image, part].reshape(heads, head_dim, height, width) * head_dim**-0.5
            k, v = (_pad(x[image, part], padding).unflatten(0, (heads, head_dim)) for x in (key, value))
            logits = weights[image, group * heads : (group + 1) * heads]
            for tap, view in enumerate(_windows(k, kernel_size, rate, height, width)):
                torch.sum(torch.mul(q, view, out=product), 1, out=logits[:, tap])
            logits.copy_(logits.softmax(1))
            own = out[image, part].view(heads, head_dim, height, width).zero_()
            for tap, view in enumerate(_windows(v, kernel_size, rate, height, width)):
                own.addcmul_(logits[:, tap, None], view)
    return out, weights


def _eager_gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weights: Tensor,
    kernel_size: int,
    rates: tuple[int, ...],
    num_heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``_gradients``, an image and a group at a time, adding into shifted views of one padded map."""
    batch, channels, height, width = query.shape
    groups, head_dim = len(rates), channels // num_heads
    heads, per_group = num_heads // groups, channels // groups
    to_query, to_key, to_value = (torch.zeros_like(query, memory_format=torch.contiguous_format) for _ in range(3))
    product = query.new_empty(heads, head_dim, height, width)
    to_weights = query.new_empty(heads, kernel_size**2, height, width)
    for group, rate in enumerate(rates):
        padding = rate * (kernel_size // 2)
        part = slice(group * per_group, (group + 1) * per_group)
        inner = slice(padding, padding + height), slice(padding, padding + width)
        for image in range(batch):
            g, q = (x[image, part].reshape(heads, head_dim, height, width) for x in (grad, query))
            k, v = (_pad(x[image, part], padding).unflatten(0, (heads, head_dim)) for x in (key, value))
            a = weights[image, group * heads : (group + 1) * heads]
            padded = torch.zeros_like(k)
            targets = _windows(padded, kernel_size, rate, height, width)
            for tap, view in enumerate(_windows(v, kernel_size, rate, height, width)):
                torch.sum(torch.mul(g, view, out=product), 1, out=to_weights[:, tap])
                targets[tap].addcmul_(a[:, tap, None], g)
            to_value[image, part] = padded[:, :, *inner].flatten(0, 1)
            to_logits = a * (to_weights - (a * to_weights).sum(1, keepdim=True)) * head_dim**-0.5
            padded.zero_()
            own = to_query[image, part].view(heads, head_dim, height, width)
            for tap, view in enumerate(_windows(k, kernel_size, rate, height, width)):
                own.addcmul_(to_logits[:, tap, None], view)
                targets[tap].addcmul_(to_logits[:, tap, None], q)
            to_key[image, part] = padded[:, :, *inner].flatten(0, 1)
    return to_query, to_key, to_value


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: int,
    rates: tuple[int, ...],
    num_heads: int,
    path: str,
) -> tuple[Tensor, Tensor]:
    """Output (B, C, H, W), and what the backward pass of ``path`` needs of the softmax."""
    if path == "triton":
        from repertory.ops.dilated_attention_triton import attend

        return attend(query, key, value, kernel_size, rates, num_heads)
    if path == "compiled":
        return _compiled_pair(kernel_size, rates, num_heads)[0](query, key, value)
    return _eager_attend(query, key, value, kernel_size, rates, num_heads)


def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kept: Tensor,
    out: Tensor | None,
    kernel_size: int,
    rates: tuple[int, ...],
    num_heads: int,
    path: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, (B, C, H, W) each; only Triton needs ``out``."""
    if path == "triton":
        from repertory.ops.dilated_attention_triton import gradients

        assert out is not None
        return gradients(grad, query, key, value, out, kept, kernel_size, rates, num_heads)
    if path == "compiled":
        return _compiled_pair(kernel_size, rates, num_heads)[1](grad.contiguous(), query, key, value, kept)
    return _eager_gradients(grad, query, key, value, kept, kernel_size, rates, num_heads)


def _folded(tensor: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """``tensor`` with its vmapped dimension folded into the batch."""
    if tensor is None:
        return None
    moved = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return moved.flatten(0, 1)


def _vmapped(function: Any, count: int, info: Any, in_dims: tuple[Any, ...], inputs: tuple[Any, ...]) -> Any:
    """``function`` over a vmapped dimension of its first ``count`` inputs, which all begin with a batch."""
    tensors = [_folded(x, dim, info.batch_size) for x, dim in zip(inputs[:count], in_dims[:count], strict=True)]
    results = function.apply(*tensors, *inputs[count:])
    return tuple(x.unflatten(0, (info.batch_size, -1)) for x in results), (0,) * len(results)


class _Attend(torch.autograd.Function):
    """(B, C, H, W) by one of the fast paths, with its own backward pass; the second output is kept for that."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return _forward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        out, kept = output
        ctx.mark_non_differentiable(kept)
        ctx.settings = inputs[3:]
        ctx.save_for_backward(*inputs[:3], kept, out if inputs[-1] == "triton" else None)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return *_Gradients.apply(grads[0], *ctx.saved_tensors, *ctx.settings), None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        return _vmapped(_Attend, 3, info, in_dims, inputs)


class _Gradients(torch.autograd.Function):
    """The backward pass: a function of its own, so that it can be vmapped, and not differentiable again."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        return _backward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        raise RuntimeError("dilated_attention can be differentiated once; backend='reference' as often as wanted")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        return _vmapped(_Gradients, 6, info, in_dims, inputs)
