"""Parity drivers: the operators one by one, and the whole filter with its levels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from repertory.ops.bilateral import joint_bilateral
from repertory.ops.gaussian import gaussian_blur
from repertory.ops.resize import imresize
from repertory.parity import Case, Driver
from repertory.systems.pyramid_texture_filtering.filter import pyramid_texture_filter, pyramids, refinements


def _resize(inputs: Callable[[str], Tensor], settings: Mapping[str, Any]) -> Tensor:
    height, width = settings["size"]
    return imresize(inputs(settings["input"]), (height, width))


def _gaussian(inputs: Callable[[str], Tensor], settings: Mapping[str, Any]) -> Tensor:
    return gaussian_blur(inputs(settings["input"]), settings["size"], settings["sigma"])


def _bilateral(inputs: Callable[[str], Tensor], settings: Mapping[str, Any]) -> Tensor:
    guide = inputs(settings.get("guide", settings["input"]))
    half_width, sigma_s, sigma_r = (settings[name] for name in ("half_width", "sigma_s", "sigma_r"))
    return joint_bilateral(inputs(settings["input"]), guide, half_width, sigma_s, sigma_r)


_OPERATORS = {"resize": _resize, "gaussian": _gaussian, "joint_bilateral": _bilateral}


def operators(case: Case) -> dict[str, Tensor]:
    """Each named operation of the configuration on its inputs, (C, H, W)."""

    def batched(name: str) -> Tensor:
        return case.input(name)[None]

    with torch.no_grad():
        table = case.config["operations"].items()
        return {name: _OPERATORS[settings["op"]](batched, settings)[0] for name, settings in table}


def texture_filter(case: Case) -> dict[str, Tensor]:
    """The filter's result, its levels and the ends of both pyramids."""
    image = case.input("image")[None]
    sigma_s, sigma_r, levels, scale = (case.config[name] for name in ("sigma_s", "sigma_r", "nlev", "scale"))
    with torch.no_grad():
        gaussian, laplacian = pyramids(image, levels, scale)
        found = {"R": pyramid_texture_filter(image, sigma_s, sigma_r, levels, scale), "G_last": gaussian[-1]}
        found |= {f"G_level{level}": value for level, value in enumerate(gaussian)}
        found |= {f"L_level{level}": value for level, value in enumerate(laplacian)}
        if laplacian:
            found |= {"L_first": laplacian[0], "L_last": laplacian[-1]}
        found |= {
            f"R_level{level}": value for level, value in refinements(gaussian, laplacian, sigma_s, sigma_r, scale)
        }
    return {name: value[0] for name, value in found.items()}


DRIVERS: dict[str, Driver] = {"filter": texture_filter, "operators": operators}
