"""CONTAINER: a pyramid backbone that mixes attention and convolution as two affinity matrices.

Gao et al., "Container: Context Aggregation Network", NeurIPS 2021, arXiv 2106.01401. A block adds a position-dependent
term (3 x 3 depth-wise convolution), then aggregated context (:mod:`repertory.systems.container.aggregation`), then an
MLP, the latter two on batch-normalised maps. Nothing is training-only but drop-path.

- :func:`container_light` is the network whose code was released: static 5 x 5 affinities in stages 1-3, and in stage 4
  attention and convolution mixed by one learned scalar a block. It is held to its authors' numbers.
- :func:`container_full` is a READING of the paper: the full CONTAINER was never released, and its widths are not known
  to us. It has CONTAINER-LIGHT's widths and depths and the mixed block in every stage, with two free scalars; that
  makes 22 M parameters, as published. Heads of 32 channels in every stage are inferred from the last.

Maps are (B, C, H, W) everywhere. Height and width must be multiples of the stride of the last stage (32).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d, Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from repertory.data.preprocessing import Preprocessing
from repertory.systems.container.aggregation import (
    Affinity,
    ContextAggregation,
    DenseAffinity,
    DynamicAffinity,
    LocalAffinity,
)

PREPROCESSING = Preprocessing(size=(224, 224), interpolation="bicubic", crop=0.875)
AFFINITIES = ("dynamic", "local", "dense")


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens, normalised over their channels: (B, C, H, W) to (B, dim, H / k, W / k)."""

    def __init__(self, in_chans: int, dim: int, patch_size: int, drop: float = 0.0) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch_size, patch_size)
        self.norm = LayerNorm2d(dim, eps=1e-5)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """The tokens as a map."""
        return self.drop(self.norm(self.proj(x)))


class Block(nn.Module):
    """Position, aggregated context, MLP, each added to the map (B, ``dim``, H, W).

    Args:
        dim: channels C.
        aggregation: what aggregates context; anything that keeps the shape of its map.
        mlp_ratio: hidden width of the MLP over ``dim``.
        drop: dropout of the MLP.
        drop_path: rate of dropped residual branches.
    """

    def __init__(
        self, dim: int, aggregation: nn.Module, mlp_ratio: float, drop: float = 0.0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.pos_embed = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1, self.aggregation = nn.BatchNorm2d(dim), aggregation
        self.norm2, self.mlp = nn.BatchNorm2d(dim), Mlp(dim, int(dim * mlp_ratio), drop=drop, use_conv=True)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) to (B, dim, H, W)."""
        x = x + self.pos_embed(x)
        x = x + self.drop_path(self.aggregation(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def convolution_block(dim: int, mlp_ratio: float, kernel_size: int = 5, **dropping: float) -> Block:
    """The block of CONTAINER-LIGHT's stages 1-3: static, local affinity alone. ``dropping`` as in :class:`Block`."""
    return Block(dim, ContextAggregation(dim, [LocalAffinity(dim, kernel_size)]), mlp_ratio, **dropping)


def mixed_block(
    dim: int, num_heads: int, mlp_ratio: float, kernel_size: int = 5, mixing: str = "convex", **dropping: float
) -> Block:
    """The block of CONTAINER-LIGHT's stage 4: attention and convolution of the same values, mixed.

    ``mixing`` as in :class:`ContextAggregation`, ``dropping`` as in :class:`Block`.
    """
    affinities = [DynamicAffinity(dim, num_heads), LocalAffinity(dim, kernel_size)]
    return Block(dim, ContextAggregation(dim, affinities, mixing), mlp_ratio, **dropping)


class Stage(nn.Module):
    """A patch embedding, then blocks. Its output is what dense prediction takes."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.downsample, self.blocks = downsample, nn.Sequential(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the stage's width at its stride."""
        x = self.downsample(x)
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False)
            return x
        return self.blocks(x)


