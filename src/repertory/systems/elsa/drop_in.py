"""ELSA in the place of the local attention of timm's networks: any Swin, and VOLO.

The VOLO form is a reading: ELSA-VOLO was published (87.2 % top-1 for D5) but not released, and the paper's table of its
settings could not be read. Inferred: the outlookers of VOLO, its local stage, attend by ELSA; the settings are the
defaults of the authors' released block, which are not those of their Swin and have VOLO's MLP ratio of 3.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import timm
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.volo import VOLO, Outlooker
from torch import Tensor, nn

from repertory.data.preprocessing import Preprocessing
from repertory.systems.elsa.model import HadamardAttention

READING = {"kernel_size": 5, "lam": 1, "gamma": 1.0, "qkv_bias": False}


class LocalBlock(nn.Module):
    """A block of timm's Swin, its norms, MLP and drop-path kept, with attention that needs neither window nor shift.

    Norms stand before attention and MLP, or behind them with ``post_norm``, as in Swin V2.
    """

    def __init__(self, block: Any, attention: nn.Module, post_norm: bool) -> None:
        super().__init__()
        self.norm1, self.attn, self.drop_path1 = block.norm1, attention, block.drop_path1
        self.norm2, self.mlp, self.drop_path2 = block.norm2, block.mlp, block.drop_path2
        self.post_norm = post_norm

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        if self.post_norm:
            x = x + self.drop_path1(self.norm1(self.attn(x)))
            return x + self.drop_path2(self.norm2(self.mlp(x)))
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))

    def set_input_size(self, *_: Any, **__: Any) -> None:
        """What timm calls on every block for another size of image: here nothing depends on it."""

    def init_non_persistent_buffers(self) -> None:
        """What timm calls on blocks with masks: here there are none."""


def elsa_in_swin(model: nn.Module, stages: Sequence[int] | None = None, **settings: Any) -> nn.Module:
    """A copy of timm's ``model`` whose local stages attend by ELSA, all else as it was, weights included.

    Args:
        model: a Swin or Swin V2 of timm.
        stages: indices of the stages that change (negative ones count from the end); None is all but the last, whose
            map is one window at the size of training, as in ELSA-Swin.
        settings: those of :class:`HadamardAttention` but ``dim`` and ``num_heads``; dropout is that of the blocks.

    Raises:
        TypeError: where ``model`` is no Swin of timm.
        ValueError: for stages that it lacks, or settings that a layer cannot take.
    """
    if not isinstance(model, (SwinTransformer, SwinTransformerV2)):
        raise TypeError(f"model is a {type(model).__name__}; it must be a SwinTransformer, or V2 of it, of timm")
    model = copy.deepcopy(model)
    count = len(model.layers)
    wanted = range(count - 1) if stages is None else [stage + count if stage < 0 else stage for stage in stages]
    if not all(0 <= stage < count for stage in wanted):
        raise ValueError(f"stages are {list(stages or ())}; there are stages 0 to {count - 1}")
    for stage in wanted:
        blocks: Any = model.layers[stage].blocks
        for index, block in enumerate(blocks):
            if isinstance(block, LocalBlock):
                raise ValueError(f"stages hold {stage}, which attends by ELSA already")
            attention = _like(block.attn, block.norm1.weight.shape[0], block.norm1.weight, settings)
            blocks[index] = LocalBlock(block, attention, isinstance(model, SwinTransformerV2))
    return model


def elsa_in_volo(model: nn.Module, **settings: Any) -> nn.Module:
    """A copy of timm's VOLO whose outlookers attend by ELSA: a reading, see above.

    Args:
        model: any VOLO of timm.
        settings: those of :class:`HadamardAttention`, beside or in place of what the reading takes.

    Raises:
        TypeError: where ``model`` is no VOLO of timm.
    """
    if not isinstance(model, VOLO):
        raise TypeError(f"model is a {type(model).__name__}; it must be a VOLO of timm")
    model = copy.deepcopy(model)
    outlookers: list[Any] = [module for module in model.modules() if isinstance(module, Outlooker)]
    for block in outlookers:
        block.attn = _like(block.attn, block.norm1.weight.shape[0], block.norm1.weight, {**READING, **settings})
    return model


def _like(attention: Any, dim: int, weight: Tensor, settings: dict[str, Any]) -> HadamardAttention:
    """ELSA with the heads and dropout of ``attention``, on the device and of the type of ``weight``."""
    drops = {"attn_drop": attention.attn_drop.p, "drop": attention.proj_drop.p}
    return HadamardAttention(dim, attention.num_heads, **{**drops, **settings}).to(weight)


def elsa_volo_d1(num_classes: int = 1000, in_chans: int = 3, drop_path: float = 0.0, **settings: Any) -> nn.Module:
    """A reading of ELSA-VOLO-D1 for images of 224 pixels; ``settings`` are those of timm's ``volo_d1``."""
    model = timm.create_model(
        "volo_d1_224", num_classes=num_classes, in_chans=in_chans, drop_path_rate=drop_path, **settings
    )
    model = elsa_in_volo(model)
    model.preprocessing = Preprocessing(size=(224, 224), interpolation="bicubic", crop=0.96)  # type: ignore[assignment]
    return model
