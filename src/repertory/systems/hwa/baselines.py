"""What HWA is compared with: SWA and an exponential moving average, both PyTorch's own, as training methods.

The experiment's baselines, not methods of the catalogue; their batch norm is re-estimated exactly as HWA's is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from repertory.systems.hwa.window import recalibrate
from repertory.training.method import Batch, Method, Progress


class AveragedWeights(Method):
    """The weights of a run averaged by :class:`torch.optim.swa_utils.AveragedModel`.

    Args:
        start: share of the run after which averaging begins, 0 to below 1.
        period: steps between two weights that are taken in, at least 1.
        decay: None for the uniform mean (SWA), or the decay of an exponential moving average, 0 to below 1.
    """

    name: ClassVar[str] = "averaged_weights"
    claims: ClassVar[frozenset[str]] = frozenset({"weights"})

    def __init__(self, start: float = 0.75, period: int = 1, decay: float | None = None) -> None:
        if not 0 <= start < 1:
            raise ValueError(f"start is {start}; it must be at least 0 and below 1")
        if period < 1:
            raise ValueError(f"period is {period}; it must be at least 1")
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it must be at least 0 and below 1")
        self.start, self.period, self.decay = start, period, decay
        self._average: AveragedModel | None = None
        self._saved: Mapping[str, Any] = {}

    def before_step(self, model: nn.Module, progress: Progress) -> None:
        """Begin the average before step 0."""
        if progress.step == 0 or self._average is None:
            self._average = self._begin(model)

    def after_step(self, model: nn.Module, progress: Progress) -> None:
        """Take the weights in where they are due."""
        assert self._average is not None, "before_step comes first"
        if progress.step > self.start * progress.total and progress.step % self.period == 0:
            self._average.update_parameters(model)

    def evaluation_model(self, model: nn.Module, train_loader: Iterable[Batch]) -> nn.Module:
        """The average with its own batch norm statistics; ``model`` while nothing was averaged."""
        average = self._average if self._average is not None else self._begin(model)
        if not int(average.n_averaged):
            return model
        return recalibrate(copy.deepcopy(average.module).train(), (batch.images for batch in train_loader))

    def state_dict(self) -> dict[str, Any]:
        """The average and how many weights are in it."""
        return dict(self._saved) if self._average is None else self._average.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved average as soon as the model is seen."""
        self._average, self._saved = None, state

    def _begin(self, model: nn.Module) -> AveragedModel:
        update = None if self.decay is None else get_ema_multi_avg_fn(self.decay)
        average = AveragedModel(model, multi_avg_fn=update)
        if self._saved:
            average.load_state_dict(self._saved)
            self._saved = {}
        return average
