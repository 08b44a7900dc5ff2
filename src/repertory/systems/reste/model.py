"""The binary residual networks of ReSTE for ImageNet, and what those for small images share with them.

Wu et al., ICCV 2023, arXiv 2308.06689. The stem, the 1 x 1 convolutions of the shortcuts and the classifier stay real;
every 3 x 3 convolution inside the stages is binary. A block is convolution, ReLU, batch norm, and nothing after the
sum, since the next signs need values about zero. Training-only is the gradient of the signs; at inference they are
signs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from repertory.data.preprocessing import Preprocessing
from repertory.nn.pyramid import PyramidBackbone, Stage
from repertory.systems.reste.estimators import Estimator
from repertory.systems.reste.layers import BinaryConv2d

PREPROCESSING = Preprocessing()

Convolution = Callable[..., nn.Conv2d]


@torch.fx.wrap  # one step of a traced graph, whose shapes are not known
def check_images(x: Tensor, in_chans: int, size: tuple[int, int] | None = None) -> None:
    """ValueError unless ``x`` is (B, in_chans, H, W), of (H, W) = ``size`` where that is given."""
    if x.ndim != 4 or x.shape[1] != in_chans or (size is not None and tuple(x.shape[2:]) != size):
        wanted = "H, W" if size is None else f"{size[0]}, {size[1]}"
        raise ValueError(f"images are {tuple(x.shape)}; they must be (B, {in_chans}, {wanted})")


class Stem(nn.Module):
    """Real convolution, ReLU, batch norm, and a max-pool where the pictures are large."""

    def __init__(self, in_chans: int, channels: int, large: bool) -> None:
        super().__init__()
        size, stride = (7, 2) if large else (3, 1)
        self.conv = nn.Conv2d(in_chans, channels, size, stride, size // 2, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.pool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) to (B, channels, H / 4, W / 4), or at full size for small pictures."""
        return self.pool(self.norm(F.relu(self.conv(x))))


class PaddedShortcut(nn.Module):
    """Every ``stride``-th pixel, with as many channels of zeros before as behind (shortcut A of CIFAR ResNets)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        before = (channels - in_channels) // 2
        self.stride, self.channels = stride, (before, channels - in_channels - before)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.channels))


class ProjectedShortcut(nn.Module):
    """A real 1 x 1 convolution with batch norm."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""
        return self.norm(self.conv(x))


class Block(nn.Module):
    """Twice convolution, ReLU, batch norm, with one shortcut around both or, as in Bi-Real Net, one around each.

    Args:
        in_channels, channels, stride: of the first convolution; the second keeps size and width.
        convolution: makes both, 3 x 3.
        shortcut: makes the first shortcut where the shape changes.
        around_each: one shortcut around each convolution.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        convolution: Convolution,
        shortcut: Callable[[int, int, int], nn.Module],
        around_each: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = convolution(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        changes = stride != 1 or in_channels != channels
        self.shortcut = shortcut(in_channels, channels, stride) if changes else nn.Identity()
        self.around_each = around_each

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""
        y, around = self.norm1(F.relu(self.conv1(x))), self.shortcut(x)
        if self.around_each:
            y = around = y + around
        return self.norm2(F.relu(self.conv2(y))) + around


class RealBlock(Block):
    """The full-precision counterpart: convolution, batch norm, ReLU, and a ReLU after the sum."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ReSTEResNet(PyramidBackbone):
    """The residual networks: a real stem, stages of blocks, mean, batch norm of the features, classifier.

    Args:
        num_classes: 0 leaves out the classifier.
        in_chans: channels of the pictures.
        widths, depths: channels and blocks of each stage; every stage but the first halves the map.
        large: the stem of ImageNet, which shrinks by 4; else that of CIFAR.
        shortcut: makes a shortcut where the shape changes.
        around_each: one shortcut around each convolution.
        binary: signs in the convolutions of the blocks; False is the network of equal size in full precision.
        block: order of the layers, :class:`Block` or :class:`RealBlock`.
        estimator: gradient of the signs, a name or an :class:`Estimator`.
        real_activations: 1-bit weights and real activations (1W/32A).
        preprocessing: how the pictures are wanted.
    """

    def __init__(
        self,
        num_classes: int,
        in_chans: int,
        widths: Sequence[int],
        depths: Sequence[int],
        large: bool,
        shortcut: Callable[[int, int, int], nn.Module] = ProjectedShortcut,
        around_each: bool = False,
        binary: bool = True,
        block: type[Block] = Block,
        estimator: str | Estimator = "reste",
        real_activations: bool = False,
        preprocessing: Preprocessing = PREPROCESSING,
    ) -> None:
        super().__init__()
        convolution: Convolution = nn.Conv2d
        if binary:
            convolution = partial(BinaryConv2d, estimator=estimator, real_activations=real_activations)
        self.in_chans, self.preprocessing = in_chans, preprocessing
        self.stem = Stem(in_chans, widths[0], large)
        stages, channels = [], widths[0]
        for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = []
            for number in range(depth):
                stride = 2 if index and not number else 1
                blocks.append(block(channels, width, stride, convolution, shortcut, around_each))
                channels = width
            stages.append(Stage(nn.Identity(), blocks))
        self.stages, self.norm = nn.Sequential(*stages), nn.Identity()
        self.head_norm: nn.Module = nn.BatchNorm1d(widths[-1])
        self.finish(num_classes, widths, [(4 if large else 1) * 2**index for index in range(len(widths))])

    def enter(self, x: Tensor) -> Tensor:
        """The stem's map."""
        check_images(x, self.in_chans)
        return self.stem(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) of the last map, or its normalised mean (B, num_features) with ``pre_logits``."""
        features = self.head_norm(x.mean((2, 3)))
        return features if pre_logits else self.head(features)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the wanted stages do not need; return their indices."""
        wanted = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_head:
            self.head_norm = nn.Identity()
        return wanted


