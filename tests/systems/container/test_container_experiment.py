"""What the experiment of CONTAINER compares, and that its arms differ in their affinities alone."""

import dataclasses

import pytest
import torch

from repertory.evidence import Context, Scale
from repertory.systems.container.experiment import (
    DRAWN_CLASSES,
    EXPERIMENT,
    PROBE,
    SIDE,
    attention_share,
    images_to,
    textured_marks,
    tiny,
)

TINY = {"train": 24, "val": 12, "batch_size": 8}
MIXED = [arm for arm in EXPERIMENT.arms if arm.settings["affinities"] == "dynamic+local"]


def network(arm, seed=3):
    return tiny(4, arm.settings["affinities"], arm.settings["mixing"], seed).eval()


@pytest.mark.parametrize("arm", MIXED, ids=lambda arm: arm.name)
def test_arms_of_the_same_affinities_begin_with_the_same_weights(arm):
    first, other = (dict(network(each).named_parameters()) for each in (arm, EXPERIMENT.arm("attention")))
    shared = {name for name in first if not name.endswith("mixing_logit")}
    assert shared == set(other)
    assert all(torch.equal(first[name], other[name]) for name in shared)


def test_the_ends_ignore_the_affinity_that_they_leave_out():
    images = torch.randn(2, 1, SIDE, SIDE)
    for name, unused in (("attention", ".affinities.1."), ("convolution", "query")):
        model = network(EXPERIMENT.arm(name))
        before = model(images)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if unused in key:
                    parameter.add_(1)
                elif unused == "query" and ".project." in key:
                    parameter[: 2 * len(parameter) // 3] += 1  # queries and keys
        assert torch.equal(model(images), before)


def test_the_learned_mixture_begins_in_the_middle_and_the_ends_at_theirs():
    shares = {arm.name: attention_share(network(arm)) for arm in EXPERIMENT.arms}
    assert shares == {"attention": 100, "mixture": 50, "convolution": 0, "dense": 50}


def test_the_target_is_interpolated_or_the_whole_budget():
    curve = [(100.0, 40.0), (200.0, 90.0), (300.0, 70.0)]
    assert images_to(20, curve, 300) == 50
    assert images_to(80, curve, 300) == 180
    assert images_to(95, curve, 300) == 300


def test_classes_of_the_probe_are_texture_and_likeness_of_marks():
    data = textured_marks(0, Scale(1, 8, TINY))
    for index in range(len(data.train)):
        image, kind = data.train.raw(index)[0], DRAWN_CLASSES[data.train.targets[index]]
        across, down = ((image.diff(dim=dim).abs() > 0.15).float().mean() for dim in (1, 0))
        assert ("columns" in kind) == bool(across > down)
        found = torch.nn.functional.avg_pool2d(image[None], 5, 1)[0] - 0.5
        bright, dark = (found > 0.25).any(), (found < -0.25).any()
        assert ("unlike" in kind) == bool(bright and dark)


def test_a_run_counts_its_images_and_reports_its_metrics(tmp_path):
    scale = dataclasses.replace(PROBE.scales["smoke"], images=16)
    scale = dataclasses.replace(scale, settings={**scale.settings, **TINY})
    result = PROBE.run(PROBE.arm("mixture"), 0, scale, Context(tmp_path, {}, lambda done, total: None))
    assert (result.images, result.steps) == (16, 2)
    assert 0 <= result.metrics[PROBE.metric] <= 100
    assert result.metrics["attention_share"] == pytest.approx(50, abs=5)
    assert 0 < result.metrics["images_to_70"] <= 16
    assert result.settings["mixing"] == "convex"


def test_method_and_baseline_are_arms_and_only_the_probe_is_one():
    for experiment in (EXPERIMENT, PROBE):
        names = {arm.name for arm in experiment.arms}
        assert {experiment.baseline, experiment.method} <= names
    assert PROBE.probe
    assert not EXPERIMENT.probe
