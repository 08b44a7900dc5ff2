"""Scalable Transformers on images: a vision transformer whose parameters hold many smaller ones.

Gao et al., "Scalable Transformers for Neural Machine Translation", arXiv 2106.02242 (2021), in the vision version that
its authors published on DeiT. A sub-model of h heads, D blocks and resolution r uses the leading h / h_max of the
channels of every tensor, the first D blocks, and a token grid that is resized from the whole one. All are trained
together, with the widest as teacher; at inference a crop remains, and nothing is added: no parameter, no selector.

Names of parameters are those of DeiT and of timm's vision transformer, whose weights load as they are.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, Self

import torch
from timm.layers import DropPath, to_2tuple
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from repertory.data.preprocessing import Preprocessing
from repertory.nn.pyramid import initialise_linear
from repertory.nn.recompute import recompute
from repertory.systems.scalable_transformers.crops import Crop, CropSpace, Resolution, crop_of_width
from repertory.systems.scalable_transformers.layers import (
    CroppedLayerNorm,
    CroppedLinear,
    CroppedQKV,
    FeedForward,
    copy_leading,
    leading,
)

PREPROCESSING = Preprocessing(size=(224, 224), interpolation="bicubic", crop=0.875)
SHARES_OF_HEADS = (1, 5 / 6, 2 / 3, 1 / 2, 1 / 3, 1 / 4)  # the authors' 12, 10, 8, 6, 4, 3 of 12
SHARES_OF_BLOCKS = (1, 5 / 6, 2 / 3, 1 / 2)  # 12, 10, 8, 6 of 12
SHARES_OF_GRID = (1, 6 / 7, 5 / 7, 4 / 7)  # 14, 12, 10, 8 of 14, from 224, 196, 160 and 128 pixels


class Attention(nn.Module):
    """Self-attention of as many heads as the tokens are wide: (B, N, C) to the same; heads keep their width."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool, qkv_crop: str, attn_drop: float, drop: float) -> None:
        super().__init__()
        self.head_width = dim // num_heads
        self.qkv = CroppedQKV(dim, qkv_bias, qkv_crop)
        self.attn_drop = attn_drop
        self.proj, self.drop = CroppedLinear(dim, dim), nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        query, key, value = self.qkv(x).unflatten(-1, (3, -1, self.head_width)).permute(2, 0, 3, 1, 4)
        drop = self.attn_drop if self.training else 0.0
        if torch.compiler.is_exporting():  # what fused attention gives is a view when exported, which ONNX rejects
            weights = (query * self.head_width**-0.5 @ key.transpose(-2, -1)).softmax(-1)
            out = F.dropout(weights, drop) @ value
        else:
            out = F.scaled_dot_product_attention(query, key, value, dropout_p=drop, scale=self.head_width**-0.5)
        return self.drop(self.proj(out.transpose(1, 2).flatten(2), x.shape[-1]))


