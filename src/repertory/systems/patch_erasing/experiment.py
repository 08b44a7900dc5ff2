"""Does it matter that what is erased are patches? Real handwritten digits, few labels, a small vision transformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.transforms.v2 import RandomErasing

from repertory.data import load
from repertory.evidence import Arm, ArmResult, Context, Experiment, Scale
from repertory.systems.patch_erasing.method import PatchErasing
from repertory.systems.patch_erasing.plots import plot_periods
from repertory.training.arms import fit_arm
from repertory.training.checkpoint import load_checkpoint
from repertory.training.evaluation import evaluate
from repertory.training.method import Batch, Progress

SIDE, PATCH = 8, 2


class RectangleErasing(PatchErasing):
    """The rival of patches: one rectangle of the same area, by torchvision's random erasing."""

    def transform_batch(self, batch: Batch, progress: Progress) -> Batch:
        """Erase a rectangle of the area ``rate`` from every image, anywhere."""
        eraser = RandomErasing(p=1.0, scale=(self.rate, self.rate))
        return Batch(torch.stack([eraser(image) for image in batch.images]), batch.labels, batch.indices)


def method_of(settings: Mapping[str, Any]) -> PatchErasing:
    """What erases in an arm of these settings; at rate 0 it only measures."""
    rectangle, rate = settings["unit"] == "rectangle", settings["rate"]
    return (RectangleErasing if rectangle else PatchErasing)(rate, 1 if settings["unit"] == "pixel" else PATCH)


def small_vit(classes: int, settings: Mapping[str, Any], seed: int) -> nn.Module:
    """A narrow vision transformer over 4 x 4 patches of 2 pixels a side."""
    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionTransformer(
            img_size=SIDE,
            patch_size=PATCH,
            in_chans=1,
            num_classes=classes,
            embed_dim=settings["width"],
            depth=settings["depth"],
            num_heads=settings["width"] // 16,
            mlp_ratio=2,
            global_pool="avg",
        )


def picture_of(history: Sequence[Mapping[str, float]]) -> np.ndarray:
    """The periods of a run as a picture (H, W, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(plot_periods(history))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def run(arm: Arm, seed: int, scale: Scale, context: Context) -> ArmResult:
    """Train with the arm's way of erasing; its curves show how many samples were easy and hard meanwhile."""
    settings = {**scale.settings, **arm.settings}
    data = load("digits", val_fraction=settings["val_fraction"])
    result = fit_arm(small_vit(len(data.classes), settings, seed), data, scale, seed, context, [method_of(settings)])
    history = load_checkpoint(context.out / "checkpoints" / "last.ckpt")["methods"][0]["state"]["history"]
    trained = evaluate(result.model, data.train)
    gap = {"train_top1_error": 100 * trained["top1_error"]}
    pictures = {"Easy, moderate and hard samples, and the periods of training": picture_of(history)} if not seed else {}
    return ArmResult.of(result, settings, ("top1_error", "ece"), gap, pictures)


# One seed, 100, was seen when the data and the baseline were chosen: top-1 error 13.1 with nothing erased, 16.1 with a
# rectangle, 11.6 with 30% of the patches; so nothing erased is the stronger rival. On MNIST-5k with patches of 4 x 4 no
# arm that erases had learnt within the budget. The learning rate was not tuned for any arm.
_RECIPE = {
    "batch_size": 40,
    "optimizer": "adamw",
    "lr": 3e-3,
    "weight_decay": 0.05,
    "warmup_epochs": 2.0,
    "clip_grad": 5.0,
    "width": 32,
    "depth": 2,
    "val_fraction": 0.8,
}

EXPERIMENT = Experiment(
    system="patch_erasing",
    question="Does erasing scattered patches err less than erasing nothing?",
    metric="top1_error",
    unit="%",
    higher_is_better=False,
    baseline="none",
    method="patch_30",
    arms=(
        Arm("none", "nothing erased", {"unit": "patch", "rate": 0.0}),
        Arm("rectangle", "one rectangle, 30% of the area (random erasing)", {"unit": "rectangle", "rate": 0.3}),
        Arm("pixel", "pixels, 30% of the area", {"unit": "pixel", "rate": 0.3}),
        Arm("patch_15", "patches of 2 x 2, 15% of them", {"unit": "patch", "rate": 0.15}),
        Arm("patch_30", "patches of 2 x 2, 30% of them", {"unit": "patch", "rate": 0.3}),
    ),
    scales={
        "smoke": Scale(2, 1_440, {**_RECIPE, "width": 16, "depth": 1}),
        "small": Scale(5, 36_000, _RECIPE),
    },
    run=run,
    data="scikit-learn digits (real, 8 x 8), 36 labels a class",
)
