"""One run of an experiment: which settings it takes, and what a signal does to it."""

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import nn

from repertory.data import load
from repertory.evidence import ArmResult, Scale
from repertory.training.arms import fit_arm
from repertory.training.checkpoint import load_checkpoint

RECIPE = {"batch_size": 16, "lr": 0.05, "width": 12}


@dataclass
class Place:
    out: Path
    done: list[int] = field(default_factory=list)
    cut: bool = False

    def progress(self, images: int, total: int) -> None:
        self.done.append(images)
        if self.cut:
            os.kill(os.getpid(), signal.SIGTERM)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def settings_of(out: Path) -> dict:
    return load_checkpoint(out / "checkpoints" / "last.ckpt")["settings"]


def test_training_settings_are_taken_from_the_budget_and_others_are_left_to_the_experiment(tmp_path):
    place = Place(tmp_path)
    result = fit_arm(network(), load("digits"), Scale(1, 64, RECIPE), 3, place)
    assert (result.images, result.steps, place.done[-1]) == (64, 4, 64)
    taken = settings_of(tmp_path)
    assert {name: taken[name] for name in ("batch_size", "lr", "seed", "max_images", "evaluate_every")} == {
        "batch_size": 16,
        "lr": 0.05,
        "seed": 3,
        "max_images": 64,
        "evaluate_every": 0,
    }


def test_settings_of_an_arm_win_over_the_budget(tmp_path):
    result = fit_arm(network(), load("digits"), Scale(1, 64, RECIPE), 0, Place(tmp_path), batch_size=32)
    assert result.steps == 2


def test_a_cut_run_says_so_and_goes_on_to_what_an_uncut_one_gives(tmp_path):
    scale = Scale(1, 96, RECIPE)
    whole = fit_arm(network(), load("digits"), scale, 0, Place(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        fit_arm(network(), load("digits"), scale, 0, Place(tmp_path / "cut", cut=True))
    resumed = fit_arm(network(), load("digits"), scale, 0, Place(tmp_path / "cut"))
    assert resumed.metrics == whole.metrics


def test_a_result_tells_fractions_in_per_cent_and_leaves_the_learning_rate_out(tmp_path):
    result = fit_arm(network(), load("digits"), Scale(1, 32, RECIPE), 0, Place(tmp_path))
    told = ArmResult.of(result, RECIPE, measured={"gamma": 0.5})
    assert told.metrics == {"top1": 100 * result.metrics["top1"], "ece": 100 * result.metrics["ece"], "gamma": 0.5}
    assert "lr" in result.curves
    assert "lr" not in told.curves
    assert (told.images, told.steps, told.settings) == (32, 2, RECIPE)
