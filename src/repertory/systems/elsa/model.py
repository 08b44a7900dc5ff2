"""ELSA: enhanced local self-attention, and the Swin transformer that attends by it.

Zhou et al., "ELSA: Enhanced Local Self-Attention for Vision Transformer", arXiv 2112.12786 (2021). Attention within
local windows is no better than a convolution. ELSA makes a filter for every pixel from the element-wise product of its
own query and key (Hadamard attention), lets a small grouped convolution bring the neighbourhood into it, and adds a
static filter to every channel (the ghost head). ELSA-Swin attends so in all stages but the last. Nothing is
training-only but dropout and drop-path.

Maps are (B, H, W, C) between blocks. Any height and width work: what a size needs is made in each call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from repertory.data.preprocessing import Preprocessing
from repertory.nn.pyramid import PyramidBackbone, Stage, initialise_linear
from repertory.ops.sliding_window import sliding_window_sum

PREPROCESSING = Preprocessing(size=(224, 224), interpolation="bicubic", crop=0.9)
PATCH = 4  # pixels of a token


class HadamardAttention(nn.Module):
    """Local attention by filters made of each pixel's own query and key: (B, H, W, ``dim``) to (B, H, W, ``dim``).

    Query times key, ``filters`` (a grouped convolution, GELU, a 1 x 1 convolution) and a softmax over the taps give
    every head a ``kernel_size`` x ``kernel_size`` filter h at every pixel. Channel c of head g then takes the weighted
    sum of its neighbourhood with ``M[c] ** lam * h[g] + gamma * A[c]``; M and A are the ghost head. Values outside the
    map are zero, their weights count all the same.

    Args:
        dim: channels C.
        num_heads: heads; must divide ``dim``.
        kernel_size: odd side of the filters.
        group_width: channels of each group of the first convolution; queries and keys have ``2 * (dim // 3)`` channels,
            rounded up to a multiple of it.
        lam: exponent of the factor M, a whole number; 0 leaves M out.
        gamma: weight of the added filter A; 0 leaves A out.
        qk_scale: factor of the product; None is ``(dim / num_heads) ** -0.5``.
        qkv_bias: whether queries, keys and values have a bias.
        dilation: distance between taps, in pixels, of the filters and of the convolution that makes them.
        attn_drop: dropout of the filters.
        drop: dropout of the output.
        backend: path of :func:`repertory.ops.sliding_window.sliding_window_sum`.

    Raises:
        ValueError: for numbers that do not divide, an even kernel, or a factor that would not be real.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int = 7,
        group_width: int = 8,
        lam: int = 0,
        gamma: float = 1.0,
        qk_scale: float | None = 1.0,
        qkv_bias: bool = True,
        dilation: int = 1,
        attn_drop: float = 0.0,
        drop: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if dim < 3:
            raise ValueError(f"dim is {dim}; it must be at least 3, of which two thirds are the width of the queries")
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim is {dim}; it must be a multiple of num_heads, which is {num_heads}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}; it must be odd and at least 1")
        for name, number in (("group_width", group_width), ("dilation", dilation)):
            if number < 1:
                raise ValueError(f"{name} is {number}; it must be at least 1")
        if lam < 0 or lam != int(lam):
            raise ValueError(f"lam is {lam}; it must be a whole number from 0, since factors may be negative")
        self.num_heads, self.kernel_size, self.dilation, self.backend = num_heads, kernel_size, dilation, backend
        self.lam, self.gamma = int(lam), gamma
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.dim_qk = math.ceil(dim // 3 * 2 / group_width) * group_width
        self.qkv = nn.Conv2d(dim, 2 * self.dim_qk + dim, 1, bias=qkv_bias)
        self.filters = nn.Sequential(
            nn.Conv2d(
                self.dim_qk,
                self.dim_qk,
                kernel_size,
                padding=kernel_size // 2 * dilation,
                dilation=dilation,
                groups=self.dim_qk // group_width,
            ),
            nn.GELU(),
            nn.Conv2d(self.dim_qk, kernel_size**2 * num_heads, 1),
        )
        self.ghost_head = self._drawn_ghost_head(dim)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.drop = nn.Dropout(drop)

    def _drawn_ghost_head(self, dim: int) -> nn.Parameter | None:
        """M and A (2, 1, dim, k, k), one of them (1, dim, k, k), or nothing, as in the authors' checkpoints."""
        shape = (1, dim, self.kernel_size, self.kernel_size)
        drawn = [torch.randn(shape)] if self.lam else []
        drawn += [nn.init.trunc_normal_(torch.empty(shape), std=0.02)] if self.gamma else []
        return nn.Parameter(torch.stack(drawn) if len(drawn) == 2 else drawn[0]) if drawn else None

    def _ghosts(self) -> tuple[Tensor | None, Tensor | None]:
        """Factor and added filter, (dim, k, k) each, or None."""
        if self.ghost_head is None:
            return None, None
        both = self.ghost_head.unflatten(0, (-1, 1)) if self.ghost_head.ndim == 4 else self.ghost_head
        factor = both[0, 0] ** self.lam if self.lam else None
        return factor, both[-1, 0] * self.gamma if self.gamma else None

    def forward(self, x: Tensor) -> Tensor:
        """Attended ``x``, (B, H, W, dim)."""
        dim = x.shape[-1]
        query, key, value = self.qkv(x.permute(0, 3, 1, 2)).split((self.dim_qk, self.dim_qk, dim), 1)
        logits = self.filters(query * key * self.scale).unflatten(1, (self.num_heads, self.kernel_size**2))
        weights = self.attn_drop(logits.softmax(2))
        out = sliding_window_sum(value, weights, *self._ghosts(), dilation=self.dilation, backend=self.backend)
        return self.drop(self.proj(out.permute(0, 2, 3, 1)))


class WindowAttention(nn.Module):
    """Swin's attention within square windows, shifted or not, of a map of any size: (B, H, W, ``dim``) to the same.

    With ``shrink``, as in the authors' classifier, a map whose shorter side has at most ``window_size`` pixels is cut
    into windows of that side, and nothing is shifted. Other maps, without ``shrink`` all, are padded with zeros, below
    and to the right, to whole windows; the padding is attended to, as in the authors' dense backbone.

    ``relative_bias`` (num_heads, (2 * window_size - 1) ** 2) is looked up by key minus query coordinates.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int = 7,
        shifted: bool = False,
        shrink: bool = True,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        drop: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim is {dim}; it must be a multiple of num_heads, which is {num_heads}")
        if window_size < 1:
            raise ValueError(f"window_size is {window_size}; it must be at least 1")
        self.num_heads, self.window_size, self.backend = num_heads, window_size, backend
        self.shifted, self.shrink = shifted, shrink
        self.relative_bias = nn.Parameter(torch.empty(num_heads, (2 * window_size - 1) ** 2))
        nn.init.trunc_normal_(self.relative_bias, std=0.02)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Attended ``x``, (B, H, W, dim)."""
        batch, height, width, dim = x.shape
        shrunk = self.shrink and min(height, width) <= self.window_size
        side = min(height, width) if shrunk else self.window_size
        shift = side // 2 if self.shifted and not shrunk else 0
        down, right = -height % side, -width % side
        x = F.pad(x, (0, 0, 0, right, 0, down)).roll((-shift, -shift), (1, 2))
        rows, columns = (height + down) // side, (width + right) // side
        cut = x.reshape(batch, rows, side, columns, side, dim).transpose(2, 3)
        bias = self._bias(side)[None]
        if shift:
            masked = bias + _across(rows, columns, side, shift, x.device).to(bias.dtype)[:, None]
            bias = masked.expand(batch, *masked.shape).flatten(0, 1)
        out = self._attend(cut.reshape(-1, side**2, dim), bias).reshape(cut.shape).transpose(2, 3)
        out = out.reshape(batch, height + down, width + right, dim).roll((shift, shift), (1, 2))
        return self.drop(self.proj(out[:, :height, :width]))

    def _attend(self, x: Tensor, bias: Tensor) -> Tensor:
        """Attention among the n pixels of a window: (windows, n, dim) to the same, bias (windows or 1, heads, n, n)."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        drop = self.attn_drop.p if self.training else 0.0
        # What fused attention gives is a view when exported, which the ONNX exporter rejects.
        if self.backend == "reference" or torch.compiler.is_exporting():
            logits = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1) + bias
            out = F.dropout(logits.softmax(-1), drop) @ value
        else:
            out = F.scaled_dot_product_attention(query, key, value, bias.to(query.dtype), drop)
        return out.transpose(1, 2).flatten(2)

    def _bias(self, side: int) -> Tensor:
        """The bias (heads, n, n) of windows of ``side``: the middle of the table where that is less than its own."""
        places = torch.arange(side, device=self.relative_bias.device)
        offsets = places[None] - places[:, None] + self.window_size - 1  # key minus query
        index = offsets[:, None, :, None] * (2 * self.window_size - 1) + offsets[None, :, None, :]
        return self.relative_bias[:, index.flatten()].unflatten(1, (side**2, side**2))


def _across(rows: int, columns: int, side: int, shift: int, device: torch.device) -> Tensor:
    """-100 (rows * columns, n, n) where a shifted window joins pixels from opposite edges of the map, else 0."""

    def region(count: int) -> Tensor:
        place = torch.arange(count * side, device=device)
        return (place >= (count - 1) * side).long() + (place >= count * side - shift).long()

    labels = region(rows)[:, None] * 3 + region(columns)
    cut = labels.reshape(rows, side, columns, side).transpose(1, 2).reshape(rows * columns, side**2)
    return (cut[..., None] != cut[..., None, :]) * -100.0


class Block(nn.Module):
    """Attention and MLP, each normalised before and added after."""

    def __init__(self, dim: int, attention: nn.Module, mlp_ratio: float, drop: float, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), attention
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim, int(dim * mlp_ratio), drop=drop)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) to (B, H, W, dim)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Images (B, C, H, W) to normalised tokens (B, H / 4, W / 4, dim), padded with zeros below and to the right."""

    def __init__(self, in_chans: int, dim: int, patch_size: int = PATCH) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj, self.norm = nn.Conv2d(in_chans, dim, patch_size, patch_size), nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, H / 4, W / 4, dim), sizes rounded up."""
        x = F.pad(x, (0, -x.shape[3] % self.patch_size, 0, -x.shape[2] % self.patch_size))
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Four neighbours, normalised, projected to twice the width: (B, H, W, C) to (B, H / 2, W / 2, 2 C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * dim), nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Half the size, rounded up."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        neighbours = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(neighbours, -1)))


class ELSASwin(PyramidBackbone):
    """Swin with Hadamard attention in all stages but the last, and its classifier.

    Args:
        num_classes: width of the classifier; 0 leaves pooled features.
        in_chans: channels of the images.
        embed_dim: width of the first stage; each later stage is twice as wide.
        depths: blocks of each stage.
        num_heads: heads of each stage.
        window_size: side of the windows of the last stage.
        kernel_size: odd side of the filters of the others.
        group_width: channels a group of the convolution that makes filters.
        lam: exponent of the ghost head's factors; 0 leaves them out, as published.
        gamma: weight of the ghost head's added filters; 0 leaves them out.
        qk_scale: factor of query times key in Hadamard attention; None is (width / heads) ** -0.5.
        mlp_ratio: hidden width of the MLPs over the width of their stage.
        qkv_bias: whether queries, keys and values have a bias.
        drop: dropout of tokens, projections and MLPs.
        attn_drop: dropout of filters and attention weights.
        drop_path: rate of dropped residual branches, rising linearly from 0 over all blocks.
        dense: the form for dense prediction: a norm for every stage map, none after them and no classifier.
        patch_size: pixels of a token.
        backend: path of the attention operators; ``reference`` shows every product to a FLOP counter.

    Raises:
        ValueError: for settings of stages that differ in length or that a layer cannot take, and for a dense form with
            classes.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        kernel_size: int = 7,
        group_width: int = 8,
        lam: int = 0,
        gamma: float = 1.0,
        qk_scale: float | None = 1.0,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        dense: bool = False,
        patch_size: int = PATCH,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if not depths or len(depths) != len(num_heads):
            raise ValueError(
                f"depths and num_heads list {len(depths)} and {len(num_heads)} stages; they must be as many"
            )
        if dense and num_classes:
            raise ValueError(f"num_classes is {num_classes}; the dense form has no classifier, so it must be 0")
        self.preprocessing = PREPROCESSING
        widths = [embed_dim * 2**stage for stage in range(len(depths))]
        rates = torch.linspace(0, drop_path, sum(depths), device="cpu").tolist()

        def attention(stage: int, block: int) -> nn.Module:
            width, heads = widths[stage], num_heads[stage]
            if stage == len(depths) - 1:
                shifted = block % 2 == 1
                return WindowAttention(
                    width, heads, window_size, shifted, not dense, qkv_bias, attn_drop, drop, backend
                )
            shape, ghosts = (width, heads, kernel_size, group_width), (lam, gamma)
            return HadamardAttention(*shape, *ghosts, qk_scale, qkv_bias, 1, attn_drop, drop, backend)

        self.patch_embed, self.pos_drop = PatchEmbed(in_chans, embed_dim, patch_size), nn.Dropout(drop)
        stages = []
        for stage, depth in enumerate(depths):
            downsample = PatchMerging(widths[stage - 1]) if stage else nn.Identity()
            dropped = rates[sum(depths[:stage]) : sum(depths[: stage + 1])]
            blocks = [Block(widths[stage], attention(stage, b), mlp_ratio, drop, dropped[b]) for b in range(depth)]
            stages.append(Stage(downsample, blocks))
        self.stages = nn.Sequential(*stages)
        self.feature_norms = nn.ModuleList(nn.LayerNorm(width) for width in widths) if dense else None
        self.norm = nn.Identity() if dense else nn.LayerNorm(widths[-1])
        self.finish(num_classes, widths, [patch_size * 2**stage for stage in range(len(widths))])
        self.apply(initialise_linear)

    def enter(self, x: Tensor) -> Tensor:
        """Tokens (B, H / 4, W / 4, embed_dim), sizes rounded up; maps lie so between stages."""
        if x.ndim != 4 or min(x.shape[-2:]) < 1:
            raise ValueError(f"images are {tuple(x.shape)}; they must be (B, C, H, W) with H and W at least 1")
        return self.pos_drop(self.patch_embed(x))

    def stage_map(self, index: int, x: Tensor) -> Tensor:
        """The map of a stage, (B, C, H, W); that of the dense form is normalised."""
        return self._of_stage(index, x).permute(0, 3, 1, 2)

    def last_map(self, x: Tensor) -> Tensor:
        """The last map, normalised: (B, num_features, H / 32, W / 32), sizes rounded up."""
        return self.norm(self._of_stage(len(self.stages) - 1, x)).permute(0, 3, 1, 2)

    def _of_stage(self, index: int, x: Tensor) -> Tensor:
        return x if self.feature_norms is None else self.feature_norms[index](x)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the wanted stages do not need, norms of the others among it; return their indices."""
        wanted = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if self.feature_norms is not None:
            self.feature_norms = self.feature_norms[: max(wanted) + 1]
        return wanted


def elsa_swin_tiny(num_classes: int = 1000, in_chans: int = 3, **settings: Any) -> ELSASwin:
    """ELSA-Swin-T: 29.1 M parameters with 1000 classes. ``settings`` are those of :class:`ELSASwin`."""
    sizes: dict[str, Any] = {"group_width": 4}
    return ELSASwin(num_classes, in_chans, **sizes | settings)


def elsa_swin_small(num_classes: int = 1000, in_chans: int = 3, **settings: Any) -> ELSASwin:
    """ELSA-Swin-S: 52.9 M parameters with 1000 classes. ``settings`` are those of :class:`ELSASwin`."""
    sizes: dict[str, Any] = {"depths": (2, 2, 18, 2)}
    return ELSASwin(num_classes, in_chans, **sizes | settings)


def elsa_swin_base(num_classes: int = 1000, in_chans: int = 3, **settings: Any) -> ELSASwin:
    """ELSA-Swin-B: 92.7 M parameters with 1000 classes. ``settings`` are those of :class:`ELSASwin`."""
    sizes: dict[str, Any] = {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)}
    return ELSASwin(num_classes, in_chans, **sizes | settings)


BACKBONES: dict[str, dict[str, Any]] = {  # for timm
    builder.__name__: {
        "feature_cfg": {"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    for builder in (elsa_swin_tiny, elsa_swin_small, elsa_swin_base)
}
