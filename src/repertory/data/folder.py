"""A folder of the user's own pictures, one folder a class."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from repertory.data.images import FileImages, ImageData
from repertory.data.preprocessing import Preprocessing
from repertory.data.reading import is_image

LAYOUT = "expected CLASS/*, or train/CLASS/* and val/CLASS/* (or test/CLASS/*)"


def load_folder(root: Path, preprocessing: Preprocessing, val_fraction: float = 0.2) -> ImageData:
    """Pictures under ``root``: ``train/`` and ``val/`` or ``test/``, else ``CLASS/*`` split class by class.

    The split goes by a hash of the path below ``root``: a picture keeps its side when others come or go. Every class
    has at least one picture on each side.

    Raises:
        FileNotFoundError, NotADirectoryError: where ``root`` is not a folder.
        ValueError: where there is no picture, one class, a class with too few, or a class that only validates.
    """
    if not root.exists():
        raise FileNotFoundError(f"the data folder {root} does not exist")
    if not root.is_dir():
        raise NotADirectoryError(f"the data folder {root} is a file")
    train_root = root / "train" if (root / "train").is_dir() else root
    train = _by_class(train_root)
    if len(train) < 2:
        known = f"one class ({next(iter(train))})" if train else "no image in class folders"
        raise ValueError(f"the data folder {train_root} holds {known}; {LAYOUT}, with two classes or more")
    val_root = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
    if train_root == root or val_root is None:
        train, val = _split(train, train_root, val_fraction)
        split = f"{val_fraction:g} of each class by hash of the path"
    else:
        val = _by_class(val_root)
        split = f"the folder {val_root.name}/"
        if not any(val.values()):
            raise ValueError(f"the data folder {val_root} holds no image in class folders; {LAYOUT}")
        if foreign := sorted(set(val) - set(train)):
            raise ValueError(f"the class {foreign[0]!r} of {val_root} has no folder in {train_root}")
    classes = tuple(train)
    name = root.resolve().name
    return ImageData(name, _files(train, classes, preprocessing), _files(val, classes, preprocessing), classes, split)


def load_whole_folder(root: Path, preprocessing: Preprocessing) -> FileImages:
    """Every picture of ``root``, ``CLASS/*``, to evaluate on; of a folder with ``val/`` or ``test/``, that part.

    Raises:
        FileNotFoundError, ValueError: where there is no folder, or no picture in class folders.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"the data folder {root} does not exist")
    root = next((root / name for name in ("val", "test") if (root / name).is_dir()), root)
    found = _by_class(root)
    if not found:
        raise ValueError(f"the data folder {root} holds no image in class folders; {LAYOUT}")
    return _files(found, tuple(found), preprocessing)


def images_below(folder: Path) -> list[Path]:
    """Every picture below ``folder``, sorted; hidden files and folders are left out."""
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [path for name in names if is_image(path := Path(place, name))]
    return sorted(found)


def _by_class(root: Path) -> dict[str, list[Path]]:
    folders = sorted(f for f in root.iterdir() if f.is_dir() and not f.name.startswith("."))
    found = {folder.name: images_below(folder) for folder in folders}
    return {name: paths for name, paths in found.items() if paths}


def _files(part: Mapping[str, Sequence[Path]], classes: Sequence[str], preprocessing: Preprocessing) -> FileImages:
    paths = [(path, label) for label, name in enumerate(classes) for path in part.get(name, ())]
    return FileImages([path for path, _ in paths], [label for _, label in paths], classes, preprocessing)


def _split(
    found: Mapping[str, list[Path]], root: Path, val_fraction: float
) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    train, val = {}, {}
    for name, paths in found.items():
        if len(paths) < 2:
            raise ValueError(
                f"the class {name!r} of {root} has one image ({paths[0].name}); "
                "splitting a class into training and validation takes two or more"
            )
        place = {path: _place(path, root) for path in paths}
        ranked = sorted(paths, key=lambda path: place[path])
        count = sum(place[path] < val_fraction for path in paths)
        chosen = set(ranked[: min(max(count, 1), len(paths) - 1)])
        train[name] = [path for path in paths if path not in chosen]
        val[name] = [path for path in paths if path in chosen]
    return train, val


def _place(path: Path, root: Path) -> float:
    """A number in [0, 1) that depends on the path below ``root`` alone, on every system."""
    digest = hashlib.sha256(path.relative_to(root).as_posix().encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
