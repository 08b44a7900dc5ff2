"""Is attention better split into a ladder? Real handwritten digits; and a probe whose evidence lies across windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repertory.data import ArrayImages, ImageData, load
from repertory.data.preprocessing import Preprocessing
from repertory.evidence import Arm, ArmResult, Context, Experiment, Scale
from repertory.systems.pslt.model import LadderBlock, WindowAttention, Windows
from repertory.training.arms import fit_arm

SIDE, PATCH = 30, 3  # pixels of a picture and of a token
WINDOW = 5  # tokens: four windows cover a picture; odd, so that the two shifts cut differently
SHIFT = WINDOW // 2
SAME = ("unlike", "alike")


class SwinBlock(nn.Module):
    """A block of Swin: attention within windows, then two linear layers, (B, H, W, dim) to (B, H, W, dim).

    Args:
        dim: channels.
        num_heads: heads.
        shift: how far windows are moved down and right; negative: up and left.
        hidden: width between the linear layers.
    """

    def __init__(self, dim: int, num_heads: int, shift: int, hidden: int) -> None:
        super().__init__()
        self.shift = shift
        self.norm1, self.attn = nn.LayerNorm(dim), WindowAttention(dim, num_heads, WINDOW, chained=False)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) to (B, H, W, dim)."""
        windows = Windows(x.shape[1], x.shape[2], WINDOW, [self.shift], x.device)
        attended = self.attn(windows.cut(self.norm1(x), self.shift), None, windows, self.shift)
        x = x + windows.join(attended, self.shift)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class OneStage(nn.Module):
    """Blocks between a linear embedding of patches and the mean of normalised tokens: (B, 1, 30, 30) to logits."""

    def __init__(self, num_classes: int, dim: int, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.patch_embed, self.blocks = nn.Conv2d(1, dim, PATCH, PATCH), nn.Sequential(*blocks)
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, num_classes)."""
        tokens = self.blocks(self.patch_embed(x).permute(0, 2, 3, 1))
        return self.head(self.norm(tokens).mean((1, 2)))


def narrow(num_classes: int, arm: Arm, seed: int, ladders: int) -> OneStage:
    """The network of ``arm``: ``ladders`` ladder blocks, or as many unsplit ones or Swin's of about as many parameters.

    Where arms have the same layers (shifts have no parameters), they begin with the same weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dim = arm.settings["dim"]
        return OneStage(num_classes, dim, _blocks(arm, dim, ladders))


def _blocks(arm: Arm, dim: int, ladders: int) -> list[nn.Module]:
    if arm.settings["block"] == "ladder":
        shifts, chain = arm.settings["shifts"], arm.settings["chain_values"]
        return [LadderBlock(dim, 2, WINDOW, shifts, chain_values=chain) for _ in range(ladders)]
    alternating = [-SHIFT if index % 2 else 0 for index in range(ladders)]  # every second block moves, as in Swin
    if arm.settings["block"] == "unsplit":
        return [LadderBlock(dim, 2, WINDOW, [shift]) for shift in alternating]
    return [SwinBlock(dim, 2, shift, 4 * dim) for shift in alternating]


def digits(seed: int, scale: Scale) -> ImageData:
    """MNIST-5k, enlarged from 28 to ``SIDE`` pixels."""
    return load("mnist5k", size=SIDE)


def marks(seed: int, scale: Scale) -> ImageData:
    """Noise with two bright or dark marks in different windows: are they alike?"""
    generator = torch.Generator().manual_seed(seed)
    look = Preprocessing(size=(SIDE, SIDE), crop=1.0, mean=(0.5,), std=(0.25,), channels="L")
    sets = []
    for name in ("train", "val"):
        images, labels = _marked(scale.settings[name], generator)
        sets.append(ArrayImages(images, labels.tolist(), SAME, look))
    return ImageData("marks", sets[0], sets[1], SAME, "drawn apart by one seed")


