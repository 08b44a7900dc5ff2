"""Few labelled pictures of a large set, as VTAB-1k has them: 800 to train and 200 to choose settings, then all 1,000.

VTAB-1k is 19 tasks of 1,000 training pictures each (Zhai et al., arXiv 1910.04867). :func:`few_shot` draws such a split
from any data; :func:`load_vtab` reads the tasks in the layout of list files that adapter papers share, and
:func:`write_vtab` writes it. Settings are chosen on ``search``; ``final`` is what is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as VF

from repertory.data.images import INTERPOLATIONS, FileImages, ImageData, ImageSet
from repertory.data.preprocessing import Preprocessing
from repertory.data.reading import read_image
from repertory.errors import unknown_name
from repertory.files import Replacement

# Number of classes by task, in the benchmark's three groups.
VTAB_GROUPS: Mapping[str, Mapping[str, int]] = {
    "natural": {
        "cifar100": 100,
        "caltech101": 102,
        "dtd": 47,
        "oxford_flowers102": 102,
        "oxford_iiit_pet": 37,
        "svhn": 10,
        "sun397": 397,
    },
    "specialised": {"patch_camelyon": 2, "eurosat": 10, "resisc45": 45, "diabetic_retinopathy": 5},
    "structured": {
        "clevr_count": 8,
        "clevr_dist": 6,
        "dmlab": 6,
        "kitti": 4,
        "dsprites_loc": 16,
        "dsprites_ori": 16,
        "smallnorb_azi": 18,
        "smallnorb_ele": 18,
    },
}
VTAB_TASKS: Mapping[str, int] = {task: classes for group in VTAB_GROUPS.values() for task, classes in group.items()}
LISTS = ("train800", "val200", "train800val200", "test")
# Pictures are brought to the model's size without regard to their shape.
VTAB_PREPROCESSING = Preprocessing(size=(224, 224), interpolation="bicubic", crop=1.0)


@dataclass(frozen=True)
class FewShot:
    """``search``, to choose settings on (800 train, 200 validate), and ``final``, to report (1,000 train; the test set
    validates).
    """

    search: ImageData
    final: ImageData


class ChosenImages(ImageSet):
    """The samples ``indices`` of ``source``, in that order, counted anew from 0."""

    def __init__(self, source: ImageSet, indices: Sequence[int]) -> None:
        super().__init__([source.targets[index] for index in indices], source.classes, source.preprocessing)
        self.source, self.indices = source, [int(index) for index in indices]

    def raw(self, index: int) -> Tensor:
        """The picture of the chosen sample ``index``."""
        return self.source.raw(self.indices[index])

    def with_preprocessing(self, preprocessing: Preprocessing) -> ChosenImages:
        """The same pictures, prepared otherwise."""
        other = copy(self)
        other.source, other.preprocessing = self.source.with_preprocessing(preprocessing), preprocessing
        return other


class StretchedFiles(FileImages):
    """Pictures from files, brought to the model's size without regard to their shape, as VTAB's adapters have them."""

    def raw(self, index: int) -> Tensor:
        """The picture of file ``index`` at the size of ``preprocessing``."""
        wanted = self.preprocessing
        image = read_image(self.paths[index], wanted.channels)
        return VF.resize(image, list(wanted.size), INTERPOLATIONS[wanted.interpolation], antialias=True)


def few_shot(data: ImageData, train: int = 800, val: int = 200, seed: int = 0) -> FewShot:
    """Draw ``train`` and ``val`` of the training pictures of ``data`` by ``seed``; its validation part is the test set.

    Each is drawn uniformly, but every class has at least one picture to train on, if there are as many as classes.

    Args:
        data: such as :func:`~repertory.data.loading.load` gives, of a folder or by name.
        train: pictures to train on while settings are chosen, 1 or more.
        val: pictures to choose them by, 1 or more; both together train in the end.
        seed: of the draw, 0 or more.

    Raises:
        ValueError: for numbers below 1, or more pictures than there are.
    """
    for name, count in (("train", train), ("val", val)):
        if count < 1:
            raise ValueError(f"{name} is {count}; it must be at least 1")
    if train + val > len(data.train):
        raise ValueError(f"train and val are {train} and {val}; {data.name} has {len(data.train)} training images")
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed)).tolist()
    if train >= len(data.classes):
        order = _one_of_each_first(order, data.train.targets)
    chosen, held = sorted(order[:train]), sorted(order[train : train + val])
    return _few_shot(
        data.name,
        ChosenImages(data.train, chosen),
        ChosenImages(data.train, held),
        ChosenImages(data.train, sorted(chosen + held)),
        data.val,
        f"{train} and {val} training images drawn by seed {seed}",
    )


def _one_of_each_first(order: Sequence[int], targets: Sequence[int]) -> list[int]:
    """``order`` with the first of each class moved to its front."""
    first = {targets[index]: index for index in reversed(order)}
    front = set(first.values())
    return [*(index for index in order if index in front), *(index for index in order if index not in front)]


def _few_shot(name: str, train: ImageSet, val: ImageSet, both: ImageSet, test: ImageSet, split: str) -> FewShot:
    classes = train.classes
    return FewShot(
        ImageData(name, train, val, classes, f"{split}; {len(val)} to choose settings by"),
        ImageData(name, both, test, classes, f"{split}; {len(both)} train, the test set validates"),
    )


def load_vtab(root: str | Path, task: str, preprocessing: Preprocessing = VTAB_PREPROCESSING) -> FewShot:
    """The VTAB-1k task ``task`` below ``root``.

    ``root/task`` holds ``train800.txt``, ``val200.txt``, ``train800val200.txt`` and ``test.txt``, each line a path
    below that folder and a label. Any other folder in this layout is read too; its classes are those that occur.

    Args:
        root: the folder of all tasks.
        task: folder of one, such as ``cifar100`` (or ``cifar``, as some copies call it).
        preprocessing: of the pictures, which are stretched to its size.

    Raises:
        FileNotFoundError: where a folder, a list or a picture is missing.
        ValueError: for an unknown task, or a line that is not a path and a label in range.
    """
    folder = Path(root).expanduser() / task
    if not folder.is_dir():
        if task not in VTAB_TASKS:
            raise unknown_name("VTAB-1k task", task, VTAB_TASKS)
        raise FileNotFoundError(f"no folder {folder}; it must hold {', '.join(f'{name}.txt' for name in LISTS)}")
    rows = {name: _read_list(folder / f"{name}.txt") for name in LISTS}
    known = VTAB_TASKS.get({"cifar": "cifar100"}.get(task, task))
    count = known or 1 + max(label for part in rows.values() for _, label in part)
    classes = tuple(str(label) for label in range(count))
    for name, part in rows.items():
        for path, label in part:
            if label >= count:
                raise ValueError(f"{folder / name}.txt gives {path.name} label {label}; {task} has 0 to {count - 1}")
    train, val, both, test = (
        StretchedFiles([path for path, _ in part], [label for _, label in part], classes, preprocessing)
        for part in rows.values()
    )
    return _few_shot(task, train, val, both, test, "the benchmark's lists")


def _read_list(path: Path) -> list[tuple[Path, int]]:
    """Pictures and labels of one list; every picture is there."""
    if not path.is_file():
        raise FileNotFoundError(f"no list {path}")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if not name or not label.isdecimal():
            raise ValueError(f"line {number} of {path} is {line!r}; it must be a path and a label, 0 or more")
        if not (path.parent / name).is_file():
            raise FileNotFoundError(f"line {number} of {path} names {name}, which is not there")
        rows.append((path.parent / name, int(label)))
    if not rows:
        raise ValueError(f"the list {path} names no picture")
    return rows


def write_vtab(split: FewShot, folder: str | Path) -> None:
    """Write the four lists of ``split``, whose pictures are files below ``folder``, into that folder.

    Raises:
        TypeError: where the pictures are not files.
        ValueError: where one does not lie below ``folder``.
    """
    folder = Path(folder)
    parts = (split.search.train, split.search.val, split.final.train, split.final.val)
    texts = ["".join(f"{name} {label}\n" for name, label in _rows(part, folder)) for part in parts]
    for name, text in zip(LISTS, texts, strict=True):
        with Replacement(folder / f"{name}.txt") as partial:
            partial.write_text(text, encoding="utf-8")


def _rows(part: ImageSet, folder: Path) -> list[tuple[str, int]]:
    source, indices = (part.source, part.indices) if isinstance(part, ChosenImages) else (part, range(len(part)))
    if not isinstance(source, FileImages):
        raise TypeError(f"the pictures are in a {type(source).__name__}; lists name files, as FileImages has them")
    paths = [source.paths[index] for index in indices]
    for path in paths:
        if not path.is_relative_to(folder):
            raise ValueError(f"the picture {path} does not lie below {folder}, where the lists are to stand")
    return [(path.relative_to(folder).as_posix(), label) for path, label in zip(paths, part.targets, strict=True)]


def vtab_averages(top1: Mapping[str, float]) -> dict[str, float]:
    """Means of ``top1`` (task -> accuracy, all 19): ``tasks`` over tasks, ``groups`` over the means of the groups.

    Papers report one or the other; say both. Beside them the mean of each group.

    Raises:
        ValueError: where a task is missing or unknown.
    """
    if missing := [task for task in VTAB_TASKS if task not in top1]:
        raise ValueError(f"top1 lacks {', '.join(missing)}; an average is over all {len(VTAB_TASKS)} tasks")
    if foreign := next((task for task in top1 if task not in VTAB_TASKS), None):
        raise unknown_name("VTAB-1k task", foreign, VTAB_TASKS)
    groups = {name: sum(top1[task] for task in tasks) / len(tasks) for name, tasks in VTAB_GROUPS.items()}
    return {
        "tasks": sum(top1.values()) / len(top1),
        "groups": sum(groups.values()) / len(groups),
        **groups,
    }
