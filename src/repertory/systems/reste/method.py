"""ReSTE as a training method: convolutions made binary, and the power of their surrogate gradient scheduled.

Wu et al., ICCV 2023, arXiv 2308.06689. Training only: at inference the layers are signs and scaled convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import nn

from repertory.systems.reste.conversion import binarize
from repertory.systems.reste.estimators import RectifiedSTE, make_estimator
from repertory.systems.reste.indicators import POWER, estimating_error, gradient_instability
from repertory.systems.reste.layers import advance, binary_layers, set_estimator
from repertory.training.method import Method, Progress

SCHEDULES = ("epoch", "step")


class Reste(Method):
    """Binary convolutions trained with a rectified straight-through estimator, or with one it is compared with.

    A network that has binary convolutions keeps them; of any other they are made. Both indicators are taken at the last
    step of each epoch, as the authors take them: ``estimating_error`` and ``gradient_instability`` are recorded by the
    trainer, and all of them stand in ``history``.

    Args:
        estimator: gradient of the signs: reste, ste, identity, polynomial, error_decay or soft_quantization.
        settings: those of the estimator, such as ``{"end": 3.0}`` for the power that the schedule approaches; with
            ``"end"`` null it stays where it is.
        activations: another estimator, with its own defaults, for the signs of the inputs.
        real_activations: leave inputs real: 1-bit weights, 32-bit activations.
        keep: patterns of names of the convolutions that stay real; none given, the authors' choice (the first, and all
            of 1 x 1). Only for a network that has no binary convolution yet.
        schedule: when the schedule moves: at each epoch, as the authors' does, or at each step.

    Raises:
        ValueError: an unknown estimator or schedule, or a setting outside its range.
    """

    name: ClassVar[str] = "reste"
    claims: ClassVar[frozenset[str]] = frozenset({"convolutions"})

    def __init__(
        self,
        estimator: str = "reste",
        settings: dict[str, float | None] | None = None,
        activations: str | None = None,
        real_activations: bool = False,
        keep: Sequence[str] | None = None,
        schedule: Literal["epoch", "step"] = "epoch",
    ) -> None:
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule is {schedule!r}; it must be one of {', '.join(SCHEDULES)}")
        self.estimator = make_estimator(estimator, **(settings or {}))
        self.activations = None if activations is None else make_estimator(activations)
        self.real_activations, self.keep, self.schedule = real_activations, keep, schedule
        self.history: list[dict[str, float]] = []
        self._epoch, self._share = -1, 0.0
        self._stands = False

    def prepare_model(self, model: nn.Module) -> nn.Module:
        """``model`` with the estimator in its binary convolutions, or a binary copy of a real one."""
        if any(True for _ in binary_layers(model)):
            if self.keep is not None:
                raise ValueError(f"keep is {self.keep}, but {type(model).__name__} is binary already")
            set_estimator(model, self.estimator, self.activations)
            for _, layer in binary_layers(model):
                layer.real_activations = layer.real_activations or self.real_activations
            return model
        return binarize(model, self.keep, self.estimator, self.activations, self.real_activations)

    def before_step(self, model: nn.Module, progress: Progress) -> None:
        """Move the estimators along their schedule: to e/E at the first step of epoch e, or to the share of steps."""
        share = min(1.0, progress.step / progress.total)
        if self.schedule == "epoch":  # a step count at the start of epoch e is e/E of all steps
            share = share if progress.epoch != self._epoch else self._share
        if share != self._share or not self._stands:
            advance(model, share)
        self._epoch, self._share, self._stands = progress.epoch, share, True

    def after_step(self, model: nn.Module, progress: Progress) -> None:
        """Take the indicators when an epoch has ended, and at the last step."""
        if progress.epoch > self._epoch or progress.step == progress.total:
            first = model[0] if isinstance(model, nn.ModuleList) else model
            goal = self.estimator.at(1.0)
            power = goal.power if isinstance(goal, RectifiedSTE) else POWER
            self.history.append(
                {
                    "step": float(progress.step),
                    "share": self._share,
                    "estimating_error": estimating_error(first, power),
                    "gradient_instability": gradient_instability(first),
                }
            )

    def figures(self) -> Mapping[str, float]:
        """Both indicators of the epoch that has ended, and how much of the schedule it had."""
        return {name: value for name, value in self.history[-1].items() if name != "step"} if self.history else {}

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands, and the indicators so far."""
        return {"epoch": self._epoch, "share": self._share, "history": [dict(row) for row in self.history]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the schedule; the estimators are set at the next step."""
        self._epoch, self._share, self._stands = state["epoch"], state["share"], False
        self.history = [dict(row) for row in state["history"]]
