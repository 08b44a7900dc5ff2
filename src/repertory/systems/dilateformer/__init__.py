"""DilateFormer: a pyramid backbone with multi-scale dilated attention. Nothing is imported until it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repertory.systems.dilateformer.model import (
        DilateFormer,
        MultiScaleDilatedAttention,
        dilateformer_base,
        dilateformer_small,
        dilateformer_tiny,
    )

__all__ = ["DilateFormer", "MultiScaleDilatedAttention", "dilateformer_base", "dilateformer_small", "dilateformer_tiny"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"{__name__}.model"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
