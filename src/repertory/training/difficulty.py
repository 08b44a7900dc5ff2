"""How difficult every training sample last was: the one store that methods share which follow samples through training.

A score is one number a sample, by convention the cross-entropy of its label, so that more is more difficult and
``exp(-score)`` is the probability that the network gave to the label. Scores are scattered by index into a tensor on
the device, without waiting for it, and take effect all at once when :meth:`DifficultyStore.collect` is called, which is
to be once an epoch: what is read in an epoch is the same whatever the order of batches and the number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

UNSEEN = float("inf")  # score of a sample that was never visited
_UNVISITED = float("-inf")  # in the scores of this epoch: not visited since the last collection


def class_of(labels: Tensor) -> Tensor:
    """The class (B,) by which a sample is judged: its label, or of soft ``labels`` (B, classes) the dominant one."""
    return labels.argmax(1) if labels.ndim == 2 else labels


def label_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy (B,) in nats of ``logits`` (B, classes) on :func:`class_of` the labels: no smoothing, no gradient.

    It is ``-log p_k``, with p_k the probability that the network gives to the class of the sample.
    """
    return F.cross_entropy(logits.detach().float(), class_of(labels), reduction="none")


class DifficultyStore:
    """One score a sample, on the device that the first scores come from.

    Of several scores of a sample in one epoch (replicas, repeated draws, samples that fill up processes) the highest
    counts.

    Args:
        size: number of samples; indices are 0 to ``size - 1``.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"size is {size}; a difficulty store needs at least 1 sample")
        self.size = size
        self.values = torch.full((size,), UNSEEN)
        self._fresh = torch.full((size,), _UNVISITED)

    def record(self, indices: Tensor, scores: Tensor) -> None:
        """Take note of ``scores`` (B,), any real type, of the samples ``indices`` (B,); the device is not waited for.

        ValueError where the two differ in length, and for an index outside the store if ``indices`` are on the CPU.
        """
        if indices.shape != scores.shape or indices.ndim != 1:
            raise ValueError(
                f"indices and scores have shapes {tuple(indices.shape)} and {tuple(scores.shape)}; both must be (B,)"
            )
        if indices.device.type == "cpu" and len(indices):
            wrong = indices[(indices < 0) | (indices >= self.size)]
            if len(wrong):
                raise ValueError(f"index {int(wrong[0])} is out of range: the store has samples 0 to {self.size - 1}")
        self._move(scores.device)
        found = scores.detach().float()
        # Not-a-number would be lost in a maximum; infinity is found when the scores are collected.
        found = found.nan_to_num(nan=UNSEEN, posinf=UNSEEN, neginf=UNSEEN)
        self._fresh.scatter_reduce_(0, indices.to(found.device, torch.int64, non_blocking=True), found, "amax")

    def at(self, indices: Tensor) -> Tensor:
        """Scores (B,) of the samples ``indices`` (B,) as last collected, infinite for those never visited."""
        return self.values[indices.to(self.values.device)].to(indices.device)

    def collect(self) -> Tensor:
        """Let the scores recorded since the last call take effect, of all processes, and return all scores (size,).

        With several processes all must call it together. ValueError naming a sample whose score is not finite.
        """
        fresh = self._gathered()
        visited = fresh > _UNVISITED
        broken = (fresh == UNSEEN).nonzero()
        if len(broken):
            raise ValueError(
                f"the score of sample {int(broken[0])} is not finite ({len(broken)} in all are not): lower the "
                "learning rate, or check the data for NaN"
            )
        self.values = torch.where(visited, fresh, self.values.to(fresh.device))
        self._fresh = torch.full_like(fresh, _UNVISITED)
        return self.values

    def state_dict(self) -> dict[str, Any]:
        """All scores, also those not yet collected; with several processes all must call it together."""
        return {"values": self.values.to("cpu", copy=True), "fresh": self._gathered().to("cpu", copy=True)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the scores of ``state``; ValueError where they are of another number of samples."""
        found = len(state["values"])
        if found != self.size:
            raise ValueError(f"the saved scores are of {found} samples, but the data set has {self.size}")
        self.values, self._fresh = state["values"].clone(), state["fresh"].clone()

    def _gathered(self) -> Tensor:
        """This epoch's scores over all processes; each process keeps its own apart."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return self._fresh
        together = self._fresh.clone() if dist.get_backend() != "nccl" else self._fresh.to("cuda", copy=True)
        dist.all_reduce(together, op=dist.ReduceOp.MAX)
        return together

    def _move(self, device: torch.device) -> None:
        """Live where the scores come from."""
        if self._fresh.device != device:
            self._fresh, self.values = self._fresh.to(device), self.values.to(device)
