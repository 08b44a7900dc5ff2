"""Does it matter that the prediction behind the gate is supervised? Real digits over photographs; scenes as a probe.

All arms have the same images, the same loss on every stage, and the same parameters at inference within 1%. In the
arms whose gate predicts nothing to supervise, the first stage's loss is made by a head of its own, training-only: so
the arms differ in what gates, and not in how often the first stage is taught.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from repertory.data.composites import Recipe, composites
from repertory.data.preprocessing import Preprocessing
from repertory.data.segmentation import ArraySegmentation, SegmentationData
from repertory.evidence import Arm, ArmResult, Context, Experiment, Scale
from repertory.systems.spgnet.model import SPGNet
from repertory.training.arms import fit_arm
from repertory.training.segmentation import sample_pictures

SHALLOW, DEEP = (1, 1, 1, 1), (6, 5, 4, 5)  # depths of each of two stages, and of one with the parameters of both
WIDTHS, DECODER_WIDTH = (32, 48, 64, 96), 32
SCENE_CLASSES = ("ground", "plain disc", "striped disc", "plain box", "striped box", "bar")


def narrow(arm: Arm, num_classes: int, seed: int) -> SPGNet:
    """The network of ``arm`` and ``seed``; arms of two stages begin with the same weights in the layers they share."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _network(arm.settings["gate"], arm.settings["stages"], num_classes)
        if model.gate_kind != "spg" and arm.settings["stages"] > 1:
            torch.manual_seed(seed)
            common = _network("spg", arm.settings["stages"], num_classes).state_dict()
            own = model.state_dict()
            model.load_state_dict({name: value for name, value in common.items() if name in own}, strict=False)
    return model


def _network(gate: str, stages: int, num_classes: int) -> SPGNet:
    return SPGNet(
        num_classes,
        stages=stages,
        gate=gate,
        gate_settings={"hidden": num_classes} if gate == "se" else {},  # then it has the parameters of SPG
        widths=WIDTHS,
        depths=SHALLOW if stages > 1 else DEEP,
        decoder_width=DECODER_WIDTH,
    )


def digits_over_photographs(seed: int, scale: Scale) -> SegmentationData:
    """Large digits, background besides: scenes drawn by ``seed``, the same for all arms."""
    recipe = Recipe(objects=(1, 2), scale=(0.6, 1.0), digits=tuple(scale.settings["digits"]))
    return composites(scale.settings["side"], scale.settings["train"], scale.settings["val"], seed, recipe)


def scenes(seed: int, scale: Scale) -> SegmentationData:
    """Discs, boxes and bars, plain or striped, in random colours, hiding each other before a noisy ground."""
    generator = torch.Generator().manual_seed(seed)
    side = scale.settings["side"]
    look = Preprocessing(size=(side, side), crop=1.0, mean=(0.5,) * 3, std=(0.25,) * 3)
    parts = []
    for name in ("train", "val"):
        drawn = [_scene(side, generator) for _ in range(scale.settings[name])]
        images, masks = (torch.stack(one) for one in zip(*drawn, strict=True))
        parts.append(ArraySegmentation(images, masks, SCENE_CLASSES, look))
    return SegmentationData("scenes", parts[0], parts[1], SCENE_CLASSES, split="drawn apart by one seed")


