"""Attention to look at: the map of one query pixel over its picture."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

MARK = (0, 255, 255)  # of the query


def affinity_picture(affinity: Tensor, image: Image.Image, row: int, column: int, gamma: float = 0.5) -> Image.Image:
    """``image`` darkened, and brightened by heat where the query pixel took from; the query is marked.

    Args:
        affinity: (h, w), not negative: one map of :meth:`repertory.systems.ccnet.CCNet.affinity`.
        image: the picture that was looked at, of any size.
        row: of the query pixel in the picture, from the top.
        column: of the query pixel, from the left.
        gamma: exponent that lifts small shares above black; the largest share is white.

    Returns:
        An RGB picture of the size of ``image``.
    """
    if affinity.ndim != 2:
        raise ValueError(f"affinity is {tuple(affinity.shape)}; it must be one map (h, w)")
    if not (0 <= row < image.height and 0 <= column < image.width):
        raise ValueError(
            f"the query is ({row}, {column}); it must lie in the image of {image.height} x {image.width} pixels"
        )
    shares = affinity.detach().float().cpu()
    heat = (shares / shares.max().clamp(min=1e-12)).clamp(min=0) ** gamma
    full = F.interpolate(heat[None, None], size=(image.height, image.width), mode="bilinear", align_corners=True)
    weight = full[0, 0].numpy()[..., None]
    coloured = np.asarray(colormaps["inferno"](weight[..., 0]))[..., :3]
    ground = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    picture = (255 * ((1 - weight) * 0.5 * ground + weight * coloured)).round().astype(np.uint8)
    radius = max(min(image.size) // 100, 0)
    top, left = max(row - radius, 0), max(column - radius, 0)
    picture[top : row + radius + 1, left : column + radius + 1] = MARK
    return Image.fromarray(picture)
