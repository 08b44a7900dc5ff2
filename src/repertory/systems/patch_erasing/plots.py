"""The shares of easy, moderate and hard samples over a run, how fast they move, and the three periods of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from repertory.systems.patch_erasing.periods import DEGREE, assimilation_rate, periods_of, smoothed_rate
from repertory.systems.patch_erasing.proportion import GROUPS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLORS = {"easy": "#009e73", "moderate": "#e69f00", "hard": "#d55e00"}  # after Okabe and Ito
_STYLES = {"easy": "-", "moderate": "--", "hard": "-."}


def plot_periods(history: Sequence[Mapping[str, float]]) -> Figure:
    """Two axes over the epochs of ``history``: the shares of samples, and the assimilation rate; periods are named.

    ``history`` has one mapping an epoch with ``easy``, ``moderate`` and ``hard``, as :class:`PatchErasing` records it.
    The rate is that of the polynomial fit, or of smoothed differences where epochs are too few for it. ValueError for
    fewer than two epochs.
    """
    from matplotlib.figure import Figure

    easy, hard = ([epoch[name] for epoch in history] for name in ("easy", "hard"))
    speed = (assimilation_rate if len(history) >= DEGREE + 2 else smoothed_rate)(easy, hard)
    periods, epochs = periods_of(easy, hard), np.arange(1, len(history) + 1)
    figure = Figure(figsize=(7, 5), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True)
    for name in GROUPS:
        shares = [100 * epoch[name] for epoch in history]
        top.plot(epochs, shares, _STYLES[name], color=_COLORS[name], label=name)
    top.set(ylabel="samples (%)", ylim=(0, 100))
    top.legend(loc="upper right")
    bottom.plot(epochs, 100 * speed, color="#0072b2")
    bottom.set(xlabel="epoch", ylabel="assimilation rate\n(points an epoch)", xlim=(0.5, len(history) + 0.5))
    bottom.set_ylim(bottom=0)
    edges = [0, periods.growth, periods.exploration, periods.epochs]
    for name, start, stop in zip(("formation", "growth", "exploration"), edges, edges[1:]):
        if stop > start:
            top.text((start + stop + 1) / 2, 102, name, ha="center", va="bottom", size="small")
            for axes in (top, bottom):
                axes.axvline(start + 0.5, color="0.6", linewidth=0.8)
    return figure
