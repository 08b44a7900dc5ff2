"""Published segmentation sets in the layout in which they are unpacked: Cityscapes, ADE20K, Pascal VOC, COCO-Stuff.

Every reader takes ``root`` and lists all pictures with their masks at once; whatever is missing is named with the path
where it was expected. Files are opened when an item is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from repertory.data import dense_classes
from repertory.data.preprocessing import Preprocessing
from repertory.data.segmentation import (
    IGNORE_INDEX,
    Decoder,
    FileSegmentation,
    SegmentationData,
    pascal_palette,
    read_mask,
)

Pairs = list[tuple[Path, Path]]


def cityscapes(root: Path) -> SegmentationData:
    """Cityscapes' finely annotated pictures, 19 classes (Cordts et al., arXiv 1604.01685).

    ``root`` holds ``leftImg8bit/{train,val}/CITY/*_leftImg8bit.png`` and ``gtFine/{train,val}/CITY/
    *_gtFine_labelIds.png``; label ids become the 19 train ids, all others are ignored.
    """
    classes, palette, values = dense_classes.cityscapes_classes(IGNORE_INDEX)

    def pairs(part: str) -> Pairs:
        layout = "leftImg8bit/{train,val}/CITY/*_leftImg8bit.png"
        folder = _folder("cityscapes", root, [f"leftImg8bit/{part}"])
        images = _listed("cityscapes", sorted(folder.glob("*/*_leftImg8bit.png")), folder, layout)

        def mask(image: Path) -> Path:
            name = image.name.removesuffix("_leftImg8bit.png") + "_gtFine_labelIds.png"
            return root / "gtFine" / part / image.parent.name / name

        return _matched("cityscapes", images, mask)

    parts = pairs("train"), pairs("val")
    decode = partial(read_mask, values=values)
    return _data("cityscapes", parts, classes, decode, "the published val", palette, size=(1024, 2048))


def ade20k(root: Path) -> SegmentationData:
    """ADE20K for scene parsing, 150 classes (Zhou et al., CVPR 2017).

    ``root`` is ``ADEChallengeData2016`` or the folder it lies in, with ``images/{training,validation}/*.jpg`` and
    ``annotations/{training,validation}/*.png``; 0 in a mask is ignored, 1 to 150 become 0 to 149.
    """
    root = root / "ADEChallengeData2016" if (root / "ADEChallengeData2016").is_dir() else root
    values = {0: IGNORE_INDEX} | {index + 1: index for index in range(len(dense_classes.ADE20K))}

    def pairs(part: str) -> Pairs:
        folder = _folder("ade20k", root, [f"images/{part}"])
        images = _listed("ade20k", sorted(folder.glob("*.jpg")), folder, f"images/{part}/*.jpg")
        return _matched("ade20k", images, lambda image: root / "annotations" / part / f"{image.stem}.png")

    parts = pairs("training"), pairs("validation")
    return _data("ade20k", parts, dense_classes.ADE20K, partial(read_mask, values=values), "the published validation")


def pascal_voc(root: Path) -> SegmentationData:
    """Pascal VOC 2012, 21 classes with background: 1,464 pictures train, 1,449 validate.

    ``root`` is ``VOC2012``, ``VOCdevkit`` or the folder it lies in, with ``JPEGImages``, ``SegmentationClass`` and
    ``ImageSets/Segmentation/{train,val}.txt``.
    """
    voc = _voc(root)
    parts = [
        _matched(
            "pascal_voc", _voc_images("pascal_voc", voc, _voc_names("pascal_voc", voc, part)), partial(_voc_mask, voc)
        )
        for part in ("train", "val")
    ]
    return _data("pascal_voc", parts, dense_classes.PASCAL_VOC, read_mask, "the published val")


