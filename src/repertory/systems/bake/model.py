"""The networks that BAKE was published with; any other classifier trains with it too.

Small scale: the pre-activation ResNets and the DenseNet of the CIFAR tables, written here, and ``resnet18`` and
``densenet121`` of the 224-pixel sets. ImageNet: the authors' pycls networks, which are timm's up to the names of their
tensors and so are built by timm (``authors.py`` has the names). ImageNet networks take pictures in BGR order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repertory.data.preprocessing import Preprocessing

CIFAR = Preprocessing(
    size=(32, 32), crop=1.0, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010), channels="RGB"
)
SMALL_224 = Preprocessing()
IMAGENET = Preprocessing(mean=(0.406, 0.456, 0.485), std=(0.225, 0.224, 0.229), channels="BGR")


class _PooledClassifier(nn.Module):
    """timm's interface over ``forward_features`` and a ``linear`` layer on the average of the last map."""

    num_classes: int
    num_features: int
    linear: nn.Module

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map."""
        raise TypeError(f"{type(self).__name__} does not say how it makes features")

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) of a last map, or its pooled features (B, num_features) with ``pre_logits``."""
        features = x.mean((2, 3))
        return features if pre_logits else self.linear(features)

    def get_classifier(self) -> nn.Module:
        """The layer that makes logits out of features."""
        return self.linear

    def reset_classifier(self, num_classes: int) -> None:
        """Give the network a new head for ``num_classes``; 0 leaves the features as they are."""
        like = next(self.parameters())
        self.num_classes = num_classes
        self.linear = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.linear.to(device=like.device, dtype=like.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images (B, in_chans, H, W)."""
        return self.forward_head(self.forward_features(x))


class PreActBlock(nn.Module):
    """Pre-activation block with the authors' quirk: the identity shortcut carries the activated tensor, not ``x``."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        changes = stride != 1 or in_channels != channels
        self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""
        activated = F.relu(self.bn1(x))
        return self.conv2(F.relu(self.bn2(self.conv1(activated)))) + self.shortcut(activated)


class PreActResNet(_PooledClassifier):
    """CIFAR pre-activation ResNet of four stages, without norm or ReLU after the last: features can be negative."""

    def __init__(self, depths: Sequence[int], num_classes: int = 100, in_chans: int = 3) -> None:
        super().__init__()
        self.num_classes, self.num_features = num_classes, 512
        self.conv1 = nn.Conv2d(in_chans, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for stage, depth in enumerate(depths):
            blocks = []
            for block in range(depth):
                blocks.append(PreActBlock(channels, 64 * 2**stage, 2 if stage and not block else 1))
                channels = 64 * 2**stage
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(self.num_features, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, (B, 512, H / 8, W / 8)."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return x


class DenseLayer(nn.Module):
    """Bottleneck layer: BN-ReLU-1x1 (4k)-BN-ReLU-3x3 (k); the new channels come FIRST in the concatenation."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C + k, H, W)."""
        new = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return torch.cat([new, x], dim=1)


class Transition(nn.Module):
    """BN-ReLU-1x1 to half the channels, then 2x2 average pooling."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, in_channels // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C / 2, H / 2, W / 2)."""
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


class CifarDenseNet(_PooledClassifier):
    """CIFAR DenseNet: a 3x3 stem of 2k channels, four dense blocks with transitions between, BN-ReLU, pooled."""

    def __init__(self, depths: Sequence[int], growth: int = 32, num_classes: int = 100, in_chans: int = 3) -> None:
        super().__init__()
        channels = 2 * growth
        self.conv1 = nn.Conv2d(in_chans, channels, 3, 1, 1, bias=False)
        for block, depth in enumerate(depths, start=1):
            layers = [DenseLayer(channels + layer * growth, growth) for layer in range(depth)]
            self.add_module(f"dense{block}", nn.Sequential(*layers))
            channels += depth * growth
            if block < len(depths):
                self.add_module(f"trans{block}", Transition(channels))
                channels //= 2
        self.blocks = len(depths)
        self.bn = nn.BatchNorm2d(channels)
        self.num_classes, self.num_features = num_classes, channels
        self.linear = nn.Linear(channels, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, (B, num_features, H / 8, W / 8), normalised and rectified."""
        x = self.conv1(x)
        for block in range(1, self.blocks):
            x = self.get_submodule(f"trans{block}")(self.get_submodule(f"dense{block}")(x))
        return F.relu(self.bn(self.get_submodule(f"dense{self.blocks}")(x)))


def cifar_resnet18(num_classes: int = 100, in_chans: int = 3) -> nn.Module:
    """CIFAR pre-activation ResNet-18 (authors' CIFAR_ResNet18), for 32-pixel pictures."""
    return _described(PreActResNet((2, 2, 2, 2), num_classes, in_chans), CIFAR, in_chans)


def cifar_resnet34(num_classes: int = 100, in_chans: int = 3) -> nn.Module:
    """CIFAR pre-activation ResNet-34 (authors' CIFAR_ResNet34), for 32-pixel pictures."""
    return _described(PreActResNet((3, 4, 6, 3), num_classes, in_chans), CIFAR, in_chans)


def cifar_densenet121(num_classes: int = 100, in_chans: int = 3) -> nn.Module:
    """CIFAR DenseNet-121 with growth 32 (authors' CIFAR_DenseNet121), for 32-pixel pictures."""
    return _described(CifarDenseNet((6, 12, 24, 16), 32, num_classes, in_chans), CIFAR, in_chans)


def resnet18(num_classes: int = 200, in_chans: int = 3, **settings: Any) -> nn.Module:
    """ResNet-18 of the 224-pixel sets, in torchvision's layout; ``settings`` go to timm."""
    return _timm("resnet18", SMALL_224, num_classes, in_chans, zero_init_last=False, **settings)


def densenet121(num_classes: int = 200, in_chans: int = 3, **settings: Any) -> nn.Module:
    """DenseNet-121 of the 224-pixel sets, in torchvision's layout; ``settings`` go to timm."""
    return _timm("densenet121", SMALL_224, num_classes, in_chans, **settings)


def resnet50(num_classes: int = 1000, in_chans: int = 3, **settings: Any) -> nn.Module:
    """ResNet-50 of the ImageNet tables (BGR); ``settings`` go to timm, as in the builders below."""
    return _pycls("resnet50", num_classes, in_chans, zero_init_last=False, **settings)


def resnet101(num_classes: int = 1000, in_chans: int = 3, **settings: Any) -> nn.Module:
    """ResNet-101 of the ImageNet tables (BGR)."""
    return _pycls("resnet101", num_classes, in_chans, zero_init_last=False, **settings)


def resnet152(num_classes: int = 1000, in_chans: int = 3, **settings: Any) -> nn.Module:
    """ResNet-152 of the ImageNet tables (BGR)."""
    return _pycls("resnet152", num_classes, in_chans, zero_init_last=False, **settings)


def resnext101_32x4d(num_classes: int = 1000, in_chans: int = 3, **settings: Any) -> nn.Module:
    """ResNeXt-101-32x4d of the ImageNet tables (BGR)."""
    return _pycls("resnext101_32x4d", num_classes, in_chans, zero_init_last=False, **settings)


def resnext152_32x4d(num_classes: int = 1000, in_chans: int = 3, **settings: Any) -> nn.Module:
    """ResNeXt-152-32x4d of the ImageNet tables (BGR): timm's 101 with the depths of 152."""
    return _pycls("resnext101_32x4d", num_classes, in_chans, zero_init_last=False, layers=(3, 8, 36, 3), **settings)


def resnest50(num_classes: int = 1000, in_chans: int = 3, **settings: Any) -> nn.Module:
    """ResNeSt-50 of the ImageNet tables (BGR)."""
    return _pycls("resnest50d", num_classes, in_chans, zero_init_last=False, **settings)


def resnest101(num_classes: int = 1000, in_chans: int = 3, **settings: Any) -> nn.Module:
    """ResNeSt-101 of the ImageNet tables (BGR)."""
    return _pycls("resnest101e", num_classes, in_chans, zero_init_last=False, **settings)


def mobilenetv2(num_classes: int = 1000, in_chans: int = 3, **settings: Any) -> nn.Module:
    """MobileNetV2 of the ImageNet tables (BGR)."""
    return _pycls("mobilenetv2_100", num_classes, in_chans, **settings)


def efficientnet_b0(num_classes: int = 1000, in_chans: int = 3, **settings: Any) -> nn.Module:
    """EfficientNet-B0 of the ImageNet tables (BGR), without dropout or drop-connect."""
    return _pycls("efficientnet_b0", num_classes, in_chans, **settings)


def _timm(name: str, preprocessing: Preprocessing, num_classes: int, in_chans: int, **settings: Any) -> nn.Module:
    import timm

    model = timm.create_model(name, num_classes=num_classes, in_chans=in_chans, **settings)
    return _described(model, preprocessing, in_chans)


def _pycls(name: str, num_classes: int, in_chans: int, **settings: Any) -> nn.Module:
    """timm's network ``name``, drawn as the authors draw theirs: fan-out normal kernels, a head of deviation 0.01."""
    model = _timm(name, IMAGENET, num_classes, in_chans, **settings)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
    return model


def _described(model: Any, preprocessing: Preprocessing, in_chans: int) -> nn.Module:
    """``model`` with its input description; other than three channels are taken about one half, as they come."""
    if in_chans != 3:
        half, channels = (0.5,) * in_chans, "L" if in_chans == 1 else preprocessing.channels
        preprocessing = Preprocessing(
            preprocessing.size, crop=preprocessing.crop, mean=half, std=half, channels=channels
        )
    model.preprocessing = preprocessing
    return model
