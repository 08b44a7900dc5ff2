"""CCNet: segmentation with recurrent criss-cross attention. Nothing is imported until it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repertory.systems.ccnet.losses import CategoryConsistentLoss, DeepSupervisionLoss
    from repertory.systems.ccnet.method import CategoryConsistency
    from repertory.systems.ccnet.model import CCNet, CrissCrossAttention, CrissCrossHead, ccnet, ccnet_resnet101
    from repertory.systems.ccnet.pictures import affinity_picture

_HOMES = {
    "CCNet": "model",
    "CategoryConsistency": "method",
    "CategoryConsistentLoss": "losses",
    "CrissCrossAttention": "model",
    "CrissCrossHead": "model",
    "DeepSupervisionLoss": "losses",
    "affinity_picture": "pictures",
    "ccnet": "model",
    "ccnet_resnet101": "model",
}
__all__ = [
    "CCNet",
    "CategoryConsistency",
    "CategoryConsistentLoss",
    "CrissCrossAttention",
    "CrissCrossHead",
    "DeepSupervisionLoss",
    "affinity_picture",
    "ccnet",
    "ccnet_resnet101",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
