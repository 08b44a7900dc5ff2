"""The loss over stages, by hand."""

import math

import pytest
import torch

from repertory.systems.spgnet.losses import StageLoss
from repertory.systems.spgnet.model import SPGNet

SIZES = {"widths": (8, 8, 12, 12), "depths": (1, 1, 1, 1), "decoder_width": 8}
LABELS = torch.tensor([[[0, 1], [255, 1]]])


def flat(first, second):
    """Logits of two classes, everywhere the same."""
    return torch.tensor([first, second])[None, :, None, None].expand(1, 2, 2, 2)


def entropy(own, other):
    return math.log(math.exp(own) + math.exp(other)) - own


def test_it_sums_the_stages_and_ignores_pixels_without_a_class():
    outputs = {"out": flat(2.0, 0.0), "aux": [flat(0.0, 1.0)]}
    last = (entropy(2.0, 0.0) + 2 * entropy(0.0, 2.0)) / 3
    first = (entropy(0.0, 1.0) + 2 * entropy(1.0, 0.0)) / 3
    assert StageLoss()(outputs, LABELS).item() == pytest.approx(first + last)
    assert StageLoss(weights=(0.4, 1.0))(outputs, LABELS).item() == pytest.approx(0.4 * first + last)
    assert StageLoss()(flat(2.0, 0.0), LABELS).item() == pytest.approx(last)


def test_another_pixel_loss_takes_the_place_of_cross_entropy():
    loss = StageLoss(pixel_loss=lambda logits, labels: logits.max() * labels.min())
    assert loss({"out": flat(2.0, 3.0), "aux": []}, LABELS + 2).item() == 6.0


def test_pictures_without_a_label_cost_nothing():
    logits = flat(2.0, 0.0).clone().requires_grad_()
    loss = StageLoss()(logits, torch.full((1, 2, 2), 255))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_coarse_logits_meet_the_nearest_labels():
    labels = torch.arange(16).reshape(1, 4, 4) // 8  # upper half 0, lower half 1
    coarse = torch.zeros(1, 2, 2, 2)
    coarse[0, 0, 0], coarse[0, 1, 1] = 5.0, 5.0
    assert StageLoss()(coarse, labels).item() == pytest.approx(entropy(5.0, 0.0))


def test_the_resolution_of_the_supervision_is_an_option():
    images, labels = torch.randn(2, 3, 40, 56), torch.randint(0, 4, (2, 40, 56))
    for supervision, size in (("input", (40, 56)), ("stride", (10, 14))):
        outputs = SPGNet(4, supervision=supervision, **SIZES)(images)
        assert [tuple(aux.shape) for aux in outputs["aux"]] == [(2, 4, *size)]
        assert StageLoss()(outputs, labels).isfinite()


def test_there_must_be_a_weight_a_prediction():
    with pytest.raises(ValueError, match="there must be one for each of the 1 predictions"):
        StageLoss(weights=(1.0, 1.0))(flat(1.0, 0.0), LABELS)
