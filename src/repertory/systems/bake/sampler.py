"""The class-pair batch sampler of BAKE: every anchor comes with M further images of its class.

An epoch shows each image once as an anchor and (M + 1) n images in all, in a stream of groups: an anchor, then its
partners. Global batches are cut from that stream, and each process takes its part of them, so that any number of
processes sees the batches that one would. The order is a function of (seed, epoch) alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from repertory.training.randomness import generator

ORDERS = ("anchors_first", "grouped")


class ClassIndex:
    """Where the images of each class are: built once in O(n log n), answers for all images at once.

    Args:
        targets: the class of each image, (n,) whole numbers.
    """

    def __init__(self, targets: Sequence[int] | np.ndarray | Tensor) -> None:
        labels = np.asarray(targets)
        if labels.ndim != 1 or not len(labels) or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"targets have shape {labels.shape} and type {labels.dtype}; they must be one class number an image"
            )
        self.by_class = np.argsort(labels, kind="stable")
        _, group, counts = np.unique(labels, return_inverse=True, return_counts=True)
        starts = np.cumsum(counts) - counts
        self.start = starts[group]  # of an image's class in by_class
        self.peers = counts[group] - 1  # other images of its class
        place = np.empty(len(labels), dtype=np.int64)
        place[self.by_class] = np.arange(len(labels))
        self.place = place - self.start  # of an image within its class

    def partners(self, anchors: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """(K, M) partners of ``anchors`` (K,), by ``uniform`` draws (K, M) in [0, 1); -1 where there are no peers.

        Never the anchor itself; without replacement, or with it where a class has fewer than M other images.
        """
        peers, count = self.peers[anchors], uniform.shape[1]
        scarce = peers < count
        chosen = np.empty(uniform.shape, dtype=np.int64)
        for column in range(count):
            left = np.where(scarce, peers, peers - column)
            position = np.minimum((uniform[:, column] * left).astype(np.int64), np.maximum(left - 1, 0))
            for taken in np.sort(chosen[:, :column], axis=1).T:  # step over what was drawn before, in ascending order
                position += ~scarce & (position >= taken)
            chosen[:, column] = position
        chosen += chosen >= self.place[anchors][:, None]  # step over the anchor
        members = np.minimum(self.start[anchors][:, None] + chosen, len(self.by_class) - 1)
        return np.where(peers[:, None] > 0, self.by_class[members], -1)


class ClassPairBatchSampler(Sampler[list[int]]):
    """Batches of anchors and their partners, for a ``DataLoader(batch_sampler=…)``.

    An image that is alone in its class comes without partners, and the next groups move up. The last batch may be
    smaller; with several processes it is filled up from the beginning of the epoch to equal parts.

    Args:
        targets: the class of each image, (n,) whole numbers.
        batch_size: images one process takes a step, partners included: a multiple of ``partners + 1``, at least 2.
        partners: M, further images of its class with every anchor; 0 gives plain shuffled batches.
        seed: seed of the order.
        rank: this process.
        world: number of processes.
        order: ``anchors_first`` (all anchors of a batch, then their partners, anchor by anchor, as in the authors'
            small-scale code) or ``grouped`` (each anchor followed by its partners, as in their ImageNet code); no loss
            can tell them apart.

    Raises:
        ValueError: for a batch size that groups do not fill, an unknown order, or a rank outside the world.
    """

    def __init__(
        self,
        targets: Sequence[int] | np.ndarray | Tensor,
        batch_size: int,
        partners: int = 1,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        order: str = "anchors_first",
    ) -> None:
        if partners < 0:
            raise ValueError(f"partners is {partners}; it must be at least 0")
        group = partners + 1
        if batch_size < 2 or batch_size % group:
            near = max(batch_size // group, 1) * group
            near = near if near > 1 else 2
            raise ValueError(
                f"batch_size is {batch_size} images a process; with partners {partners} it must be a multiple of "
                f"{group} and at least 2, such as {near} or {near + group}"
            )
        if not 0 <= rank < world:
            raise ValueError(f"rank is {rank}; it must be at least 0 and below world, which is {world}")
        if order not in ORDERS:
            raise ValueError(f"order is {order!r}; it must be one of {', '.join(ORDERS)}")
        self.classes = ClassIndex(targets)
        self.size = len(self.classes.place)
        self.batch_size, self.group, self.seed, self.rank, self.world = batch_size, group, seed, rank, world
        self.order, self.epoch = order, 0
        self._given = self._first = 0

    def set_epoch(self, epoch: int) -> None:
        """Order the next pass as ``epoch``, from its start (unless it is the epoch just loaded)."""
        if epoch != self.epoch:
            self._given = self._first = 0
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """Where the current pass stands: ``batches`` given so far of ``epoch`` under ``seed``."""
        return {"seed": self.seed, "epoch": self.epoch, "batches": self._given}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Start the next pass where ``state`` left off."""
        self.seed, self.epoch = int(state["seed"]), int(state["epoch"])
        self._given = self._first = int(state["batches"])

    def __len__(self) -> int:
        return -(-self._length() // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[list[int]]:
        images, anchors = self._stream()
        first, self._first = self._first, 0
        whole = self.batch_size * self.world
        for batch in range(first, len(self)):
            self._given = batch + 1
            start, stop = batch * whole, min((batch + 1) * whole, len(images))
            share = (stop - start) // self.world
            mine = slice(start + self.rank * share, start + (self.rank + 1) * share)
            taken, leads = images[mine], anchors[mine]
            yield (np.concatenate([taken[leads], taken[~leads]]) if self.order == "anchors_first" else taken).tolist()
        self._given = 0

    def _length(self) -> int:
        """Images of an epoch over all processes."""
        alone = int((self.classes.peers == 0).sum())
        length = self.size * self.group - alone * (self.group - 1)
        unit = self.group * self.world if self.world > 1 else 1
        return -(-length // unit) * unit

    def _stream(self) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's images, (length,), and which of them are there as anchors."""
        draws = generator("class pairs", self.seed, self.epoch)
        anchors = torch.randperm(self.size, generator=draws).numpy()
        uniform = torch.rand(self.size, self.group - 1, generator=draws, dtype=torch.float64).numpy()
        groups = np.concatenate([anchors[:, None], self.classes.partners(anchors, uniform)], axis=1)
        leads = np.zeros(groups.shape, dtype=bool)
        leads[:, 0] = True
        present = groups >= 0
        images, leads = groups[present], leads[present]
        filled = np.arange(self._length()) % len(images)  # beyond its end the stream starts again
        return images[filled], leads[filled]
