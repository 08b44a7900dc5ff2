"""Labelled pictures as map-style data sets, prepared the way a model wants them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as VF

from repertory.data.preprocessing import Preprocessing
from repertory.data.reading import read_image

INTERPOLATIONS = {
    "nearest": InterpolationMode.NEAREST,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
}
# A picture more oblong than this is cut to it before it is resized: a line of pixels would grow to gigabytes.
_MOST_OBLONG = 8


def prepare(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """``image`` (C, H, W), uint8 or float in [0, 1], as the model wants it: float32 (C', *size), normalised.

    Grey becomes RGB by repetition, RGB becomes grey by the luma weights of BT.601.

    Raises:
        ValueError: where the number of channels, the interpolation or the statistics do not fit.
    """
    image = _to_channels(image, preprocessing.channels)
    return normalize(resize_and_crop(image, preprocessing), preprocessing)


def normalize(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """``image`` (C, H, W), uint8 or float in [0, 1], at its own size with the channels and statistics of the model.

    Raises:
        ValueError: where the number of channels or the statistics do not fit.
    """
    image = _to_channels(image, preprocessing.channels)
    values = image.float() / 255 if image.dtype == torch.uint8 else image.float().clamp(0, 1)
    if preprocessing.channels == "BGR":
        values = values.flip(0)
    if not len(preprocessing.mean) == len(preprocessing.std) == len(values):
        raise ValueError(
            f"preprocessing has {len(preprocessing.mean)} means and {len(preprocessing.std)} deviations "
            f"for {len(values)} channels ({preprocessing.channels})"
        )
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    return (values - mean) / std


def _to_channels(image: Tensor, channels: str) -> Tensor:
    if channels not in ("RGB", "BGR", "L"):
        raise ValueError(f"channels is {channels!r}; it must be RGB, BGR or L")
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"an image has shape {tuple(image.shape)}; it must be (1, H, W) or (3, H, W)")
    if channels == "L":
        return image if image.shape[0] == 1 else VF.rgb_to_grayscale(image)
    return image.expand(3, -1, -1)


def resize_and_crop(
    image: Tensor, preprocessing: Preprocessing, interpolation: InterpolationMode | None = None
) -> Tensor:
    """Cover ``size / crop`` with the least picture that does, and cut ``size`` from its centre.

    ``interpolation`` replaces the one of ``preprocessing``: a map of class indices takes the nearest pixel.
    """
    size, crop = preprocessing.size, preprocessing.crop
    if tuple(image.shape[-2:]) == tuple(size) and crop == 1:
        return image
    if preprocessing.interpolation not in INTERPOLATIONS:
        raise ValueError(
            f"interpolation is {preprocessing.interpolation!r}; it must be one of {', '.join(INTERPOLATIONS)}"
        )
    cover = [math.floor(side / crop) for side in size]
    image = _trim(image, cover)
    height, width = image.shape[-2:]
    if cover[0] * width >= cover[1] * height:
        shape = [cover[0], max(cover[1], int(cover[0] * width / height))]
    else:
        shape = [max(cover[0], int(cover[1] * height / width)), cover[1]]
    chosen = interpolation or INTERPOLATIONS[preprocessing.interpolation]
    if shape == [1, 1] and image.dtype == torch.uint8:
        image = image.float() / 255  # torch mistakes the memory format of bytes shrunk to one pixel, and fails
    image = VF.resize(image, shape, chosen, antialias=True)
    return VF.center_crop(image, list(size))


def _trim(image: Tensor, cover: Sequence[int]) -> Tensor:
    height, width = image.shape[-2:]
    most_width = max(1, math.ceil(_MOST_OBLONG * height * cover[1] / cover[0]))
    most_height = max(1, math.ceil(_MOST_OBLONG * width * cover[0] / cover[1]))
    return VF.center_crop(image, [min(height, most_height), min(width, most_width)])


class ImageSet(ABC, Dataset[tuple[Tensor, int, int]]):
    """Labelled pictures: item ``i`` is (image (C, H, W) float32, label, ``i``), prepared by ``preprocessing``.

    ``targets`` lists the labels, ``classes`` their names. Subclasses say where a picture comes from (:meth:`raw`).

    Raises:
        ValueError: where a label is no index into ``classes``.
    """

    def __init__(self, targets: Sequence[int], classes: Sequence[str], preprocessing: Preprocessing) -> None:
        self.targets = [int(label) for label in targets]
        self.classes = tuple(classes)
        self.preprocessing = preprocessing
        for index, label in enumerate(self.targets):
            if not 0 <= label < len(self.classes):
                raise ValueError(
                    f"label {label} of sample {index} is out of range: {len(self.classes)} classes take 0 to "
                    f"{len(self.classes) - 1}"
                )

    @abstractmethod
    def raw(self, index: int) -> Tensor:
        """The picture as it is stored, (C, H, W), uint8 or float32 in [0, 1]."""

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return prepare(self.raw(index), self.preprocessing), self.targets[index], int(index)

    def with_preprocessing(self, preprocessing: Preprocessing) -> ImageSet:
        """The same pictures, prepared otherwise."""
        other = copy(self)
        other.preprocessing = preprocessing
        return other

    def with_classes(self, classes: Sequence[str]) -> ImageSet:
        """The same pictures, their labels counted in ``classes``; ``ValueError`` where a class is not among these."""
        if foreign := sorted(set(self.classes) - set(classes)):
            raise ValueError(f"the data have a class {foreign[0]!r} that is not among {', '.join(classes)}")
        place = [list(classes).index(name) for name in self.classes]
        other = copy(self)
        other.classes = tuple(classes)
        other.targets = [place[label] for label in self.targets]
        return other


class ArrayImages(ImageSet):
    """Pictures held in memory: ``images`` (N, C, H, W), C 1 or 3, uint8 or floats in [0, 1].

    Raises:
        ValueError: for another shape, values that are not finite or leave [0, 1], or labels that do not fit.
        TypeError: for another type of numbers.
    """

    def __init__(
        self, images: Tensor, targets: Sequence[int], classes: Sequence[str], preprocessing: Preprocessing
    ) -> None:
        super().__init__(targets, classes, preprocessing)
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images have shape {tuple(images.shape)}; they must be (N, C, H, W) with 1 or 3 channels")
        if len(images) != len(self.targets):
            raise ValueError(f"there are {len(images)} images and {len(self.targets)} labels")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise TypeError(f"images are {images.dtype}; they must be uint8, or floats in [0, 1]")
        if images.is_floating_point():
            check_range(images)
        self.images = images

    def raw(self, index: int) -> Tensor:
        """Picture ``index``, (C, H, W)."""
        return self.images[index]


def check_range(images: Tensor) -> None:
    """ValueError naming the first of ``images`` (N, …), floats, that is not finite or leaves [0, 1]."""
    flat = images.flatten(1)
    for wrong, complaint in (
        (~flat.isfinite().all(1), "holds NaN or infinity"),
        ((flat.amin(1) < 0) | (flat.amax(1) > 1), "leaves [0, 1]"),
    ):
        if wrong.any():
            raise ValueError(f"image {int(wrong.nonzero()[0])} {complaint}; floats must be finite and within [0, 1]")


class FileImages(ImageSet):
    """Pictures read from ``paths`` when they are asked for; an unreadable one is named."""

    def __init__(
        self, paths: Sequence[Path], targets: Sequence[int], classes: Sequence[str], preprocessing: Preprocessing
    ) -> None:
        super().__init__(targets, classes, preprocessing)
        self.paths = list(paths)

    def raw(self, index: int) -> Tensor:
        """The picture of file ``index``, (C, H, W), grey or colour as ``preprocessing.channels`` wants."""
        return read_image(self.paths[index], self.preprocessing.channels)


@dataclass(frozen=True)
class ImageData:
    """A data set to train on: ``train`` and ``val`` share ``classes``; ``name`` is what a report calls it.

    ``split`` says in words where the validation pictures come from.
    """

    task: ClassVar[str] = "classification"

    name: str
    train: ImageSet
    val: ImageSet
    classes: tuple[str, ...]
    split: str = ""

    @property
    def preprocessing(self) -> Preprocessing:
        """How the pictures are prepared now."""
        return self.train.preprocessing

    def with_preprocessing(self, preprocessing: Preprocessing) -> ImageData:
        """The same data, prepared as a model's ``preprocessing`` wants."""
        train, val = (part.with_preprocessing(preprocessing) for part in (self.train, self.val))
        return replace(self, train=train, val=val)
