"""Training augmentation whose draws depend on (seed, epoch, index) alone, whichever process loads the sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as VF

from repertory.training.randomness import generator
from repertory.training.settings import AUGMENTATIONS


class Draw(NamedTuple):
    """Which sample a sampler asks for: data set ``index`` in ``epoch``, for the run or replica seeded ``seed``."""

    seed: int
    epoch: int
    index: int


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
        image, label, index = self.dataset[draw.index]
        if self.augment != "none":
            random = generator("augmentation", draw.seed, draw.epoch, draw.index)
            for transform in _TRANSFORMS[self.augment]:
                image = transform(image, random)
        return image, label, index


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


def resized_crop(image: Tensor, random: torch.Generator) -> Tensor:
    """Crop 8-100% of the area with aspect 3/4-4/3 (whole image where none of ten draws fits), resized back."""
    height, width = image.shape[-2:]
    for _ in range(10):
        area = height * width * (0.08 + 0.92 * float(torch.rand((), generator=random)))
        aspect = math.exp(math.log(4 / 3) * (2 * float(torch.rand((), generator=random)) - 1))
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            top = int(torch.randint(height - h + 1, (), generator=random))
            left = int(torch.randint(width - w + 1, (), generator=random))
            return VF.resized_crop(image, top, left, h, w, [height, width], antialias=True)
    return image


_TRANSFORMS: dict[str, tuple[Callable[[Tensor, torch.Generator], Tensor], ...]] = {
    "none": (),
    "flip": (flip,),
    "crop": (crop,),
    "crop-flip": (crop, flip),
    "resized-crop-flip": (resized_crop, flip),
}

