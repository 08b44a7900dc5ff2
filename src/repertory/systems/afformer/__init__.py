"""AFFormer: segmentation without a decoder, by a linear transformer. Nothing is imported until it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repertory.systems.afformer.model import (
        AdaptiveFrequencyFilter,
        AFFormer,
        AFFormerSegmentor,
        HighPassFilters,
        PrototypeEncoder,
        afformer_base,
        afformer_base_segmentor,
        afformer_small,
        afformer_small_segmentor,
        afformer_tiny,
        afformer_tiny_segmentor,
    )

__all__ = [
    "AFFormer",
    "AFFormerSegmentor",
    "AdaptiveFrequencyFilter",
    "HighPassFilters",
    "PrototypeEncoder",
    "afformer_base",
    "afformer_base_segmentor",
    "afformer_small",
    "afformer_small_segmentor",
    "afformer_tiny",
    "afformer_tiny_segmentor",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"{__name__}.model"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
