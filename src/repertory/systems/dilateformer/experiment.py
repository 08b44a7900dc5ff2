"""Do several dilations at once beat one? Real handwritten digits; and the sheet's dot grids as a synthetic probe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from repertory.data import ArrayImages, ImageData, load
from repertory.data.preprocessing import Preprocessing
from repertory.evidence import Arm, ArmResult, Context, Experiment, PublishedDifference, Scale
from repertory.systems.dilateformer.model import DilateFormer
from repertory.training.arms import fit_arm

PERIODS = (2, 4, 6)  # pixels between dots
GRID_SIDE = 48


def narrow(num_classes: int, in_chans: int, width: int, dilation: list[int]) -> DilateFormer:
    """Four stages of one block each; both shallow ones dilated, as in the published pattern."""
    return DilateFormer(
        num_classes, in_chans, embed_dim=width, depths=(1, 1, 1, 1), num_heads=(3, 6, 6, 6), dilation=dilation
    )


class DilatedConvolution(nn.Module):
    """Depth-wise dilated convolution in the place of dilated attention: (B, H, W, dim), channels in the same groups."""

    def __init__(self, dim: int, dilation: list[int]) -> None:
        super().__init__()
        part = dim // len(dilation)
        self.value, self.proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.parts = nn.ModuleList(
            nn.Conv2d(part, part, 3, padding=rate, dilation=rate, groups=part) for rate in dilation
        )

    def forward(self, x: Tensor) -> Tensor:
        """Each group convolved at its rate, then mixed."""
        groups = self.value(x).permute(0, 3, 1, 2).chunk(len(self.parts), 1)
        mixed = torch.cat([convolve(group) for convolve, group in zip(self.parts, groups, strict=True)], 1)
        return self.proj(mixed.permute(0, 2, 3, 1))


def convolutional(num_classes: int, in_chans: int, width: int, dilation: list[int]) -> DilateFormer:
    """The narrow network with dilated convolutions where it attends to dilated windows."""
    model = narrow(num_classes, in_chans, width, dilation)
    for stage in range(2):
        for block in model.stages.get_submodule(f"{stage}.blocks").children():
            block.attn = DilatedConvolution(width * 2**stage, dilation)
    return model


def digits(seed: int, scale: Scale) -> ImageData:
    """MNIST-5k, enlarged so that the maps of the shallow stages are wider than the widest window."""
    return load("mnist5k", size=scale.settings["side"])


def dot_grids(seed: int, scale: Scale) -> ImageData:
    """Grids of dots ``PERIODS`` apart, shifted, noisy, of random brightness: what class is the period?"""
    generator = torch.Generator().manual_seed(seed)
    parts = [_grids(scale.settings[name], generator) for name in ("train", "val")]
    classes = tuple(f"{period} px" for period in PERIODS)
    look = Preprocessing(size=(GRID_SIDE, GRID_SIDE), crop=1.0, mean=(0.5,), std=(0.5,), channels="L")
    sets = [ArrayImages(images, labels.tolist(), classes, look) for images, labels in parts]
    return ImageData("dot_grids", sets[0], sets[1], classes, "drawn apart by one seed")


def _grids(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % len(PERIODS)
    images = 0.3 * torch.rand(count, 1, GRID_SIDE, GRID_SIDE, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        down, right = torch.randint(0, PERIODS[label], (2,), generator=generator).tolist()
        image[:, down :: PERIODS[label], right :: PERIODS[label]] += 0.3 + 0.4 * torch.rand(1, generator=generator)
    return images, labels


def _runner(make_data: Callable[[int, Scale], ImageData]) -> Callable[[Arm, int, Scale, Context], ArmResult]:
    def run(arm: Arm, seed: int, scale: Scale, context: Context) -> ArmResult:
        """Train the narrow network with the arm's rates, everything else alike, and judge it once, at the end."""
        data = make_data(seed, scale)
        build = convolutional if arm.settings["operator"] == "convolution" else narrow
        model = _drawn(build, seed, len(data.classes), scale.settings["width"], arm.settings["dilation"])
        result = fit_arm(model, data, scale, seed, context)
        return ArmResult.of(result, {**scale.settings, **arm.settings})

    return run


def _drawn(build: Callable[..., DilateFormer], seed: int, classes: int, width: int, dilation: list[int]) -> nn.Module:
    """The network of ``seed``: rates have no parameters, so all arms that attend begin with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(classes, 1, width, dilation)


_RECIPE: dict[str, Any] = {
    "batch_size": 32,
    "optimizer": "adamw",
    "lr": 2e-3,
    "weight_decay": 0.05,
    "warmup_epochs": 0.2,
    "clip_grad": 5.0,
    "augment": "crop",
    "width": 24,
}
_ARMS = (
    Arm("single", "one rate: 1, 1, 1", {"operator": "attention", "dilation": [1, 1, 1]}),
    Arm("multi", "MSDA: 1, 2, 3", {"operator": "attention", "dilation": [1, 2, 3]}),
    Arm("wide", "one rate: 3, 3, 3", {"operator": "attention", "dilation": [3, 3, 3]}),
    Arm("permuted", "MSDA, order 3, 1, 2", {"operator": "attention", "dilation": [3, 1, 2]}),
    Arm("convolution", "depth-wise dilated convolution", {"operator": "convolution", "dilation": [1, 2, 3]}),
)

EXPERIMENT = Experiment(
    system="dilateformer",
    question="Do dilations 1, 2, 3 side by side classify better than the plain sliding window of the same cost?",
    metric="top1",
    unit="%",
    higher_is_better=True,
    baseline="single",
    method="multi",
    arms=_ARMS,
    scales={
        "smoke": Scale(2, 480, {**_RECIPE, "width": 12, "side": 48}),
        "small": Scale(5, 12_800, {**_RECIPE, "side": 48}),
    },
    run=_runner(digits),
    data="MNIST-5k (real handwritten digits, enlarged to 48 x 48)",
    published=PublishedDifference(
        0.3, "points", "ImageNet top-1, Tiny, against plain sliding windows in stages 1-2", "third-party"
    ),
)

PROBE = replace(
    EXPERIMENT,
    question="Do dilations 1, 2, 3 side by side tell the spacing of a dot grid better than rate 1 alone?",
    scales={
        "smoke": Scale(2, 1_600, {**_RECIPE, "augment": "none", "train": 600, "val": 300}),
        "small": Scale(5, 16_000, {**_RECIPE, "augment": "none", "train": 3_000, "val": 900}),
    },
    run=_runner(dot_grids),
    data=f"dot grids with periods of {PERIODS} pixels, drawn by seed",
    probe=True,
    published=None,
)
