"""Order, augmentation and step draws are functions of the seed and of where they stand."""

import random

import numpy as np
import pytest
import torch
from training_cases import digits, settings

from repertory.data import ArrayImages, Preprocessing
from repertory.training.augmentation import AUGMENTATIONS, Augmented, Draw, crop, flip
from repertory.training.loading import ShuffledBatches, TrainLoader
from repertory.training.optimization import lr_factor
from repertory.training.randomness import derive_seed, generator, replica_seed, reseed
from repertory.training.records import MetricsFile


def test_seeds_differ_by_purpose_and_counter_and_fit_64_bits():
    seeds = {derive_seed(purpose, a, b) for purpose in ("order", "step") for a in range(20) for b in range(20)}
    assert len(seeds) == 800
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed("order", 12, 3) != derive_seed("order", 1, 23)


def test_reseeding_repeats_the_draws_of_a_step_in_every_generator():
    def draws(*where):
        reseed(*where)
        return float(torch.rand(())), float(np.random.rand()), random.random()

    assert draws(0, 5, 0) == draws(0, 5, 0)
    assert len({draws(0, 5, 0), draws(0, 6, 0), draws(0, 5, 1), draws(1, 5, 0)}) == 4


def test_the_first_replica_keeps_the_seed_of_the_run():
    assert replica_seed(7, 0) == 7
    assert len({replica_seed(7, replica) for replica in range(4)}) == 4


@pytest.mark.parametrize("augment", [name for name in AUGMENTATIONS if name != "none"])
def test_an_augmentation_depends_on_seed_epoch_and_sample_alone(augment):
    data = Augmented(digits().train, augment)
    image, label, index = data[Draw(0, 3, 11)]
    torch.rand(5)
    assert torch.equal(data[Draw(0, 3, 11)][0], image)
    assert image.shape == data.dataset[11][0].shape
    assert (label, index) == (data.targets[11], 11)
    others = [Draw(0, epoch, 11) for epoch in range(4, 12)] + [Draw(seed, 3, 11) for seed in range(1, 9)]
    assert any(not torch.equal(data[other][0], image) for other in others[:8])
    assert any(not torch.equal(data[other][0], image) for other in others[8:])


def test_a_crop_moves_the_image_by_no_more_than_an_eighth():
    image = torch.zeros(1, 16, 16)
    image[0, 8, 8] = 1
    places = {tuple(crop(image, generator("test", draw)).nonzero()[0].tolist()[1:]) for draw in range(400)}
    assert places == {(y, x) for y in range(6, 11) for x in range(6, 11)}


def test_a_flip_comes_half_of_the_time():
    image = torch.arange(4.0).view(1, 1, 4)
    flipped = sum(bool(flip(image, generator("test", draw))[0, 0, 0] == 3) for draw in range(400))
    assert 160 < flipped < 240


def test_a_resized_crop_is_cut_from_the_stored_picture():
    stored = torch.rand(2, 3, 40, 60)
    data = ArrayImages(stored, [0, 1], ["a", "b"], Preprocessing(size=(16, 16), crop=0.875))
    image, label, index = Augmented(data, "resized-crop-flip")[Draw(0, 0, 1)]
    assert image.shape == (3, 16, 16)
    assert (label, index) == (1, 1)


def test_an_epoch_passes_every_image_once_in_full_batches():
    sampler = ShuffledBatches(100, 16, seed=0)
    orders = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert [len(batch) for batch in batches] == [16] * 6 == [16] * len(sampler)
        orders.append([index for batch in batches for index in batch])
        assert len(set(orders[-1])) == 96
    assert orders[0] != orders[1]


def test_processes_share_the_batches_of_one():
    one = list(ShuffledBatches(100, 16, seed=3))
    shares = [list(ShuffledBatches(100, 8, seed=3, rank=rank, world=2)) for rank in range(2)]
    assert [a + b for a, b in zip(*shares)] == one


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_at_any_step(workers):
    run = settings(workers=workers, augment="crop", accumulate=2)
    loader = TrainLoader(digits().train, [], run, replicas=2)
    whole = [part for _ in range(2) for part in loader]
    assert len(whole) == 2 * 10
    assert loader.state_dict() == {"epoch": 2, "step": 0}
    again = TrainLoader(digits().train, [], run, replicas=2)
    again.load_state_dict({"epoch": 1, "step": 3})
    rest = list(again)
    assert len(rest) == 4
    assert again.length == 5
    for given, expected in zip(rest, whole[-4:]):
        for one, other in zip(given, expected):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.indices, other.indices)


def test_too_few_images_to_accumulate_are_said():
    with pytest.raises(ValueError, match="accumulate is 4, but an epoch has only 2 batches of 8 images"):
        TrainLoader(digits(train=16).train, [], settings(accumulate=4)).steps(0)


def test_schedules():
    assert [lr_factor("constant", step, 10, 0) for step in (0, 9)] == [1, 1]
    assert lr_factor("cosine", 0, 10, 0) == 1
    assert lr_factor("cosine", 5, 10, 0) == pytest.approx(0.5)
    assert lr_factor("cosine", 10, 10, 0) == pytest.approx(0)
    assert [lr_factor("step", step, 8, 0) for step in (3, 4, 6)] == pytest.approx([1, 0.1, 0.01])
    assert [lr_factor("cosine", step, 10, 3) for step in range(3)] == [0.25, 0.5, 0.75]
    assert lr_factor("cosine", 3, 10, 3) == 1


def test_records_take_new_columns_and_drop_what_came_after_a_checkpoint(tmp_path):
    records = MetricsFile(tmp_path / "metrics.csv")
    place = {"epoch": 0, "seconds": 0.5}
    records.append({"step": 1, "images": 32, **place, "train_loss": 2.0})
    records.append({"step": 2, "images": 64, **place, "val_top1": 0.25})
    records.append({"step": 3, "images": 96, **place, "train_loss": 1.0})
    again = MetricsFile(tmp_path / "metrics.csv")
    again.keep_until(2)
    assert again.curves() == {"train_loss": [(32, 2.0)], "val_top1": [(64, 0.25)]}
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == "step,epoch,images,seconds,train_loss,val_top1"
    again.append({"step": 3, "images": 96, **place, "train_loss": 1.5})
    assert again.curves()["train_loss"] == [(32, 2.0), (96, 1.5)]
