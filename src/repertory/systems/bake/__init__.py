"""BAKE: self-distillation with batch knowledge ensembling. Nothing is imported until it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repertory.systems.bake.losses import BAKELoss, distillation_loss, soft_targets
    from repertory.systems.bake.method import Bake, deploy
    from repertory.systems.bake.sampler import ClassPairBatchSampler

_HOMES = {
    "BAKELoss": "losses",
    "Bake": "method",
    "ClassPairBatchSampler": "sampler",
    "deploy": "method",
    "distillation_loss": "losses",
    "soft_targets": "losses",
}
__all__ = ["BAKELoss", "Bake", "ClassPairBatchSampler", "deploy", "distillation_loss", "soft_targets"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
