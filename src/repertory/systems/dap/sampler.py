"""Drop-and-pick training as a batch sampler: what it leaves out is neither loaded nor put through the network.

:class:`DropAndPick` holds the scores and decides which samples an epoch has; :class:`DropAndPickBatches` cuts its
batches. Several replicas or processes may each have batches of one decision. The order of an epoch is a function of
(seed, epoch), and with nothing dropped it is that of ordinary training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from repertory.systems.dap.schedule import Cycle
from repertory.systems.dap.selection import Easiness, LowestFraction, kept_of
from repertory.training.difficulty import DifficultyStore
from repertory.training.randomness import generator


class DropAndPick:
    """Which samples every epoch has, by the scores of their last visits.

    Args:
        size: samples of the data set, n.
        cycle: when to drop and when to pick up again.
        rule: which samples are easy; :class:`LowestFraction`, :class:`Confident` or an object of your own.
        epochs: epochs of the run, which the final ones depend on; may be set later, by :attr:`epochs`.
        accumulate: drop from what the epoch before had left, not from all, until the next pick.
        targets: class of each sample (n,), to apply the rule class by class; none given: to all together.

    Raises:
        ValueError: where ``targets`` are not one class number a sample.
    """

    def __init__(
        self,
        size: int,
        cycle: Cycle | None = None,
        rule: Easiness | None = None,
        *,
        epochs: int | None = None,
        accumulate: bool = False,
        targets: Sequence[int] | Tensor | None = None,
    ) -> None:
        self.store = DifficultyStore(size)
        self.cycle, self.rule = cycle or Cycle(), rule or LowestFraction()
        self.epochs, self.accumulate = epochs, accumulate
        self.groups = torch.zeros(size, dtype=torch.int64) if targets is None else torch.as_tensor(targets)
        if self.groups.shape != (size,) or self.groups.is_floating_point() or int(self.groups.min()) < 0:
            raise ValueError(
                f"targets have shape {tuple(self.groups.shape)} and type {self.groups.dtype}; they must be one class "
                f"number for each of {size} samples"
            )
        self._sizes = torch.bincount(self.groups).tolist()
        self.kept = torch.ones(size, dtype=torch.bool)
        self.counts: list[int] = []  # samples kept in every epoch so far

    @property
    def epoch(self) -> int:
        """The epoch that has begun, -1 before the first."""
        return len(self.counts) - 1

    @property
    def realised_cost(self) -> float:
        """Samples kept in the epochs so far, relative to all samples in each; 1 before the first."""
        return sum(self.counts) / (self.store.size * len(self.counts)) if self.counts else 1.0

    def record(self, indices: Tensor, scores: Tensor) -> None:
        """Take note of the cross-entropies ``scores`` (B,) of the samples ``indices`` (B,); costs no wait."""
        self.store.record(indices, scores)

    def begin(self, epoch: int) -> Tensor:
        """Decide which samples ``epoch`` has, and return their indices in ascending order.

        The epoch begun last is not decided again. With several processes all must call this together, since they share
        their scores here. ValueError for an epoch that does not follow: what it has depends on those before.
        """
        if epoch != self.epoch:
            if epoch != self.epoch + 1:
                raise ValueError(f"epoch is {epoch}; after epoch {self.epoch} it must be {self.epoch + 1}")
            if self.counts:
                self.store.collect()
            self.kept = self._choose(epoch)
            self.counts.append(int(self.kept.sum()))
        return self.kept.nonzero().flatten()

    def planned(self, epoch: int) -> int | None:
        """Samples that ``epoch`` will have; None where only training will tell.

        Exact where every sample has been visited by then; one that has not is kept besides.
        """
        if self.cycle.phase(epoch, self.epochs) != "drop":
            return self.store.size
        rounds = self.cycle.drops(epoch) if self.accumulate else 1
        return kept_of(self.rule, self._sizes, rounds)

    def cost(self) -> float | None:
        """Samples that the run will process, relative to as many passes over all; None where only training will tell.

        ValueError where the number of epochs is not known.
        """
        if self.epochs is None:
            raise ValueError("epochs is None; the cost of a run follows from its number of epochs")
        planned = [self.planned(epoch) for epoch in range(self.epochs)]
        if None in planned:
            return None
        return sum(count or 0 for count in planned) / (self.store.size * self.epochs)

    def state_dict(self) -> dict[str, Any]:
        """Scores, kept samples and the counts of all epochs; with several processes all must call it together."""
        return {"store": self.store.state_dict(), "kept": self.kept.clone(), "counts": list(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where ``state`` left off: the epoch it was in keeps its samples."""
        self.store.load_state_dict(state["store"])
        self.kept, self.counts = state["kept"].clone(), [int(count) for count in state["counts"]]

    def _choose(self, epoch: int) -> Tensor:
        """The samples (n,) of ``epoch``: all, or those that are not easy."""
        everything = torch.ones(self.store.size, dtype=torch.bool)
        if self.cycle.phase(epoch, self.epochs) != "drop":
            return everything
        base = (self.kept if self.accumulate else everything).nonzero().flatten()
        scores = self.store.values
        there = base.to(scores.device)
        easy = self.rule.easy(scores[there], self.groups.to(scores.device)[there], epoch).cpu()
        kept = torch.zeros(self.store.size, dtype=torch.bool)
        kept[base[~easy]] = True
        return kept


