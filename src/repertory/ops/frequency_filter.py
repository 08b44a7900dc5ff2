"""AFFormer's adaptive frequency filter (arXiv 2301.04648): linear attention, a high-pass and a low-pass part.

The authors move heads, tokens and images about between the three parts. Every fast path here keeps channels last from
end to end; the backward pass is written out, computes again what is cheap, and keeps nothing of the map's size but the
input. On a CPU the high-pass and the low-pass part are C where a compiler is found: as operations of torch they are
dozens of short calls, and its depth-wise convolutions slower than their arithmetic.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from repertory.ops import frequency_filter_native
from repertory.ops.backend import being_traced, check, compiled, needs_triton

Settings = tuple[int, tuple[int, ...]]  # number of heads, and bins of the low-pass part
Levels = list[tuple[Tensor, Tensor]]  # of the low-pass part: (pooling (b b, N), resampling (N, b b))

_TOGETHER = 2**19  # numbers of a map, over the images that are taken at a time
_LARGE = 2**17  # numbers of queries, keys and values for which C is worth the second that it takes to compile


def frequency_filter(
    qkv: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    num_heads: int = 8,
    bins: Sequence[int] = (1, 2, 3, 6),
    *,
    backend: str = "auto",
) -> Tensor:
    """Filter a map by frequency, as its queries ask for.

    With c = C / ``num_heads`` channels a head and all N = H W positions of the map::

        kernel = softmax(key over positions)^T value            c x c, one a head and image
        high = depth-wise convolution of the value              zero-padded, one window a group of channels
        low = relu(upsample(average_pool(value)))               one pyramid level a group of channels
        out = c^-0.5 query kernel + query * high + low

    Args:
        qkv: (B, 3 C, H, W): queries, keys and values, C channels each; heads are contiguous slices of C. Any strides;
            channels last, as a linear layer on (B, H, W, C) leaves them, need no copy.
        weights: depth-wise kernels (C_i, 1, k_i, k_i) of contiguous groups of channels, k_i odd, all C_i adding to C.
        biases: their biases (C_i).
        num_heads: must divide C.
        bins: pooled to b x b cells, then resampled bilinearly (corners not aligned): one b for each of as many equal
            contiguous groups of channels. The groups of ``weights`` and of ``bins`` need not coincide.
        backend: ``reference`` (the definition written down), ``eager``, ``compiled`` (in float32 on a CPU from C, for
            windows of up to 7, and else by inductor), ``triton`` on CUDA, ``auto`` the best for these arguments. Half
            precision is computed in float32 inside, autocast or not.

    Returns:
        (B, C, H, W), of the type of ``qkv``; differentiable once, or as often as wanted by ``reference``.

    Raises:
        ValueError: for shapes that do not fit, even windows, or numbers that do not divide.
    """
    check(backend)
    settings = (num_heads, tuple(bins))
    _check(qkv, weights, biases, settings)
    on_triton = bool(qkv.numel()) and qkv.dtype != torch.float64 and needs_triton(backend, qkv)
    if backend == "triton" and qkv.numel() and not on_triton:
        raise ValueError(f"backend is 'triton', which takes CUDA tensors below float64; qkv is {qkv.dtype}")
    half = qkv.dtype in (torch.float16, torch.bfloat16)
    dtype = torch.float32 if half else qkv.dtype
    filters = [x.to(dtype) for x in (*weights, *biases)]
    with _full_precision(qkv.device.type):
        if on_triton:
            return _Filter.apply("triton", settings, qkv, *filters)[0]
        maps = qkv.to(dtype)
        if backend == "reference" or not qkv.numel():
            out = _reference(maps, filters, settings)
        elif being_traced():
            out = _filter(maps, filters, settings, _levels(qkv.shape[2], qkv.shape[3], settings[1], maps))
        else:
            path = _path(backend, maps, filters)
            if path == "inductor":
                out = _compiled(settings)(maps, filters, _kept_levels(maps, settings))
            else:
                out = _Filter.apply(path, settings, maps, *filters)[0]
        return out.to(qkv.dtype)


def _check(qkv: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], settings: Settings) -> None:
    num_heads, bins = settings
    if qkv.ndim != 4 or qkv.shape[1] % 3 or min(qkv.shape[1:]) < 1:
        raise ValueError(f"qkv is {tuple(qkv.shape)}; it must be (B, 3 C, H, W) with C, H and W at least 1")
    if not qkv.is_floating_point():
        raise ValueError(f"qkv is {qkv.dtype}; it must be of a floating type")
    channels = qkv.shape[1] // 3
    if num_heads < 1 or channels % num_heads:
        raise ValueError(f"num_heads is {num_heads}; it must divide the {channels} channels")
    if not bins or min(bins) < 1:
        raise ValueError(f"bins are {bins}; they must be at least one number, each at least 1")
    if channels % len(bins):
        raise ValueError(f"bins are {bins}; their number must divide the {channels} channels")
    for weight in weights:
        if weight.ndim != 4 or weight.shape[1] != 1 or weight.shape[2] != weight.shape[3] or weight.shape[2] % 2 == 0:
            raise ValueError(f"weights hold a kernel {tuple(weight.shape)}; it must be (C_i, 1, k, k) with k odd")
    widths = [weight.shape[0] for weight in weights]
    if sum(widths) != channels:
        raise ValueError(f"weights are of {widths} channels; they must add up to the {channels} channels of a value")
    if [tuple(bias.shape) for bias in biases] != [(width,) for width in widths]:
        shapes = ", ".join(str(tuple(bias.shape)) for bias in biases)
        raise ValueError(f"biases are {shapes}; they must be one (C_i) for each kernel, C_i being {widths}")


def _path(backend: str, maps: Tensor, filters: Sequence[Tensor]) -> str:
    """``native``, ``inductor`` or ``eager``: what ``backend`` means here."""
    wanted = backend == "compiled" or (backend == "auto" and maps.numel() >= _LARGE)
    if wanted and frequency_filter_native.possible(maps, filters):
        return "native"
    return "inductor" if backend == "compiled" else "eager"


def _full_precision(device_type: str) -> Any:
    """Autocast switched off where it is on; else nothing, since an exported program cannot store such a region."""
    on = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if on else contextlib.nullcontext()


def _convolve(part: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(part, weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0])


def _reference(qkv: Tensor, filters: list[Tensor], settings: Settings) -> Tensor:
    """The definition, each product a matrix product or convolution."""
    num_heads, bins = settings
    query, _, value = qkv.chunk(3, 1)
    q, k, v = (x.flatten(2).unflatten(1, (num_heads, -1)) for x in qkv.chunk(3, 1))
    kernel = torch.einsum("bhkn,bhvn->bhkv", k.softmax(3), v)
    attended = torch.einsum("bhkn,bhkv->bhvn", q, kernel).reshape(query.shape) * q.shape[2] ** -0.5
    weights, biases = filters[: len(filters) // 2], filters[len(filters) // 2 :]
    parts = value.split([len(weight) for weight in weights], 1)
    high = torch.cat([_convolve(*part) for part in zip(parts, weights, biases, strict=True)], 1)
    low = [
        F.interpolate(F.adaptive_avg_pool2d(part, cells), size=query.shape[2:], mode="bilinear", align_corners=False)
        for part, cells in zip(value.chunk(len(bins), 1), bins, strict=True)
    ]
    return attended + query * high + torch.cat(low, 1).relu()


def _pooling(size: int, cells: int, like: Tensor) -> Tensor:
    """Adaptive average pooling of a line as a matrix (cells, size)."""
    place = torch.arange(size, device=like.device)
    cell = torch.arange(cells, device=like.device)[:, None]
    start, stop = cell * size // cells, ((cell + 1) * size + cells - 1) // cells
    return ((place >= start) & (place < stop)).to(like.dtype) / (stop - start).to(like.dtype)


def _resampling(size: int, cells: int, like: Tensor) -> Tensor:
    """Bilinear resampling of a line of cells, corners not aligned, as a matrix (size, cells)."""
    place = torch.arange(size, device=like.device, dtype=like.dtype)[:, None]
    cell = torch.arange(cells, device=like.device, dtype=like.dtype)
    source = ((place + 0.5) * (cells / size) - 0.5).clamp(0, cells - 1)
    return (1 - (source - cell).abs()).relu()


def _plane(rows: Tensor, columns: Tensor) -> Tensor:
    """The matrices of two lines as one of their plane: (a, b) and (c, d) to (a c, b d)."""
    return torch.einsum("ab,cd->acbd", rows, columns).flatten(2).flatten(0, 1)


def _levels(height: int, width: int, bins: tuple[int, ...], like: Tensor) -> Levels:
    """Pooling and resampling of each level as matrices: products of tokens, whose channels stay where they are."""
    return [
        (
            _plane(_pooling(height, cells, like), _pooling(width, cells, like)),
            _plane(_resampling(height, cells, like), _resampling(width, cells, like)),
        )
        for cells in bins
    ]


@functools.lru_cache(maxsize=16)
def _levels_of(height: int, width: int, bins: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Levels:
    with torch.inference_mode(False), torch.no_grad():
        return _levels(height, width, bins, torch.empty((), dtype=dtype, device=device))


@functools.lru_cache(maxsize=16)
def _lines_of(height: int, width: int, bins: tuple[int, ...]) -> frequency_filter_native.Lines:
    with torch.inference_mode(False), torch.no_grad():
        return [
            (
                _pooling(height, cells, torch.empty(())).T.contiguous(),
                _pooling(width, cells, torch.empty(())).T.contiguous(),
                _resampling(height, cells, torch.empty(())),
                _resampling(width, cells, torch.empty(())),
            )
            for cells in bins
        ]


def _kept_levels(maps: Tensor, settings: Settings) -> Levels:
    """The matrices for maps of this size, made once."""
    return _levels_of(maps.shape[2], maps.shape[3], settings[1], maps.dtype, maps.device)


def _kept_lines(maps: Tensor, settings: Settings) -> frequency_filter_native.Lines:
    """Those of rows and of columns, made once."""
    return _lines_of(maps.shape[2], maps.shape[3], settings[1])


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """(…, N, C) as (…, heads, N, c), a view."""
    return x.unflatten(-1, (num_heads, -1)).transpose(-2, -3)


def _image(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """(B, N, C) as (B, C, H, W), a view."""
    return tokens.unflatten(1, tuple(size)).permute(0, 3, 1, 2)


def _tokens(image: Tensor) -> Tensor:
    """(B, C, H, W) as (B, N, C): a view where channels come last."""
    return image.permute(0, 2, 3, 1).flatten(1, 2)


def _side_by_side(tokens: Tensor) -> Tensor:
    """``tokens`` (B, N, C) whose channels lie next to each other: a copy where they do not."""
    return tokens if tokens.stride(2) == 1 else tokens.contiguous()


def _filter(qkv: Tensor, filters: list[Tensor], settings: Settings, levels: Levels) -> Tensor:
    """Output (B, C, H, W), by plain operations that move no channel: what compilers see."""
    num_heads, size = settings[0], qkv.shape[2:]
    q, k, v = _tokens(qkv).chunk(3, 2)
    kernel = _heads(k.softmax(1), num_heads).transpose(2, 3) @ _heads(v, num_heads)
    attended = _heads(q, num_heads) @ (kernel * kernel.shape[-1] ** -0.5)
    parts = zip(v.chunk(len(levels), 2), levels, strict=True)
    low = torch.cat([resampling @ (pooling @ part) for part, (pooling, resampling) in parts], 2)
    high = torch.cat([_convolve(_image(v[..., part], size), *filter_) for part, *filter_ in _windows(filters)], 1)
    return _image(torch.addcmul(attended.transpose(1, 2).flatten(2) + low.relu(), q, _tokens(high)), size)


@functools.cache
def _compiled(settings: Settings) -> Callable[..., Tensor]:
    """``_filter`` of one setting, compiled; its gradients are the compiler's."""

    def filtered(qkv: Tensor, filters: list[Tensor], levels: Levels) -> Tensor:
        return _filter(qkv, filters, settings, levels)

    return compiled(filtered)


