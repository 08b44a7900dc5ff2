"""Which affinity classifies best: dynamic, static or a mixture? Real handwritten digits; and a probe drawn by seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from repertory.data import ArrayImages, ImageData, load
from repertory.data.preprocessing import Preprocessing
from repertory.evidence import Arm, ArmResult, Context, Experiment, PublishedDifference, Scale
from repertory.systems.container.model import Container
from repertory.training.arms import fit_arm

SIDE = 32
TARGET = 70.0  # per cent; how soon it is reached is the measure of convergence
DRAWN_CLASSES = ("rows, alike", "rows, unlike", "columns, alike", "columns, unlike")


def tiny(num_classes: int, affinities: str, mixing: str | Sequence[float], seed: int) -> Container:
    """Four narrow stages for ``SIDE`` grey pixels, every block with the affinities in question.

    Maps are 8, 4, 4 and 4 pixels wide, so that even the last stage has places to aggregate. Where both branches of a
    block exist in two arms, these begin with the same weights and cost the same: a weight of 0 is multiplied all the
    same.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Container(
            num_classes,
            1,
            embed_dims=(16, 24, 32, 48),
            depths=(1, 1, 2, 2),
            affinities=(affinities,) * 4,
            num_heads=(2, 3, 4, 6),
            mlp_ratios=(2, 2, 2, 2),
            patch_sizes=(4, 2, 1, 1),
            mixing=mixing,
            img_size=(SIDE, SIDE),
        )


def attention_share(model: nn.Module) -> float:
    """Mean weight of the dynamic affinity over all blocks of ``model``, per cent."""
    first = [module.weights()[0] for name, module in model.named_modules() if name.endswith(".aggregation")]
    return 100 * sum(torch.as_tensor(weight).item() for weight in first) / len(first)


def images_to(target: float, curve: Sequence[tuple[float, float]], budget: int) -> float:
    """Images until ``curve`` (images, per cent) first reaches ``target``, interpolated; the budget where it never does.

    The curve starts at (0, 0): before training nothing is known.
    """
    before = (0.0, 0.0)
    for images, value in curve:
        if value >= target:
            return before[0] + (images - before[0]) * (target - before[1]) / (value - before[1])
        before = (images, value)
    return float(budget)


def digits(seed: int, scale: Scale) -> ImageData:
    """MNIST-5k, enlarged from 28 to ``SIDE`` pixels."""
    return load("mnist5k", size=SIDE)


def textured_marks(seed: int, scale: Scale) -> ImageData:
    """Fine stripes (local) and two marks far apart, alike or not (distant): the class is both answers together."""
    generator = torch.Generator().manual_seed(seed)
    look = Preprocessing(size=(SIDE, SIDE), crop=1.0, mean=(0.5,), std=(0.5,), channels="L")
    sets = []
    for name in ("train", "val"):
        images, labels = _marked(scale.settings[name], generator)
        sets.append(ArrayImages(images, labels.tolist(), DRAWN_CLASSES, look))
    return ImageData("textured_marks", sets[0], sets[1], DRAWN_CLASSES, "drawn apart by one seed")


def _marked(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Stripes along rows or columns in every picture; near two opposite corners a mark, both bright or one dark."""
    labels = torch.arange(count) % len(DRAWN_CLASSES)
    images = 0.5 + 0.1 * torch.randn(count, 1, SIDE, SIDE, generator=generator)
    stripes = 0.15 * torch.tensor([1.0, -1.0]).repeat(SIDE // 2)
    for image, label in zip(images[:, 0], labels.tolist(), strict=True):
        along_columns, unlike = divmod(label, 2)
        image += stripes[None] if along_columns else stripes[:, None]
        first, swapped, flipped = torch.randint(0, 2, (3,), generator=generator).tolist()
        (top, left, bottom, right) = torch.randint(0, 6, (4,), generator=generator).tolist()
        rows, columns = (top, SIDE - 5 - bottom), (left, SIDE - 5 - right)
        signs = (1 - 2 * first, (1 - 2 * first) * (1 - 2 * unlike))
        for place in range(2):
            down, across = rows[place ^ flipped], columns[place ^ swapped]
            image[down : down + 5, across : across + 5] += 0.5 * signs[place]
    return images.clamp(0, 1), labels


def _runner(make_data: Callable[[int, Scale], ImageData]) -> Callable[[Arm, int, Scale, Context], ArmResult]:
    def run(arm: Arm, seed: int, scale: Scale, context: Context) -> ArmResult:
        """Train the tiny network with the arm's affinities, everything else alike, and judge it at the end."""
        data = make_data(seed, scale)
        model = tiny(len(data.classes), arm.settings["affinities"], arm.settings["mixing"], seed)
        result = fit_arm(model, data, scale, seed, context)
        learned = [(images, 100 * value) for images, value in result.curves["val_top1"]]
        measured = {
            "attention_share": attention_share(result.model),
            f"images_to_{TARGET:.0f}": images_to(TARGET, learned, scale.images),
        }
        return ArmResult.of(result, {**scale.settings, **arm.settings}, measured=measured)

    return run


_RECIPE: dict[str, Any] = {
    "batch_size": 50,
    "optimizer": "adamw",
    "evaluate_every": 1,
    "lr": 2e-3,
    "weight_decay": 0.05,
    "warmup_epochs": 0.2,
    "clip_grad": 5.0,
    "augment": "crop",
}
_ARMS = (
    Arm("attention", "dynamic: attention (s = 1)", {"affinities": "dynamic+local", "mixing": [1.0, 0.0]}),
    Arm("mixture", "dynamic and local, s learned", {"affinities": "dynamic+local", "mixing": "convex"}),
    Arm("convolution", "local: 5 x 5 depth-wise (s = 0)", {"affinities": "dynamic+local", "mixing": [0.0, 1.0]}),
    Arm("dense", "dynamic and dense, s learned", {"affinities": "dynamic+dense", "mixing": "convex"}),
)

EXPERIMENT = Experiment(
    system="container",
    question="Does a learned mixture of attention and convolution classify better than attention alone?",
    metric="top1",
    unit="%",
    higher_is_better=True,
    baseline="attention",
    method="mixture",
    arms=_ARMS,
    scales={"smoke": Scale(2, 1_000, _RECIPE), "small": Scale(5, 12_000, _RECIPE)},
    run=_runner(digits),
    data=f"MNIST-5k (real handwritten digits, enlarged to {SIDE} x {SIDE})",
    published=PublishedDifference(
        2.8, "points", "ImageNet top-1, CONTAINER (another architecture) against DeiT-Small", "abstract"
    ),
)

PROBE = replace(
    EXPERIMENT,
    question="Does a learned mixture tell a fine texture and the likeness of two distant marks better than attention?",
    scales={
        "smoke": Scale(2, 1_000, {**_RECIPE, "augment": "none", "train": 600, "val": 300}),
        "small": Scale(5, 12_000, {**_RECIPE, "augment": "none", "train": 4_000, "val": 1_000}),
    },
    run=_runner(textured_marks),
    data="stripes along rows or columns with two marks near opposite corners, drawn by seed",
    probe=True,
    published=None,
)
