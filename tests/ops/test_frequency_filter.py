"""Every path of the frequency filter computes what the plain reference defines."""

import pytest
import torch
from benchmarks.baselines.frequency_filter import authors_filter
from torch.nn import functional as F

from repertory.ops.backend import native
from repertory.ops.frequency_filter import _path, frequency_filter

# batch, channels, height, width, heads, side of a window -> its channels, bins
GRID = [
    (2, 16, 7, 9, 8, {3: 4, 5: 6, 7: 6}, (1, 2, 3, 6)),
    (1, 24, 10, 4, 8, {3: 6, 5: 9, 7: 9}, (1, 2, 3, 6)),
    (2, 12, 5, 6, 2, {5: 12}, (2,)),
    (1, 12, 1, 8, 3, {9: 4, 1: 8}, (6, 1, 3)),
    (1, 8, 1, 1, 1, {3: 8}, (1, 6)),
    (0, 8, 4, 4, 2, {3: 8}, (1, 2)),
    (2, 80, 37, 23, 2, {3: 20, 7: 36, 1: 24}, (1, 2, 3, 6)),  # strips, segments and vectors that are not full
    (1, 54, 18, 33, 2, {5: 54}, (5, 1)),
    (1, 20, 5, 7, 1, {3: 20}, (2, 1)),
]


