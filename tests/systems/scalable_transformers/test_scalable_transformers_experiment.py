"""What the experiments compare: arms of one budget that differ in what sub-models learn from alone."""

import dataclasses

import pytest

from repertory.evidence import Context
from repertory.systems.scalable_transformers.experiment import EXPERIMENT, PASSES, SIZES, SPACE, vit
from repertory.systems.scalable_transformers.translation_experiment import HEADS, TRANSLATION, WIDTHS


def run(experiment, arm, tmp_path, **changed):
    scale = experiment.scales["smoke"]
    scale = dataclasses.replace(
        scale, images=changed.pop("images", scale.images), settings={**scale.settings, **changed}
    )
    return experiment.run(experiment.arm(arm), 0, scale, Context(tmp_path, {}, lambda done, total: None))


@pytest.mark.parametrize("experiment", [EXPERIMENT, TRANSLATION], ids=["digits", "messages"])
def test_method_and_baseline_are_arms(experiment):
    assert {experiment.baseline, experiment.method} <= {arm.name for arm in experiment.arms}


def test_judged_sizes_can_be_drawn_in_training_and_the_smallest_is_always_trained():
    model = vit(0, 12, "fused")
    space = model.crop_space(**SPACE)
    for crop in SIZES.values():
        assert crop.heads in space.heads
        assert crop.depth in space.depths
        assert crop.resolution in space.resolutions
    assert SIZES["small"] == space.smallest
    assert len(SIZES) == PASSES
    assert {crop.heads for crop in WIDTHS.values()} <= set(HEADS)


@pytest.mark.parametrize("arm", ["separate", "distilled"])
def test_an_arm_spends_the_budget_and_reports_every_size(arm, tmp_path):
    result = run(EXPERIMENT, arm, tmp_path, images=96, batch_size=16, width=12)
    assert (result.images, result.steps) == (96, 2)
    assert set(result.metrics) == {"top1_large", "top1_medium", "top1_small", "top1_mean"}
    assert 0 <= result.metrics[EXPERIMENT.metric] <= 100


def test_stages_share_the_passes_of_the_budget(tmp_path):
    pytest.importorskip("tokenizers", reason="pip install 'repertory[text]'")
    pytest.importorskip("sacrebleu", reason="pip install 'repertory[text]'")
    pytest.importorskip("django", reason="pip install 'repertory[text]'")
    pytest.importorskip("babel", reason="pip install 'repertory[text]'")
    result = run(TRANSLATION, "stages_1_2", tmp_path, passes=12, width=8, beam=1, max_length=12)
    assert result.steps == 6 + 6 // 3
    assert {"accuracy_small", "bleu_large", "accuracy_mean", "bleu_mean"} <= set(result.metrics)