class Block(nn.Module):
    """Attention and feed-forward, each normalised before and added after."""

    def __init__(self, dim: int, attention: Attention, mlp_ratio: int, drop: float, drop_path: float, eps: float):
        super().__init__()
        self.norm1, self.attn = CroppedLayerNorm(dim, eps), attention
        self.norm2, self.mlp = CroppedLayerNorm(dim, eps), FeedForward(dim, mlp_ratio, drop)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C), C at most the width of the block."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """The projection of patches; a crop makes the leading channels alone."""

    def __init__(self, in_chans: int, dim: int, patch_size: tuple[int, int]) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch_size, patch_size)

    def forward(self, x: Tensor, width: int) -> Tensor:
        """Images (B, in_chans, H, W) to maps (B, ``width``, H / patch, W / patch)."""
        bias = self.proj.bias
        assert bias is not None
        return F.conv2d(x, leading(self.proj.weight, width), leading(bias, width), self.proj.stride)


class ScalableViT(nn.Module):
    """A vision transformer and all its sub-models: images (B, in_chans, H, W) to logits (B, num_classes).

    ``forward(images)`` is the whole network, equal to an ordinary ViT of the same weights; ``forward(images, crop)`` is
    the sub-model of a :class:`Crop`, on the same images. Position embeddings are resized bilinearly for images of
    another size than ``img_size``; sides must be multiples of the patch.

    Args:
        num_classes: width of the classifier; 0 leaves the class token.
        in_chans: channels of the images.
        img_size: side in pixels, or (height, width), that the position embeddings are for.
        patch_size: side of a patch, or (height, width).
        embed_dim: channels of the whole; ``num_heads`` must divide them.
        depth: blocks.
        num_heads: heads of the whole, and the most that a crop may have.
        mlp_ratio: hidden width of the feed-forward over that of the tokens, a whole number.
        qkv_bias: whether queries, keys and values have a bias.
        qkv_crop: how the fused projection is cropped: ``fused`` (the authors') or ``per_projection``; see
            :class:`~repertory.systems.scalable_transformers.layers.CroppedQKV`. The same weights mean different
            sub-models, so a checkpoint belongs to one of them; only ``per_projection`` makes crops of a plain DeiT
            meaningful before training.
        drop: dropout of tokens and projections.
        attn_drop: dropout of attention weights.
        drop_path: stochastic depth of the last block, rising linearly from 0; sub-models keep the rate of each block.
        eps: epsilon of the layer norms.
        resolution: what a crop without resolution is run at; None is that of the image.

    Raises:
        ValueError: for sizes that do not divide, or a ratio that is no whole number.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4,
        qkv_bias: bool = True,
        qkv_crop: str = "fused",
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        eps: float = 1e-6,
        resolution: Resolution = None,
    ) -> None:
        super().__init__()
        self.settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        check_sizes(embed_dim, depth, num_heads, mlp_ratio)
        self.preprocessing = PREPROCESSING
        self.img_size, self.patch_size = _pair(img_size), _pair(patch_size)
        self.num_classes, self.num_heads, self.head_width = num_classes, num_heads, embed_dim // num_heads
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.resolution, self.grad_checkpointing = resolution, False
        self.grid_size = self._grid(*self.img_size, "img_size")
        self.patch_embed = PatchEmbed(in_chans, embed_dim, self.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid_size[0] * self.grid_size[1], embed_dim))
        self.pos_drop = nn.Dropout(drop)
        rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        attention = partial(Attention, embed_dim, num_heads, qkv_bias, qkv_crop, attn_drop, drop)
        self.blocks = nn.Sequential(*(Block(embed_dim, attention(), int(mlp_ratio), drop, rate, eps) for rate in rates))
        self.norm = CroppedLayerNorm(embed_dim, eps)
        self.head: nn.Module = CroppedLinear(embed_dim, num_classes) if num_classes else nn.Identity()
        self.feature_info = [
            {"num_chs": embed_dim, "reduction": self.patch_size[0], "module": f"blocks.{block}"}
            for block in range(depth)
        ]
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.apply(initialise_linear)

    def crop(self, crop: Crop | None = None) -> Crop:
        """``crop`` with nothing left open, but the resolution where the network has none of its own.

        Raises:
            TypeError, ValueError: naming the size that this network does not have.
        """
        crop = (crop or Crop()).within(self.num_heads, len(self.blocks))
        return Crop(crop.heads, crop.depth, self.resolution) if crop.resolution is None else crop

    def crop_space(
        self,
        heads: Sequence[int] | None = None,
        depths: Sequence[int] | None = None,
        resolutions: Sequence[Resolution] | None = None,
    ) -> CropSpace:
        """The sub-models to train: those named, and else the authors' shares of this network's own sizes.

        Of 12 heads, 12 blocks and 224 pixels with patches of 16 they are the authors' {12, 10, 8, 6, 4, 3},
        {12, 10, 8, 6} and the grids of {224, 196, 160, 128}. Shares are rounded to whole heads, blocks and patches.
        """
        if heads is None:
            heads = _shares(self.num_heads, SHARES_OF_HEADS)
        if depths is None:
            depths = _shares(len(self.blocks), SHARES_OF_BLOCKS)
        if resolutions is None:
            rows, columns = (_shares(side, SHARES_OF_GRID, unique=False) for side in self.grid_size)
            down, across = self.patch_size
            resolutions = tuple(dict.fromkeys((row * down, col * across) for row, col in zip(rows, columns)))
        return CropSpace(tuple(heads), tuple(depths), tuple(resolutions)).within(self.num_heads, len(self.blocks))

    def embed(self, x: Tensor, width: int, resolution: Resolution = None) -> Tensor:
        """Tokens (B, 1 + N, ``width``) of images, the class token first, with their positions.

        Patches are projected on the whole image; their map is resized to the grid of ``resolution``.
        """
        if x.ndim != 4:
            raise ValueError(f"images are {tuple(x.shape)}; they must be (B, C, H, W)")
        image = (x.shape[-2], x.shape[-1])
        grid = self._grid(*image, "the image")
        target = self._target(resolution, image, grid)
        positions = leading(self.pos_embed, 1, self.pos_embed.shape[1], width)
        maps = positions[:, 1:].transpose(1, 2).unflatten(2, self.grid_size)
        maps = self.patch_embed(x, width) + _resized(maps, grid)
        # Resizing is linear, so that of the sum is the sum of what the authors resize apart.
        tokens = _resized(maps, target).flatten(2).transpose(1, 2)
        first = leading(self.cls_token, 1, 1, width) + positions[:, :1]
        return self.pos_drop(torch.cat([first.expand(tokens.shape[0], -1, -1), tokens], 1))  # len() is no free size

    def forward_features(self, x: Tensor, crop: Crop | None = None) -> Tensor:
        """Normalised tokens (B, 1 + N, C) of a sub-model, the class token first."""
        return self.norm(self._tokens(x, self.crop(crop))[-1])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) of normalised tokens, or with ``pre_logits`` their class token (B, C)."""
        features = x[:, 0]
        return features if pre_logits else self.head(features)

    def forward(self, x: Tensor, crop: Crop | None = None) -> Tensor:
        """Logits (B, num_classes) of images by the sub-model ``crop``, the whole network where there is none."""
        return self.forward_head(self.forward_features(x, crop))

    def _tokens(self, x: Tensor, crop: Crop, after: Sequence[int] = ()) -> list[Tensor]:
        """Tokens after the blocks whose indices are in ``after``, and after the last of the crop."""
        assert crop.heads is not None
        x, kept = self.embed(x, crop.heads * self.head_width, crop.resolution), []
        checkpointed = self.grad_checkpointing and self.training and torch.is_grad_enabled()
        for index, block in enumerate(list(self.blocks)[: crop.depth]):
            x = recompute(block, x) if checkpointed else block(x)
            if index in after:
                kept.append(x)
        return [*kept, x]

    def _grid(self, height: int, width: int, what: str) -> tuple[int, int]:
        down, across = self.patch_size
        if min(height, width) < 1 or height % down or width % across:
            fit = f"{max(1, -(-height // down)) * down} x {max(1, -(-width // across)) * across}"
            raise ValueError(
                f"{what} is {height} x {width} pixels; both sides must be multiples of the patch, "
                f"{down} x {across}: pad to {fit}"
            )
        return height // down, width // across

    def _target(self, resolution: Resolution, image: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
        """The token grid of a resolution, sides rounded down to whole patches, with a warning where that matters."""
        if resolution is None:
            return grid
        if isinstance(resolution, int) and image[0] != image[1]:
            raise ValueError(
                f"resolution is {resolution}, but the image is {image[0]} x {image[1]}; "
                "give (height, width) where sides differ"
            )
        sides = _pair(resolution)
        target = (sides[0] // self.patch_size[0], sides[1] // self.patch_size[1])
        if min(target) < 1 or any(side > own for side, own in zip(sides, image)):
            raise ValueError(
                f"resolution is {resolution}; its sides must be from one patch, {self.patch_size[0]} x "
                f"{self.patch_size[1]}, to those of the image, {image[0]} x {image[1]}"
            )
        fit = (target[0] * self.patch_size[0], target[1] * self.patch_size[1])
        if fit != sides and not torch.compiler.is_compiling():
            warnings.warn(
                f"resolution {resolution} is no multiple of the patch, {self.patch_size[0]} x {self.patch_size[1]}: "
                f"the grid is {target[0]} x {target[1]}, as of {fit[0]} x {fit[1]}",
                stacklevel=2,
            )
        return target

    def extract(
        self,
        width: int | None = None,
        depth: int | None = None,
        resolution: Resolution = None,
        *,
        heads: int | None = None,
    ) -> ScalableViT:
        """A network of its own with the parameters that the sub-model uses, contiguous, and no others.

        Its output is that of the crop. Give ``width`` in channels or ``heads``; what is left out stays whole. The
        copy can be cropped, trained and saved in its turn; this network stays as it is.

        Raises:
            TypeError, ValueError: naming the size that this network does not have.
        """
        crop = self.crop(Crop(crop_of_width(width, heads, self.head_width), depth, resolution))
        assert crop.heads is not None
        changed = {
            "embed_dim": crop.heads * self.head_width,
            "num_heads": crop.heads,
            "depth": crop.depth,
            "resolution": crop.resolution,
        }
        with torch.device("meta"):  # nothing is drawn that would be overwritten
            part = ScalableViT(**{**self.settings, "num_classes": self.num_classes, **changed})
        copy_leading(self, part.to(self.pos_embed.dtype).to_empty(device=self.pos_embed.device))
        for block, own in zip(part.blocks.children(), self.blocks.children()):
            block.drop_path = copy.deepcopy(own.drop_path)
        part.preprocessing = self.preprocessing
        if hasattr(self, "catalogue_entry"):
            _label_part(self, part, changed)
        part.set_grad_checkpointing(self.grad_checkpointing)
        return part.train(self.training)

    def deploy(self, crop: Crop | None = None) -> ScalableViT:
        """A copy of a sub-model for inference, of the whole where none is named: nothing of it is training-only."""
        crop = self.crop(crop)
        part = self.extract(heads=crop.heads, depth=crop.depth, resolution=crop.resolution).eval()
        part.set_grad_checkpointing(False)
        return part

    @classmethod
    def from_timm(cls, model: nn.Module, qkv_crop: str = "fused") -> Self:
        """The supernet of a plain vision transformer of timm (DeiT, ViT): a copy, with an identical output.

        Raises:
            ValueError: naming what the transformer has that a supernet has not.
        """
        if not isinstance(model, VisionTransformer):
            raise ValueError(
                f"model is a {type(model).__name__}; it must be a ScalableViT or a plain VisionTransformer of timm"
            )
        _check_plain(model)
        blocks: Any = list(model.blocks)
        norm: Any = model.norm
        attention, mlp = blocks[0].attn, blocks[0].mlp
        supernet = cls(
            num_classes=model.num_classes,
            in_chans=model.patch_embed.proj.in_channels,
            img_size=model.patch_embed.img_size,
            patch_size=model.patch_embed.patch_size,
            embed_dim=model.embed_dim,
            depth=len(blocks),
            num_heads=attention.num_heads,
            mlp_ratio=mlp.fc1.out_features / model.embed_dim,
            qkv_bias=attention.qkv.bias is not None,
            qkv_crop=qkv_crop,
            drop=attention.proj_drop.p,
            attn_drop=attention.attn_drop.p,
            eps=norm.eps,
        )
        try:
            supernet.load_state_dict(model.state_dict())
        except RuntimeError as error:
            raise ValueError(f"model is no plain vision transformer: {' '.join(str(error).split())}") from None
        for block, own in zip(supernet.blocks.children(), blocks):
            block.drop_path = copy.deepcopy(own.drop_path1)
        for name in ("preprocessing", "class_names"):
            if hasattr(model, name):
                setattr(supernet, name, getattr(model, name))
        return supernet.to(model.pos_embed).train(model.training)

    def no_weight_decay(self) -> set[str]:
        """Parameters that timm's optimisers do not decay."""
        return {"pos_embed", "cls_token"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The layer that makes logits out of features."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the network a new head for ``num_classes``; 0 leaves the class token, which is always what is pooled."""
        if global_pool not in (None, "token", ""):
            raise ValueError(f"global_pool is {global_pool!r}; it must be 'token'")
        self.num_classes = num_classes
        self.head = CroppedLinear(self.embed_dim, num_classes) if num_classes else nn.Identity()
        self.head.to(self.pos_embed)
        initialise_linear(self.head)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        crop: Crop | None = None,
    ) -> Any:
        """Maps (B, C, H', W') after blocks, as timm's feature extractors ask for them; tokens (B, N, C) as ``NLC``.

        Args:
            x: images (B, in_chans, H, W).
            indices: blocks wanted (negative ones count from the end), the last so many, or None for all.
            norm: normalise the maps.
            stop_early: leave out the blocks after the last wanted one.
            output_fmt: ``NCHW`` or ``NLC``.
            intermediates_only: return the list alone, and not (last tokens, normalised, class token first; list).
            crop: the sub-model.

        Raises:
            ValueError: for another layout, or a block that is not there.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt is {output_fmt!r}; it must be 'NCHW' or 'NLC'")
        crop = self.crop(crop)
        assert crop.depth is not None
        wanted = block_indices(indices, crop.depth)
        reached = max(wanted) + 1 if stop_early else crop.depth
        image = (x.shape[-2], x.shape[-1])
        grid = self._target(crop.resolution, image, self._grid(*image, "the image"))
        *kept, last = self._tokens(x, Crop(crop.heads, reached, crop.resolution), wanted)
        maps = [(self.norm(tokens) if norm else tokens)[:, 1:] for tokens in kept]
        if output_fmt == "NCHW":
            maps = [tokens.transpose(1, 2).unflatten(2, grid).contiguous() for tokens in maps]
        return maps if intermediates_only else (self.norm(last), maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the wanted blocks do not need; return their indices."""
        wanted = block_indices(indices, len(self.blocks))
        self.blocks = self.blocks[: max(wanted) + 1]
        if prune_norm:
            self.norm = nn.Identity()  # type: ignore[assignment]
        if prune_head:
            self.reset_classifier(0)
        return wanted


