"""Training and evaluation of semantic segmentation: a class for every pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from repertory.data.overlays import as_picture, colored
from repertory.metrics import ConfusionMatrix
from repertory.nn.segmentation_losses import ohem_cross_entropy
from repertory.training.evaluation import autocast, evaluating, place
from repertory.training.inference import Inference
from repertory.training.method import Batch, Outputs
from repertory.training.settings import SegmentationSettings
from repertory.training.task import TrainingTask

PIXELS = 2**20  # of pictures scored together in evaluation; larger pictures go one at a time


class SegmentationTask(TrainingTask):
    """Cross-entropy over the pixels that have a class, of all or of the hard ones, plus that of auxiliary outputs.

    A model gives logits (B, classes, H, W), or while it trains a dictionary: ``out``, the logits; ``aux``, a list of
    further logits; ``features``, a map (B, D, h, w) for methods that want one. All logits have the size of the images.
    """

    headline = "miou"
    settings: SegmentationSettings

    def loss_terms(self, model: nn.Module, batch: Batch) -> tuple[Outputs, dict[str, Tensor]]:
        """Outputs with a map of features where there are methods to read it, and the terms ``loss`` and ``aux``."""
        outputs, auxiliary = map_outputs(model, batch.images, features=bool(self.methods))
        for logits in (outputs.logits, *auxiliary):
            self._check(model, logits, batch.labels)
        terms = {"loss": self._loss(outputs.logits, batch.labels, self.settings.ohem)}
        if auxiliary:
            others = [self._loss(logits, batch.labels, 0.0) for logits in auxiliary]
            terms["aux"] = self.settings.aux_weight * torch.stack(others).sum()
        return outputs, terms

    def _loss(self, logits: Tensor, labels: Tensor, ohem: float) -> Tensor:
        logits = logits if logits.dtype == torch.float64 else logits.float()
        ignored = self.data.ignore_index
        if ohem:
            return ohem_cross_entropy(logits, labels, ohem, self.settings.ohem_kept, ignored)
        return pixel_cross_entropy(logits, labels, ignored, self.settings.label_smoothing)

    def _check(self, model: nn.Module, logits: Tensor, labels: Tensor) -> None:
        wanted = (len(labels), len(self.data.classes), *labels.shape[-2:])
        if logits.shape != wanted:
            raise ValueError(
                f"{type(model).__name__} gives logits {tuple(logits.shape)}; for {len(self.data.classes)} classes and "
                f"these images they must be {wanted}"
            )

    def evaluate(self, model: nn.Module, rank: int, world: int) -> dict[str, float]:
        """Agreement and loss over the pixels of the validation data, see :func:`evaluate_segmentation`."""
        settings = self.settings
        return evaluate_segmentation(
            model,
            self.data.val,
            inference=Inference.of(
                settings.inference,
                self.data.val.preprocessing.size,
                settings.overlap,
                settings.scales,
                settings.mirror,
            ),
            batch_size=max(settings.micro_batch, 8),
            workers=settings.workers,
            precision=settings.precision,
            rank=rank,
            world=world,
        )


def pixel_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of ``logits`` (B, classes, H, W) over the pixels of ``labels`` (B, H, W) that have a class.

    Zero, with a gradient of zero, where none has: torch's own mean is NaN there.
    """
    total = F.cross_entropy(logits, labels, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="sum")
    return total / (labels != ignore_index).sum().clamp(min=1)


def map_outputs(model: nn.Module, images: Tensor, features: bool = True) -> tuple[Outputs, list[Tensor]]:
    """Run the segmentor ``model``: its outputs, and the logits of its auxiliary outputs.

    Features, where wanted, are ``features`` of the dictionary it gives, or the map that enters
    ``model.get_classifier()``. ValueError where a model offers neither.
    """
    entered: list[Tensor] = []
    get_classifier: Any = getattr(model, "get_classifier", None)
    classifier = get_classifier() if features and get_classifier is not None else None
    handle = None
    if isinstance(classifier, nn.Module) and not isinstance(classifier, nn.ModuleList):
        handle = classifier.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    try:
        given = model(images)
    finally:
        if handle is not None:
            handle.remove()
    if isinstance(given, Tensor):
        given = {"out": given}
    elif not isinstance(given, dict) or not isinstance(given.get("out"), Tensor):
        raise ValueError(f"{type(model).__name__} gives {type(given).__name__}; a segmentor gives logits, or a dict")
    found = given.get("features", entered[-1] if entered else None)
    if found is None:
        if features:
            raise ValueError(
                f"{type(model).__name__} has neither an output 'features' nor get_classifier() to read features from"
            )
        found = given["out"]
    return Outputs(found, given["out"]), list(given.get("aux") or [])


