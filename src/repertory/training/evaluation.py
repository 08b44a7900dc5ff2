"""Accuracy, loss and calibration of a classifier over a data set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from repertory.training.loading import collate, to_device


@torch.no_grad()
def evaluate(
    model: nn.Module,
    dataset: Any,
    *,
    batch_size: int = 256,
    workers: int = 0,
    precision: str = "32-true",
    rank: int = 0,
    world: int = 1,
) -> dict[str, float]:
    """Fractions in [0, 1] ``top1``, ``top1_error``, ``ece`` (15 equal bins), and ``loss`` (mean cross-entropy, nats).

    ``dataset[i]`` is (image, label, index). The model runs where its parameters are, in evaluation mode, and gets its
    modes back. With ``world`` processes each takes every world-th sample and all get the figures of the whole.
    """
    from torchmetrics import MeanMetric
    from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

    if len(dataset) < world:
        raise ValueError(f"the data to evaluate on has {len(dataset)} images; each of {world} processes needs one")
    device, dtype = place(model)
    together = {"sync_on_compute": world > 1}
    metrics: dict[str, Any] = {"loss": MeanMetric(**together).to(device)}
    loader = DataLoader(
        dataset,
        batch_sampler=[
            list(range(first, min(len(dataset), first + batch_size * world), world))
            for first in range(rank, len(dataset), batch_size * world)
        ],
        num_workers=workers,
        collate_fn=collate,
        generator=torch.Generator(),
    )
    with evaluating(model):
        for loaded in loader:
            batch = to_device(loaded, device, dtype)
            with autocast(device, precision):
                logits = model(batch.images)
            logits = logits.float()
            if len(metrics) == 1:
                kind = {"num_classes": logits.shape[1], "validate_args": False, **together}
                metrics["top1"] = MulticlassAccuracy(average="micro", **kind).to(device)
                metrics["ece"] = MulticlassCalibrationError(n_bins=15, norm="l1", **kind).to(device)
            metrics["loss"].update(F.cross_entropy(logits, batch.labels, reduction="none"))
            probabilities = logits.softmax(1)
            metrics["top1"].update(probabilities, batch.labels)
            metrics["ece"].update(probabilities, batch.labels)
    values = {name: float(metric.compute()) for name, metric in metrics.items()}
    return {"top1": values["top1"], "top1_error": 1 - values["top1"], "loss": values["loss"], "ece": values["ece"]}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """``model`` in evaluation mode; afterwards every module has the mode it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield model
    finally:
        for module in training:
            module.training = True


def place(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of the model's first floating-point parameter or buffer (CPU, float32 where it has none)."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.float32


def autocast(device: torch.device, precision: str) -> Any:
    """The autocast context of a ``precision`` of the settings, or none."""
    if not precision.endswith("-mixed"):
        return nullcontext()
    dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float16
    return torch.autocast(device.type, dtype)