def check_sizes(embed_dim: int, depth: int, num_heads: int, mlp_ratio: float) -> None:
    """ValueError where a transformer of these sizes cannot be cropped by heads."""
    if depth < 1:
        raise ValueError(f"depth is {depth}; it must be at least 1")
    if num_heads < 1 or embed_dim < 1 or embed_dim % num_heads:
        raise ValueError(f"embed_dim is {embed_dim}; it must be a multiple of num_heads, which is {num_heads}")
    if mlp_ratio < 1 or mlp_ratio != int(mlp_ratio):
        raise ValueError(f"mlp_ratio is {mlp_ratio}; it must be a whole number from 1, so that every crop has it")


def _label_part(whole: Any, part: Any, changed: dict[str, Any]) -> None:
    """Let ``part`` be saved, and made again by the catalogue: it is the same entry with ``changed`` settings."""
    entry = whole.catalogue_entry
    part.class_names = whole.class_names
    part.catalogue_entry = {**entry, "settings": {**entry["settings"], **changed}}
    part.save_pretrained = partial(whole.save_pretrained.func, part)


def _check_plain(model: VisionTransformer) -> None:
    """ValueError where ``model`` computes what a supernet does not."""
    blocks: Any = list(model.blocks)
    faults = {
        f"global_pool {model.global_pool!r}, not 'token'": model.global_pool != "token",
        f"blocks of {type(blocks[0]).__name__}": any(type(block) is not TimmBlock for block in blocks),
        "an activation other than GELU": any(type(block.mlp.act) is not nn.GELU for block in blocks if block.mlp),
        "patch dropout": not isinstance(model.patch_drop, nn.Identity),
        "dropout before the head": model.head_drop.p > 0,
    }
    found = [fault for fault, present in faults.items() if present]
    if found:
        raise ValueError(f"model is no plain vision transformer: it has {', '.join(found)}")


