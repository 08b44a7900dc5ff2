"""What a training method is: optional slots around one training step, called in a fixed order.

Torch only. A hand-written loop can call the slots itself; the Lightning task drives any list of methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterable, Sized

    from torch.optim import Optimizer
    from torch.utils.data import Sampler


@dataclass(frozen=True)
class Progress:
    """Where training stands: ``step`` optimiser steps done, ``epoch`` epochs done, ``total`` steps planned."""

    step: int
    epoch: int
    total: int


@dataclass
class Batch:
    """One batch: ``images`` (B, C, H, W), ``labels`` and ``indices`` (B,) into the data set.

    ``labels`` are (B,), or soft (B, classes); in segmentation a class for every pixel (B, H, W).
    """

    images: Tensor
    labels: Tensor
    indices: Tensor


@dataclass
class Outputs:
    """What one forward gave: ``features`` (B, D), pooled, before the classifier, and ``logits`` (B, classes).

    In segmentation ``features`` is a map (B, D, h, w) and ``logits`` are (B, classes, H, W).
    """

    features: Tensor
    logits: Tensor


class Method:
    """A training method; override the slots it needs, the rest do nothing.

    Slots are called in the order in which they stand here. ``claims`` names what the method needs alone (``sampler``,
    ``optimizer``, ``weights``, or a part of the network that it changes, such as ``blocks``): two methods with one
    claim are refused by name before training. A method that trains
    replicas sets ``replicas = K``: the task keeps K models, gives each its own batch, outputs and losses, sums the K
    losses, and counts K batches of images; ``before_step`` and ``after_step`` then receive the ``nn.ModuleList``.
    """

    name: ClassVar[str] = "method"
    claims: ClassVar[frozenset[str]] = frozenset()
    replicas: int = 1

    @classmethod
    def changes_networks(cls) -> bool:
        """Whether the method may change a network before it is trained, so that loading one has to ask for it."""
        return cls.prepare_model is not Method.prepare_model

    def prepare_model(self, model: nn.Module) -> nn.Module:
        """Return the model to train: ``model`` itself, changed, or another."""
        return model

    def build_optimizer(self, model: nn.Module, default: Optimizer) -> Optimizer:
        """Return the optimiser to use; ``default`` already holds the parameters of ``model``."""
        return default

    def batch_sampler(
        self, dataset: Sized, batch_size: int, seed: int, rank: int, world: int
    ) -> Sampler[list[int]] | None:
        """Return a batch sampler with ``set_epoch`` and ``state_dict``, or None for the ordinary one.

        ``batch_size`` is the number of indices one process takes a step; ``dataset.targets`` lists the labels. A
        sampler whose epochs differ in length also has ``set_epochs(epochs)``, told how many epochs the run has, and
        ``planned_batches(epoch)``, the full batches that one will have, None where only training will tell; the first
        epoch has all samples.
        """
        return None

    def before_step(self, model: nn.Module, progress: Progress) -> None:
        """Act before a step; also called once before step 0."""

    def transform_batch(self, batch: Batch, progress: Progress) -> Batch:
        """Return the batch to feed."""
        return batch

    def extra_loss(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        """Return named terms that are added to the task's loss (already weighted)."""
        return {}

    def after_step(self, model: nn.Module, progress: Progress) -> None:
        """Act after an optimiser step; ``progress.step`` counts the step just done."""

    def evaluation_model(self, model: nn.Module, train_loader: Iterable[Batch]) -> nn.Module:
        """Return the model to evaluate; ``model`` itself must come out unchanged."""
        return model

    def figures(self) -> Mapping[str, float]:
        """Return named figures to record beside the losses; called on all processes when an epoch has ended."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs; called on all processes after the same step, so it may gather."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where ``state_dict`` left off."""
