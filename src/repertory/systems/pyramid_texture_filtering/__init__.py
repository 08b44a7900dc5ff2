"""Pyramid Texture Filtering (ACM TOG 42(4), SIGGRAPH 2023, arXiv 2305.06525).

Structure-preserving smoothing without learning. The coarsest level of a slowly shrinking Gaussian pyramid has lost its
textures and keeps the large structures; it is brought back to full size level by level: upsampled, sharpened by a joint
bilateral filter guided by the Gaussian level, given back the Laplacian level, and cleaned by two more such filters.
Nothing is training-only and there are no parameters. The parity vectors are a float64 transcription of the authors'
MATLAB; MATLAB itself was not run.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repertory.systems.pyramid_texture_filtering.applications import (
        abstract_image,
        enhance_details,
        enhance_low_light,
        inverse_halftone,
        tone_map,
    )
    from repertory.systems.pyramid_texture_filtering.filter import filter_image, most_levels, pyramid_texture_filter

_HOMES = {
    "abstract_image": "applications",
    "enhance_details": "applications",
    "enhance_low_light": "applications",
    "filter_image": "filter",
    "inverse_halftone": "applications",
    "most_levels": "filter",
    "pyramid_texture_filter": "filter",
    "tone_map": "applications",
}
__all__ = [
    "abstract_image",
    "enhance_details",
    "enhance_low_light",
    "filter_image",
    "inverse_halftone",
    "most_levels",
    "pyramid_texture_filter",
    "tone_map",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
