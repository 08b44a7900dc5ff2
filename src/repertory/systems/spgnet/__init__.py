"""SPGNet: encoder-decoder stages joined by semantic prediction guidance. Nothing is imported until it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repertory.systems.spgnet.gates import (
        GatherExciteGate,
        Reweighting,
        SemanticGate,
        SemanticPredictionGuidance,
        SqueezeExciteGate,
    )
    from repertory.systems.spgnet.losses import StageLoss
    from repertory.systems.spgnet.model import SPGNet, initialise_encoders, spgnet_resnet50, spgnet_small

_HOMES = {
    "GatherExciteGate": "gates",
    "Reweighting": "gates",
    "SPGNet": "model",
    "SemanticGate": "gates",
    "SemanticPredictionGuidance": "gates",
    "SqueezeExciteGate": "gates",
    "StageLoss": "losses",
    "initialise_encoders": "model",
    "spgnet_resnet50": "model",
    "spgnet_small": "model",
}
__all__ = [
    "GatherExciteGate",
    "Reweighting",
    "SPGNet",
    "SemanticGate",
    "SemanticPredictionGuidance",
    "SqueezeExciteGate",
    "StageLoss",
    "initialise_encoders",
    "spgnet_resnet50",
    "spgnet_small",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