def tensors(batch, channels, height, width, windows, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(batch + channels + height)

    def normal(*shape, scale=1.0):
        return (scale * torch.randn(*shape, generator=generator)).to(device, dtype).requires_grad_()

    qkv = normal(batch, 3 * channels, height, width)
    weights = [normal(count, 1, side, side, scale=1 / side) for side, count in windows.items()]
    biases = [normal(count) for count in windows.values()]
    return qkv, weights, biases, normal(batch, channels, height, width).detach()


def everything(backend, qkv, weights, biases, grad, heads, bins):
    out = frequency_filter(qkv, weights, biases, heads, bins, backend=backend)
    return [out.detach(), *torch.autograd.grad(out, [qkv, *weights, *biases], grad)]


def assert_same(backend, case, device="cpu", dtype=torch.float32, atol=1e-5):
    *size, heads, windows, bins = case
    qkv, weights, biases, grad = tensors(*size, windows, dtype, device)
    found = everything(backend, qkv, weights, biases, grad, heads, bins)
    wide = [[x.detach().double().requires_grad_() for x in group] for group in ([qkv], weights, biases)]
    expected = everything("reference", wide[0][0], *wide[1:], grad.double(), heads, bins)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        scale = max(1.0, 0.1 * float(b.abs().max())) if b.numel() else 1.0  # a kernel's gradient is a sum over the map
        torch.testing.assert_close(a.double(), b, atol=scale * atol, rtol=atol)


@pytest.mark.parametrize("case", GRID, ids=str)
@pytest.mark.parametrize("backend", ["auto", "eager", "reference"])
def test_output_and_gradients_are_those_of_the_reference_in_float64(backend, case):
    assert_same(backend, case)


@pytest.mark.skipif(native("frequency_filter") is None, reason="needs a C compiler")
@pytest.mark.parametrize("case", [case for case in GRID if max(case[5]) <= 7], ids=str)
def test_c_computes_what_the_reference_defines(case):
    assert_same("compiled", case)


@pytest.mark.skipif(native("frequency_filter") is None, reason="needs a C compiler")
def test_c_takes_any_layout_and_gives_the_same_bits_with_any_number_of_threads():
    *size, heads, windows, bins = GRID[6]
    qkv, weights, biases, _ = tensors(*size, windows)
    last = qkv.detach().to(memory_format=torch.channels_last).requires_grad_()
    grad = torch.randn(80).view(1, 80, 1, 1).expand(2, 80, 37, 23)  # of no memory of its own
    expected = everything("reference", qkv, weights, biases, grad, heads, bins)
    found = []
    threads = torch.get_num_threads()
    for count, given in ((1, qkv), (2, qkv), (2, last)):
        torch.set_num_threads(count)
        found.append(everything("compiled", given, weights, biases, grad, heads, bins))
    torch.set_num_threads(threads)
    for one, two, other, right in zip(*found, expected, strict=True):
        assert torch.equal(one, two)
        torch.testing.assert_close(other, right, atol=2e-4, rtol=1e-4)


@pytest.mark.skipif(native("frequency_filter") is None, reason="needs a C compiler")
def test_the_best_path_is_c_for_large_maps_alone():
    qkv, weights, biases, _ = tensors(1, 16, 6, 5, {7: 16})
    filters = [*weights, *biases]
    assert _path("auto", qkv, filters) == _path("eager", qkv, filters) == "eager"
    assert _path("compiled", qkv, filters) == "native"
    assert _path("auto", torch.zeros(1, 48, 64, 64), filters) == "native"
    assert _path("auto", torch.zeros(1, 48, 64, 64, dtype=torch.float64), filters) == "eager"
    assert _path("compiled", qkv, [torch.zeros(16, 1, 9, 9), *biases]) == "inductor"


def test_the_baseline_of_the_benchmark_computes_the_same():
    qkv, weights, biases, _ = tensors(2, 16, 5, 6, {3: 4, 5: 6, 7: 6})
    theirs = authors_filter(qkv.permute(0, 2, 3, 1).flatten(1, 2), weights, biases, (5, 6), 8)
    out = frequency_filter(qkv, weights, biases)
    torch.testing.assert_close(out.permute(0, 2, 3, 1).flatten(1, 2), theirs, atol=1e-5, rtol=1e-5)


def test_one_place_is_the_formula_written_out():
    qkv, (weight,), (bias,), _ = tensors(1, 4, 3, 4, {3: 4})
    query, key, value = qkv.detach()[0].unflatten(0, (3, 4))
    share = key.flatten(1).softmax(1)  # over places, a channel at a time
    expected = torch.empty(4)
    for channel in range(4):
        head = slice(0, 2) if channel < 2 else slice(2, 4)
        attended = query[head, 1, 2] @ (share[head] @ value[channel].flatten()) * 2**-0.5
        high = (weight[channel, 0] * value[channel, 0:3, 1:4]).sum() + bias[channel]
        low = F.relu(value[channel].mean())
        expected[channel] = attended + query[channel, 1, 2] * high + low
    out = frequency_filter(qkv, [weight], [bias], num_heads=2, bins=(1, 1))
    torch.testing.assert_close(out[0, :, 1, 2], expected)


def test_gradients_agree_with_finite_differences():
    *size, heads, windows, bins = (1, 8, 4, 3, 2, {3: 4, 5: 4}, (1, 2))
    qkv, weights, biases, _ = tensors(*size, windows, torch.float64)

    def run(qkv, *filters):
        return frequency_filter(qkv, filters[:2], filters[2:], heads, bins)

    assert torch.autograd.gradcheck(run, (qkv, *weights, *biases))


def test_frozen_filters_and_inputs_get_no_gradient():
    qkv, weights, biases, _ = tensors(1, 8, 4, 3, {3: 8})
    frequency_filter(qkv.detach(), weights, [b.detach() for b in biases], 2, (1, 2)).sum().backward()
    assert qkv.grad is None
    assert biases[0].grad is None
    assert weights[0].grad is not None


def test_no_nan_comes_of_large_keys():
    qkv, weights, biases, _ = tensors(1, 8, 4, 3, {3: 8})
    out = frequency_filter(qkv.detach() * 1e4, weights, biases, 2, (1, 2))
    torch.testing.assert_close(out, frequency_filter(qkv * 1e4, weights, biases, 2, (1, 2), backend="reference"))
    assert out.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_adds_up_in_float32(dtype):
    *size, heads, windows, bins = GRID[0]
    qkv, weights, biases, grad = tensors(*size, windows, dtype)
    out, to_qkv, *_ = everything("auto", qkv, weights, biases, grad, heads, bins)
    exact, to_exact, *_ = everything(
        "reference",
        qkv.detach().double().requires_grad_(),
        *([x.detach().double().requires_grad_() for x in group] for group in (weights, biases)),
        grad.double(),
        heads,
        bins,
    )
    assert out.dtype == to_qkv.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(out, exact.to(dtype), atol=eps * 4, rtol=eps * 2)
    torch.testing.assert_close(to_qkv, to_exact.to(dtype), atol=eps * 8, rtol=eps * 2)


def test_autocast_does_not_reach_inside():
    qkv, weights, biases, _ = tensors(1, 16, 6, 5, {3: 16})
    expected = frequency_filter(qkv, weights, biases)
    with torch.autocast("cpu", torch.bfloat16):
        found = frequency_filter(qkv, weights, biases)
    assert torch.equal(found, expected)


def test_layout_does_not_matter():
    *size, heads, windows, bins = GRID[0]
    qkv, weights, biases, grad = tensors(*size, windows)
    expected = everything("eager", qkv, weights, biases, grad, heads, bins)
    last = qkv.detach().to(memory_format=torch.channels_last).requires_grad_()
    sliced = torch.stack([qkv.detach(), qkv.detach()], 4)[..., 0].requires_grad_()
    for same in (last, sliced):
        found = everything("eager", same, weights, biases, grad.to(memory_format=torch.channels_last), heads, bins)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_an_expanded_gradient_is_taken():
    qkv, weights, biases, _ = tensors(2, 8, 4, 3, {3: 8})
    frequency_filter(qkv, weights, biases, 2, (1, 2)).sum().backward()
    expected = torch.autograd.grad(frequency_filter(qkv, weights, biases, 2, (1, 2), backend="reference").sum(), qkv)
    torch.testing.assert_close(qkv.grad, expected[0], atol=1e-5, rtol=1e-5)


def test_a_second_differentiation_is_refused_except_by_the_reference():
    qkv, weights, biases, _ = tensors(1, 4, 3, 3, {3: 4}, torch.float64)
    for backend in ("eager", "reference"):
        out = frequency_filter(qkv, weights, biases, 2, (1, 2), backend=backend)
        (slope,) = torch.autograd.grad(out.square().sum(), qkv, create_graph=True)
        if backend == "eager":
            with pytest.raises(RuntimeError, match="once_differentiable"):
                slope.sum().backward()
        else:
            slope.sum().backward()


def test_it_compiles_without_a_graph_break():
    *size, heads, windows, bins = GRID[0]
    qkv, weights, biases, grad = tensors(*size, windows)
    compiled = torch.compile(
        lambda qkv, weights, biases: frequency_filter(qkv, weights, biases, heads, bins),
        fullgraph=True,
        backend="eager",
    )
    expected = everything("reference", qkv, weights, biases, grad, heads, bins)
    out = compiled(qkv, weights, biases)
    for a, b in zip([out, *torch.autograd.grad(out, [qkv, *weights, *biases], grad)], expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_windows_that_c_does_not_take_are_compiled_by_inductor():
    assert_same("compiled", GRID[3])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", [case for case in GRID if case[0]], ids=str)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-4), (torch.float16, 2e-2), (torch.bfloat16, 1e-1)])
def test_triton_is_the_reference(case, dtype, atol):
    assert_same("triton", case, device="cuda", dtype=dtype, atol=atol)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_triton_reads_any_layout():
    *size, heads, windows, bins = GRID[0]
    qkv, weights, biases, grad = tensors(*size, windows, device="cuda")
    expected = everything("reference", qkv, weights, biases, grad, heads, bins)
    last = qkv.detach().to(memory_format=torch.channels_last).requires_grad_()
    found = everything("triton", last, weights, biases, grad, heads, bins)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"qkv": torch.zeros(1, 13, 4, 4)}, r"\(1, 13, 4, 4\); it must be \(B, 3 C, H, W\)"),
        ({"qkv": torch.zeros(24, 4, 4)}, r"\(24, 4, 4\); it must be"),
        ({"qkv": torch.zeros(1, 24, 0, 4)}, r"\(1, 24, 0, 4\); it must be"),
        ({"qkv": torch.zeros(1, 24, 4, 4, dtype=torch.int64)}, "int64"),
        ({"num_heads": 3}, "num_heads is 3; it must divide the 8 channels"),
        ({"num_heads": 0}, "num_heads is 0"),
        ({"bins": ()}, "bins are"),
        ({"bins": (0, 1)}, "bins are .0, 1."),
        ({"bins": (1, 2, 3)}, "their number must divide the 8 channels"),
        ({"weights": [torch.zeros(8, 1, 4, 4)]}, r"a kernel \(8, 1, 4, 4\)"),
        ({"weights": [torch.zeros(8, 1, 3, 5)]}, r"a kernel \(8, 1, 3, 5\)"),
        ({"weights": [torch.zeros(6, 1, 3, 3)]}, "add up to the 8 channels"),
        ({"biases": []}, "one .C_i. for each kernel"),
        ({"backend": "cuda"}, "backend is 'cuda'"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(change, complaint):
    good = {"qkv": torch.zeros(1, 24, 4, 4), "weights": [torch.zeros(8, 1, 3, 3)], "biases": [torch.zeros(8)]}
    arguments = {**good, "num_heads": 2, "bins": (1, 2), **change}
    with pytest.raises(ValueError, match=complaint) as caught:
        frequency_filter(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton could run")
def test_triton_is_refused_where_it_cannot_run():
    with pytest.raises(ValueError, match="needs a CUDA tensor"):
        frequency_filter(torch.zeros(1, 12, 4, 4), [torch.zeros(4, 1, 3, 3)], [torch.zeros(4)], 2, backend="triton")
