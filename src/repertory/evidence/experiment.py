"""What an experiment declares before any run: arms, primary metric with its direction, budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

FRACTIONS = ("top1", "ece", "miou", "pixel_accuracy", "mean_accuracy")


class Trained(Protocol):
    """What training tells of a run: its figures, curves (name -> [(images processed, value)]) and what it cost."""

    metrics: dict[str, float]
    curves: dict[str, list[tuple[float, float]]]
    images: int
    steps: int


@dataclass(frozen=True)
class Arm:
    """One way of running: ``name`` (identifier), ``label`` (for people), ``settings`` (plain values, recorded)."""

    name: str
    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scale:
    """A budget: ``seeds`` by default, ``images`` through forward and backward per run, other plain ``settings``."""

    seeds: int
    images: int
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PublishedDifference:
    """The paper's difference in the metric's unit; ``setting`` and ``source`` say where and how it was measured."""

    value: float
    unit: str
    setting: str
    source: str


@dataclass
class Context:
    """What a run is given: ``out``, its own folder (a cut run finds its checkpoints there and resumes), ``roots`` of
    data sets the user has (name -> folder), and ``progress(done, total)`` to call in images or other units of work.
    """

    out: Path
    roots: Mapping[str, Path]
    progress: Callable[[int, int], None]


@dataclass
class ArmResult:
    """What one run gave: ``metrics`` (the primary one among them), ``curves`` (name -> [(images processed, value)]),
    ``images`` through forward and backward, optimiser ``steps``, ``settings`` really used, and ``pictures``
    (caption -> (H, W, 3) uint8) where the system makes images.
    """

    metrics: dict[str, float]
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    images: int = 0
    steps: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        trained: Trained,
        used: Mapping[str, Any],
        percent: Sequence[str] = FRACTIONS,
        measured: Mapping[str, float] | None = None,
        pictures: Mapping[str, np.ndarray] | None = None,
    ) -> ArmResult:
        """The result of ``trained`` with settings ``used``: of its metrics those in ``percent``, fractions there and
        per cent here, with whatever else was ``measured``; every curve but the learning rate's.
        """
        metrics = {name: 100 * value for name, value in trained.metrics.items() if name in percent}
        metrics |= measured or {}
        curves = {name: points for name, points in trained.curves.items() if name != "lr"}
        return cls(metrics, curves, trained.images, trained.steps, dict(used), dict(pictures or {}))


@dataclass(frozen=True)
class Experiment:
    """One declared comparison; ``systems/<slug>/experiment.py`` holds one called ``EXPERIMENT``.

    ``method`` against ``baseline`` is the row of the table and they are paired by seed; other arms are reported beside.
    ``run(arm, seed, scale, context)`` does one run. ``probe`` marks data made by the sheet's recipe and not real.
    """

    system: str
    question: str
    metric: str
    unit: str
    higher_is_better: bool
    baseline: str
    method: str
    arms: tuple[Arm, ...]
    scales: Mapping[str, Scale]
    run: Callable[[Arm, int, Scale, Context], ArmResult]
    data: str
    probe: bool = False
    published: PublishedDifference | None = None

    def arm(self, name: str) -> Arm:
        """The arm called ``name``."""
        return next(arm for arm in self.arms if arm.name == name)
