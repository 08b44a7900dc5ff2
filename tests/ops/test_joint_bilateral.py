import pytest
import torch

from repertory.ops import joint_bilateral


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(2, 3, 20, 27), (1, 1, 5, 40), (1, 4, 1, 1)])
@pytest.mark.parametrize("half_width", [0, 2, 12])
def test_eager_agrees_with_the_reference_also_where_the_window_exceeds_the_image(shape, half_width):
    image, guide = draw(*shape), draw(shape[0], 3, *shape[2:], seed=1)
    expected = joint_bilateral(image, guide, half_width, 3.0, 0.1, backend="reference")
    torch.testing.assert_close(joint_bilateral(image, guide, half_width, 3.0, 0.1, backend="eager"), expected)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 3e-6)])
def test_compiled_agrees_with_the_reference_at_several_sizes_by_one_kernel(dtype, tolerance):
    for height, width, half_width in ((20, 27, 12), (33, 33, 4), (64, 40, 7), (2, 30, 3)):
        image, guide = draw(1, 3, height, width), draw(1, 3, height, width, seed=1)
        expected = joint_bilateral(image, guide, half_width, 5.0, 0.05, backend="reference")
        found = joint_bilateral(image.to(dtype), guide.to(dtype), half_width, 5.0, 0.05, backend="compiled")
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
def test_triton_agrees_with_the_reference(channels, dtype, tolerance):
    image, guide = draw(2, channels, 33, 45), draw(2, min(channels, 3), 33, 45, seed=1)
    expected = joint_bilateral(image, guide, 6, 3.0, 0.1, backend="reference")
    found = joint_bilateral(image.to("cuda", dtype), guide.to("cuda", dtype), 6, 3.0, 0.1, backend="triton")
    torch.testing.assert_close(found.cpu().double(), expected, rtol=0, atol=tolerance)


def test_gradients_of_image_and_guide_are_those_of_the_definition():
    image, guide = draw(1, 2, 6, 7).requires_grad_(), draw(1, 3, 6, 7, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, g: joint_bilateral(a, g, 2, 1.5, 0.4, backend="eager"), (image, guide))


def test_a_filter_guided_by_itself_has_the_reference_gradient():
    image = draw(1, 3, 8, 9).requires_grad_()
    grads = [
        torch.autograd.grad(joint_bilateral(image, image, 3, 2.0, 0.3, backend=path).square().sum(), image)[0]
        for path in ("reference", "eager")
    ]
    torch.testing.assert_close(*grads)


def test_one_far_colour_neither_moves_nor_is_moved():
    image = torch.zeros(1, 3, 5, 5, dtype=torch.float32)
    image[..., 2, 2] = 1.0
    assert torch.equal(joint_bilateral(image, image, 2, 3.0, 0.02, backend="eager"), image)
    # the compiled path's weights end at the smallest normal number and not at zero
    torch.testing.assert_close(joint_bilateral(image, image, 2, 3.0, 0.02), image, rtol=0, atol=1e-37)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backend": "fast"}, "backend is 'fast'"),
        ({"sigma_r": 0.0}, "sigma_r 0.0"),
        ({"half_width": -1}, "half_width is -1"),
        ({"guide": torch.rand(1, 3, 4, 5)}, r"guide \(1, 3, 4, 5\)"),
        ({"image": torch.rand(1, 3, 4, 4).half()}, "float16"),
    ],
)
def test_bad_arguments_are_named(change, words):
    settings = {"image": torch.rand(1, 3, 4, 4), "guide": torch.rand(1, 3, 4, 4), "half_width": 1}
    with pytest.raises(ValueError, match=words):
        joint_bilateral(**{**settings, "sigma_s": 1.0, "sigma_r": 0.1, **change})
