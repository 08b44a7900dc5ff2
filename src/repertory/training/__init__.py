"""Training machinery that knows no particular system: the ``Method`` protocol and the Lightning task that drives it.

``fit`` and what it needs are imported when first asked for: systems import the protocol and must stay light.
"""

from __future__ import annotations

import importlib
from typing import Any

from repertory.training.method import Batch, Method, Outputs, Progress
from repertory.training.settings import FitSettings, SegmentationSettings

_LAZY = {
    "CheckpointError": "checkpoint",
    "DifficultyStore": "difficulty",
    "FitResult": "engine",
    "Inference": "inference",
    "check_claims": "engine",
    "evaluate": "evaluation",
    "evaluate_segmentation": "segmentation",
    "features_and_logits": "outputs",
    "fit": "engine",
    "label_entropy": "difficulty",
    "sample_pictures": "segmentation",
}

__all__ = ["Batch", "FitSettings", "Method", "Outputs", "Progress", "SegmentationSettings", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"repertory.training.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
