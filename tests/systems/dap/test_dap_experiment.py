"""The experiment compares like with like, and its harder digits are harder."""

from dataclasses import replace

import numpy as np
import pytest

from repertory.data import load
from repertory.evidence import Context, Scale
from repertory.systems.dap import Cycle, expected_cost
from repertory.systems.dap.experiment import EXPERIMENT, LABEL_NOISE, PROBE, by_difficulty, images_of, method_of, noisy


@pytest.fixture(scope="module")
def digits():
    return load("mnist5k", val_fraction=0.9)


def test_all_arms_but_the_full_schedule_process_the_same_images():
    shares = {arm.name: arm.settings["computation"] for arm in EXPERIMENT.arms}
    assert shares.pop("full") == pytest.approx(4 / 3)
    assert set(shares.values()) == {1.0}


@pytest.mark.parametrize("name", ["random", "drop_only", "dap"])
def test_an_arm_that_drops_costs_three_quarters_of_twenty_epochs(name):
    settings = EXPERIMENT.arm(name).settings
    cycle = Cycle(settings["warmup"], settings["period"], settings["final"])
    assert expected_cost(20, cycle, settings["fraction"]) == pytest.approx(0.75, abs=1e-3)


def test_random_and_easy_dropping_differ_in_nothing_else():
    random, dap = (dict(EXPERIMENT.arm(name).settings) for name in ("random", "dap"))
    assert (random.pop("drop"), dap.pop("drop")) == ("random", "easy")
    assert random == dap
    rules = [type(method_of(EXPERIMENT.arm(name).settings)[0].rule).__name__ for name in ("random", "dap")]
    assert rules == ["RandomFraction", "LowestFraction"]
    assert method_of(EXPERIMENT.arm("shortened").settings) == []


def test_wrong_labels_are_drawn_by_seed_and_only_to_train_on(digits):
    wrong = noisy(digits, LABEL_NOISE, 3)
    changed = np.array(wrong.train.targets) != np.array(digits.train.targets)
    assert 0.1 < changed.mean() < 0.2
    assert wrong.train.targets == noisy(digits, LABEL_NOISE, 3).train.targets
    assert wrong.train.targets != noisy(digits, LABEL_NOISE, 4).train.targets
    assert wrong.val is digits.val
    assert all(scale.settings["noise"] == LABEL_NOISE for scale in PROBE.scales.values())
    assert PROBE.probe


def test_a_run_gives_its_figures_for_hard_and_easy_digits(digits, tmp_path):
    settings = {**EXPERIMENT.scales["smoke"].settings, "width": 2}
    result = EXPERIMENT.run(
        EXPERIMENT.arm("dap"), 0, Scale(1, 70 * 32, settings), Context(tmp_path, {}, lambda done, total: None)
    )
    assert result.images == 70 * 32
    assert set(result.metrics) == {"top1_error", "ece", "hard_error", "easy_loss"}
    assert result.metrics["hard_error"] > result.metrics["top1_error"]
    assert min(share for _, share in result.curves["dap_kept"]) == pytest.approx(1 - 0.4545, abs=1e-3)


def test_quarters_are_the_same_every_time_and_apart(digits):
    few = replace(digits, val=digits.train)
    hard, easy = by_difficulty(few)
    assert len(hard) == len(easy) == len(few.val) // 4
    assert not set(hard.tolist()) & set(easy.tolist())
    assert np.array_equal(by_difficulty(few)[0], hard)
    assert images_of(few.val).shape == (len(few.val), 28 * 28)
