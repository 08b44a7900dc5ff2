"""ELSA: local attention by a filter of every pixel. Nothing is imported until it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repertory.systems.elsa.drop_in import elsa_in_swin, elsa_in_volo, elsa_volo_d1
    from repertory.systems.elsa.model import (
        ELSASwin,
        HadamardAttention,
        elsa_swin_base,
        elsa_swin_small,
        elsa_swin_tiny,
    )

_HOMES = {
    "ELSASwin": "model",
    "HadamardAttention": "model",
    "elsa_in_swin": "drop_in",
    "elsa_in_volo": "drop_in",
    "elsa_swin_base": "model",
    "elsa_swin_small": "model",
    "elsa_swin_tiny": "model",
    "elsa_volo_d1": "drop_in",
}
__all__ = [
    "ELSASwin",
    "HadamardAttention",
    "elsa_in_swin",
    "elsa_in_volo",
    "elsa_swin_base",
    "elsa_swin_small",
    "elsa_swin_tiny",
    "elsa_volo_d1",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
