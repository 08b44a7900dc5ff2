"""HWA, hierarchical weight averaging: K replicas averaged online, the last I averages averaged offline.

"Hierarchical Weight Averaging for Deep Neural Networks", IEEE TNNLS 2023, arXiv 2304.11519. A reading: no authors' code
is public and the paper's figures were not at hand. Training-only: replicas, window, averaging. Inference: one network.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repertory.systems.hwa.averaging import HierarchicalWeightAveraging
    from repertory.systems.hwa.method import Hwa
    from repertory.systems.hwa.window import SlidingWindow, recalibrate

_HOMES = {
    "HierarchicalWeightAveraging": "averaging",
    "Hwa": "method",
    "SlidingWindow": "window",
    "recalibrate": "window",
}
__all__ = ["HierarchicalWeightAveraging", "Hwa", "SlidingWindow", "recalibrate"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"repertory.systems.hwa.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'repertory.systems.hwa' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
