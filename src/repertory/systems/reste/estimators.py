"""Sign with a surrogate gradient: ReSTE, and the estimators that it is compared with, behind one argument.

Wu et al., "Estimator Meets Equilibrium Perspective: A Rectified Straight Through Estimator for Binary Neural Networks
Training", ICCV 2023, arXiv 2308.06689. The forward pass is always ``sign`` (with sign(0) = 0); an estimator says what
takes the place of its derivative, which is zero almost everywhere. ReSTE takes that of the odd power function
f_o(x) = sign(x) |x|^(1/o): the straight-through estimator at o = 1, ever closer to sign as o grows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from repertory.errors import unknown_name
from repertory.ops.backend import being_traced, compiled, compiler_found

BACKENDS = ("auto", "eager", "compiled")
_REPAYS = 2**18  # elements from which one compiled loop beats a chain of operations


def binary_sign(x: Tensor, estimator: Estimator, backend: str = "auto") -> Tensor:
    """sign(``x``), with the gradient of ``estimator``: grad_x = derivative(x) * grad_out.

    Args:
        x: floating point, of any shape.
        estimator: what stands in for the derivative.
        backend: path of the backward pass, ``eager`` or ``compiled`` (one loop); ``auto`` compiles where there is a
            compiler and ``x`` is large.

    Returns:
        -1, 0 or 1 in the shape and dtype of ``x``. The derivative is computed in float32 where ``x`` is narrower.

    Raises:
        TypeError: ``x`` is not floating point.
        ValueError: another ``backend``.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; it must be one of {', '.join(BACKENDS)}")
    if not x.is_floating_point():
        raise TypeError(f"x is {x.dtype}; it must be floating point")
    result: Tensor = _Sign.apply(x, type(estimator), backend, *estimator.constants)
    return result


@dataclass(frozen=True)
class Estimator:
    """What stands in for the derivative of sign; a value, so that it can be shared, compared and written down.

    A subclass gives ``formula`` and, where it has settings, ``_numbers``; where it changes during training, ``at``.
    """

    name: ClassVar[str]
    source: ClassVar[str]

    def __post_init__(self) -> None:
        # Tensors and not numbers, lest a compiled network be compiled anew each time a schedule moves one of them.
        numbers = tuple(torch.tensor(number, dtype=torch.float64, device="cpu") for number in self._numbers())
        object.__setattr__(self, "constants", numbers)

    constants: ClassVar[tuple[Tensor, ...]] = ()

    def _numbers(self) -> tuple[float, ...]:
        """The numbers that ``formula`` takes."""
        return ()

    @staticmethod
    def formula(x: Tensor, *constants: Tensor) -> Tensor:
        """The surrogate derivative at ``x`` (float32 or float64), elementwise, from 0-d ``constants``."""
        raise TypeError("an estimator must say what its derivative is")

    def derivative(self, x: Tensor) -> Tensor:
        """The surrogate derivative at ``x``, elementwise, in float32 at least."""
        return type(self).formula(x.to(torch.promote_types(x.dtype, torch.float32)), *self.constants)

    def at(self, share: float) -> Self:
        """The estimator when ``share`` of training, 0 to 1, is done; itself where it has no schedule."""
        return self


