"""Reading one picture from disk as a tensor, or saying in one sentence why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm"})


def is_image(path: Path) -> bool:
    """Whether ``path`` has the ending of a picture and is not hidden."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def read_image(path: Path | str, channels: str = "RGB") -> Tensor:
    """The picture in ``path`` as (C, H, W): 3 channels for ``channels`` ``RGB`` (or ``BGR``), 1 for ``L``.

    Pictures of 8 bits give uint8, those of 16 bits or floats give float32 in [0, 1]. The rotation that a camera noted
    is applied; transparency is dropped; of several frames the first is taken.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: naming the file, where it is damaged, no picture, or its values are not finite and within [0, 1].
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no picture at {path}")
    try:
        with Image.open(path) as file:
            image: Image.Image = ImageOps.exif_transpose(file)
            deep = image.mode.startswith("I") or image.mode == "F"
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")
            pixels = np.array(image if deep else image.convert("L" if channels == "L" else "RGB"))
    except Exception as error:  # decoders of many formats raise what they please on damaged bytes
        raise ValueError(f"cannot read the picture {path}: {_reason(error)}") from None
    if deep:
        return _deep(pixels, path, 1 if channels == "L" else 3)
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy())


def _deep(pixels: np.ndarray, path: Path, channels: int) -> Tensor:
    """Grey pictures of more than 8 bits; whole numbers are of 16 bits, floats already in [0, 1]."""
    values = pixels.astype(np.float32)
    if np.issubdtype(pixels.dtype, np.integer):
        values /= 65535
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"cannot use the picture {path}: its values are not all finite and within [0, 1] (or 16 bits)")
    return torch.from_numpy(values)[None].repeat(channels, 1, 1)


def _reason(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0]
    return "it is not a picture, or damaged at the start" if "cannot identify image file" in text else text
