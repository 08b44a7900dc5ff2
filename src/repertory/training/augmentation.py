"""Training augmentation whose draws depend on (seed, epoch, index) alone, whichever process loads the sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as VF

from repertory.data.images import INTERPOLATIONS, normalize, prepare
from repertory.training.randomness import generator
from repertory.training.settings import AUGMENTATIONS, FitSettings, SegmentationSettings


class Draw(NamedTuple):
    """Which sample a sampler asks for: number ``sample`` in ``epoch``, for the run or replica seeded ``seed``."""

    seed: int
    epoch: int
    sample: int


class Augmented(Dataset):
    """``dataset`` whose images (C, H, W) are augmented, addressed by :class:`Draw`.

    The whole address comes from the sampler, so loader processes need no notice of the epoch and a resumed run sees
    the same pixels.
    """

    def __init__(self, dataset: Any, augment: str) -> None:
        if augment not in AUGMENTATIONS:
            raise ValueError(f"augment is {augment!r}; it must be one of {', '.join(AUGMENTATIONS)}")
        self.dataset, self.augment = dataset, augment

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def targets(self) -> Sequence[int]:
        """Labels of the data set."""
        return self.dataset.targets

    def __getitem__(self, draw: Draw) -> tuple[Tensor, int, int]:
        if self.augment == "none":
            return self.dataset[draw.sample]
        random = generator("augmentation", draw.seed, draw.epoch, draw.sample)
        if self.augment == "resized-crop-flip" and hasattr(self.dataset, "raw"):
            return flip(self._crop_of_raw(draw.sample, random), random), self.targets[draw.sample], draw.sample
        image, label, index = self.dataset[draw.sample]
        for transform in _TRANSFORMS[self.augment]:
            image = transform(image, random)
        return image, label, index

    def _crop_of_raw(self, sample: int, random: torch.Generator) -> Tensor:
        """A crop of the picture as it is stored, which has more pixels than the one prepared for the model."""
        preprocessing = replace(self.dataset.preprocessing, crop=1.0)
        return prepare(resized_crop(self.dataset.raw(sample), random, preprocessing.size), preprocessing)


class AugmentedMasks(Dataset):
    """``dataset`` of (image (C, H, W), mask (H, W), index), both augmented alike, addressed by :class:`Draw`.

    Pixels that come from outside the picture are zeros, the mean colour, and of no class in the mask.
    """

    def __init__(self, dataset: Any, settings: SegmentationSettings) -> None:
        self.dataset, self.augment = dataset, settings.augment
        self.scales = (settings.scale_min, settings.scale_max)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor, int]:
        random = generator("augmentation", draw.seed, draw.epoch, draw.sample)
        if self.augment == "scale-crop-flip":
            image, mask = self._scaled_crop(draw.sample, random)
        else:
            image, mask, _ = self.dataset[draw.sample]
        if self.augment in ("crop", "crop-flip"):
            image, mask = crop_pair(image, mask, random, self.dataset.ignore_index)
        if self.augment.endswith("flip") and float(torch.rand((), generator=random)) < 0.5:
            image, mask = image.flip(-1), mask.flip(-1)
        return image, mask, draw.sample

    def _scaled_crop(self, sample: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """The picture as it is stored at a random scale, and of it the model's size anywhere."""
        least, most = self.scales
        scale = least + (most - least) * float(torch.rand((), generator=random))
        preprocessing, ignored = self.dataset.preprocessing, self.dataset.ignore_index
        image, mask = self.dataset.raw(sample)
        # Cut first what the crop will show: enlarging a whole street scene to cut a window from it is slow.
        cut, into = [], []
        for side, want in zip(mask.shape, preprocessing.size):
            shown = min(side, max(1, round(want / scale)))
            first = int(torch.randint(side - shown + 1, (), generator=random))
            cut.append(slice(first, first + shown))
            into.append(min(want, max(1, round(shown * scale))))
        image, mask = image[:, cut[0], cut[1]], mask[cut[0], cut[1]]
        image = normalize(VF.resize(image, into, INTERPOLATIONS["bilinear"], antialias=True), preprocessing)
        mask = F.interpolate(mask[None, None].float(), into, mode="nearest-exact")[0, 0].long()
        missing = [want - side for want, side in zip(preprocessing.size, into)]
        before = [int(torch.randint(gap + 1, (), generator=random)) for gap in missing]
        around = (before[1], missing[1] - before[1], before[0], missing[0] - before[0])
        return F.pad(image, around), F.pad(mask, around, value=ignored)


def augmented(dataset: Any, settings: FitSettings) -> Augmented | AugmentedMasks:
    """``dataset`` augmented as ``settings`` say, images alone or with their masks."""
    if isinstance(settings, SegmentationSettings):
        return AugmentedMasks(dataset, settings)
    return Augmented(dataset, settings.augment)


def flip(image: Tensor, random: torch.Generator) -> Tensor:
    """Mirror left and right with probability one half."""
    return image.flip(-1) if torch.rand((), generator=random) < 0.5 else image


def crop(image: Tensor, random: torch.Generator) -> Tensor:
    """Pad an eighth of each side with zeros and crop the size back anywhere."""
    height, width = image.shape[-2:]
    down, right = max(1, height // 8), max(1, width // 8)
    top = int(torch.randint(2 * down + 1, (), generator=random))
    left = int(torch.randint(2 * right + 1, (), generator=random))
    return F.pad(image, (right, right, down, down))[..., top : top + height, left : left + width]


def crop_pair(image: Tensor, mask: Tensor, random: torch.Generator, ignore_index: int) -> tuple[Tensor, Tensor]:
    """:func:`crop` of ``image`` and ``mask`` at one place; what is padded of the mask is ``ignore_index``."""
    height, width = mask.shape
    down, right = max(1, height // 8), max(1, width // 8)
    top = int(torch.randint(2 * down + 1, (), generator=random))
    left = int(torch.randint(2 * right + 1, (), generator=random))
    around, window = (right, right, down, down), (slice(top, top + height), slice(left, left + width))
    return F.pad(image, around)[:, *window], F.pad(mask, around, value=ignore_index)[window]


def resized_crop(image: Tensor, random: torch.Generator, size: tuple[int, int] | None = None) -> Tensor:
    """Crop 8-100% of the area with aspect 3/4-4/3 (all of it where none of ten draws fits), resized to ``size``.

    ``size`` (height, width) is the image's own where none is given.
    """
    height, width = image.shape[-2:]
    to = list(size or (height, width))
    for _ in range(10):
        area = height * width * (0.08 + 0.92 * float(torch.rand((), generator=random)))
        aspect = math.exp(math.log(4 / 3) * (2 * float(torch.rand((), generator=random)) - 1))
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            top = int(torch.randint(height - h + 1, (), generator=random))
            left = int(torch.randint(width - w + 1, (), generator=random))
            return VF.resized_crop(image, top, left, h, w, to, antialias=True)
    return VF.resize(image, to, antialias=True)


_TRANSFORMS: dict[str, tuple[Callable[[Tensor, torch.Generator], Tensor], ...]] = {
    "none": (),
    "flip": (flip,),
    "crop": (crop,),
    "crop-flip": (crop, flip),
    "resized-crop-flip": (resized_crop, flip),
}
