"""The cycle of drop-and-pick training and what it costs.

Cheng et al., "Revisiting Pre-training: An Efficient Training Method for Image Classification", arXiv 1811.09347 v1.
Warm-up, then cycles of {pick all samples} and {drop easy samples, train on the rest}, is from the abstract; how long
each is, is inferred, and here an argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Phase = Literal["warm-up", "pick", "drop", "final"]


@dataclass(frozen=True)
class Cycle:
    """Which samples an epoch is for: all of them in ``warm-up``, ``pick`` and ``final``, the hard ones in ``drop``.

    Args:
        warmup: epochs on all samples before the first cycle, at least 1: without them there are no scores.
        period: epochs of a cycle, the first of which picks all samples up; none given: they are never picked again
            after the first cycle has begun.
        final: last epochs of the run, again on all samples, so that batch norm ends on the statistics of all.

    Raises:
        ValueError: naming the argument that is below its least value.
    """

    warmup: int = 5
    period: int | None = 3
    final: int = 1

    def __post_init__(self) -> None:
        for name, value, least in (("warmup", self.warmup, 1), ("period", self.period, 1), ("final", self.final, 0)):
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")

    def phase(self, epoch: int, epochs: int | None = None) -> Phase:
        """What ``epoch``, counted from 0, is for in a run of ``epochs`` (without a known end there is no final)."""
        if epoch < self.warmup:
            return "warm-up"
        if epochs is not None and epoch >= epochs - self.final:
            return "final"
        return "drop" if self.drops(epoch) else "pick"

    def drops(self, epoch: int) -> int:
        """Epochs since all samples were picked up, at an ``epoch`` after warm-up."""
        since = epoch - self.warmup
        return since if self.period is None else since % self.period


def expected_cost(epochs: int, cycle: Cycle | None = None, fraction: float = 0.4, accumulate: bool = False) -> float:
    """Samples processed, forward and backward, relative to ``epochs`` passes over all of them.

    Each drop epoch leaves the share 1 - ``fraction``; with ``accumulate`` it leaves that of what the one before left.
    Where whole cycles fit, this is [E_w + E_f + (E - E_w - E_f) (1 + (P - 1) (1 - q)) / P] / E without accumulation.
    """
    cycle = cycle or Cycle()
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}; it must be at least 1")
    shares = []
    for epoch in range(epochs):
        drop = cycle.phase(epoch, epochs) == "drop"
        shares.append((1 - fraction) ** (cycle.drops(epoch) if accumulate else 1) if drop else 1.0)
    return sum(shares) / epochs
