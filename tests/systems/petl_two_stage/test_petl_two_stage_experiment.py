from pathlib import Path

import pytest
import torch

from repertory.evidence import Context, Scale
from repertory.systems.petl_two_stage.experiment import EXPERIMENT, network, pretrained, shifted_digits
from repertory.systems.petl_two_stage.layer_norm import layer_norms

SETTINGS = {**EXPERIMENT.scales["smoke"].settings, "width": 16, "depth": 2, "source_images": 100}


def run(arm, folder):
    reports = []
    context = Context(Path(folder), {}, lambda done, total: reports.append((done, total)))
    return EXPERIMENT.run(EXPERIMENT.arm(arm), 1, Scale(1, 200, SETTINGS), context), reports


@pytest.mark.parametrize(
    ("arm", "parameters"),
    [("probe", 170), ("layer_norm", 330), ("taylor", 342), ("random", 342), ("norm", 342), ("taylor_only", 182)],
)
def test_arms_process_the_same_images_and_train_what_they_say(arm, parameters, tmp_path):
    result, reports = run(arm, tmp_path)
    assert (result.images, result.steps) == (200, 4)
    assert reports[-1] == (200, 200)
    assert result.metrics["trained_parameters"] == parameters
    assert 0 <= result.metrics["top1"] <= 100


def test_full_fine_tuning_trains_everything(tmp_path):
    everything = sum(parameter.numel() for parameter in network(10, SETTINGS).parameters())
    assert run("full", tmp_path)[0].metrics["trained_parameters"] == everything


def test_all_arms_of_a_seed_start_from_the_same_backbone():
    first, again, other = (pretrained(seed, SETTINGS) for seed in (1, 1, 2))
    assert all(torch.equal(one, same) for one, same in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.blocks[0].attn.qkv.weight, other.blocks[0].attn.qkv.weight)
    assert bool((layer_norms(first)["norm"].weight != 1).any())


def test_the_task_is_drawn_by_seed_and_never_trains_on_what_it_tests():
    data, again, other = shifted_digits(1), shifted_digits(1), shifted_digits(2)
    assert (len(data.train), len(data.val)) == (1_000, 797)
    assert torch.equal(data.train.images, again.train.images)
    assert not torch.equal(data.train.images, other.train.images)
    trained = {image.numpy().tobytes() for image in data.train.images}
    assert not any(image.numpy().tobytes() in trained for image in data.val.images)


def test_the_declaration_compares_like_with_like():
    stages = {arm.name: arm.settings["stages"] for arm in EXPERIMENT.arms}
    assert stages[EXPERIMENT.baseline] == ["layer_norm"]
    assert stages[EXPERIMENT.method] == ["layer_norm", "taylor"]
    assert EXPERIMENT.scales["small"].seeds >= 5
    assert set(EXPERIMENT.scales["small"].settings["lrs"]) == {"head", "layer_norm", "channels", "full"}
