import csv

import pytest
import torch
from torch import nn
from training_cases import assert_same, digits, furthest, normed_net, plain_net, settings, weights

from repertory.errors import NonFiniteError
from repertory.nn.convnet import ConvNet
from repertory.training import Method, evaluate, fit
from repertory.training.checkpoint import load_checkpoint


def test_a_small_network_learns_digits_and_every_figure_of_the_run_is_given(tmp_path):
    data = digits(1200, 400)
    seen = []
    run = settings(epochs=3, augment="crop", tensorboard=True)
    result = fit(
        ConvNet(width=4), data, out=tmp_path, settings=run, progress=lambda done, total: seen.append((done, total))
    )
    assert result.metrics["top1"] > 0.75
    assert result.metrics["top1_error"] == pytest.approx(1 - result.metrics["top1"])
    assert 0 <= result.metrics["ece"] <= 1
    assert result.metrics["loss"] > 0
    assert (result.steps, result.images, result.epochs) == (3 * 37, 3 * 37 * 32, 3)
    assert seen[-1] == (result.images, result.images)
    assert [images for images, _ in result.curves["val_top1"]] == [37 * 32, 2 * 37 * 32, 3 * 37 * 32]
    assert result.best["top1"] == max(value for _, value in result.curves["val_top1"])
    assert result.interrupted is None
    assert evaluate(result.model, data.val) == pytest.approx(result.metrics)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert float(rows[-1]["val_top1"]) == result.metrics["top1"]
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_checkpoints_load_with_weights_only_and_hold_the_weights_of_their_moment(tmp_path):
    result = fit(normed_net(), digits(), out=tmp_path, settings=settings(epochs=2))
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert_same(last["model"], weights(result.model))
    best = load_checkpoint(tmp_path / "checkpoints" / "best.ckpt")
    assert best["position"]["step"] == result.best["step"]
    assert best["classes"] == digits().classes


def test_fit_leaves_the_model_it_was_given(tmp_path):
    model = plain_net()
    before = weights(model)
    result = fit(model, digits(), out=tmp_path, settings=settings(epochs=1))
    assert_same(before, weights(model))
    assert furthest(before, weights(result.model)) > 0


def test_max_images_sets_the_length_and_what_is_left_of_a_step_is_not_begun(tmp_path):
    result = fit(plain_net(), digits(), out=tmp_path, settings=settings(max_images=9 * 32 + 31))
    assert (result.steps, result.images) == (9, 9 * 32)


def test_accumulated_parts_make_the_step_of_the_whole_batch(tmp_path):
    whole = fit(plain_net(), digits(), out=tmp_path / "1", settings=settings(epochs=2))
    parts = fit(plain_net(), digits(), out=tmp_path / "4", settings=settings(epochs=2, accumulate=4))
    assert (parts.steps, parts.images) == (whole.steps, whole.images)
    assert furthest(weights(whole.model), weights(parts.model)) < 1e-5


def test_mixed_precision_trains_float32_weights_in_bfloat16(tmp_path):
    dtypes = set()

    class Watch(Method):
        def extra_loss(self, outputs, batch):
            dtypes.add((outputs.logits.dtype, outputs.features.dtype))
            return {}

        def __deepcopy__(self, memo):
            return self

    run = settings(epochs=2, precision="bf16-mixed")
    result = fit(plain_net(), digits(), [Watch()], out=tmp_path, settings=run)
    assert dtypes == {(torch.bfloat16, torch.bfloat16)}
    assert {p.dtype for p in result.model.parameters()} == {torch.float32}


def test_training_data_smaller_than_a_batch_still_fill_one(tmp_path):
    result = fit(plain_net(), digits(train=10), out=tmp_path, settings=settings(epochs=3))
    assert (result.steps, result.images) == (3, 96)


def test_a_loss_that_is_not_finite_ends_the_run_at_a_named_step(tmp_path):
    data = digits()
    data.train.images = data.train.images.clone()
    data.train.images[7] = float("nan")
    with pytest.raises(NonFiniteError, match=r"loss is nan at step \d+ \(epoch 0\)"):
        fit(plain_net(), data, out=tmp_path, settings=settings(epochs=1))


def test_a_label_outside_the_classes_is_named_before_training(tmp_path):
    data = digits()
    data.val.targets[3] = 10
    with pytest.raises(
        ValueError, match="label 10 of sample 3 in the val part of digits is out of range: it must be 0 to 9"
    ):
        fit(plain_net(), data, out=tmp_path, settings=settings())


def test_empty_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match="digits has no image to evaluate on"):
        fit(plain_net(), digits(val=0), out=tmp_path, settings=settings())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batch_size": 30, "accumulate": 4}, r"batch_size 30 is not a multiple of devices x num_nodes x accumulate"),
        ({"batch_size": 3, "devices": 2}, r"1 x 1 = 2|2 x 1 x 1 = 2"),
        ({"optimizer": "lion"}, "optimizer is 'lion'; it must be one of sgd, adamw"),
        ({"lr": 0.0}, "lr is 0.0; it must be above 0"),
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"nesterov": True, "momentum": 0}, "nesterov needs momentum"),
        ({"augment": "mirror"}, "augment is 'mirror'"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        settings(**changes)


def test_max_images_below_one_step_is_refused(tmp_path):
    with pytest.raises(ValueError, match="max_images is 5, less than the 32 images of one step"):
        fit(plain_net(), digits(), out=tmp_path, settings=settings(max_images=5))


def test_evaluation_leaves_every_module_in_its_mode():
    model = normed_net().train()
    model[1].eval()
    evaluate(model, digits().val)
    assert model.training
    assert not model[1].training


def test_gradients_are_clipped_to_the_norm_asked_for(tmp_path):
    start = plain_net()
    run = settings(max_images=32, momentum=0.0, weight_decay=0.0, lr=1.0, clip_grad=1e-3)
    result = fit(start, digits(), out=tmp_path, settings=run)
    moved = torch.cat([(a - b).flatten() for a, b in zip(result.model.parameters(), start.parameters())])
    assert float(moved.detach().norm()) == pytest.approx(1e-3, rel=1e-3)


def test_a_model_without_a_classifier_is_refused(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())
    with pytest.raises(ValueError, match="Sequential has neither get_classifier"):
        fit(model, digits(), out=tmp_path, settings=settings(max_images=32))


def test_a_model_with_nothing_to_train_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the model has no parameter that takes a gradient"):
        fit(plain_net().requires_grad_(False), digits(), out=tmp_path, settings=settings(max_images=32))
