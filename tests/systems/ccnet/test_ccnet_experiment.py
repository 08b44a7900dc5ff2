"""What the experiments of CCNet compare, and that their arms differ in the number of applications alone."""

import dataclasses

import pytest
import torch

from repertory.evidence import Context
from repertory.systems.ccnet.experiment import COLOURS, EXPERIMENT, PROBE, Backbone, far_marks, narrow


@pytest.mark.parametrize("recurrence", [0, 1, 3])
def test_every_arm_begins_with_the_same_weights(recurrence):
    for a, b in zip(narrow(recurrence, 4, 3).parameters(), narrow(2, 4, 3).parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_backbone_sees_as_far_as_it_says():
    torch.manual_seed(0)
    x = torch.randn(1, 1, 96, 96, requires_grad=True)
    for found, side in zip(Backbone(1, 16).eval()(x), (23, 39), strict=True):
        (slope,) = torch.autograd.grad(found[0, :, 12, 12].sum(), x, retain_graph=True)
        rows = (slope[0, 0].abs().sum(1) > 0).nonzero().flatten().tolist()
        assert side - 4 <= max(rows) - min(rows) + 1 <= side


def test_marks_are_of_the_colour_that_is_asked_for():
    scale = dataclasses.replace(
        PROBE.scales["smoke"], settings={**PROBE.scales["smoke"].settings, "train": 6, "val": 3}
    )
    whole, cross = (far_marks(PROBE.arm(name), 0, scale) for name in ("once", "once_cross"))
    for index in range(6):
        image, mask = whole.train.raw(index)
        colour = int(mask[0, 0])
        assert (mask == colour).all()
        mark = (image[colour] == 1).nonzero()
        assert len(mark) == 16
        _, asked = cross.train.raw(index)
        assert int((asked != 255).sum()) == 2 * 4 * 64 - 16
        assert set(asked.unique().tolist()) == {colour, 255}
    assert whole.classes == COLOURS


@pytest.mark.parametrize(("experiment", "arm"), [(EXPERIMENT, "none"), (PROBE, "once_cross")])
def test_a_run_counts_its_images_and_reports_its_metric(tmp_path, experiment, arm):
    smoke = experiment.scales["smoke"]
    tiny = {"train": 8, "val": 3, "batch_size": 4, "width": 8, "side": 32}
    scale = dataclasses.replace(smoke, images=8, settings={**smoke.settings, **tiny})
    result = experiment.run(experiment.arm(arm), 0, scale, Context(tmp_path, {}, lambda done, total: None))
    assert (result.images, result.steps) == (8, 2)
    assert 0 <= result.metrics[experiment.metric] <= 100
    assert result.settings["recurrence"] == experiment.arm(arm).settings["recurrence"]
    assert result.pictures


def test_method_and_baseline_are_arms_and_only_the_probe_is_one():
    for experiment in (EXPERIMENT, PROBE):
        assert {experiment.baseline, experiment.method} <= {arm.name for arm in experiment.arms}
    assert PROBE.probe
    assert not EXPERIMENT.probe
