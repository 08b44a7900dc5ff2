"""A small plain convolutional network: the honest little classifier that experiments at bundled-data scale share."""

from __future__ import annotations

from torch import Tensor, nn


class ConvNet(nn.Module):
    """Three stages of two 3x3 convolutions with batch norm and ReLU, halved between stages, pooled, one linear layer.

    Input (B, ``in_chans``, H, W) of any size from 4 x 4; output logits (B, ``num_classes``). Features are
    ``4 * width`` wide.
    """

    def __init__(self, num_classes: int = 10, in_chans: int = 1, width: int = 16) -> None:
        super().__init__()
        self.num_classes, self.num_features = num_classes, 4 * width
        layers: list[nn.Module] = []
        channels = in_chans
        for stage in range(3):
            for step in range(2):
                stride = 2 if stage and not step else 1
                out = width * 2**stage
                layers.append(nn.Conv2d(channels, out, 3, stride, 1, bias=False))
                layers += [nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
                channels = out
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(self.num_features, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, (B, num_features, H / 4, W / 4)."""
        return self.body(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of a last map, or the pooled features (B, num_features) with ``pre_logits``."""
        features = x.mean((2, 3))
        return features if pre_logits else self.head(features)

    def get_classifier(self) -> nn.Module:
        """The layer that makes logits out of features."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Give the network a new head for ``num_classes``."""
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes).to(self.head.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of images."""
        return self.forward_head(self.forward_features(x))
