"""The category-consistent loss as a training method for any segmentor that gives a map of features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from repertory.systems.ccnet.losses import CategoryConsistentLoss
from repertory.training.method import Batch, Method, Outputs


class CategoryConsistency(Method):
    """Add :class:`CategoryConsistentLoss` on the segmentor's features. Inferred, see there.

    Args:
        alpha: factor of the variance within classes.
        beta: factor of the distance between classes.
        gamma: factor of the norm of class means.
        delta_v: radius around its mean inside which a feature is left alone.
        delta_d: half the distance beyond which two means are left alone.
        ignore_index: label of pixels that do not count.
    """

    name: ClassVar[str] = "category_consistency"

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 0.001,
        delta_v: float = 0.5,
        delta_d: float = 1.5,
        ignore_index: int = 255,
    ) -> None:
        self.loss = CategoryConsistentLoss(alpha, beta, gamma, delta_v, delta_d, ignore_index)

    def extra_loss(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        """``category_variance``, ``category_distance`` and ``category_norm``, each times its factor."""
        variance, distance, norm = self.loss.terms(outputs.features, batch.labels)
        loss = self.loss
        return {
            "category_variance": loss.alpha * variance,
            "category_distance": loss.beta * distance,
            "category_norm": loss.gamma * norm,
        }
