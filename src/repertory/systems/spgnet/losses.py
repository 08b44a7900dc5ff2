"""The loss over all stages: ``L = sum over stages of w_s CE_s``, weights 1 and label 255 ignored unless told otherwise.

Cheng et al., ICCV 2019, arXiv 1908.09798. That every stage is supervised is published; equal weights are inferred.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


class StageLoss(nn.Module):
    """Cross-entropy of the last stage plus those of the stages before it.

    Args:
        weights: one for each stage, the first stage first; None is 1 for all.
        ignore_index: label of pixels without a class.
        pixel_loss: ``(logits (B, K, h, w), labels (B, h, w)) -> scalar`` in place of cross-entropy, such as one that
            mines hard examples.
    """

    def __init__(
        self,
        weights: Sequence[float] | None = None,
        ignore_index: int = 255,
        pixel_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.weights = None if weights is None else tuple(weights)
        self.ignore_index, self.pixel_loss = ignore_index, pixel_loss

    def forward(self, outputs: Tensor | Mapping[str, Any], labels: Tensor) -> Tensor:
        """The weighted sum for what :class:`SPGNet` returns in training, and labels (B, H, W).

        Logits of another size than the labels (``supervision="stride"``) meet labels sampled by nearest neighbour.
        """
        predictions = [outputs] if isinstance(outputs, Tensor) else [*outputs["aux"], outputs["out"]]
        weights = (1.0,) * len(predictions) if self.weights is None else self.weights
        if len(weights) != len(predictions):
            raise ValueError(f"weights are {weights}; there must be one for each of the {len(predictions)} predictions")
        losses = [w * self._one(logits, labels) for w, logits in zip(weights, predictions, strict=True)]
        return sum(losses[1:], losses[0])

    def _one(self, logits: Tensor, labels: Tensor) -> Tensor:
        if logits.shape[-2:] != labels.shape[-2:]:
            sampled = F.interpolate(labels[:, None].to(logits.dtype), size=logits.shape[-2:], mode="nearest-exact")
            labels = sampled[:, 0].to(labels.dtype)
        if self.pixel_loss is not None:
            return self.pixel_loss(logits, labels)
        total = F.cross_entropy(logits, labels, ignore_index=self.ignore_index, reduction="sum")
        return total / (labels != self.ignore_index).sum().clamp(min=1)  # a crop without any label costs nothing
