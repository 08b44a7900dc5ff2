"""Published vision methods kept performable, on today's PyTorch, behind one interface.

Nothing heavy is imported until it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repertory.catalog import create_model, from_pretrained, list_methods, list_models, list_systems
    from repertory.workflows import Run, reproduce, train, verify

__version__ = "0.1.0"

_HOMES = {
    "create_model": "repertory.catalog",
    "from_pretrained": "repertory.catalog",
    "list_methods": "repertory.catalog",
    "list_models": "repertory.catalog",
    "list_systems": "repertory.catalog",
    "Run": "repertory.workflows",
    "reproduce": "repertory.workflows",
    "train": "repertory.workflows",
    "verify": "repertory.workflows",
}
__all__ = [
    "Run",
    "create_model",
    "from_pretrained",
    "list_methods",
    "list_models",
    "list_systems",
    "reproduce",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in ("ops", "nn", "data", "metrics", "catalog", "timm"):
        return import_module(f"repertory.{name}")
    raise AttributeError(f"module 'repertory' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
