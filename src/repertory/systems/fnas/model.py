"""The networks of the mobile search space, layer by layer as the space defines them.

MnasNet's layers (Tan et al., arXiv 1807.11626). What the sheet of the space leaves open is inferred: a pooling skip is
an average over 3 x 3 with the layer's stride, and 1 x 1 with batch norm where widths differ.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from repertory.data.preprocessing import Preprocessing
from repertory.systems.fnas.space import Architecture, Block

ACTIVATION = {"relu": nn.ReLU, "relu6": nn.ReLU6, "hswish": nn.Hardswish}


class SqueezeExcitation(nn.Module):
    """Channels of (B, C, H, W) weighted by what their means say through ``reduced`` units; sigmoid gate."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, reduced, 1)
        self.expand = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        return x * self.expand(self.reduce(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class PoolingSkip(nn.Module):
    """The pooling skip: average over 3 x 3 without its padding, then 1 x 1 and batch norm where widths differ."""

    def __init__(self, in_channels: int, channels: int, stride: int, eps: float) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        self.projected = in_channels != channels
        if self.projected:
            self.project = nn.Conv2d(in_channels, channels, 1, bias=False)
            self.project_norm = nn.BatchNorm2d(channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C, H / stride, W / stride), sides rounded up."""
        x = self.pool(x)
        return self.project_norm(self.project(x)) if self.projected else x


class Layer(nn.Module):
    """One layer of ``block``; modules stand in the order in which they are applied, the skip's last.

    ``conv`` ends in an activation; ``sep`` and ``mb`` end linearly, in a 1 x 1 convolution and batch norm.
    """

    def __init__(self, block: Block, in_channels: int, stride: int, act: str, eps: float = 1e-5) -> None:
        super().__init__()
        self.op, channels, kernel = block.op, block.channels, block.kernel
        self.act = ACTIVATION[act](inplace=True)
        width = in_channels * (block.expansion if block.op == "mb" else 1)
        if block.op == "mb":
            self.expand = nn.Conv2d(in_channels, width, 1, bias=False)
            self.expand_norm = nn.BatchNorm2d(width, eps)
        if block.op == "conv":
            self.conv = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=False)
            self.conv_norm = nn.BatchNorm2d(channels, eps)
        else:
            self.depthwise = nn.Conv2d(width, width, kernel, stride, kernel // 2, groups=width, bias=False)
            self.depthwise_norm = nn.BatchNorm2d(width, eps)
            squeezed = block.se_ratio > 0
            reduced = max(1, round(in_channels * block.se_ratio))
            self.se = SqueezeExcitation(width, reduced) if squeezed else nn.Identity()
            self.project = nn.Conv2d(width, channels, 1, bias=False)
            self.project_norm = nn.BatchNorm2d(channels, eps)
        self.identity = block.skip == "identity" and stride == 1 and in_channels == channels
        self.skip = PoolingSkip(in_channels, channels, stride, eps) if block.skip == "pool" else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C, H / stride, W / stride), sides rounded up."""
        y = x
        if self.op == "mb":
            y = self.act(self.expand_norm(self.expand(y)))
        if self.op == "conv":
            y = self.act(self.conv_norm(self.conv(y)))
        else:
            y = self.se(self.act(self.depthwise_norm(self.depthwise(y))))
            y = self.project_norm(self.project(y))
        if self.identity:
            return x + y
        return y if self.skip is None else self.skip(x) + y


class MobileNetwork(nn.Module):
    """The classifier that ``architecture`` describes; input (B, ``in_chans``, H, W) of any size.

    Args:
        architecture: stem, blocks and head.
        num_classes: of the classifier.
        in_chans: of the images.
        drop_rate: dropout before the classifier.
        bn_eps: epsilon of every batch norm; TensorFlow's ports use 1e-3.
    """

    preprocessing: Preprocessing | None = None

    def __init__(
        self,
        architecture: Architecture,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        bn_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if not 0 <= drop_rate < 1:
            raise ValueError(f"drop_rate is {drop_rate}; it must be at least 0 and below 1")
        self.architecture, self.num_classes, self.num_features = architecture, num_classes, architecture.head
        act = architecture.act
        self.stem = _convolution(in_chans, architecture.stem, 3, architecture.stem_stride, act, bn_eps)
        self.blocks = nn.ModuleList(
            _layers(block, width, act, bn_eps)
            for block, width in zip(architecture.blocks, architecture.in_channels, strict=True)
        )
        self.head = _convolution(architecture.blocks[-1].channels, architecture.head, 1, 1, act, bn_eps)
        self.dropout = nn.Dropout(drop_rate)
        self.classifier = nn.Linear(architecture.head, num_classes)
        self.apply(_initialise)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, (B, head, H', W')."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of a last map, or the pooled features (B, head) with ``pre_logits``."""
        features = self.dropout(x.mean((2, 3)))
        return features if pre_logits else self.classifier(features)

    def get_classifier(self) -> nn.Module:
        """The layer that makes logits out of features."""
        return self.classifier

    def reset_classifier(self, num_classes: int) -> None:
        """Give the network a new classifier for ``num_classes``."""
        self.num_classes = num_classes
        self.classifier = nn.Linear(self.num_features, num_classes).to(self.classifier.weight)
        _initialise(self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of a batch of images."""
        return self.forward_head(self.forward_features(x))


def _convolution(in_channels: int, channels: int, kernel: int, stride: int, act: str, eps: float) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels, eps), ACTIVATION[act](inplace=True))


def _layers(block: Block, in_channels: int, act: str, eps: float) -> nn.Sequential:
    """The first layer has the stride and the change of width; the others are all alike."""
    first = Layer(block, in_channels, block.stride, act, eps)
    rest = [Layer(block, block.channels, 1, act, eps) for _ in range(block.layers - 1)]
    return nn.Sequential(first, *rest)


@torch.no_grad()
def _initialise(module: nn.Module) -> None:
    """Normal by fan-out, counted within a group; the classifier normal at 0.01."""
    if isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        module.weight.normal_(0, math.sqrt(2 / fan_out))
    elif isinstance(module, nn.Linear):
        module.weight.normal_(0, 0.01)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        module.bias.zero_()


SEPARABLE = Block("sep", 3, 16, 1, 1)
MNASNET_A1 = Architecture(
    (
        SEPARABLE,
        Block("mb", 3, 24, 2, 2, 6, 0.0, "identity"),
        Block("mb", 5, 40, 3, 2, 3, 0.25, "identity"),
        Block("mb", 3, 80, 4, 2, 6, 0.0, "identity"),
        Block("mb", 3, 112, 2, 1, 6, 0.25, "identity"),
        Block("mb", 5, 160, 3, 2, 6, 0.25, "identity"),
        Block("mb", 3, 320, 1, 1, 6),
    )
)
MNASNET_B1 = Architecture(
    (
        SEPARABLE,
        Block("mb", 3, 24, 3, 2, 3, 0.0, "identity"),
        Block("mb", 5, 40, 3, 2, 3, 0.0, "identity"),
        Block("mb", 5, 80, 3, 2, 6, 0.0, "identity"),
        Block("mb", 3, 96, 2, 1, 6, 0.0, "identity"),
        Block("mb", 5, 192, 4, 2, 6, 0.0, "identity"),
        Block("mb", 3, 320, 1, 1, 6),
    )
)
MOBILENET_V2 = Architecture(
    (
        SEPARABLE,
        Block("mb", 3, 24, 2, 2, 6, 0.0, "identity"),
        Block("mb", 3, 32, 3, 2, 6, 0.0, "identity"),
        Block("mb", 3, 64, 4, 2, 6, 0.0, "identity"),
        Block("mb", 3, 96, 3, 1, 6, 0.0, "identity"),
        Block("mb", 3, 160, 3, 2, 6, 0.0, "identity"),
        Block("mb", 3, 320, 1, 1, 6),
    ),
    act="relu6",
)


def mnasnet_a1(num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.2) -> MobileNetwork:
    """MnasNet-A1, which a search found: 3,887,038 parameters with 1,000 classes."""
    return _published(MNASNET_A1, num_classes, in_chans, drop_rate)


def mnasnet_b1(num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.2) -> MobileNetwork:
    """MnasNet-B1, found without squeeze-and-excitation: 4,383,312 parameters with 1,000 classes."""
    return _published(MNASNET_B1, num_classes, in_chans, drop_rate)


def mobilenet_v2(num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.2) -> MobileNetwork:
    """MobileNetV2, the reference of the space: 3,504,872 parameters with 1,000 classes."""
    return _published(MOBILENET_V2, num_classes, in_chans, drop_rate)


def _published(architecture: Architecture, num_classes: int, in_chans: int, drop_rate: float) -> MobileNetwork:
    model = MobileNetwork(architecture, num_classes, in_chans, drop_rate)
    model.preprocessing = Preprocessing(interpolation="bicubic")
    return model
