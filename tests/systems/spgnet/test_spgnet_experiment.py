"""What the experiment of SPGNet compares, and that its arms cost the same."""

import dataclasses

import pytest
import torch

from repertory.evidence import Context
from repertory.systems.spgnet.experiment import (
    EXPERIMENT,
    PROBE,
    SCENE_CLASSES,
    border_contrast,
    digits_over_photographs,
    narrow,
    scenes,
)

CLASSES = 11


@pytest.mark.parametrize("arm", EXPERIMENT.arms, ids=lambda arm: arm.name)
def test_every_arm_has_the_parameters_of_spg_within_a_hundredth(arm):
    counts = [
        sum(p.numel() for p in narrow(one, CLASSES, 0).deploy().parameters()) for one in (arm, EXPERIMENT.arm("spg"))
    ]
    assert counts[0] == pytest.approx(counts[1], rel=0.01)
    if arm.name in ("se", "unsupervised"):
        assert counts[0] == counts[1]


def test_the_control_begins_as_spg_does_and_is_supervised_as_often():
    spg, control = (narrow(EXPERIMENT.arm(name), CLASSES, 3) for name in ("spg", "unsupervised"))
    own = spg.state_dict()
    shared = {name: value for name, value in control.state_dict().items() if not name.startswith("heads.")}
    assert shared.keys() == own.keys()
    assert all(torch.equal(value, own[name]) for name, value in shared.items())
    images = torch.randn(2, 3, 32, 32)
    assert [len(narrow(arm, CLASSES, 0)(images)["aux"]) for arm in EXPERIMENT.arms[1:]] == [1, 1, 1, 1]


def test_method_and_baseline_are_arms_and_only_the_probe_is_one():
    for experiment in (EXPERIMENT, PROBE):
        assert {experiment.baseline, experiment.method} <= {arm.name for arm in experiment.arms}
    assert PROBE.probe
    assert not EXPERIMENT.probe


@pytest.mark.parametrize("make", [digits_over_photographs, scenes])
def test_pictures_follow_the_seed_alone(make):
    scale = EXPERIMENT.scales["smoke"]
    first, again, other = (make(seed, scale).train[0] for seed in (0, 0, 1))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])


def test_scenes_show_every_class():
    data = scenes(0, PROBE.scales["smoke"])
    shown = torch.cat([data.train[i][1].flatten() for i in range(len(data.train))]).unique()
    assert shown.tolist() == list(range(len(SCENE_CLASSES)))


def test_border_contrast_by_hand():
    """Two classes side by side: the two columns at their border weigh 0.9 in channel 0, the others 0.5."""
    mask = torch.zeros(1, 12, 12, dtype=torch.int64)
    mask[..., 6:] = 1
    guide = torch.full((1, 2, 6, 6), 0.5)
    guide[0, 0, :, 2:4] = 0.9
    assert border_contrast(guide, mask) == pytest.approx((0.4 + 0.0) / 2)
    assert border_contrast(guide, torch.zeros_like(mask)) == 0


def test_a_run_counts_its_images_and_shows_its_gate(tmp_path):
    scale = dataclasses.replace(EXPERIMENT.scales["smoke"], images=16)
    scale = dataclasses.replace(scale, settings={**scale.settings, "side": 32, "train": 16, "val": 4, "batch_size": 8})
    result = EXPERIMENT.run(EXPERIMENT.arm("spg"), 0, scale, Context(tmp_path, {}, lambda done, total: None))
    assert (result.images, result.steps) == (16, 2)
    assert 0 <= result.metrics["miou"] <= 100
    assert result.metrics["border_contrast"] >= 0
    assert result.pictures["Picture 1: gate"].shape == (32, 32, 3)
