"""The surrogate gradients: what they are, at their boundaries, in every dtype, compiled, and what is refused."""

import math

import pytest
import torch

from repertory.systems.reste import ESTIMATORS, Estimator, RectifiedSTE, binary_sign, make_estimator
from repertory.systems.reste.estimators import ErrorDecay, SoftQuantization, StraightThrough, power_function

POINTS = torch.linspace(-2, 2, 801)


def slopes(function, x, step=1e-6):
    x = x.double()
    return (function(x + step) - function(x - step)) / (2 * step)


def gradient(x, estimator, grad=None, backend="auto"):
    x = x.detach().clone().requires_grad_()
    signs = binary_sign(x, estimator, backend)
    return torch.autograd.grad(signs, x, torch.ones_like(signs) if grad is None else grad)[0]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_goes_forward_as_sign_and_backward_as_its_derivative(name):
    estimator = make_estimator(name)
    x, grad = torch.randn(5, 7), torch.randn(5, 7)
    x[0, 0] = 0
    assert torch.equal(binary_sign(x, estimator), x.sign())
    torch.testing.assert_close(gradient(x, estimator, grad), estimator.derivative(x) * grad)
    assert estimator.derivative(POINTS).min() >= 0
    torch.testing.assert_close(estimator.derivative(POINTS), estimator.derivative(-POINTS))
    assert "arXiv" in estimator.source


