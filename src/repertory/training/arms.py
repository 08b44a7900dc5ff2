"""One run of an experiment: what every arm of every system does alike around :func:`~repertory.training.engine.fit`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from repertory.training.engine import FitResult, fit, task_of
from repertory.training.method import Method
from repertory.training.reporting import Report
from repertory.training.settings import FitSettings, SegmentationSettings


class Budget(Protocol):
    """How much is trained, and how."""

    @property
    def images(self) -> int:
        """Images through forward and backward."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Plain values."""


class Place(Protocol):
    """Where a run is kept, and to whom it tells how far it has come."""

    @property
    def out(self) -> Path:
        """The run's own folder."""

    @property
    def progress(self) -> Report:
        """Called with (images done, images in all)."""


def fit_arm(
    model: nn.Module,
    data: Any,
    budget: Budget,
    seed: int,
    place: Place,
    methods: Sequence[Method] = (),
    **settings: Any,
) -> FitResult:
    """Train ``model`` on ``data`` for one arm and one seed, on the CPU, going on from a checkpoint where one is.

    Args:
        budget: of its settings those that training knows are taken; others (widths, sides, digits, ...) are the
            experiment's own. Without ``evaluate_every`` the network is judged once, at the end.
        settings: training settings of this arm, which win over those of the budget.

    Raises:
        KeyboardInterrupt: a signal cut the run; it goes on from its checkpoint when it is started again.
    """
    kind = SegmentationSettings if task_of(data) == "segmentation" else FitSettings
    known = {field.name for field in fields(kind)}
    taken: dict[str, Any] = {name: value for name, value in budget.settings.items() if name in known}
    fixed = {"max_images": budget.images, "seed": seed, "accelerator": "cpu", "tensorboard": False}
    chosen = kind(**{"evaluate_every": 0, **taken, **settings, **fixed})
    result = fit(model, data, methods, out=place.out, settings=chosen, resume=True, progress=place.progress)
    if result.interrupted:
        raise KeyboardInterrupt
    return result
