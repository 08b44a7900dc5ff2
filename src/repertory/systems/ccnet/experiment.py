"""Does attention along rows and columns help, and twice more than once? Real digits over photographs, and far marks.

All arms have one network with the same parameters; they differ in how often its attention layer is applied. Without
attention the head is the same convolutions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from repertory.data.composites import Recipe, composites
from repertory.data.preprocessing import Preprocessing
from repertory.data.segmentation import IGNORE_INDEX, ArraySegmentation, SegmentationData
from repertory.evidence import Arm, ArmResult, Context, Experiment, PublishedDifference, Scale
from repertory.systems.ccnet.model import CCNet
from repertory.training.arms import fit_arm
from repertory.training.segmentation import sample_pictures

COLOURS = ("red", "green", "blue")  # of marks


class Backbone(nn.Module):
    """Two maps at stride 4 whose positions see 23 and 39 pixels: what lies farther off must come by attention.

    Input (B, ``in_chans``, H, W); output (B, ``width``, H / 4, W / 4) twice, sizes rounded up.
    """

    def __init__(self, in_chans: int = 3, width: int = 32) -> None:
        super().__init__()

        def layers(channels: int, strides: tuple[int, ...]) -> nn.Sequential:
            made: list[nn.Module] = []
            for stride in strides:
                made += [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            return nn.Sequential(*made)

        self.stem, self.body = layers(in_chans, (2, 2, 1, 1)), layers(width, (1, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Both maps."""
        before = self.stem(x)
        return [before, self.body(before)]


def narrow(recurrence: int, num_classes: int, seed: int, width: int = 32) -> CCNet:
    """The network of ``seed``: applications have no parameters of their own, so all arms begin alike."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CCNet(
            num_classes,
            Backbone(3, width),
            channels=(width, width),
            recurrence=recurrence,
            inner_channels=width,
            out_channels=width,
            aux_channels=width,
        )


def digits_over_photographs(arm: Arm, seed: int, scale: Scale) -> SegmentationData:
    """Large digits, background besides: scenes drawn by ``seed``, the same for all arms."""
    recipe = Recipe(objects=(1, 2), scale=(0.6, 1.0), digits=tuple(scale.settings["digits"]))
    return composites(scale.settings["side"], scale.settings["train"], scale.settings["val"], seed, recipe)


def far_marks(arm: Arm, seed: int, scale: Scale) -> SegmentationData:
    """Noise with one small coloured mark: what colour is it? Asked of all pixels, or of its row and column alone."""
    side, generator = scale.settings["side"], torch.Generator().manual_seed(seed)
    look = Preprocessing(size=(side, side), crop=1.0, mean=(0.25,) * 3, std=(0.25,) * 3)
    parts = []
    for part in ("train", "val"):
        images, masks = _marks(scale.settings[part], side, arm.settings["asked"] == "cross", generator)
        parts.append(ArraySegmentation(images, masks, COLOURS, look))
    return SegmentationData("far_marks", parts[0], parts[1], COLOURS, split="drawn apart by one seed")


def _marks(count: int, side: int, cross: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (N, 3, side, side) with a mark of 4 x 4 pixels, and what every pixel is to answer (N, side, side)."""
    labels = torch.arange(count) % len(COLOURS)
    images = 0.5 * torch.rand(count, 3, side, side, generator=generator)
    masks = labels[:, None, None].repeat(1, side, side)
    places = 4 * torch.randint(0, side // 4, (count, 2), generator=generator)
    for image, mask, label, (y, x) in zip(images, masks, labels.tolist(), places.tolist(), strict=True):
        image[:, y : y + 4, x : x + 4] = 0
        image[label, y : y + 4, x : x + 4] = 1
        if cross:
            off = torch.ones(side, side, dtype=torch.bool)
            off[y : y + 4], off[:, x : x + 4] = False, False
            mask[off] = IGNORE_INDEX
    return images, masks


def _runner(make_data: Callable[[Arm, int, Scale], SegmentationData]) -> Callable[..., ArmResult]:
    def run(arm: Arm, seed: int, scale: Scale, context: Context) -> ArmResult:
        """Train the network with the arm's number of applications and judge it once, at the end."""
        data = make_data(arm, seed, scale)
        model = narrow(arm.settings["recurrence"], len(data.classes), seed, scale.settings["width"])
        result = fit_arm(model, data, scale, seed, context)
        trained: Any = result.model
        gamma = {"gamma": abs(float(trained.head.attention.gamma.detach()))}
        pictures = sample_pictures(result.model, data, 2)
        return ArmResult.of(result, {**scale.settings, **arm.settings}, measured=gamma, pictures=pictures)

    return run


_RECIPE: dict[str, Any] = {
    "batch_size": 16,
    "optimizer": "adamw",
    "lr": 5e-3,
    "weight_decay": 0.01,
    "warmup_epochs": 0.5,
    "clip_grad": 5.0,
    "width": 32,
}
_DIGITS: dict[str, Any] = {**_RECIPE, "side": 48, "digits": [0, 1, 7], "augment": "crop"}
_MARKS: dict[str, Any] = {**_RECIPE, "side": 64, "augment": "none"}
_ARMS = (
    Arm("none", "R = 0, no attention", {"recurrence": 0, "asked": "all"}),
    Arm("once", "R = 1", {"recurrence": 1, "asked": "all"}),
    Arm("twice", "R = 2", {"recurrence": 2, "asked": "all"}),
)

EXPERIMENT = Experiment(
    system="ccnet",
    question="Does criss-cross attention applied twice segment better than the same head without attention?",
    metric="miou",
    unit="%",
    higher_is_better=True,
    baseline="none",
    method="twice",
    arms=_ARMS,
    scales={
        "smoke": Scale(2, 96, {**_DIGITS, "train": 48, "val": 12}),
        "small": Scale(5, 4_000, {**_DIGITS, "train": 400, "val": 100}),
    },
    run=_runner(digits_over_photographs),
    data="composites: real digits 0, 1 and 7 over real photographs, 48 x 48",
    published=PublishedDifference(
        4.7, "points", "Cityscapes val mIoU, ResNet-101, R = 2 against no attention", "third-party"
    ),
)

PROBE = replace(
    EXPERIMENT,
    question="Does a second application carry what lies in neither the row nor the column of a pixel?",
    baseline="once",
    method="twice",
    arms=(
        *_ARMS,
        Arm("thrice", "R = 3", {"recurrence": 3, "asked": "all"}),
        Arm("once_cross", "R = 1, asked in row and column alone", {"recurrence": 1, "asked": "cross"}),
    ),
    scales={
        "smoke": Scale(2, 96, {**_MARKS, "train": 48, "val": 12}),
        "small": Scale(5, 4_800, {**_MARKS, "train": 600, "val": 150}),
    },
    run=_runner(far_marks),
    data="noise of 64 x 64 pixels with one coloured mark, drawn by seed",
    probe=True,
    published=None,
)
