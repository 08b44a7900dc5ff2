from pathlib import Path

import numpy as np

from repertory.evidence import Context, Scale
from repertory.systems.bake.experiment import EXPERIMENT, few_labels


def run(arm, folder):
    scale = Scale(1, 256, {**EXPERIMENT.scales["smoke"].settings, "width": 2, "labels": 480})
    reports = []
    context = Context(Path(folder), {}, lambda done, total: reports.append((done, total)))
    return EXPERIMENT.run(EXPERIMENT.arm(arm), 1, scale, context), reports


def test_arms_process_the_same_images(tmp_path):
    plain, reports = run("plain_ce", tmp_path / "plain")
    bake, _ = run("bake", tmp_path / "bake")
    assert plain.images == bake.images == 256
    assert plain.steps == bake.steps == 8
    assert reports[-1] == (256, 256)
    assert set(plain.metrics) == set(bake.metrics) == {"top1_error", "ece"}
    assert all(0 <= value <= 100 for value in bake.metrics.values())
    assert "train_bake_distillation" in bake.curves
    assert "train_bake_distillation" not in plain.curves
    assert bake.settings["omega"] == 0.5


def test_few_labels_are_drawn_by_seed_and_never_tested_on():
    data, again, other = few_labels(1, 20), few_labels(1, 20), few_labels(2, 20)
    assert np.bincount(data.train.targets).tolist() == [20] * 10
    assert len(data.train) + len(data.val) == 5000
    pictures = {data.train.raw(i).numpy().tobytes() for i in range(200)}
    assert pictures == {again.train.raw(i).numpy().tobytes() for i in range(200)}
    assert pictures != {other.train.raw(i).numpy().tobytes() for i in range(200)}
    assert not any(data.val.raw(i).numpy().tobytes() in pictures for i in range(len(data.val)))


def test_the_declaration_compares_like_with_like():
    baseline, method = EXPERIMENT.arm(EXPERIMENT.baseline), EXPERIMENT.arm(EXPERIMENT.method)
    assert {**baseline.settings, "weight": 1.0} == method.settings  # the loss is the only difference
    assert {arm.settings["omega"] for arm in EXPERIMENT.arms if arm.settings["weight"]} == {0.1, 0.5, 0.9}
    assert EXPERIMENT.scales["small"].seeds >= 5
