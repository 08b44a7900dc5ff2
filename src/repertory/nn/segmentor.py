"""The plain segmentor over any backbone that gives maps: a 1x1 convolution and bilinear enlargement."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FINEST = 8  # stride of the maps that are scored


class LinearSegmentor(nn.Module):
    """Scores each place of a backbone's maps by one linear layer, as the plainest fully convolutional network does.

    Taken is the last map of each stride from 8 on: of a backbone dilated to stride 8 its last map alone, of another its
    pyramid, enlarged to the finest of these maps and concatenated; of one without maps of stride 8 or more, the last.
    Input (B, C, H, W); output logits (B, ``num_classes``, H, W).

    Args:
        backbone: gives a list of maps (B, D, h, w), or (B, h, w, D) with ``channels_last``.
        channels: D of each map.
        strides: pixels of the image between neighbouring places, of each map.
        num_classes: how many classes are scored.
        channels_last: whether the maps end in their channels.
    """

    def __init__(
        self,
        backbone: nn.Module,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        last = {stride: place for place, stride in enumerate(strides)}
        self.places = [place for stride, place in sorted(last.items()) if stride >= FINEST] or [len(strides) - 1]
        self.channels_last = channels_last
        self.num_features, self.num_classes = sum(channels[place] for place in self.places), num_classes
        self.backbone = backbone
        self.head = nn.Conv2d(self.num_features, num_classes, 1)

    def forward_features(self, x: Tensor) -> Tensor:
        """The map (B, num_features, h, w) that is scored."""
        given = self.backbone(x)
        maps = [given[place].permute(0, 3, 1, 2) if self.channels_last else given[place] for place in self.places]
        size = maps[0].shape[2:]
        return torch.cat(
            [maps[0], *(F.interpolate(m, size, mode="bilinear", align_corners=False) for m in maps[1:])], 1
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits of each pixel."""
        return F.interpolate(self.head(self.forward_features(x)), x.shape[2:], mode="bilinear", align_corners=False)

    def get_classifier(self) -> nn.Module:
        """The layer that makes logits out of features."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Give the network a new head for ``num_classes``."""
        self.num_classes = num_classes
        self.head = nn.Conv2d(self.num_features, num_classes, 1).to(self.head.weight.device)
