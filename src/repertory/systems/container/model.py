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

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d, Mlp
from torch import Tensor, nn

from repertory.data.preprocessing import Preprocessing
from repertory.nn.pyramid import PyramidBackbone, Stage, initialise_linear
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


class Container(PyramidBackbone):
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
        self.in_chans = in_chans
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
        self.norm = nn.BatchNorm2d(embed_dims[-1])
        self.finish(num_classes, embed_dims, strides)
        initialise_linear(self.head)  # the blocks hold convolutions alone, which keep PyTorch's own

    def enter(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) as they are, or ValueError where a stage cannot divide them."""
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise ValueError(f"images are {tuple(x.shape)}; they must be (B, {self.in_chans}, H, W)")
        self._check_size("images are", (x.shape[-2], x.shape[-1]))
        return x

    def _check_size(self, what: str, size: tuple[int, ...]) -> None:
        """Refuse what the strided embeddings would cut off in silence."""
        if any(side < 1 or side % self.reduction for side in size):
            fitting = " x ".join(str(max(1, math.ceil(side / self.reduction)) * self.reduction) for side in size)
            given = " x ".join(map(str, size))
            raise ValueError(
                f"{what} {given}; height and width must be multiples of {self.reduction}, {fitting} would do"
            )


def _same_length(**settings: Sequence[Any]) -> None:
    lengths = {name: len(values) for name, values in settings.items()}
    if len(set(lengths.values())) > 1 or not all(lengths.values()):
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"settings list one value a stage, but there are {listed}; they must be as many")


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
