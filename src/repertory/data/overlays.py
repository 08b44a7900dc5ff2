"""Class maps as pictures that people can read: coloured, and laid over the photograph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from repertory.data.preprocessing import Preprocessing
from repertory.files import Replacement

NO_CLASS = (224, 224, 192)  # the colour that Pascal VOC gives pixels without a class


def colored(mask: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """``mask`` (H, W) of class indices in the colours ``palette`` (classes, 3), (H, W, 3) uint8.

    Indices beyond the palette, as of pixels to ignore, get :data:`NO_CLASS`.
    """
    classes = len(palette)
    table = np.concatenate([np.asarray(palette, np.uint8), np.array([NO_CLASS], np.uint8)])
    return table[np.where((mask >= 0) & (mask < classes), mask, classes)]


def overlaid(image: np.ndarray, mask: np.ndarray, palette: np.ndarray, opacity: float = 0.6) -> np.ndarray:
    """``image`` (H, W, 3) uint8 with the colours of ``mask`` (H, W) laid over it.

    Raises:
        ValueError: where image and mask differ in size, or ``opacity`` leaves [0, 1].
    """
    if image.shape[:2] != mask.shape:
        raise ValueError(f"the image is {image.shape[:2]} pixels and the mask {mask.shape}; they must be of one size")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity is {opacity}; it must be between 0 and 1")
    mixed = (1 - opacity) * image.astype(np.float32) + opacity * colored(mask, palette).astype(np.float32)
    return np.rint(mixed).astype(np.uint8)


def as_picture(image: Tensor, preprocessing: Preprocessing) -> np.ndarray:
    """A normalised image (C, H, W) as the picture it was made of, (H, W, 3) uint8."""
    values = image.detach().cpu().float().numpy().transpose(1, 2, 0)
    values = values * np.asarray(preprocessing.std, np.float32) + np.asarray(preprocessing.mean, np.float32)
    if preprocessing.channels == "BGR":
        values = values[..., ::-1]
    return np.rint(np.broadcast_to(values, (*values.shape[:2], 3)).clip(0, 1) * 255).astype(np.uint8)


def write_indices(path: Path, mask: np.ndarray, palette: np.ndarray) -> None:
    """Write ``mask`` (H, W) as a PNG of class indices, whole or not at all.

    Up to 256 classes give a PNG with the palette, which viewers show in its colours and
    :func:`~repertory.data.segmentation.read_mask` reads as indices; more give 16 bits.
    """
    if len(palette) <= 256:
        picture = Image.fromarray(mask.astype(np.uint8), "L")
        picture.putpalette(np.asarray(palette, np.uint8).tobytes())
    else:
        picture = Image.fromarray(mask.astype(np.uint16))
    with Replacement(path) as partial:
        picture.save(partial, "PNG")
