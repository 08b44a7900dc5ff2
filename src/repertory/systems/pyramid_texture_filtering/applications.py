"""Five applications over the filter.

The abstract and the project page name them; their recipes are inferred from the practice that such papers follow, not
taken from the paper or its code. All take (B, C, H, W) floating tensors and return floating tensors of that shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from repertory.ops.gaussian import gaussian_blur
from repertory.systems.pyramid_texture_filtering.filter import pyramid_texture_filter

_LUMA = (0.299, 0.587, 0.114)  # BT.601
_INTENSITY = (20 / 61, 40 / 61, 1 / 61)  # Durand and Dorsey 2002


def _grey(image: Tensor, weights: Sequence[float]) -> Tensor:
    """(B, 1, H, W): the weighted sum of three channels, or the one channel there is."""
    if image.shape[1] == 1:
        return image
    if image.shape[1] != 3:
        raise ValueError(f"image has {image.shape[1]} channels; it must have 1 or 3")
    return sum((weight * image[:, i : i + 1] for i, weight in enumerate(weights)), torch.zeros_like(image[:, :1]))


def enhance_details(
    image: Tensor,
    strength: float = 3.0,
    sigma_s: float = 5.0,
    sigma_r: float | Sequence[float] = 0.05,
    levels: int = 11,
    scale: float = 0.8,
    backend: str = "auto",
) -> Tensor:
    """Make details stronger: base + ``strength`` x (image - base), clipped to [0, 1]. The recipe is inferred.

    Several values of ``sigma_r``, ascending, peel off one layer of detail each from the result of the one before.
    """
    base, details = image, torch.zeros_like(image)
    for one in [sigma_r] if isinstance(sigma_r, (int, float)) else sigma_r:
        smooth = pyramid_texture_filter(base, sigma_s, one, levels, scale, backend)
        details, base = details + strength * (base - smooth), smooth
    return (base + details).clamp(0, 1)


def abstract_image(
    image: Tensor,
    bins: int | None = 8,
    line_sigma: float = 1.0,
    sigma_s: float = 5.0,
    sigma_r: float = 0.05,
    levels: int = 11,
    scale: float = 0.8,
    backend: str = "auto",
) -> Tensor:
    """A flat, drawn look: smoothed, luminance in soft ``bins`` (None: left as it is), dark lines multiplied in.

    The recipe is inferred: the pipeline of Winnemoeller et al. 2006 with its bilateral filter replaced. Lines are a
    difference of Gaussians, ``line_sigma`` pixels and 1.6 times that, of the smoothed luminance.
    """
    smooth = pyramid_texture_filter(image, sigma_s, sigma_r, levels, scale, backend)
    luma = _grey(smooth, _LUMA)

    def blurred(sigma: float) -> Tensor:
        return gaussian_blur(luma, 2 * math.ceil(3 * sigma) + 1, sigma)

    contrast = blurred(line_sigma) - 0.98 * blurred(1.6 * line_sigma)
    lines = torch.where(contrast > 0, 1.0, 1 + torch.tanh(75 * contrast))
    if bins is not None:
        nearest = torch.round(luma * (bins - 1)) / (bins - 1)
        step = 0.5 / (bins - 1) * torch.tanh(10 * (luma - nearest) * (bins - 1))
        smooth = smooth + (nearest + step - luma)
    return (smooth * lines).clamp(0, 1)


def tone_map(
    radiance: Tensor,
    contrast: float = 50.0,
    sigma_s: float = 5.0,
    sigma_r: float = 0.05,
    levels: int = 11,
    scale: float = 0.8,
    backend: str = "auto",
) -> Tensor:
    """Bring linear ``radiance`` of any range into [0, 1]: the base layer is compressed to ``contrast``, details stay.

    The recipe is inferred: Durand and Dorsey 2002 with its bilateral filter replaced. The logarithm of the intensity is
    brought to [0, 1] before filtering, so ``sigma_r`` is a part of its range. Values must not be negative.
    """
    if radiance.numel() and radiance.min() < 0:
        raise ValueError(f"radiance holds {radiance.min().item():g}; it must not be negative")
    if not contrast > 1:
        raise ValueError(f"contrast is {contrast}; it must be above 1")
    intensity = _grey(radiance, _INTENSITY)
    floor = torch.clamp(intensity.amax((1, 2, 3), keepdim=True) * 1e-6, min=torch.finfo(radiance.dtype).tiny)
    intensity = torch.maximum(intensity, floor)
    log = torch.log10(intensity)
    low, high = log.amin((1, 2, 3), keepdim=True), log.amax((1, 2, 3), keepdim=True)
    span = torch.where(high > low, high - low, 1.0)
    base = pyramid_texture_filter((log - low) / span, sigma_s, sigma_r, levels, scale, backend) * span + low
    bottom, top = base.amin((1, 2, 3), keepdim=True), base.amax((1, 2, 3), keepdim=True)
    compression = math.log10(contrast) / torch.where(top > bottom, top - bottom, math.log10(contrast))
    mapped = 10 ** (base * compression + (log - base) - top * compression)
    return (radiance / intensity * mapped).clamp(0, 1) ** (1 / 2.2)


def inverse_halftone(
    image: Tensor,
    sigma_s: float = 5.0,
    sigma_r: float = 0.1,
    levels: int = 11,
    scale: float = 0.8,
    backend: str = "auto",
) -> Tensor:
    """Continuous tones from a halftone, whose dots are the texture; grey runs as three equal channels.

    The recipe is inferred: the filter itself with a larger ``sigma_r``, clipped to [0, 1].
    """
    colour = image.expand(-1, 3, -1, -1) if image.shape[1] == 1 else image
    smooth = pyramid_texture_filter(colour.contiguous(), sigma_s, sigma_r, levels, scale, backend)
    return smooth[:, : image.shape[1]].clamp(0, 1)


def enhance_low_light(
    image: Tensor,
    gamma: float = 1 / 2.2,
    sigma_s: float = 5.0,
    sigma_r: float = 0.05,
    levels: int = 11,
    scale: float = 0.8,
    backend: str = "auto",
) -> Tensor:
    """Brighten dark regions: the image over its illumination to the power 1 - ``gamma``, clipped to [0, 1].

    The recipe is inferred (retinex style): illumination is the filtered maximum over the channels.
    """
    brightest = image.amax(1, keepdim=True)
    illumination = pyramid_texture_filter(brightest, sigma_s, sigma_r, levels, scale, backend).clamp(min=0)
    return (image / illumination.pow(1 - gamma).clamp(min=1e-3)).clamp(0, 1)


APPLICATIONS: dict[str, Callable[..., Tensor]] = {
    "detail": enhance_details,
    "abstraction": abstract_image,
    "tonemap": tone_map,
    "dehalftone": inverse_halftone,
    "enhance": enhance_low_light,
}
