"""A folder of the user's own pictures and masks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from repertory.data.folder import images_below
from repertory.data.preprocessing import Preprocessing
from repertory.data.segmentation import IGNORE_INDEX, FileSegmentation, SegmentationData, pascal_palette, read_mask

LAYOUT = "expected images/train, images/val, masks/train and masks/val"
_LOOKED_AT = 50  # masks that are opened to see whether 255 is a class in disguise


@dataclass(frozen=True)
class ClassMap:
    """What masks of a folder mean: names, the index of each stored value or colour, and colours to draw with.

    ``values`` and ``colours`` are None where stored values are class indices and no mask stores colours.
    """

    classes: tuple[str, ...]
    values: Mapping[int, int] | None = None
    colours: Mapping[tuple[int, int, int], int] | None = None
    palette: np.ndarray | None = None


def is_segmentation_folder(root: Path) -> bool:
    """Whether ``root`` holds ``images/`` and ``masks/``, or ``train/`` in one of them."""
    homes = [root / "images", root / "masks"]
    return all(home.is_dir() for home in homes) or any((home / "train").is_dir() for home in homes)


def load_segmentation_folder(root: Path, preprocessing: Preprocessing) -> SegmentationData:
    """Pictures in ``images/{train,val}`` and masks of the same names in ``masks/{train,val}`` (``test`` for ``val``).

    Masks store class indices in one channel or a palette, 255 for pixels to ignore. ``classes.txt`` names a class a
    line; ``classes.json`` is a list of names, or of objects with ``name`` and, if wanted, ``color`` ([R, G, B], which
    also reads masks that store colours), ``value`` (the number that stands for the class in masks of one channel) and
    ``ignore`` (true for a color or value that is to be ignored). Without either file the classes are the numbers up to
    the largest in any mask.

    Raises:
        FileNotFoundError: where a folder or the mask of a picture is missing.
        ValueError: for a part without pictures, or class names or masks that cannot be.
    """
    held_out = next((part for part in ("val", "test") if (root / "images" / part).is_dir()), "val")
    parts = [_pairs(root, part) for part in ("train", held_out)]
    found = _class_map(root)
    masks = [mask for pairs in parts for _, mask in pairs]
    if found is None:
        found = ClassMap(tuple(str(index) for index in range(_largest(masks) + 1)))
    decode = partial(read_mask, colours=found.colours, values=found.values)
    if found.values is None and found.colours is None:
        _check_binary(masks[:_LOOKED_AT])
    train, val = (FileSegmentation(pairs, found.classes, preprocessing, decode) for pairs in parts)
    palette = pascal_palette(len(found.classes)) if found.palette is None else found.palette
    split = f"the folder images/{held_out}"
    return SegmentationData(root.resolve().name, train, val, found.classes, palette, split=split)


def _pairs(root: Path, part: str) -> list[tuple[Path, Path]]:
    """Pictures of one part with their masks."""
    images, masks = root / "images" / part, root / "masks" / part
    for folder in (images, masks):
        if not folder.is_dir():
            raise FileNotFoundError(f"the data folder {root} has no folder {folder.relative_to(root)}; {LAYOUT}")
    there = {path.relative_to(masks).with_suffix(""): path for path in images_below(masks)}
    pairs = []
    for image in images_below(images):
        stem = image.relative_to(images).with_suffix("")
        if stem not in there:
            raise FileNotFoundError(f"the picture {image} has no mask: expected {masks / stem}.png")
        pairs.append((image, there[stem]))
    if not pairs:
        raise ValueError(f"the split {images} holds no image; {LAYOUT}, each with pictures")
    return pairs


def _class_map(root: Path) -> ClassMap | None:
    names, described = root / "classes.txt", root / "classes.json"
    if described.is_file():
        return _described(described)
    if not names.is_file():
        return None
    lines = [line.strip() for line in names.read_text(encoding="utf-8-sig").splitlines()]
    return ClassMap(_checked([line for line in lines if line], names))


def _checked(names: Sequence[str], file: Path) -> tuple[str, ...]:
    """``names`` if there are any and no two are alike."""
    if not names:
        raise ValueError(f"{file} names no class")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{file} names the class {twice!r} twice")
    return tuple(names)


def _described(file: Path) -> ClassMap:
    try:
        entries = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from None
    if not isinstance(entries, list) or not all(isinstance(entry, str | dict) for entry in entries):
        raise ValueError(f"{file} must be a list of names, or of objects with name, color, value and ignore")
    entries = [{"name": entry} if isinstance(entry, str) else entry for entry in entries]
    for number, entry in enumerate(entries):
        _check_entry(entry, number, file)
    kept = [entry for entry in entries if not entry.get("ignore")]
    classes = _checked([entry["name"] for entry in kept], file)
    index = {id(entry): place for place, entry in enumerate(kept)}
    colours = {tuple(e["color"]): index.get(id(e), IGNORE_INDEX) for e in entries if "color" in e}
    values = {e["value"]: index.get(id(e), IGNORE_INDEX) for e in entries if "value" in e}
    for given, kind in ((colours, "color"), (values, "value")):
        if given and not all(kind in entry for entry in kept):
            raise ValueError(f"{file} gives some classes a {kind} and others none; give all of them one, or none")
        if len(given) < sum(kind in entry for entry in entries):
            raise ValueError(f"{file} gives two entries one {kind}")
    palette = np.array([entry["color"] for entry in kept], np.uint8) if colours else None
    return ClassMap(classes, {IGNORE_INDEX: IGNORE_INDEX} | values if values else None, colours or None, palette)


def _check_entry(entry: dict[str, Any], number: int, file: Path) -> None:
    def whole(value: Any, most: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most

    if not entry.get("ignore") and not (isinstance(entry.get("name"), str) and entry["name"]):
        raise ValueError(f"entry {number} of {file} has no name")
    colour = entry.get("color", [0, 0, 0])
    if not (isinstance(colour, list) and len(colour) == 3 and all(whole(value, 255) for value in colour)):
        raise ValueError(f"entry {number} of {file} has the color {colour}; it must be three whole numbers of 0 to 255")
    if not whole(entry.get("value", 0), 65535):
        raise ValueError(f"entry {number} of {file} has the value {entry['value']}; it must be a whole number to 65535")


def _largest(masks: Sequence[Path]) -> int:
    """The largest class index in ``masks``."""
    largest = max((int(mask[mask != IGNORE_INDEX].max(initial=-1)) for mask in map(read_mask, masks)), default=-1)
    if largest < 0:
        raise ValueError(f"every mask in {masks[0].parent} is {IGNORE_INDEX} throughout, which is ignored")
    return largest


def _check_binary(masks: Sequence[Path]) -> None:
    """ValueError for masks of 0 and 255 only: what is meant as a class would be ignored."""
    seen: set[int] = set()
    for path in masks:
        seen |= set(np.unique(read_mask(path)).tolist())
        if not seen <= {0, IGNORE_INDEX}:
            return
    if seen == {0, IGNORE_INDEX}:
        raise ValueError(
            f"the masks in {masks[0].parent} hold only 0 and 255, and 255 is ignored: if it is a class, write "
            'classes.json with [{"name": …, "value": 0}, {"name": …, "value": 255}]'
        )
