"""Pictures come out as the model's preprocessing says, whatever went in."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from repertory.data import ArrayImages, ImageData, Preprocessing, prepare
from repertory.data.loading import with_channels

GREY = Preprocessing(size=(4, 4), crop=1.0, mean=(0.5,), std=(0.25,), channels="L")
CLASSES = ("a", "b")


def grey(*shape, dtype=torch.uint8):
    return torch.zeros(shape, dtype=dtype)


def test_values_are_normalised_in_the_order_of_the_channels():
    image = torch.tensor([255, 0, 51], dtype=torch.uint8).view(3, 1, 1).expand(3, 2, 2)
    rgb = Preprocessing(size=(2, 2), crop=1.0, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0))
    assert torch.allclose(prepare(image, rgb)[:, 0, 0], torch.tensor([0.9, -0.1, -0.025]))
    bgr = Preprocessing(size=(2, 2), crop=1.0, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0), channels="BGR")
    assert torch.allclose(prepare(image, bgr)[:, 0, 0], torch.tensor([0.1, -0.1, 0.175]))


def test_resize_and_crop_agree_with_pillow_and_timm_on_a_photograph():
    from skimage.data import astronaut
    from timm.data import create_transform

    photograph = astronaut()[:300]
    wanted = Preprocessing(size=(96, 96), crop=0.875)
    transform = create_transform((3, 96, 96), interpolation="bilinear", crop_pct=0.875)
    expected = transform(Image.fromarray(photograph))
    given_ = prepare(torch.from_numpy(photograph).permute(2, 0, 1), wanted)
    # both round to 8 bits between the two passes of the resize; they may differ by one level
    assert float((given_ - expected).abs().max()) <= 1.01 / 255 / 0.224
    assert float((given_ - expected).abs().mean()) < 2e-3


def test_grey_becomes_colour_and_colour_grey():
    image = torch.full((1, 4, 4), 128, dtype=torch.uint8)
    assert prepare(image, with_channels(GREY, "RGB")).shape == (3, 4, 4)
    colour = torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1).expand(3, 4, 4)
    red = prepare(colour, GREY)
    assert red.shape == (1, 4, 4)
    assert float(red[0, 0, 0]) == pytest.approx((0.2989 - 0.5) / 0.25, abs=0.02)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    crop=st.sampled_from([1.0, 0.95, 0.875, 0.5]),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic"]),
    channels=st.sampled_from(["RGB", "BGR", "L"]),
    given_channels=st.sampled_from([1, 3]),
    deep=st.booleans(),
)
def test_any_picture_is_made_to_fit(height, width, size, crop, interpolation, channels, given_channels, deep):
    image = torch.randint(256, (given_channels, height, width), dtype=torch.uint8)
    image = image / 255 if deep else image
    statistics = (0.5,) * (1 if channels == "L" else 3)
    preprocessing = Preprocessing(size, interpolation, crop, statistics, statistics, channels)
    out = prepare(image, preprocessing)
    assert out.shape == (len(statistics), *size)
    assert out.dtype == torch.float32
    assert float(out.min()) >= -1 - 1e-5
    assert float(out.max()) <= 1 + 1e-5


def test_a_line_of_pixels_does_not_grow_without_bound(monkeypatch):
    from torchvision.transforms.v2 import functional as VF

    sizes = []
    real = VF.resize
    monkeypatch.setattr(VF, "resize", lambda image, shape, *a, **k: sizes.append(shape) or real(image, shape, *a, **k))
    assert prepare(grey(3, 1, 20000), Preprocessing(size=(64, 64))).shape == (3, 64, 64)
    assert math.prod(sizes[0]) < 64 * 64 * 20


def test_a_colour_picture_shrinks_to_one_pixel():
    image = torch.tensor([0, 100, 200], dtype=torch.uint8).view(3, 1, 1).expand(3, 4, 4).contiguous()
    dot = prepare(image, Preprocessing((1, 1), crop=1.0, mean=(0.0,) * 3, std=(1.0,) * 3))
    assert torch.allclose(dot.flatten(), torch.tensor([0, 100, 200]) / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"channels": "HSV"}, "channels is 'HSV'"),
        ({"interpolation": "magic", "size": (3, 3)}, "interpolation is 'magic'"),
        ({"mean": (0.1, 0.2)}, "2 means and 1 deviations for 1 channels"),
    ],
)
def test_preprocessing_that_does_not_fit_is_named(change, complaint):
    wrong = Preprocessing(**(GREY.to_dict() | change))
    with pytest.raises(ValueError, match=complaint):
        prepare(grey(1, 4, 4), wrong)


@pytest.mark.parametrize(
    ("images", "targets", "error", "complaint"),
    [
        (grey(2, 1, 4, 4), [0, 2], ValueError, "label 2 of sample 1 is out of range: 2 classes take 0 to 1"),
        (grey(2, 1, 4, 4), [-1, 0], ValueError, "label -1 of sample 0"),
        (grey(2, 2, 4, 4), [0, 1], ValueError, r"\(2, 2, 4, 4\); they must be \(N, C, H, W\) with 1 or 3 channels"),
        (grey(3, 1, 4, 4), [0, 1], ValueError, "3 images and 2 labels"),
        (grey(2, 1, 4, 4, dtype=torch.int64), [0, 1], TypeError, "torch.int64"),
        (torch.tensor([0.0, math.nan]).view(2, 1, 1, 1), [0, 1], ValueError, "image 1 holds NaN"),
        (torch.tensor([0.0, 1.5]).view(2, 1, 1, 1), [0, 1], ValueError, r"image 1 leaves \[0, 1\]"),
    ],
)
def test_arrays_that_cannot_be_pictures_are_refused(images, targets, error, complaint):
    with pytest.raises(error, match=complaint) as caught:
        ArrayImages(images, targets, CLASSES, GREY)
    assert "\n" not in str(caught.value)


def test_an_item_is_image_label_and_index():
    images = torch.arange(32, dtype=torch.uint8).view(2, 1, 4, 4)
    image, label, index = ArrayImages(images, np.array([1, 0]), CLASSES, GREY)[1]
    assert torch.allclose(image, (images[1] / 255 - 0.5) / 0.25)
    assert (label, index) == (0, 1)


def test_other_preprocessing_leaves_the_data_as_they_were():
    part = ArrayImages(grey(2, 1, 4, 4), [0, 1], CLASSES, GREY)
    data = ImageData("toy", part, part, CLASSES)
    larger = data.with_preprocessing(with_channels(Preprocessing(**(GREY.to_dict() | {"size": (6, 5)})), "RGB"))
    assert larger.val[0][0].shape == (3, 6, 5)
    assert data.val[0][0].shape == (1, 4, 4)


def test_labels_follow_the_names_into_other_classes():
    part = ArrayImages(grey(2, 1, 4, 4), [0, 1], CLASSES, GREY)
    assert part.with_classes(("b", "c", "a")).targets == [2, 0]
    with pytest.raises(ValueError, match="class 'b' that is not among a, c"):
        part.with_classes(("a", "c"))


def test_statistics_follow_the_channels():
    rgb = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert with_channels(rgb, "BGR").mean == (0.3, 0.2, 0.1)
    assert with_channels(with_channels(rgb, "BGR"), "RGB") == rgb
    assert with_channels(rgb, "L").mean == pytest.approx((0.2,))
    assert with_channels(GREY, "RGB").std == (0.25,) * 3
