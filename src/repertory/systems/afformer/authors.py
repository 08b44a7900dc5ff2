"""From the names of the authors' checkpoints to ours.

Theirs hold the position's convolution and the high-pass filters of a stage once for the stage, and again for each of
its blocks, where the modules are shared; ours hold them once. The copies must be equal to the original. The segmentor's
``decode_head.align`` takes part in nothing and is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_SHARED = re.compile(r"MHCA_layers\.\d+\.(?:factoratt_crpe\.)?(cpe\.|crpe\.)")
_RENAMED = (
    (r"^decode_head\.squeeze\.conv\.", "squeeze.0."),
    (r"^decode_head\.squeeze\.gn\.", "squeeze.1."),
    (r"^decode_head\.conv_seg\.", "classifier."),
    (r"(^|\.)cls_head\.cls\.", r"\1head."),
    (r"patch_embed_stages\.(\d+)\.patch_embeds\.0\.patch_conv\.", r"stages.\1.pixels."),
    (r"patch_embed_stages\.(\d+)\.patch_embeds\.1\.patch_conv\.", r"stages.\1.prototypes."),
    (r"mhca_stages\.(\d+)\.mhca_blks\.0\.", r"stages.\1.encoder."),
    (r"mhca_stages\.(\d+)\.Restore\.conv1\.", r"stages.\1.descriptor.reduce."),
    (r"mhca_stages\.(\d+)\.Restore\.dwconv\.", r"stages.\1.descriptor.depthwise.0."),
    (r"mhca_stages\.(\d+)\.Restore\.norm\.", r"stages.\1.descriptor.depthwise.1."),
    (r"mhca_stages\.(\d+)\.Restore\.conv2\.", r"stages.\1.descriptor.expand."),
    (r"mhca_stages\.(\d+)\.aggregate\.", r"stages.\1.aggregate."),
    (r"(stem\.\d+|reduce|expand|aggregate)\.conv\.", r"\1.0."),
    (r"(stem\.\d+|reduce|expand|aggregate)\.bn\.", r"\1.1."),
    (r"(pixels|prototypes)\.dwconv\.", r"\1.0."),
    (r"(pixels|prototypes)\.pwconv\.", r"\1.1."),
    (r"(pixels|prototypes)\.bn\.", r"\1.2."),
    (r"(^|\.)cpe\.proj\.", r"\1position."),
    (r"(^|\.)crpe\.conv_list\.", r"\1filters."),
    (r"(^|\.)MHCA_layers\.", r"\1blocks."),
    (r"\.factoratt_crpe\.", ".attn."),
    (r"\.mlp\.dwconv\.dwconv\.", ".mlp.depthwise."),
)


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state_dict`` of the authors' segmentor, backbone or encoder under our names; the tensors are those given.

    Raises:
        ValueError: where a shared tensor and one of its copies differ, or a copy has no original.
    """
    converted = {}
    for name, value in state_dict.items():
        if _SHARED.search(name):
            _check_copy(name, value, state_dict)
        elif not name.startswith("decode_head.align."):
            converted[_renamed(name)] = value
    return converted


def _check_copy(name: str, value: Tensor, state_dict: Mapping[str, Tensor]) -> None:
    original = _SHARED.sub(r"\1", name)
    if original not in state_dict:
        raise ValueError(f"{name} is a copy of {original}, which is missing")
    if not torch.equal(value, state_dict[original]):
        raise ValueError(f"{name} must equal {original}, since a stage shares this tensor; they differ")


def _renamed(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name
