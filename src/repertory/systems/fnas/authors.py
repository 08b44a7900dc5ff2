"""From timm's names to ours: FNAS published no code, and timm's are the checkpoints of these networks that people have.

The names of ``semnasnet_100`` (MnasNet-A1), ``mnasnet_100`` (B1) and ``mobilenetv2_100``.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

OUTSIDE = {"conv_stem": "stem.0", "bn1": "stem.1", "conv_head": "head.0", "bn2": "head.1", "classifier": "classifier"}
SQUEEZE = {"se.conv_reduce": "se.reduce", "se.conv_expand": "se.expand"}
CONVOLUTION = {"conv": "conv", "bn1": "conv_norm"}
SEPARABLE = {
    "conv_dw": "depthwise",
    "bn1": "depthwise_norm",
    **SQUEEZE,
    "conv_pw": "project",
    "bn2": "project_norm",
}
BOTTLENECK = {
    "conv_pw": "expand",
    "bn1": "expand_norm",
    "conv_dw": "depthwise",
    "bn2": "depthwise_norm",
    **SQUEEZE,
    "conv_pwl": "project",
    "bn3": "project_norm",
}


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state_dict`` of timm's network under the names of :class:`~repertory.systems.fnas.model.MobileNetwork`."""
    return {_rename(name, state_dict): value for name, value in state_dict.items()}


def _rename(name: str, names: Mapping[str, Tensor]) -> str:
    owner, _, leaf = name.rpartition(".")
    if not name.startswith("blocks."):
        return f"{OUTSIDE.get(owner, owner)}.{leaf}"
    _, block, layer, inner = owner.split(".", 3)
    prefix = f"blocks.{block}.{layer}"
    kind = BOTTLENECK if f"{prefix}.conv_pwl.weight" in names else SEPARABLE
    kind = CONVOLUTION if f"{prefix}.conv.weight" in names else kind
    return f"{prefix}.{kind.get(inner, inner)}.{leaf}"
