from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from repertory.systems.bake import ClassPairBatchSampler

TARGETS = np.random.default_rng(0).integers(0, 7, 103)


def split(batch, partners):
    """Anchors, and the partners of each, of an anchors-first batch of whole groups."""
    anchors = len(batch) // (partners + 1)
    rest = batch[anchors:]
    return batch[:anchors], [rest[i * partners : (i + 1) * partners] for i in range(anchors)]


@pytest.mark.parametrize("partners", [1, 3])
def test_an_epoch_has_every_image_as_an_anchor_once(partners):
    sampler = ClassPairBatchSampler(TARGETS, 8 * (partners + 1), partners)
    batches = list(sampler)
    assert len(batches) == len(sampler) == -(-len(TARGETS) // 8)
    assert sorted(a for batch in batches for a in split(batch, partners)[0]) == list(range(len(TARGETS)))
    assert sum(map(len, batches)) == (partners + 1) * len(TARGETS)
    assert {len(batch) for batch in batches[:-1]} == {8 * (partners + 1)}


@pytest.mark.parametrize("partners", [1, 3])
def test_partners_share_the_class_and_differ_from_each_other(partners):
    for batch in ClassPairBatchSampler(TARGETS, 8 * (partners + 1), partners):
        for anchor, others in zip(*split(batch, partners), strict=True):
            assert anchor not in others
            assert {TARGETS[other] for other in others} == {TARGETS[anchor]}
            assert len(set(others)) == partners


def test_partners_are_drawn_uniformly():
    sampler = ClassPairBatchSampler([0] * 5, 9, 2)
    pairs: Counter[tuple[int, int]] = Counter()
    for epoch in range(600):
        sampler.set_epoch(epoch)
        for batch in sampler:
            pairs.update((a, o) for a, others in zip(*split(batch, 2), strict=True) for o in others)
    assert set(pairs) == {(a, o) for a in range(5) for o in range(5) if a != o}
    assert max(abs(count - 300) for count in pairs.values()) < 60  # expected 300, deviation 12


def test_scarce_classes_repeat_their_images():
    (batch,) = ClassPairBatchSampler([0, 0, 1, 1, 1], 20, 3)
    for anchor, others in zip(*split(batch, 3), strict=True):
        assert anchor not in others
        if anchor < 2:
            assert others == [1 - anchor] * 3


def test_an_image_alone_in_its_class_comes_without_partners():
    targets = [0] * 9 + [1, 2]
    batches = list(ClassPairBatchSampler(targets, 4, 1, seed=3))
    taken = Counter(i for batch in batches for i in batch)
    assert taken[9] == taken[10] == 1
    assert sum(taken.values()) == 2 * 9 + 2
    assert all(taken[i] >= 1 for i in range(11))
    assert [len(batch) for batch in batches] == [4] * 5  # the next groups move up
    assert len(ClassPairBatchSampler(targets, 4, 1, seed=3)) == 5


def test_no_partners_give_plain_shuffled_batches():
    batches = list(ClassPairBatchSampler(TARGETS, 10, 0))
    assert sorted(i for batch in batches for i in batch) == list(range(len(TARGETS)))


def test_grouped_order_puts_partners_behind_their_anchor():
    first = next(iter(ClassPairBatchSampler(TARGETS, 16, 3)))
    grouped = next(iter(ClassPairBatchSampler(TARGETS, 16, 3, order="grouped")))
    anchors, partners = split(first, 3)
    assert grouped == [i for anchor, others in zip(anchors, partners, strict=True) for i in (anchor, *others)]


@pytest.mark.parametrize("targets", [TARGETS, [0] * 40 + [1, 2, 3] + [4] * 20])
@pytest.mark.parametrize("world", [2, 3])
def test_processes_together_take_the_batches_of_one(targets, world):
    alone = list(ClassPairBatchSampler(targets, 4 * world, 1, seed=5))
    ranks = [list(ClassPairBatchSampler(targets, 4, 1, seed=5, rank=r, world=world)) for r in range(world)]
    assert {len(batches) for batches in ranks} == {len(ranks[0])}
    together = [Counter(i for batch in step for i in batch) for step in zip(*ranks, strict=True)]
    assert together[:-1] == [Counter(batch) for batch in alone[: len(together) - 1]]
    assert all(len({len(batch) for batch in step}) == 1 for step in zip(*ranks, strict=True))
    assert set().union(*together) == set(range(len(targets)))


def test_anchors_of_processes_are_disjoint_and_cover_the_data():
    targets = np.arange(96) % 4
    ranks = [ClassPairBatchSampler(targets, 8, 1, rank=r, world=3) for r in range(3)]
    anchors = [i for sampler in ranks for batch in sampler for i in split(batch, 1)[0]]
    assert sorted(anchors) == list(range(96))
    assert {sum(map(len, sampler)) for sampler in ranks} == {2 * 32}


def test_the_order_follows_from_seed_and_epoch():
    def order(seed, epoch):
        sampler = ClassPairBatchSampler(TARGETS, 8, 1, seed=seed)
        sampler.set_epoch(epoch)
        torch.rand(3)  # the global generator has no say
        return list(sampler)

    assert order(1, 4) == order(1, 4)
    assert all(a != b for a, b in pairwise([order(1, 4), order(1, 5), order(2, 4)]))


def test_a_pass_resumes_in_the_middle():
    sampler = ClassPairBatchSampler(TARGETS, 8, 1, seed=2)
    sampler.set_epoch(3)
    whole = list(sampler)
    passing = iter(sampler)
    taken = [next(passing) for _ in range(5)]
    state = sampler.state_dict()
    other = ClassPairBatchSampler(TARGETS, 8, 1)
    other.load_state_dict(state)
    other.set_epoch(3)  # as loops do at the start of an epoch
    assert taken + list(other) == whole
    assert list(other) == whole  # the pass after that starts at the beginning
    other.load_state_dict(state)
    other.set_epoch(4)
    assert len(list(other)) == len(whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((TARGETS, 9, 1), "batch_size is 9 .* multiple of 2 .* such as 8 or 10"),
        ((TARGETS, 2, 3), "such as 4 or 8"),
        ((TARGETS, 1, 0), "at least 2"),
        ((TARGETS, 8, -1), "partners is -1"),
        ((TARGETS, 8, 1, 0, 2, 2), "rank is 2"),
        ((TARGETS, 8, 1, 0, 0, 1, "random"), "order is 'random'; it must be one of"),
        (([0.5, 1.0], 2, 1), "one class number an image"),
        (([], 2, 1), "one class number an image"),
        ((np.zeros((4, 2), int), 2, 1), "one class number an image"),
    ],
)
def test_bad_input_meets_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClassPairBatchSampler(*arguments)
