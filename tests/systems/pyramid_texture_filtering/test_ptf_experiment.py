"""The experiment measures distance to a structure that is known, on photographs that are bundled."""

import dataclasses

import numpy as np
import pytest

from repertory.evidence import Context
from repertory.systems.pyramid_texture_filtering.experiment import EXPERIMENT, composite

ONE = dataclasses.replace(EXPERIMENT.scales["smoke"], images=1)


def result_of(name, folder, seed=0):
    return EXPERIMENT.run(EXPERIMENT.arm(name), seed, ONE, Context(folder, {}, lambda done, total: None))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return {arm.name: result_of(arm.name, tmp_path_factory.mktemp(arm.name)) for arm in EXPERIMENT.arms}


def test_every_arm_reports_the_metric_and_pictures(results):
    for arm in EXPERIMENT.arms:
        assert 0 < results[arm.name].metrics[EXPERIMENT.metric] < 1
        assert all(picture.dtype == np.uint8 for picture in results[arm.name].pictures.values())
        assert len(results[arm.name].pictures) == 3


def test_all_arms_filter_the_same_picture(results):
    inputs = {result.metrics["structure_error_of_input"] for result in results.values()}
    assert len(inputs) == 1


def test_one_bilateral_filter_leaves_texture_stronger_than_its_range(results):
    untouched = results["bilateral"].metrics["structure_error_of_input"]
    assert results["bilateral"].metrics["structure_error"] > 0.8 * untouched
    assert results["ptf"].metrics["structure_error"] < 0.5 * untouched


def test_composites_differ_by_seed_and_come_back_by_seed():
    first, again, other = (composite(seed, 0, (48, 64), 0.1)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.05
