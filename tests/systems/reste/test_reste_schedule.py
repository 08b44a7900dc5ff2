"""The power schedule and both indicators, alone and as a method in training."""

import math

import pytest
import torch
from torch import nn

from repertory.systems.reste import (
    BinaryConv2d,
    RectifiedSTE,
    Reste,
    advance,
    estimating_error,
    gradient_instability,
    make_estimator,
)
from repertory.systems.reste.cifar import small_resnet
from repertory.systems.reste.estimators import power_function
from repertory.systems.reste.layers import binary_layers
from repertory.training.method import Progress


def tiny(**settings):
    torch.manual_seed(0)
    return small_resnet(3, 1, width=2, depth=1, **settings)


def powers(model):
    return {layer.estimator.power for _, layer in binary_layers(model)}


@pytest.mark.parametrize("end", [1.0, 3.0, 10.0])
def test_the_power_of_every_epoch_is_that_of_the_authors(end):
    epochs = 20
    found = [RectifiedSTE(end=end).at(epoch / epochs).power for epoch in range(epochs)]
    expected = [1 + (1 - math.cos(math.pi / 2 * epoch / epochs)) * (end - 1) for epoch in range(epochs)]
    assert found == pytest.approx(expected)
    assert found[0] == 1
    assert found[-1] < end or end == 1  # e / E never reaches 1


def test_without_an_end_the_power_stays():
    fixed = RectifiedSTE(power=2.0, end=None)
    assert fixed.at(0.7) is fixed
    assert make_estimator("ste").at(0.7) == make_estimator("ste")


def test_the_annealed_tanh_rises_geometrically():
    slopes = [make_estimator("error_decay").at(share).slope for share in (0, 0.25, 0.5, 1)]
    assert slopes == pytest.approx([0.1, 10**-0.5, 1.0, 10.0])


def test_advance_moves_weights_and_activations_of_all_layers():
    model = tiny(estimator=RectifiedSTE(end=5.0))
    advance(model, 0.5)
    assert powers(model) == {RectifiedSTE(end=5.0).at(0.5).power}
    assert all(layer.activation_estimator == layer.estimator for _, layer in binary_layers(model))