def block_indices(indices: int | Sequence[int] | None, count: int) -> list[int]:
    """Blocks from 0 that ``indices`` mean of ``count``: all, the last so many, or those listed."""
    if indices is None:
        return list(range(count))
    listed = range(count - indices, count) if isinstance(indices, int) else indices
    wanted = [index + count if index < 0 else index for index in listed]
    if not wanted or not all(0 <= index < count for index in wanted):
        raise ValueError(f"indices are {indices}; there are blocks 0 to {count - 1}")
    return wanted


def _pair(value: Any) -> tuple[int, int]:
    height, width = to_2tuple(value)
    return int(height), int(width)


def _shares(whole: int, shares: Sequence[float], unique: bool = True) -> tuple[int, ...]:
    values = [max(1, round(share * whole)) for share in shares]
    return tuple(dict.fromkeys(values)) if unique else tuple(values)


def _resized(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, C, H, W) to (B, C, *grid), bilinearly with corners not aligned."""
    if tuple(maps.shape[-2:]) == tuple(grid):
        return maps
    return F.interpolate(maps, grid, mode="bilinear", align_corners=False)


def scalable_deit_base(num_classes: int = 1000, in_chans: int = 3, **settings: Any) -> ScalableViT:
    """The authors' supernet, DeiT-Base/16: 86.6 M parameters with 1000 classes, of which the smallest of their crops
    uses 3.05 M. ``settings`` are those of :class:`ScalableViT`.
    """
    sizes: dict[str, Any] = {"embed_dim": 768, "num_heads": 12, "drop_path": 0.1}
    return ScalableViT(num_classes, in_chans, **sizes | settings)


def scalable_deit_small(num_classes: int = 1000, in_chans: int = 3, **settings: Any) -> ScalableViT:
    """The same at half the width, DeiT-Small/16: 22.1 M parameters. ``settings`` are those of :class:`ScalableViT`."""
    return scalable_deit_base(num_classes, in_chans, **{"embed_dim": 384, "num_heads": 6} | settings)


def scalable_deit_tiny(num_classes: int = 1000, in_chans: int = 3, **settings: Any) -> ScalableViT:
    """The same at a quarter of the width, DeiT-Tiny/16: 5.7 M parameters. ``settings`` as of :class:`ScalableViT`."""
    return scalable_deit_base(num_classes, in_chans, **{"embed_dim": 192, "num_heads": 3} | settings)


BACKBONES: dict[str, dict[str, Any]] = {  # for timm
    builder.__name__: {
        "feature_cfg": {"out_indices": 3, "feature_cls": "getter"},
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    for builder in (scalable_deit_base, scalable_deit_small, scalable_deit_tiny)
}