def pascal_voc_aug(root: Path) -> SegmentationData:
    """Pascal VOC 2012 with the Semantic Boundaries Dataset: the 10,582 pictures of the augmented list train.

    ``root`` holds VOC as :func:`pascal_voc` takes it and SBD (Hariharan et al., ICCV 2011) as
    ``benchmark_RELEASE/dataset`` with ``cls/*.mat``, ``train.txt`` and ``val.txt`` (``sbd`` and ``SBD`` are looked for
    too), or SBD's masks as index PNGs in VOC's ``SegmentationClassAug``. The list is
    ``ImageSets/Segmentation/trainaug.txt`` (or ``train_aug.txt``) where that is there, else VOC's train and all of SBD
    without VOC's val. VOC's own mask stands where there is one.
    """
    name, voc = "pascal_voc_aug", _voc(root)
    val = _voc_names(name, voc, "val")
    converted = voc / "SegmentationClassAug"
    places = ["benchmark_RELEASE/dataset", "sbd", "SBD", "dataset"]
    sbd = None if converted.is_dir() else _folder(name, root, places, "or VOC2012/SegmentationClassAug")
    lists = [voc / "ImageSets" / "Segmentation" / f"{file}.txt" for file in ("trainaug", "train_aug")]
    ready = next((file for file in lists if file.is_file()), None)
    if ready is None and sbd is None:
        raise FileNotFoundError(f"{name} has no list of the augmented pictures in {root}: expected {lists[0]}")
    train = _names(ready) if ready else _augmented(_voc_names(name, voc, "train"), val, sbd or voc)

    def mask(image: Path) -> Path:
        own = _voc_mask(voc, image)
        if own.is_file():
            return own
        return sbd / "cls" / f"{image.stem}.mat" if sbd else converted / f"{image.stem}.png"

    parts = _matched(name, _voc_images(name, voc, train), mask), _matched(name, _voc_images(name, voc, val), mask)
    return _data(name, parts, dense_classes.PASCAL_VOC, read_voc_mask, "VOC's published val")


def coco_stuff(root: Path) -> SegmentationData:
    """COCO-Stuff on COCO 2017, 171 classes (Caesar et al., arXiv 1612.03716): 118,287 train, 5,000 validate.

    ``root`` holds ``images/{train2017,val2017}/*.jpg`` and the pixel maps of ``stuffthingmaps_trainval2017.zip`` as
    ``annotations/{train2017,val2017}/*.png`` (``stuffthingmaps`` and ``stuffthingmaps_trainval2017`` are looked for
    too, and pictures beside them).
    """

    def pairs(part: str) -> Pairs:
        folder = _folder("coco_stuff", root, [f"images/{part}", part])
        images = _listed("coco_stuff", sorted(folder.glob("*.jpg")), folder, f"images/{part}/*.jpg")
        homes = ("annotations", "stuffthingmaps", "stuffthingmaps_trainval2017")
        maps = _folder("coco_stuff", root, [f"{home}/{part}" for home in homes])
        return _matched("coco_stuff", images, lambda image: maps / f"{image.stem}.png")

    parts = pairs("train2017"), pairs("val2017")
    decode = partial(read_mask, values=dense_classes.coco_stuff_values(IGNORE_INDEX))
    return _data("coco_stuff", parts, dense_classes.COCO_STUFF, decode, "the published val2017")


PUBLISHED: dict[str, Callable[[Path], SegmentationData]] = {
    "cityscapes": cityscapes,
    "ade20k": ade20k,
    "pascal_voc": pascal_voc,
    "pascal_voc_aug": pascal_voc_aug,
    "coco_stuff": coco_stuff,
}


def load_published(name: str, root: Path | None) -> SegmentationData:
    """The published set ``name`` under ``root``.

    Raises:
        ValueError: without ``root``.
        FileNotFoundError, NotADirectoryError: naming what is missing.
    """
    if root is None:
        raise ValueError(f"{name} is not part of the library: give root=, the folder where it is unpacked")
    if not root.exists():
        raise FileNotFoundError(f"the root {root} of {name} does not exist")
    if not root.is_dir():
        raise NotADirectoryError(f"the root {root} of {name} is a file; it must be a folder")
    return PUBLISHED[name](root)


def read_voc_mask(path: Path) -> np.ndarray:
    """The class indices (H, W) of VOC's palette PNG or SBD's ``GTcls`` in a .mat file.

    Raises:
        FileNotFoundError, ValueError: naming the file, where it is missing, damaged or holds no ``GTcls``.
    """
    if path.suffix != ".mat":
        return read_mask(path)
    if not path.is_file():
        raise FileNotFoundError(f"no mask at {path}")
    from scipy.io import loadmat

    try:
        found = np.asarray(loadmat(path)["GTcls"]["Segmentation"][0, 0])
    except Exception as error:  # scipy raises many kinds on damaged bytes
        raise ValueError(f"cannot read GTcls.Segmentation in the mask {path}: {type(error).__name__} {error}") from None
    if found.ndim != 2 or found.dtype.kind not in "ui":
        raise ValueError(f"the mask {path} holds {found.dtype} of shape {found.shape}; it must be a map of integers")
    return found.astype(np.int64)


