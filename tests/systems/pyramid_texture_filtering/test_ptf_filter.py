from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.baselines import bilateral as plain
from hypothesis import given, settings
from hypothesis import strategies as st

from repertory.ops import joint_bilateral
from repertory.parity import load, run_vector
from repertory.systems.pyramid_texture_filtering import filter_image, most_levels, pyramid_texture_filter
from repertory.systems.pyramid_texture_filtering import parity as drivers

VECTORS = Path(drivers.__file__).parent / "vectors"


@pytest.mark.parametrize("path", sorted(VECTORS.glob("*.json")), ids=lambda path: path.stem)
def test_vectors_pass(path):
    report = run_vector(load(path), path.stem, drivers.DRIVERS)
    assert report.passed, [output for output in report.outputs if output.problem]


def checker(height=96, width=128, period=6, amplitude=0.1):
    """A step .3 / .7 under a checker of ``period`` pixels: a synthetic probe."""
    y, x = np.mgrid[:height, :width]
    base = np.where(x < width // 2, 0.3, 0.7)
    return base + amplitude * np.where((y // (period // 2) + x // (period // 2)) % 2, 1.0, -1.0), base


def test_probe_loses_its_texture_and_keeps_its_step_where_one_bilateral_filter_does_nothing():
    picture, base = checker()
    batch = torch.from_numpy(picture)[None, None].expand(1, 3, -1, -1).contiguous()
    smooth = pyramid_texture_filter(batch)[0, 0].numpy()
    flat = np.s_[:, 8:56]
    assert (picture - base)[flat].std() == pytest.approx(0.1, abs=0.002)
    assert 0.02 < (smooth - base).std() < 0.035  # what is left stands beside the step and at the border
    assert (smooth - base)[flat].std() < 0.02
    across = smooth[48, 64:67].mean() - smooth[48, 61:64].mean()
    assert across == pytest.approx(0.51, abs=0.015)  # of a base step of 0.4
    edges = np.abs(np.diff(smooth, axis=1)).mean(0).argmax()
    assert abs(edges - 63) <= 1
    single = joint_bilateral(batch, batch, 11, 5.0, 0.05)[0, 0].numpy()
    assert (single - base)[flat].std() == pytest.approx(0.1, abs=0.002)


def test_one_level_is_the_identity_and_a_constant_stays():
    image = torch.rand(1, 3, 20, 20)
    assert torch.equal(pyramid_texture_filter(image, levels=1), image)
    constant = torch.full((1, 3, 24, 30), 0.37, dtype=torch.float64)
    torch.testing.assert_close(pyramid_texture_filter(constant), constant)


def test_a_batch_is_its_images_and_the_frozen_baseline_agrees():
    batch = torch.rand(2, 3, 24, 31, dtype=torch.float64)
    smooth = pyramid_texture_filter(batch, sigma_r=0.2)
    for one, image in zip(smooth, batch, strict=True):
        torch.testing.assert_close(pyramid_texture_filter(image[None], sigma_r=0.2)[0], one)
        expected = plain.pyramid_texture_filter(image.permute(1, 2, 0).numpy(), sigma_r=0.2)
        np.testing.assert_allclose(one.permute(1, 2, 0).numpy(), expected, atol=1e-12)


def test_float32_stays_close_to_float64():
    image = torch.rand(1, 3, 32, 40, dtype=torch.float64)
    found = pyramid_texture_filter(image.float())
    torch.testing.assert_close(found.double(), pyramid_texture_filter(image), rtol=0, atol=2e-4)


def test_gradients_flow_through_the_whole_filter():
    image = torch.rand(1, 1, 9, 10, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: pyramid_texture_filter(x, 1.0, 0.5, levels=3), image, fast_mode=True)


def test_grey_corresponds_to_three_equal_channels_at_root_three_times_the_range():
    grey = torch.rand(1, 1, 24, 24, dtype=torch.float64)
    colour = pyramid_texture_filter(grey.expand(1, 3, 24, 24).contiguous(), sigma_r=0.05 * 3**0.5)
    torch.testing.assert_close(pyramid_texture_filter(grey), colour[:, :1])


@pytest.mark.parametrize("shape", [(24, 26), (24, 26, 1), (24, 26, 2), (24, 26, 3), (24, 26, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_pictures_keep_dtype_shape_and_alpha(shape, dtype):
    values = np.random.default_rng(0).random(shape)
    picture = values.astype(dtype) if dtype == np.float32 else (values * np.iinfo(dtype).max).astype(dtype)
    found = filter_image(picture)
    assert found.dtype == picture.dtype
    assert found.shape == picture.shape
    assert not np.array_equal(found, picture)
    if len(shape) == 3 and shape[2] in (2, 4):
        assert np.array_equal(found[..., -1], picture[..., -1])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.3, 0.9), st.integers(1, 12))
def test_any_size_is_filtered_or_refused_naming_the_size_needed(height, width, scale, levels):
    image = torch.rand(1, 1, height, width)
    if levels <= most_levels(height, width, scale):
        assert pyramid_texture_filter(image, 1.0, 0.1, levels, scale).shape == image.shape
        return
    with pytest.raises(ValueError, match=rf"{height}x{width} pixels allows at most .* need sides of at least"):
        pyramid_texture_filter(image, 1.0, 0.1, levels, scale)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sigma_s": 0.0}, "sigma_s is 0.0"),
        ({"sigma_r": float("nan")}, "sigma_r is nan"),
        ({"scale": 1.0}, "scale is 1.0"),
        ({"levels": 0}, "levels is 0"),
        ({"levels": 2.5}, "levels is 2.5"),
    ],
)
def test_settings_out_of_range_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        pyramid_texture_filter(torch.rand(1, 3, 30, 30), **change)


def test_nan_and_wrong_types_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        pyramid_texture_filter(torch.full((1, 1, 30, 30), float("nan")))
    with pytest.raises(TypeError, match="uint8"):
        pyramid_texture_filter(torch.zeros(1, 3, 30, 30, dtype=torch.uint8))
    with pytest.raises(ValueError, match="picture is"):
        filter_image(np.zeros((3, 30, 30, 3)))
