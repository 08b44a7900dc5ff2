"""Every path of criss-cross attention computes what the plain reference defines."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from benchmarks.baselines.criss_cross import joined_attention

from repertory.ops.criss_cross import criss_cross_attention

# batch, query channels, value channels, sizes
GRID = [
    (2, 3, 8, (7, 9)),
    (1, 8, 40, (10, 6)),
    (2, 4, 4, (1, 5)),
    (1, 4, 6, (5, 1)),
    (2, 2, 3, (1, 1)),
    (2, 3, 5, (3, 4, 5)),
    (1, 2, 3, (1, 1, 4)),
    (0, 3, 4, (4, 4)),
    (2, 3, 0, (4, 4)),
    (2, 3, 4, (0, 4)),
]


def tensors(batch, depth, channels, sizes, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(batch + depth + channels)
    shapes = [(batch, width, *sizes) for width in (depth, depth, channels, channels)]
    query, key, value, grad = (torch.randn(s, generator=generator).to(device, dtype) for s in shapes)
    return [x.requires_grad_() for x in (query, key, value)], grad


def everything(backend, inputs, grad, **settings):
    out = criss_cross_attention(*inputs, backend=backend, **settings)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


def assert_same(backend, size, device="cpu", dtype=torch.float32, atol=1e-5, **settings):
    inputs, grad = tensors(*size, device=device, dtype=dtype)
    found = everything(backend, inputs, grad, **settings)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    expected = everything("reference", wide, grad.double(), **settings)
    for a, b, like in zip(found, expected, (inputs[2], *inputs), strict=True):
        assert (a.dtype, a.shape) == (dtype, like.shape)
        torch.testing.assert_close(a.double(), b, atol=atol, rtol=atol)


@pytest.mark.parametrize("case", GRID, ids=str)
@pytest.mark.parametrize("backend", ["auto", "eager", "reference"])
def test_output_and_gradients_are_those_of_the_reference_in_float64(backend, case):
    assert_same(backend, case)


@pytest.mark.parametrize("masked_axes", [0, 1, 2])
def test_the_own_position_can_be_masked_along_fewer_axes(masked_axes):
    assert_same("eager", (1, 3, 4, (3, 2, 4)), masked_axes=masked_axes)


def test_one_query_is_the_formula_written_out():
    inputs, _ = tensors(1, 4, 3, (3, 4))
    query, key, value = (x.detach()[0] for x in inputs)
    seen = [(0, 2), (2, 2), (1, 0), (1, 1), (1, 2), (1, 3)]  # column 2 and row 1, itself once
    weights = torch.stack([query[:, 1, 2] @ key[:, y, x] for y, x in seen]).softmax(0)
    expected = sum(weight * value[:, y, x] for weight, (y, x) in zip(weights, seen, strict=True))
    torch.testing.assert_close(criss_cross_attention(*inputs)[0, :, 1, 2].detach(), expected)


def test_the_baseline_of_the_benchmark_computes_the_same():
    inputs, grad = tensors(2, 3, 8, (7, 9))
    out = joined_attention(*inputs)
    for a, b in zip([out, *torch.autograd.grad(out, inputs, grad)], everything("eager", inputs, grad), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sizes", [(4, 3), (1, 3), (3, 1), (2, 1, 3)])
def test_gradients_agree_with_finite_differences(sizes):
    inputs, _ = tensors(1, 2, 3, sizes, torch.float64)
    assert torch.autograd.gradcheck(lambda *x: criss_cross_attention(*x), inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_adds_up_in_float32(dtype):
    inputs, grad = tensors(1, 4, 24, (6, 7), dtype)
    found = everything("eager", inputs, grad)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    for a, b in zip(found, everything("reference", wide, grad.double()), strict=True):
        assert a.dtype == dtype
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(a, b.to(dtype), atol=eps * 4, rtol=eps * 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_large_logits_give_no_nan_even_on_a_line_of_one_pixel(backend, dtype):
    inputs, grad = tensors(1, 4, 3, (1, 6), dtype)
    loud = [(x.detach() * 100).requires_grad_() for x in inputs]
    assert all(x.isfinite().all() for x in everything(backend, loud, grad))


def test_layout_does_not_matter_and_channels_last_stays_channels_last():
    inputs, grad = tensors(2, 3, 12, (5, 6))
    expected = everything("eager", inputs, grad)
    last = [x.detach().to(memory_format=torch.channels_last).requires_grad_() for x in inputs]
    assert criss_cross_attention(*last).is_contiguous(memory_format=torch.channels_last)
    turned = [x.detach().mT.contiguous().mT.requires_grad_() for x in inputs]
    slices = [torch.cat([x, x], 1).detach()[:, : x.shape[1]].requires_grad_() for x in inputs]
    for other in (last, turned, slices):
        for a, b in zip(everything("eager", other, grad.mT.contiguous().mT), expected, strict=True):
            torch.testing.assert_close(a, b)
    expanded = everything("eager", [*inputs[:2], inputs[2][:, :1].expand(-1, 12, -1, -1)], grad)
    assert torch.equal(expanded[0][:, 0], expanded[0][:, 11])


def test_channels_are_taken_in_slices_that_change_nothing(monkeypatch):
    inputs, grad = tensors(2, 3, 40, (5, 6))
    whole = everything("eager", inputs, grad)
    monkeypatch.setattr("repertory.ops.criss_cross._SLICE", 1)
    for a, b in zip(everything("eager", inputs, grad), whole, strict=True):
        torch.testing.assert_close(a, b)


def test_a_second_differentiation_is_refused_except_by_the_reference():
    inputs, _ = tensors(1, 2, 3, (3, 3), torch.float64)
    for backend in ("eager", "reference"):
        out = criss_cross_attention(*inputs, backend=backend)
        (slope,) = torch.autograd.grad(out.square().sum(), inputs[0], create_graph=True)
        if backend == "eager":
            with pytest.raises(RuntimeError, match="differentiate"):
                slope.sum().backward()
        else:
            slope.sum().backward()


def test_it_compiles_without_a_graph_break():
    inputs, grad = tensors(1, 3, 8, (4, 5))
    compiled = torch.compile(criss_cross_attention, fullgraph=True, backend="eager")
    out = compiled(*inputs)
    for a, b in zip([out, *torch.autograd.grad(out, inputs, grad)], everything("reference", inputs, grad), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", [(2, 3, 8, (7, 9)), (2, 4, 4, (1, 5)), (2, 3, 5, (3, 4, 5))], ids=str)
def test_the_compiled_path_is_the_reference(case):
    assert_same("compiled", case)


INTERPRETED = """
import torch
from repertory.ops.criss_cross import criss_cross_attention
from repertory.ops.criss_cross_triton import attend, gradients

