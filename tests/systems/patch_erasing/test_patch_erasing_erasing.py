"""Erasing patches of a batch at once, and mixing by difficulty."""

import pytest
import torch
from torch.nn import functional as F

from repertory.systems.patch_erasing import FollowPeriod, FollowProportion, erase_patches, mixup


def erased_patches(before, after, patch):
    """Which patches (B, rows, columns) are zero all over; fails where one is changed otherwise."""
    gone = F.unfold(after, patch, stride=patch).eq(0).all(1)
    same = F.unfold(after, patch, stride=patch).eq(F.unfold(before, patch, stride=patch)).all(1)
    assert (gone ^ same).all()
    return gone


@pytest.mark.parametrize(("rate", "count"), [(0.0, 0), (0.1, 2), (0.3, 5), (0.5, 8), (0.9, 14)])
def test_the_share_of_patches_is_erased_from_every_image(rate, count):
    images = torch.rand(6, 3, 16, 16) + 1
    gone = erased_patches(images, erase_patches(images, rate, 4), 4)
    assert gone.sum(1).tolist() == [count] * 6


def test_images_given_stay_as_they_are():
    images = torch.rand(2, 1, 8, 8) + 1
    before = images.clone()
    for rate in (0.0, 0.5, torch.tensor([0.5, 0.0])):
        after = erase_patches(images, rate, 4)
        assert after.data_ptr() != images.data_ptr()
    assert torch.equal(images, before)


def test_each_image_may_have_its_own_rate():
    images = torch.rand(4, 2, 8, 8) + 1
    gone = erased_patches(images, erase_patches(images, torch.tensor([0.0, 0.25, 0.5, 1.0]), 2), 2)
    assert gone.sum(1).tolist() == [0, 4, 8, 15]  # the last patch stays


def test_one_rate_and_equal_rates_erase_as_many():
    images = torch.rand(5, 1, 12, 12) + 1
    for rate in (0.2, 0.35, 0.7):
        counts = [
            erased_patches(images, erase_patches(images, r, 3), 3).sum(1).tolist()
            for r in (rate, torch.full((5,), rate))
        ]
        assert counts[0] == counts[1]


def test_patches_are_drawn_uniformly_and_apart_for_each_image():
    torch.manual_seed(0)
    images = torch.ones(4000, 1, 4, 4)
    for rate in (0.5, torch.full((4000,), 0.5)):
        gone = erased_patches(images, erase_patches(images, rate, 2), 2).float()
        assert (gone.mean(0) - 0.5).abs().max() < 0.04  # deviation 0.008
        both = (gone.T @ gone / 4000).fill_diagonal_(1 / 6)
        assert (both - 1 / 6).abs().max() < 0.03


def test_patches_need_not_be_square():
    images = torch.rand(3, 1, 8, 12) + 1
    after = erase_patches(images, 0.5, (4, 6))
    halves = after.eq(0).view(3, 2, 4, 2, 6).all(4).all(2)
    assert halves.sum((1, 2)).tolist() == [2, 2, 2]


def test_pixels_are_patches_of_one():
    images = torch.rand(2, 3, 10, 10) + 1
    gone = erase_patches(images, 0.3, 1).eq(0)
    assert gone.sum((2, 3)).tolist() == [[30] * 3] * 2
    assert torch.equal(gone[:, 0], gone[:, 2])


def test_noise_is_normal_and_everywhere_else_nothing_changes():
    torch.manual_seed(0)
    images = torch.full((50, 3, 16, 16), 7.0)
    after = erase_patches(images, 0.5, 8, "noise")
    noise = after[after != 7]
    assert len(noise) == 50 * 3 * 128
    assert float(noise.mean()) == pytest.approx(0, abs=0.05)
    assert float(noise.std()) == pytest.approx(1, abs=0.05)


def test_the_device_is_not_waited_for():
    """On the meta device, where nothing has a value, whatever waits for one fails."""
    images = torch.empty(2, 3, 8, 8, device="meta")
    for rate in (0.5, torch.empty(2, device="meta")):
        for fill in ("mean", "noise"):
            assert erase_patches(images, rate, 4, fill).shape == images.shape