@torch.no_grad()
def evaluate_segmentation(
    model: nn.Module,
    dataset: Any,
    *,
    inference: Inference | None = None,
    batch_size: int = 8,
    workers: int = 0,
    precision: str = "32-true",
    rank: int = 0,
    world: int = 1,
    per_class: bool = False,
    report: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Fractions ``miou``, ``pixel_accuracy``, ``mean_accuracy`` over all pixels of a split, and ``loss`` in nats.

    The counts of all pictures are summed before they are divided, each picture at its own size
    (:class:`~repertory.metrics.ConfusionMatrix`). ``loss`` is the mean cross-entropy of the pixels.

    Args:
        model: runs where its parameters are, in evaluation mode, and gets its modes back.
        dataset: a :class:`~repertory.data.segmentation.SegmentationSet`.
        inference: how pictures are scored; whole, at their own size, when absent.
        batch_size: pictures at a time where they are of one size and small.
        workers: loader processes.
        precision: as in the settings.
        rank: which of ``world`` processes this is; each takes every world-th picture, all get the figures of all.
        world: processes that evaluate together.
        per_class: also give ``iou NAME`` for each class; NaN for one that occurs nowhere.
        report: called with (pictures done, pictures in all).

    Raises:
        ValueError: where there are fewer pictures than processes, or scores that do not fit the classes.
    """
    if len(dataset) < world:
        raise ValueError(f"the data to evaluate on has {len(dataset)} images; each of {world} processes needs one")
    inference = inference or Inference()
    device, dtype = place(model)
    confusion = ConfusionMatrix(len(dataset.classes), device)
    done = 0
    sums = torch.zeros(2, dtype=torch.float64, device=device)  # nats, pixels
    with evaluating(model):
        for images, labels in _batches(dataset, batch_size, workers, rank, world):
            images, labels = images.to(device, dtype), labels.to(device)
            with autocast(device, precision):
                logits = inference(model, images)
            logits = logits if logits.dtype == torch.float64 else logits.float()
            if logits.shape[1] != len(dataset.classes):
                raise ValueError(
                    f"{type(model).__name__} scores {logits.shape[1]} classes; the data have {len(dataset.classes)}"
                )
            confusion.update(logits.argmax(1), labels, dataset.ignore_index)
            sums[0] += F.cross_entropy(logits, labels, ignore_index=dataset.ignore_index, reduction="sum").double()
            sums[1] += (labels != dataset.ignore_index).sum()
            done += len(images) * world
            if report is not None:
                report(min(done, len(dataset)), len(dataset))
    if world > 1:
        confusion.all_reduce()
        torch.distributed.all_reduce(sums)
    figures = {**confusion.compute(), "loss": float(sums[0] / sums[1])}
    if per_class:
        figures |= {f"iou {name}": iou for name, iou in zip(dataset.classes, confusion.iou.tolist())}
    return figures


@torch.no_grad()
def sample_pictures(
    model: nn.Module, data: Any, count: int = 3, inference: Inference | None = None
) -> dict[str, np.ndarray]:
    """Image, truth and prediction of ``count`` validation pictures, caption to (H, W, 3) uint8: what a report shows.

    ``data`` is a :class:`~repertory.data.segmentation.SegmentationData`, whose palette colours the classes; the
    pictures are spread evenly over its validation part.
    """
    inference = inference or Inference()
    device, dtype = place(model)
    pictures: dict[str, np.ndarray] = {}
    count = min(count, len(data.val))
    with evaluating(model):
        for number in range(count):
            image, mask = data.val.whole(number * len(data.val) // count)
            found = inference(model, image[None].to(device, dtype)).argmax(1)[0].cpu()
            name = f"Picture {number + 1}"
            pictures[f"{name}: image"] = as_picture(image, data.val.preprocessing)
            pictures[f"{name}: truth"] = colored(mask.numpy(), data.palette)
            pictures[f"{name}: prediction"] = colored(found.numpy(), data.palette)
    return pictures


class _Whole(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Pictures and masks at their own size."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.dataset.whole(index)


def _batches(dataset: Any, batch_size: int, workers: int, rank: int, world: int) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's pictures with their masks, those of one size and together of at most PIXELS stacked."""
    places = list(range(rank, len(dataset), world))
    loader: DataLoader[Any] = DataLoader(
        _Whole(dataset),
        batch_sampler=[places[first : first + batch_size] for first in range(0, len(places), batch_size)],
        num_workers=workers,
        collate_fn=list,
        generator=torch.Generator(),
    )
    for loaded in loader:
        sizes = dict.fromkeys(tuple(mask.shape) for _, mask in loaded)
        for size in sizes:
            alike = [pair for pair in loaded if tuple(pair[1].shape) == size]
            together = max(1, PIXELS // (size[0] * size[1]))
            for first in range(0, len(alike), together):
                images, labels = zip(*alike[first : first + together])
                yield torch.stack(images), torch.stack(labels)
