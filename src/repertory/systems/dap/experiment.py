"""At three quarters of the images, does dropping easy ones err less than stopping sooner? Real handwritten digits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repertory.data import ArrayImages, ImageData, load
from repertory.evidence import Arm, ArmResult, Context, Experiment, Scale
from repertory.nn import ConvNet
from repertory.systems.dap.method import Dap
from repertory.systems.dap.selection import LowestFraction, lowest
from repertory.training.arms import fit_arm
from repertory.training.evaluation import evaluate
from repertory.training.randomness import generator

LABEL_NOISE = 0.15


class RandomFraction(LowestFraction):
    """The rival of the scores: as many samples are left out, but any."""

    def easy(self, scores: Tensor, groups: Tensor, epoch: int) -> Tensor:
        """Some of each group, other ones each epoch."""
        draws = torch.rand(len(scores), generator=generator("random drop", epoch, len(scores)))
        return lowest(draws, groups.cpu(), self.dropped)


def method_of(settings: Mapping[str, Any]) -> list[Dap]:
    """The method that an arm of these settings trains with, if any."""
    if "fraction" not in settings:
        return []
    names = ("warmup", "period", "fraction", "final")
    dap = Dap(**{name: settings[name] for name in names})
    if settings["drop"] == "random":
        dap.rule = RandomFraction(settings["fraction"])
    return [dap]


def by_difficulty(data: ImageData) -> tuple[np.ndarray, np.ndarray]:
    """The hardest and the easiest quarter of the validation samples: the same for every arm and seed.

    A sample is hard where a logistic regression of the pixels, fitted to the training data, gives its label a low
    probability.
    """
    from sklearn.linear_model import LogisticRegression

    pixels, labels = zip(*((images_of(part), np.array(part.targets)) for part in (data.train, data.val)))
    fitted = LogisticRegression(C=0.01, tol=1e-2, max_iter=300).fit(pixels[0], labels[0])
    order = np.argsort(fitted.predict_proba(pixels[1])[np.arange(len(labels[1])), labels[1]], kind="stable")
    quarter = len(order) // 4
    return order[:quarter], order[-quarter:]


def images_of(part: Any) -> np.ndarray:
    """The pixels of all images of a data set, (n, pixels), as the network is given them."""
    return torch.stack([part[i][0].flatten() for i in range(len(part))]).numpy()


def some(part: Any, chosen: np.ndarray) -> ArrayImages:
    """The ``chosen`` samples of a data set."""
    images = torch.stack([part.raw(int(i)) for i in chosen])
    return ArrayImages(images, [part.targets[int(i)] for i in chosen], part.classes, part.preprocessing)


def noisy(data: ImageData, share: float, seed: int) -> ImageData:
    """``data`` with another label, drawn by ``seed``, on ``share`` of its training samples."""
    draws, classes = np.random.default_rng(seed), len(data.classes)
    targets = np.array(data.train.targets)
    wrong = draws.random(len(targets)) < share
    targets[wrong] = (targets[wrong] + draws.integers(1, classes, int(wrong.sum()))) % classes
    images = torch.stack([data.train.raw(i) for i in range(len(targets))])
    train = ArrayImages(images, targets.tolist(), data.classes, data.train.preprocessing)
    return replace(data, train=train)


def run(arm: Arm, seed: int, scale: Scale, context: Context) -> ArmResult:
    """Train on the arm's share of the images, then judge all validation digits, the hard and the easy ones."""
    settings = {**scale.settings, **arm.settings}
    clean = load("mnist5k", val_fraction=settings["val_fraction"])
    data = noisy(clean, settings["noise"], seed) if settings["noise"] else clean
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ConvNet(len(data.classes), in_chans=1, width=settings["width"])
    budget = replace(scale, images=round(scale.images * settings["computation"]))
    result = fit_arm(model, data, budget, seed, context, method_of(settings))
    hard, easy = (evaluate(result.model, some(clean.val, chosen)) for chosen in by_difficulty(clean))
    measured = {"hard_error": 100 * hard["top1_error"], "easy_loss": easy["loss"]}
    return ArmResult.of(result, settings, ("top1_error", "ece"), measured)


# Learning rate, batch and weight decay are those of HWA's experiment on these data and this network; no arm is tuned.
_RECIPE = {"batch_size": 32, "lr": 0.1, "weight_decay": 5e-4, "width": 8, "val_fraction": 0.5, "noise": 0.0}
_SMOKE = {**_RECIPE, "width": 4, "val_fraction": 0.9}
# Of 20 epochs 2 warm up, 1 is final, 6 pick and 11 drop: (9 + 11 (1 - 0.4545)) / 20 = 0.75. Without picking up again 17
# drop: (3 + 17 (1 - 0.2941)) / 20 = 0.75. An epoch of 2,500 images has 78 batches, one that drops has 42, or 55: all
# arms but the full schedule stop after 1,164 steps, in the 20th epoch of those that drop.
_CYCLE = {"computation": 1.0, "warmup": 2, "period": 3, "final": 1, "fraction": 0.4545}
_NEVER = {"computation": 1.0, "warmup": 2, "period": None, "final": 0, "fraction": 0.2941}

EXPERIMENT = Experiment(
    system="dap",
    question="At three quarters of the images, does dropping easy ones for a while err less than stopping sooner?",
    metric="top1_error",
    unit="%",
    higher_is_better=False,
    baseline="shortened",
    method="dap",
    arms=(
        Arm("full", "all samples, the whole schedule: 4/3 of the images", {"computation": 4 / 3}),
        Arm("shortened", "all samples, the schedule shortened", {"computation": 1.0}),
        Arm("random", "as many samples dropped, but any", {**_CYCLE, "drop": "random"}),
        Arm("drop_only", "easy samples dropped, never picked up", {**_NEVER, "drop": "easy"}),
        Arm("dap", "DaP: easy samples dropped, all picked up every third epoch", {**_CYCLE, "drop": "easy"}),
    ),
    scales={"smoke": Scale(2, 3_200, _SMOKE), "small": Scale(5, 37_248, _RECIPE)},
    run=run,
    data="MNIST-5k (real handwritten digits, 28 x 28), half of it to train on",
)

PROBE = replace(
    EXPERIMENT,
    question="With wrong labels among those to learn from, which are never easy, does dropping easy samples err more?",
    arms=tuple(arm for arm in EXPERIMENT.arms if arm.name in ("shortened", "random", "dap")),
    scales={
        "smoke": Scale(2, 3_200, {**_SMOKE, "noise": LABEL_NOISE}),
        "small": Scale(5, 37_248, {**_RECIPE, "noise": LABEL_NOISE}),
    },
    data=f"MNIST-5k, half of it to train on, {LABEL_NOISE:.0%} of whose labels are replaced by others",
    probe=True,
)
