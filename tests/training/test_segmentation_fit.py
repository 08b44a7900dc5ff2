import dataclasses
from types import SimpleNamespace

import pytest
import torch
from segmentation_cases import CLASSES, PLAIN, QUICK, Segmentor, settings, squares
from torch import nn
from torch.nn import functional as F
from training_cases import digits, plain_net
from training_cases import settings as plain_settings

from repertory.data import ArraySegmentation, SegmentationData, SegmentationSet
from repertory.nn.segmentation_losses import ohem_cross_entropy
from repertory.systems.hwa.method import Hwa
from repertory.training import FitSettings, Method, SegmentationSettings, evaluate_segmentation, fit, sample_pictures
from repertory.training.augmentation import AugmentedMasks, Draw
from repertory.training.optimization import lr_factor
from repertory.training.segmentation import map_outputs, pixel_cross_entropy
from repertory.training.settings import MASK_AUGMENTATIONS


def test_a_small_segmentor_learns_squares_and_every_figure_of_the_run_is_given(tmp_path):
    data = squares()
    result = fit(Segmentor(), data, out=tmp_path, settings=settings(epochs=12, augment="crop-flip", evaluate_every=6))
    assert result.metrics["miou"] > 0.7
    assert set(result.metrics) == {"miou", "pixel_accuracy", "mean_accuracy", "loss"}
    assert (result.steps, result.images, result.epochs) == (48, 48 * 8, 12)
    assert {"train_loss", "train_aux", "val_miou"} <= set(result.curves)
    assert result.best["miou"] == max(value for _, value in result.curves["val_miou"])
    assert evaluate_segmentation(result.model, data.val, batch_size=3) == pytest.approx(result.metrics)


def test_plain_settings_train_segmentation_with_the_rest_at_its_defaults(tmp_path):
    result = fit(Segmentor(), squares(), out=tmp_path, settings=FitSettings(**QUICK, epochs=1, schedule="poly"))
    assert "miou" in result.metrics
    with pytest.raises(ValueError, match="settings are SegmentationSettings, but digits is data for classification"):
        fit(plain_net(), digits(), out=tmp_path, settings=settings())
    with pytest.raises(ValueError, match="the task of odd is 'detection'; it must be one of classification, segment"):
        fit(plain_net(), SimpleNamespace(name="odd", task="detection"), out=tmp_path, settings=plain_settings())


def test_the_auxiliary_loss_is_added_with_its_weight_to_that_of_the_main_output(tmp_path):
    data, model = squares(), Segmentor()
    result = fit(model, data, out=tmp_path, settings=settings(max_images=32, batch_size=32, aux_weight=0.25))
    given = model.train()(torch.stack([data.train[i][0] for i in range(32)]))
    labels = torch.stack([data.train[i][1] for i in range(32)])
    for term, logits, weight in (("train_loss", given["out"], 1), ("train_aux", given["aux"][0], 0.25)):
        expected = weight * F.cross_entropy(logits, labels, ignore_index=255)
        assert result.curves[term] == [(32, pytest.approx(expected.item(), rel=1e-5))]


def test_ohem_trains_on_the_hard_pixels_of_the_main_output(tmp_path):
    data, model = squares(), Segmentor(auxiliary=False)
    run = settings(max_images=32, batch_size=32, ohem=0.26, ohem_kept=640)
    result = fit(model, data, out=tmp_path, settings=run)
    logits = model.train()(torch.stack([data.train[i][0] for i in range(32)]))
    labels = torch.stack([data.train[i][1] for i in range(32)])
    hard = ohem_cross_entropy(logits, labels, 0.26, 640, 255).item()
    assert result.curves["train_loss"] == [(32, pytest.approx(hard, rel=1e-5))]
    assert hard > 1.01 * pixel_cross_entropy(logits, labels, 255).item()


def test_ignored_pixels_do_not_count_and_a_mask_of_them_alone_costs_nothing():
    logits, labels = torch.randn(2, 4, 5, 5, requires_grad=True), torch.randint(4, (2, 5, 5))
    labels[0] = 255
    alone = F.cross_entropy(logits[1:], labels[1:])
    assert pixel_cross_entropy(logits, labels, 255).item() == pytest.approx(alone.item(), rel=1e-6)
    smoothed = F.cross_entropy(logits[1:], labels[1:], label_smoothing=0.1)
    assert pixel_cross_entropy(logits, labels, 255, 0.1).item() == pytest.approx(smoothed.item(), rel=1e-6)
    nothing = pixel_cross_entropy(logits, torch.full((2, 5, 5), 255), 255)
    nothing.backward()
    assert nothing.item() == 0
    assert not logits.grad.any()


class Watch(Method):
    name = "watch"
    seen: list = []  # noqa: RUF012 (methods are copied; this is what the copies share)

    def extra_loss(self, outputs, batch):
        self.seen.append((outputs.features.shape, outputs.logits.shape, batch.labels.shape))
        return {"spread": 0.1 * outputs.features.square().mean()}


