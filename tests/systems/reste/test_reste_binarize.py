"""Any torch model made binary; and the plain loop of the notes on a timm model."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from repertory.systems.reste import BinaryConv2d, RectifiedSTE, advance, binarize
from repertory.systems.reste.layers import binary_layers


def names(model):
    return [name for name, _ in binary_layers(model)]


def test_the_authors_choice_keeps_the_first_convolution_and_those_of_1_x_1():
    model = timm.create_model("resnet18", num_classes=3)
    binary = binarize(model)
    found = names(binary)
    assert "conv1" not in found
    assert not any("downsample" in name for name in found)
    assert len(found) == 16
    assert names(model) == []


def test_weights_and_everything_else_are_the_same():
    model = timm.create_model("test_resnet", num_classes=3)
    binary = binarize(model)
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in binary.state_dict().items())
    assert binary.state_dict().keys() == state.keys()
    with torch.no_grad():
        next(binary.parameters()).zero_()
    assert next(model.parameters()).abs().sum() > 0


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ((), ["0", "2", "3"]),
        (("0", "3"), ["2"]),
        (lambda name, layer: layer.out_channels == 4, ["2"]),
        (None, ["2"]),
    ],
)
def test_which_layers_stay_real_is_an_argument(keep, expected):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Conv2d(5, 4, 1))
    assert names(binarize(model, keep)) == expected


def test_a_shared_layer_stays_shared_and_a_lone_one_is_replaced():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    binary = binarize(nn.Sequential(conv, nn.Sequential(conv), conv), ())
    assert binary[0] is binary[1][0] is binary[2]
    assert isinstance(binary[0], BinaryConv2d)
    assert isinstance(binarize(conv, ()), BinaryConv2d)


@pytest.mark.parametrize(
    ("model", "keep", "message"),
    [
        (nn.Linear(2, 2), None, r"Linear has no nn.Conv2d, and only convolutions can be made binary"),
        (nn.Sequential(nn.Conv2d(3, 4, 3)), None, "no convolution of Sequential is left to be binary"),
        (
            nn.Sequential(nn.Conv2d(3, 4, 3)),
            ("stem.*",),
            r"keep names 'stem.\*', which fits no convolution; there are 0",
        ),
    ],
)
def test_a_model_with_nothing_to_make_binary_is_refused(model, keep, message):
    with pytest.raises(ValueError, match=message):
        binarize(model, keep)
    with pytest.raises(TypeError, match="keep is the string"):
        binarize(nn.Conv2d(3, 4, 3), "0")


def test_a_vision_transformer_has_one_convolution_which_is_the_first():
    with pytest.raises(ValueError, match="is left to be binary"):
        binarize(timm.create_model("vit_tiny_patch16_224", num_classes=2, depth=1))


def test_the_plain_loop_of_the_notes_trains_a_timm_model():
    torch.manual_seed(0)
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 2
    images[labels == 1] += 1
    model = binarize(timm.create_model("test_resnet", num_classes=2), estimator=RectifiedSTE(end=3.0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    epochs, losses = 8, []
    for epoch in range(epochs):
        advance(model, epoch / epochs)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-3:]) < losses[0]
    (power,) = {layer.estimator.power for _, layer in binary_layers(model)}
    assert 2 < power < 3
    assert all(p.grad.isfinite().all() for p in model.parameters())
