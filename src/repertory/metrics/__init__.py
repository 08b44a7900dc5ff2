"""Published evaluation protocols."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repertory.metrics.confusion import ConfusionMatrix

_HOMES = {"ConfusionMatrix": "confusion"}
__all__ = ["ConfusionMatrix"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"repertory.metrics.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'repertory.metrics' has no attribute {name!r}")
