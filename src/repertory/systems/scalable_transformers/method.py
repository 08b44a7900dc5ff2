"""Training a network and its sub-models together, as a method: the whole learns the labels, the others the whole.

Gao et al., arXiv 2106.02242, in the authors' vision code. At every step three runs share a batch: the whole network
with the task's own loss, one sub-model drawn at random and the smallest one, which learn its distribution.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from repertory.systems.scalable_transformers.crops import Crop, CropSpace
from repertory.systems.scalable_transformers.losses import SUPERVISIONS, sub_model_losses
from repertory.training.method import Batch, Method, Outputs, Progress


class Supernet(Protocol):
    """What the method asks of a network: :class:`ScalableViT`, whose timm is not loaded before a network is there."""

    def crop_space(
        self,
        heads: tuple[int, ...] | None = None,
        depths: tuple[int, ...] | None = None,
        resolutions: tuple[int, ...] | None = None,
    ) -> CropSpace:
        """The sub-models to train: those named, and else shares of its own sizes."""


class ScalableTraining(Method):
    """Joint training of a :class:`ScalableViT` with its sub-models; it turns a plain ViT of timm into one.

    An image passes a step three times, in networks of decreasing size: compare at equal computation, or at equal
    images with that said. All processes train the same sub-model of a step, so that none waits for another.

    Args:
        heads: heads of the sub-models that may be drawn; None is the authors' shares of the network's own (12, 10, 8,
            6, 4 and 3 of 12).
        depths: blocks likewise (12, 10, 8 and 6 of 12).
        resolutions: sides in pixels likewise (the grids of 224, 196, 160 and 128 of 224).
        weight: factor of each sub-model's loss (authors: 1).
        temperature: divides the logits of teacher and sub-model (authors: 1).
        supervision: ``distillation``, or ``labels``: sub-models learn the labels too, and nothing of the whole.
        qkv_crop: of a network of timm, how its fused projection is cropped (fused as the authors', or per_projection);
            a ScalableViT keeps its own.
        seed: of the sub-models drawn.

    Raises:
        ValueError: for a setting out of its range; for a network that has no such sub-models, when it is seen.
    """

    name: ClassVar[str] = "scalable_transformers"
    claims: ClassVar[frozenset[str]] = frozenset({"blocks"})

    def __init__(
        self,
        heads: tuple[int, ...] | None = None,
        depths: tuple[int, ...] | None = None,
        resolutions: tuple[int, ...] | None = None,
        weight: float = 1.0,
        temperature: float = 1.0,
        supervision: str = "distillation",
        qkv_crop: str = "fused",
        seed: int = 0,
    ) -> None:
        if supervision not in SUPERVISIONS:
            raise ValueError(f"supervision is {supervision!r}; it must be one of {', '.join(SUPERVISIONS)}")
        if not weight >= 0:
            raise ValueError(f"weight is {weight}; it must be at least 0")
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be above 0")
        self.heads, self.depths, self.resolutions = heads, depths, resolutions
        self.weight, self.temperature, self.supervision = weight, temperature, supervision
        self.qkv_crop, self.seed = qkv_crop, seed
        self._models: list[Any] = []
        self._drawn: dict[str, Crop] = {}
        self._calls = 0

    def prepare_model(self, model: nn.Module) -> nn.Module:
        """``model`` itself if it is a supernet, else the supernet of a plain vision transformer of timm."""
        from repertory.systems.scalable_transformers.model import ScalableViT

        supernet = model if isinstance(model, ScalableViT) else ScalableViT.from_timm(model, self.qkv_crop)
        self.space(supernet)
        return supernet

    def space(self, model: Supernet) -> CropSpace:
        """The sub-models of ``model`` that are drawn."""
        return model.crop_space(self.heads, self.depths, self.resolutions)

    def draw(self, model: Supernet, step: int) -> dict[str, Crop]:
        """The sub-models of a step by name, the same on every process; override it for another law."""
        space = self.space(model)
        return {"random": space.sample(self.seed, step), "smallest": space.smallest}

    def before_step(self, model: nn.Module, progress: Progress) -> None:
        """Take hold of the network, or its replicas, and draw the sub-models of the step."""
        self._models = list(model) if isinstance(model, nn.ModuleList) else [model]
        self._drawn = self.draw(self._models[0], progress.step)
        self._calls = 0

    def extra_loss(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        """``random`` and ``smallest``: the weighted losses of the sub-models on the images that the whole has seen."""
        model = self._models[self._calls % len(self._models)]  # replicas come in their order
        self._calls += 1
        labels = batch.labels if self.supervision == "labels" else None
        losses = sub_model_losses(
            model, batch.images, outputs.logits, list(self._drawn.values()), self.temperature, labels
        )
        return {name: self.weight * loss for name, loss in zip(self._drawn, losses)}
