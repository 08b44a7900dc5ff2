"""From the names of the authors' checkpoints to ours.

Theirs put a stage's downsampler after its blocks, ours before those of the next; their window attention projects to
values, queries and keys in this order. Masks and index tables, which theirs keep for one resolution, are left out: ours
makes them in each call. Both layouts are read: the classifier's, and the dense backbone's with a norm for every stage.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

COMPUTED = (".relative_id", ".attn_mask")  # by our model, for the size at hand
LAYERS = {"attn.0": "filters.0", "attn.2": "filters.2", "pre_proj": "qkv", "post_proj": "proj", "rb": "relative_bias"}


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state_dict`` of the authors' network, or of one attention layer, under the names of ours."""
    kept = {name: value for name, value in state_dict.items() if not f".{name}".endswith(COMPUTED)}
    windowed = {name.removesuffix("rb") + "pre_proj" for name in kept if f".{name}".endswith(".rb")}
    return {
        _rename(name): _values_last(value) if name.rpartition(".")[0] in windowed else value
        for name, value in kept.items()
    }


def _values_last(projection: Tensor) -> Tensor:
    """Rows of values, queries and keys as queries, keys and values."""
    return projection.roll(-(len(projection) // 3), 0)


def _rename(name: str) -> str:
    if found := re.fullmatch(r"layers\.(\d+)\.downsample\.(.+)", name):
        return f"stages.{int(found[1]) + 1}.downsample.{found[2]}"
    if found := re.fullmatch(r"norm(\d)\.(.+)", name):
        return f"feature_norms.{found[1]}.{found[2]}"
    if found := re.fullmatch(r"layers\.(\d+\.blocks\.\d+\.)(.+)", name):
        block, rest = found.groups()
        layer = rest.startswith("attn.")
        return f"stages.{block}" + ("attn." + _rename_layer(rest.removeprefix("attn.")) if layer else rest)
    return _rename_layer(name)


def _rename_layer(name: str) -> str:
    """Names inside an attention layer; others stay."""
    for theirs, ours in LAYERS.items():
        if name == theirs or name.startswith(f"{theirs}."):
            return ours + name.removeprefix(theirs)
    return name