def test_dtype_and_layout_are_kept():
    images = torch.rand(2, 3, 8, 8, dtype=torch.bfloat16)
    assert erase_patches(images, 0.5, 4).dtype == torch.bfloat16
    last = torch.rand(2, 3, 8, 8).contiguous(memory_format=torch.channels_last) + 1
    assert erased_patches(last, erase_patches(last, 0.5, 4), 4).sum(1).tolist() == [2, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(1, 1, 8, 8), 1.0, 4), "rate is 1.0; it must be at least 0 and below 1"),
        ((torch.zeros(1, 1, 8, 8), -0.1, 4), "rate is -0.1"),
        ((torch.zeros(1, 1, 8, 8), 0.9, 4), "rate is 0.9: of 4 patches none would be left"),
        ((torch.zeros(1, 1, 8, 9), 0.5, 4), "patch_size is 4 x 4, which does not divide images of 8 x 9"),
        ((torch.zeros(1, 1, 9, 8), 0.5, 4), "does not divide images of 9 x 8"),
        ((torch.zeros(1, 1, 8, 8), 0.5, 0), "patch_size is 0 x 0"),
        ((torch.zeros(1, 8, 8), 0.5, 4), r"images have shape \(1, 8, 8\); they must be \(B, C, H, W\)"),
        ((torch.zeros(1, 1, 8, 8), 0.5, 4, "black"), "fill is 'black'; it must be one of mean, noise"),
    ],
)
def test_bad_input_meets_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        erase_patches(*arguments)


def history(*easy):
    return [{"easy": share, "hard": 1 - share} for share in easy]


def test_mixing_grows_with_the_share_of_easy_samples():
    policy = FollowProportion(lowest=0.2, highest=1.0, target=0.5)
    assert policy([]) == pytest.approx(0.2)
    assert policy(history(0.9, 0.25)) == pytest.approx(0.6)
    assert policy(history(0.5)) == policy(history(0.8)) == pytest.approx(1.0)


def test_mixing_may_follow_the_period():
    policy = FollowPeriod(formation=0.1, growth=0.4, exploration=0.9)
    rising = [0.0, 0.01, 0.02, 0.2, 0.4, 0.6, 0.75, 0.78, 0.79, 0.795, 0.797, 0.798]
    found = [policy(history(*rising[:epoch])) for epoch in range(len(rising) + 1)]
    assert found[:3] == [0.1] * 3
    assert found[-1] == 0.9
    assert found == sorted(found)
    assert 0.4 in found


def test_mixing_pairs_images_and_labels_by_one_weight():
    torch.manual_seed(1)
    images, labels = torch.eye(4).view(4, 1, 2, 2), torch.arange(4)
    mixed, soft = mixup(images, labels, 0.8, 4)
    weight = float(mixed[0, 0, 0, 0])
    assert 0 < weight < 1
    torch.testing.assert_close(mixed.flatten(1), weight * torch.eye(4) + (1 - weight) * torch.eye(4).flip(0))
    torch.testing.assert_close(soft, mixed.flatten(1))
    again, softer = mixup(images, soft, 0.8, 4)
    torch.testing.assert_close(softer.sum(1), torch.ones(4))
    assert again.shape == images.shape


def test_a_larger_parameter_mixes_more():
    torch.manual_seed(0)
    images, labels = torch.tensor([[[[0.0]]], [[[1.0]]]]), torch.tensor([0, 1])
    shares = [
        torch.stack([mixup(images, labels, parameter, 2)[0][0].min() for _ in range(400)])
        for parameter in (0.1, 1.0, 8.0)
    ]
    closeness = [float((share - 0.5).abs().mean()) for share in shares]
    assert closeness[0] > closeness[1] + 0.05 > closeness[2] + 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FollowProportion(lowest=0.0), "lowest and highest are 0.0 and 1.0"),
        (lambda: FollowProportion(lowest=2.0), "lowest and highest are 2.0 and 1.0"),
        (lambda: FollowProportion(target=0.0), "target is 0.0"),
        (lambda: FollowPeriod(growth=0.0), "growth is 0.0; it must be above 0"),
    ],
)
def test_bad_policies_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
