"""DaP: drop-and-pick training. Nothing is imported until it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repertory.systems.dap.method import Dap
    from repertory.systems.dap.sampler import DropAndPick, DropAndPickBatches
    from repertory.systems.dap.schedule import Cycle, expected_cost
    from repertory.systems.dap.selection import Confident, Easiness, LowestFraction

_HOMES = {
    "Confident": "selection",
    "Cycle": "schedule",
    "Dap": "method",
    "DropAndPick": "sampler",
    "DropAndPickBatches": "sampler",
    "Easiness": "selection",
    "LowestFraction": "selection",
    "expected_cost": "schedule",
}
__all__ = [
    "Confident",
    "Cycle",
    "Dap",
    "DropAndPick",
    "DropAndPickBatches",
    "Easiness",
    "LowestFraction",
    "expected_cost",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
