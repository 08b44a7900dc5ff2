"""DaP as a training method: samples that are easy are left out for some epochs and then picked up again.

Cheng et al., "Revisiting Pre-training: An Efficient Training Method for Image Classification", arXiv 1811.09347 v1
(its second version is another paper, with other claims). Training only: the network, the loss and inference are those
that were given. Only the abstract was available: this is DaP-style training with its parameters stated, and none of the
paper's figures is claimed for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from repertory.systems.dap.sampler import DropAndPick, DropAndPickBatches
from repertory.systems.dap.schedule import Cycle
from repertory.systems.dap.selection import Confident, Easiness, LowestFraction
from repertory.training.difficulty import label_entropy
from repertory.training.method import Batch, Method, Outputs

MODES = ("fraction", "confidence")


class Dap(Method):
    """Drop-and-pick training for any classifier: fewer samples in as many epochs.

    The learning rate follows the epochs, so it falls as in the full schedule while steps become fewer. The loss is not
    weighted: an epoch that drops is biased to hard samples on purpose.

    Args:
        warmup: epochs on all samples at the start, at least 1.
        period: epochs of a cycle, the first of which has all samples again; null never picks up again.
        fraction: share of the samples that a drop epoch leaves out in mode fraction, at least 0 and below 1.
        mode: what is easy: "fraction" (the lowest scores) or "confidence" (a probability above the threshold).
        threshold: probability of the label above which a sample is easy in mode confidence, 0.5 to below 1.
        accumulate: drop from what the epoch before had left, not from all, until the next pick.
        final: epochs on all samples at the end, at least 0; with 0 batch norm ends on hard samples alone.
        per_class: drop the fraction of each class, so that no easy class goes missing.

    Raises:
        ValueError: naming a setting outside its range.
    """

    name: ClassVar[str] = "dap"
    claims: ClassVar[frozenset[str]] = frozenset({"sampler"})

    def __init__(
        self,
        warmup: int = 5,
        period: int | None = 3,
        fraction: float = 0.4,
        mode: Literal["fraction", "confidence"] = "fraction",
        threshold: float = 0.9,
        accumulate: bool = False,
        final: int = 1,
        per_class: bool = False,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}; it must be one of {', '.join(MODES)}")
        self.cycle, self.accumulate, self.per_class = Cycle(warmup, period, final), accumulate, per_class
        self.rule: Easiness = LowestFraction(fraction) if mode == "fraction" else Confident(threshold)
        self.settings = {
            "warmup": warmup,
            "period": period,
            "mode": mode,
            "accumulate": accumulate,
            "final": final,
            "per_class": per_class,
            **({"fraction": fraction} if mode == "fraction" else {"threshold": threshold}),
        }
        self.selection: DropAndPick | None = None
        self._dataset: Any = None

    def batch_sampler(self, dataset: Any, batch_size: int, seed: int, rank: int, world: int) -> DropAndPickBatches:
        """Batches of the kept samples; replicas over one data set share what is kept."""
        if self.selection is None or self._dataset is not dataset:
            targets = getattr(dataset, "targets", None)
            if self.per_class and targets is None:
                raise TypeError(
                    f"{type(dataset).__name__} has no targets; per_class drops class by class and needs them"
                )
            self.selection = DropAndPick(
                len(dataset),
                self.cycle,
                self.rule,
                accumulate=self.accumulate,
                targets=targets if self.per_class else None,
            )
            self._dataset = dataset
        return DropAndPickBatches(self.selection, batch_size, seed, rank, world)

    def extra_loss(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        """No term: the cross-entropy of each label is noted as the sample's score."""
        self._begun.record(batch.indices, label_entropy(outputs.logits, batch.labels))
        return {}

    def figures(self) -> Mapping[str, float]:
        """``kept``, the share of the samples that the epoch had, and ``cost``, the mean of these shares so far."""
        selection = self._begun
        if not selection.counts:
            return {}
        return {"kept": selection.counts[-1] / selection.store.size, "cost": selection.realised_cost}

    def state_dict(self) -> dict[str, Any]:
        """The settings, and the scores and kept samples."""
        return {"settings": self.settings, "selection": self._begun.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where ``state`` left off; ValueError naming a setting that is another."""
        before = state["settings"]
        for name in {**before, **self.settings}:
            if before.get(name) != self.settings.get(name):
                raise ValueError(
                    f"{name} of dap is {self.settings.get(name)!r}, but the run was started with {before.get(name)!r}"
                )
        self._begun.load_state_dict(state["selection"])

    @property
    def _begun(self) -> DropAndPick:
        if self.selection is None:
            raise ValueError("dap has no samples to follow: call its batch_sampler(dataset, …) before training")
        return self.selection
