"""The joint bilateral filter with a window clipped at the border.

The weight of a tap is computed once and shared by the channels. Temporaries are linear in pixels on every path but
``reference`` under autograd; the backward pass is a closed form over the same taps and is linear too.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from repertory.ops.backend import being_traced, check, compiled, compiles, needs_triton

# What a padded pixel shows in the scaled guide: its square is finite in float32 and its weight exactly 0.
_FAR = 1e18
_STRIP = 1 << 15  # pixels of a strip on the eager path: temporaries then stay in the cache
_REPAYS = 3e8  # taps x pixels from which compiling repays within one call
_READY: set[tuple[Any, ...]] = set()  # settings whose kernel this process holds already


def _log_spatial(half_width: int, sigma_s: float, like: Tensor) -> Tensor:
    """(2w+1, 2w+1) logarithm of the unnormalised spatial Gaussian; normalising cancels in the quotient."""
    x = torch.arange(-half_width, half_width + 1, dtype=torch.float64)
    return (-(x[:, None] ** 2 + x[None, :] ** 2) / (2 * sigma_s**2)).to(like)


def _reference(image: Tensor, guide: Tensor, half_width: int, log_spatial: Tensor) -> Tensor:
    """(B, C + 1, H, W): the quotient and the sum of weights. The window is clipped by slicing; ``guide`` is scaled."""
    height, width = image.shape[-2:]
    ones = torch.ones_like(image[:, :1])
    total = torch.zeros_like(torch.cat([image, ones], 1))
    source = torch.cat([image, ones], 1)
    for dy in range(-min(half_width, height - 1), min(half_width, height - 1) + 1):
        here_y, there_y = slice(max(-dy, 0), height - max(dy, 0)), slice(max(dy, 0), height + min(dy, 0))
        for dx in range(-min(half_width, width - 1), min(half_width, width - 1) + 1):
            here_x, there_x = slice(max(-dx, 0), width - max(dx, 0)), slice(max(dx, 0), width + min(dx, 0))
            distance = ((guide[..., there_y, there_x] - guide[..., here_y, here_x]) ** 2).sum(1, keepdim=True)
            weight = torch.exp(log_spatial[half_width + dy, half_width + dx] - distance)
            tap = weight * source[..., there_y, there_x]
            outside = (here_x.start, width - here_x.stop, here_y.start, height - here_y.stop)
            total = total + torch.nn.functional.pad(tap, outside)
    return torch.cat([total[:, :-1] / total[:, -1:], total[:, -1:]], 1)


def _pad(tensor: Tensor, half_width: int, value: float) -> Tensor:
    return torch.nn.functional.pad(tensor, (half_width,) * 4, value=value)


def _eager(image: Tensor, guide: Tensor, half_width: int, log_spatial: Tensor) -> Tensor:
    """As ``_reference``, one padded image at a time, in strips of rows, without an allocation a tap."""
    batch, channels, height, width = image.shape
    result = image.new_empty(batch, channels + 1, height, width)
    rows = max(1, _STRIP // width)
    taps = log_spatial.flatten().unbind()
    side = 2 * half_width + 1
    for one in range(batch):
        source, far = _pad(image[one], half_width, 0.0), _pad(guide[one], half_width, _FAR)
        for top in range(0, height, rows):
            count = min(rows, height - top)
            quotient, total = result[one, :-1, top : top + count], result[one, -1, top : top + count]
            quotient.zero_()
            total.zero_()
            centre = guide[one, :, top : top + count].contiguous()
            difference, weight = torch.empty_like(centre), torch.empty_like(centre[0])
            for tap, log_weight in enumerate(taps):
                dy, dx = divmod(tap, side)
                y, x = slice(top + dy, top + dy + count), slice(dx, dx + width)
                torch.sub(far[:, y, x], centre, out=difference)
                torch.addcmul(log_weight, difference[0], difference[0], value=-1, out=weight)
                for channel in difference[1:]:
                    weight.addcmul_(channel, channel, value=-1)
                weight.exp_()
                total.add_(weight)
                quotient.addcmul_(source[:, y, x], weight)
            quotient.div_(total)
    return result


def _exp2(x: Tensor) -> Tensor:
    """2 ** x for x <= 0, in float32 by a polynomial on [-1/2, 1/2] and the exponent's bits.

    Inductor inlines that; a call of the vector library in the innermost loop would spill every accumulator. What lies
    below 2 ** -126 becomes that.
    """
    if x.dtype != torch.float32 or x.is_cuda:
        return torch.exp2(x)
    x = torch.clamp(x, min=-126.0)
    whole = torch.round(x)
    part = x - whole
    value = part * (math.log(2) ** 6 / 720) + math.log(2) ** 5 / 120
    for order in (4, 3, 2, 1, 0):
        value = value * part + math.log(2) ** order / math.factorial(order)
    return ((whole.to(torch.int32) + 127) << 23).view(torch.float32) * value


def _windows(plane: Tensor, side: int, height: int, width: int) -> Tensor:
    """(side, side, H, W) view of a padded plane: the value that each tap reads at each pixel.

    The offset is left to ``as_strided``: naming it was seen to make the compiled loops ten times slower.
    """
    down, right = plane.stride()
    return plane.as_strided((side, side, height, width), (down, right, down, right))


def _sums(source: Tensor, far: Tensor, log_spatial: Tensor, height: int, width: int) -> Tensor:
    """One padded image as a pointwise weight and sums over (dy, dx), which inductor fuses into one loop nest.

    ``far`` is scaled by sqrt(log2 e) and ``log_spatial`` by log2 e: the weight is a power of two. Its exponential is
    deliberately not ``torch.exp``, which inductor would write to memory, a plane a tap, because it is used twice.
    """
    side = log_spatial.shape[0]
    half_width = (side - 1) // 2
    exponent = log_spatial[:, :, None, None]
    for plane in far.unbind():
        centre = plane[half_width : half_width + height, half_width : half_width + width]
        exponent = exponent - (_windows(plane, side, height, width) - centre) ** 2
    weight = _exp2(exponent)
    total = weight.sum((0, 1))
    sums = [(weight * _windows(plane, side, height, width)).sum((0, 1)) / total for plane in source.unbind()]
    return torch.stack([*sums, total])


_compiled_sums = compiled(
    _sums,
    dynamic=True,
    options={
        "realize_reads_threshold": 1000,  # keep the weight inline, whatever it reads
        "realize_opcount_threshold": 10000,
        "cpp.enable_floating_point_contract_flag": "fast",  # multiply and add in one instruction
    },
)


def _setting(image: Tensor, guide: Tensor) -> tuple[Any, ...]:
    return image.device.type, image.dtype, image.shape[1], guide.shape[1]


def _compiled(image: Tensor, guide: Tensor, half_width: int, log_spatial: Tensor) -> Tensor:
    """As ``_reference``, by the compiled loop nest, an image at a time."""
    height, width = image.shape[-2:]
    if _setting(image, guide) not in _READY:
        # The first call decides which sizes inductor takes to be equal: let it see sizes that all differ.
        small, far = (t.new_zeros(t.shape[1], 41, 57) for t in (image, guide))
        _compiled_sums(small, far, log_spatial.new_zeros(5, 5), 37, 53)
        _READY.add(_setting(image, guide))
    results = []
    for source, own in zip(image, guide, strict=True):
        far = _pad(own * math.sqrt(math.log2(math.e)), half_width, _FAR)
        results.append(
            _compiled_sums(_pad(source, half_width, 0.0), far, log_spatial * math.log2(math.e), height, width)
        )
    return torch.stack(results)


def _compiles(image: Tensor) -> bool:
    """Whether a kernel can be made; uncompiled, ``_sums`` would hold every tap in memory, so it is never run so."""
    return compiles("the joint bilateral filter", image.device.type)


def _path(backend: str, image: Tensor, guide: Tensor, half_width: int) -> str:
    height, width = image.shape[-2:]
    if needs_triton(backend, image):
        return "triton"
    if backend == "compiled":
        # One-pixel sides are special to the compiler, and small windows of work do not repay a kernel of their own.
        return "compiled" if min(height, width) >= 4 and half_width >= 1 and _compiles(image) else "eager"
    if backend == "auto":
        work = image.shape[0] * height * width * (2 * half_width + 1) ** 2
        worthwhile = work >= _REPAYS or _setting(image, guide) in _READY
        possible = min(height, width) >= 4 and half_width >= 1 and not image.is_cuda
        return "compiled" if worthwhile and possible and _compiles(image) else "eager"
    return "eager"


def _forward(image: Tensor, guide: Tensor, half_width: int, log_spatial: Tensor, backend: str) -> Tensor:
    path = _path(backend, image, guide, half_width)
    if path == "triton":
        from repertory.ops.bilateral_triton import joint_bilateral_triton

        return joint_bilateral_triton(image, guide, half_width, log_spatial)
    return (_compiled if path == "compiled" else _eager)(image, guide, half_width, log_spatial)


class _JointBilateral(torch.autograd.Function):
    """Forward by any fast path; backward over the same taps, the weights recomputed."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, guide: Tensor, half_width: int, log_spatial: Tensor, backend: str) -> Tensor:
        both = _forward(image, guide, half_width, log_spatial, backend)
        ctx.half_width = half_width
        ctx.save_for_backward(image, guide, both, log_spatial)
        return both[:, :-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        image, guide, both, log_spatial = ctx.saved_tensors
        half_width, (height, width) = ctx.half_width, image.shape[-2:]
        # With out = N / D and D the sum of weights: dL/dA(q) = sum_p w(p,q) u(p), u = g / D, and
        # dL/dw(p,q) = u(p) . A(q) - v(p), v = g . out / D; w is symmetric in p and q.
        u = gradient / both[:, -1:]
        v = (u * both[:, :-1]).sum(1, keepdim=True)
        source, far = _pad(image, half_width, 0.0), _pad(guide, half_width, _FAR)
        u_far, v_far = _pad(u, half_width, 0.0), _pad(v, half_width, 0.0)
        to_image, to_guide = torch.zeros_like(image), torch.zeros_like(guide)
        for dy in range(2 * half_width + 1):
            for dx in range(2 * half_width + 1):
                there = (..., slice(dy, dy + height), slice(dx, dx + width))
                difference = far[there] - guide
                weight = torch.exp(log_spatial[dy, dx] - (difference**2).sum(1, keepdim=True))
                to_image += weight * u_far[there]
                pull = (u * source[there] + u_far[there] * image).sum(1, keepdim=True) - v - v_far[there]
                to_guide += 2 * weight * pull * difference
        return to_image, to_guide, None, None, None


def joint_bilateral(
    image: Tensor, guide: Tensor, half_width: int, sigma_s: float, sigma_r: float, backend: str = "auto"
) -> Tensor:
    """Average ``image`` over a window with weights of distance and of likeness in ``guide``.

    The window of ``2 * half_width + 1`` squared pixels is clipped at the border, not padded. Likeness is
    ``exp(-d / (2 * sigma_r ** 2))`` with ``d`` the squared difference summed over the guide's channels; one weight
    serves all channels of the image.

    Args:
        image: (B, C, H, W), float32 or float64; differentiable once.
        guide: (B, C', H, W), same dtype and device; differentiable once.
        half_width: reach of the window in pixels, at least 0.
        sigma_s: spatial standard deviation in pixels.
        sigma_r: range standard deviation in the guide's units.
        backend: ``reference`` plain and slow, ``eager`` tensor operations a tap, ``compiled`` one loop nest by
            inductor (shapes dynamic: one compilation serves every size), ``triton`` on CUDA, ``auto`` the best there.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: for shapes that do not fit, a half precision, a sigma that is not positive, or an unknown backend.
    """
    check(backend)
    if image.dim() != 4 or guide.dim() != 4 or image.shape[0] != guide.shape[0] or image.shape[2:] != guide.shape[2:]:
        raise ValueError(
            f"image is {tuple(image.shape)} and guide {tuple(guide.shape)}; "
            "both must be (B, C, H, W) and agree in B, H, W"
        )
    if image.dtype not in (torch.float32, torch.float64) or guide.dtype != image.dtype:
        raise ValueError(f"image is {image.dtype} and guide {guide.dtype}; both must be float32 or both float64")
    if half_width < 0 or not sigma_s > 0 or not sigma_r > 0:
        raise ValueError(
            f"half_width is {half_width}, sigma_s {sigma_s}, sigma_r {sigma_r}; "
            "half_width must be at least 0, both sigmas positive"
        )
    log_spatial = _log_spatial(half_width, sigma_s, image)
    scaled = guide / (math.sqrt(2) * sigma_r)
    if backend == "reference" or being_traced():
        return _reference(image, scaled, half_width, log_spatial)[:, :-1]
    if torch.is_grad_enabled() and (image.requires_grad or guide.requires_grad):
        return _JointBilateral.apply(image, scaled, half_width, log_spatial, backend)
    return _forward(image, scaled, half_width, log_spatial, backend)[:, :-1]
