"""DilateFormer: a pyramid backbone with multi-scale dilated attention in its shallow stages.

Jiao et al., "DilateFormer: Multi-Scale Dilated Transformer for Visual Recognition", IEEE TMM 2023, arXiv 2302.01791.
In shallow layers of plain vision transformers attention is local and sparse. Stages 1-2 therefore attend to a 3 x 3
window whose keys are dilated; heads are split into as many groups as there are rates, so that one layer sees several
scales at one cost. Stages 3-4 attend to everything. Nothing is training-only but dropout and drop-path.

Maps are (B, C, H, W) between blocks and (B, H, W, C) inside one. Any height and width from 4 x 4 work.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from repertory.data.preprocessing import Preprocessing
from repertory.nn.pyramid import PyramidBackbone, Stage, initialise_linear
from repertory.ops import dilated_attention

PREPROCESSING = Preprocessing(size=(224, 224), interpolation="bicubic", crop=0.875)
TOKENIZERS = ("overlapping", "non_overlapping", "pointwise")
DOWNSAMPLERS = ("conv3", "conv2")

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class MultiScaleDilatedAttention(nn.Module):
    """Sliding-window attention whose heads see differently dilated neighbourhoods.

    Input and output (B, H, W, ``dim``). Channels split into one contiguous group of heads a dilation rate; every query
    attends to ``kernel_size`` x ``kernel_size`` keys of its group, zero-padded at the border and not masked there.

    Args:
        dim: channels C.
        num_heads: heads over all groups; must divide ``dim``.
        kernel_size: odd side of the window.
        dilation: one rate a group; their number must divide ``num_heads``.
        qkv_bias: whether queries, keys and values have a bias.
        drop: dropout of the output.
        backend: path of :func:`repertory.ops.dilated_attention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 3,
        kernel_size: int = 3,
        dilation: Sequence[int] = (1, 2, 3),
        qkv_bias: bool = True,
        drop: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim is {dim}; it must be a multiple of num_heads, which is {num_heads}")
        if not dilation or num_heads % len(dilation):
            raise ValueError(f"num_heads is {num_heads}; it must be a multiple of the {len(dilation)} dilation rates")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}; it must be odd and at least 1")
        self.num_heads, self.kernel_size, self.dilation, self.backend = num_heads, kernel_size, tuple(dilation), backend
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Attended ``x``, (B, H, W, dim)."""
        query, key, value = self.qkv(x.permute(0, 3, 1, 2)).chunk(3, dim=1)
        out = dilated_attention(
            query, key, value, self.kernel_size, self.dilation, self.num_heads, backend=self.backend
        )
        return self.drop(self.proj(out))


class GlobalAttention(nn.Module):
    """Ordinary multi-head self-attention over all positions of (B, H, W, ``dim``)."""

    def __init__(
        self, dim: int, num_heads: int, qkv_bias: bool = True, drop: float = 0.0, backend: str = "auto"
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim is {dim}; it must be a multiple of num_heads, which is {num_heads}")
        self.num_heads, self.backend = num_heads, backend
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Attended ``x``, (B, H, W, dim)."""
        batch, height, width, dim = x.shape
        qkv = self.qkv(x).reshape(batch, height * width, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if self.backend == "reference":  # every product in sight of the FLOP counter
            weights = (query * (dim // self.num_heads) ** -0.5) @ key.transpose(-2, -1)
            out = weights.softmax(-1) @ value
        else:
            out = F.scaled_dot_product_attention(query, key, value)
        return self.drop(self.proj(out.transpose(1, 2).reshape(batch, height, width, dim)))


class Mlp(nn.Module):
    """Linear, GELU, Linear, with dropout after each."""

    def __init__(self, dim: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(…, dim) to (…, dim)."""
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class Block(nn.Module):
    """Position from a depth-wise convolution, then attention and MLP, each normalised before and added after."""

    def __init__(self, dim: int, attention: nn.Module, mlp_ratio: float, drop: float, drop_path: float) -> None:
        super().__init__()
        self.pos_embed = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1, self.attn = LayerNorm(dim), attention
        self.norm2, self.mlp = LayerNorm(dim), Mlp(dim, int(dim * mlp_ratio), drop)
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) to (B, dim, H, W)."""
        x = (x + self.pos_embed(x)).permute(0, 2, 3, 1)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x.permute(0, 3, 1, 2)


def _tokenizer(kind: str, in_chans: int, width: int) -> nn.Sequential:
    """Images to tokens at stride 4."""
    if kind == "non_overlapping":
        return nn.Sequential(nn.Conv2d(in_chans, width, 4, 4))
    sizes = {"overlapping": ((3, 1), (3, 2), (3, 1), (3, 2)), "pointwise": ((3, 2), (1, 1), (3, 2), (1, 1))}
    if kind not in sizes:
        raise ValueError(f"tokenizer is {kind!r}; it must be one of {', '.join(TOKENIZERS)}")
    layers: list[nn.Module] = []
    channels = (in_chans, 16, 32, 64, width)
    for index, (kernel, stride) in enumerate(sizes[kind]):
        before, after = channels[index : index + 2]
        layers.append(nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False))
        if index < 3:
            layers += [nn.BatchNorm2d(after), nn.GELU()]
    return nn.Sequential(*layers)


def _downsampler(kind: str, before: int, after: int) -> nn.Sequential:
    if kind not in DOWNSAMPLERS:
        raise ValueError(f"downsampler is {kind!r}; it must be one of {', '.join(DOWNSAMPLERS)}")
    kernel, padding = (3, 1) if kind == "conv3" else (2, 0)
    return nn.Sequential(nn.Conv2d(before, after, kernel, 2, padding), nn.BatchNorm2d(after))


class DilateFormer(PyramidBackbone):
    """The pyramid backbone with its classifier.

    Args:
        num_classes: width of the classifier; 0 leaves pooled features.
        in_chans: channels of the images.
        embed_dim: width of the first stage; each later stage is twice as wide.
        depths: blocks of each stage.
        num_heads: heads of each stage.
        dilate_attention: whether a stage attends by dilated windows (else to everything).
        kernel_size: odd side of the windows.
        dilation: rates, one a group of heads.
        mlp_ratio: hidden width of the MLPs over the width of their stage.
        qkv_bias: whether queries, keys and values have a bias.
        drop: dropout of projections and MLPs.
        drop_path: rate of dropped residual branches, rising linearly from 0 over all blocks.
        tokenizer: ``overlapping`` (as published), ``non_overlapping`` or ``pointwise``.
        downsampler: ``conv3`` (as published) or ``conv2``.
        backend: path of the attention operators; ``reference`` shows every product to a FLOP counter.

    Raises:
        ValueError: for settings of stages that differ in length, or that a layer cannot take.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        embed_dim: int = 72,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        dilate_attention: Sequence[bool] = (True, True, False, False),
        kernel_size: int = 3,
        dilation: Sequence[int] = (1, 2, 3),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop: float = 0.0,
        drop_path: float = 0.0,
        tokenizer: str = "overlapping",
        downsampler: str = "conv3",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if not len(depths) == len(num_heads) == len(dilate_attention):
            raise ValueError(
                f"depths, num_heads and dilate_attention list {len(depths)}, {len(num_heads)} and "
                f"{len(dilate_attention)} stages; they must be as many"
            )
        self.preprocessing = PREPROCESSING
        widths = [embed_dim * 2**stage for stage in range(len(depths))]
        rates = torch.linspace(0, drop_path, sum(depths), device="cpu").tolist()

        def attention(stage: int) -> nn.Module:
            width, heads = widths[stage], num_heads[stage]
            if dilate_attention[stage]:
                return MultiScaleDilatedAttention(width, heads, kernel_size, dilation, qkv_bias, drop, backend)
            return GlobalAttention(width, heads, qkv_bias, drop, backend)

        self.patch_embed = _tokenizer(tokenizer, in_chans, embed_dim)
        stages = []
        for stage in range(len(depths)):
            downsample = _downsampler(downsampler, *widths[stage - 1 : stage + 1]) if stage else nn.Identity()
            dropped = rates[sum(depths[:stage]) : sum(depths[: stage + 1])]
            blocks = [Block(widths[stage], attention(stage), mlp_ratio, drop, rate) for rate in dropped]
            stages.append(Stage(downsample, blocks))
        self.stages = nn.Sequential(*stages)
        self.norm = LayerNorm(widths[-1])
        self.finish(num_classes, widths, [4 * 2**stage for stage in range(len(depths))])
        self.apply(initialise_linear)

    def enter(self, x: Tensor) -> Tensor:
        """Tokens at stride 4."""
        if x.ndim != 4 or min(x.shape[-2:]) < 4:
            raise ValueError(f"images are {tuple(x.shape)}; they must be (B, C, H, W) with H and W at least 4")
        return self.patch_embed(x)

    def last_map(self, x: Tensor) -> Tensor:
        """The last map, normalised: (B, num_features, H / 32, W / 32), sizes rounded up."""
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def dilateformer_tiny(num_classes: int = 1000, in_chans: int = 3, **settings: Any) -> DilateFormer:
    """DilateFormer-Tiny: 17.2 M parameters with 1000 classes. ``settings`` are those of :class:`DilateFormer`."""
    return DilateFormer(num_classes, in_chans, **settings)


def dilateformer_small(num_classes: int = 1000, in_chans: int = 3, **settings: Any) -> DilateFormer:
    """DilateFormer-Small: 24.1 M parameters with 1000 classes. ``settings`` are those of :class:`DilateFormer`."""
    sizes: dict[str, Any] = {"depths": (3, 5, 8, 3)}
    return DilateFormer(num_classes, in_chans, **sizes | settings)


def dilateformer_base(num_classes: int = 1000, in_chans: int = 3, **settings: Any) -> DilateFormer:
    """DilateFormer-Base: 47.4 M parameters with 1000 classes. ``settings`` are those of :class:`DilateFormer`."""
    sizes: dict[str, Any] = {"embed_dim": 96, "depths": (4, 8, 10, 3)}
    return DilateFormer(num_classes, in_chans, **sizes | settings)


BACKBONES: dict[str, dict[str, Any]] = {  # for timm
    builder.__name__: {
        "feature_cfg": {"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        "first_conv": "patch_embed.0",
        "classifier": "head",
    }
    for builder in (dilateformer_tiny, dilateformer_small, dilateformer_base)
}
