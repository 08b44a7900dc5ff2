"""What of the tuned values can be folded into the frozen layers, folded.

* The scale and shift of a LayerNorm go into the linear layer that reads it: ``W (g z + h) + b = (W g) z + (W h + b)``.
  That holds for the norms before a block's ``qkv`` and ``fc1``, before a Swin's merging of patches, and before the
  head, since the mean over tokens is linear too.
* The scale s of an adapter goes into its weight and bias.
* An adapter itself stays. It acts on the residual stream, ``(I + s S' W S) x + s S' b`` with S the choice of channels,
  which later layers read through their norms and add to: no single linear layer can take it in.

A norm whose reader is not certain keeps its scale and shift: where windows are padded with zeros behind it (Swin on
maps that its windows do not divide), where attention pools or chooses the greatest, and in blocks of other make.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from repertory.systems.petl_two_stage.adapter import adapters


def merge(model: nn.Module) -> nn.Module:
    """A copy of ``model`` for inference, in evaluation mode, with all folded that can be; ``model`` stays trainable.

    It computes the same (to rounding: the products are formed in float64) with fewer parameters: two times the width
    for each norm that is folded.
    """
    merged = copy.deepcopy(model).eval()
    for norm, reader in list(_readers(merged)):
        _fold(norm, reader)
    for adapter in adapters(merged).values():
        with torch.no_grad():
            adapter.weight.mul_(adapter.scale)
            adapter.bias.mul_(adapter.scale)
        adapter.scale = 1.0
    return merged


def _readers(model: nn.Module) -> Iterator[tuple[nn.LayerNorm, nn.Linear]]:
    """Each LayerNorm with a scale that exactly one linear layer reads, and that layer."""
    for norm, reader in _candidates(model):
        if isinstance(norm, nn.LayerNorm) and norm.weight is not None and isinstance(reader, nn.Linear):
            yield norm, reader


def _candidates(model: nn.Module) -> Iterator[tuple[Any, Any]]:
    from timm.models.swin_transformer import PatchMerging, SwinTransformer, SwinTransformerBlock
    from timm.models.vision_transformer import Attention, Block, VisionTransformer

    for module in model.modules():
        if isinstance(module, Block):
            if type(module.attn) is Attention and getattr(module.attn, "gate", None) is None:
                yield module.norm1, module.attn.qkv
            yield module.norm2, getattr(module.mlp, "fc1", None)
        elif isinstance(module, SwinTransformerBlock):
            if not _pads(module):
                yield module.norm1, module.attn.qkv
            yield module.norm2, module.mlp.fc1
        elif isinstance(module, PatchMerging):
            yield module.norm, module.reduction
    if isinstance(model, VisionTransformer) and getattr(model, "attn_pool", None) is None:
        yield from _before_vit_head(model)
    if isinstance(model, SwinTransformer) and model.head.global_pool.pool_type in ("avg", ""):
        yield model.norm, model.head.fc


def _before_vit_head(model: Any) -> Iterator[tuple[Any, Any]]:
    """The last norm of a ViT: before pooling, or behind it."""
    if not isinstance(model.fc_norm, nn.Identity):
        yield model.fc_norm, model.head
    elif model.global_pool in ("token", "avg", ""):
        yield model.norm, model.head


def _pads(block: Any) -> bool:
    """Whether the windows of a Swin block do not divide its map, so that zeros stand among what ``qkv`` reads."""
    return any(side % window for side, window in zip(block.input_resolution, block.window_size, strict=True))


@torch.no_grad()
def _fold(norm: nn.LayerNorm, reader: nn.Linear) -> None:
    """Move the scale and shift of ``norm`` into ``reader``."""
    weight = reader.weight.double()
    bias = torch.zeros(len(weight), dtype=weight.dtype, device=weight.device)
    bias = bias if reader.bias is None else reader.bias.double()
    if norm.bias is not None:
        bias = bias + weight @ norm.bias.double()
    reader.weight.copy_(weight * norm.weight.double())
    if reader.bias is None and bool(bias.any()):
        reader.bias = nn.Parameter(bias.to(reader.weight), requires_grad=reader.weight.requires_grad)
    elif reader.bias is not None:
        reader.bias.copy_(bias)
    norm.weight = norm.bias = None  # type: ignore[assignment]
    norm.elementwise_affine = False
