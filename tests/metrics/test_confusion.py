"""The confusion matrix counts as the published scripts do, on hand-made maps and beside torchmetrics."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repertory.metrics import ConfusionMatrix

TRUTH = torch.tensor([[0, 0, 1], [1, 2, 255]])
FOUND = torch.tensor([[0, 1, 1], [1, 1, 2]])


def counted(prediction, target, classes=3, ignore_index=255):
    matrix = ConfusionMatrix(classes)
    matrix.update(prediction, target, ignore_index)
    return matrix


def test_a_map_of_six_pixels_counts_as_by_hand():
    matrix = counted(FOUND, TRUTH)
    assert matrix.matrix.tolist() == [[1, 1, 0], [0, 2, 0], [0, 1, 0]]
    assert matrix.iou.tolist() == [1 / 2, 2 / 4, 0.0]
    assert matrix.miou == pytest.approx(1 / 3)
    assert matrix.pixel_accuracy == pytest.approx(3 / 5)
    assert matrix.mean_accuracy == pytest.approx((1 / 2 + 1 + 0) / 3)


def test_a_class_that_occurs_nowhere_is_left_out_and_one_only_predicted_is_not():
    nowhere = counted(torch.tensor([0, 1]), torch.tensor([0, 1]), classes=5)
    assert nowhere.miou == nowhere.mean_accuracy == 1.0
    assert nowhere.iou.isnan().tolist() == [False, False, True, True, True]
    only_predicted = counted(torch.tensor([0, 2]), torch.tensor([0, 0]), classes=5)
    assert only_predicted.miou == pytest.approx((1 / 2 + 0) / 2)
    assert only_predicted.mean_accuracy == pytest.approx(1 / 2)


def test_what_is_predicted_on_ignored_pixels_does_not_matter():
    other = FOUND.clone()
    other[TRUTH == 255] = 0
    assert torch.equal(counted(FOUND, TRUTH).matrix, counted(other, TRUTH).matrix)
    below = TRUTH.where(TRUTH != 255, -1)
    assert torch.equal(counted(FOUND, below, ignore_index=-1).matrix, counted(FOUND, TRUTH).matrix)


def test_the_mean_is_of_the_whole_split_not_of_its_pictures():
    whole = counted(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 0, 0]), classes=2)
    whole.update(torch.tensor([1]), torch.tensor([1]))
    assert whole.iou.tolist() == [3 / 4, 1 / 2]
    parts = counted(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 0, 0]), classes=2)
    assert torch.equal(parts.merge(counted(torch.tensor([1]), torch.tensor([1]), classes=2)).matrix, whole.matrix)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), classes=st.integers(2, 9), ignored=st.booleans(), height=st.integers(1, 20))
def test_figures_equal_those_of_torchmetrics(seed, classes, ignored, height):
    from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassJaccardIndex

    random = torch.Generator().manual_seed(seed)
    prediction = torch.randint(classes, (2, height, 7), generator=random)
    target = torch.randint(classes, (2, height, 7), generator=random)
    if ignored:
        target[torch.rand(target.shape, generator=random) < 0.3] = 255
        target[0, 0, 0] = 0
    matrix = counted(prediction, target, classes)
    other = {"num_classes": classes, "ignore_index": 255}
    assert torch.equal(matrix.matrix, MulticlassConfusionMatrix(**other)(prediction, target))
    assert matrix.miou == pytest.approx(float(MulticlassJaccardIndex(**other)(prediction, target)), abs=1e-6)
    micro = MulticlassAccuracy(**other, average="micro")
    assert matrix.pixel_accuracy == pytest.approx(float(micro(prediction, target)), abs=1e-6)
    each = MulticlassAccuracy(**other, average="none")(prediction, target)
    present = matrix.matrix.sum(1) > 0
    assert matrix.mean_accuracy == pytest.approx(float(each[present].mean()), abs=1e-6)


def test_counts_stay_exact_where_float32_would_not():
    matrix = ConfusionMatrix(2)
    matrix.load_state_dict({"matrix": torch.tensor([[2**40, 0], [0, 1]])})
    matrix.update(torch.tensor([0]), torch.tensor([0]))
    assert int(matrix.matrix[0, 0]) == 2**40 + 1
    assert matrix.matrix.dtype == torch.int64


def test_counts_survive_being_saved_and_are_forgotten_when_reset():
    matrix = counted(FOUND, TRUTH)
    other = ConfusionMatrix(3)
    other.load_state_dict(matrix.state_dict())
    matrix.reset()
    assert other.pixel_accuracy == pytest.approx(3 / 5)
    assert all(math.isnan(value) for value in matrix.compute().values())
    with pytest.raises(ValueError, match=r"of shape \(3, 3\); here \(4, 4\)"):
        ConfusionMatrix(4).load_state_dict(other.state_dict())


def test_nothing_but_ignored_pixels_counts_nothing():
    assert int(counted(torch.tensor([7]), torch.tensor([255])).matrix.sum()) == 0
    assert int(counted(FOUND[:0], TRUTH[:0]).matrix.sum()) == 0


def _count_a_rank(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    matrix = counted(FOUND[rank], TRUTH[rank]).all_reduce()
    assert torch.equal(matrix.matrix, counted(FOUND, TRUTH).matrix)
    torch.distributed.destroy_process_group()


def test_two_processes_together_hold_the_counts_of_one(tmp_path):
    torch.multiprocessing.spawn(_count_a_rank, args=(str(tmp_path),), nprocs=2)


def test_alone_there_is_nothing_to_reduce():
    assert torch.equal(counted(FOUND, TRUTH).all_reduce().matrix, counted(FOUND, TRUTH).matrix)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_counts_on_the_gpu_equal_those_on_the_cpu():
    matrix = ConfusionMatrix(3, device="cuda")
    matrix.update(FOUND.cuda(), TRUTH.cuda(), 255)
    assert torch.equal(matrix.matrix.cpu(), counted(FOUND, TRUTH).matrix)


@pytest.mark.parametrize(
    ("prediction", "target", "error", "complaint"),
    [
        (torch.rand(2, 3), TRUTH, TypeError, "prediction is torch.float32; it must hold class indices"),
        (FOUND, TRUTH[:1], ValueError, r"shape \(2, 3\) and target \(1, 3\)"),
        (FOUND + 2, TRUTH, ValueError, "prediction holds the class index 3; 3 classes take 0 to 2"),
        (FOUND, TRUTH + 1, ValueError, "target holds the class index 256"),
        (FOUND - 1, TRUTH, ValueError, "prediction holds the class index -1"),
    ],
)
def test_maps_that_cannot_be_compared_are_refused(prediction, target, error, complaint):
    with pytest.raises(error, match=complaint) as caught:
        counted(prediction, target)
    assert "\n" not in str(caught.value)


def test_matrices_of_other_classes_are_not_added():
    with pytest.raises(ValueError, match="a matrix of 3 classes cannot be added to one of 2"):
        ConfusionMatrix(2).merge(ConfusionMatrix(3))
    with pytest.raises(ValueError, match="classes is 0"):
        ConfusionMatrix(0)
