"""Every path of the sliding-window sum computes what the plain reference defines."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from repertory.ops import sliding_window
from repertory.ops.sliding_window import sliding_window_sum

# batch, channels, height, width, kernel, dilation, heads, factors, added filters
GRID = [
    (2, 12, 7, 9, 3, 1, 2, False, True),
    (1, 6, 8, 5, 5, 2, 3, True, True),
    (2, 8, 5, 6, 7, 1, 1, True, False),
    (1, 4, 6, 7, 3, 3, 4, False, False),
    (2, 6, 1, 5, 3, 1, 2, False, True),
    (1, 6, 1, 1, 5, 2, 3, True, True),
    (3, 4, 4, 3, 1, 1, 2, True, True),
    (0, 6, 4, 4, 3, 1, 2, True, True),
]


def tensors(batch, channels, height, width, side, heads, mul, add, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(batch + channels + height)

    def drawn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    value, grad = (drawn(batch, channels, height, width) for _ in range(2))
    weights = drawn(batch, heads, side**2, height, width).softmax(2)
    ghosts = [drawn(channels, side, side) if given else None for given in (mul, add)]
    return [x if x is None else x.requires_grad_() for x in (value, weights, *ghosts)], grad


def case_tensors(case, **kwargs):
    batch, channels, height, width, side, _, heads, mul, add = case
    return tensors(batch, channels, height, width, side, heads, mul, add, **kwargs)


def everything(backend, inputs, grad, dilation):
    out = sliding_window_sum(*inputs, dilation=dilation, backend=backend)
    return [out.detach(), *torch.autograd.grad(out, [x for x in inputs if x is not None], grad)]


def assert_same(backend, case, device="cpu", dtype=torch.float32, atol=1e-5):
    inputs, grad = case_tensors(case, device=device, dtype=dtype)
    found = everything(backend, inputs, grad, case[5])
    wide = [x if x is None else x.detach().double().requires_grad_() for x in inputs]
    expected = everything("reference", wide, grad.double(), case[5])
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, atol=atol, rtol=atol)


@pytest.mark.parametrize("case", GRID, ids=str)
@pytest.mark.parametrize("backend", ["auto", "eager", "reference"])
def test_output_and_gradients_are_those_of_the_reference_in_float64(backend, case):
    assert_same(backend, case)


@pytest.mark.parametrize("case", [GRID[0], GRID[1]], ids=str)
@pytest.mark.parametrize("values", [1, 100, 1_000])
def test_the_size_of_a_step_changes_nothing(monkeypatch, case, values):
    monkeypatch.setattr(sliding_window, "_BLOCK", values)
    assert_same("eager", case)


def test_one_pixel_is_the_formula_written_out():
    (value, weights, mul, add), _ = tensors(1, 4, 3, 3, 3, 2, True, True)
    expected = torch.zeros(4)  # the corner (0, 0): five of nine taps are outside
    for tap, (y, x) in {4: (0, 0), 5: (0, 1), 7: (1, 0), 8: (1, 1)}.items():
        for channel in range(4):
            filter_ = mul[channel].flatten()[tap] * weights[0, channel // 2, tap, 0, 0] + add[channel].flatten()[tap]
            expected[channel] += filter_.detach() * value[0, channel, y, x].detach()
    torch.testing.assert_close(sliding_window_sum(value, weights, mul, add)[0, :, 0, 0].detach(), expected)


def test_all_weight_on_the_own_pixel_gives_the_values_back():
    value = torch.randn(2, 6, 5, 4)
    weights = torch.zeros(2, 3, 49, 5, 4)
    weights[:, :, 24] = 1
    for backend in ("eager", "reference"):
        torch.testing.assert_close(sliding_window_sum(value, weights, backend=backend), value)


@pytest.mark.parametrize(("mul", "add"), [(False, False), (True, True)])
def test_gradients_agree_with_finite_differences(mul, add):
    inputs, _ = tensors(2, 4, 3, 2, 3, 2, mul, add, dtype=torch.float64)
    given = [x for x in inputs if x is not None]
    assert torch.autograd.gradcheck(lambda *x: sliding_window_sum(*x, dilation=2, backend="eager"), given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_adds_up_in_float32(dtype):
    inputs, _ = tensors(1, 12, 6, 7, 3, 2, True, True, dtype=dtype)
    out = sliding_window_sum(*inputs)
    exact = sliding_window_sum(*(x.double() for x in inputs), backend="reference")
    assert out.dtype == dtype
    torch.testing.assert_close(out, exact.to(dtype), atol=torch.finfo(dtype).eps * 4, rtol=torch.finfo(dtype).eps * 2)


def test_types_may_differ_as_they_do_under_autocast():
    (value, weights, _, add), grad = tensors(1, 6, 4, 5, 3, 2, False, True)
    half = value.detach().to(torch.bfloat16).requires_grad_()
    out = sliding_window_sum(half, weights, None, add)
    assert out.dtype == torch.bfloat16
    out.backward(grad.to(torch.bfloat16))
    assert (half.grad.dtype, weights.grad.dtype, add.grad.dtype) == (torch.bfloat16, torch.float32, torch.float32)


def test_layout_does_not_matter():
    inputs, grad = tensors(2, 12, 5, 6, 3, 2, True, True)
    expected = everything("eager", inputs, grad, 2)
    value, weights, mul, add = inputs
    channels_last = value.detach().to(memory_format=torch.channels_last).requires_grad_()
    part = torch.cat([value, value], 1).detach()[:, 12:].requires_grad_()
    turned = weights.detach().permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2).requires_grad_()
    for values in (channels_last, part):
        found = everything("eager", [values, turned, mul, add], grad.to(memory_format=torch.channels_last), 2)
        torch.testing.assert_close(found, expected)


def test_an_expanded_gradient_is_taken():
    inputs, _ = tensors(1, 4, 3, 5, 3, 2, False, True)
    found = torch.autograd.grad(sliding_window_sum(*inputs).sum(), inputs[0])
    expected = torch.autograd.grad(sliding_window_sum(*inputs, backend="reference").sum(), inputs[0])
    torch.testing.assert_close(found, expected)


def test_vmap_over_values_and_their_gradients():
    inputs, _ = tensors(2, 6, 4, 5, 3, 2, False, True)
    _, weights, _, add = (x if x is None else x.detach() for x in inputs)
    values = torch.randn(3, 2, 6, 4, 5)

    def energy(value, added, backend="auto"):
        return sliding_window_sum(value, weights, None, added, backend=backend).square().sum()

    found = torch.vmap(torch.func.grad(energy, (0, 1)), in_dims=(0, None))(values, add)
    for index in range(3):
        expected = torch.func.grad(lambda v, a: energy(v, a, "reference"), (0, 1))(values[index], add)
        torch.testing.assert_close([found[0][index], found[1][index]], list(expected), rtol=1e-4, atol=1e-4)


def test_a_second_differentiation_is_refused_except_by_the_reference():
    inputs, _ = tensors(1, 4, 3, 3, 3, 2, False, True, dtype=torch.float64)
    for backend in ("eager", "reference"):
        out = sliding_window_sum(*inputs, backend=backend)
        (slope,) = torch.autograd.grad(out.square().sum(), inputs[0], create_graph=True)
        if backend == "eager":
            with pytest.raises(RuntimeError, match="differentiated once"):
                slope.sum().backward()
        else:
            slope.sum().backward()


@pytest.mark.parametrize("case", [GRID[0], (1, 6, 5, 4, 3, 2, 3, True, True)], ids=str)
def test_it_compiles_without_a_graph_break(case):
    inputs, grad = case_tensors(case)
    given = [x for x in inputs if x is not None]
    compiled = torch.compile(lambda *x: sliding_window_sum(*x, dilation=case[5]), fullgraph=True, backend="eager")
    out = compiled(*inputs)
    expected = everything("reference", inputs, grad, case[5])
    for a, b in zip([out, *torch.autograd.grad(out, given, grad)], expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", [case for case in GRID if case[0]], ids=str)
def test_what_is_compiled_gathers_the_same_gradients(case):
    inputs, grad = case_tensors(case)
    channels, side, dilation, heads = case[1], *case[4:7]
    plain = [x if x is None or x.ndim != 3 else x.reshape(channels, side**2) for x in inputs]
    found = sliding_window._gradients(grad, *plain, sliding_window.Window(side, dilation, channels, heads))
    expected = everything("reference", inputs, grad, dilation)[1:]
    for a, b in zip([x for x in found if x is not None], expected, strict=True):
        torch.testing.assert_close(a.reshape(b.shape), b, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_the_compiled_path_is_the_reference():
    assert_same("compiled", (2, 12, 8, 5, 3, 1, 3, True, True))


TRITON = """
import torch
from repertory.ops.sliding_window import Window, _gradients, _sum
from repertory.ops.sliding_window_triton import gradients, weighted_sum

