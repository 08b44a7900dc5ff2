"""AFFormer: segmentation without a decoder, by a pixel path that a few prototypes enrich.

Dong et al., "Head-Free Lightweight Semantic Segmentation with Linear Transformer", AAAI 2023, arXiv 2301.04648.
Each stage splits in two. Pixels keep their resolution, stride 8 in the end, and pass a small convolutional descriptor.
Prototypes, strided convolutions of the pixels, pass a transformer whose attention is the adaptive frequency filter, of
linear cost. Enlarged prototypes are added to the pixels, so that a 1 x 1 classifier is all that segmentation needs.
Nothing is training-only but drop path and dropout. The classification form is how the backbone is pre-trained.

Maps are (B, C, H, W) between modules and (B, H, W, C) inside a block. Any height and width work, odd ones too.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation

from repertory.data.preprocessing import Preprocessing
from repertory.nn.pyramid import PyramidBackbone
from repertory.nn.recompute import recompute
from repertory.ops.frequency_filter import frequency_filter

PREPROCESSING = Preprocessing(size=(224, 224), interpolation="bicubic", crop=0.875)
SEGMENTATION = Preprocessing(size=(512, 512), interpolation="bilinear", crop=1.0)
WINDOWS: Mapping[int, int] = {3: 2, 5: 3, 7: 3}  # side of a high-pass window -> heads that look through it
BINS = (1, 2, 3, 6)
STRIDES = ((1, 1), (2, 1), (1, 2), (1, 4))  # of pixels and of prototypes, stage by stage

LayerNorm = partial(nn.LayerNorm, eps=1e-6)
ConvNorm = partial(Conv2dNormActivation, activation_layer=nn.Hardswish, inplace=None)


class HighPassFilters(nn.ModuleList):
    """Depth-wise convolutions of several windows, each for its heads. One bank serves all blocks of a stage.

    Args:
        dim: channels C.
        num_heads: must divide ``dim``.
        windows: odd side -> number of heads, in the order of the heads; the numbers add up to ``num_heads``.
    """

    def __init__(self, dim: int, num_heads: int, windows: Mapping[int, int] = WINDOWS) -> None:
        _check_heads(dim, num_heads)
        for side, heads in windows.items():
            if side < 1 or side % 2 == 0:
                raise ValueError(f"windows have side {side}; it must be odd and at least 1")
            if heads < 1:
                raise ValueError(f"windows give side {side} to {heads} heads; it must be at least 1")
        if sum(windows.values()) != num_heads:
            raise ValueError(f"windows are for {sum(windows.values())} heads; they must be for num_heads, {num_heads}")
        widths = {side: heads * (dim // num_heads) for side, heads in windows.items()}
        super().__init__(nn.Conv2d(n, n, side, padding=side // 2, groups=n) for side, n in widths.items())

    def tensors(self) -> tuple[list[Tensor], list[Tensor]]:
        """Kernels and biases, as the operator takes them."""
        convolutions = [convolution for convolution in self if isinstance(convolution, nn.Conv2d)]
        return [c.weight for c in convolutions], [c.bias for c in convolutions if c.bias is not None]


class AdaptiveFrequencyFilter(nn.Module):
    """What stands for self-attention: kernel of the keys and values, high-pass and low-pass part of the values.

    Input and output (B, H, W, ``dim``). The high-pass filters come with each call, since a stage shares them.

    Args:
        dim: channels C; a multiple of ``num_heads`` and of the number of ``bins``.
        num_heads: heads of the kernel.
        qkv_bias: whether queries, keys and values have a bias.
        bins: sides of the low-pass pyramid.
        backend: path of :func:`repertory.ops.frequency_filter.frequency_filter`.
    """

    def __init__(
        self, dim: int, num_heads: int = 8, qkv_bias: bool = True, bins: Sequence[int] = BINS, backend: str = "auto"
    ) -> None:
        super().__init__()
        _check_heads(dim, num_heads)
        if not bins or dim % len(bins):
            raise ValueError(f"dim is {dim}; it must be a multiple of the {len(bins)} levels of the low-pass part")
        self.num_heads, self.bins, self.backend = num_heads, tuple(bins), backend
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, filters: HighPassFilters) -> Tensor:
        """``x`` (B, H, W, dim), filtered."""
        qkv = self.qkv(x).permute(0, 3, 1, 2)
        out = frequency_filter(qkv, *filters.tensors(), self.num_heads, self.bins, backend=self.backend)
        return self.proj(out.permute(0, 2, 3, 1))


class ConvolutionalMlp(nn.Module):
    """Linear layer, GELU of itself plus a depth-wise convolution of it, linear layer; (B, H, W, ``dim``)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) to (B, H, W, dim)."""
        x = self.fc1(x)
        return self.fc2(F.gelu(x + _on_map(self.depthwise, x)))


class Block(nn.Module):
    """Position, frequency filter and MLP; the position's convolution and the filters are the stage's."""

    def __init__(self, dim: int, filter_: AdaptiveFrequencyFilter, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.attn = LayerNorm(dim), filter_
        self.norm2, self.mlp = LayerNorm(dim), ConvolutionalMlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, position: nn.Module, filters: HighPassFilters) -> Tensor:
        """(B, H, W, dim) to (B, H, W, dim)."""
        x = x + _on_map(position, x)
        x = x + self.drop_path(self.attn(self.norm1(x), filters))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PrototypeEncoder(nn.Module):
    """The transformer over the prototypes of one stage.

    ``position`` and ``filters`` are one module each, which every block runs again.

    Args:
        dim: channels.
        num_heads: heads of the frequency filter.
        mlp_ratio: hidden width of the MLPs over ``dim``.
        drop_path: a rate for each block.
        windows: of :class:`HighPassFilters`.
        qkv_bias: whether queries, keys and values have a bias.
        backend: path of the operator.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        mlp_ratio: float = 2,
        drop_path: Sequence[float] = (0.0,),
        windows: Mapping[int, int] = WINDOWS,
        qkv_bias: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.position = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.filters = HighPassFilters(dim, num_heads, windows)
        self.blocks = nn.ModuleList(
            Block(dim, AdaptiveFrequencyFilter(dim, num_heads, qkv_bias, backend=backend), mlp_ratio, rate)
            for rate in drop_path
        )
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) to (B, dim, H, W)."""
        x = x.permute(0, 2, 3, 1)
        for block in self.blocks:
            if self.grad_checkpointing and self.training and torch.is_grad_enabled():
                x = recompute(block, x, self.position, self.filters)
            else:
                x = block(x, self.position, self.filters)
        return x.permute(0, 3, 1, 2)


class Embedding(nn.Sequential):
    """Depth-wise separable convolution with one norm, at its end: local clustering where it strides."""

    def __init__(self, dim: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(dim, dim, 3, stride, 1, groups=dim, bias=False),
            nn.Conv2d(dim, dim, 1, bias=False),
            nn.BatchNorm2d(dim),
            nn.Hardswish(),
        )


class PixelDescriptor(nn.Module):
    """A residual bottleneck of half the width around a depth-wise convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = dim // 2
        self.reduce = ConvNorm(dim, hidden, 1)
        self.depthwise = ConvNorm(hidden, hidden, 3, groups=hidden)
        self.expand = Conv2dNormActivation(hidden, dim, 1, activation_layer=None)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) to (B, dim, H, W)."""
        return x + self.expand(self.depthwise(self.reduce(x)))


class Stage(nn.Module):
    """Pixels and prototypes apart, then together; ``encoder`` is None where a stage has no transformer."""

    def __init__(self, dim: int, out_dim: int, strides: tuple[int, int], encoder: PrototypeEncoder | None) -> None:
        super().__init__()
        self.pixels, self.prototypes = Embedding(dim, strides[0]), Embedding(dim, strides[1])
        self.descriptor, self.encoder = PixelDescriptor(dim), encoder
        self.aggregate = ConvNorm(dim, out_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) to (B, out_dim, H, W), both over the stride of the pixels."""
        pixels = self.pixels(x)
        prototypes = self.prototypes(pixels)
        if self.encoder is None:
            return self.aggregate(self.descriptor(pixels + prototypes))
        prototypes = self.encoder(prototypes)
        if prototypes.shape[2:] != pixels.shape[2:]:
            prototypes = F.interpolate(prototypes, pixels.shape[2:], mode="bilinear", align_corners=True)
        return self.aggregate(self.descriptor(pixels) + prototypes)


