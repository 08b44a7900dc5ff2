"""The networks of ReSTE for small images (CIFAR): ResNet-20, plain and Bi-Real, ResNet-18 and VGG-small.

Each with its full-precision counterpart of the same parameter count. Wu et al., ICCV 2023, arXiv 2308.06689.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from repertory.data.preprocessing import Preprocessing
from repertory.systems.reste.estimators import Estimator
from repertory.systems.reste.layers import BinaryConv2d
from repertory.systems.reste.model import (
    Convolution,
    PaddedShortcut,
    RealBlock,
    ReSTEResNet,
    backbones,
    check_images,
    draw_kaiming,
)

PREPROCESSING = Preprocessing(size=(32, 32), crop=1.0)

torch.fx.wrap("check_images")  # here, too, it is one step of a traced graph


def small_resnet(
    num_classes: int = 10, in_chans: int = 3, width: int = 16, depth: int = 3, **settings: Any
) -> ReSTEResNet:
    """Stages of ``depth`` blocks, ``width``, twice and four times as wide, with padded shortcuts, Kaiming-drawn."""
    widths, depths = (width, 2 * width, 4 * width), (depth,) * 3
    fixed: dict[str, Any] = {"large": False, "shortcut": PaddedShortcut, "preprocessing": PREPROCESSING}
    model = ReSTEResNet(num_classes, in_chans, widths, depths, **fixed | settings)
    draw_kaiming(model, (nn.Conv2d, nn.Linear))
    return model


def cifar_resnet20(
    num_classes: int = 10, in_chans: int = 3, estimator: str | Estimator = "reste", real_activations: bool = False
) -> ReSTEResNet:
    """Binary ResNet-20, one shortcut a block: 269,850 parameters with 10 classes."""
    return small_resnet(num_classes, in_chans, estimator=estimator, real_activations=real_activations)


def cifar_resnet20_bireal(
    num_classes: int = 10, in_chans: int = 3, estimator: str | Estimator = "reste", real_activations: bool = False
) -> ReSTEResNet:
    """Binary ResNet-20 with a shortcut around every convolution: 269,850 parameters with 10 classes."""
    settings: dict[str, Any] = {"estimator": estimator, "real_activations": real_activations, "around_each": True}
    return small_resnet(num_classes, in_chans, **settings)


def cifar_resnet20_real(num_classes: int = 10, in_chans: int = 3) -> ReSTEResNet:
    """The full-precision counterpart of both: 269,850 parameters with 10 classes."""
    return small_resnet(num_classes, in_chans, binary=False, block=RealBlock)


def _resnet18(num_classes: int, in_chans: int, **settings: Any) -> ReSTEResNet:
    fixed: dict[str, Any] = {"large": False, "preprocessing": PREPROCESSING}
    return ReSTEResNet(num_classes, in_chans, (64, 128, 256, 512), (2, 2, 2, 2), **fixed, **settings)


def cifar_resnet18(
    num_classes: int = 10, in_chans: int = 3, estimator: str | Estimator = "reste", real_activations: bool = False
) -> ReSTEResNet:
    """Binary ResNet-18 for small images, one shortcut a block: 11,174,986 parameters with 10 classes."""
    return _resnet18(num_classes, in_chans, estimator=estimator, real_activations=real_activations)


def cifar_resnet18_real(num_classes: int = 10, in_chans: int = 3) -> ReSTEResNet:
    """The full-precision counterpart of :func:`cifar_resnet18`: 11,174,986 parameters with 10 classes."""
    return _resnet18(num_classes, in_chans, binary=False, block=RealBlock)


class VGGLayer(nn.Module):
    """A 3 x 3 convolution, ReLU and batch norm (in full precision the other way round), perhaps 2 x 2 pooling."""

    def __init__(self, conv: nn.Conv2d, relu_first: bool, pool: bool) -> None:
        super().__init__()
        self.conv, self.norm = conv, nn.BatchNorm2d(conv.out_channels)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.relu_first = relu_first

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H, W), or half of that."""
        x = self.conv(x)
        return self.pool(self.norm(F.relu(x)) if self.relu_first else F.relu(self.norm(x)))


class VGGSmall(nn.Module):
    """Six convolutions, the first of them real, and a linear classifier on the flattened 4 x 4 map of 32 x 32 pictures.

    Args:
        num_classes: 0 leaves out the classifier.
        in_chans: channels of the pictures.
        binary: signs in all convolutions but the first; False is the full-precision counterpart.
        estimator, real_activations: those of the binary convolutions.
    """

    WIDTHS = (128, 128, 256, 256, 512, 512)

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        binary: bool = True,
        estimator: str | Estimator = "reste",
        real_activations: bool = False,
    ) -> None:
        super().__init__()
        convolution: Convolution = nn.Conv2d
        if binary:
            convolution = partial(BinaryConv2d, estimator=estimator, real_activations=real_activations)
        layers, channels = [], in_chans
        for index, width in enumerate(self.WIDTHS):
            conv = (convolution if index else nn.Conv2d)(channels, width, 3, padding=1, bias=False)
            nn.init.normal_(conv.weight, std=math.sqrt(2 / (9 * width)))
            layers.append(VGGLayer(conv, relu_first=binary, pool=index % 2 == 1))
            channels = width
        self.layers = nn.Sequential(*layers)
        self.in_chans, self.preprocessing = in_chans, PREPROCESSING
        self.num_features = self.head_hidden_size = channels * 16
        self.reset_classifier(num_classes)

    def get_classifier(self) -> nn.Module:
        """The layer that makes logits out of features."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the network a new head for ``num_classes``; 0 leaves flattened features. There is no pooling."""
        if global_pool is not None:
            raise ValueError(f"global_pool is {global_pool!r}; it must be None, since the map is flattened")
        self.num_classes = num_classes
        self.head: nn.Module = nn.Identity()
        if num_classes:
            self.head = head = nn.Linear(self.num_features, num_classes)
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)
            head.to(next(self.layers.parameters()))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, (B, 512, 4, 4)."""
        check_images(x, self.in_chans, (32, 32))
        return self.layers(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) of the last map, or the map flattened (B, num_features) with ``pre_logits``."""
        features = x.flatten(1)
        return features if pre_logits else self.head(features)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, in_chans, 32, 32)."""
        return self.forward_head(self.forward_features(x))


def vgg_small(
    num_classes: int = 10, in_chans: int = 3, estimator: str | Estimator = "reste", real_activations: bool = False
) -> VGGSmall:
    """Binary VGG-small: 4,660,106 parameters with 10 classes."""
    return VGGSmall(num_classes, in_chans, True, estimator, real_activations)


def vgg_small_real(num_classes: int = 10, in_chans: int = 3) -> VGGSmall:
    """The full-precision counterpart of :func:`vgg_small`, which the authors' code describes but cannot build."""
    return VGGSmall(num_classes, in_chans, binary=False)


BACKBONES = backbones(cifar_resnet20, cifar_resnet20_bireal, cifar_resnet20_real, stages=3) | backbones(
    cifar_resnet18, cifar_resnet18_real, stages=4
)
