"""The experiment erases equal areas, and gives shares, gap and a picture of the periods."""

import pytest
import torch

from repertory.evidence import Context, Scale
from repertory.systems.patch_erasing.experiment import EXPERIMENT, PATCH, method_of
from repertory.training import Batch, Progress


def run(arm, folder, seed=0):
    settings = {**EXPERIMENT.scales["smoke"].settings, "width": 16, "depth": 1}
    scale = Scale(1, 960, settings)
    return EXPERIMENT.run(EXPERIMENT.arm(arm), seed, scale, Context(folder, {}, lambda done, total: None))


def test_a_run_gives_shares_gap_and_picture(tmp_path):
    result = run("patch_30", tmp_path)
    assert result.images == 960
    assert set(result.metrics) == {"top1_error", "ece", "train_top1_error"}
    assert {"patch_erasing_easy", "patch_erasing_moderate", "patch_erasing_hard"} <= set(result.curves)
    (picture,) = result.pictures.values()
    assert picture.ndim == 3
    assert picture.shape[2] == 3
    assert len(picture.reshape(-1, 3)) > 10_000
    assert picture.min() < 100 < 200 < picture.max()


def test_of_every_arm_one_picture_is_enough(tmp_path):
    assert run("rectangle", tmp_path, seed=1).pictures == {}


@pytest.mark.parametrize("name", ["rectangle", "pixel", "patch_30"])
def test_arms_to_be_compared_erase_the_same_area(name):
    torch.manual_seed(0)
    batch = Batch(torch.rand(200, 1, 8, 8) + 1, torch.zeros(200).long(), torch.arange(200))
    erased = method_of(EXPERIMENT.arm(name).settings).transform_batch(batch, Progress(0, 0, 1)).images.eq(0)
    assert float(erased.float().mean()) == pytest.approx(0.3, abs=0.03)


def test_the_patches_erased_are_those_of_the_network():
    from repertory.systems.patch_erasing.experiment import small_vit

    network = small_vit(10, {"width": 16, "depth": 1}, 0)
    assert tuple(network.patch_embed.patch_size) == (PATCH, PATCH)
    assert method_of(EXPERIMENT.arm("none").settings).rate == 0
