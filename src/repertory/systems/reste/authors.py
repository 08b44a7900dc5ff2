"""From the names of the authors' checkpoints to ours.

One conversion reads all their networks: theirs call stages ``layerL``, the shortcut ``shortcut`` (CIFAR) or
``downsample`` (ImageNet), the norm before the classifier ``bn2`` and the classifier ``linear`` or ``fc``; VGG-small
numbers its layers, and its classifier takes the map flattened. Their files keep the real latent weights, as ours do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_ENDS = {"conv1": "stem.conv", "bn1": "stem.norm", "bn2": "head_norm", "linear": "head", "fc": "head"}
_BLOCK = {"conv1": "conv1", "bn1": "norm1", "conv2": "conv2", "bn2": "norm2"} | {
    f"{shortcut}.{i}": f"shortcut.{name}"
    for shortcut in ("shortcut", "downsample")
    for i, name in enumerate(("conv", "norm"))
}


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state_dict`` of one of the authors' networks, or of one layer, under the names of ours; the tensors stay.

    ValueError names a tensor that has no place in it.
    """
    rename = _plain if "conv0.weight" in state_dict else _residual
    return {rename(name): value for name, value in state_dict.items()}


def _plain(name: str) -> str:
    """VGG-small's names."""
    found = re.fullmatch(r"(conv|bn)(\d)\.(.+)", name)
    if found:
        return f"layers.{found[2]}.{'conv' if found[1] == 'conv' else 'norm'}.{found[3]}"
    if name.startswith("fc."):
        return name.replace("fc.", "head.")
    raise _stranger(name)


def _residual(name: str) -> str:
    layer, _, leaf = name.rpartition(".")
    if not layer:  # one convolution alone
        return name
    if layer in _ENDS:
        return f"{_ENDS[layer]}.{leaf}"
    if found := re.fullmatch(r"layer(\d)\.(\d+)\.(.+)", layer):
        stage, block, part = found.groups()
        if part in _BLOCK:
            return f"stages.{int(stage) - 1}.blocks.{block}.{_BLOCK[part]}.{leaf}"
    raise _stranger(name)


def _stranger(name: str) -> ValueError:
    return ValueError(f"the checkpoint has a tensor {name!r} that no network of ReSTE's authors has")