class _Sign(torch.autograd.Function):
    """Sign forward; backward the incoming gradient times the surrogate derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, kind: type[Estimator], backend: str, *constants: Tensor) -> Tensor:
        return torch.sign(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.kind, ctx.backend, *constants = inputs
        ctx.save_for_backward(x, *constants)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, *constants = ctx.saved_tensors
        return _gradient(ctx.kind, ctx.backend, x, grads[0], constants), None, None, *(None for _ in constants)


def _gradient(kind: type[Estimator], backend: str, x: Tensor, grad: Tensor, constants: Sequence[Tensor]) -> Tensor:
    """The derivative times ``grad`` in the dtype of ``x``, computed in float32 at least."""
    with torch.autocast(x.device.type, enabled=False):
        wide = torch.promote_types(x.dtype, torch.float32)
        repays = x.numel() >= _REPAYS and compiler_found() and not being_traced()
        fused = backend == "compiled" or (backend == "auto" and repays)
        values, grads = x.to(wide), grad.to(wide)
        if not fused:
            return _product(kind, values, grads, *constants).to(x.dtype)
        product = _fused(kind)  # type: ignore[arg-type]  # classes are hashable
        if values.is_contiguous() and grads.is_contiguous():  # one kernel for tensors of all shapes
            return product(values.flatten(), grads.flatten(), *constants).view_as(x).to(x.dtype)
        return product(values, grads, *constants).to(x.dtype)


def _product(kind: type[Estimator], x: Tensor, grad: Tensor, *constants: Tensor) -> Tensor:
    return kind.formula(x, *constants) * grad


@cache
def _fused(kind: type[Estimator]) -> Callable[..., Tensor]:
    """The product with the formula of one kind of estimator, compiled for any shape."""

    def product(x: Tensor, grad: Tensor, *constants: Tensor) -> Tensor:
        return _product(kind, x, grad, *constants)

    return compiled(product, dynamic=True)


@dataclass(frozen=True)
class RectifiedSTE(Estimator):
    """The rectified straight-through estimator: the derivative of sign(x) |x|^(1/o), clipped and flat about zero.

    It is 0 where |x| > t, (1/o) |x|^((1-o)/o) down to m, and m^(1/o) / m, the slope of the secant through the origin,
    where |x| <= m; both boundaries belong to the inner region. The flat value is larger than the power law beside it.

    Args:
        power: o, at least 1; the schedule's present value.
        clip: t, beyond which there is no gradient, above ``flat``.
        flat: m, above 0.
        end: o_end, which the schedule approaches; None keeps ``power`` as it is.

    Raises:
        ValueError: for a setting outside its range, naming it.
    """

    name: ClassVar[str] = "reste"
    source: ClassVar[str] = "Wu et al., ICCV 2023, arXiv 2308.06689; the authors' code"

    power: float = 1.0
    clip: float = 1.5
    flat: float = 0.1
    end: float | None = 3.0

    def __post_init__(self) -> None:
        for argument, value in (("power", self.power), ("end", self.end)):
            if value is not None and not 1 <= value < math.inf:
                raise ValueError(f"{argument} is {value}; it must be finite and at least 1")
        if not self.flat > 0:
            raise ValueError(f"flat is {self.flat}; it must be above 0")
        if not self.clip > self.flat:
            raise ValueError(f"clip is {self.clip}; it must be above flat, which is {self.flat}")
        super().__post_init__()

    def at(self, share: float) -> Self:
        """o = 1 + (1 - cos(pi/2 share)) (o_end - 1) when ``share`` = e/E of the epochs is done."""
        _check_share(share)
        if self.end is None:
            return self
        return replace(self, power=1 + (1 - math.cos(math.pi / 2 * share)) * (self.end - 1))

    def _numbers(self) -> tuple[float, ...]:
        flat_value = self.flat ** (1 / self.power) / self.flat
        return 1 / self.power, (1 - self.power) / self.power, flat_value, self.flat, self.clip

    @staticmethod
    def formula(x: Tensor, *constants: Tensor) -> Tensor:
        """One expression without masks; the power is exp((1-o)/o log |x|), which the flat zone keeps from 0."""
        slope, exponent, flat_value, flat, clip = constants
        size = x.abs()
        inner = torch.exp(exponent * torch.log(torch.maximum(size, flat))) * slope
        return torch.where(size <= clip, torch.where(size <= flat, flat_value, inner), 0.0)


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; it must be 0 to 1")


def power_function(x: Tensor, power: float) -> Tensor:
    """f_o(``x``) = sign(x) |x|^(1/o), what ReSTE's derivative belongs to; never evaluated in training."""
    if not 1 <= power < math.inf:
        raise ValueError(f"power is {power}; it must be finite and at least 1")
    return x.sign() * x.abs().pow(1 / power)


@dataclass(frozen=True)
class StraightThrough(Estimator):
    """The clipped straight-through estimator: 1 where |x| <= ``clip``, else 0.

    Hubara et al., "Binarized Neural Networks", NeurIPS 2016, arXiv 1602.02830 (recalled). It is also the rule that the
    authors of ReSTE meant for their baseline (their code fails in its backward pass).

    Args:
        clip: above 0.
    """

    name: ClassVar[str] = "ste"
    source: ClassVar[str] = "Hubara et al., 2016, arXiv 1602.02830 (recalled); the intended rule of ReSTE's code"

    clip: float = 1.0

    def __post_init__(self) -> None:
        if not self.clip > 0:
            raise ValueError(f"clip is {self.clip}; it must be above 0")
        super().__post_init__()

    def _numbers(self) -> tuple[float, ...]:
        return (self.clip,)

    @staticmethod
    def formula(x: Tensor, *constants: Tensor) -> Tensor:
        """1 within the clip, else 0."""
        return (x.abs() <= constants[0]).to(x.dtype)


