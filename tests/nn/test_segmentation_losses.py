"""Hard example mining keeps the pixels that CCNet's released code would keep."""

import numpy as np
import pytest
import torch
from scipy.ndimage import zoom
from torch.nn import functional as F

from repertory.nn.segmentation_losses import ohem_cross_entropy


def batch(size=(33, 49), classes=4, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(2, classes, *size, generator=generator)
    target = torch.randint(0, classes + 1, (2, *size), generator=generator)
    return logits, target.where(target < classes, 255)


def kept_by_the_definition(logits, target, threshold, min_kept, factor):
    """Pixels kept, by NumPy and SciPy and loops over classes, as the definition reads."""
    probability = logits.softmax(1).numpy()
    small = zoom(probability, (1, 1, 1 / factor, 1 / factor), order=1)
    labels = zoom(target.numpy(), (1, 1 / factor, 1 / factor), order=0)
    own = np.concatenate([small[:, label][labels == label] for label in range(logits.shape[1])])
    k, limit = min_kept // factor**2, threshold
    if k >= len(own):
        limit = 1.0
    elif k > 0:
        limit = max(threshold, np.sort(own)[k - 1])
    full = np.full(target.shape, np.inf)
    for label in range(logits.shape[1]):
        full = np.where(target == label, probability[:, label], full)
    return torch.from_numpy(full <= limit)


@pytest.mark.parametrize("size", [(33, 49), (64, 96), (97, 40), (65, 8), (9, 9)])
@pytest.mark.parametrize(
    ("threshold", "min_kept", "factor"),
    [(0.7, 1000, 8), (0.1, 1000, 8), (0.01, 300, 4), (0.5, 0, 8), (0.6, 10**6, 8), (0.2, 40, 1)],
)
def test_the_kept_pixels_are_those_of_the_definition(size, threshold, min_kept, factor):
    logits, target = batch(size)
    kept = kept_by_the_definition(logits, target, threshold, min_kept, factor)
    expected = F.cross_entropy(logits, target, reduction="none", ignore_index=255)[kept].mean()
    found = ohem_cross_entropy(logits, target, threshold, min_kept, factor=factor)
    torch.testing.assert_close(found, expected)


def test_easy_and_ignored_pixels_have_no_gradient():
    logits, target = batch()
    logits.requires_grad_()
    kept = kept_by_the_definition(logits.detach(), target, 0.4, 0, 8)
    (slope,) = torch.autograd.grad(ohem_cross_entropy(logits, target, 0.4, 0), logits)
    assert torch.equal(slope.abs().sum(1) > 0, kept)
    assert 0 < kept.sum() < kept.numel()


def test_with_every_pixel_kept_it_is_the_ordinary_cross_entropy():
    logits, target = batch()
    expected = F.cross_entropy(logits, target, ignore_index=255)
    torch.testing.assert_close(ohem_cross_entropy(logits, target, 0.7, 10**9), expected)
    torch.testing.assert_close(ohem_cross_entropy(logits, target, 1.0, 0), expected)


def test_a_batch_without_a_label_costs_nothing_and_has_a_zero_gradient():
    logits, target = batch()
    logits.requires_grad_()
    loss = ohem_cross_entropy(logits, torch.full_like(target, 255), 0.7, 1000)
    (slope,) = torch.autograd.grad(loss, logits)
    assert loss == 0
    assert not slope.any()


def test_another_index_can_be_ignored():
    logits, target = batch()
    moved = target.where(target != 255, -1)
    expected = ohem_cross_entropy(logits, target, 0.7, 500)
    torch.testing.assert_close(ohem_cross_entropy(logits, moved, 0.7, 500, ignore_index=-1), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_adds_up_in_float32(dtype):
    logits, target = batch()
    found = ohem_cross_entropy(logits.to(dtype), target, 0.7, 500)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, ohem_cross_entropy(logits.to(dtype).float(), target, 0.7, 500))


def test_maps_smaller_than_the_factor_work():
    logits, target = batch((3, 1))
    assert ohem_cross_entropy(logits, target, 0.7, 64).isfinite()


def test_it_compiles_without_a_graph_break():
    logits, target = batch()
    compiled = torch.compile(ohem_cross_entropy, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(logits, target, 0.7, 500), ohem_cross_entropy(logits, target, 0.7, 500))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"logits": torch.zeros(1, 3, 4, 5)}, r"\(1, 3, 4, 5\)"),
        ({"logits": torch.zeros(3, 4, 4)}, r"\(3, 4, 4\)"),
        ({"target": torch.zeros(1, 4, 4)}, "target is torch.float32"),
        ({"threshold": 0.0}, "threshold is 0.0"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"min_kept": -1}, "min_kept is -1"),
        ({"factor": 0}, "factor is 0"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(change, complaint):
    good = {"logits": torch.zeros(1, 3, 4, 4), "target": torch.zeros(1, 4, 4, dtype=torch.int64)}
    with pytest.raises(ValueError, match=complaint):
        ohem_cross_entropy(**{**good, "threshold": 0.7, "min_kept": 10, **change})
