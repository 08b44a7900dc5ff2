"""ReSTE: binary networks with a rectified straight-through estimator. Nothing is imported until it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repertory.systems.reste.conversion import binarize
    from repertory.systems.reste.deployment import PackedConv2d, deploy
    from repertory.systems.reste.estimators import ESTIMATORS, Estimator, RectifiedSTE, binary_sign, make_estimator
    from repertory.systems.reste.indicators import estimating_error, gradient_instability
    from repertory.systems.reste.layers import BinaryConv2d, advance, set_estimator
    from repertory.systems.reste.method import Reste

_HOMES = {
    "BinaryConv2d": "layers",
    "ESTIMATORS": "estimators",
    "Estimator": "estimators",
    "PackedConv2d": "deployment",
    "RectifiedSTE": "estimators",
    "Reste": "method",
    "advance": "layers",
    "binarize": "conversion",
    "binary_sign": "estimators",
    "deploy": "deployment",
    "estimating_error": "indicators",
    "gradient_instability": "indicators",
    "make_estimator": "estimators",
    "set_estimator": "layers",
}
__all__ = [
    "ESTIMATORS",
    "BinaryConv2d",
    "Estimator",
    "PackedConv2d",
    "RectifiedSTE",
    "Reste",
    "advance",
    "binarize",
    "binary_sign",
    "deploy",
    "estimating_error",
    "gradient_instability",
    "make_estimator",
    "set_estimator",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