@dataclass(frozen=True)
class Identity(Estimator):
    """The straight-through estimator without clipping: 1 everywhere.

    Bengio et al., 2013, arXiv 1308.3432; DoReFa-Net takes it for 1-bit weights (Zhou et al., 2016, arXiv 1606.06160).
    Both recalled.
    """

    name: ClassVar[str] = "identity"
    source: ClassVar[str] = "Bengio et al., 2013, arXiv 1308.3432; DoReFa-Net's weights, arXiv 1606.06160 (recalled)"

    @staticmethod
    def formula(x: Tensor, *constants: Tensor) -> Tensor:
        """1 everywhere."""
        return torch.ones_like(x)


@dataclass(frozen=True)
class Polynomial(Estimator):
    """Bi-Real Net's piecewise polynomial, whose derivative is a triangle: 2 - 2|x| where |x| < 1, else 0.

    Liu et al., "Bi-Real Net", ECCV 2018, arXiv 1808.00278 (recalled). Meant for activations.
    """

    name: ClassVar[str] = "polynomial"
    source: ClassVar[str] = "Liu et al., ECCV 2018, arXiv 1808.00278 (recalled)"

    @staticmethod
    def formula(x: Tensor, *constants: Tensor) -> Tensor:
        """2 - 2|x|, not below 0."""
        return (2 - 2 * x.abs()).clamp(min=0)


@dataclass(frozen=True)
class ErrorDecay(Estimator):
    """IR-Net's error decay estimator: the derivative of k tanh(s x), k = max(1/s, 1), with s rising from 0.1 to 10.

    Qin et al., "Forward and Backward Information Retention", CVPR 2020, arXiv 1909.10788 (recalled). The slope rises
    geometrically with the share of training done.

    Args:
        slope: s, above 0; the schedule's present value.
        start, end: what it rises from and to; ``end`` none keeps ``slope`` as it is.
    """

    name: ClassVar[str] = "error_decay"
    source: ClassVar[str] = "Qin et al., CVPR 2020, arXiv 1909.10788 (recalled)"

    slope: float = 0.1
    start: float = 0.1
    end: float | None = 10.0

    def __post_init__(self) -> None:
        for argument, value in (("slope", self.slope), ("start", self.start), ("end", self.end)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{argument} is {value}; it must be finite and above 0")
        super().__post_init__()

    def at(self, share: float) -> Self:
        """s = start (end / start)^share."""
        _check_share(share)
        return self if self.end is None else replace(self, slope=self.start * (self.end / self.start) ** share)

    def _numbers(self) -> tuple[float, ...]:
        return self.slope, max(1.0, self.slope)  # k s = max(1, s)

    @staticmethod
    def formula(x: Tensor, *constants: Tensor) -> Tensor:
        """k s (1 - tanh(s x)^2)."""
        slope, height = constants
        return height * (1 - torch.tanh(slope * x) ** 2)


@dataclass(frozen=True)
class SoftQuantization(Estimator):
    """Differentiable soft quantisation at one bit: the derivative of tanh(k x) / tanh(k) on [-1, 1], else 0.

    Gong et al., "Differentiable Soft Quantization", ICCV 2019, arXiv 1908.05033 (recalled); k = log(2 / alpha - 1) / 2.
    There alpha is learnt; here it is given.

    Args:
        alpha: how far the curve is from the step, above 0 and below 1; smaller is steeper.
    """

    name: ClassVar[str] = "soft_quantization"
    source: ClassVar[str] = "Gong et al., ICCV 2019, arXiv 1908.05033 (recalled; alpha given, not learnt)"

    alpha: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha is {self.alpha}; it must be above 0 and below 1")
        super().__post_init__()

    def _numbers(self) -> tuple[float, ...]:
        steepness = math.log(2 / self.alpha - 1) / 2
        return steepness, steepness / math.tanh(steepness)

    @staticmethod
    def formula(x: Tensor, *constants: Tensor) -> Tensor:
        """k (1 - tanh(k x)^2) / tanh(k) within [-1, 1]."""
        steepness, height = constants
        return torch.where(x.abs() <= 1, height * (1 - torch.tanh(steepness * x) ** 2), 0.0)


ESTIMATORS: Mapping[str, type[Estimator]] = {
    kind.name: kind for kind in (RectifiedSTE, StraightThrough, Identity, Polynomial, ErrorDecay, SoftQuantization)
}


def make_estimator(estimator: str | Estimator, **settings: Any) -> Estimator:
    """``estimator`` itself, or the one of that name with ``settings``; ValueError for an unknown name."""
    if isinstance(estimator, Estimator):
        return replace(estimator, **settings)
    if estimator not in ESTIMATORS:
        raise unknown_name("estimator", estimator, ESTIMATORS)
    return ESTIMATORS[estimator](**settings)
