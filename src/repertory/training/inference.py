"""Scores of a segmentor for whole pictures: in one pass, in sliding windows, over scales and mirrored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repertory.training.settings import INFERENCES


def whole_image(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (B, classes, H, W) of ``images`` (B, C, H, W) in one pass; of a dictionary, its entry ``out``.

    Logits of another size than the images are enlarged bilinearly. ValueError where ``model`` gives no map.
    """
    given = model(images)
    logits = given["out"] if isinstance(given, dict) else given
    if not isinstance(logits, Tensor) or logits.ndim != 4:
        gave = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{type(model).__name__} gives {gave}; a segmentor gives logits (images, classes, H, W)")
    if logits.shape[2:] != images.shape[2:]:
        logits = F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)
    return logits


def sliding_window(
    model: nn.Module, images: Tensor, window: tuple[int, int], overlap: float = 1 / 3, batch_size: int = 4
) -> Tensor:
    """Logits (B, classes, H, W), averaged where windows overlap.

    Args:
        model: the segmentor, in evaluation mode.
        images: (B, C, H, W); pictures smaller than the window are padded with zeros, the mean colour.
        window: height and width in pixels.
        overlap: share of a window that the next one covers again; the last window ends where the picture does.
        batch_size: windows at a time.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap is {overlap}; it must be at least 0 and below 1")
    if min(window) < 1:
        raise ValueError(f"window is {tuple(window)}; its height and width must be 1 or more")
    height, width = images.shape[2:]
    padded = F.pad(images, (0, max(0, window[1] - width), 0, max(0, window[0] - height)))
    rows, columns = (_starts(side, extent, overlap) for side, extent in zip(padded.shape[2:], window))
    places = [(top, left) for top in rows for left in columns]
    total: Tensor | None = None
    count = padded.new_zeros(1, 1, *padded.shape[2:], dtype=torch.float32)
    share = max(1, batch_size // max(1, len(images)))
    for part in _parts(places, share):
        cut = torch.cat([padded[..., top : top + window[0], left : left + window[1]] for top, left in part])
        scores = _at_least_float32(whole_image(model, cut))
        if total is None:
            total = scores.new_zeros(len(images), scores.shape[1], *padded.shape[2:])
        for (top, left), score in zip(part, scores.chunk(len(part))):
            total[..., top : top + window[0], left : left + window[1]] += score
            count[..., top : top + window[0], left : left + window[1]] += 1
    assert total is not None
    return (total / count)[..., :height, :width]


def _starts(side: int, extent: int, overlap: float) -> list[int]:
    """Where windows of ``extent`` begin along ``side``; the last ends with it."""
    step = max(1, round(extent * (1 - overlap)))
    return [*range(0, side - extent, step), side - extent]


def _parts(places: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    for first in range(0, len(places), size):
        yield places[first : first + size]


@dataclass(frozen=True)
class Inference:
    """How pictures are scored: ``Inference(scales=(0.75, 1, 1.25), mirror=True)(model, images)``.

    Args:
        window: height and width of sliding windows; None scores whole pictures.
        overlap: share of a window that the next one covers again.
        scales: factors of the pictures' size whose logits are averaged.
        mirror: average the logits of the mirrored pictures too.
        short_side: pixels to which the shorter side of a picture is brought before the scales apply; None keeps it.
    """

    window: tuple[int, int] | None = None
    overlap: float = 1 / 3
    scales: Sequence[float] = (1.0,)
    mirror: bool = False
    short_side: int | None = None

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        """Logits (B, classes, H, W) of ``images`` (B, C, H, W), float32, at their own size."""
        brought = self.short_side / min(images.shape[2:]) if self.short_side is not None else 1.0
        scales = [brought * scale for scale in self.scales]
        return multi_scale(model, images, scales, self.mirror, self.window, self.overlap)

    @classmethod
    def of(cls, name: str, size: tuple[int, int], overlap: float, scales: Sequence[float], mirror: bool) -> Inference:
        """What settings mean by ``name`` for a model of ``size`` (height, width): whole, resized or sliding."""
        if name not in INFERENCES:
            raise ValueError(f"inference is {name!r}; it must be one of {', '.join(INFERENCES)}")
        window, short_side = size if name == "sliding" else None, min(size) if name == "resized" else None
        return cls(window, overlap, tuple(scales), mirror, short_side)


def multi_scale(
    model: nn.Module,
    images: Tensor,
    scales: Sequence[float] = (1.0,),
    mirror: bool = False,
    window: tuple[int, int] | None = None,
    overlap: float = 1 / 3,
) -> Tensor:
    """Mean of the logits (B, classes, H, W) over ``scales`` of ``images`` and, with ``mirror``, their mirror images.

    Pictures are resized bilinearly, and so are their logits back. ``window`` slides over each scale, see
    :func:`sliding_window`; without it each is scored whole. ValueError for no scale, or one that is not above 0.
    """
    if not scales or not min(scales) > 0:
        raise ValueError(f"scales is {tuple(scales)}; it must name one factor or more, each above 0")
    size = tuple(images.shape[2:])
    total: Tensor | None = None
    for scale in scales:
        sides = [max(1, round(side * scale)) for side in size]
        scaled = images if tuple(sides) == size else _resized(images, sides, scale < 1)
        for mirrored in (False, True) if mirror else (False,):
            given = scaled.flip(-1) if mirrored else scaled
            scores = whole_image(model, given) if window is None else sliding_window(model, given, window, overlap)
            scores = scores.flip(-1) if mirrored else scores
            scores = _resized(_at_least_float32(scores), list(size), False)
            total = scores if total is None else total + scores
    assert total is not None
    return total / (len(scales) * (2 if mirror else 1))


def _resized(maps: Tensor, sides: Sequence[int], antialias: bool) -> Tensor:
    if list(maps.shape[2:]) == list(sides):
        return maps
    return F.interpolate(maps, list(sides), mode="bilinear", align_corners=False, antialias=antialias)


def _at_least_float32(scores: Tensor) -> Tensor:
    """``scores`` in float32 where they are of half precision, so that sums of them stay exact enough."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
