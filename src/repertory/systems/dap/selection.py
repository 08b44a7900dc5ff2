"""Which samples are easy: the rules by which a drop epoch of drop-and-pick training leaves samples out.

The paper's text was not available: both rules are inferred, and any object with the two methods of :class:`Easiness`
may stand in for them. A score is the cross-entropy of a sample's label at its last visit, in training mode and on the
augmented view, so no pass is spent on measuring; a sample never visited has an infinite score and is never easy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor


class Easiness(Protocol):
    """A rule that says which samples are easy."""

    def easy(self, scores: Tensor, groups: Tensor, epoch: int) -> Tensor:
        """Which of m samples to leave out in ``epoch``, (m,), by their ``scores`` (m,) and ``groups`` (m,).

        Samples come in the order of their indices; groups are classes, or all zero where these do not count.
        """
        ...

    def dropped(self, size: int) -> int | None:
        """How many of a group of ``size`` scored samples are left out; None where only the scores will tell."""
        ...


class LowestFraction:
    """The share ``fraction`` of each group with the lowest scores, to the sample; of equal ones the lowest indices.

    Inferred: the score below the ``fraction``-quantile. ValueError for a fraction outside [0, 1).
    """

    def __init__(self, fraction: float = 0.4) -> None:
        if not 0 <= fraction < 1:
            raise ValueError(f"fraction is {fraction}; it must be at least 0 and below 1: at 1 all samples are dropped")
        self.fraction = fraction

    def easy(self, scores: Tensor, groups: Tensor, epoch: int) -> Tensor:
        """The lowest of each group; never a sample without a score, even if that leaves too many."""
        return lowest(scores, groups, self.dropped) & scores.isfinite()

    def dropped(self, size: int) -> int:
        """``fraction`` of ``size``, rounded to the nearest whole number."""
        return round(self.fraction * size)


class Confident:
    """Samples whose label has a probability above ``threshold``.

    Inferred: predicted correctly and p(y) > theta. From a threshold of one half on the second implies the first, so
    ValueError for a threshold outside [0.5, 1).
    """

    def __init__(self, threshold: float = 0.9) -> None:
        if not 0.5 <= threshold < 1:
            raise ValueError(
                f"threshold is {threshold}; it must be at least 0.5, so that only correct ones pass, below 1"
            )
        self.threshold = threshold

    def easy(self, scores: Tensor, groups: Tensor, epoch: int) -> Tensor:
        """Those with a cross-entropy below that of the threshold."""
        return scores < -math.log(self.threshold)

    def dropped(self, size: int) -> None:
        """Nobody knows."""
        return None


def lowest(scores: Tensor, groups: Tensor, count: Callable[[int], int]) -> Tensor:
    """Which samples (m,) are among the ``count(size)`` lowest of their group, ties going to the lower index first."""
    order = scores.argsort(stable=True)
    order = order[groups[order].argsort(stable=True)]  # by group, in a group by score, then by index
    sizes = torch.bincount(groups)
    starts = sizes.cumsum(0) - sizes
    leave = torch.tensor([count(size) for size in sizes.tolist()], device=scores.device)
    place = torch.arange(len(scores), device=scores.device) - starts[groups[order]]
    chosen = torch.empty(len(scores), dtype=torch.bool, device=scores.device)
    chosen[order] = place < leave[groups[order]]
    return chosen


def kept_of(rule: Easiness, sizes: Sequence[int], rounds: int) -> int | None:
    """Samples left of groups of these ``sizes`` after ``rounds`` of dropping, each from what the one before left."""
    left = list(sizes)
    for _ in range(rounds):
        dropped = [rule.dropped(size) for size in left]
        if None in dropped:
            return None
        left = [size - (count or 0) for size, count in zip(left, dropped)]
    return sum(left)
