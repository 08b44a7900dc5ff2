"""The losses of CCNet: deep supervision, and the category-consistent loss alone and in training."""

import pytest
import torch
from torch.nn import functional as F

from repertory.nn.segmentation_losses import ohem_cross_entropy
from repertory.systems.ccnet import CategoryConsistency, CategoryConsistentLoss, DeepSupervisionLoss, ccnet_resnet101
from repertory.training.method import Batch, Outputs


def upsampled(logits, target):
    return F.interpolate(logits, target.shape[-2:], mode="bilinear", align_corners=True)


def test_deep_supervision_weighs_the_auxiliary_cross_entropy_and_mines_the_main_one_alone():
    torch.manual_seed(0)
    main, aux, target = 3 * torch.randn(2, 4, 5, 7), torch.randn(2, 4, 5, 7), torch.randint(0, 4, (2, 33, 49))
    target[0, :9] = 255
    plain = F.cross_entropy(upsampled(main, target), target, ignore_index=255)
    second = F.cross_entropy(upsampled(aux, target), target, ignore_index=255)
    mined = ohem_cross_entropy(upsampled(main, target), target, 0.3, 200)
    torch.testing.assert_close(DeepSupervisionLoss()(main, target, [aux]), plain + 0.4 * second)
    torch.testing.assert_close(DeepSupervisionLoss()(main, target), plain)
    found = DeepSupervisionLoss(0.2, threshold=0.3, min_kept=200)(main, target, [aux])
    torch.testing.assert_close(found, mined + 0.2 * second)


def test_deep_supervision_of_a_batch_without_a_label_is_zero():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = DeepSupervisionLoss()(logits, torch.full((1, 8, 8), 255), [logits])
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


def by_loops(features, labels, delta_v=0.5, delta_d=1.5):
    """The three terms as the formulas read, class by class."""
    pixels = features.movedim(1, -1).flatten(0, 2)
    labels = labels.flatten()
    classes = [c for c in labels.unique().tolist() if c != 255]
    means = {c: pixels[labels == c].mean(0) for c in classes}
    variance = 0.0
    for c in classes:
        distances = [(h - means[c]).norm() for h in pixels[labels == c]]
        phi = [
            d - delta_d + (delta_d - delta_v) ** 2
            if d > delta_d
            else (d - delta_v) ** 2
            if d > delta_v
            else torch.zeros(())
            for d in distances
        ]
        variance += sum(phi) / len(phi) / len(classes)
    pairs = [(a, b) for a in classes for b in classes if a != b]
    gaps = [(means[a] - means[b]).norm() for a, b in pairs]
    distance = sum((2 * delta_d - g).clamp(min=0) ** 2 for g in gaps) / max(len(pairs), 1)
    return variance, distance, sum(m.norm() for m in means.values()) / len(classes)


@pytest.mark.parametrize("scale", [0.1, 0.5, 2.0])
def test_the_terms_are_the_formulas(scale):
    torch.manual_seed(0)
    features, labels = scale * torch.randn(2, 3, 4, 5), torch.randint(0, 4, (2, 4, 5))
    labels[0, 0] = 255
    labels[1, 3, 4] = 9  # a class of one pixel
    for found, expected in zip(
        CategoryConsistentLoss().terms(features, labels), by_loops(features, labels), strict=True
    ):
        torch.testing.assert_close(found, torch.as_tensor(expected))


def test_the_pull_is_continuous_and_becomes_linear():
    loss = CategoryConsistentLoss()
    d = torch.tensor([0.4, 0.5, 1.0, 1.5, 1.5001, 2.5])
    torch.testing.assert_close(loss._pull(d), torch.tensor([0.0, 0.0, 0.25, 1.0, 1.0001, 2.0]))


def test_one_class_one_pixel_and_no_label_give_finite_gradients():
    for labels in (torch.zeros(1, 2, 2).long(), torch.tensor([[[0, 1], [2, 3]]]), torch.full((1, 2, 2), 255)):
        features = torch.zeros(1, 4, 2, 2, requires_grad=True)
        CategoryConsistentLoss()(features, labels).backward()
        assert features.grad.isfinite().all()


def test_labels_are_read_where_the_map_samples_them():
    labels = torch.arange(9 * 17).view(1, 9, 17) % 5
    features = torch.randn(1, 3, 2, 3)
    expected = CategoryConsistentLoss()(features, labels[:, ::8, ::8])
    torch.testing.assert_close(CategoryConsistentLoss()(features, labels), expected)


def test_the_method_adds_the_weighted_terms_on_the_projected_map():
    torch.manual_seed(0)
    model = ccnet_resnet101(4, layers=(1, 1, 1, 1), width=4, out_channels=8, aux_channels=0, projection=16).train()
    images, labels = torch.randn(2, 3, 33, 33), torch.randint(0, 4, (2, 33, 33))
    outputs = model(images)
    terms = CategoryConsistency(alpha=2.0).extra_loss(
        Outputs(outputs["features"], outputs["out"]), Batch(images, labels, torch.arange(2))
    )
    assert set(terms) == {"category_variance", "category_distance", "category_norm"}
    total = sum(terms.values())
    torch.testing.assert_close(total, CategoryConsistentLoss(alpha=2.0)(outputs["features"], labels))
    total.backward()
    assert model.projection.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: CategoryConsistentLoss(delta_v=2.0), "delta_v and delta_d are 2.0 and 1.5"),
        (lambda: CategoryConsistency(beta=-1.0), "beta is -1.0"),
        (lambda: CategoryConsistentLoss()(torch.zeros(1, 2, 3), torch.zeros(1, 3, 3)), r"\(1, 2, 3\)"),
        (lambda: CategoryConsistentLoss()(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3)), "labels are torch.float32"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()
