"""From the names of the authors' checkpoints to ours.

Theirs list all bottlenecks in a row and put a stage's patch merging after its blocks; in ours a bottleneck that changes
the width begins a stage, and downsamplers stand before the blocks of the next, so that a stage's output is what dense
prediction takes. Their buffers for one input size, ``attn_mask`` and ``relative_position_index``, are not needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

COMPUTED = (".attn_mask", ".relative_position_index")
BOTTLENECK = {"0": "expand", "2": "norm1", "3": "depthwise", "5": "norm2", "6": "project", "7": "norm3"}


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state_dict`` of the authors' network under the names of ours.

    Of a detector's checkpoint (names under ``backbone.``) the backbone alone is taken: it fits a model without final
    norm and classifier. Of two heads, as distillation leaves them, comes one with their mean: the same logits.
    """
    state = dict(state_dict)
    if any(name.startswith("backbone.") for name in state):
        state = {name.removeprefix("backbone."): v for name, v in state.items() if name.startswith("backbone.")}
    places = _places(state)
    converted = {_rename(name, places): value for name, value in state.items() if not name.endswith(COMPUTED)}
    for leaf in ("weight", "bias"):
        if f"head_dist.{leaf}" in converted and f"head.{leaf}" in converted:
            converted[f"head.{leaf}"] = (converted[f"head.{leaf}"] + converted.pop(f"head_dist.{leaf}")) / 2
    return converted


def block_from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As :func:`from_authors`, of one ladder block or one bottleneck alone."""
    return {_inside(name): value for name, value in state_dict.items() if not f".{name}".endswith(COMPUTED)}


def _places(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Where bottlenecks and ladder stages of ``state`` stand in ours: the last bottleneck leads to the first ladder."""
    found = sorted({int(match[1]) for name in state if (match := re.match(r"conv_layers\.(\d+)\.", name))})
    stage, block, places = -1, 0, {}
    for index in found:
        before, after = (state.get(f"conv_layers.{index}.conv.{layer}.weight") for layer in ("0", "7"))
        if stage < 0 or (before is not None and after is not None and before.shape[1] != after.shape[0]):
            stage, block = stage + 1, 0
        last = index == found[-1]
        places[f"conv_layers.{index}"] = f"stages.{stage}.downsample" if last else f"stages.{stage}.blocks.{block}"
        block += 1
    return places | {"layers": str(max(stage, 0))}


def _rename(name: str, places: Mapping[str, str]) -> str:
    if bottleneck := re.fullmatch(r"(conv_layers\.\d+)\.(.+)", name):
        return f"{places[bottleneck[1]]}.{_inside(bottleneck[2])}"
    if ladder := re.fullmatch(r"layers\.(\d+)\.(downsample|blocks\.\d+)\.(.+)", name):
        stage = int(places["layers"]) + int(ladder[1])
        if ladder[2] == "downsample":
            return f"stages.{stage + 1}.downsample.{ladder[3]}"
        return f"stages.{stage}.{ladder[2]}.{_inside(ladder[3])}"
    return re.sub(r"^patch_embed\.proj\.", "stem.", name)


def _inside(name: str) -> str:
    """Names inside a ladder block, or inside a bottleneck with its squeeze and excitation."""
    if branch := re.fullmatch(r"blocks\.(\d+)\.(.+)", name):
        inner = branch[2].replace("attn.kv.", "attn.qk.").replace("relative_position_bias_table", "bias_table")
        return f"branches.{branch[1]}.{_layer(inner.replace('mlp.conv.', 'ffn.', 1), 'ffn.')}"
    if name.startswith("conv."):
        return _layer(name, "conv.")
    return re.sub(r"^se\.", "gate.", re.sub(r"^pointconv\.", "mix.", name))


def _layer(name: str, prefix: str) -> str:
    """Layers of a bottleneck by name and not by number."""
    number, _, rest = name.removeprefix(prefix).partition(".")
    return f"{prefix}{BOTTLENECK.get(number, number)}.{rest}" if name.startswith(prefix) else name
