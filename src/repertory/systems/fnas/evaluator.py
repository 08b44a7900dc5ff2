"""The proxy training of one candidate: a few epochs on part of the training set, judged on the rest of it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from repertory.errors import NonFiniteError
from repertory.systems.fnas.trials import Outcome, Trial
from repertory.training.engine import fit
from repertory.training.settings import FitSettings


class Part:
    """Some samples of ``dataset`` (items (image, label, index), ``targets``), counted anew from 0."""

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self.dataset, self.indices = dataset, [int(index) for index in indices]
        self.targets = [int(dataset.targets[index]) for index in self.indices]
        self.classes, self.preprocessing = dataset.classes, getattr(dataset, "preprocessing", None)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        image, label, _ = self.dataset[self.indices[index]]
        return image, label, index

    def raw(self, index: int) -> Tensor:
        """The picture as it is stored."""
        return self.dataset.raw(self.indices[index])


@dataclass(frozen=True)
class ProxyData:
    """A data set for the proxy trainings of a search."""

    name: str
    train: Any
    val: Any
    classes: tuple[str, ...]
    task: str = "classification"


def proxy_split(data: Any, held_out: float = 0.1, seed: int = 0) -> ProxyData:
    """The training part of ``data``, ``held_out`` of each class to validate on; its validation part is left alone.

    A search chooses by what it validates on, so the real validation pictures must stay unseen.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is {held_out}; it must be above 0 and below 1")
    targets = np.asarray(data.train.targets)
    held = np.zeros(len(targets), bool)
    for label in np.unique(targets):
        members = np.flatnonzero(targets == label)
        if len(members) < 2:
            raise ValueError(
                f"class {label} of {data.name} has one training image; holding some out takes at least two"
            )
        count = min(max(1, round(held_out * len(members))), len(members) - 1)
        held[np.random.default_rng([seed, int(label)]).permutation(members)[:count]] = True
    train, val = (Part(data.train, np.flatnonzero(chosen).tolist()) for chosen in (~held, held))
    return ProxyData(data.name, train, val, tuple(data.classes))


class TrainedAccuracy:
    """``evaluate`` of a search: trains each candidate with :func:`repertory.training.fit`.

    A training that stops being finite counts as accuracy 0, and leaves no weights behind.

    Args:
        data: as ``fit`` takes it; only its training part is used, see :func:`proxy_split`.
        settings: of every training; ``seed`` becomes the trial's own.
        held_out: share of each class that accuracy is measured on.
        drop_rate: dropout before the classifier.
        keep: folder in which the runs stay, one a trial; by default nothing stays.
    """

    def __init__(
        self,
        data: Any,
        settings: FitSettings | None = None,
        *,
        held_out: float = 0.1,
        drop_rate: float = 0.0,
        keep: Path | str | None = None,
    ) -> None:
        settings = settings or FitSettings(epochs=5)
        self.settings = replace(settings, evaluate_every=0, tensorboard=False, checkpoint_seconds=1e9)
        self.data, self.held_out, self.drop_rate = proxy_split(data, held_out), held_out, drop_rate
        self.keep = Path(keep) if keep is not None else None

    @property
    def configuration(self) -> dict[str, Any]:
        """Plain values by which a resumed search knows its evaluation again."""
        own = {"data": self.data.name, "held_out": self.held_out, "drop_rate": self.drop_rate}
        return {"name": "TrainedAccuracy", **own, "settings": asdict(self.settings)}

    def __call__(self, trial: Trial) -> Outcome:
        """Train and judge the network of ``trial``."""
        if self.keep is not None:
            return self._train(trial, self.keep / f"{trial.number:05d}")
        with tempfile.TemporaryDirectory(prefix="repertory-trial-") as folder:
            return self._train(trial, Path(folder))

    def _train(self, trial: Trial, out: Path) -> Outcome:
        model = trial.build(self.drop_rate)
        settings = replace(self.settings, seed=trial.seed)
        try:
            result = fit(model, self.data, out=out, settings=settings, progress=False)
        except NonFiniteError:
            return Outcome(0.0)
        if result.interrupted:
            raise KeyboardInterrupt
        weights = {name: tensor.cpu() for name, tensor in result.model.state_dict().items()}
        return Outcome(result.metrics["top1"], weights, result.images, result.steps)