class Container(nn.Module):
    """The pyramid backbone with its classifier; the defaults are those of CONTAINER-LIGHT.

    Args:
        num_classes: width of the classifier; 0 leaves pooled features.
        in_chans: channels of the images.
        embed_dims: width of each stage.
        depths: blocks of each stage.
        affinities: what the blocks of each stage aggregate by: ``local`` (depth-wise convolution), ``dynamic``
            (self-attention), ``dense`` (a weight a pair of positions), or two joined by ``+``.
        num_heads: heads of each stage's attention; stages without one ignore theirs.
        mlp_ratios: hidden width of each stage's MLPs over the width of the stage.
        patch_sizes: downsampling at the start of each stage.
        kernel_size: odd side of the local windows.
        mixing: how two affinities are mixed, as in :class:`ContextAggregation`.
        img_size: (H, W) of the images; needed by ``dense`` affinities, which take no other.
        drop: dropout of the first tokens, of attention's output and of the MLPs.
        drop_path: rate of dropped residual branches, rising linearly from 0 over all blocks.
        backend: ``auto``, or ``reference``, which shows every product to a FLOP counter.

    Raises:
        ValueError: for settings of stages that differ in length, or that a layer cannot take.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (3, 4, 8, 3),
        affinities: Sequence[str] = ("local", "local", "local", "dynamic+local"),
        num_heads: Sequence[int] = (2, 4, 10, 16),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        patch_sizes: Sequence[int] = (4, 2, 2, 2),
        kernel_size: int = 5,
        mixing: str | Sequence[float] = "convex",
        img_size: tuple[int, int] | None = None,
        drop: float = 0.0,
        drop_path: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        _same_length(
            embed_dims=embed_dims,
            depths=depths,
            affinities=affinities,
            num_heads=num_heads,
            mlp_ratios=mlp_ratios,
            patch_sizes=patch_sizes,
        )
        self.num_classes, self.in_chans, self.grad_checkpointing = num_classes, in_chans, False
        self.num_features = self.head_hidden_size = embed_dims[-1]
        strides = [math.prod(patch_sizes[: stage + 1]) for stage in range(len(depths))]
        self.reduction = strides[-1]
        self.preprocessing = PREPROCESSING
        if img_size is not None:
            self._check_size("img_size is", img_size)
            self.preprocessing = replace(PREPROCESSING, size=(img_size[0], img_size[1]))
        rates = torch.linspace(0, drop_path, sum(depths), device="cpu").tolist()

        def affinity(kind: str, stage: int) -> Affinity:
            if kind == "dynamic":
                return DynamicAffinity(embed_dims[stage], num_heads[stage], drop, backend)
            if kind == "local":
                return LocalAffinity(embed_dims[stage], kernel_size)
            if kind != "dense":
                raise ValueError(f"affinities has {kind!r}; each must be of {', '.join(AFFINITIES)}, joined by '+'")
            if img_size is None:
                raise ValueError("img_size is None; a dense affinity needs the (height, width) of the images")
            return DenseAffinity(embed_dims[stage], (img_size[0] // strides[stage], img_size[1] // strides[stage]))

        def block(stage: int, rate: float) -> Block:
            made = [affinity(kind, stage) for kind in affinities[stage].split("+")]
            mixed = ContextAggregation(embed_dims[stage], made, mixing if len(made) > 1 else None)
            return Block(embed_dims[stage], mixed, mlp_ratios[stage], drop, rate)

        stages, before = [], in_chans
        for stage, dim in enumerate(embed_dims):
            downsample = PatchEmbed(before, dim, patch_sizes[stage], 0.0 if stage else drop)
            dropped = rates[sum(depths[:stage]) : sum(depths[: stage + 1])]
            stages.append(Stage(downsample, [block(stage, rate) for rate in dropped]))
            before = dim
        self.stages = nn.Sequential(*stages)
        self.norm: nn.Module = nn.BatchNorm2d(self.num_features)
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.feature_info = [
            {"num_chs": dim, "reduction": stride, "module": f"stages.{stage}"}
            for stage, (dim, stride) in enumerate(zip(embed_dims, strides, strict=True))
        ]
        _initialise(self.head)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable
        for stage in self.stages:
            stage.grad_checkpointing = enable  # type: ignore[assignment]

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """The maps of all stages at strides 4, 8, 16 and 32, (B, C_i, H_i, W_i), each before the next embedding."""
        self._check(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Stage maps as timm's feature extractors ask for them.

        Args:
            x: images (B, in_chans, H, W).
            indices: stages wanted (negative ones count from the end), the last so many, or None for all.
            norm: also normalise the last map.
            stop_early: leave out the stages after the last wanted one.
            output_fmt: ``NCHW``, the only layout.
            intermediates_only: return the list alone, and not (last map, list).
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is {output_fmt!r}; it must be 'NCHW'")
        wanted, count = self._stage_indices(indices), len(self.stages)
        self._check(x)
        maps = []
        for index, stage in enumerate(self.stages[: max(wanted) + 1] if stop_early else self.stages):
            x = stage(x)
            if index in wanted:
                maps.append(self.norm(x) if norm and index == count - 1 else x)
        if intermediates_only:
            return maps
        return (x if stop_early and max(wanted) < count - 1 else self.norm(x)), maps

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the wanted stages do not need; return their indices."""
        wanted = self._stage_indices(indices)
        self.stages = self.stages[: max(wanted) + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return wanted

    def _stage_indices(self, indices: int | Sequence[int] | None) -> list[int]:
        count = len(self.stages)
        if indices is None:
            return list(range(count))
        listed = range(count - indices, count) if isinstance(indices, int) else indices
        wanted = [index + count if index < 0 else index for index in listed]
        if not wanted or not all(0 <= index < count for index in wanted):
            raise ValueError(f"indices are {indices}; there are stages 0 to {count - 1}")
        return wanted

    def _check(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise ValueError(f"images are {tuple(x.shape)}; they must be (B, {self.in_chans}, H, W)")
        self._check_size("images are", (x.shape[-2], x.shape[-1]))

    def _check_size(self, what: str, size: tuple[int, ...]) -> None:
        """Refuse what the strided embeddings would cut off in silence."""
        if any(side < 1 or side % self.reduction for side in size):
            fitting = " x ".join(str(max(1, math.ceil(side / self.reduction)) * self.reduction) for side in size)
            given = " x ".join(map(str, size))
            raise ValueError(
                f"{what} {given}; height and width must be multiples of {self.reduction}, {fitting} would do"
            )

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, normalised: (B, num_features, H / 32, W / 32)."""
        self._check(x)
        return self.norm(self.stages(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) of a normalised map, or its mean (B, num_features) with ``pre_logits``."""
        features = x.mean((2, 3))
        return features if pre_logits else self.head(features)

    def get_classifier(self) -> nn.Module:
        """The layer that makes logits out of features."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the network a new head for ``num_classes``; 0 leaves pooled features. Pooling is always the mean."""
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool is {global_pool!r}; it must be 'avg'")
        like = next(self.parameters())
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head.to(device=like.device, dtype=like.dtype)
        _initialise(self.head)

    def deploy(self) -> Container:
        """A copy for inference: the same parameters, none being training-only, in evaluation mode."""
        model = copy.deepcopy(self).eval()
        model.set_grad_checkpointing(False)
        return model

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, in_chans, H, W)."""
        return self.forward_head(self.forward_features(x))


def _same_length(**settings: Sequence[Any]) -> None:
    lengths = {name: len(values) for name, values in settings.items()}
    if len(set(lengths.values())) > 1 or not all(lengths.values()):
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"settings list one value a stage, but there are {listed}; they must be as many")


def _initialise(head: nn.Module) -> None:
    """A truncated normal for the classifier; the blocks hold convolutions alone, which keep PyTorch's own."""
    if isinstance(head, nn.Linear):
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)


def container_light(num_classes: int = 1000, in_chans: int = 3, **settings: Any) -> Container:
    """CONTAINER-LIGHT: 20.6 M parameters with 1000 classes. ``settings`` are those of :class:`Container`."""
    return Container(num_classes, in_chans, **settings)


def container_full(num_classes: int = 1000, in_chans: int = 3, **settings: Any) -> Container:
    """CONTAINER, a READING of the paper: 22.4 M parameters with 1000 classes, never released by its authors.

    Attention and convolution are mixed in every stage, with a free scalar for each [third-party notes of the paper].
    Widths, depths and MLPs are those of CONTAINER-LIGHT, heads have 32 channels, scalars start at 1/2 [inferred].
    ``settings`` are those of :class:`Container`.
    """
    reading: dict[str, Any] = {"affinities": ("dynamic+local",) * 4, "mixing": "free"}
    return Container(num_classes, in_chans, **reading | settings)


BACKBONES: dict[str, dict[str, Any]] = {  # for timm
    builder.__name__: {
        "feature_cfg": {"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        "first_conv": "stages.0.downsample.proj",
        "classifier": "head",
    }
    for builder in (container_light, container_full)
}
