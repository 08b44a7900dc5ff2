"""BAKE as a training method: class-paired batches and the ensembled self-distillation loss.

Ge et al., "Self-distillation with Batch Knowledge Ensembling", arXiv 2104.13298. Training only: it has no parameters,
and the network at inference is the one that was given.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import torch.distributed as dist
from torch import Tensor, nn

from repertory.systems.bake.losses import BAKELoss
from repertory.systems.bake.sampler import ClassPairBatchSampler
from repertory.training.method import Batch, Method, Outputs


class Bake(Method):
    """Batch knowledge ensembling for any classifier with pooled features.

    With M partners an epoch is M + 1 passes over the data: compare at equal numbers of processed images.

    Args:
        temperature: tau, which softens predictions and targets (the authors use 4 everywhere).
        omega: weight of the other samples' knowledge in the targets, at least 0 and below 1 (authors: 0.5, or 0.9 on
            fine-grained data); at 0 the term has no gradient.
        weight: lambda, the factor of the distillation loss beside the cross entropy.
        partners: M, further images of its class that come with every anchor (authors: 1 on ImageNet, 3 on CIFAR-100);
            the batch size of a process must be a multiple of partners + 1.
        gather: ensemble over the samples of all processes, as the authors do on ImageNet; off, each has its own.
    """

    name: ClassVar[str] = "bake"
    claims: ClassVar[frozenset[str]] = frozenset({"sampler"})

    def __init__(
        self,
        temperature: float = 4.0,
        omega: float = 0.5,
        weight: float = 1.0,
        partners: int = 1,
        gather: bool = True,
    ) -> None:
        if partners < 0:
            raise ValueError(f"partners is {partners}; it must be at least 0")
        self.loss = BAKELoss(temperature, omega, weight, gather)
        self.partners = partners

    def batch_sampler(self, dataset: Any, batch_size: int, seed: int, rank: int, world: int) -> ClassPairBatchSampler:
        """The class-pair sampler over ``dataset.targets``."""
        targets = getattr(dataset, "targets", None)
        if targets is None:
            raise TypeError(f"{type(dataset).__name__} has no targets; bake pairs images by class and needs them")
        return ClassPairBatchSampler(targets, batch_size, self.partners, seed, rank, world)

    def extra_loss(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        """``distillation``: lambda times the distillation loss; zero for an image that is all alone in its batch."""
        gathered = self.loss.gather and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if len(outputs.logits) < 2 and not gathered:  # the rest of an epoch may be one image, which has no peer
            return {"distillation": 0.0 * outputs.logits.sum()}
        return {"distillation": self.loss(outputs.features, outputs.logits)}


def deploy(model: nn.Module) -> nn.Module:
    """A copy of the trained ``model`` for inference: the same network with the same parameters, in evaluation mode."""
    return copy.deepcopy(model).eval()
