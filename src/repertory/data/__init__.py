"""Readers, bundled data, simulation and samplers.

``load("mnist5k")`` or ``load("photos/")`` gives an :class:`ImageData`, ``load("composites")`` a
:class:`SegmentationData`, ``load_translation("django-en-de")`` a :class:`ParallelText`. Nothing heavy is imported until
it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repertory.data.images import ArrayImages, FileImages, ImageData, ImageSet, prepare
    from repertory.data.loading import load
    from repertory.data.preprocessing import Preprocessing
    from repertory.data.reading import read_image
    from repertory.data.segmentation import (
        ArraySegmentation,
        FileSegmentation,
        SegmentationData,
        SegmentationSet,
        prepare_pair,
        read_mask,
    )
    from repertory.data.translation import ParallelText, SentencePairs, load_translation
    from repertory.data.translation_vocabulary import BytePairs, encode_pairs

_HOMES = {
    "ArrayImages": "images",
    "ArraySegmentation": "segmentation",
    "BytePairs": "translation_vocabulary",
    "FileImages": "images",
    "FileSegmentation": "segmentation",
    "ImageData": "images",
    "ImageSet": "images",
    "ParallelText": "translation",
    "Preprocessing": "preprocessing",
    "SegmentationData": "segmentation",
    "SegmentationSet": "segmentation",
    "SentencePairs": "translation",
    "encode_pairs": "translation_vocabulary",
    "load": "loading",
    "load_translation": "translation",
    "prepare": "images",
    "prepare_pair": "segmentation",
    "read_image": "reading",
    "read_mask": "segmentation",
}
__all__ = [
    "ArrayImages",
    "ArraySegmentation",
    "BytePairs",
    "FileImages",
    "FileSegmentation",
    "ImageData",
    "ImageSet",
    "ParallelText",
    "Preprocessing",
    "SegmentationData",
    "SegmentationSet",
    "SentencePairs",
    "encode_pairs",
    "load",
    "load_translation",
    "prepare",
    "prepare_pair",
    "read_image",
    "read_mask",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"repertory.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'repertory.data' has no attribute {name!r}")