torch.manual_seed(0)
for batch, depth, channels, sizes, masked in [(1, 3, 66, (2, 34), 1), (2, 66, 8, (1, 4), 1), (1, 2, 4, (3, 1), 0)]:
    query, key, value, grad = (torch.randn(batch, width, *sizes) for width in (depth, depth, channels, channels))
    query, key = query / depth**0.5, key.to(memory_format=torch.channels_last)
    leaves = [x.clone().requires_grad_() for x in (query, key, value)]
    expected = criss_cross_attention(*leaves, masked_axes=masked, backend="reference")
    wanted = torch.autograd.grad(expected, leaves, grad)
    out, *kept = attend(query, key, value, masked)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    found = gradients(grad.mT.contiguous().mT, query, key, value, *kept, out)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed here")
def test_the_triton_kernels_are_the_reference_when_interpreted():
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", INTERPRETED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", [case for case in GRID if len(case[3]) == 2], ids=str)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-4), (torch.float16, 2e-2), (torch.bfloat16, 1e-1)])
def test_triton_is_the_reference(case, dtype, atol):
    assert_same("triton", case, device="cuda", dtype=dtype, atol=atol)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_every_path_runs_on_cuda(backend):
    assert_same(backend, (2, 3, 5, (3, 4, 5)), device="cuda", atol=1e-4)
    assert_same(backend, (2, 8, 64, (33, 21)), device="cuda", atol=1e-3)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"backend": "cuda"}, "backend is 'cuda'"),
        ({"masked_axes": 2}, "masked_axes is 2; it must lie between 0 and 1"),
        ({"masked_axes": -1}, "masked_axes is -1"),
        ({"query": torch.zeros(2, 4, 4)}, r"\(2, 4, 4\)"),
        ({"key": torch.zeros(1, 3, 4, 4)}, r"\(1, 3, 4, 4\)"),
        ({"value": torch.zeros(1, 6, 4, 5)}, r"\(1, 6, 4, 5\)"),
        ({"value": torch.zeros(2, 6, 4, 4)}, r"\(2, 6, 4, 4\)"),
        ({"value": torch.zeros(1, 6, 4, 4, dtype=torch.float64)}, "float64"),
        ({name: torch.zeros(1, 2, 4, 4).long() for name in ("query", "key", "value")}, "one floating type"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(change, complaint):
    good = {"query": torch.zeros(1, 2, 4, 4), "key": torch.zeros(1, 2, 4, 4), "value": torch.zeros(1, 6, 4, 4)}
    with pytest.raises(ValueError, match=complaint) as caught:
        criss_cross_attention(**{**good, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton could run")
def test_triton_is_refused_where_it_cannot_run():
    query, value = torch.zeros(1, 2, 4, 4), torch.zeros(1, 6, 4, 4)
    with pytest.raises(ValueError, match="needs a CUDA tensor"):
        criss_cross_attention(query, query, value, backend="triton")
