"""The losses of CCNet: deep supervision with hard example mining, and the category-consistent loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repertory.nn.segmentation_losses import ohem_cross_entropy


class DeepSupervisionLoss(nn.Module):
    """Cross-entropy of the main logits, plus ``aux_weight`` times that of each auxiliary one.

    Logits of any size are resized to the target's, bilinearly, corners on corners.

    Args:
        aux_weight: factor of the auxiliary terms.
        ignore_index: label of pixels that do not count.
        threshold: mine hard pixels of the main logits, as :func:`ohem_cross_entropy` does; None takes all pixels.
        min_kept: pixels that mining keeps at least.
        factor: by how much mining reduces the batch to find its limit.
    """

    def __init__(
        self,
        aux_weight: float = 0.4,
        ignore_index: int = 255,
        threshold: float | None = None,
        min_kept: int = 100_000,
        factor: int = 8,
    ) -> None:
        super().__init__()
        self.aux_weight, self.ignore_index = aux_weight, ignore_index
        self.threshold, self.min_kept, self.factor = threshold, min_kept, factor

    def forward(self, logits: Tensor, target: Tensor, aux: Sequence[Tensor] = ()) -> Tensor:
        """The loss, a scalar.

        Args:
            logits: (B, classes, h, w).
            target: (B, H, W) class indices, int64.
            aux: auxiliary logits, each (B, classes, h', w').
        """
        main, *others = (
            F.interpolate(x, size=target.shape[-2:], mode="bilinear", align_corners=True) for x in (logits, *aux)
        )
        if self.threshold is None:
            loss = self._plain(main, target)
        else:
            loss = ohem_cross_entropy(
                main, target, self.threshold, self.min_kept, self.ignore_index, factor=self.factor
            )
        for other in others:
            loss = loss + self.aux_weight * self._plain(other, target)
        return loss

    def _plain(self, logits: Tensor, target: Tensor) -> Tensor:
        total = F.cross_entropy(logits, target, ignore_index=self.ignore_index, reduction="sum")
        return total / (target != self.ignore_index).sum().clamp(min=1)


class CategoryConsistentLoss(nn.Module):
    """Draw features of one class to their mean, push the means of classes apart, keep the means small.

    With mu_c the mean of the features of class c over the batch, over the classes C that are present:

    - ``variance``: the mean over classes of the mean over pixels of phi(||h - mu_c||), where phi(d) is
      d - delta_d + (delta_d - delta_v)^2 beyond delta_d, (d - delta_v)^2 down to delta_v, 0 below;
    - ``distance``: the mean over pairs of classes of max(2 delta_d - ||mu_a - mu_b||, 0)^2;
    - ``regularisation``: the mean of ||mu_c||.

    Inferred: the formulas come from two independent notes on the paper (IEEE TPAMI 2020), which has no released code.

    Args:
        alpha: factor of the variance.
        beta: factor of the distance.
        gamma: factor of the regularisation.
        delta_v: radius around its mean inside which a feature is left alone.
        delta_d: half the distance beyond which two means are left alone; from there phi grows linearly.
        ignore_index: label of pixels that do not count.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 0.001,
        delta_v: float = 0.5,
        delta_d: float = 1.5,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        if not 0 <= delta_v < delta_d:
            raise ValueError(f"delta_v and delta_d are {delta_v} and {delta_d}; they must rise from at least 0")
        for name, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
            if value < 0:
                raise ValueError(f"{name} is {value}; it must be at least 0")
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.delta_v, self.delta_d, self.ignore_index = delta_v, delta_d, ignore_index

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """The weighted sum of :meth:`terms`, a scalar."""
        variance, distance, regularisation = self.terms(features, labels)
        return self.alpha * variance + self.beta * distance + self.gamma * regularisation

    def terms(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Variance, distance and regularisation, unweighted; 0 each where no pixel is labelled.

        Args:
            features: (B, D, h, w); computed in float32 where they are of half precision.
            labels: (B, H, W), int64, reduced to (h, w) by the nearest, corners on corners.
        """
        if features.ndim != 4 or labels.ndim != 3 or len(features) != len(labels):
            raise ValueError(
                f"features and labels are {tuple(features.shape)} and {tuple(labels.shape)}; "
                "they must be (B, D, h, w) and (B, H, W)"
            )
        if labels.is_floating_point():
            raise ValueError(f"labels are {labels.dtype}; they must be class indices")
        features = features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
        labels = _reduced(labels, features.shape[-2:]).flatten()
        labelled = labels != self.ignore_index
        pixels = features.movedim(1, -1).flatten(0, 2)[labelled]
        if not len(pixels):
            nothing = features.sum() * 0
            return nothing, nothing, nothing
        classes, own, counts = labels[labelled].unique(return_inverse=True, return_counts=True)
        means = pixels.new_zeros(len(classes), pixels.shape[1]).index_add(0, own, pixels) / counts[:, None]
        spread = self._pull(torch.linalg.vector_norm(pixels - means[own], dim=1))
        variance = (pixels.new_zeros(len(classes)).index_add(0, own, spread) / counts).mean()
        return variance, self._push(means), torch.linalg.vector_norm(means, dim=1).mean()

    def _pull(self, distance: Tensor) -> Tensor:
        near = (distance - self.delta_v).clamp(min=0).square()
        far = distance - self.delta_d + (self.delta_d - self.delta_v) ** 2
        return far.where(distance > self.delta_d, near)

    def _push(self, means: Tensor) -> Tensor:
        count = len(means)
        if count < 2:
            return means.sum() * 0
        first, second = torch.triu_indices(count, count, 1, device=means.device)
        between = torch.linalg.vector_norm(means[first] - means[second], dim=1)
        return (2 * self.delta_d - between).clamp(min=0).square().mean()


def _reduced(labels: Tensor, size: Sequence[int]) -> Tensor:
    """``labels`` (B, H, W) at the positions that the map of ``size`` samples, corners on corners."""
    for dim, small in enumerate(size, start=1):
        places = torch.linspace(0, labels.shape[dim] - 1, small, dtype=torch.float64, device=labels.device)
        labels = labels.index_select(dim, places.round().long())
    return labels
