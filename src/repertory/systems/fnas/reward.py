"""The reward of a search: accuracy, weighed by cost against a target (Tan et al., arXiv 1807.11626)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from repertory.systems.fnas.cost import Cost
from repertory.systems.fnas.space import Architecture


def weighed_accuracy(accuracy: float, cost: float, target: float, alpha: float = -0.07, beta: float = -0.07) -> float:
    """R = accuracy * (cost / target) ** w, w being ``alpha`` up to the target and ``beta`` above it.

    Args:
        accuracy: in [0, 1].
        cost: latency or multiply-adds of the architecture, above 0.
        target: what it should cost, in the same unit, above 0.
        alpha, beta: (-0.07, -0.07) is MnasNet's soft setting, (0, -1) its hard one.
    """
    if not 0 <= accuracy <= 1:
        raise ValueError(f"accuracy is {accuracy}; it must be 0 to 1")
    for name, value in (("cost", cost), ("target", target)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} is {value}; it must be above 0 and finite")
    return accuracy * (cost / target) ** (alpha if cost <= target else beta)


@dataclass(frozen=True)
class WeighedReward:
    """:func:`weighed_accuracy` of an architecture.

    Args:
        cost: multiply-adds or a latency table.
        target: of that cost.
        alpha, beta: exponents up to the target and above it.
    """

    cost: Cost
    target: float
    alpha: float = -0.07
    beta: float = -0.07

    def __post_init__(self) -> None:
        if not (self.target > 0 and math.isfinite(self.target)):
            raise ValueError(f"target is {self.target}; it must be above 0 and finite")

    def __call__(self, accuracy: float, architecture: Architecture) -> float:
        """The reward of ``architecture`` trained to ``accuracy``."""
        return weighed_accuracy(accuracy, self.cost(architecture), self.target, self.alpha, self.beta)

    @property
    def configuration(self) -> dict[str, Any]:
        """Plain values by which a resumed search knows its reward again."""
        numbers = {name: getattr(self, name) for name in ("target", "alpha", "beta")}
        return {"name": "WeighedReward", "cost": self.cost.configuration, **numbers}


class AccuracyReward:
    """The accuracy itself, whatever the network costs."""

    configuration = {"name": "AccuracyReward"}  # noqa: RUF012 (read only)

    def __call__(self, accuracy: float, architecture: Architecture) -> float:
        """``accuracy``."""
        return accuracy
