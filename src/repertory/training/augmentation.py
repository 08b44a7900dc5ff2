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

from repertory.data.images import prepare
from repertory.training.randomness import generator
from repertory.training.settings import AUGMENTATIONS


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
