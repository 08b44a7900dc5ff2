"""Counting bits gives what convolving signs in float gives, exactly, for every shape; and bad input is named."""

import pytest
import torch
import torch.nn.functional as F

from repertory.ops.backend import native
from repertory.ops.binary_conv import _count, _group_size, _halves_added, binary_conv2d, pack_signs, unpack_signs

# batch, in and out channels, sides, kernel, stride, padding, dilation, groups
SHAPES = [
    (2, 16, 24, (10, 10), (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (1, 40, 8, (9, 7), (3, 3), (2, 1), (1, 0), (1, 1), 1),
    (2, 64, 32, (7, 7), (3, 3), (1, 1), (2, 2), (2, 2), 2),
    (1, 70, 8, (6, 5), (1, 1), (1, 1), (0, 0), (1, 1), 1),
    (1, 600, 4, (5, 5), (1, 1), (2, 2), (0, 0), (1, 1), 1),
    (1, 8, 4, (9, 9), (5, 5), (1, 1), (2, 2), (1, 1), 1),
    (1, 33, 4, (8, 9), (7, 3), (1, 2), (3, 1), (1, 1), 1),
    (2, 32, 8, (8, 8), (3, 3), (1, 1), (0, 0), (1, 1), 4),
]


def drawn(shape, zeros=0.1):
    batch, channels, out, sides, kernel, *_, groups = shape
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, *sides, generator=draws)
    x[torch.rand(x.shape, generator=draws) < zeros] = 0
    return x, torch.randn(out, channels // groups, *kernel, generator=draws)


def exactly_the_float_result(shape, backend, dtype=torch.float32):
    x, weight = drawn(shape)
    *_, kernel, stride, padding, dilation, groups = shape
    words = pack_signs(weight)
    found = binary_conv2d(x.to(dtype), words, kernel, stride, padding, dilation, groups, backend)
    expected = F.conv2d(x.sign(), weight.sign(), None, stride, padding, dilation, groups)
    assert found.dtype == dtype
    return torch.equal(found.float(), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", ["reference", "eager", "compiled", "auto"])
def test_sums_are_those_of_the_float_convolution_of_signs(shape, backend):
    assert exactly_the_float_result(shape, backend)


@pytest.mark.parametrize("backend", ["eager", "compiled"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_result_has_the_dtype_of_the_input(dtype, backend):
    assert exactly_the_float_result(SHAPES[0], backend, dtype)


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_inputs_with_gaps_and_an_empty_batch(backend):
    x, words = torch.randn(2, 5, 6, 40).permute(0, 3, 1, 2), pack_signs(torch.randn(8, 40, 3, 3))
    assert torch.equal(*(binary_conv2d(x, words, (3, 3), backend=path) for path in (backend, "reference")))
    assert binary_conv2d(x[:0], words, (3, 3), backend=backend).shape == (0, 8, 3, 4)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_share_the_rows(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert exactly_the_float_result(SHAPES[1], "compiled")
    finally:
        torch.set_num_threads(before)


def test_without_a_compiler_bits_are_counted_all_the_same(monkeypatch, caplog):
    monkeypatch.setattr("shutil.which", lambda name: None)
    native.cache_clear()
    try:
        assert native("binary_conv") is None
        assert "no C compiler found: binary_conv runs uncompiled" in caplog.text
        assert exactly_the_float_result(SHAPES[0], "compiled")
        assert exactly_the_float_result(SHAPES[0], "auto")
    finally:
        native.cache_clear()


def test_a_source_that_does_not_compile_is_said(monkeypatch, tmp_path, caplog):
    (tmp_path / "broken.c").write_text("int f( {")
    monkeypatch.setattr("repertory.ops.backend.__file__", str(tmp_path / "backend.py"))
    assert native("broken") is None
    assert "cannot compile broken" in caplog.text


def test_an_input_of_zeros_and_its_padding_count_for_nothing():
    words = pack_signs(torch.ones(2, 3, 3, 3))
    assert torch.equal(
        binary_conv2d(torch.zeros(1, 3, 4, 4), words, (3, 3), padding=(1, 1), backend="eager"), torch.zeros(1, 2, 4, 4)
    )
    ones = binary_conv2d(torch.ones(1, 3, 4, 4), words, (3, 3), padding=(1, 1), backend="eager")
    assert ones[0, 0, 0, 0] == 12
    assert ones[0, 0, 1, 1] == 27


@pytest.mark.parametrize("channels", [1, 31, 32, 33, 64])
def test_signs_come_back_out_of_the_words(channels):
    weight = torch.randn(5, channels, 3, 2)
    words = pack_signs(weight)
    assert words.dtype == torch.int32
    assert words.shape == (5, -(-channels // 32) * 6)
    assert torch.equal(unpack_signs(words, weight.shape), weight.sign())


@pytest.mark.parametrize("size", range(1, 16))
def test_bits_of_up_to_fifteen_words_are_counted(size):
    draws = torch.Generator().manual_seed(size)
    words = torch.randint(-(2**31), 2**31, (size, 50), generator=draws).int()
    words[:, 0], words[:, 1] = -1, 0
    expected = [sum((word & 0xFFFFFFFF).bit_count() for word in column) for column in words.T.tolist()]
    assert _halves_added(_count(list(words))).tolist() == expected


def test_words_are_taken_in_groups_that_leave_little_over():
    assert [_group_size(count) for count in (1, 9, 15, 18, 36, 72, 144)] == [1, 9, 15, 9, 12, 12, 12]
    assert all(-count % _group_size(count) < _group_size(count) for count in range(1, 300))


X, WORDS = torch.randn(1, 4, 5, 5), pack_signs(torch.ones(2, 4, 3, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: binary_conv2d(X[0], WORDS, (3, 3)), r"x is \(4, 5, 5\); it must be \(B, C, H, W\)"),
        (lambda: binary_conv2d(X, WORDS, (5, 5)), r"words are \(2, 9\); for 4 channels they must be \(O, 25\)"),
        (
            lambda: binary_conv2d(X, WORDS, (3, 3), groups=3),
            "groups is 3; it must divide 4 input and 2 output channels",
        ),
        (lambda: binary_conv2d(X, WORDS, (3, 3), backend="triton"), "backend is 'triton'"),
        (lambda: binary_conv2d(X, WORDS, (3, 3), backend="fast"), "backend is 'fast'"),
        (lambda: pack_signs(torch.zeros(1, 2, 1, 1)), "weight has 2 values of exactly 0"),
        (lambda: pack_signs(torch.ones(3, 3)), r"weight is \(3, 3\); it must be \(O, C, kH, kW\)"),
    ],
)
def test_bad_input_meets_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_other_dtypes_are_refused():
    with pytest.raises(TypeError, match="x is torch.int64"):
        binary_conv2d(X.long(), WORDS, (3, 3))
    with pytest.raises(TypeError, match="words are torch.float32"):
        binary_conv2d(X, WORDS.float(), (3, 3))
