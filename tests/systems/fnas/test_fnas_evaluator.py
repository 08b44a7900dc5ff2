"""The proxy training of one candidate: on the training set alone, repeatable, and a failure is worth nothing."""

import numpy as np
import pytest
import torch

from repertory.data import ArrayImages, ImageData, load
from repertory.data.preprocessing import Preprocessing
from repertory.systems.fnas import (
    KnowledgePool,
    SearchSettings,
    TrainedAccuracy,
    Trial,
    UniformPolicy,
    miniature,
    search,
)
from repertory.systems.fnas.evaluator import proxy_split
from repertory.training import FitSettings

SPACE = miniature((1, 8, 8))
TOKENS = SPACE.canonical((1, 0, 0, 2, 0, 0) * 3)
EPOCH = FitSettings(epochs=1, batch_size=32, lr=0.05, accelerator="cpu")


def few(count=96):
    digits = load("digits")
    images = torch.stack([digits.train.raw(i) for i in range(count)])
    part = ArrayImages(images, digits.train.targets[:count], digits.classes, digits.preprocessing)
    return ImageData("few digits", part, digits.val, digits.classes)


def trial(number=1, inherited=None):
    return Trial(number, TOKENS, SPACE.decode(TOKENS), 7, 10, 1, inherited)


def test_the_validation_slice_comes_from_the_training_set():
    data = load("digits")
    split = proxy_split(data, 0.2)
    assert len(split.train) + len(split.val) == len(data.train)
    assert not set(split.train.indices) & set(split.val.indices)
    assert split.train.dataset is split.val.dataset is data.train
    share = np.bincount(split.val.targets) / np.bincount(data.train.targets)
    assert share == pytest.approx([0.2] * 10, abs=0.005)


def test_a_part_counts_its_samples_anew():
    split = proxy_split(load("digits"), 0.2)
    image, label, index = split.val[3]
    assert index == 3
    assert label == split.val.targets[3]
    assert torch.equal(image, load("digits").train[split.val.indices[3]][0])


def test_a_trial_gives_accuracy_weights_and_what_it_cost():
    evaluate = TrainedAccuracy(few(), EPOCH, held_out=0.3)
    outcome = evaluate(trial())
    train = len(evaluate.data.train) // 32 * 32
    assert (outcome.images, outcome.updates) == (train, train // 32)
    assert 0 <= outcome.accuracy <= 1
    trial().build().load_state_dict(outcome.weights)
    again = evaluate(trial())
    assert again.accuracy == outcome.accuracy
    assert all(torch.equal(again.weights[name], tensor) for name, tensor in outcome.weights.items())


def test_inherited_weights_are_where_the_training_begins():
    state = {name: tensor + 0.5 for name, tensor in trial().build().state_dict().items() if tensor.is_floating_point()}
    inherited = {**trial().build().state_dict(), **state}
    built = trial(inherited=inherited).build().state_dict()
    assert all(torch.equal(built[name], inherited[name]) for name in inherited)


def test_a_training_that_is_not_finite_is_worth_nothing():
    images = torch.rand(40, 1, 8, 8)
    look = Preprocessing(size=(8, 8), crop=1.0, mean=(0.5,), std=(1e-45,), channels="L")  # makes infinite pixels
    part = ArrayImages(images, [0, 1] * 20, ("a", "b"), look)
    evaluate = TrainedAccuracy(ImageData("broken", part, part, part.classes), EPOCH, held_out=0.2)
    outcome = evaluate(trial())
    assert outcome.accuracy == 0
    assert outcome.weights is None


def test_runs_are_kept_where_they_are_wanted(tmp_path):
    TrainedAccuracy(few(), EPOCH, held_out=0.3, keep=tmp_path)(trial(number=12))
    assert (tmp_path / "00012" / "metrics.csv").is_file()


def test_a_search_of_real_trainings_fills_its_pool():
    evaluate = TrainedAccuracy(few(), EPOCH, held_out=0.3)
    settings = SearchSettings(trainings=3, batch_size=2)
    pool = KnowledgePool()
    result = search(SPACE, evaluate, settings=settings, pool=pool, policy=UniformPolicy(SPACE), critic=False)
    assert result.images == 3 * (len(evaluate.data.train) // 32 * 32)
    assert sorted(pool.entries) == [0, 1, 2, 3, 4]
    assert result.best.accuracy == max(candidate.accuracy for candidate in result.candidates)


@pytest.mark.parametrize("share", [0, 1, -0.5])
def test_the_held_out_share_is_a_fraction(share):
    with pytest.raises(ValueError, match=r"held_out is .*; it must be above 0 and below 1"):
        TrainedAccuracy(few(), EPOCH, held_out=share)


def test_a_class_of_one_image_cannot_be_held_out():
    part = ArrayImages(torch.rand(3, 1, 8, 8), [0, 0, 1], ("a", "b"), load("digits").preprocessing)
    with pytest.raises(ValueError, match="class 1 of tiny has one training image"):
        TrainedAccuracy(ImageData("tiny", part, part, part.classes), EPOCH)
