"""Which part of the largest network a sub-model is, and the law by which sub-models are drawn in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, TypeVar

import torch

from repertory.training.randomness import generator

Resolution = int | tuple[int, int] | None
T = TypeVar("T")


@dataclass(frozen=True)
class Crop:
    """A sub-model: leading heads (and with them channels), first blocks, and of images a smaller token grid.

    Args:
        heads: attention heads h; the width is h times the width of a head, which no crop changes. None is all.
        depth: blocks that are passed, from the first; of a translation model layers of encoder and decoder alike.
        resolution: side in pixels, or (height, width), at which the image would have so many tokens; the image itself
            is not resized. None is the network's own. A translation model has none.
    """

    heads: int | None = None
    depth: int | None = None
    resolution: Resolution = None

    def within(self, heads: int, depth: int) -> Crop:
        """This crop with nothing left open, of a network of so many ``heads`` and blocks.

        Raises:
            TypeError, ValueError: where heads or depth is no whole number from 1 to the network's own.
        """
        return replace(
            self, heads=_whole("heads", self.heads, heads, "heads"), depth=_whole("depth", self.depth, depth, "blocks")
        )


def _whole(name: str, value: Any, most: int, what: str) -> int:
    if value is None:
        return most
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is {value!r}; it must be a whole number of {what} from 1 to {most}")
    number = int(value)
    if not 1 <= number <= most:
        raise ValueError(f"{name} is {number}; it must be from 1 to {most}, the {what} of the network")
    return number


def crop_of_width(width: int | None, heads: int | None, head_width: int) -> int | None:
    """The heads that make ``width`` channels; either may be given.

    Raises:
        ValueError: where the width is no multiple of ``head_width``, or means other heads than those given.
    """
    if width is None:
        return heads
    if width < 1 or width % head_width:
        raise ValueError(f"width is {width}; it must be a multiple of {head_width}, the width of a head")
    if heads is not None and heads * head_width != width:
        raise ValueError(f"width is {width} and heads is {heads}; {heads} heads make a width of {heads * head_width}")
    return width // head_width


@dataclass(frozen=True)
class CropSpace:
    """The sub-models that training may draw: every combination of ``heads``, ``depths`` and ``resolutions``.

    ``sample`` is the authors' law of the vision code: each independent of the others and uniform.
    """

    heads: tuple[int, ...]
    depths: tuple[int, ...]
    resolutions: tuple[Resolution, ...] = (None,)

    def __post_init__(self) -> None:
        for name in ("heads", "depths", "resolutions"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; it must name one or more to draw from")

    def sample(self, seed: int, step: int) -> Crop:
        """The crop of a ``step``: a function of the seed and the step alone, so every process draws the same."""
        draws = generator("sub-model", seed, step)

        def one(values: Sequence[T]) -> T:
            return values[int(torch.randint(len(values), (), generator=draws))]

        return Crop(one(self.heads), one(self.depths), one(self.resolutions))

    @property
    def smallest(self) -> Crop:
        """Fewest heads and blocks at the lowest resolution."""
        return Crop(min(self.heads), min(self.depths), min(self.resolutions, key=_tokens))

    def within(self, heads: int, depth: int) -> CropSpace:
        """The space itself, if all its crops are of a network of so many heads and blocks; else as :class:`Crop`."""
        for count in self.heads:
            Crop(heads=count).within(heads, depth)
        for blocks in self.depths:
            Crop(depth=blocks).within(heads, depth)
        return self


def _tokens(resolution: Resolution) -> float:
    """What resolutions are ordered by."""
    if resolution is None:
        return float("inf")
    return float(resolution**2 if isinstance(resolution, int) else resolution[0] * resolution[1])