torch.manual_seed(0)
cases = [((2, 6, 7, 9), 3, 1, 2, True, True), ((1, 24, 5, 4), 5, 2, 4, False, True),
         ((1, 8, 9, 8), 7, 1, 1, True, False), ((3, 4, 1, 5), 3, 1, 2, False, False)]
for shape, side, rate, heads, mul, add in cases:
    value, grad = torch.randn(shape), torch.randn(shape).to(memory_format=torch.channels_last)
    weights = torch.randn(shape[0], heads, side**2, *shape[2:])
    mul, add = (torch.randn(shape[1], side**2) if given else None for given in (mul, add))
    window = Window(side, rate, shape[1], heads)
    inputs = value, weights, mul, add, window
    torch.testing.assert_close(weighted_sum(*inputs), _sum(*inputs), rtol=1e-4, atol=1e-5)
    for found, wanted in zip(gradients(grad, *inputs), _gradients(grad, *inputs), strict=True):
        assert (found is None) == (wanted is None)
        if found is not None:
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed here")
def test_the_triton_kernels_run_by_the_interpreter_are_the_reference():
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}  # chosen when Triton is imported
    done = subprocess.run([sys.executable, "-c", TRITON], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", [case for case in GRID if case[0]], ids=str)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-4), (torch.float16, 2e-2), (torch.bfloat16, 1e-1)])
def test_triton_is_the_reference(case, dtype, atol):
    assert_same("triton", case, device="cuda", dtype=dtype, atol=atol)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"weights": torch.zeros(1, 3, 16, 4, 5)}, "weights have 16 taps"),
        ({"weights": torch.zeros(1, 3, 8, 4, 5)}, "weights have 8 taps"),
        ({"weights": torch.zeros(1, 5, 9, 4, 5)}, "weights have 5 heads; their number must divide the 12 channels"),
        ({"weights": torch.zeros(1, 3, 9, 4, 4)}, r"weights are \(1, 3, 9, 4, 4\)"),
        ({"weights": torch.zeros(1, 9, 4, 5)}, r"weights are \(1, 9, 4, 5\)"),
        ({"value": torch.zeros(12, 4, 5)}, r"value is \(12, 4, 5\)"),
        ({"value": torch.zeros(1, 12, 4, 5, dtype=torch.int64)}, "floating types"),
        ({"ghost_add": torch.zeros(12, 9)}, r"ghost_add is \(12, 9\)"),
        ({"ghost_mul": torch.zeros(12, 5, 5)}, r"ghost_mul is \(12, 5, 5\)"),
        ({"dilation": 0}, "dilation is 0"),
        ({"backend": "cuda"}, "backend is 'cuda'"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(change, complaint):
    arguments = {"value": torch.zeros(1, 12, 4, 5), "weights": torch.zeros(1, 3, 9, 4, 5), **change}
    with pytest.raises(ValueError, match=complaint) as caught:
        sliding_window_sum(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton could run")
def test_triton_is_refused_where_it_cannot_run():
    with pytest.raises(ValueError, match="needs a CUDA tensor"):
        sliding_window_sum(torch.zeros(1, 4, 4, 4), torch.zeros(1, 2, 9, 4, 4), backend="triton")