def _windows(filters: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(channels, kernel, bias) of each window."""
    start = 0
    for weight, bias in zip(filters[: len(filters) // 2], filters[len(filters) // 2 :], strict=True):
        yield slice(start, start + len(weight)), weight, bias
        start += len(weight)


def _chunks(qkv: Tensor) -> list[slice]:
    """Images that are filtered together: many small ones, whose calls would cost more than their work; large ones
    alone, so that temporaries stay in the cache and their memory is used again.
    """
    count = max(1, _TOGETHER // (qkv[0].numel() // 3))
    return [slice(start, start + count) for start in range(0, len(qkv), count)]


def _by_head(left: Tensor, right: Tensor, num_heads: int, out: Tensor) -> Tensor:
    """Write products of the heads of ``left`` (B, N, C) and matrices (B, heads, c, c) into those of ``out``."""
    for x, matrices, result in zip(left, right, out, strict=True):  # an image at a time none needs a copy
        torch.bmm(_heads(x, num_heads), matrices, out=_heads(result, num_heads))
    return out


def _between(left: Tensor, right: Tensor, num_heads: int) -> Tensor:
    """Products over places of the heads of two (B, N, C): (B, heads, c, c)."""
    pairs = zip(left, right, strict=True)
    return torch.stack([torch.bmm(_heads(x, num_heads).transpose(1, 2), _heads(y, num_heads)) for x, y in pairs])


def _attend(out: Tensor, query: Tensor, share: Tensor, value: Tensor, num_heads: int, size: Sequence[int]) -> Tensor:
    """Write the attention into ``out``, ``share`` being the key's softmax; return the kernels (B, heads, c, c)."""
    kernels = _between(share, value, num_heads)
    _by_head(query, kernels * kernels.shape[-1] ** -0.5, num_heads, out)
    return kernels


def _attend_gradients(
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
    num_heads, scale = kernels.shape[1], kernels.shape[-1] ** -0.5
    to_kernels = _between(query, grad, num_heads) * scale
    _by_head(grad, kernels.transpose(2, 3) * scale, num_heads, to_query)
    _by_head(value, to_kernels.transpose(2, 3), num_heads, to_key)
    # what the softmax takes off, the sum of share * to_share over the map, is known from the two c x c matrices
    to_key.sub_((kernels * to_kernels).sum(3).flatten(1)[:, None]).mul_(share)
    _by_head(share, to_kernels, num_heads, to_value)


def _add_low(out: Tensor, value: Tensor, size: Sequence[int], levels: Levels) -> Tensor:
    """Add the low-pass part to ``out`` (B, N, C); return its cells, (B, those of all levels, C / levels)."""
    parts = zip(value.chunk(len(levels), 2), levels, strict=True)
    pooled = torch.cat([pooling @ part for part, (pooling, _) in parts], 1)
    out += _low(pooled, levels).relu_()
    return pooled


def _low(pooled: Tensor, levels: Levels) -> Tensor:
    """The low-pass part before its ReLU, (B, N, C)."""
    cells = pooled.split([len(pooling) for pooling, _ in levels], 1)
    out = pooled.new_empty(len(pooled), len(levels[0][1]), len(levels) * pooled.shape[2])
    for part, values, (_, resampling) in zip(out.chunk(len(levels), 2), cells, levels, strict=True):
        torch.bmm(resampling.expand(len(out), -1, -1), values, out=part)
    return out


def _add_low_gradients(to_value: Tensor, grad: Tensor, pooled: Tensor, size: Sequence[int], levels: Levels) -> None:
    """Add to the gradient of the value what ``grad`` (B, N, C) means for the low-pass part."""
    cut = torch.ops.aten.threshold_backward(grad, _low(pooled, levels), 0).chunk(len(levels), 2)
    for x, to_part, (pooling, resampling) in zip(cut, to_value.chunk(len(levels), 2), levels, strict=True):
        to_part += pooling.T @ (resampling.T @ x)


def _add_high(out: Tensor, query: Tensor, value: Tensor, size: Sequence[int], filters: Sequence[Tensor]) -> None:
    """Add the high-pass part to ``out``; all (B, N, C)."""
    for group, weight, bias in _windows(filters):
        high = _convolve(_image(value[..., group], size), weight, bias)
        out[..., group].addcmul_(query[..., group], _tokens(high))


def _add_high_gradients(
    to_query: Tensor,
    to_value: Tensor,
    to_filters: Sequence[Tensor],
    grad: Tensor,
    query: Tensor,
    value: Tensor,
    size: Sequence[int],
    filters: Sequence[Tensor],
) -> None:
    """Add to the gradients what ``grad`` (B, N, C) means for the high-pass part."""
    for index, (group, weight, bias) in enumerate(_windows(filters)):
        to_high = torch.mul(grad[..., group], query[..., group])
        values = value[..., group].contiguous()
        to_filters[index + len(filters) // 2] += to_high.sum((0, 1))
        to_high, values = _image(to_high, size), _image(values, size)
        to_query[..., group].addcmul_(grad[..., group], _tokens(_convolve(values, weight, bias)))
        to_value[..., group] += _tokens(_backward_convolution(to_high, values, weight, (True, False))[0])
        to_filters[index] += _weight_gradient(to_high, values, weight)


class _Parts(NamedTuple):
    """The matrices that the low-pass part needs; the three parts, the first of which writes, and their gradients."""

    levels: Callable[[Tensor, Settings], Any]
    attend: Callable[..., Tensor]
    attend_gradients: Callable[..., None]
    add_low: Callable[..., Tensor]
    add_low_gradients: Callable[..., None]
    add_high: Callable[..., None]
    add_high_gradients: Callable[..., None]


_PARTS = {
    "eager": _Parts(
        _kept_levels,
        _attend,
        _attend_gradients,
        _add_low,
        _add_low_gradients,
        _add_high,
        _add_high_gradients,
    ),
    "native": _Parts(
        _kept_lines,
        frequency_filter_native.attend,
        frequency_filter_native.attend_gradients,
        frequency_filter_native.add_low,
        frequency_filter_native.add_low_gradients,
        frequency_filter_native.add_high,
        frequency_filter_native.add_high_gradients,
    ),
}


def _filtered(path: str, qkv: Tensor, filters: Sequence[Tensor], settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Output (B, C, H, W), and what the backward pass needs beside the input, none of it of the map's size.

    These are the kernels (B, heads, c, c) and the pooled values (B, cells of all levels, C / levels).
    """
    tokens, size, parts = _side_by_side(_tokens(qkv)), qkv.shape[2:], _PARTS[path]
    levels = parts.levels(qkv, settings)
    out = qkv.new_empty(*tokens.shape[:2], tokens.shape[2] // 3)
    kernels, pooled = [], []
    for images in _chunks(qkv):
        (q, k, v), to = tokens[images].chunk(3, 2), out[images]
        kernels.append(parts.attend(to, q, k.softmax(1), v, settings[0], size))
        pooled.append(parts.add_low(to, v, size, levels))
        parts.add_high(to, q, v, size, filters)
    return _image(out, size), torch.cat(kernels), torch.cat(pooled)


def _gradients(
    path: str,
    grad: Tensor,
    qkv: Tensor,
    filters: Sequence[Tensor],
    kernels: Tensor,
    pooled: Tensor,
    settings: Settings,
) -> tuple[Tensor, ...]:
    """Gradients of ``qkv`` (B, 3 C, H, W), channels last, and of every kernel and bias."""
    tokens, grads = (_side_by_side(_tokens(x)) for x in (qkv, grad))
    size, parts = qkv.shape[2:], _PARTS[path]
    levels = parts.levels(qkv, settings)
    found = tokens.new_empty(tokens.shape)
    to_filters = [x.new_zeros(x.shape) for x in filters]
    for images in _chunks(qkv):
        (q, k, v), g, (to_query, to_key, to_value) = (
            tokens[images].chunk(3, 2),
            grads[images],
            found[images].chunk(3, 2),
        )
        parts.attend_gradients(to_query, to_key, to_value, g, q, k.softmax(1), v, kernels[images], size)
        parts.add_low_gradients(to_value, g, pooled[images], size, levels)
        parts.add_high_gradients(to_query, to_value, to_filters, g, q, v, size, filters)
    return _image(found, size), *to_filters


def _backward_convolution(
    grad: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool], padding: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients of the map and of the kernel (k_h, k_w) of a depth-wise convolution."""
    padding = padding or [side // 2 for side in weight.shape[2:]]
    mask = [*wanted, False]
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], len(weight), mask
    )[:2]


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The gradient of a depth-wise kernel (C, 1, k, k), three columns at a time.

    oneDNN's weight gradient is vectorised for kernels of three columns and takes several times as long for wider ones.
    """
    side, width = weight.shape[-1], x.shape[-1]
    if side <= 3 or x.is_cuda:
        return _backward_convolution(grad, x, weight, (False, True))[1]
    padded = F.pad(x, (side // 2, side // 2))
    found = torch.empty_like(weight)
    for first in (*range(0, side - 3, 3), side - 3):  # the last three may repeat what was found
        columns = padded[..., first : first + width + 2].contiguous(memory_format=torch.channels_last)
        piece = weight[..., first : first + 3]
        found[..., first : first + 3] = _backward_convolution(grad, columns, piece, (False, True), [side // 2, 0])[1]
    return found


class _Filter(torch.autograd.Function):
    """(path, settings, qkv, *kernels, *biases) to (B, C, H, W), with its own backward pass, and what that needs."""

    @staticmethod
    def forward(path: str, settings: Settings, qkv: Tensor, *filters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if path == "triton":
            from repertory.ops.frequency_filter_triton import filtered

            return filtered(qkv, filters, settings)
        return _filtered(path, qkv, filters, settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.path, ctx.settings = inputs[:2]
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs[2:], *output[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        qkv, *filters, kernels, pooled = ctx.saved_tensors
        arguments = (grads[0], qkv, filters, kernels, pooled, ctx.settings)
        with _full_precision(qkv.device.type):
            if ctx.path == "triton":
                from repertory.ops.frequency_filter_triton import gradients

                return None, None, *gradients(*arguments)
            return None, None, *_gradients(ctx.path, *arguments)
