"""PSLT: a light backbone of ladder self-attention with progressive shift. Nothing is imported until it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repertory.systems.pslt.model import PSLT, LadderBlock, pslt, pslt_large, pslt_tiny

__all__ = ["PSLT", "LadderBlock", "pslt", "pslt_large", "pslt_tiny"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"{__name__}.model"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