class AFFormer(PyramidBackbone):
    """The backbone in its classification form.

    Args:
        num_classes: width of the classifier; 0 leaves pooled features.
        in_chans: channels of the images.
        embed_dims: width of each stage; the last is that of the result too. Multiples of ``num_heads`` and of 4.
        num_layers: blocks of each stage; the first stage has none, but its number counts in the drop-path schedule.
        num_heads: heads of each stage.
        mlp_ratios: hidden width of the MLPs over the width of their stage.
        windows: odd side of a high-pass window -> heads that look through it, adding up to the heads of every stage.
        strides: of the pixels and of the prototypes of each stage, after the stem's 4.
        qkv_bias: whether queries, keys and values have a bias.
        drop_path: rate of dropped residual branches, rising linearly from 0 over all layers.
        backend: path of the frequency filter; ``reference`` shows every product to a FLOP counter.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        embed_dims: Sequence[int] = (32, 96, 176, 216),
        num_layers: Sequence[int] = (1, 2, 6, 2),
        num_heads: Sequence[int] = (8, 8, 8, 8),
        mlp_ratios: Sequence[float] = (2, 2, 2, 2),
        windows: Mapping[int, int] = WINDOWS,
        strides: Sequence[tuple[int, int]] = STRIDES,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        listed = [len(x) for x in (embed_dims, num_layers, num_heads, mlp_ratios, strides)]
        if len(set(listed)) > 1 or listed[0] < 1:
            raise ValueError(
                "embed_dims, num_layers, num_heads, mlp_ratios and strides list "
                f"{', '.join(map(str, listed))} stages; they must list the same"
            )
        if embed_dims[0] % 2:
            raise ValueError(f"embed_dims begin with {embed_dims[0]}; it must be even, since the stem begins with half")
        self.in_chans, self.preprocessing = in_chans, PREPROCESSING
        rates = torch.linspace(0, drop_path, sum(num_layers), device="cpu").tolist()

        def encoder(stage: int) -> PrototypeEncoder | None:
            if not stage:
                return None
            dropped = rates[sum(num_layers[:stage]) : sum(num_layers[: stage + 1])]
            sizes = (embed_dims[stage], num_heads[stage], mlp_ratios[stage])
            return PrototypeEncoder(*sizes, dropped, windows, qkv_bias, backend)

        self.stem = nn.Sequential(
            ConvNorm(in_chans, embed_dims[0] // 2, 3, 2), ConvNorm(embed_dims[0] // 2, embed_dims[0], 3, 2)
        )
        out_dims = (*embed_dims[1:], embed_dims[-1])
        self.stages = nn.Sequential(
            *(
                Stage(dim, out_dim, stride, encoder(stage))
                for stage, (dim, out_dim, stride) in enumerate(zip(embed_dims, out_dims, strides, strict=True))
            )
        )
        pixel_strides = [4 * math.prod(pixels for pixels, _ in strides[: stage + 1]) for stage in range(len(strides))]
        self.finish(num_classes, out_dims, pixel_strides)
        self.apply(_initialise)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable
        for module in self.modules():
            if isinstance(module, PrototypeEncoder):
                module.grad_checkpointing = enable

    def enter(self, x: Tensor) -> Tensor:
        """The map at stride 4."""
        if x.ndim != 4 or x.shape[1] != self.in_chans or min(x.shape[2:]) < 1:
            allowed = f"(B, {self.in_chans}, H, W) with H and W at least 1"
            raise ValueError(f"images are {tuple(x.shape)}; they must be {allowed}")
        return self.stem(x)

    def last_map(self, x: Tensor) -> Tensor:
        """The last map, (B, num_features, H / 8, W / 8), sizes rounded up; there is no norm after the stages."""
        return x


class AFFormerSegmentor(nn.Module):
    """The backbone and a two-layer classifier at stride 8: there is no decoder.

    Args:
        num_classes: classes of the map.
        in_chans: channels of the images.
        channels: width between the two layers.
        norm_groups: groups of the norm between them; must divide ``channels``.
        drop: rate of whole channels dropped before the classifier.
        settings: those of :class:`AFFormer`.
    """

    def __init__(
        self,
        num_classes: int = 150,
        in_chans: int = 3,
        channels: int = 256,
        norm_groups: int = 32,
        drop: float = 0.1,
        **settings: Any,
    ) -> None:
        super().__init__()
        _check_classes(num_classes)
        if norm_groups < 1 or channels % norm_groups:
            raise ValueError(f"norm_groups is {norm_groups}; it must divide channels, which is {channels}")
        self.backbone = AFFormer(0, in_chans, **settings)
        self.squeeze = nn.Sequential(
            nn.Conv2d(self.backbone.num_features, channels, 1, bias=False),
            nn.GroupNorm(norm_groups, channels),
            nn.ReLU(),
        )
        self.drop = nn.Dropout2d(drop)
        self.num_features, self.num_classes = channels, num_classes
        self.preprocessing, self.class_names = SEGMENTATION, None
        self.squeeze.apply(_initialise)
        self.classifier = _pixel_classifier(channels, num_classes)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block of the backbone in the backward pass instead of keeping its activations."""
        self.backbone.set_grad_checkpointing(enable)

    def forward_features(self, x: Tensor) -> Tensor:
        """The map that is classified, (B, channels, H / 8, W / 8), sizes rounded up."""
        return self.squeeze(self.backbone.forward_features(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes, H / 8, W / 8) of that map, or the map itself with ``pre_logits``."""
        return x if pre_logits else self.classifier(self.drop(x))

    def get_classifier(self) -> nn.Module:
        """The layer that makes logits out of features."""
        return self.classifier

    def reset_classifier(self, num_classes: int) -> None:
        """Give the network a new classifier for ``num_classes``."""
        _check_classes(num_classes)
        self.num_classes, self.class_names = num_classes, None
        like = self.classifier.weight
        self.classifier = _pixel_classifier(self.num_features, num_classes).to(like.device, like.dtype)

    def deploy(self) -> AFFormerSegmentor:
        """A copy for inference: the same parameters, none being training-only, in evaluation mode."""
        return _deployed(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W) of images (B, in_chans, H, W)."""
        logits = self.forward_head(self.forward_features(x))
        return F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=False)


