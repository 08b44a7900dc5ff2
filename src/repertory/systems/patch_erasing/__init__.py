"""PatchErasing and the measures of difficulty that it follows. Nothing is imported until it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repertory.systems.patch_erasing.erasing import erase_patches
    from repertory.systems.patch_erasing.method import PatchErasing
    from repertory.systems.patch_erasing.mixing import FollowPeriod, FollowProportion, MixingPolicy, mixup
    from repertory.systems.patch_erasing.periods import Periods, assimilation_rate, periods_of, smoothed_rate
    from repertory.systems.patch_erasing.plots import plot_periods
    from repertory.systems.patch_erasing.proportion import DataProportion

_HOMES = {
    "DataProportion": "proportion",
    "FollowPeriod": "mixing",
    "FollowProportion": "mixing",
    "MixingPolicy": "mixing",
    "PatchErasing": "method",
    "Periods": "periods",
    "assimilation_rate": "periods",
    "erase_patches": "erasing",
    "mixup": "mixing",
    "periods_of": "periods",
    "plot_periods": "plots",
    "smoothed_rate": "periods",
}
__all__ = [
    "DataProportion",
    "FollowPeriod",
    "FollowProportion",
    "MixingPolicy",
    "PatchErasing",
    "Periods",
    "assimilation_rate",
    "erase_patches",
    "mixup",
    "periods_of",
    "plot_periods",
    "smoothed_rate",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
