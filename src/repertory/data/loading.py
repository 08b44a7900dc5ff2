"""One way to every data set: a bundled name, or the user's own folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

from repertory.data.bundled import BUNDLED
from repertory.data.composites import are_composites, composites_named
from repertory.data.dense_folder import is_segmentation_folder, load_segmentation_folder
from repertory.data.dense_readers import PUBLISHED, load_published
from repertory.data.folder import load_folder
from repertory.data.images import ImageData
from repertory.data.preprocessing import Preprocessing
from repertory.data.segmentation import SegmentationData
from repertory.errors import unknown_name


@overload
def load(
    name: Literal["digits", "mnist5k", "fashion_mnist"],
    root: str | Path | None = None,
    size: int | Sequence[int] | None = None,
    channels: str | None = None,
    val_fraction: float = 0.2,
) -> ImageData: ...


@overload
def load(
    name: Literal["composites", "cityscapes", "ade20k", "pascal_voc", "pascal_voc_aug", "coco_stuff"],
    root: str | Path | None = None,
    size: int | Sequence[int] | None = None,
    channels: str | None = None,
    val_fraction: float = 0.2,
) -> SegmentationData: ...


@overload
def load(
    name: str | Path,
    root: str | Path | None = None,
    size: int | Sequence[int] | None = None,
    channels: str | None = None,
    val_fraction: float = 0.2,
) -> Any: ...


def load(
    name: str | Path,
    root: str | Path | None = None,
    size: int | Sequence[int] | None = None,
    channels: str | None = None,
    val_fraction: float = 0.2,
) -> ImageData | SegmentationData:
    """The data set ``name``.

    Args:
        name: pictures with a class: ``digits``, ``mnist5k``, ``fashion_mnist``, or a folder of classes; pictures with
            masks: ``composites`` (``composites:01`` has the digits 0 and 1 alone), ``cityscapes``, ``ade20k``,
            ``pascal_voc``, ``pascal_voc_aug``, ``coco_stuff``, or a folder with ``images/`` and ``masks/``. A folder
            is anything with a ``/`` or a ``Path``.
        root: where the files of a set lie that is not part of a library.
        size: pixels of the images, one number or (height, width); a set's own, 224 for a folder of classes, 512 for
            one of masks. ``composites`` are drawn at it.
        channels: ``RGB``, ``BGR`` or ``L``; a set's own, RGB for a folder.
        val_fraction: share of each class held out to validate where nothing else says so, above 0 and below 1.

    Raises:
        ValueError, FileNotFoundError, NotADirectoryError: one sentence on what is wrong.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction is {val_fraction}; it must be above 0 and below 1")
    data: ImageData | SegmentationData
    at = Path(root).expanduser() if root is not None else None
    if isinstance(name, Path) or "/" in name:
        data = _folder(Path(name).expanduser(), val_fraction)
    elif name in BUNDLED:
        data = BUNDLED[name](at, val_fraction)
    elif name in PUBLISHED:
        data = load_published(name, at)
    elif are_composites(name):
        data = composites_named(name) if size is None else composites_named(name, _sides(size))
    elif Path(name).is_dir():
        raise ValueError(f"unknown data set {name!r}; for the folder of that name write './{name}'")
    else:
        raise unknown_name("data set", name, (*BUNDLED, *PUBLISHED, "composites"))
    return data.with_preprocessing(_adapted(data.preprocessing, size, channels))


def _folder(root: Path, val_fraction: float) -> ImageData | SegmentationData:
    if is_segmentation_folder(root):
        return load_segmentation_folder(root, Preprocessing(size=(512, 512), crop=1.0))
    return load_folder(root, Preprocessing(), val_fraction)


def _adapted(preprocessing: Preprocessing, size: int | Sequence[int] | None, channels: str | None) -> Preprocessing:
    if size is not None:
        preprocessing = replace(preprocessing, size=_sides(size))
    if channels is not None:
        preprocessing = with_channels(preprocessing, channels)
    return preprocessing


def _sides(size: int | Sequence[int]) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(int(side) for side in size)
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"size is {size}; it must be one number of pixels or (height, width), 1 or more")
    return sides[0], sides[1]


def with_channels(preprocessing: Preprocessing, channels: str) -> Preprocessing:
    """``preprocessing`` for pictures of other ``channels``; statistics are repeated, averaged or reversed to fit."""
    if channels not in ("RGB", "BGR", "L"):
        raise ValueError(f"channels is {channels!r}; it must be RGB, BGR or L")
    statistics: list[tuple[float, ...]] = []
    for values in (preprocessing.mean, preprocessing.std):
        if channels == "L":
            statistics.append((sum(values) / len(values),))
        elif len(values) == 1:
            statistics.append(tuple(values) * 3)
        else:
            reverse = (channels == "BGR") != (preprocessing.channels == "BGR")
            statistics.append(tuple(values[::-1] if reverse else values))
    return replace(preprocessing, mean=statistics[0], std=statistics[1], channels=channels)
