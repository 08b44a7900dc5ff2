"""What the tests of segmentation share: coloured squares, small segmentors."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from repertory.data import ArraySegmentation, Preprocessing, SegmentationData
from repertory.training import SegmentationSettings

CLASSES = ("ground", "red", "green", "blue")
COLOURS = torch.tensor([[30, 30, 30], [200, 30, 30], [30, 200, 30], [30, 30, 200]], dtype=torch.float)
PLAIN = Preprocessing(size=(16, 16), crop=1.0, mean=(0.3,) * 3, std=(0.3,) * 3)
QUICK = {"accelerator": "cpu", "tensorboard": False, "batch_size": 8, "lr": 0.1, "augment": "none"}


def squares(train=32, val=8, side=16):
    """Squares of a class's colour on grey ground, noisy; the first row of every mask is to be ignored."""
    random = torch.Generator().manual_seed(0)
    masks = torch.zeros(train + val, side, side, dtype=torch.long)
    for index, mask in enumerate(masks):
        top, left = torch.randint(side // 2, (2,), generator=random).tolist()
        mask[top : top + side // 2, left : left + side // 2] = 1 + index % 3
    noise = 20 * torch.randn(len(masks), 3, side, side, generator=random)
    images = (COLOURS[masks].permute(0, 3, 1, 2) + noise).clamp(0, 255).byte()
    masks[:, 0] = 255
    parts = [
        ArraySegmentation(images[part], masks[part], CLASSES, PLAIN)
        for part in (slice(train), slice(train, train + val))
    ]
    return SegmentationData("squares", parts[0], parts[1], CLASSES)


class Segmentor(nn.Module):
    """Two convolutions at stride 2 and a linear layer a pixel; auxiliary logits and features while it trains."""

    def __init__(self, classes=4, auxiliary=True, dropout=0.0, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.auxiliary = auxiliary
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.norm, self.drop = nn.BatchNorm2d(8), nn.Dropout2d(dropout)
        self.head = nn.Conv2d(8, classes, 1)
        if auxiliary:
            self.side = nn.Conv2d(8, classes, 1)

    def get_classifier(self):
        return self.head

    def forward(self, x):
        def enlarged(scores):
            return F.interpolate(scores, x.shape[2:], mode="bilinear", align_corners=False)

        early = self.norm(self.first(x)).relu()
        late = self.drop(self.second(early).relu())
        out = enlarged(self.head(late))
        if not (self.training and self.auxiliary):
            return out
        return {"out": out, "aux": [enlarged(self.side(early))], "features": late}


def settings(**changes):
    return SegmentationSettings(**{**QUICK, **changes})