def _marked(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A mark as large as a token on each side of the border between two windows, two tokens from it."""
    labels = torch.arange(count) % len(SAME)
    images = 0.5 + 0.05 * torch.randn(count, 1, SIDE, SIDE, generator=generator)
    for image, label in zip(images[:, 0], labels.tolist(), strict=True):
        rows = torch.randint(WINDOW - SHIFT, WINDOW + SHIFT, (2,), generator=generator).tolist()
        bright, turned = torch.randint(0, 2, (2,), generator=generator).tolist()
        first = 0.5 if bright else -0.5
        picture = image.T if turned else image
        columns, values = (WINDOW - SHIFT, WINDOW + SHIFT - 1), (first, first if label else -first)
        for row, column, value in zip(rows, columns, values, strict=True):
            picture[PATCH * row : PATCH * (row + 1), PATCH * column : PATCH * (column + 1)] += value
    return images.clamp(0, 1), labels


def _runner(make_data: Callable[[int, Scale], ImageData]) -> Callable[[Arm, int, Scale, Context], ArmResult]:
    def run(arm: Arm, seed: int, scale: Scale, context: Context) -> ArmResult:
        """Train the arm's network, everything else alike, and judge it once, at the end."""
        data = make_data(seed, scale)
        model = narrow(len(data.classes), arm, seed, scale.settings["ladders"])
        result = fit_arm(model, data, scale, seed, context)
        parameters = {"parameters": float(sum(p.numel() for p in model.parameters()))}
        return ArmResult.of(result, {**scale.settings, **arm.settings}, measured=parameters)

    return run


_LADDER: dict[str, Any] = {"block": "ladder", "dim": 36, "shifts": [0, -SHIFT, SHIFT], "chain_values": True}
_UNSPLIT: dict[str, Any] = {"block": "unsplit", "dim": 26}
_SWIN: dict[str, Any] = {"block": "swin", "dim": 22}
_RECIPE: dict[str, Any] = {
    "batch_size": 50,
    "optimizer": "adamw",
    "lr": 2e-3,
    "weight_decay": 0.05,
    "warmup_epochs": 0.2,
    "clip_grad": 5.0,
    "augment": "crop",
    "ladders": 2,
}
_ARMS = (
    Arm("unsplit", "the same blocks unsplit, of as many parameters", _UNSPLIT),
    Arm("swin", "blocks of Swin, of as many parameters", _SWIN),
    Arm("ladder", "ladder: chained values, progressive shift", _LADDER),
    Arm("unshifted", "ladder without shifts", {**_LADDER, "shifts": [0, 0, 0]}),
    Arm("one_way", "ladder, both shifts up and left", {**_LADDER, "shifts": [0, -SHIFT, -SHIFT]}),
    Arm("unchained", "ladder, own values in every branch", {**_LADDER, "chain_values": False}),
)

EXPERIMENT = Experiment(
    system="pslt",
    question="Do ladder blocks classify better than the same blocks unsplit, of as many blocks and parameters?",
    metric="top1",
    unit="%",
    higher_is_better=True,
    baseline="unsplit",
    method="ladder",
    arms=_ARMS,
    scales={"smoke": Scale(2, 400, _RECIPE), "small": Scale(5, 16_000, _RECIPE)},
    run=_runner(digits),
    data=f"MNIST-5k (real handwritten digits, enlarged to {SIDE} x {SIDE})",
)

PROBE = replace(
    EXPERIMENT,
    question="Does one ladder block tell whether marks in different windows are alike, better than without its shifts?",
    baseline="unshifted",
    scales={
        "smoke": Scale(2, 400, {**_RECIPE, "augment": "none", "ladders": 1, "train": 400, "val": 200}),
        "small": Scale(5, 16_000, {**_RECIPE, "augment": "none", "ladders": 1, "train": 4_000, "val": 1_000}),
    },
    run=_runner(marks),
    data="two marks on either side of the border between windows, drawn by seed",
    probe=True,
)
