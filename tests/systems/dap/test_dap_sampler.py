"""Which samples an epoch has, and the batches that are cut from them."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from repertory.systems.dap import Confident, Cycle, DropAndPick, DropAndPickBatches, LowestFraction
from repertory.training.loading import ShuffledBatches

CYCLE = Cycle(warmup=1, period=3, final=1)


def begun(selection, scores, epoch):
    """Indices kept in ``epoch``, where every visited sample has had ``scores`` in every epoch before."""
    for now in range(epoch + 1):
        kept = selection.begin(now)
        selection.record(kept, torch.tensor(scores, dtype=torch.float32)[kept])
    return selection.begin(epoch).tolist()


def test_the_lowest_scores_are_dropped_and_picked_up_again():
    scores = [0.5, 0.1, 0.9, 0.2, 0.7]
    selection = DropAndPick(5, CYCLE, LowestFraction(0.4), epochs=8)
    assert [begun(DropAndPick(5, CYCLE, LowestFraction(0.4), epochs=8), scores, epoch) for epoch in (0, 1, 4, 7)] == [
        [0, 1, 2, 3, 4]
    ] * 4
    assert begun(selection, scores, 2) == [0, 2, 4]
    assert selection.counts == [5, 5, 3]
    assert selection.realised_cost == 13 / 15


def test_dropping_may_accumulate_until_the_next_pick():
    scores = [float(i) for i in range(10)]
    selection = DropAndPick(10, Cycle(1, 4, 0), LowestFraction(0.5), accumulate=True)
    assert begun(selection, scores, 3) == [7, 8, 9]
    assert selection.counts == [10, 10, 5, 3]
    assert begun(DropAndPick(10, Cycle(1, 4, 0), LowestFraction(0.5)), scores, 3) == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("q", [0.1, 0.3, 0.5, 0.9])
def test_ties_go_by_index_so_that_the_count_is_exact(q):
    kept = begun(DropAndPick(50, CYCLE, LowestFraction(q)), [0.0] * 50, 2)
    assert kept == list(range(round(50 * q), 50))


def test_a_sample_that_was_never_visited_is_kept():
    selection = DropAndPick(6, CYCLE, LowestFraction(0.5))
    selection.begin(0)
    selection.record(torch.tensor([1, 2]), torch.tensor([5.0, 6.0]))
    selection.begin(1)
    assert selection.begin(2).tolist() == [0, 3, 4, 5]


def test_the_last_visit_counts_also_for_samples_dropped_since():
    selection = DropAndPick(4, Cycle(1, 4, 0), LowestFraction(0.5))
    for epoch, scores in enumerate([{0: 1, 1: 2, 2: 3, 3: 4}, {0: 1, 1: 2, 2: 3, 3: 4}, {2: 0.1, 3: 0.2}]):
        selection.begin(epoch)
        selection.record(torch.tensor(list(scores)), torch.tensor(list(scores.values()), dtype=torch.float32))
    assert selection.begin(3).tolist() == [0, 1]  # what was dropped before is now harder by its last visit


def test_classes_may_keep_their_shares():
    scores = [0.1, 0.2, 0.3, 0.4, 5.0, 6.0, 7.0, 8.0]
    targets = [0, 0, 0, 0, 1, 1, 1, 1]
    assert begun(DropAndPick(8, CYCLE, LowestFraction(0.5)), scores, 2) == [4, 5, 6, 7]
    assert begun(DropAndPick(8, CYCLE, LowestFraction(0.5), targets=targets), scores, 2) == [2, 3, 6, 7]


def test_confidence_drops_what_is_above_its_threshold():
    probabilities = torch.tensor([0.95, 0.91, 0.9, 0.5, 0.89])
    assert begun(DropAndPick(5, CYCLE, Confident(0.9)), (-probabilities.log()).tolist(), 2)[-2:] == [3, 4]
    assert 0 not in begun(DropAndPick(5, CYCLE, Confident(0.9)), (-probabilities.log()).tolist(), 2)


def test_with_nothing_dropped_batches_are_those_of_ordinary_training():
    selection = DropAndPick(103, CYCLE, LowestFraction(0.0))
    ours, ordinary = DropAndPickBatches(selection, 8, seed=4), ShuffledBatches(103, 8, seed=4)
    for epoch in range(5):
        for sampler in (ours, ordinary):
            sampler.set_epoch(epoch)
        assert list(ours) == list(ordinary)
        selection.record(torch.arange(103), torch.rand(103))


class Watched(Dataset):
    """Notes what is loaded."""

    def __init__(self, size):
        self.size, self.loaded = size, []

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.loaded.append(index)
        return index


def test_dropped_samples_are_not_loaded():
    data = Watched(40)
    selection = DropAndPick(40, CYCLE, LowestFraction(0.5), epochs=4)
    sampler = DropAndPickBatches(selection, 5)
    loader = DataLoader(data, batch_sampler=sampler)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        data.loaded.clear()
        assert len(loader) == (4 if epoch == 2 else 8)
        for indices in loader:
            selection.record(indices, indices.float())
    assert sorted(data.loaded) == list(range(20, 40))


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_batches_of_one(world):
    def run(size, rank, of):
        selection = DropAndPick(70, CYCLE, LowestFraction(0.4))
        sampler = DropAndPickBatches(selection, size, seed=1, rank=rank, world=of)
        for epoch in range(3):
            sampler.set_epoch(epoch)
            selection.record(torch.arange(70), torch.arange(70.0))
        return list(sampler)

    alone = run(4 * world, 0, 1)
    shares = [run(4, rank, world) for rank in range(world)]
    assert [[i for part in parts for i in part] for parts in zip(*shares, strict=True)] == alone
    assert len(alone) == 42 // (4 * world)


def test_a_pass_resumes_in_the_middle_with_the_same_samples():
    def fresh():
        return DropAndPickBatches(DropAndPick(60, CYCLE, LowestFraction(0.5), epochs=9), 5, seed=2)

    def passed(sampler, epochs):
        found = []
        for epoch in epochs:
            sampler.set_epoch(epoch)
            for batch in sampler:
                found.append(batch)
                sampler.selection.record(torch.tensor(batch), torch.tensor(batch).float().sin() + epoch % 2)
        return found

    whole = passed(fresh(), range(9))
    cut, resumed = fresh(), fresh()
    before = passed(cut, range(2))
    cut.set_epoch(2)
    for batch in cut:
        before.append(batch)
        cut.selection.record(torch.tensor(batch), torch.tensor(batch).float().sin())
        if len(before) == 12 + 12 + 3:
            break
    resumed.load_state_dict(cut.state_dict())
    assert before + passed(resumed, range(2, 9)) == whole


def test_fewer_samples_than_a_batch_are_refused_before_training_where_that_is_known():
    with pytest.raises(ValueError, match="epoch 2 keeps 10 of 100 samples, fewer than one batch of 16"):
        DropAndPickBatches(DropAndPick(100, CYCLE, LowestFraction(0.9), epochs=5), 8, world=2)
    with pytest.raises(ValueError, match="epoch 0 keeps 3 of 3 samples, fewer than one batch of 4"):
        DropAndPickBatches(DropAndPick(3, CYCLE, epochs=5), 4)


def test_all_samples_dropped_are_refused_when_it_comes_to_that():
    selection = DropAndPick(20, CYCLE, Confident(0.9), epochs=5)
    sampler = DropAndPickBatches(selection, 4)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        selection.record(torch.arange(20), torch.zeros(20))
    with pytest.raises(ValueError, match="epoch 2 keeps 0 of 20 samples, fewer than one batch of 4"):
        sampler.set_epoch(2)


def test_a_score_that_is_not_finite_is_refused_at_the_end_of_its_epoch():
    selection = DropAndPick(4, CYCLE)
    selection.begin(0)
    selection.record(torch.arange(4), torch.tensor([0.0, 1.0, float("nan"), 2.0]))
    with pytest.raises(ValueError, match="the score of sample 2 is not finite"):
        selection.begin(1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LowestFraction(1.0), "fraction is 1.0; it must be at least 0 and below 1"),
        (lambda: Confident(0.4), "threshold is 0.4; it must be at least 0.5"),
        (lambda: DropAndPick(3, targets=[0, 1]), "targets have shape .2,.* for each of 3 samples"),
        (lambda: DropAndPick(2, targets=[0.0, 1.0]), "one class number for each of 2 samples"),
        (lambda: DropAndPickBatches(DropAndPick(4), 0), "batch_size is 0"),
        (lambda: DropAndPickBatches(DropAndPick(4), 1, rank=2, world=2), "rank is 2"),
        (lambda: DropAndPick(4).begin(3), "epoch is 3; after epoch -1 it must be 0"),
    ],
)
def test_bad_input_meets_a_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()
