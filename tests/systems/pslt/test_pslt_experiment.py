"""What the experiment of PSLT compares: arms of equal budget, and a probe whose evidence lies across windows."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from repertory.evidence import Context, Scale
from repertory.systems.pslt.experiment import EXPERIMENT, PATCH, PROBE, SHIFT, SIDE, WINDOW, marks, narrow
from repertory.systems.pslt.model import LadderBlock, WindowAttention

TINY = {"train": 24, "val": 12, "batch_size": 8, "ladders": 1}
LADDERS = EXPERIMENT.scales["small"].settings["ladders"]


def cost(name):
    """Parameters, and multiply-adds of one picture."""
    model = narrow(10, EXPERIMENT.arm(name), 0, LADDERS).eval()
    for module in model.modules():
        if isinstance(module, WindowAttention):
            module.backend = "reference"
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 1, SIDE, SIDE))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() / 2


@pytest.mark.parametrize("name", ["unsplit", "swin"])
def test_a_ladder_and_what_it_is_held_against_have_one_budget(name):
    for ladder, other in zip(cost("ladder"), cost(name), strict=True):
        assert ladder == pytest.approx(other, rel=0.05)


@pytest.mark.parametrize("name", ["unshifted", "one_way"])
def test_arms_that_differ_in_shifts_begin_with_the_same_weights_and_differ(name):
    first, other = (narrow(10, EXPERIMENT.arm(arm), 3, 1).eval() for arm in ("ladder", name))
    for a, b in zip(first.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    pictures = torch.randn(2, 1, SIDE, SIDE)
    assert not torch.equal(first(pictures), other(pictures))


def test_the_ladder_has_the_published_shifts():
    block = narrow(10, EXPERIMENT.arm("ladder"), 0, 1).blocks[0]
    assert block.shifts == LadderBlock(36, 2, WINDOW).shifts == (0, -SHIFT, SHIFT)


def test_marks_lie_in_different_windows_and_are_alike_as_labelled():
    data = marks(0, Scale(1, 8, TINY))
    for index in range(8):
        tokens = torch.nn.functional.avg_pool2d(data.train.raw(index)[0][None, None], PATCH)[0, 0] - 0.5
        found = (tokens.abs() > 0.25).nonzero()
        assert len(found) == 2
        assert not torch.equal(found[0] // WINDOW, found[1] // WINDOW)
        alike = tokens[tuple(found[0])].sign() == tokens[tuple(found[1])].sign()
        assert bool(alike) == bool(data.train.targets[index])


def test_a_run_counts_its_images_and_reports_its_metric(tmp_path):
    scale = dataclasses.replace(PROBE.scales["smoke"], images=16)
    scale = dataclasses.replace(scale, settings={**scale.settings, **TINY})
    result = PROBE.run(PROBE.arm("ladder"), 0, scale, Context(tmp_path, {}, lambda done, total: None))
    assert (result.images, result.steps) == (16, 2)
    assert 0 <= result.metrics[PROBE.metric] <= 100
    assert result.settings["shifts"] == [0, -SHIFT, SHIFT]


def test_method_and_baseline_are_arms_and_only_the_probe_is_one():
    for experiment in (EXPERIMENT, PROBE):
        assert {experiment.baseline, experiment.method} <= {arm.name for arm in experiment.arms}
    assert PROBE.probe
    assert not EXPERIMENT.probe
