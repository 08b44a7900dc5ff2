"""Readers, bundled data, simulation and samplers.

``load("mnist5k")`` or ``load("photos/")`` gives an :class:`ImageData`. Nothing heavy is imported until it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repertory.data.images import ArrayImages, FileImages, ImageData, ImageSet, prepare
    from repertory.data.loading import load
    from repertory.data.preprocessing import Preprocessing
    from repertory.data.reading import read_image

_HOMES = {
    "ArrayImages": "images",
    "FileImages": "images",
    "ImageData": "images",
    "ImageSet": "images",
    "Preprocessing": "preprocessing",
    "load": "loading",
    "prepare": "images",
    "read_image": "reading",
}
__all__ = ["ArrayImages", "FileImages", "ImageData", "ImageSet", "Preprocessing", "load", "prepare", "read_image"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"repertory.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'repertory.data' has no attribute {name!r}")
