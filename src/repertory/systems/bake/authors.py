"""From the names of the authors' checkpoints to ours, for each of their four layouts.

Small scale (``ckpt.t7``, under ``net``): CIFAR networks, and torchvision's layout, which is timm's too. ImageNet
(pycls, under ``model_state``): ``stem``, ``sK.bJ`` and ``head`` of the residual and the EfficientNet families,
torchvision's old flat layout for MobileNetV2, and the ResNeSt names that timm kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_RESIDUAL = {"f.a": "conv1", "f.b": "conv2", "f.c": "conv3", "proj": "downsample.0", "bn": "downsample.1"} | {
    "f.a_bn": "bn1",
    "f.b_bn": "bn2",
    "f.c_bn": "bn3",
}
_RESIDUAL_ENDS = {"stem.conv": "conv1", "stem.bn": "bn1", "head.fc": "fc"}

_EXPANDED = {"exp": "conv_pw", "exp_bn": "bn1", "dwise": "conv_dw", "dwise_bn": "bn2"} | {
    "lin_proj": "conv_pwl",
    "lin_proj_bn": "bn3",
}
_NOT_EXPANDED = {"dwise": "conv_dw", "dwise_bn": "bn1", "lin_proj": "conv_pw", "lin_proj_bn": "bn2"}
_SQUEEZE = {"se.f_ex.0": "se.conv_reduce", "se.f_ex.2": "se.conv_expand"}
_EFFICIENT_ENDS = {"stem.conv": "conv_stem", "stem.bn": "bn1", "head.conv": "conv_head"} | {
    "head.conv_bn": "bn2",
    "head.fc": "classifier",
}

# MobileNetV2: features.I.conv.J of an inverted residual, with and without expansion; blocks of each stage
_INVERTED = {"0": "conv_pw", "1": "bn1", "3": "conv_dw", "4": "bn2", "6": "conv_pwl", "7": "bn3"}
_SEPARABLE = {"0": "conv_dw", "1": "bn1", "3": "conv_pw", "4": "bn2"}
_MOBILE_ENDS = {"features.0.0": "conv_stem", "features.0.1": "bn1", "features.18.0": "conv_head"} | {
    "features.18.1": "bn2",
    "classifier": "classifier",
}
_MOBILE_BLOCKS = [f"{stage}.{block}" for stage, depth in enumerate((1, 2, 3, 4, 3, 3, 1)) for block in range(depth)]


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state_dict`` of one of the authors' networks under the names of ours; the tensors are those given.

    The layout is told from the names. ValueError names a tensor that has no place in it.
    """
    names = set(state_dict)
    if "stem.conv.weight" in names:
        rename = _efficient if "head.conv.weight" in names else _residual
    elif "features.0.0.weight" in names:
        rename = _mobile
    else:
        rename = _small_scale
    return {rename(name): value for name, value in state_dict.items()}


def _small_scale(name: str) -> str:
    """CIFAR networks, whose shortcut is a sequence of one convolution; torchvision's and ResNeSt's names are ours."""
    return name.replace(".shortcut.0.", ".shortcut.")


def _residual(name: str) -> str:
    layer, leaf = name.rsplit(".", 1)
    if layer in _RESIDUAL_ENDS:
        return f"{_RESIDUAL_ENDS[layer]}.{leaf}"
    stage, block, part = _place(layer, name)
    return f"layer{stage}.{block - 1}.{_known(_RESIDUAL, part, name)}.{leaf}"


def _efficient(name: str) -> str:
    layer, leaf = name.rsplit(".", 1)
    if layer in _EFFICIENT_ENDS:
        return f"{_EFFICIENT_ENDS[layer]}.{leaf}"
    stage, block, part = _place(layer, name)
    names = _NOT_EXPANDED if stage == 1 else _EXPANDED  # the first stage alone has expansion 1
    return f"blocks.{stage - 1}.{block - 1}.{_known(names | _SQUEEZE, part, name)}.{leaf}"


def _mobile(name: str) -> str:
    layer, leaf = name.rsplit(".", 1)
    if layer in _MOBILE_ENDS:
        return f"{_MOBILE_ENDS[layer]}.{leaf}"
    found = re.fullmatch(r"features\.(\d+)\.conv\.(\d)", layer)
    if not found or not 1 <= int(found[1]) <= len(_MOBILE_BLOCKS):
        raise _stranger(name)
    names = _SEPARABLE if found[1] == "1" else _INVERTED
    return f"blocks.{_MOBILE_BLOCKS[int(found[1]) - 1]}.{_known(names, found[2], name)}.{leaf}"


def _place(layer: str, name: str) -> tuple[int, int, str]:
    """Stage, block and part of ``sK.bJ.part``, counted from one."""
    found = re.fullmatch(r"s(\d+)\.b(\d+)\.(.+)", layer)
    if not found:
        raise _stranger(name)
    return int(found[1]), int(found[2]), found[3]


def _known(names: Mapping[str, str], part: str, name: str) -> str:
    if part not in names:
        raise _stranger(name)
    return names[part]


def _stranger(name: str) -> ValueError:
    return ValueError(f"the checkpoint has a tensor {name!r} that no BAKE network of its layout has")
