"""CONTAINER: attention, convolution and MLP-Mixer as one aggregation layer. Nothing is imported before it is needed."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repertory.systems.container.aggregation import (
        ContextAggregation,
        DenseAffinity,
        DynamicAffinity,
        LocalAffinity,
    )
    from repertory.systems.container.model import Container, container_full, container_light

__all__ = [
    "Container",
    "ContextAggregation",
    "DenseAffinity",
    "DynamicAffinity",
    "LocalAffinity",
    "container_full",
    "container_light",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        room = "model" if name.lower().startswith("container") else "aggregation"
        return getattr(import_module(f"{__name__}.{room}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
