"""A quick made-up experiment that behaves like a system's: it saves its state, resumes, fails and dies on demand."""

import json
import os
import signal

import numpy as np

from repertory.evidence import Arm, ArmResult, Experiment, PublishedDifference, Scale


def run(arm, seed, scale, context):
    settings = {**scale.settings, **arm.settings}
    state, count = context.out / "state.json", scale.images
    done = json.loads(state.read_text())["done"] if state.exists() else 0
    start = done
    print(f"{arm.name} from {done}")
    while done < count:
        done += 50
        state.write_text(json.dumps({"done": done}))
        context.progress(done, count)
        # A run that was cut once goes on past the place where it was cut.
        if settings.get("die_at") == done and start == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if settings.get("fail"):
            raise RuntimeError("the disk is full of cats")
    np.ones(settings.get("allocate", 0), np.uint8)
    rng = np.random.default_rng([seed, len(arm.name)])
    shared = np.random.default_rng(seed).normal()
    error = 20.0 + shared - settings.get("gain", 0.0) + 0.3 * rng.normal()
    xs = np.arange(0, count + 1, max(1, count // 20))
    curve = [(float(x), float(error + 60 * np.exp(-4 * x / count) + rng.normal() * 0.8)) for x in xs]
    ramp = np.linspace(0, 255, 160, dtype=np.uint8)
    red, green = np.tile(ramp, (100, 1)), np.full((100, 160), 90 + 10 * len(arm.name), np.uint8)
    grey, picture = np.stack([red] * 3, 2), np.stack([red, green, 255 - red], 2)
    return ArmResult(
        metrics={
            "top-1 error": float("nan") if settings.get("diverge") else error,
            "calibration error": 0.05 + 0.01 * seed,
        },
        curves={"top-1 error": curve, "training loss": [(x, y / 40) for x, y in curve]},
        images=count,
        steps=count // 50,
        settings={"learning_rate": 0.1, "resumed_from": start, "root": str(context.roots.get("cifar"))},
        pictures={"input": grey, "output": picture} if settings.get("pictures") else {},
    )


def experiment(system="quick", arms=None, **changes):
    """The experiment, with arms (name -> settings) or fields changed."""
    arms = arms or {"plain": {}, "better": {"gain": 2.0}}
    values = {
        "system": system,
        "question": "Does a made-up gain show?",
        "metric": "top-1 error",
        "unit": "%",
        "higher_is_better": False,
        "baseline": "plain",
        "method": "better",
        "arms": tuple(Arm(name, f"{name} training", settings) for name, settings in arms.items()),
        "scales": {"smoke": Scale(2, 100, {"width": 8}), "small": Scale(5, 200, {"width": 16})},
        "run": run,
        "data": "made-up numbers",
        "published": PublishedDifference(-1.2, "points", "CIFAR-100, ResNet-18", "paper"),
    }
    return Experiment(**{**values, **changes})


EXPERIMENT = experiment(arms={"plain": {}, "better": {"gain": 2.0}, "other": {"gain": 0.2, "temperature": 4.0}})
CUT = experiment("cut", {"plain": {}, "better": {"gain": 2.0, "die_at": 50}})
HEAVY = experiment("heavy", {"plain": {"allocate": 300 * 2**20}, "better": {}})
FAILING = experiment("failing", {"plain": {}, "better": {"fail": True}})
DIVERGING = experiment("diverging", {"plain": {}, "better": {"diverge": True}})
FLAT = experiment(
    "flat",
    {"plain": {"pictures": True}, "better": {"gain": 0.0, "pictures": True}},
    higher_is_better=True,
    probe=True,
    published=None,
    question="Does nothing show as nothing?",
)
HARMFUL = experiment("harmful", {"plain": {}, "better": {"gain": -3.0}})
