"""The binary convolution: exact sums, one scale with its gradient, zeros that stay zeros."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from repertory.systems.reste import BinaryConv2d, RectifiedSTE, set_estimator


def layer(**settings):
    torch.manual_seed(0)
    return BinaryConv2d(6, 8, 3, padding=1, **settings)


def test_the_output_is_that_of_scaled_signs_plus_bias():
    conv, x = layer(stride=2, dilation=2, groups=2), torch.randn(2, 6, 9, 9)
    scaled = conv.weight.sign() * conv.weight.abs().mean()
    expected = F.conv2d(x.sign(), scaled, conv.bias, 2, 1, 2, 2)
    torch.testing.assert_close(conv(x), expected)


def test_sums_that_cancel_are_exactly_zero():
    conv, x = BinaryConv2d(64, 8, 3, padding=1, bias=False), torch.randn(4, 64, 16, 16)
    out = conv(x)
    sums = F.conv2d(x.sign().double(), conv.weight.sign().double(), None, 1, 1)
    assert (sums == 0).sum() > 100
    assert torch.equal(out == 0, sums == 0)


def test_gradient_flows_through_the_scale():
    conv, x, g = layer(bias=False, estimator=RectifiedSTE(2.0)), torch.randn(2, 6, 5, 5), torch.randn(2, 8, 5, 5)
    (conv(x) * g).sum().backward()
    scaled = (conv.weight.sign() * conv.scale).detach().requires_grad_()
    (to_scaled,) = torch.autograd.grad(F.conv2d(x.sign(), scaled, None, 1, 1), scaled, g)
    weight = conv.weight.detach()
    own = RectifiedSTE(2.0).derivative(weight) * conv.scale.detach() * to_scaled
    through_scale = weight.sign() / weight.numel() * (to_scaled * weight.sign()).sum()
    torch.testing.assert_close(conv.weight.grad, own + through_scale, rtol=1e-4, atol=1e-5)
    assert through_scale.abs().max() > 1e-4


def test_real_activations_are_left_as_they_are():
    conv, x = layer(real_activations=True, bias=False), torch.randn(2, 6, 5, 5)
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight.sign(), None, 1, 1) * conv.scale)


def test_an_input_of_zeros_has_no_sign_and_gives_nothing():
    assert torch.equal(layer(bias=False)(torch.zeros(1, 6, 4, 4)), torch.zeros(1, 8, 4, 4))


def test_weights_and_inputs_can_have_different_estimators():
    model = nn.Sequential(layer(bias=False))
    set_estimator(model, RectifiedSTE(1.0), RectifiedSTE(3.0))
    x = (0.19 * torch.rand(1, 6, 4, 4) - 0.095).requires_grad_()  # all of it in the flat zone
    model(x).sum().backward()
    with_threes = x.grad.clone()
    set_estimator(model, RectifiedSTE(1.0))
    x.grad = None
    model(x).sum().backward()
    torch.testing.assert_close(with_threes, x.grad * 0.1 ** (1 / 3) / 0.1)


def test_in_the_place_of_a_convolution_it_keeps_its_parameters_and_shape():
    conv = nn.Conv2d(4, 6, (3, 5), 2, (1, 2), groups=2, padding_mode="reflect").double().eval()
    made = BinaryConv2d.of(conv, "ste")
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    assert made.weight is conv.weight
    assert made.bias is conv.bias
    assert not made.training
    assert made(x).shape == conv(x).shape
    assert "StraightThrough(clip=1.0)" in repr(made)


def test_a_model_without_binary_convolutions_has_no_estimator_to_set():
    with pytest.raises(ValueError, match="Linear has no binary convolution; binarize"):
        set_estimator(nn.Linear(2, 2), "reste")
