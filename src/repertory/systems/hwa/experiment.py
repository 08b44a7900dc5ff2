"""Does averaging over replicas and over time lower the error at equal processed images? Real handwritten digits."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from repertory.data import load
from repertory.evidence import Arm, ArmResult, Context, Experiment, Scale
from repertory.nn import ConvNet
from repertory.systems.hwa.baselines import AveragedWeights
from repertory.systems.hwa.method import Hwa
from repertory.training.arms import fit_arm
from repertory.training.checkpoint import load_checkpoint
from repertory.training.evaluation import evaluate
from repertory.training.method import Method

CYCLES = 30  # synchronisations of a run
WINDOW = 6  # the last fifth of them


def methods_of(arm: Arm, steps: int) -> Sequence[Method]:
    """The methods that ``arm`` trains with, for a run of ``steps`` optimiser steps."""
    if arm.name == "swa":
        return [AveragedWeights(start=arm.settings["start"], period=max(1, steps // CYCLES))]
    if arm.name == "ema":
        return [AveragedWeights(start=0.0, decay=arm.settings["decay"])]
    if "replicas" not in arm.settings:
        return []
    return [
        Hwa(
            replicas=arm.settings["replicas"],
            period=max(1, steps // CYCLES),
            window=arm.settings["window"],
            optimizer_state=arm.settings["optimizer_state"],
        )
    ]


# Seeds below were seen while the budget was chosen: what is reported comes from others.
FIRST_SEED = 100


def outer_network(network: nn.Module, trained: Mapping[str, Tensor]) -> nn.Module:
    """``network`` with the newest outer weight: at the end of a run every replica in ``trained`` is that."""
    first = {name.removeprefix("0."): tensor for name, tensor in trained.items() if not name.startswith("1.")}
    outer = copy.deepcopy(network)
    outer.load_state_dict(first)
    return outer


def run(arm: Arm, seed: int, scale: Scale, context: Context) -> ArmResult:
    """Train one network, or K, on as many images as every other arm; judge it once, at the end."""
    seed += FIRST_SEED
    data = load("mnist5k")
    batch_size = scale.settings["batch_size"] * arm.settings.get("batches", 1)
    steps = scale.images // (batch_size * arm.settings.get("replicas", 1))
    methods = methods_of(arm, steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ConvNet(len(data.classes), in_chans=1, width=scale.settings["width"])
    schedule = arm.settings["schedule"]
    result = fit_arm(network, data, scale, seed, context, methods, batch_size=batch_size, schedule=schedule)
    metrics = {name: 100 * result.metrics[name] for name in ("top1_error", "ece")}
    if "replicas" in arm.settings:
        outer = outer_network(network, load_checkpoint(context.out / "checkpoints" / "last.ckpt")["model"])
        metrics["outer_top1_error"] = 100 * evaluate(outer, data.val)["top1_error"]
    curves = {
        "train_loss": result.curves["train_loss"],
        "val_top1_error": [(images, 100 * error) for images, error in result.curves["val_top1_error"]],
    }
    used: dict[str, Any] = {**arm.settings, **scale.settings, "optimiser steps": result.steps, "cycles": CYCLES}
    return ArmResult(metrics, curves, result.images, result.steps, used)


_COSINE = {"schedule": "cosine"}
_ONLINE = {"replicas": 2, "optimizer_state": "keep", **_COSINE}
_OFFLINE = {"replicas": 1, "optimizer_state": "keep", **_COSINE}
_TRAINING = {"batch_size": 32, "lr": 0.1, "weight_decay": 5e-4}

EXPERIMENT = Experiment(
    system="hwa",
    question="Does the window mean of two averaged replicas err less than SGD at equal processed images?",
    metric="top1_error",
    unit="%",
    higher_is_better=False,
    baseline="sgd",
    method="hwa",
    arms=(
        Arm("sgd", "SGD, cosine schedule", _COSINE),
        Arm("large_batch", "SGD, twice the batch: steps and images of K = 2", {"batches": 2, **_COSINE}),
        Arm("online", "online only: K = 2, I = 1", {**_ONLINE, "window": 1}),
        Arm("offline", f"offline only: K = 1, I = {WINDOW}", {**_OFFLINE, "window": WINDOW}),
        Arm("hwa", f"HWA: K = 2, I = {WINDOW}", {**_ONLINE, "window": WINDOW}),
        Arm("swa", "SWA of the last quarter, constant learning rate", {"schedule": "constant", "start": 0.75}),
        Arm("ema", "EMA of the weights, decay 0.98 a step", {"decay": 0.98, **_COSINE}),
    ),
    scales={
        "smoke": Scale(2, 3_200, {**_TRAINING, "width": 8, "evaluate_every": 0}),
        "small": Scale(5, 64_000, {**_TRAINING, "width": 8, "evaluate_every": 4}),
    },
    run=run,
    data="MNIST-5k (real handwritten digits, 28 x 28)",
)
