"""Dynamic Data Proportion: which share of the training samples is easy, moderate or hard for the network as it is.

Zhou et al., "Effective Vision Transformer Training: A Data-Centric Perspective", arXiv 2209.15006; the thresholds are
those of the first author's plotting script, and that the measure is the probability of the label is inferred.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from repertory.training.difficulty import label_entropy

GROUPS = ("easy", "moderate", "hard")


class DataProportion(Metric):
    """Shares of easy, moderate and hard samples among those seen, a torchmetrics metric for any classifier.

    With p the probability of the label (of mixed labels: of the dominant class), a sample is easy where p > ``alpha``,
    hard where p < ``beta`` and moderate between, boundaries included. Counts are summed over batches and processes and
    divided at the end, so unequal batches weigh by their samples. Nothing waits for the device until ``compute``.

    Args:
        alpha: probability above which a sample is easy.
        beta: probability below which a sample is hard; above 0, below ``alpha``, which is below 1.

    Raises:
        ValueError: for thresholds that are not in this order.
    """

    full_state_update = False
    higher_is_better = None
    count: Tensor
    loss: Tensor
    probability: Tensor

    def __init__(self, alpha: float = 0.8, beta: float = 0.3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < beta < alpha < 1:
            raise ValueError(f"alpha and beta are {alpha} and {beta}; they must be 0 < beta < alpha < 1")
        self.alpha, self.beta = alpha, beta
        self.add_state("count", torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("loss", torch.zeros(3), dist_reduce_fx="sum")
        self.add_state("probability", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: ``logits`` (B, classes), ``labels`` (B,) or soft (B, classes)."""
        self.count_scores(label_entropy(logits, labels))

    def count_scores(self, scores: Tensor) -> None:
        """Count samples by their cross-entropies ``scores`` (B,), where these are at hand."""
        probability = scores.neg().exp()
        easy, hard = probability > self.alpha, probability < self.beta
        groups = torch.stack([easy, ~(easy | hard), hard])
        self.count += groups.sum(1)
        self.loss += (groups * scores).sum(1)
        self.probability += probability.sum()

    def compute(self) -> dict[str, Tensor]:
        """What :func:`shares_of` says of all that was counted."""
        return shares_of(self.count, self.loss, self.probability)


def shares_of(count: Tensor, loss: Tensor, probability: Tensor) -> dict[str, Tensor]:
    """Shares and means by the sums over samples: ``count`` (3,) and ``loss`` (3,) by group, ``probability`` ().

    ``easy``, ``moderate`` and ``hard`` sum to one; ``easy_loss`` and so on are the mean cross-entropy of each group,
    not a number where it is empty; ``probability`` is the mean over all samples.
    """
    samples = count.sum()
    shares = {name: count[i] / samples for i, name in enumerate(GROUPS)}
    losses = {f"{name}_loss": loss[i] / count[i] for i, name in enumerate(GROUPS)}
    return {**shares, **losses, "probability": probability / samples}