def _on_map(convolution: nn.Module, x: Tensor) -> Tensor:
    """``convolution`` of (B, H, W, C), seen as a channels-last (B, C, H, W)."""
    return convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _check_heads(dim: int, num_heads: int) -> None:
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"dim is {dim}; it must be a multiple of num_heads, which is {num_heads}")


def _check_classes(num_classes: int) -> None:
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; a segmentor needs at least 1")


def _pixel_classifier(channels: int, num_classes: int) -> nn.Conv2d:
    """Its weights begin small, so that the first loss is that of an even guess."""
    layer = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def _deployed(model: Any) -> Any:
    deployed = copy.deepcopy(model).eval()
    deployed.set_grad_checkpointing(False)
    return deployed


def _initialise(module: nn.Module) -> None:
    """Truncated normals for linear layers, normals by fan-out for convolutions; norms keep ones and zeros."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.out_channels * math.prod(module.kernel_size) // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
        nn.init.zeros_(module.bias)


TINY = {"embed_dims": (32, 64, 160, 216), "num_layers": (1, 2, 4, 2)}
SMALL = {"embed_dims": (32, 64, 176, 216), "num_layers": (1, 2, 4, 2)}
BASE = {"embed_dims": (32, 96, 176, 216), "num_layers": (1, 2, 6, 2)}


def afformer_tiny(num_classes: int = 1000, in_chans: int = 3, **settings: Any) -> AFFormer:
    """AFFormer-tiny: 2.0 M parameters without classifier. ``settings`` are those of :class:`AFFormer`."""
    return AFFormer(num_classes, in_chans, **TINY | settings)


def afformer_small(num_classes: int = 1000, in_chans: int = 3, **settings: Any) -> AFFormer:
    """AFFormer-small: 2.2 M parameters without classifier. ``settings`` are those of :class:`AFFormer`."""
    return AFFormer(num_classes, in_chans, **SMALL | settings)


def afformer_base(num_classes: int = 1000, in_chans: int = 3, **settings: Any) -> AFFormer:
    """AFFormer-base: 2.8 M parameters without classifier. ``settings`` are those of :class:`AFFormer`."""
    return AFFormer(num_classes, in_chans, **BASE | settings)


def afformer_tiny_segmentor(num_classes: int = 150, in_chans: int = 3, **settings: Any) -> AFFormerSegmentor:
    """AFFormer-tiny for segmentation: 2.1 M parameters. ``settings`` are those of the segmentor and the backbone."""
    return AFFormerSegmentor(num_classes, in_chans, **TINY | settings)


def afformer_small_segmentor(num_classes: int = 150, in_chans: int = 3, **settings: Any) -> AFFormerSegmentor:
    """AFFormer-small for segmentation: 2.3 M parameters. ``settings`` are those of the segmentor and the backbone."""
    return AFFormerSegmentor(num_classes, in_chans, **SMALL | settings)


def afformer_base_segmentor(num_classes: int = 150, in_chans: int = 3, **settings: Any) -> AFFormerSegmentor:
    """AFFormer-base for segmentation: 2.9 M parameters. ``settings`` are those of the segmentor and the backbone."""
    return AFFormerSegmentor(num_classes, in_chans, **BASE | settings)


BACKBONES: dict[str, dict[str, Any]] = {  # for timm
    builder.__name__: {
        "feature_cfg": {"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        "first_conv": "stem.0.0",
        "classifier": "head",
    }
    for builder in (afformer_tiny, afformer_small, afformer_base)
}