@pytest.mark.parametrize("power", [1.0, 1.7, 3.0, 10.0])
def test_the_derivative_is_that_of_the_power_function_between_flat_zone_and_clip(power):
    estimator = RectifiedSTE(power)
    between = POINTS[(POINTS.abs() > 0.11) & (POINTS.abs() < 1.49)].double()
    expected = slopes(lambda x: power_function(x, power), between)
    torch.testing.assert_close(estimator.derivative(between), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_the_flat_value_is_the_slope_of_the_secant_and_both_boundaries_belong_inside(power):
    estimator = RectifiedSTE(power)
    flat = 0.1 ** (1 / power) / 0.1
    inside = torch.tensor([0.0, 0.05, -0.1, 0.1])
    torch.testing.assert_close(estimator.derivative(inside), torch.full((4,), flat))
    beyond = torch.tensor([1.5, -1.5, 1.5001, -3.0, math.inf])
    edge = 1.5 ** ((1 - power) / power) / power
    torch.testing.assert_close(estimator.derivative(beyond), torch.tensor([edge, edge, 0.0, 0.0, 0.0]))


def test_figures_of_the_sheet_at_power_3():
    found = RectifiedSTE(3.0).derivative(torch.tensor([0.1, 0.10001, 1.5]))
    torch.testing.assert_close(found, torch.tensor([4.6416, 1.5472, 0.2544]), rtol=2e-4, atol=0)


def test_power_1_is_the_straight_through_estimator_clipped_at_t():
    assert torch.allclose(RectifiedSTE(1.0).derivative(POINTS), StraightThrough(1.5).derivative(POINTS))


def test_the_surrogate_comes_closer_to_sign_as_the_power_grows():
    x = torch.randn(1000)
    errors = [(power_function(x, power) - x.sign()).norm() for power in (1.0, 1.5, 2.0, 3.0, 10.0)]
    spreads = [RectifiedSTE(power).derivative(x).var() for power in (1.0, 1.5, 2.0, 3.0, 10.0)]
    assert errors == sorted(errors, reverse=True)
    assert spreads == sorted(spreads)


@pytest.mark.parametrize(
    ("estimator", "curve"),
    [
        (ErrorDecay(0.3), lambda x: torch.tanh(0.3 * x) / 0.3),
        (ErrorDecay(4.0), lambda x: torch.tanh(4.0 * x)),
        (SoftQuantization(0.2), lambda x: torch.tanh(math.log(9) / 2 * x) / math.tanh(math.log(9) / 2)),
        (make_estimator("polynomial"), lambda x: 2 * x - x * x.abs()),
        (make_estimator("ste"), lambda x: x),
        (make_estimator("identity"), lambda x: x),
    ],
)
def test_the_other_estimators_are_derivatives_of_their_curves(estimator, curve):
    x = POINTS[POINTS.abs() < 0.99].double()
    torch.testing.assert_close(estimator.derivative(x), slopes(curve, x), rtol=1e-6, atol=1e-6)


def test_beyond_its_clip_an_estimator_has_no_gradient():
    beyond = torch.tensor([-1.001, 1.001, 5.0])
    for name in ("ste", "polynomial", "soft_quantization"):
        assert torch.equal(make_estimator(name).derivative(beyond), torch.zeros(3))
    assert torch.equal(make_estimator("ste").derivative(torch.tensor([1.0, -1.0])), torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_the_power_is_computed_in_float32(dtype):
    x = torch.randn(2000).to(dtype)
    estimator = RectifiedSTE(10.0)
    found = gradient(x, estimator)
    assert found.dtype == dtype
    assert torch.equal(found, gradient(x.float(), estimator).to(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gradient(x, estimator), found)


def test_float64_is_computed_in_float64():
    x = torch.rand(100, dtype=torch.float64) + 0.2
    expected = x ** (-2 / 3) / 3 * (x <= 1.5)
    torch.testing.assert_close(gradient(x, RectifiedSTE(3.0)), expected, rtol=1e-14, atol=0)


def test_it_compiles_in_one_graph_and_is_not_compiled_anew_as_the_power_moves():
    torch._dynamo.reset()
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    class Layer(torch.nn.Module):
        estimator: Estimator = RectifiedSTE()

        def forward(self, x):
            return binary_sign(x, self.estimator)

    layer = Layer()
    compiled = torch.compile(layer, fullgraph=True, backend=counting)
    x = torch.randn(64)
    for power in (1.0, 1.4, 2.2, 3.0):
        layer.estimator = RectifiedSTE(power)
        own = x.clone().requires_grad_()
        (found,) = torch.autograd.grad(compiled(own).sum(), own)
        torch.testing.assert_close(found, layer.estimator.derivative(x))
    assert len(graphs) == 1
    torch._dynamo.reset()


def test_it_can_be_vmapped():
    x, grad = torch.randn(3, 4), torch.randn(3, 4)
    per_sample = torch.func.vmap(
        lambda one, g: torch.func.vjp(lambda y: binary_sign(y, RectifiedSTE(2.0)), one)[1](g)[0]
    )
    torch.testing.assert_close(per_sample(x, grad), gradient(x, RectifiedSTE(2.0), grad))


@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_fused_path_gives_the_same_gradient(name):
    x, grad = torch.randn(3, 70_000), torch.randn(3, 70_000)
    estimator = make_estimator(name)
    torch.testing.assert_close(
        gradient(x, estimator, grad, "compiled"), gradient(x, estimator, grad, "eager"), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RectifiedSTE(0.9), "power is 0.9; it must be finite and at least 1"),
        (lambda: RectifiedSTE(math.nan), "power is nan"),
        (lambda: RectifiedSTE(end=0.0), "end is 0.0"),
        (lambda: RectifiedSTE(flat=0.0), "flat is 0.0; it must be above 0"),
        (lambda: RectifiedSTE(clip=0.1), "clip is 0.1; it must be above flat, which is 0.1"),
        (lambda: RectifiedSTE().at(1.1), "share is 1.1; it must be 0 to 1"),
        (lambda: ErrorDecay(slope=0.0), "slope is 0.0"),
        (lambda: SoftQuantization(1.0), "alpha is 1.0; it must be above 0 and below 1"),
        (lambda: StraightThrough(0.0), "clip is 0.0; it must be above 0"),
        (lambda: power_function(POINTS, 0.5), "power is 0.5"),
        (lambda: make_estimator("rest"), "unknown estimator 'rest': did you mean reste"),
        (lambda: binary_sign(POINTS, RectifiedSTE(), "triton"), "backend is 'triton'"),
    ],
)
def test_bad_settings_meet_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_whole_numbers_have_no_gradient_and_are_refused():
    with pytest.raises(TypeError, match=r"x is torch.int64; it must be floating point"):
        binary_sign(torch.arange(3), RectifiedSTE())