def _scene(side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One picture (3, side, side) in [0, 1] and its classes (side, side): three objects, later ones in front."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    image = torch.rand(3, 1, 1, generator=generator).expand(3, side, side).clone()
    mask = torch.zeros(side, side, dtype=torch.int64)
    for _ in range(3):
        kind = int(torch.randint(1, len(SCENE_CLASSES), (1,), generator=generator))
        down, right, size = (torch.rand(3, generator=generator) * side).tolist()
        radius = side / 8 + size / 8  # an eighth to a quarter of the side
        height, width = (rows - down).abs(), (columns - right).abs()
        inside = {
            1: height**2 + width**2 <= radius**2,
            2: height**2 + width**2 <= radius**2,
            3: (height <= radius) & (width <= radius),
            4: (height <= radius) & (width <= radius),
            5: height <= radius / 3,
        }[kind]
        color = torch.rand(3, 1, 1, generator=generator)
        stripes = ((rows + columns) % 8 < 4).float() if kind in (2, 4) else torch.ones(side, side)
        image = torch.where(inside, color * (0.3 + 0.7 * stripes), image)
        mask[inside] = kind
    noise = 0.05 * torch.randn(image.shape, generator=generator)
    return (image + noise).clamp(0, 1), mask


def border_contrast(guide: Tensor, mask: Tensor) -> float:
    """How differently a gate weighs pixels at class borders: mean over channels of |mean there - mean elsewhere|.

    ``guide`` is (B, C, h, w), ``mask`` (B, H, W) classes, read at the centres of the gate's pixels; a border pixel has
    another class among its eight neighbours. 0 where there is no border, or nothing else.
    """
    small = F.interpolate(mask[:, None].float(), size=guide.shape[-2:], mode="nearest-exact")
    high, low = F.max_pool2d(small, 3, 1, 1), -F.max_pool2d(-small, 3, 1, 1)
    border = (high != low)[:, 0]
    if not border.any() or border.all():
        return 0.0
    weights = guide.movedim(1, -1)
    return float((weights[border].mean(0) - weights[~border].mean(0)).abs().mean())


@torch.no_grad()
def _guidance(model: Any, data: Any) -> tuple[float, np.ndarray]:
    """Contrast over the validation pictures, and the gate of the first, averaged over channels, as a grey picture."""
    images, masks = zip(*(data.val.whole(index) for index in range(len(data.val))), strict=True)
    (guide,) = model.eval().guidance(torch.stack(images))
    shown = F.interpolate(guide[:1].mean(1, keepdim=True), size=images[0].shape[-2:], mode="nearest")[0, 0]
    span = (shown - shown.min()) / (shown.max() - shown.min()).clamp(min=1e-6)
    grey = (255 * span).round().byte().numpy()
    return border_contrast(guide, torch.stack(masks)), np.stack([grey] * 3, -1)


def _runner(make_data: Callable[[int, Scale], SegmentationData]) -> Callable[[Arm, int, Scale, Context], ArmResult]:
    def run(arm: Arm, seed: int, scale: Scale, context: Context) -> ArmResult:
        """Train the network of the arm, everything else alike, and judge its last stage once, at the end."""
        data = make_data(seed, scale)
        model = narrow(arm, len(data.classes), seed)
        result = fit_arm(model, data, scale, seed, context)
        measured, pictures = {}, sample_pictures(result.model, data, 2)
        if arm.settings["gate"] in ("spg", "unsupervised"):
            measured["border_contrast"], pictures["Picture 1: gate"] = _guidance(result.model, data)
        return ArmResult.of(result, {**scale.settings, **arm.settings}, measured=measured, pictures=pictures)

    return run


_RECIPE: dict[str, Any] = {
    "side": 48,
    "digits": [0, 1],
    "batch_size": 8,
    "optimizer": "adamw",
    "schedule": "cosine",
    "aux_weight": 1.0,  # every stage counts alike
    "lr": 3e-3,
    "weight_decay": 0.01,
    "warmup_epochs": 0.5,
    "clip_grad": 5.0,
    "augment": "crop",
}

EXPERIMENT = Experiment(
    system="spgnet",
    question="Does a gate made by a supervised prediction segment better than the same gate unsupervised?",
    metric="miou",
    unit="%",
    higher_is_better=True,
    baseline="unsupervised",
    method="spg",
    arms=(
        Arm("deeper", "one deeper stage", {"gate": "none", "stages": 1}),
        Arm("plain", "two stages, no gate", {"gate": "none", "stages": 2}),
        Arm("se", "two stages, squeeze-and-excite", {"gate": "se", "stages": 2}),
        Arm("unsupervised", "two stages, SPG's gate unsupervised", {"gate": "unsupervised", "stages": 2}),
        Arm("spg", "two stages, SPG", {"gate": "spg", "stages": 2}),
    ),
    scales={
        "smoke": Scale(2, 64, {**_RECIPE, "train": 32, "val": 8}),
        "small": Scale(5, 4_000, {**_RECIPE, "train": 300, "val": 100}),
    },
    run=_runner(digits_over_photographs),
    data="composites: real digits 0 and 1 over real photographs, 48 x 48",
)

PROBE = replace(
    EXPERIMENT,
    question="In scenes of plain and striped shapes, does supervising the gate's prediction segment better?",
    scales={
        "smoke": Scale(2, 64, {**_RECIPE, "augment": "none", "train": 32, "val": 8}),
        "small": Scale(5, 4_000, {**_RECIPE, "augment": "none", "train": 500, "val": 100}),
    },
    run=_runner(scenes),
    data="discs, boxes and bars, plain or striped, 48 x 48, drawn by seed",
    probe=True,
)
