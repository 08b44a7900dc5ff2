import pytest
import torch
from torch.nn.functional import interpolate

from repertory.ops.gaussian import gaussian_blur, gaussian_kernel
from repertory.ops.resize import imresize


@pytest.mark.parametrize("size", [(16, 21), (25, 34), (20, 13), (1, 1), (40, 27), (3, 90)])
def test_every_path_of_resize_agrees(size):
    image = torch.rand(2, 3, 20, 27, dtype=torch.float64)
    torch.testing.assert_close(imresize(image, size), imresize(image, size, backend="reference"), rtol=0, atol=1e-14)


def test_enlarging_is_plain_bilinear():
    image = torch.rand(1, 2, 9, 12, dtype=torch.float64)
    expected = interpolate(image, (14, 17), mode="bilinear", align_corners=False)
    torch.testing.assert_close(imresize(image, (14, 17)), expected, rtol=0, atol=1e-13)


def test_shrinking_reflects_at_the_border_where_interpolate_drops():
    image = torch.rand(1, 1, 40, 40, dtype=torch.float64)
    ours, dropped = imresize(image, (32, 32)), interpolate(image, (32, 32), mode="bilinear", antialias=True)
    torch.testing.assert_close(ours[..., 3:-3, 3:-3], dropped[..., 3:-3, 3:-3], rtol=0, atol=1e-13)
    assert (ours - dropped).abs()[..., 0, :].max() > 1e-3


def test_a_constant_stays_and_gradients_flow():
    image = torch.full((1, 1, 7, 5), 0.3, dtype=torch.float64, requires_grad=True)
    small = gaussian_blur(imresize(image, (5, 4)))
    torch.testing.assert_close(small, torch.full_like(small, 0.3))
    assert torch.autograd.gradcheck(lambda x: gaussian_blur(imresize(x, (5, 4))), image)


@pytest.mark.parametrize("shape", [(12, 9), (2, 3), (1, 1)])
def test_every_path_of_blur_agrees_even_where_the_kernel_is_larger_than_the_image(shape):
    image = torch.rand(1, 2, *shape, dtype=torch.float64)
    torch.testing.assert_close(gaussian_blur(image), gaussian_blur(image, backend="reference"), rtol=0, atol=1e-14)


def test_kernel_sums_to_one_and_wrong_arguments_are_named():
    assert gaussian_kernel(5, 1.0).sum().item() == pytest.approx(1, abs=1e-15)
    with pytest.raises(ValueError, match="size is 4"):
        gaussian_blur(torch.rand(1, 1, 5, 5), 4)
    with pytest.raises(ValueError, match="size is 0x3"):
        imresize(torch.rand(1, 1, 5, 5), (0, 3))
