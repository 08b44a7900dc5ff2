"""The store of difficulties: what is recorded in an epoch takes effect when it is collected."""

import pytest
import torch
from torch.nn import functional as F

from repertory.training.difficulty import UNSEEN, DifficultyStore, class_of, label_entropy


def test_scores_take_effect_when_they_are_collected():
    store = DifficultyStore(5)
    store.record(torch.tensor([3, 1]), torch.tensor([0.5, 2.0]))
    assert store.at(torch.arange(5)).tolist() == [UNSEEN] * 5
    assert store.collect().tolist() == [UNSEEN, 2.0, UNSEEN, 0.5, UNSEEN]
    store.record(torch.tensor([3]), torch.tensor([0.25]))
    store.collect()
    assert store.at(torch.tensor([3, 1, 0])).tolist() == [0.25, 2.0, UNSEEN]


def test_of_several_scores_in_one_epoch_the_highest_counts_in_any_order():
    scores = [(0, 1.0), (0, 3.0), (1, 5.0), (0, 2.0), (1, 4.0)]
    found = []
    for order in (scores, scores[::-1]):
        store = DifficultyStore(2)
        for index, score in order[:2]:
            store.record(torch.tensor([index]), torch.tensor([score]))
        store.record(torch.tensor([i for i, _ in order[2:]]), torch.tensor([s for _, s in order[2:]]))
        found.append(store.collect().tolist())
    assert found == [[3.0, 5.0]] * 2


def test_a_later_epoch_replaces_a_higher_score():
    store = DifficultyStore(1)
    for score in (3.0, 1.0):
        store.record(torch.tensor([0]), torch.tensor([score]))
        store.collect()
    assert store.values.item() == 1.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_not_finite_is_named_when_collected(bad):
    store = DifficultyStore(4)
    store.record(torch.tensor([1, 2]), torch.tensor([0.5, bad]))
    store.record(torch.tensor([2]), torch.tensor([0.1]))
    with pytest.raises(ValueError, match=r"the score of sample 2 is not finite \(1 in all are not\)"):
        store.collect()


@pytest.mark.parametrize("index", [-1, 4])
def test_an_index_outside_the_data_is_named(index):
    with pytest.raises(ValueError, match=rf"index {index} is out of range: the store has samples 0 to 3"):
        DifficultyStore(4).record(torch.tensor([0, index]), torch.zeros(2))


def test_shapes_and_sizes_that_do_not_fit_are_said():
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\); both must be \(B,\)"):
        DifficultyStore(4).record(torch.tensor([0, 1]), torch.zeros(3))
    with pytest.raises(ValueError, match="size is 0"):
        DifficultyStore(0)
    with pytest.raises(ValueError, match="the saved scores are of 4 samples, but the data set has 5"):
        DifficultyStore(5).load_state_dict(DifficultyStore(4).state_dict())


def test_a_state_taken_in_the_middle_of_an_epoch_goes_on_there():
    store, other = DifficultyStore(3), DifficultyStore(3)
    store.record(torch.tensor([0]), torch.tensor([1.0]))
    store.collect()
    store.record(torch.tensor([1]), torch.tensor([2.0]))
    state = store.state_dict()
    store.record(torch.tensor([0]), torch.tensor([9.0]))  # after the state was taken
    other.load_state_dict(state)
    assert other.values.tolist() == [1.0, UNSEEN, UNSEEN]
    other.record(torch.tensor([2]), torch.tensor([3.0]))
    assert other.collect().tolist() == [1.0, 2.0, 3.0]


def test_recording_never_reads_a_value_back():
    """On the meta device, where nothing has a value, whatever waits for one fails."""
    store = DifficultyStore(8)
    store.record(torch.empty(4, dtype=torch.int64, device="meta"), torch.empty(4, device="meta"))
    assert store.at(torch.empty(4, dtype=torch.int64, device="meta")).device.type == "meta"


def test_the_score_is_the_cross_entropy_of_the_dominant_class():
    logits, labels = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 2, 1, 1])
    scores = label_entropy(logits, labels)
    torch.testing.assert_close(scores, F.cross_entropy(logits, labels, reduction="none").detach())
    assert not scores.requires_grad
    mixed = 0.6 * F.one_hot(labels, 3) + 0.4 * F.one_hot(labels.flip(0), 3)
    assert torch.equal(class_of(mixed), labels)
    assert torch.equal(label_entropy(logits, mixed), scores)


def test_scores_of_half_precision_are_computed_in_full():
    logits, labels = torch.randn(6, 3).bfloat16(), torch.tensor([0, 1, 2, 0, 1, 2])
    assert torch.equal(label_entropy(logits, labels), label_entropy(logits.float(), labels))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recording_does_not_wait_for_the_device():
    store = DifficultyStore(1000)
    indices, scores = torch.arange(100, device="cuda"), torch.rand(100, device="cuda")
    store.record(indices, scores)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        store.record(indices, scores)
        store.at(indices)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(store.collect()[:100], scores)
