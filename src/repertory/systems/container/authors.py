"""From the names of the authors' checkpoints to ours.

Theirs number patch embeddings and lists of blocks from 1, and call the static affinity ``attn`` in a convolution block
and ``conv`` in a mixed one. Names of a block that stands alone are converted too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

LAYERS = {
    "conv1": "aggregation.project",
    "conv2": "aggregation.output",
    "attn": "aggregation.affinities.0.conv",  # a convolution block has this one affinity
    "conv": "aggregation.affinities.1.conv",  # a mixed block has attention before it
    "sa_weight": "aggregation.mixing_logit",
}


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state_dict`` of the authors' network, or of one of its blocks, under our names; the tensors are those given."""
    return {_rename(name): value for name, value in state_dict.items()}


def _rename(name: str) -> str:
    if embedding := re.fullmatch(r"patch_embed(\d+)\.(.+)", name):
        return f"stages.{int(embedding[1]) - 1}.downsample.{embedding[2]}"
    if block := re.fullmatch(r"blocks(\d+)\.(\d+)\.(.+)", name):
        return f"stages.{int(block[1]) - 1}.blocks.{block[2]}.{_rename(block[3])}"
    layer, dot, rest = name.partition(".")
    return LAYERS.get(layer, layer) + dot + rest