@pytest.mark.parametrize("auxiliary", [True, False], ids=["of the dictionary", "before the classifier"])
def test_methods_get_a_map_of_features_and_a_label_for_every_pixel(tmp_path, auxiliary):
    Watch.seen.clear()
    result = fit(Segmentor(auxiliary=auxiliary), squares(), [Watch()], out=tmp_path, settings=settings(max_images=8))
    assert Watch.seen == [((8, 8, 8, 8), (8, 4, 16, 16), (8, 16, 16))]
    assert "train_watch_spread" in result.curves


class Listed(nn.Module):
    def forward(self, x):
        return [x]


def test_outputs_that_no_segmentor_gives_are_refused(tmp_path):
    images = torch.zeros(1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"Conv2d has neither an output 'features' nor get_classifier\(\)"):
        map_outputs(nn.Conv2d(3, 4, 1), images)
    with pytest.raises(ValueError, match="Listed gives list; a segmentor gives logits, or a dict"):
        map_outputs(Listed(), images, features=False)
    with pytest.raises(ValueError, match=r"gives logits \(8, 3, 16, 16\); for 4 classes .* must be \(8, 4, 16, 16\)"):
        fit(Segmentor(classes=3), squares(), out=tmp_path, settings=settings())
    with pytest.raises(ValueError, match="Segmentor scores 3 classes; the data have 4"):
        evaluate_segmentation(Segmentor(classes=3), squares().val)


class Sized(SegmentationSet):
    """Pictures of several sizes whose first channel is their class."""

    sizes = ((7, 9), (5, 5), (7, 9), (12, 4))

    def __len__(self):
        return len(self.sizes)

    def raw(self, index):
        mask = torch.randint(3, self.sizes[index], generator=torch.Generator().manual_seed(index))
        image = (mask.float() / 2).expand(3, -1, -1).clone()
        mask[0, :index] = 255
        return image, mask


class Threshold(nn.Module):
    """Scores a class by the first channel, and calls every third of class 2 by another name."""

    def forward(self, x):
        values = x[:, 0].mul(2).round().long()
        wrong = (values == 2) & (torch.arange(x.shape[3]) % 3 == 0)
        return F.one_hot(values.masked_fill(wrong, 1), 3).permute(0, 3, 1, 2).float()


