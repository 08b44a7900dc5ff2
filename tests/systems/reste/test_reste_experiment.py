from pathlib import Path

import pytest

from repertory.evidence import Context, Scale
from repertory.systems.reste.experiment import EXPERIMENT


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    scale = Scale(1, 100, {**EXPERIMENT.scales["smoke"].settings, "width": 2, "side": 12})
    return {
        arm: EXPERIMENT.run(EXPERIMENT.arm(arm), 1, scale, Context(Path(folder / arm), {}, lambda done, total: None))
        for arm in ("fixed_1", "rising_3")
    }


def test_arms_process_the_same_images_and_report_the_estimating_error(results):
    baseline, method = results["fixed_1"], results["rising_3"]
    assert baseline.images == method.images == 100
    for result in results.values():
        assert {"top1", "estimating_error"} <= set(result.metrics)
        assert result.metrics["estimating_error"] > 0


def test_arms_differ_in_the_estimator_alone():
    assert {arm.settings["estimator"] for arm in EXPERIMENT.arms} == {"reste", "error_decay"}
    assert all(set(arm.settings) == {"estimator", "settings"} for arm in EXPERIMENT.arms)
    assert EXPERIMENT.arm(EXPERIMENT.baseline).settings["settings"] == {"power": 1.0, "end": None}
    assert EXPERIMENT.arm(EXPERIMENT.method).settings["settings"] == {"power": 1.0, "end": 3.0}
    assert EXPERIMENT.scales["small"].seeds >= 5