class DropAndPickBatches(Sampler[list[int]]):
    """Full batches of the samples that a :class:`DropAndPick` keeps, for a ``DataLoader(batch_sampler=…)``.

    An epoch's samples are shuffled and cut into global batches of which each process takes its part; what does not fill
    a global batch waits for another epoch. ``set_epoch`` begins an epoch, in their order.

    Args:
        selection: what decides which samples an epoch has.
        batch_size: samples one process takes a step.
        seed: seed of the order.
        rank: this process.
        world: number of processes.

    Raises:
        ValueError: for a batch size below 1, a rank outside the world, or an epoch that keeps fewer samples than a
            global batch, if that can be known before; otherwise when that epoch begins.
    """

    def __init__(self, selection: DropAndPick, batch_size: int, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        if not 0 <= rank < world:
            raise ValueError(f"rank is {rank}; it must be at least 0 and below world, which is {world}")
        self.selection, self.batch_size, self.seed, self.rank, self.world = selection, batch_size, seed, rank, world
        self._given = self._first = self._epoch = 0
        if selection.epochs is not None:
            self.set_epochs(selection.epochs)

    def set_epochs(self, epochs: int) -> None:
        """Take note that the run has so many ``epochs``."""
        self.selection.epochs = epochs
        for epoch in range(epochs):
            self.planned_batches(epoch)

    def planned_batches(self, epoch: int) -> int | None:
        """Batches that ``epoch`` will have; None where only training will tell."""
        kept = self.selection.planned(epoch)
        return None if kept is None else self._batches(kept, epoch)

    def set_epoch(self, epoch: int) -> None:
        """Begin ``epoch``, from its start unless it is the one just loaded."""
        if epoch != self._epoch:
            self._given = self._first = 0
        self._epoch = epoch
        len(self)

    def state_dict(self) -> dict[str, Any]:
        """Where the pass stands: ``batches`` given so far, under ``seed``, and the state of the selection."""
        return {"seed": self.seed, "batches": self._given, "selection": self.selection.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Start the next pass where ``state`` left off."""
        self.selection.load_state_dict(state["selection"])
        self.seed = int(state["seed"])
        self._given = self._first = int(state["batches"])
        self._epoch = max(0, self.selection.epoch)

    def __len__(self) -> int:
        return self._batches(len(self.selection.begin(self._epoch)), self._epoch)

    def __iter__(self) -> Iterator[list[int]]:
        batches = len(self)
        order = torch.randperm(self.selection.store.size, generator=generator("order", self.seed, self._epoch))
        order = order[self.selection.kept[order]]
        first, self._first = self._first, 0
        whole = self.batch_size * self.world
        for batch in range(first, batches):
            self._given = batch + 1
            start = batch * whole + self.rank * self.batch_size
            yield order[start : start + self.batch_size].tolist()
        self._given = 0

    def _batches(self, kept: int, epoch: int) -> int:
        whole = self.batch_size * self.world
        if kept < whole:
            raise ValueError(
                f"epoch {epoch} keeps {kept} of {self.selection.store.size} samples, fewer than one batch of {whole}: "
                "let it drop fewer, or take a smaller batch_size"
            )
        return kept // whole
