"""How long a run is: its epochs, the optimiser steps in each, and where in the schedule a step stands.

Epochs may differ in length where a method's batch sampler leaves samples out. The learning rate follows the epochs: a
place in the run is counted in steps of epochs as long as the first, so a shorter epoch passes through its share of the
schedule in longer strides. Where all epochs are alike, a place is the number of steps done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from repertory.training.settings import FitSettings

if TYPE_CHECKING:
    from repertory.training.loading import TrainLoader
    from repertory.training.task import Position


class Plan:
    """The length of a run over ``loader``.

    Attributes:
        full: steps of the first epoch, which has all samples.
        images: images one optimiser step puts through forward and backward, over all processes and replicas.
        epochs: epochs of the run; with ``max_images`` the last may be cut.
        horizon: the place at which the run ends.

    Raises:
        ValueError: for ``max_images`` below one step's, or with a sampler that cannot tell the length of its epochs.
    """

    def __init__(self, loader: TrainLoader, settings: FitSettings) -> None:
        first = loader.steps(0)
        self.full = len(first)
        self.images = sum(len(indices) for part in first[0] for indices in part) * settings.world
        self._limit = self._steps_within(settings.max_images) if settings.max_images else None
        lengths = self._planned(loader, settings)
        self.epochs, self._lengths = len(lengths), dict(enumerate(lengths))
        self.horizon = float(self.epochs * self.full)
        if self._limit is not None:
            cut = self._limit - sum(lengths[:-1])
            self.horizon = (self.epochs - 1) * self.full + cut * self.full / lengths[-1]

    def begin(self, epoch: int, length: int) -> None:
        """Take note that ``epoch``, which begins, has ``length`` steps."""
        self._lengths[epoch] = length

    def total(self, position: Position) -> int:
        """Optimiser steps of the whole run, as far as they are known at ``position``.

        From the last epoch on they are; until then an epoch whose length only training will tell counts as full.
        """
        if self._limit is not None:
            return self._limit
        left = (self._lengths[epoch] for epoch in range(position.epoch, self.epochs))
        return position.step - position.step_in_epoch + sum(left)

    def place(self, position: Position) -> float:
        """Where the schedule stands at ``position``, in steps of full epochs."""
        done = position.step_in_epoch
        return position.epoch * self.full + (done * self.full / self._lengths[position.epoch] if done else 0)

    def _steps_within(self, max_images: int) -> int:
        steps = max_images // self.images
        if steps < 1:
            raise ValueError(f"max_images is {max_images}, less than the {self.images} images of one step")
        return steps

    def _planned(self, loader: TrainLoader, settings: FitSettings) -> list[int]:
        """Steps of every epoch: of as many epochs as were asked for, or as it takes to reach the limit."""
        if self._limit is None:
            return [self.full if steps is None else steps for steps in loader.planned(settings.epochs, self.full)]
        epochs = -(-self._limit // self.full)
        while True:
            lengths = [steps for steps in loader.planned(epochs, self.full) if steps is not None]
            if len(lengths) < epochs:
                raise ValueError(
                    f"max_images is {settings.max_images}, but how long an epoch of this sampler will be is known only "
                    "when it begins; give epochs instead"
                )
            if sum(lengths) >= self._limit:
                return lengths
            epochs += 1