def steps_of(method, model, epochs=4, length=3):
    seen, total = [], epochs * length
    for step in range(total):
        method.before_step(model, Progress(step, step // length, total))
        (power,) = powers(model)
        seen.append(power)
        model(torch.randn(4, 1, 8, 8)).square().sum().backward()
        method.after_step(model, Progress(step + 1, (step + 1) // length, total))
    return seen


def test_the_method_moves_the_power_once_an_epoch():
    method = Reste()
    seen = steps_of(method, method.prepare_model(tiny()))
    expected = [RectifiedSTE().at(epoch / 4).power for epoch in range(4) for _ in range(3)]
    assert seen == pytest.approx(expected)


def test_or_at_every_step():
    method = Reste(schedule="step", settings={"end": 7.0})
    seen = steps_of(method, method.prepare_model(tiny()))
    assert seen == pytest.approx([RectifiedSTE(end=7.0).at(step / 12).power for step in range(12)])


def test_a_resumed_method_goes_on_where_it_was():
    method, model = Reste(), tiny()
    model = method.prepare_model(model)
    method.before_step(model, Progress(3, 1, 12))
    state = method.state_dict()
    resumed, fresh = Reste(), tiny()
    fresh = resumed.prepare_model(fresh)
    resumed.load_state_dict(state)
    resumed.before_step(fresh, Progress(4, 1, 12))  # in the middle of epoch 1: its share is that of step 3
    assert powers(fresh) == powers(model) == {RectifiedSTE().at(0.25).power}


def test_indicators_are_sums_over_the_binary_layers():
    model = tiny()
    layers = [layer for _, layer in binary_layers(model)]
    expected = sum((power_function(layer.weight, 3.0) - layer.weight.sign()).norm() for layer in layers)
    assert estimating_error(model) == pytest.approx(expected.item(), rel=1e-5)
    assert gradient_instability(model) == 0
    model(torch.randn(4, 1, 8, 8)).square().sum().backward()
    expected = sum(layer.weight.grad.abs().var() for layer in layers)
    assert gradient_instability(model) == pytest.approx(expected.item(), rel=1e-5)
    assert gradient_instability(model) > 0
    assert estimating_error(nn.Linear(2, 2)) == 0


def test_for_fixed_weights_the_error_falls_and_the_spread_of_gradients_grows_with_the_power():
    torch.manual_seed(0)
    conv = BinaryConv2d(8, 8, 3, bias=False)
    nn.init.normal_(conv.weight, std=0.5)
    x, g = torch.randn(4, 8, 10, 10), torch.randn(4, 8, 8, 8)
    errors, spreads = [], []
    for power in (1.0, 1.5, 2.0, 3.0, 5.0, 10.0):
        conv.estimator = conv.activation_estimator = RectifiedSTE(power, end=None)
        conv.zero_grad()
        (conv(x) * g).sum().backward()
        errors.append(estimating_error(conv, power))
        spreads.append(gradient_instability(conv))
    assert errors == sorted(errors, reverse=True)
    assert spreads == sorted(spreads)


def test_the_method_keeps_both_indicators_of_each_epoch():
    method = Reste()
    model = method.prepare_model(tiny())
    assert method.figures() == {}
    steps_of(method, model)
    assert [row["step"] for row in method.history] == [3, 6, 9, 12]
    assert [row["share"] for row in method.history] == [0, 0.25, 0.5, 0.75]
    last = method.figures()
    assert set(last) == {"share", "estimating_error", "gradient_instability"}
    assert last["estimating_error"] == pytest.approx(estimating_error(model))
    assert last["gradient_instability"] == pytest.approx(gradient_instability(model))
    assert Reste().state_dict()["history"] == []


def test_a_real_network_is_made_binary_and_a_binary_one_kept():
    real, binary = tiny(binary=False), tiny()
    assert Reste().prepare_model(binary) is binary
    made = Reste(keep=("stem.*",), estimator="polynomial", activations="ste").prepare_model(real)
    layers = dict(binary_layers(made))
    assert len(layers) == 6
    assert {layer.estimator.name for layer in layers.values()} == {"polynomial"}
    assert {layer.activation_estimator.name for layer in layers.values()} == {"ste"}
    with pytest.raises(ValueError, match="keep is .*, but ReSTEResNet is binary already"):
        Reste(keep=("stem.*",)).prepare_model(binary)
    assert all(layer.real_activations for _, layer in binary_layers(Reste(real_activations=True).prepare_model(binary)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"estimator": "rest"}, "unknown estimator"),
        ({"schedule": "batch"}, "schedule is 'batch'; it must be one of epoch, step"),
        ({"settings": {"end": 0.5}}, "end is 0.5"),
        ({"activations": "nothing"}, "unknown estimator 'nothing'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Reste(**settings)


def test_two_of_them_are_refused_and_others_are_not():
    from repertory.systems.bake import Bake
    from repertory.systems.hwa.method import Hwa
    from repertory.training import check_claims

    check_claims([Reste(), Bake(), Hwa()])
    with pytest.raises(ValueError, match="methods reste and reste cannot be combined"):
        check_claims([Reste(), Reste()])


def test_training_records_the_indicators(tmp_path):
    from repertory.data import ArrayImages, ImageData
    from repertory.data.preprocessing import Preprocessing
    from repertory.training import FitSettings, fit

    images, labels = torch.rand(24, 1, 8, 8), [0, 1, 2] * 8
    look = Preprocessing((8, 8), crop=1.0, mean=(0.5,), std=(0.5,), channels="L")
    part = ArrayImages(images, labels, ("a", "b", "c"), look)
    data = ImageData("random", part, part, ("a", "b", "c"), "")
    settings = FitSettings(epochs=3, batch_size=8, accelerator="cpu", tensorboard=False)
    result = fit(tiny(binary=False), data, [Reste()], out=tmp_path, settings=settings)
    errors = [value for _, value in result.curves["reste_estimating_error"]]
    assert len(errors) == len(result.curves["reste_gradient_instability"]) == 3
    assert errors[-1] == pytest.approx(estimating_error(result.model), rel=1e-5)
    assert [value for _, value in result.curves["reste_share"]] == pytest.approx([0, 1 / 3, 2 / 3])
