"""The default optimiser and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from repertory.training.settings import FitSettings


def default_optimizer(parameters: Iterable[nn.Parameter], settings: FitSettings) -> Optimizer:
    """SGD or AdamW over the ``parameters`` that take gradients; ValueError where none does."""
    trained = [p for p in parameters if p.requires_grad]
    if not trained:
        raise ValueError("the model has no parameter that takes a gradient, so there is nothing to train")
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(trained, lr=settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        trained,
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )


def lr_factor(schedule: str, step: float, total: float, warmup: int, power: float = 0.9) -> float:
    """What the learning rate is multiplied by at ``step`` of ``total``, the first ``warmup`` steps rising linearly.

    Steps may be fractions, see :meth:`~repertory.training.plan.Plan.place`.
    ``power`` is the exponent of the ``poly`` schedule, (share of the run that is left) ** power.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, total - warmup)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    if schedule == "poly":
        return (1 - min(1.0, done)) ** power
    if schedule == "step":
        return 0.1 ** ((step >= total / 2) + (step >= 3 * total / 4))
    return 1.0


def set_lr(optimizer: Optimizer, factor: float) -> None:
    """Set every group to ``factor`` times the rate it was built with."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
