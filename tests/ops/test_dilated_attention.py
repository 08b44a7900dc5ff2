"""Every path of dilated attention computes what the plain reference defines."""

import pytest
import torch

from repertory.ops import dilated_attention

# batch, channels, height, width, kernel, rates, heads
GRID = [
    (2, 12, 7, 9, 3, 1, 1),
    (1, 24, 10, 6, 3, 3, 2),
    (2, 18, 8, 5, 3, (1, 2, 3), 3),
    (1, 24, 6, 7, 3, (3, 1), 4),
    (1, 8, 5, 9, 5, (1, 2), 2),
    (2, 6, 1, 1, 3, (2,), 3),
    (1, 4, 2, 11, 1, 1, 2),
    (0, 6, 4, 4, 3, 1, 2),
]


def tensors(batch, channels, height, width, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(batch + channels + height)
    made = (torch.randn(batch, channels, height, width, generator=generator) for _ in range(4))
    query, key, value, grad = (x.to(device, dtype) for x in made)
    return [x.requires_grad_() for x in (query, key, value)], grad.permute(0, 2, 3, 1)


def everything(backend, inputs, grad, kernel, rates, heads):
    out = dilated_attention(*inputs, kernel, rates, heads, backend=backend)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


def assert_same(backend, size, kernel, rates, heads, device="cpu", dtype=torch.float32, atol=1e-5):
    inputs, grad = tensors(*size, device=device, dtype=dtype)
    found = everything(backend, inputs, grad, kernel, rates, heads)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    expected = everything("reference", wide, grad.double(), kernel, rates, heads)
    assert found[0].shape == (size[0], size[2], size[3], size[1])
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, atol=atol, rtol=atol)


@pytest.mark.parametrize("case", GRID, ids=str)
@pytest.mark.parametrize("backend", ["auto", "eager", "reference"])
def test_output_and_gradients_are_those_of_the_reference_in_float64(backend, case):
    assert_same(backend, case[:4], *case[4:])


def test_one_query_is_the_formula_written_out():
    inputs, _ = tensors(1, 4, 3, 3)
    query, key, value = (x.detach()[0] for x in inputs)
    logits = torch.zeros(9)  # the corner (0, 0): five of nine keys are padding, with logit 0
    values = torch.zeros(9, 4)
    for tap, (y, x) in {4: (0, 0), 5: (0, 1), 7: (1, 0), 8: (1, 1)}.items():
        logits[tap] = query[:, 0, 0] @ key[:, y, x] / 2
        values[tap] = value[:, y, x]
    expected = logits.softmax(0) @ values
    out = dilated_attention(*inputs, 3, 1, 1)
    torch.testing.assert_close(out[0, 0, 0].detach(), expected)


def test_a_rate_belongs_to_a_contiguous_group_of_heads():
    inputs, _ = tensors(2, 24, 6, 5)
    parts = [
        dilated_attention(*(x[:, part] for x in inputs), 3, rate, 2)
        for part, rate in ((slice(0, 12), 1), (slice(12, 24), 3))
    ]
    torch.testing.assert_close(dilated_attention(*inputs, 3, (1, 3), 4), torch.cat(parts, -1))


