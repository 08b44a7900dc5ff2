"""Knowledge Assimilation Rate, and the periods of training that it tells apart: formation, growth and exploration.

Zhou et al., "Effective Vision Transformer Training: A Data-Centric Perspective", arXiv 2209.15006. The rate is that of
the first author's plotting script; the paper's abstract gives the periods' names only, and where each begins is
inferred.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

DEGREE = 12
Rate = Callable[[Sequence[float], Sequence[float]], np.ndarray]


def assimilation_rate(easy: Sequence[float], hard: Sequence[float], degree: int = DEGREE) -> np.ndarray:
    """How fast the shares of easy and hard samples move at every epoch, (epochs,), in shares an epoch.

    (|d/de fit_easy| + |d/de fit_hard|) / 2, each fit a polynomial of ``degree`` by least squares over all epochs, on an
    abscissa scaled to [-1, 1]: unscaled it would be ill-conditioned. The first and last epochs show the fit's edges.

    ValueError for unequal lengths, or fewer than ``degree + 2`` epochs; :func:`smoothed_rate` takes fewer.
    """
    epochs = _epochs(easy, hard)
    if epochs < degree + 2:
        raise ValueError(
            f"there are {epochs} epochs, but a polynomial of degree {degree} needs at least {degree + 2}; "
            "use smoothed_rate"
        )
    at = np.arange(epochs)
    fits = (np.polynomial.Polynomial.fit(at, np.asarray(shares, float), degree) for shares in (easy, hard))
    return sum((np.abs(fit.deriv()(at)) for fit in fits), np.zeros(epochs)) / 2


def smoothed_rate(easy: Sequence[float], hard: Sequence[float], width: int = 3) -> np.ndarray:
    """As :func:`assimilation_rate`, by central differences of running means over ``width`` epochs: from 2 epochs on."""
    epochs = _epochs(easy, hard)
    if epochs < 2:
        raise ValueError(f"there are {epochs} epochs; a rate needs at least 2")
    window = np.ones(width)
    covered = np.convolve(np.ones(epochs), window)[width // 2 :][:epochs]  # at the ends fewer epochs are averaged
    means = (np.convolve(np.asarray(shares, float), window)[width // 2 :][:epochs] / covered for shares in (easy, hard))
    return sum((np.abs(np.gradient(mean)) for mean in means), np.zeros(epochs)) / 2


@dataclass(frozen=True)
class Periods:
    """The three periods of ``epochs``: formation before ``growth``, growth before ``exploration``; epochs from 0.

    A period that has not begun begins at ``epochs``.
    """

    growth: int
    exploration: int
    epochs: int

    def at(self, epoch: int) -> str:
        """The period that ``epoch`` belongs to."""
        return "formation" if epoch < self.growth else "growth" if epoch < self.exploration else "exploration"


def periods_of(
    easy: Sequence[float], hard: Sequence[float], fraction: float = 0.2, rate: Rate | None = None, fall: float = 0.05
) -> Periods:
    """Where growth and exploration begin, by the shares of easy and hard samples in every epoch so far.

    Inferred: growth begins when the share of hard samples has fallen from its highest by ``fall``; exploration when,
    after its peak, the assimilation rate is below ``fraction`` of that.

    Args:
        easy: share of easy samples in every epoch.
        hard: share of hard samples in every epoch.
        fraction: of the peak, below which growth is over.
        rate: gives the assimilation rate; by default the polynomial, or differences where epochs are too few for it.
        fall: how far the share of hard samples must have fallen, in shares of all samples.
    """
    epochs = _epochs(easy, hard)
    if epochs < 2:
        return Periods(epochs, epochs, epochs)
    rate = rate or (assimilation_rate if epochs >= DEGREE + 2 else smoothed_rate)
    speed = rate(easy, hard)
    highest = np.maximum.accumulate(np.asarray(hard, float))
    growth = _first(highest - np.asarray(hard, float) >= fall)
    peak = growth + int(np.argmax(speed[growth:])) if growth < epochs else epochs
    slow = speed < fraction * speed[peak:].max(initial=0.0)
    slow[: peak + 1] = False
    return Periods(growth, _first(slow), epochs)


def _first(true: np.ndarray) -> int:
    """The first place that is true, or the length where none is."""
    return int(np.argmax(true)) if true.any() else len(true)


def _epochs(easy: Sequence[float], hard: Sequence[float]) -> int:
    if len(easy) != len(hard):
        raise ValueError(f"easy has {len(easy)} epochs and hard {len(hard)}; they must have as many")
    return len(easy)
