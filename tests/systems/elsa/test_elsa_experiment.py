"""What the experiment of ELSA compares, and that its arms differ in their local layer alone."""

import dataclasses

import pytest
import torch

from repertory.evidence import Context
from repertory.systems.elsa.experiment import EXPERIMENT, LOCAL, narrow
from repertory.systems.elsa.model import HadamardAttention, WindowAttention

ARMS = [arm.settings["local"] for arm in EXPERIMENT.arms]


def test_method_and_baseline_are_arms_and_every_layer_is_one():
    names = {arm.name for arm in EXPERIMENT.arms}
    assert {EXPERIMENT.baseline, EXPERIMENT.method} <= names
    assert set(ARMS) == set(LOCAL)


@pytest.mark.parametrize("local", ARMS)
def test_arms_differ_in_the_layers_of_the_first_stage_alone(local):
    model, other = narrow(10, 1, 12, local), narrow(10, 1, 12, "window")

    def rest(network):
        return {n: tuple(p.shape) for n, p in network.named_parameters() if ".attn." not in n or "stages.1" in n}

    assert rest(model) == rest(other)
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_the_layers_are_what_the_arms_say():
    blocks = {local: list(narrow(10, 1, 12, local).stages[0].blocks) for local in LOCAL}
    assert [block.attn.shifted for block in blocks["window"]] == [False, True]
    ghosts = {
        local: [block.attn.ghost_head for block in blocks[local]] for local in ("hadamard", "elsa", "elsa_factors")
    }
    assert ghosts["hadamard"] == [None, None]
    assert [tuple(g.shape) for g in ghosts["elsa"]] == [(1, 12, 7, 7)] * 2
    assert [tuple(g.shape) for g in ghosts["elsa_factors"]] == [(2, 1, 12, 7, 7)] * 2
    attending = [type(block.attn) for local in LOCAL for block in blocks[local]]
    assert attending.count(HadamardAttention) == 6
    assert attending.count(WindowAttention) == 2


def test_a_run_counts_its_images_and_reports_its_metric(tmp_path):
    scale = dataclasses.replace(EXPERIMENT.scales["smoke"], images=16)
    scale = dataclasses.replace(scale, settings={**scale.settings, "batch_size": 8, "width": 6})
    result = EXPERIMENT.run(EXPERIMENT.arm("elsa"), 0, scale, Context(tmp_path, {}, lambda done, total: None))
    assert (result.images, result.steps) == (16, 2)
    assert 0 <= result.metrics[EXPERIMENT.metric] <= 100
    assert result.settings["local"] == "elsa"