def test_agreement_is_that_of_all_pixels_of_the_split_whatever_the_sizes():
    torchmetrics = pytest.importorskip("torchmetrics")
    data = Sized(("a", "b", "c"), dataclasses.replace(PLAIN, mean=(0.0,) * 3, std=(1.0,) * 3))
    figures = evaluate_segmentation(Threshold(), data, batch_size=3, per_class=True)
    truth, found = [], []
    for index in range(len(data)):
        image, mask = data.whole(index)
        truth.append(mask.flatten())
        found.append(Threshold()(image[None]).argmax(1).flatten())
    truth, found = torch.cat(truth), torch.cat(found)
    counted = truth != 255
    ious = [
        float((counted & (truth == c) & (found == c)).sum() / (counted & ((truth == c) | (found == c))).sum())
        for c in range(3)
    ]
    assert [figures[f"iou {name}"] for name in "abc"] == pytest.approx(ious)
    assert figures["miou"] == pytest.approx(sum(ious) / 3)
    theirs = torchmetrics.JaccardIndex(task="multiclass", num_classes=3, ignore_index=255)
    assert figures["miou"] == pytest.approx(float(theirs(found, truth)))
    assert figures["pixel_accuracy"] == pytest.approx(float((found == truth)[counted].float().mean()))
    seen = []
    evaluate_segmentation(Threshold(), data, report=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (4, 4)
    with pytest.raises(ValueError, match="has 4 images; each of 5 processes needs one"):
        evaluate_segmentation(Threshold(), data, world=5)


class Coded(SegmentationSet):
    """A picture whose colour is a function of its class, larger than what a model takes."""

    def __len__(self):
        return 3

    def raw(self, index):
        mask = (torch.arange(24)[:, None] // 8 + torch.arange(30) // 10) % 4
        return (mask.float() / 4 + 0.2).expand(3, -1, -1), mask


@pytest.mark.parametrize("augment", [name for name in MASK_AUGMENTATIONS if name != "none"])
def test_image_and_mask_are_augmented_alike_by_seed_epoch_and_index_alone(augment):
    data = Coded(CLASSES, dataclasses.replace(PLAIN, size=(24, 30), mean=(0.0,) * 3, std=(1.0,) * 3))
    drawn = AugmentedMasks(data, settings(augment=augment, scale_min=1.0, scale_max=1.0))
    image, mask, index = drawn[Draw(0, 3, 1)]
    torch.rand(3)
    again = drawn[Draw(0, 3, 1)]
    assert torch.equal(image, again[0])
    assert torch.equal(mask, again[1])
    assert (index, image.shape, mask.shape, mask.dtype) == (1, (3, 24, 30), (24, 30), torch.int64)
    others = [drawn[draw][0] for draw in [Draw(0, epoch, 1) for epoch in range(9)]]
    assert any(not torch.equal(image, other) for other in others)
    for epoch in range(9):
        image, mask, _ = drawn[Draw(0, epoch, 1)]
        inside = mask != 255
        assert torch.allclose(image[0][inside], mask[inside] / 4 + 0.2, atol=1e-5)
        assert not image[0][~inside].any()


def test_a_random_scale_enlarges_or_pads_the_picture_to_the_models_size():
    data = Coded(CLASSES, dataclasses.replace(PLAIN, size=(16, 16), mean=(0.0,) * 3, std=(1.0,) * 3))
    small = AugmentedMasks(data, settings(augment="scale-crop-flip", scale_min=0.5, scale_max=0.5))
    image, mask, _ = small[Draw(0, 0, 0)]
    assert (image.shape, mask.shape) == ((3, 16, 16), (16, 16))
    assert int((mask != 255).sum()) == 12 * 15
    large = AugmentedMasks(data, settings(augment="scale-crop-flip", scale_min=2.0, scale_max=2.0))
    image, mask, _ = large[Draw(0, 0, 0)]
    assert (mask != 255).all()
    smooth = (image[0] - (mask / 4 + 0.2)).abs() < 1e-4  # all but the pixels on borders between classes
    assert smooth.float().mean() > 0.6


def test_the_poly_schedule_is_the_share_that_is_left_to_a_power():
    assert lr_factor("poly", 0, 10, 0) == 1
    assert lr_factor("poly", 5, 10, 0) == pytest.approx(0.5**0.9)
    assert lr_factor("poly", 9, 10, 0, 2.0) == pytest.approx(0.01)
    assert lr_factor("poly", 10, 10, 0) == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"scale_min": 0}, "scale_min and scale_max are 0 and 2.0; they must be above 0"),
        ({"scale_min": 3.0}, "scale_min and scale_max are 3.0 and 2.0"),
        ({"ohem": 1.5}, "ohem is 1.5; it must be a probability, or 0"),
        ({"ohem": 0.7, "label_smoothing": 0.1}, "label_smoothing is 0.1; with ohem it must be 0"),
        ({"ohem_kept": -1}, "ohem_kept is -1; it must be at least 0"),
        ({"aux_weight": -1}, "aux_weight is -1; it must be at least 0"),
        ({"overlap": 1.0}, "overlap is 1.0; it must be at least 0 and below 1"),
        ({"scales": ()}, r"scales is \(\); it must name one factor or more"),
        ({"inference": "tiled"}, "inference is 'tiled'; it must be one of whole, resized, sliding"),
        ({"augment": "resized-crop-flip"}, "augment is 'resized-crop-flip'; it must be one of none, flip, crop"),
        ({"poly_power": 0.0}, "poly_power is 0.0; it must be above 0"),
        ({"lr": 0.0}, "lr is 0.0; it must be above 0"),
    ],
)
def test_settings_of_segmentation_that_cannot_be_are_refused_by_name(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        SegmentationSettings(**changes)


def test_data_without_an_image_are_refused(tmp_path):
    whole = squares()
    empty = ArraySegmentation(torch.zeros(0, 3, 16, 16), torch.zeros(0, 16, 16, dtype=torch.long), CLASSES, PLAIN)
    with pytest.raises(ValueError, match="the val part of squares has no image"):
        SegmentationData("squares", whole.train, empty, CLASSES)
    loose = SimpleNamespace(name="loose", task="segmentation", train=whole.train, val=empty, classes=CLASSES)
    with pytest.raises(ValueError, match="loose has no image to evaluate on"):
        fit(Segmentor(), loose, out=tmp_path, settings=settings())


def test_sample_pictures_show_image_truth_and_prediction():
    data = squares()
    pictures = sample_pictures(Segmentor(), data, count=2)
    assert list(pictures) == [f"Picture {n}: {what}" for n in (1, 2) for what in ("image", "truth", "prediction")]
    image, mask = data.val.raw(4)
    assert abs(pictures["Picture 2: image"].astype(int) - image.permute(1, 2, 0).numpy()).max() <= 1
    assert (pictures["Picture 2: truth"][1:] == data.palette[mask[1:]]).all()
    assert {tuple(colour) for colour in pictures["Picture 2: prediction"].reshape(-1, 3)} <= {
        tuple(colour) for colour in data.palette
    }


def test_replicas_and_averaged_weights_stack_with_segmentation(tmp_path):
    result = fit(Segmentor(), squares(), [Hwa(window=2)], out=tmp_path, settings=settings(epochs=4))
    assert result.images == 2 * 4 * 32
    assert isinstance(result.model, Segmentor)
    assert 0 < result.metrics["miou"] <= 1


@pytest.mark.slow
def test_two_processes_count_the_pixels_of_the_whole_split(tmp_path):
    data = squares(val=7)
    run = settings(epochs=4, devices=2)
    result = fit(Segmentor(), data, out=tmp_path, settings=run)
    assert evaluate_segmentation(result.model, data.val) == pytest.approx(result.metrics, abs=1e-6)
    assert (result.steps, result.images) == (16, 4 * 32)
