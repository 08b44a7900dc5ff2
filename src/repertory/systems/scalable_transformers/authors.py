"""From the names of the authors' checkpoints to ours: they are those of DeiT and of timm, and so are ours."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state_dict`` of the authors' supernet, of a DeiT or of timm's plain vision transformer, which all fit."""
    return dict(state_dict)
