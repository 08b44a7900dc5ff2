"""The figure of a search: best reward so far against real trainings, a line for each ablation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from repertory.files import Replacement

Curve = Sequence[tuple[float, float]]


def at_trainings(curves: Sequence[Curve], trainings: np.ndarray) -> np.ndarray:
    """Best rewards (curves, trainings) at given numbers of real trainings; NaN before a curve's first."""
    rows = np.full((len(curves), len(trainings)), np.nan)
    for row, curve in zip(rows, curves, strict=True):
        counts, rewards = np.array(curve, float).T
        index = np.searchsorted(counts, trainings, side="right") - 1
        row[index >= 0] = rewards[index[index >= 0]]
    return rows


def plot_rewards(searches: Mapping[str, Sequence[Curve]], path: Path | str, title: str = "") -> Path:
    """Draw ``searches`` (label -> a ``SearchResult.curve()`` for each seed) to ``path``, its ending says how.

    The line is the mean over seeds, the band their range; lines differ by dash as well as by colour.
    ValueError where there is no curve.
    """
    from matplotlib.figure import Figure

    path = Path(path)
    if not searches or not all(curves and all(curves) for curves in searches.values()):
        raise ValueError("searches holds a label without a curve; a search that trained nothing has none")
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    dashes = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)))
    for number, (label, curves) in enumerate(searches.items()):
        trainings = np.arange(1, int(min(curve[-1][0] for curve in curves)) + 1)
        rewards = at_trainings(curves, trainings)
        (line,) = axes.plot(trainings, np.nanmean(rewards, 0), linestyle=dashes[number % len(dashes)], label=label)
        if len(curves) > 1:
            low, high = np.nanmin(rewards, 0), np.nanmax(rewards, 0)
            axes.fill_between(trainings, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.set_xlabel("real trainings")
    axes.set_ylabel("best reward so far")
    axes.set_title(title)
    axes.legend()
    with Replacement(path) as partial:
        figure.savefig(partial, format=path.suffix.lstrip(".") or "png", dpi=150)
    return path
