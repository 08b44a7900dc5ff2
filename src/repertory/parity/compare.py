"""Summaries of tensors, and when a tensor agrees with the summary that a vector recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

SAMPLES = 32
MOMENTS = ("mean", "std", "norm")


class Mismatch(AssertionError):
    """A tensor that does not agree with what was recorded; ``error`` is its worst relative error."""

    def __init__(self, message: str, error: float = float("inf")) -> None:
        super().__init__(message)
        self.error = error


def summarise(tensor: Tensor) -> dict[str, Any]:
    """Shape, moments (in float64) and up to 32 evenly spaced values of ``tensor``."""
    flat = tensor.detach().cpu().double().flatten()
    index = np.linspace(0, flat.numel() - 1, min(SAMPLES, flat.numel())).astype(int)
    return {
        "shape": list(tensor.shape),
        "mean": flat.mean().item(),
        "std": flat.std(unbiased=False).item(),
        "norm": flat.norm().item(),
        "samples": flat[index].tolist(),
    }


def _distance(a: float, b: float) -> float:
    if a == b:
        return 0.0
    gap = abs(a - b)
    return float("inf") if np.isnan(gap) else gap  # NaN agrees with nothing


def compare(tensor: Tensor, expected: Mapping[str, Any], rtol: float = 1e-4, atol: float = 1e-6) -> float:
    """The worst error of ``tensor`` against the summary ``expected``; raise :class:`Mismatch` above ``rtol``.

    Samples, mean and standard deviation are relative to the spread (the larger of standard deviation and absolute
    mean), the norm to itself. Where the recorded output is all but zero, values must lie within ``atol``. Integer and
    boolean tensors must agree exactly. A scalar may be recorded with shape () or (1,).
    """
    got = summarise(tensor)
    if [n for n in got["shape"] if got["shape"] != [1]] != [n for n in expected["shape"] if expected["shape"] != [1]]:
        raise Mismatch(f"shape {got['shape']}, expected {expected['shape']}")
    samples = max((_distance(a, b) for a, b in zip(got["samples"], expected["samples"], strict=True)), default=0.0)
    gaps = {name: _distance(got[name], expected[name]) for name in MOMENTS}
    if not (tensor.is_floating_point() or tensor.is_complex()):
        if samples > 0 or any(not gaps[name] <= 1e-9 * max(1.0, abs(expected[name])) for name in MOMENTS):
            raise Mismatch(f"whole numbers differ: samples by {samples:g}, moments by {gaps}")
        return 0.0
    spread = max(expected["std"], abs(expected["mean"]))
    if spread < 1e-9:
        worst = max(samples, gaps["mean"], gaps["std"])
        if not worst <= atol:
            raise Mismatch(f"zero was recorded, values differ from it by {worst:.2e} (allowed {atol:.0e})", worst)
        return 0.0
    errors = {
        "samples": samples / spread,
        "mean": gaps["mean"] / spread,
        "std": gaps["std"] / spread,
        "norm": gaps["norm"] / max(expected["norm"], 1e-12),
    }
    worst = max(errors.values())
    if not worst <= rtol:
        detail = ", ".join(f"{name} off by {error:.2e}" for name, error in errors.items())
        raise Mismatch(f"{detail} (allowed {rtol:.0e})", worst)
    return worst
