"""Paired differences over seeds: interval, adjusted p-value, smallest detectable difference, and the words for it.

Runs of two arms with one seed share data order and initial weights as far as the experiment lets them, so that their
difference is the unit of observation. Differences are always method minus baseline, in the metric's own unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

ALPHA = 0.05
POWER = 0.8
FEWEST_SEEDS = 5

BETTER, NO_DIFFERENCE, WORSE, SMOKE = "better", "no difference shown", "worse", "smoke: not evidence"


@dataclass(frozen=True)
class Paired:
    """Differences (method minus baseline) over ``seeds``: ``mean``, 95% t interval ``lower`` to ``upper``, and ``p``.

    ``p`` is two-sided, ``spread`` the sample standard deviation of the differences. With one pair there is no spread to
    judge by: the interval and ``p`` are None.
    """

    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    mean: float
    spread: float | None
    lower: float | None
    upper: float | None
    p: float | None


def paired(baseline: Mapping[int, float], method: Mapping[int, float]) -> Paired:
    """Compare two arms, each seed -> value, over the seeds that both have.

    ``ValueError`` where no seed is shared or a value is not finite.
    """
    seeds = tuple(sorted(set(baseline) & set(method)))
    if not seeds:
        raise ValueError(
            f"baseline has seeds {sorted(baseline)} and method has seeds {sorted(method)}: pairs need a shared seed"
        )
    differences = np.array([method[s] - baseline[s] for s in seeds], dtype=np.float64)
    if not np.isfinite(differences).all():
        raise ValueError(f"differences {differences.tolist()} must be finite")
    mean, count = float(differences.mean()), len(seeds)
    if count == 1:
        return Paired(seeds, tuple(differences.tolist()), mean, None, None, None, None)
    spread = float(differences.std(ddof=1))
    # Equal differences leave rounding noise in the deviation; it is no spread.
    if spread <= 1e-12 * max(1.0, float(np.abs(differences).max())):
        return Paired(seeds, tuple(differences.tolist()), mean, 0.0, mean, mean, 0.0 if mean else 1.0)
    error = spread / math.sqrt(count)
    reach = float(stats.t.ppf(1 - ALPHA / 2, count - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, count - 1))
    return Paired(seeds, tuple(differences.tolist()), mean, spread, mean - reach, mean + reach, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of a family of p-values, in the order given (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = [0.0] * len(order), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * float(p_values[index])))
        adjusted[index] = largest
    return adjusted


def power(difference: float, spread: float, count: int, alpha: float = ALPHA) -> float:
    """Chance that a two-sided paired t test at level ``alpha`` over ``count`` pairs shows a true ``difference``.

    The chance of showing it with the wrong sign is left out: it is no success.
    """
    return float(stats.nct.sf(stats.t.ppf(1 - alpha / 2, count - 1), count - 1, difference * math.sqrt(count) / spread))


def detectable(spread: float | None, count: int, alpha: float = ALPHA) -> float | None:
    """The smallest true difference that ``count`` pairs with this ``spread`` show with 80% power; None for one pair."""
    if spread is None or count < 2:
        return None
    if spread == 0:
        return 0.0
    upper = 1.0
    while power(upper, 1.0, count, alpha) < POWER:
        upper *= 2
    return spread * float(optimize.brentq(lambda d: power(d, 1.0, count, alpha) - POWER, 0.0, upper, xtol=1e-6))


def verdict(pairs: Paired, adjusted_p: float | None, higher_is_better: bool, scale: str) -> str:
    """The words for a comparison: a smoke run is never evidence, nor are fewer than five seeds."""
    if scale == "smoke":
        return SMOKE
    if len(pairs.seeds) < FEWEST_SEEDS or adjusted_p is None:
        return f"{len(pairs.seeds)} {'seed' if len(pairs.seeds) == 1 else 'seeds'}: not evidence"
    if adjusted_p >= ALPHA:
        return NO_DIFFERENCE
    return BETTER if (pairs.mean > 0) == higher_is_better else WORSE
