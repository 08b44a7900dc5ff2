"""Agreement of two class maps over a whole split: the confusion matrix and what is published from it.

Mean intersection over union as the PASCAL VOC development kit (Everingham et al.), the Cityscapes scripts (Cordts et
al.) and the ADE20K benchmark (Zhou et al.) define it: counts are summed over all pictures before they are divided,
pixels whose truth is to be ignored count nowhere, and the mean is over classes. Pixel and mean accuracy as in Long,
Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class ConfusionMatrix:
    """Counts of pixels, ``matrix[truth, prediction]``, int64, exact to 2**63 pixels.

    Args:
        classes: how many classes there are.
        device: where the counts are kept; predictions on other devices are brought there as counts.

    Classes that neither truth nor prediction holds are left out of ``miou``, those that the truth does not hold out of
    ``mean_accuracy``; figures of nothing are NaN.
    """

    def __init__(self, classes: int, device: torch.device | str = "cpu") -> None:
        if classes < 1:
            raise ValueError(f"classes is {classes}; it must be 1 or more")
        self.classes = classes
        self.matrix = torch.zeros(classes, classes, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, target: Tensor, ignore_index: int | None = None) -> None:
        """Count ``prediction`` against ``target``, class indices of one shape; targets of ``ignore_index`` count not.

        Raises:
            TypeError: for maps that are no integers (scores need an ``argmax`` over their classes first).
            ValueError: for maps of different shapes, or an index outside the classes.
        """
        for name, given in (("prediction", prediction), ("target", target)):
            if given.dtype == torch.bool or given.is_floating_point() or given.is_complex():
                raise TypeError(f"{name} is {given.dtype}; it must hold class indices as integers")
        if prediction.shape != target.shape:
            raise ValueError(
                f"prediction has shape {tuple(prediction.shape)} and target {tuple(target.shape)}; they must be equal"
            )
        truth, found = target.flatten().long(), prediction.flatten().to(target.device).long()
        if ignore_index is not None:
            counted = truth != ignore_index
            truth, found = truth[counted], found[counted]
        if not truth.numel():
            return
        self._check("target", truth)
        self._check("prediction", found)
        counts = torch.bincount(truth * self.classes + found, minlength=self.classes**2)
        self.matrix += counts.view(self.classes, self.classes).to(self.matrix.device)

    def _check(self, name: str, values: Tensor) -> None:
        least, most = (int(bound) for bound in torch.aminmax(values))
        if least < 0 or most >= self.classes:
            raise ValueError(
                f"{name} holds the class index {least if least < 0 else most}; {self.classes} classes take 0 to "
                f"{self.classes - 1}"
            )

    def merge(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """Add the counts of ``other`` to these; ``ValueError`` where it has other classes."""
        if other.classes != self.classes:
            raise ValueError(f"a matrix of {other.classes} classes cannot be added to one of {self.classes}")
        self.matrix += other.matrix.to(self.matrix.device)
        return self

    def all_reduce(self) -> ConfusionMatrix:
        """Sum the counts of all processes of the default group into each; nothing to do where there is no group."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.matrix)
        return self

    def to(self, device: torch.device | str) -> ConfusionMatrix:
        """Keep the counts on ``device`` from now on."""
        self.matrix = self.matrix.to(device)
        return self

    def reset(self) -> None:
        """Forget all counts."""
        self.matrix.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """The counts."""
        return {"matrix": self.matrix.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the counts of :meth:`state_dict`; ``ValueError`` where they are of other classes."""
        if state["matrix"].shape != self.matrix.shape:
            raise ValueError(f"the counts are of shape {tuple(state['matrix'].shape)}; here {tuple(self.matrix.shape)}")
        self.matrix.copy_(state["matrix"])

    @property
    def _counts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels that are right, true and predicted, each (classes,), float64 on the CPU."""
        matrix = self.matrix.cpu()
        return matrix.diagonal().double(), matrix.sum(1).double(), matrix.sum(0).double()

    @property
    def iou(self) -> Tensor:
        """Intersection over union of each class (classes,), float64 on the CPU; NaN for a class that occurs nowhere."""
        right, truth, found = self._counts
        return right / (truth + found - right)

    @property
    def accuracies(self) -> Tensor:
        """Share of each class's pixels that were found (classes,), float64 on the CPU; NaN where it has none."""
        right, truth, _ = self._counts
        return right / truth

    @property
    def miou(self) -> float:
        """Mean of :attr:`iou` over the classes that occur in truth or prediction, a fraction."""
        return float(self.iou.nanmean())

    @property
    def mean_accuracy(self) -> float:
        """Mean of :attr:`accuracies` over the classes of the truth, a fraction."""
        return float(self.accuracies.nanmean())

    @property
    def pixel_accuracy(self) -> float:
        """Share of all counted pixels that are right, a fraction."""
        right, truth, _ = self._counts
        return float(right.sum() / truth.sum())

    def compute(self) -> dict[str, float]:
        """Fractions ``miou``, ``pixel_accuracy`` and ``mean_accuracy``."""
        return {"miou": self.miou, "pixel_accuracy": self.pixel_accuracy, "mean_accuracy": self.mean_accuracy}
