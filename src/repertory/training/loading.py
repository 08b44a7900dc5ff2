"""The training loader: batches as a function of (seed, epoch), from any step of any epoch on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from repertory.training.augmentation import Draw, augmented
from repertory.training.method import Batch, Method
from repertory.training.randomness import generator, replica_seed
from repertory.training.settings import FitSettings


class ShuffledBatches(Sampler[list[int]]):
    """The ordinary batch sampler: an epoch's permutation of ``size`` indices in full global batches, this rank's share.

    Every process cuts the same permutation, so two processes together take the global batches that one would. Indices
    left over at the end wait for another epoch; where there are fewer than a batch, the permutation is repeated.
    """

    def __init__(self, size: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.size, self.batch_size, self.seed, self.rank, self.world = size, batch_size, seed, rank, world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Order the next pass as ``epoch``."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """All that tells this sampler's next pass from another's."""
        return {"seed": self.seed, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take up the pass of ``state``."""
        self.seed, self.epoch = state["seed"], state["epoch"]

    def __len__(self) -> int:
        return max(1, self.size // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(self.size, generator=generator("order", self.seed, self.epoch)).tolist()
        whole = self.batch_size * self.world
        order = (order * (whole // self.size + 1))[: len(self) * whole] if self.size < whole else order
        for batch in range(len(self)):
            first = batch * whole + self.rank * self.batch_size
            yield order[first : first + self.batch_size]


class _Feed(Sampler[list[Draw]]):
    """A batch sampler that a loader keeps while its content changes from epoch to epoch."""

    def __init__(self) -> None:
        self.batches: Sequence[list[Draw]] = ()

    def __iter__(self) -> Iterator[list[Draw]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class TrainLoader:
    """Yields, for each part of each step, one :class:`Batch` a replica; an ``iter`` is the rest of the current epoch.

    ``state_dict`` is the (epoch, step) at which the next pass starts; whoever consumes the batches counts them, since
    loader processes run ahead. ``length`` is the number of steps of the epoch being passed. Batches shorter than the
    epoch's first, and parts that do not fill a step, are left out.
    """

    def __init__(
        self,
        dataset: Any,
        methods: Sequence[Method],
        settings: FitSettings,
        *,
        rank: int = 0,
        replicas: int = 1,
        pin_memory: bool = False,
    ) -> None:
        self.settings, self.replicas = settings, replicas
        self.seeds = [replica_seed(settings.seed, replica) for replica in range(replicas)]
        self.samplers = [_sampler(dataset, methods, settings, seed, rank) for seed in self.seeds]
        self.epoch, self.step, self.length = 0, 0, 0
        self._feed = _Feed()
        self._loader: DataLoader[Any] | None = DataLoader(
            augmented(dataset, settings),
            batch_sampler=self._feed,
            num_workers=settings.workers,
            collate_fn=collate,
            persistent_workers=settings.workers > 0,
            worker_init_fn=_keep_apart,
            pin_memory=pin_memory,
            generator=torch.Generator(),
        )

    def state_dict(self) -> dict[str, int]:
        """Where the next pass starts."""
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next pass at ``state``."""
        self.epoch, self.step = int(state["epoch"]), int(state["step"])

    def close(self) -> None:
        """End the loader processes; the loader gives no more batches."""
        self._loader = None

    def steps(self, epoch: int) -> list[list[list[list[int]]]]:
        """The epoch's indices: steps of parts of replicas of batches."""
        parts = list(zip(*(_full_batches(sampler, epoch) for sampler in self.samplers)))
        self._enough(len(parts), "an epoch")
        accumulate = self.settings.accumulate
        ends = range(accumulate, len(parts) + 1, accumulate)
        return [[list(part) for part in parts[end - accumulate : end]] for end in ends]

    def planned(self, epochs: int, full: int) -> list[int | None]:
        """Steps of each epoch of a run of so many ``epochs``: ``full``, or what a sampler says whose epochs differ.

        None stands where only training will tell. ValueError where an epoch will not have one step.
        """
        varying = [sampler for sampler in self.samplers if hasattr(sampler, "planned_batches")]
        if not varying:
            return [full] * epochs
        for sampler in varying:
            sampler.set_epochs(epochs)
        return [self._planned_steps(varying, epoch) for epoch in range(epochs)]

    def _planned_steps(self, samplers: Sequence[Any], epoch: int) -> int | None:
        batches = [sampler.planned_batches(epoch) for sampler in samplers]
        if None in batches:
            return None
        self._enough(min(batches), f"epoch {epoch}")
        return min(batches) // self.settings.accumulate

    def _enough(self, batches: int, epoch: str) -> None:
        """ValueError where ``batches`` do not make one step."""
        accumulate = self.settings.accumulate
        if batches < accumulate:
            raise ValueError(
                f"accumulate is {accumulate}, but {epoch} has only {batches} batches of "
                f"{self.settings.micro_batch} images a process"
            )

    def __iter__(self) -> Iterator[list[Batch]]:
        if self._loader is None:
            raise RuntimeError("the training loader is closed")
        epoch, first = self.epoch, self.step
        steps = self.steps(epoch)
        self.length = len(steps)
        self._feed.batches = [
            [Draw(seed, epoch, int(index)) for index in indices]
            for step in steps[first:]
            for part in step
            for seed, indices in zip(self.seeds, part)
        ]
        loaded = iter(self._loader)
        for part in zip(*[loaded] * self.replicas):
            yield list(part)
        self.epoch, self.step = epoch + 1, 0


class PassLoader:
    """One whole training pass, the same each time it is iterated: what a method re-estimates statistics on.

    Yields :class:`Batch` on ``device``, augmented and ordered as in ``epoch``, unsharded: every process sees all.
    """

    def __init__(self, dataset: Any, settings: FitSettings, epoch: int, device: torch.device, dtype: torch.dtype):
        self.dataset, self.settings, self.epoch, self.device, self.dtype = dataset, settings, epoch, device, dtype
        share = min(settings.batch_size // settings.accumulate, len(dataset))
        self._sampler = ShuffledBatches(len(dataset), share, settings.seed)

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Batch]:
        self._sampler.set_epoch(self.epoch)
        draws = [[Draw(self.settings.seed, self.epoch, index) for index in batch] for batch in self._sampler]
        loader = DataLoader(
            augmented(self.dataset, self.settings),
            batch_sampler=draws,
            num_workers=self.settings.workers,
            collate_fn=collate,
            worker_init_fn=_keep_apart,
            generator=torch.Generator(),
        )
        for batch in loader:
            yield to_device(batch, self.device, self.dtype)


def collate(samples: Sequence[tuple[Tensor, int | Tensor, int]]) -> Batch:
    """Stack samples (image, label or mask, index) into a :class:`Batch`; images, and masks, must share one size."""
    images, labels, indices = zip(*samples)
    together = torch.stack(labels) if isinstance(labels[0], Tensor) else torch.as_tensor(labels)
    return Batch(torch.stack(images), together, torch.as_tensor(indices))


def to_device(batch: Batch, device: torch.device, dtype: torch.dtype) -> Batch:
    """``batch`` on ``device``, its images as ``dtype``."""
    return Batch(
        batch.images.to(device=device, dtype=dtype, non_blocking=True),
        batch.labels.to(device, non_blocking=True),
        batch.indices.to(device, non_blocking=True),
    )


def _sampler(dataset: Any, methods: Sequence[Method], settings: FitSettings, seed: int, rank: int) -> Any:
    """The batch sampler of the method that has one, or the ordinary one; every method is shown the data set."""
    share = settings.micro_batch
    found = [method.batch_sampler(dataset, share, seed, rank, settings.world) for method in methods]
    return next(
        (sampler for sampler in found if sampler is not None),
        ShuffledBatches(len(dataset), share, seed, rank, settings.world),
    )


def _full_batches(sampler: Any, epoch: int) -> list[list[int]]:
    """The epoch's batches that are as long as its first."""
    sampler.set_epoch(epoch)
    batches = [list(batch) for batch in sampler]
    if not batches:
        raise ValueError(f"{type(sampler).__name__} gave no batch in epoch {epoch}")
    return [batch for batch in batches if len(batch) == len(batches[0])]


def _keep_apart(worker: int) -> None:
    """Leave signals to a group of processes to the training process, which finishes its step with the loader's help."""
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
