"""The filter: pyramids, guided upsampling, and a front for pictures as numpy arrays."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from repertory.ops.bilateral import joint_bilateral
from repertory.ops.gaussian import gaussian_blur
from repertory.ops.resize import imresize


def _sizes(height: int, width: int, levels: int, scale: float) -> list[tuple[int, int]]:
    """Sizes of the Gaussian levels, full size first; each is the floor of ``scale`` times the one before."""
    sizes = [(height, width)]
    while len(sizes) < levels:
        height, width = math.floor(height * scale), math.floor(width * scale)
        sizes.append((height, width))
    return sizes


def most_levels(height: int, width: int, scale: float = 0.8) -> int:
    """How many levels an image of ``height`` x ``width`` pixels allows before a side would be zero."""
    side, levels = min(height, width), 0
    while side >= 1:
        side, levels = math.floor(side * scale), levels + 1
    return levels


def _smallest_side(levels: int, scale: float) -> int:
    """The shortest side that allows ``levels`` levels."""
    side = 1
    while most_levels(side, side, scale) < levels:
        side += 1
    return side


def _check(height: int, width: int, sigma_s: float, sigma_r: float, levels: int, scale: float) -> None:
    for name, value in (("sigma_s", sigma_s), ("sigma_r", sigma_r)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}; it must be a positive number")
    if not 0 < scale < 1:
        raise ValueError(f"scale is {scale}; it must lie between 0 and 1, both excluded")
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < 1:
        raise ValueError(f"levels is {levels!r}; it must be an integer of at least 1")
    if height < 1 or width < 1:
        raise ValueError(f"the image is {height}x{width} pixels; both sides must be at least 1")
    most = most_levels(height, width, scale)
    if levels > most:
        raise ValueError(
            f"levels is {levels}, but an image of {height}x{width} pixels allows at most {most} at scale {scale}; "
            f"{levels} levels need sides of at least {_smallest_side(levels, scale)} pixels"
        )


def pyramids(image: Tensor, levels: int = 11, scale: float = 0.8) -> tuple[list[Tensor], list[Tensor]]:
    """The Gaussian and the Laplacian pyramid of ``image`` (B, C, H, W), full size first.

    The Laplacian has one level fewer. The upsampled level is resized first and blurred
    afterwards, as in the authors' code.
    """
    gaussian, laplacian = [image], []
    for size in _sizes(image.shape[-2], image.shape[-1], levels, scale)[1:]:
        fine = gaussian[-1]
        gaussian.append(imresize(gaussian_blur(fine), size))
        laplacian.append(fine - gaussian_blur(imresize(gaussian[-1], (fine.shape[-2], fine.shape[-1]))))
    return gaussian, laplacian


def upsample(
    smooth: Tensor,
    gaussian: Tensor,
    laplacian: Tensor | None,
    sigma_s: float,
    sigma_r: float,
    last: bool = True,
    backend: str = "auto",
) -> Tensor:
    """One step of pyramid-guided structure-aware upsampling.

    Args:
        smooth: (B, C, h, w), the result of the coarser level.
        gaussian: (B, C, H, W), the Gaussian level to reach.
        laplacian: (B, C, H, W), its Laplacian level; None leaves it out (an ablation).
        sigma_s: spatial standard deviation at this level, pixels.
        sigma_r: range standard deviation.
        last: whether the self-guided clean-up runs (False is an ablation).
        backend: path of the bilateral filters.
    """
    narrow, wide = math.ceil(0.5 * sigma_s + 1), math.ceil(2 * sigma_s + 1)
    raised = imresize(smooth, (gaussian.shape[-2], gaussian.shape[-1]))
    sharp = joint_bilateral(raised, gaussian, narrow, sigma_s, sigma_r, backend)
    detailed = sharp if laplacian is None else sharp + laplacian
    refined = joint_bilateral(detailed, sharp, wide, sigma_s, sigma_r, backend)
    return joint_bilateral(refined, refined, wide, sigma_s, sigma_r, backend) if last else refined


def refinements(
    gaussian: list[Tensor],
    laplacian: list[Tensor],
    sigma_s: float = 5.0,
    sigma_r: float = 0.05,
    scale: float = 0.8,
    add_laplacian: bool = True,
    last: bool = True,
    backend: str = "auto",
) -> Iterator[tuple[int, Tensor]]:
    """(level, result) from the coarsest refined level up to level 0, full size; nothing for a pyramid of one level."""
    smooth = gaussian[-1]
    for level in reversed(range(len(laplacian))):
        residual = laplacian[level] if add_laplacian else None
        smooth = upsample(smooth, gaussian[level], residual, sigma_s * scale**level, sigma_r, last, backend)
        yield level, smooth


def pyramid_texture_filter(
    image: Tensor,
    sigma_s: float = 5.0,
    sigma_r: float = 0.05,
    levels: int = 11,
    scale: float = 0.8,
    backend: str = "auto",
    *,
    add_laplacian: bool = True,
    last: bool = True,
) -> Tensor:
    """Smooth the textures of a batch of images and keep their structure.

    Colour distance is summed over the channels present: a grey image of one channel at ``sigma_r`` is filtered as the
    same image replicated to three channels would be at ``sigma_r * sqrt(3)``.

    Args:
        image: (B, C, H, W), float32 or float64, in [0, 1] (other ranges want ``sigma_r`` scaled with them), on any
            device; differentiable once.
        sigma_s: spatial size in pixels at full size; the authors use 5 to 7.
        sigma_r: range in units of the image; the authors use .02 to .09.
        levels: pyramid levels, full size included; 1 returns the image.
        scale: size ratio of neighbouring levels.
        backend: path of the bilateral filters, see :func:`repertory.ops.joint_bilateral`.
        add_laplacian: False leaves the Laplacian levels out (an ablation).
        last: False leaves the self-guided clean-up out (an ablation).

    Returns:
        (B, C, H, W), not clipped to [0, 1].

    Raises:
        TypeError: for something that is not a floating tensor of four dimensions.
        ValueError: for settings out of range, NaN or infinity, or more levels than the size allows (which names the
            size needed).
    """
    if not isinstance(image, Tensor) or image.dim() != 4 or image.dtype not in (torch.float32, torch.float64):
        what = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(f"image is {what}; it must be a float32 or float64 tensor (B, C, H, W)")
    _check(image.shape[-2], image.shape[-1], sigma_s, sigma_r, levels, scale)
    if not torch.compiler.is_compiling() and not torch.isfinite(image).all():
        raise ValueError("image holds NaN or infinite values; all must be finite")
    gaussian, laplacian = pyramids(image, levels, scale)
    steps = refinements(gaussian, laplacian, sigma_s, sigma_r, scale, add_laplacian, last, backend)
    return deque(steps, maxlen=1)[0][1] if laplacian else image


def as_tensor(picture: np.ndarray, device: str | torch.device = "cpu") -> tuple[Tensor, np.ndarray | None]:
    """(1, C, H, W) float32 in [0, 1] (float64 stays), C 1 or 3, and the alpha plane where there is one.

    ``picture`` is (H, W) or (H, W, 1 to 4): grey, grey + alpha, RGB or RGBA; unsigned integers are divided by their
    greatest value, booleans are 0 and 1, floating values are taken as they are.
    """
    picture = np.asarray(picture)
    if picture.ndim == 2:
        picture = picture[..., None]
    if picture.ndim != 3 or picture.shape[2] not in (1, 2, 3, 4):
        raise ValueError(f"picture is {picture.shape}; it must be (H, W) or (H, W, 1 to 4): grey or RGB, alpha or not")
    if picture.dtype.kind not in "ubf":
        raise TypeError(f"picture is {picture.dtype}; it must be unsigned integer, bool or floating")
    alpha = picture[..., -1] if picture.shape[2] in (2, 4) else None
    colour = picture[..., :-1] if alpha is not None else picture
    if colour.dtype.kind == "u":
        colour = colour.astype(np.float32) / np.float32(np.iinfo(picture.dtype).max)
    elif colour.dtype != np.float64:
        colour = colour.astype(np.float32)
    tensor = torch.from_numpy(np.ascontiguousarray(colour.transpose(2, 0, 1)))[None]
    return tensor.to(device), alpha


def as_picture(tensor: Tensor, like: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    """The inverse of :func:`as_tensor`: dtype and dimensions of ``like``, integers clipped, alpha put back."""
    values = tensor[0].detach().cpu().numpy().transpose(1, 2, 0)
    if like.dtype.kind == "u":
        most = np.iinfo(like.dtype).max
        values = np.rint(np.clip(values, 0, 1) * most)
    elif like.dtype.kind == "b":
        like = like.astype(np.float32)  # a smoothed binary picture has shades
        alpha = None if alpha is None else alpha.astype(np.float32)
    values = values.astype(like.dtype)
    if alpha is not None:
        values = np.concatenate([values, alpha[..., None]], axis=2)
    return values[..., 0] if like.ndim == 2 else values


def filter_image(
    picture: np.ndarray,
    sigma_s: float = 5.0,
    sigma_r: float = 0.05,
    levels: int = 11,
    scale: float = 0.8,
    backend: str = "auto",
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """Filter one picture given as an array; dtype and shape stay, alpha passes through unfiltered.

    Grey is filtered as one channel: its ``sigma_r`` corresponds to ``sigma_r * sqrt(3)`` for the same picture in RGB.

    Args:
        picture: (H, W) or (H, W, 1 to 4); uint8 or uint16 (divided by 255 or 65535, the result clipped and rounded),
            bool, or floating in [0, 1].
        sigma_s, sigma_r, levels, scale, backend: as in :func:`pyramid_texture_filter`.
        device: where to compute.

    Raises:
        TypeError, ValueError: for an array that is no picture, and as :func:`pyramid_texture_filter`.
    """
    picture = np.asarray(picture)
    tensor, alpha = as_tensor(picture, device)
    with torch.no_grad():
        smooth = pyramid_texture_filter(tensor, sigma_s, sigma_r, levels, scale, backend)
    return as_picture(smooth, picture, alpha)
