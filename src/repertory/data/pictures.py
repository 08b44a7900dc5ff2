"""Reading and writing pictures as they are: alpha, 16 bits and high dynamic range kept.

Pillow reads most formats; 16-bit colour PNG goes through torchvision and TIFF through tifffile, because Pillow would
bring them to 8 bits; EXR needs the extra ``hdr``; Radiance files are read and written here.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from repertory.data.reading import EXTENSIONS
from repertory.errors import MissingExtraError
from repertory.files import Replacement

HDR_EXTENSIONS = frozenset({".hdr", ".exr"})
PICTURE_EXTENSIONS = EXTENSIONS | HDR_EXTENSIONS
_PNG = b"\x89PNG\r\n\x1a\n"


def list_pictures(folder: Path) -> list[Path]:
    """The pictures in ``folder`` and below, in order of their names; ``ValueError`` where there are none."""
    found = sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in PICTURE_EXTENSIONS and not p.name.startswith(".")
    )
    if not found:
        raise ValueError(f"no picture in {folder} (endings known: {', '.join(sorted(PICTURE_EXTENSIONS))})")
    return found


def read_picture(path: Path | str) -> np.ndarray:
    """The picture at ``path``: (H, W), (H, W, 2), (H, W, 3) or (H, W, 4); uint8, uint16 or float32 as stored.

    Palettes become RGB or RGBA, 1-bit pictures uint8 of 0 and 255; the rotation that a camera noted is applied.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: naming the file, where it is damaged or no picture, or holds NaN or infinity.
        MissingExtraError: for an EXR file without the package that reads it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no picture at {path}")
    try:
        picture = _reader(path)(path)
    except MissingExtraError:
        raise
    except Exception as error:  # decoders of many formats raise what they please on damaged bytes
        raise ValueError(f"cannot read the picture {path}: {' '.join(str(error).split())[:200]}") from None
    if picture.ndim not in (2, 3) or picture.size == 0:
        raise ValueError(f"cannot use the picture {path}: its shape is {picture.shape}")
    if picture.dtype.kind == "f" and not np.isfinite(picture).all():
        raise ValueError(f"cannot use the picture {path}: it holds NaN or infinite values")
    return picture


def _reader(path: Path) -> Callable[[Path], np.ndarray]:
    ending = path.suffix.lower()
    if ending == ".hdr":
        return _read_radiance
    if ending == ".exr":
        return _read_exr
    with path.open("rb") as file:
        head = file.read(32)
    if head[:8] == _PNG and len(head) > 25 and head[24] == 16:
        return _read_deep_png
    return _read_tiff if head[:4] in (b"II*\0", b"MM\0*") else _read_plain


def _read_plain(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        image: Image.Image = ImageOps.exif_transpose(opened)
        if image.mode == "P":
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        elif image.mode not in ("L", "LA", "RGB", "RGBA", "I;16", "I", "F"):
            image = image.convert("L" if image.mode == "1" else "RGB")
        pixels = np.array(image)
    return pixels.astype(np.uint16) if pixels.dtype == np.int32 else pixels


def _read_deep_png(path: Path) -> np.ndarray:
    from torchvision.io import ImageReadMode, decode_image, read_file

    pixels = decode_image(read_file(str(path)), ImageReadMode.UNCHANGED).numpy().transpose(1, 2, 0)
    return np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _read_tiff(path: Path) -> np.ndarray:
    import tifffile

    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]
        if (
            page.dtype is None
            or page.dtype.kind not in "uf"
            or page.dtype == np.uint8
            or page.photometric.name == "PALETTE"
        ):
            return _read_plain(path)
        pixels = page.asarray()
    if pixels.dtype.kind == "f":
        return pixels.astype(np.float32)
    return (pixels >> 16).astype(np.uint16) if pixels.dtype == np.uint32 else pixels


def _open_exr() -> Any:
    try:
        import OpenEXR
    except ImportError:
        raise MissingExtraError("OpenEXR", "hdr", "reading or writing an EXR file") from None
    return OpenEXR


def _read_exr(path: Path) -> np.ndarray:
    with _open_exr().File(str(path)) as file:
        channels = {name: np.asarray(channel.pixels, np.float32) for name, channel in file.channels().items()}
    for name in ("RGB", "RGBA"):
        if name in channels:
            return channels[name]
    return next(iter(channels.values()))


def _read_radiance(path: Path) -> np.ndarray:
    content = path.read_bytes()
    head = re.match(rb"#\?(?:RADIANCE|RGBE)\n(?:.*\n)*?\n-Y (\d+) \+X (\d+)\n", content)
    if head is None:
        raise ValueError("it is no Radiance picture stored from the top left")
    height, width = int(head[1]), int(head[2])
    position, rows = head.end(), []
    for _ in range(height):
        row, position = _radiance_row(content, position, width)
        rows.append(row)
    rgbe = np.stack(rows)
    factor = np.where(rgbe[..., 3:] > 0, np.ldexp(1.0, rgbe[..., 3:].astype(np.int32) - 136), 0.0)
    return (rgbe[..., :3] * factor).astype(np.float32)


