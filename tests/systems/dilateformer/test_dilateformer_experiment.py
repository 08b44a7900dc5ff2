"""What the experiment of DilateFormer compares, and that its arms differ in their rates alone."""

import dataclasses

import pytest
import torch

from repertory.evidence import Context, Scale
from repertory.systems.dilateformer.experiment import (
    EXPERIMENT,
    PERIODS,
    PROBE,
    _drawn,
    convolutional,
    dot_grids,
    narrow,
)

TINY = {"train": 24, "val": 12, "batch_size": 8, "width": 6}


ATTENTIVE = [arm for arm in EXPERIMENT.arms if arm.settings["operator"] == "attention"]


@pytest.mark.parametrize("arm", ATTENTIVE, ids=lambda arm: arm.name)
def test_every_arm_that_attends_begins_with_the_same_weights(arm):
    first, other = (_drawn(narrow, 3, 10, 24, arm.settings["dilation"]), _drawn(narrow, 3, 10, 24, [1, 1, 1]))
    for a, b in zip(first.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_convolutional_arm_has_no_dilated_attention_and_fewer_parameters():
    convolving, attending = convolutional(10, 1, 24, [1, 2, 3]), narrow(10, 1, 24, [1, 2, 3])
    assert convolving(torch.zeros(2, 1, 48, 48)).shape == (2, 10)
    names = [type(block.attn).__name__ for stage in convolving.stages for block in stage.blocks]
    assert names == ["DilatedConvolution", "DilatedConvolution", "GlobalAttention", "GlobalAttention"]
    counts = [sum(p.numel() for p in model.parameters()) for model in (convolving, attending)]
    assert counts[0] < counts[1]


def test_dots_of_a_grid_are_one_period_apart():
    data = dot_grids(0, Scale(1, 8, TINY))
    for index in range(6):
        image, label = data.train.raw(index)[0], data.train.targets[index]
        rows = (image.amax(1) > 0.3).nonzero().flatten().diff()
        assert set(rows.tolist()) == {PERIODS[label]}


def test_a_run_counts_its_images_and_reports_its_metric(tmp_path):
    scale = dataclasses.replace(PROBE.scales["smoke"], images=16)
    scale = dataclasses.replace(scale, settings={**scale.settings, **TINY})
    result = PROBE.run(PROBE.arm("multi"), 0, scale, Context(tmp_path, {}, lambda done, total: None))
    assert (result.images, result.steps) == (16, 2)
    assert 0 <= result.metrics[PROBE.metric] <= 100
    assert result.settings["dilation"] == [1, 2, 3]


def test_method_and_baseline_are_arms_and_only_the_probe_is_one():
    for experiment in (EXPERIMENT, PROBE):
        names = {arm.name for arm in experiment.arms}
        assert {experiment.baseline, experiment.method} <= names
    assert PROBE.probe
    assert not EXPERIMENT.probe