def test_gradients_agree_with_finite_differences():
    inputs, _ = tensors(1, 6, 4, 3, torch.float64)
    assert torch.autograd.gradcheck(lambda *x: dilated_attention(*x, 3, (1, 2, 1), 3), inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_adds_up_in_float32(dtype):
    inputs, _ = tensors(1, 24, 6, 7, dtype)
    out = dilated_attention(*inputs, 3, (1, 2), 2)
    exact = dilated_attention(*(x.double() for x in inputs), 3, (1, 2), 2, backend="reference")
    assert out.dtype == dtype
    torch.testing.assert_close(out, exact.to(dtype), atol=torch.finfo(dtype).eps * 4, rtol=torch.finfo(dtype).eps * 2)


def test_layout_does_not_matter():
    inputs, _ = tensors(2, 12, 5, 6)
    expected = dilated_attention(*inputs, 3, (1, 2), 2)
    channels_last = [x.to(memory_format=torch.channels_last) for x in inputs]
    slices = torch.cat(inputs, 1).chunk(3, 1)
    torch.testing.assert_close(dilated_attention(*channels_last, 3, (1, 2), 2), expected)
    torch.testing.assert_close(dilated_attention(*slices, 3, (1, 2), 2), expected)


def test_vmap_over_queries_and_their_gradients():
    query, key, value = (torch.randn(3, 2, 6, 4, 5) for _ in range(3))

    def energy(q, k, v, backend="auto"):
        return dilated_attention(q, k, v, 3, (1, 2), 2, backend=backend).square().sum()

    found = torch.vmap(torch.func.grad(energy), in_dims=(0, 0, None))(query, key, value[0])
    for index in range(3):
        expected = torch.func.grad(lambda q, i=index: energy(q, key[i], value[0], "reference"))(query[index])
        torch.testing.assert_close(found[index], expected)


def test_a_second_differentiation_is_refused_except_by_the_reference():
    inputs, _ = tensors(1, 4, 3, 3, torch.float64)
    for backend in ("eager", "reference"):
        out = dilated_attention(*inputs, 3, 1, 1, backend=backend)
        (slope,) = torch.autograd.grad(out.square().sum(), inputs[0], create_graph=True)
        if backend == "eager":
            with pytest.raises(RuntimeError, match="differentiated once"):
                slope.sum().backward()
        else:
            slope.sum().backward()


def test_it_compiles_without_a_graph_break():
    inputs, grad = tensors(1, 12, 6, 5)
    compiled = torch.compile(lambda *x: dilated_attention(*x, 3, (1, 2), 2), fullgraph=True, backend="eager")
    expected = everything("reference", inputs, grad, 3, (1, 2), 2)
    out = compiled(*inputs)
    for a, b in zip([out, *torch.autograd.grad(out, inputs, grad)], expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_the_compiled_path_is_the_reference():
    assert_same("compiled", (2, 18, 8, 5), 3, (1, 2, 3), 3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", [case for case in GRID if case[0]], ids=str)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-4), (torch.float16, 2e-2), (torch.bfloat16, 1e-1)])
def test_triton_is_the_reference(case, dtype, atol):
    assert_same("triton", case[:4], *case[4:], device="cuda", dtype=dtype, atol=atol)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_triton_reads_any_layout():
    inputs, _ = tensors(2, 24, 9, 7, device="cuda")
    channels_last = [x.to(memory_format=torch.channels_last) for x in inputs]
    expected = dilated_attention(*inputs, 3, (1, 2), 2, backend="reference")
    torch.testing.assert_close(dilated_attention(*channels_last, 3, (1, 2), 2, backend="triton"), expected)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"kernel_size": 2}, "kernel_size is 2"),
        ({"kernel_size": 0}, "kernel_size is 0"),
        ({"dilation": 0}, "dilation is .0,."),
        ({"dilation": ()}, "dilation is"),
        ({"dilation": (1, 2, 3)}, "3 rates"),
        ({"num_heads": 5}, "num_heads is 5"),
        ({"num_heads": 0}, "num_heads is 0"),
        ({"backend": "cuda"}, "backend is 'cuda'"),
        ({"key": torch.zeros(1, 12, 4, 5)}, r"\(1, 12, 4, 5\)"),
        ({"query": torch.zeros(12, 4, 4)}, r"\(12, 4, 4\)"),
        ({"value": torch.zeros(1, 12, 4, 4, dtype=torch.float64)}, "float64"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(change, complaint):
    good = {name: torch.zeros(1, 12, 4, 4) for name in ("query", "key", "value")}
    arguments = {**good, "kernel_size": 3, "dilation": (1, 2), "num_heads": 4, **change}
    with pytest.raises(ValueError, match=complaint) as caught:
        dilated_attention(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton could run")
def test_triton_is_refused_where_it_cannot_run():
    with pytest.raises(ValueError, match="needs a CUDA tensor"):
        dilated_attention(*(torch.zeros(1, 4, 4, 4) for _ in range(3)), 3, 1, 1, backend="triton")
