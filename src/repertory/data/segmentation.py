"""Pictures with a class for every pixel: the data of semantic segmentation.

A mask is a map of class indices (H, W); ``ignore_index`` marks pixels that neither train nor count.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode

from repertory.data.images import check_range, normalize, prepare, resize_and_crop
from repertory.data.preprocessing import Preprocessing
from repertory.data.reading import read_image

IGNORE_INDEX = 255
Decoder = Callable[[Path], np.ndarray]


def pascal_palette(classes: int) -> np.ndarray:
    """Colours (classes, 3) uint8 of Pascal VOC's development kit: the bits of an index spread over R, G and B."""
    index = np.arange(classes)
    palette = np.zeros((classes, 3), np.uint8)
    for place in range(8):
        for channel in range(3):
            palette[:, channel] |= ((index >> (3 * place + channel) & 1) << (7 - place)).astype(np.uint8)
    return palette


def prepare_pair(image: Tensor, mask: Tensor, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """``image`` (C, H, W) as :func:`~repertory.data.prepare` makes it, and ``mask`` (H, W) cut to the same pixels.

    The mask takes the nearest pixel and comes out int64 (*size).

    Raises:
        ValueError: where image and mask differ in size, or the preprocessing does not fit.
    """
    check_sizes(image, mask)
    prepared = prepare(image, preprocessing)
    cut = resize_and_crop(mask[None].long(), preprocessing, InterpolationMode.NEAREST_EXACT)[0]
    return prepared, cut


def check_sizes(image: Tensor, mask: Tensor, place: str = "") -> None:
    """ValueError where ``image`` (C, H, W) and ``mask`` (H, W) are not of one size; ``place`` names them."""
    if image.shape[-2:] != mask.shape:
        (height, width), (rows, columns) = image.shape[-2:], mask.shape
        raise ValueError(
            f"the image{place} has {height} x {width} pixels and its mask {rows} x {columns}; they must be of one size"
        )


def check_classes(mask: Tensor, classes: int, ignore_index: int, place: str) -> None:
    """ValueError naming ``place`` and the least value of ``mask`` that is no class index and not ``ignore_index``."""
    if mask.numel() and (int(mask.max()) >= classes or int(mask.min()) < 0):
        wrong = mask[((mask < 0) | (mask >= classes)) & (mask != ignore_index)]
        if wrong.numel():
            raise ValueError(
                f"{place} holds the class index {int(wrong.min())}; {classes} classes take 0 to {classes - 1}, "
                f"and {ignore_index} for pixels to ignore"
            )


class SegmentationSet(ABC, Dataset[tuple[Tensor, Tensor, int]]):
    """Pictures with masks: item ``i`` is (image (C, H, W) float32, mask (H, W) int64, ``i``), both prepared alike.

    ``preprocessing.size`` is the size of both; :meth:`raw` gives them as stored, for augmentation, and :meth:`whole`
    normalised at their own size, for evaluation. ``classes`` lists the names of the class indices.
    """

    def __init__(self, classes: Sequence[str], preprocessing: Preprocessing, ignore_index: int = IGNORE_INDEX) -> None:
        self.classes = tuple(classes)
        self.preprocessing = preprocessing
        self.ignore_index = int(ignore_index)
        if not self.classes:
            raise ValueError("classes is empty; a segmentation needs at least one class")
        if 0 <= self.ignore_index < len(self.classes):
            raise ValueError(
                f"ignore_index is {ignore_index}, the index of the class {self.classes[self.ignore_index]!r}; "
                f"it must not be 0 to {len(self.classes) - 1}"
            )

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def raw(self, index: int) -> tuple[Tensor, Tensor]:
        """The picture (C, H, W), uint8 or float32 in [0, 1], and its mask (H, W) int64, as they are stored."""

    def describe(self, index: int) -> str:
        """What to call item ``index`` in an error or beside a picture."""
        return f"item {index}"

    def whole(self, index: int) -> tuple[Tensor, Tensor]:
        """Picture (C, H, W) float32, normalised but neither resized nor cropped, and its mask (H, W) int64."""
        image, mask = self.raw(index)
        return normalize(image, self.preprocessing), mask

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        image, mask = self.raw(index)
        return *prepare_pair(image, mask, self.preprocessing), int(index)

    def with_preprocessing(self, preprocessing: Preprocessing) -> SegmentationSet:
        """The same pictures and masks, prepared otherwise."""
        other = copy(self)
        other.preprocessing = preprocessing
        return other

    def subset(self, indices: Sequence[int]) -> SegmentationSubset:
        """The items ``indices`` of this set, in that order."""
        return SegmentationSubset(self, indices)


class SegmentationSubset(SegmentationSet):
    """Some items of another set, counted anew from 0.

    Raises:
        ValueError: for an index that ``source`` does not have.
    """

    def __init__(self, source: SegmentationSet, indices: Sequence[int]) -> None:
        super().__init__(source.classes, source.preprocessing, source.ignore_index)
        self.source, self.indices = source, [int(index) for index in indices]
        for index in self.indices:
            if not 0 <= index < len(source):
                raise ValueError(f"index {index} is out of range: the set has {len(source)} items")

    def __len__(self) -> int:
        return len(self.indices)

    def raw(self, index: int) -> tuple[Tensor, Tensor]:
        """Item ``index`` of the chosen ones, as it is stored."""
        return self.source.raw(self.indices[index])

    def describe(self, index: int) -> str:
        """What the source calls it."""
        return self.source.describe(self.indices[index])


class ArraySegmentation(SegmentationSet):
    """Held in memory: ``images`` (N, C, H, W), C 1 or 3, uint8 or floats in [0, 1]; ``masks`` (N, H, W), integers.

    Raises:
        ValueError: for shapes that do not fit, or a class index outside the map (its item is named).
        TypeError: for masks that are no integers.
    """

    def __init__(
        self,
        images: Tensor,
        masks: Tensor,
        classes: Sequence[str],
        preprocessing: Preprocessing,
        ignore_index: int = IGNORE_INDEX,
    ) -> None:
        super().__init__(classes, preprocessing, ignore_index)
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images have shape {tuple(images.shape)}; they must be (N, C, H, W) with 1 or 3 channels")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise TypeError(f"images are {images.dtype}; they must be uint8, or floats in [0, 1]")
        if images.is_floating_point():
            check_range(images)
        if masks.dtype == torch.bool or masks.is_floating_point() or masks.is_complex():
            raise TypeError(f"masks are {masks.dtype}; they must be integers")
        if masks.shape != (len(images), *images.shape[2:]):
            raise ValueError(
                f"masks have shape {tuple(masks.shape)}; for these images it must be {(len(images), *images.shape[2:])}"
            )
        for index, mask in enumerate(masks):
            check_classes(mask, len(self.classes), self.ignore_index, f"the mask of item {index}")
        self.images, self.masks = images, masks

    def __len__(self) -> int:
        return len(self.images)

    def raw(self, index: int) -> tuple[Tensor, Tensor]:
        """Picture ``index`` (C, H, W) and its mask (H, W) int64."""
        return self.images[index], self.masks[index].long()


class FileSegmentation(SegmentationSet):
    """Read from files when asked for: ``pairs`` of (picture, mask file).

    Args:
        pairs: paths of each picture and its mask.
        classes: names of the class indices.
        preprocessing: how items are prepared.
        decode: turns a mask file into class indices (H, W); :func:`read_mask` by default.
        ignore_index: the index of pixels without a class.

    Reading an item raises ``ValueError`` or ``FileNotFoundError`` naming the file: damaged, of another size than its
    mask, or with a class index outside the map.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Path, Path]],
        classes: Sequence[str],
        preprocessing: Preprocessing,
        decode: Decoder | None = None,
        ignore_index: int = IGNORE_INDEX,
    ) -> None:
        super().__init__(classes, preprocessing, ignore_index)
        self.pairs = list(pairs)
        self.decode = decode or read_mask

    def __len__(self) -> int:
        return len(self.pairs)

    def raw(self, index: int) -> tuple[Tensor, Tensor]:
        """The picture of file ``index`` (C, H, W), grey or colour as wanted, and its mask (H, W) int64."""
        picture = self.pairs[index][0]
        image, mask = read_image(picture, self.preprocessing.channels), self.mask(index)
        check_sizes(image, mask, f" {picture}")
        return image, mask

    def mask(self, index: int) -> Tensor:
        """The mask alone, (H, W) int64."""
        file = self.pairs[index][1]
        mask = torch.from_numpy(self.decode(file).astype(np.int64))
        check_classes(mask, len(self.classes), self.ignore_index, f"the mask {file}")
        return mask

    def describe(self, index: int) -> str:
        """The picture's path."""
        return str(self.pairs[index][0])


@dataclass(frozen=True, eq=False)
class SegmentationData:
    """A data set to train segmentation on: ``train`` and ``val`` share ``classes``.

    ``palette`` (classes, 3) uint8 colours the classes; Pascal VOC's colours where none is given. ``split`` says in
    words where the validation pictures come from.

    Raises:
        ValueError: where a part has no image, the parts differ in classes, or the palette does not fit.
    """

    task: ClassVar[str] = "segmentation"

    name: str
    train: SegmentationSet
    val: SegmentationSet
    classes: tuple[str, ...]
    palette: np.ndarray = None  # type: ignore[assignment]  # filled below
    ignore_index: int = IGNORE_INDEX
    split: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        palette = pascal_palette(len(self.classes)) if self.palette is None else np.asarray(self.palette)
        if palette.shape != (len(self.classes), 3) or palette.dtype != np.uint8:
            raise ValueError(
                f"palette is {palette.dtype} of shape {palette.shape}; it must be uint8 of shape "
                f"{(len(self.classes), 3)}, a colour a class"
            )
        object.__setattr__(self, "palette", palette)
        for part in ("train", "val"):
            found: SegmentationSet = getattr(self, part)
            if not len(found):
                raise ValueError(f"the {part} part of {self.name} has no image")
            if found.classes != self.classes or found.ignore_index != self.ignore_index:
                raise ValueError(
                    f"the {part} part of {self.name} has other classes or another ignore_index than its whole"
                )

    @property
    def preprocessing(self) -> Preprocessing:
        """How pictures and masks are prepared now."""
        return self.train.preprocessing

    def with_preprocessing(self, preprocessing: Preprocessing) -> SegmentationData:
        """The same data, prepared as a model's ``preprocessing`` wants."""
        train, val = (part.with_preprocessing(preprocessing) for part in (self.train, self.val))
        return replace(self, train=train, val=val)


def read_mask(
    path: Path | str,
    colours: Mapping[tuple[int, int, int], int] | None = None,
    values: Mapping[int, int] | None = None,
) -> np.ndarray:
    """The class indices (H, W) int64 of a mask file; a palette PNG gives its indices.

    Args:
        path: a picture of one channel (8 or 16 bits) or with a palette; or of colours, with ``colours``.
        colours: class index of each RGB colour, for masks that store colours; a palette's colours count then, too.
        values: class index of each number in a mask of one channel, where those are not class indices themselves.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: naming the file, where it is damaged, stores colours without ``colours``, or a colour or value that
            is not among those given.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no mask at {path}")
    by_colour = False
    try:
        with Image.open(path) as file:
            mode = file.mode
            by_colour = colours is not None and mode in ("RGB", "RGBA", "P")
            pixels = np.array(file.convert("RGB") if by_colour else file)
    except Exception as error:  # decoders of many formats raise what they please on damaged bytes
        raise ValueError(f"cannot read the mask {path}: {' '.join(str(error).split())[:200]}") from None
    if by_colour and colours is not None:
        return _of_colours(pixels, colours, path)
    if mode not in ("L", "P", "1") and not mode.startswith("I"):
        raise ValueError(
            f"the mask {path} stores {mode} values instead of class indices; it must have one channel or a palette of "
            "indices, or the colour of each class must be given"
        )
    indices = pixels.astype(np.int64)
    return indices if values is None else _of_values(indices, values, path)


def _of_values(stored: np.ndarray, values: Mapping[int, int], path: Path) -> np.ndarray:
    """Class indices of ``stored`` numbers (H, W)."""
    most = max(values)
    table = np.full(most + 2, -1)  # the last place stands for all that is above
    table[list(values)] = list(values.values())
    found = table[np.clip(stored, -1, most + 1)]
    if (unknown := found < 0).any():
        raise ValueError(f"the mask {path} holds the value {int(stored[unknown].min())}, which stands for no class")
    return found


def _of_colours(pixels: np.ndarray, colours: Mapping[tuple[int, int, int], int], path: Path) -> np.ndarray:
    """Class indices of RGB ``pixels`` (H, W, 3)."""
    packed = pixels.astype(np.int64) @ np.array([65536, 256, 1])
    known = {(red << 16) + (green << 8) + blue: label for (red, green, blue), label in colours.items()}
    values, inverse = np.unique(packed, return_inverse=True)
    for value in values.tolist():
        if value not in known:
            raise ValueError(
                f"the mask {path} holds the colour {(value >> 16, value >> 8 & 255, value & 255)}, "
                "which is no class of the palette"
            )
    return np.array([known[value] for value in values.tolist()])[inverse].reshape(packed.shape)