def _folder(name: str, root: Path, places: Sequence[str], more: str = "") -> Path:
    """The first of ``places`` below ``root`` that is a folder."""
    found = next((root / place for place in places if (root / place).is_dir()), None)
    if found is None:
        also = ", ".join([*(f"{place}/" for place in places[1:]), *([more] if more else [])])
        raise FileNotFoundError(
            f"{name} is not whole: expected the folder {root / places[0]}" + (f" ({also})" if also else "")
        )
    return found


def _listed(name: str, images: list[Path], folder: Path, layout: str) -> list[Path]:
    if not images:
        raise FileNotFoundError(f"{name} has no picture in {folder}: expected {layout}")
    return images


def _matched(name: str, images: Iterable[Path], mask: Callable[[Path], Path]) -> Pairs:
    """Every image with its mask; each folder of masks is listed once."""
    pairs: Pairs = []
    listed: dict[Path, set[str]] = {}
    for image in images:
        path = mask(image)
        if path.parent not in listed:
            listed[path.parent] = set(os.listdir(path.parent)) if path.parent.is_dir() else set()
        if path.name not in listed[path.parent]:
            raise FileNotFoundError(f"{name} has no mask for the picture {image}: expected {path}")
        pairs.append((image, path))
    return pairs


def _data(
    name: str,
    parts: Sequence[Pairs],
    classes: tuple[str, ...],
    decode: Decoder,
    split: str,
    palette: np.ndarray | None = None,
    size: tuple[int, int] = (512, 512),
) -> SegmentationData:
    colours = pascal_palette(len(classes)) if palette is None else palette
    preprocessing = Preprocessing(size=size, crop=1.0)
    train, val = (FileSegmentation(pairs, classes, preprocessing, decode) for pairs in parts)
    return SegmentationData(name, train, val, classes, colours, split=split)


def _voc(root: Path) -> Path:
    """The folder VOC2012 in or at ``root``."""
    places = [root / "VOCdevkit" / "VOC2012", root / "VOC2012", root]
    found = next((place for place in places if (place / "JPEGImages").is_dir()), None)
    if found is None:
        raise FileNotFoundError(
            f"pascal_voc is not whole: expected the folder {places[0] / 'JPEGImages'} (or VOC2012/JPEGImages/)"
        )
    return found


def _voc_names(name: str, voc: Path, part: str) -> list[str]:
    file = voc / "ImageSets" / "Segmentation" / f"{part}.txt"
    if not file.is_file():
        raise FileNotFoundError(f"{name} is not whole: expected the list {file}")
    return _names(file)


def _names(file: Path) -> list[str]:
    """The picture names in ``file``, one a line; of a line with paths, the stem of its first."""
    names = [Path(line.split()[0]).stem for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names:
        raise ValueError(f"the list {file} names no picture")
    return names


def _voc_images(name: str, voc: Path, names: Iterable[str]) -> list[Path]:
    folder = voc / "JPEGImages"
    there = set(os.listdir(folder))
    for stem in (names := list(names)):
        if f"{stem}.jpg" not in there:
            raise FileNotFoundError(f"{name} is not whole: expected the picture {folder / stem}.jpg")
    return [folder / f"{stem}.jpg" for stem in names]


def _voc_mask(voc: Path, image: Path) -> Path:
    return voc / "SegmentationClass" / f"{image.stem}.png"


def _augmented(train: Sequence[str], val: Sequence[str], sbd: Path) -> list[str]:
    """VOC's train and all of SBD, without VOC's val, sorted."""
    names = set(train)
    for file in (sbd / "train.txt", sbd / "val.txt"):
        if not file.is_file():
            raise FileNotFoundError(f"pascal_voc_aug is not whole: expected the list {file}")
        names |= set(_names(file))
    return sorted(names - set(val))
