"""What the experiment of AFFormer compares, and that its arms cost what they say."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from repertory.evidence import Context
from repertory.systems.afformer.experiment import EXPERIMENT, PARTS, PartialFilter, narrow
from repertory.systems.afformer.model import AdaptiveFrequencyFilter, HighPassFilters


def built(name):
    return narrow(EXPERIMENT.arm(name), 4, 3)


def count(model):
    return sum(p.numel() for p in model.parameters())


def multiply_adds(model, side):
    for module in model.modules():
        if isinstance(module, AdaptiveFrequencyFilter):
            module.backend = "reference"
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, side, side))
    return counter.get_total_flops() / 2


def test_all_parts_together_are_the_published_filter():
    torch.manual_seed(0)
    whole, filters = AdaptiveFrequencyFilter(16), HighPassFilters(16, 8)
    partial = PartialFilter(16, 8, PARTS)
    partial.load_state_dict(whole.state_dict())
    x = torch.randn(2, 7, 9, 16)
    torch.testing.assert_close(partial(x, filters), whole(x, filters), atol=1e-5, rtol=1e-5)


def test_method_and_baseline_cost_the_same():
    method, baseline = built(EXPERIMENT.method), built(EXPERIMENT.baseline)
    assert count(baseline) == pytest.approx(count(method), rel=0.03)
    side = EXPERIMENT.scales["small"].settings["side"]
    assert multiply_adds(baseline, side) == pytest.approx(multiply_adds(method, side), rel=0.03)
    assert count(baseline) >= count(method)


@pytest.mark.parametrize("name", [arm.name for arm in EXPERIMENT.arms])
def test_every_arm_begins_with_the_same_weights_where_it_has_them(name):
    common, own = built("filter").state_dict(), built(name).state_dict()
    shared = [key for key in own if key in common]
    assert len(shared) > 0.9 * len(own)
    assert all(torch.equal(own[key], common[key]) for key in shared)


@pytest.mark.parametrize("name", ["no_high", "no_low", "no_kernel"])
def test_an_ablation_leaves_out_what_it_says_and_nothing_unused(name):
    model = built(name)
    without = name.removeprefix("no_")
    parts = {module.parts for module in model.modules() if isinstance(module, PartialFilter)}
    assert parts == {tuple(part for part in PARTS if part != without)}
    assert count(model) == count(built("filter")) if without == "low" else count(model) <= count(built("filter"))
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_run_counts_its_images_and_reports_its_metric(tmp_path):
    smoke = EXPERIMENT.scales["smoke"]
    settings = {**smoke.settings, "train": 8, "val": 2, "side": 32, "batch_size": 4}
    scale = dataclasses.replace(smoke, images=8, settings=settings)
    result = EXPERIMENT.run(EXPERIMENT.arm("pointwise"), 0, scale, Context(tmp_path, {}, lambda done, total: None))
    assert (result.images, result.steps) == (8, 2)
    assert 0 <= result.metrics[EXPERIMENT.metric] <= 100
    assert result.pictures