def draw_kaiming(model: nn.Module, kinds: tuple[type[nn.Conv2d] | type[nn.Linear], ...]) -> None:
    """Kaiming normal weights (fan-in, ReLU) for all layers of ``kinds``."""
    for module in model.modules():
        if isinstance(module, kinds):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


def _imagenet(depths: Sequence[int], num_classes: int, in_chans: int, **settings: Any) -> ReSTEResNet:
    model = ReSTEResNet(num_classes, in_chans, (64, 128, 256, 512), depths, large=True, around_each=True, **settings)
    draw_kaiming(model, (nn.Conv2d,))
    return model


def resnet18(
    num_classes: int = 1000, in_chans: int = 3, estimator: str | Estimator = "reste", real_activations: bool = False
) -> ReSTEResNet:
    """Binary ResNet-18 with a shortcut around every convolution: 11,690,536 parameters with 1000 classes."""
    return _imagenet((2, 2, 2, 2), num_classes, in_chans, estimator=estimator, real_activations=real_activations)


def resnet34(
    num_classes: int = 1000, in_chans: int = 3, estimator: str | Estimator = "reste", real_activations: bool = False
) -> ReSTEResNet:
    """Binary ResNet-34 with a shortcut around every convolution: 21,798,696 parameters with 1000 classes."""
    return _imagenet((3, 4, 6, 3), num_classes, in_chans, estimator=estimator, real_activations=real_activations)


def resnet18_real(num_classes: int = 1000, in_chans: int = 3) -> ReSTEResNet:
    """The full-precision counterpart of :func:`resnet18`, in the same order of layers, as the authors have it."""
    return _imagenet((2, 2, 2, 2), num_classes, in_chans, binary=False)


def resnet34_real(num_classes: int = 1000, in_chans: int = 3) -> ReSTEResNet:
    """The full-precision counterpart of :func:`resnet34`; the authors have none, so it follows their ResNet-18."""
    return _imagenet((3, 4, 6, 3), num_classes, in_chans, binary=False)


def backbones(*builders: Callable[..., nn.Module], stages: int) -> dict[str, dict[str, Any]]:
    """What timm must know of residual networks of so many ``stages``."""
    facts = {
        "feature_cfg": {"out_indices": tuple(range(stages)), "feature_cls": "getter"},
        "first_conv": "stem.conv",
        "classifier": "head",
    }
    return {f"reste_{builder.__name__}": facts for builder in builders}


BACKBONES = backbones(resnet18, resnet34, resnet18_real, resnet34_real, stages=4)