def _radiance_row(content: bytes, position: int, width: int) -> tuple[np.ndarray, int]:
    """One row as (width, 4) bytes: run-length coded a component when its mark is there, else flat."""
    mark = content[position : position + 4]
    if len(mark) < 4:
        raise ValueError("it ends before its last row")
    if not (8 <= width < 32768 and mark[:2] == b"\2\2" and mark[2] * 256 + mark[3] == width):
        flat = np.frombuffer(content, np.uint8, 4 * width, position)
        if ((flat.reshape(-1, 4)[:, :3] == 1).all(1)).any():
            raise ValueError("it uses the run-length code of the oldest Radiance files, which is not read here")
        return flat.reshape(width, 4), position + 4 * width
    position += 4
    row = np.empty((4, width), np.uint8)
    for component in row:
        x = 0
        while x < width:
            count = content[position]
            run = count > 128
            count = count - 128 if run else count
            if count == 0 or x + count > width:
                raise ValueError("a row of it is damaged")
            stored = 1 if run else count
            component[x : x + count] = np.frombuffer(content, np.uint8, stored, position + 1)
            x, position = x + count, position + 1 + stored
    return row.T, position


def write_picture(path: Path | str, picture: np.ndarray) -> None:
    """Write ``picture`` (as :func:`read_picture` gives them) in the format that ``path`` ends in, whole or not at all.

    uint16 stays so in PNG and TIFF and floats in TIFF, HDR and EXR; other formats get 8 bits, values clipped to [0, 1].
    Alpha is kept where the format knows it (not in JPEG, BMP, HDR).

    Raises:
        ValueError: for an ending that is not known.
        OSError: naming the file, where it cannot be written.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in PICTURE_EXTENSIONS:
        raise ValueError(f"cannot write {path}: its ending must be one of {', '.join(sorted(PICTURE_EXTENSIONS))}")
    try:
        with Replacement(path) as partial:
            _write(partial, ending, picture)
    except OSError as error:
        raise type(error)(f"cannot write {path}: {error.strerror or error}") from None


def _write(path: Path, ending: str, picture: np.ndarray) -> None:
    if ending == ".hdr":
        path.write_bytes(_radiance(_colour(_floating(picture))))
    elif ending == ".exr":
        values = np.ascontiguousarray(_floating(picture))
        values = (
            np.repeat(values.reshape(*values.shape[:2], -1)[..., :1], 3, 2)
            if values.ndim == 2 or values.shape[2] < 3
            else values
        )
        exr = _open_exr()
        header = {"compression": exr.ZIP_COMPRESSION, "type": exr.scanlineimage}
        exr.File(header, {"RGB" if values.shape[2] == 3 else "RGBA": values}).write(str(path))
    elif ending in (".tif", ".tiff") and picture.dtype != np.uint8:
        import tifffile

        tifffile.imwrite(path, picture)
    elif ending == ".png" and picture.dtype == np.uint16:
        path.write_bytes(_deep_png(picture))
    else:
        eight = to_bytes(picture)
        opaque = ending in (".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".pbm")
        if opaque and eight.ndim == 3 and eight.shape[2] in (2, 4):
            eight = eight[..., 0] if eight.shape[2] == 2 else eight[..., :3]
        quality = {"quality": 95} if ending in (".jpg", ".jpeg", ".webp") else {}
        Image.fromarray(eight).save(path, Image.registered_extensions()[ending], **quality)


def to_bytes(picture: np.ndarray) -> np.ndarray:
    """``picture`` in 8 bits: uint16 over 257, floats clipped to [0, 1]; (H, W, 1) becomes (H, W)."""
    if picture.dtype != np.uint8:
        picture = np.rint(np.clip(_floating(picture), 0, 1) * 255).astype(np.uint8)
    return picture[..., 0] if picture.ndim == 3 and picture.shape[2] == 1 else picture


def _floating(picture: np.ndarray) -> np.ndarray:
    if picture.dtype.kind == "u":
        return picture.astype(np.float32) / np.float32(np.iinfo(picture.dtype).max)
    return picture.astype(np.float32)


def _colour(values: np.ndarray) -> np.ndarray:
    """(H, W, 3) of grey or colour, with or without alpha."""
    if values.ndim == 2 or values.shape[2] < 3:
        return np.repeat(values.reshape(*values.shape[:2], -1)[..., :1], 3, axis=2)
    return values[..., :3]


def _radiance(values: np.ndarray) -> bytes:
    """A Radiance file of (H, W, 3) radiance, rows stored flat; negative values become 0."""
    values = np.maximum(values, 0)
    greatest = values.max(2)
    mantissa, exponent = np.frexp(greatest)
    factor = np.where(greatest > 1e-32, mantissa * 256 / np.maximum(greatest, 1e-32), 0)
    rgbe = np.zeros((*greatest.shape, 4), np.uint8)
    rgbe[..., :3] = np.minimum(values * factor[..., None], 255)
    rgbe[..., 3] = np.where(greatest > 1e-32, exponent + 128, 0)
    return b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y %d +X %d\n" % greatest.shape + rgbe.tobytes()


def _deep_png(picture: np.ndarray) -> bytes:
    """A 16-bit PNG; Pillow writes those in grey only."""
    picture = picture[..., None] if picture.ndim == 2 else picture
    height, width, channels = picture.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = picture.astype(">u2").reshape(height, -1).view(np.uint8)
    body = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes()

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    return _PNG + header + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
