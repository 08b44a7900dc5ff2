"""Pictures and their masks stay on top of each other, and masks that cannot be are refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from repertory.data import (
    ArraySegmentation,
    FileSegmentation,
    ImageData,
    Preprocessing,
    SegmentationData,
    prepare_pair,
    read_mask,
)
from repertory.data.segmentation import pascal_palette

CLASSES = ("ground", "thing", "other")
PLAIN = Preprocessing(size=(4, 4), crop=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)


def arrays(count=2, preprocessing=PLAIN, side=4):
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, side, side), generator=random, dtype=torch.uint8)
    masks = torch.randint(3, (count, side, side), generator=random)
    masks[0, 0, 0] = 255
    return ArraySegmentation(images, masks, CLASSES, preprocessing)


def save(path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(array, np.uint8))
    if mode == "P":
        image = Image.frombytes("P", image.size, image.tobytes())
        image.putpalette(pascal_palette(256).tobytes())
    elif mode:
        image = image.convert(mode)
    image.save(path)
    return path


def test_an_item_is_image_mask_and_index():
    part = arrays()
    image, mask, index = part[1]
    assert torch.equal(image, part.images[1] / 255)
    assert torch.equal(mask, part.masks[1])
    assert (mask.dtype, index) == (torch.int64, 1)


def test_raw_is_as_stored_and_whole_is_normalised_at_its_own_size():
    part = arrays(preprocessing=Preprocessing(size=(2, 2)), side=6)
    image, mask = part.raw(0)
    assert (image.dtype, mask.dtype, mask.shape) == (torch.uint8, torch.int64, (6, 6))
    normal, whole = part.whole(0)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert torch.allclose(normal, (image / 255 - mean) / std)
    assert torch.equal(whole, mask)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 50),
    width=st.integers(1, 50),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    crop=st.sampled_from([1.0, 0.875, 0.5]),
)
def test_a_mask_is_cut_to_the_pixels_of_its_picture(height, width, size, crop):
    """A picture painted by its mask, both resized to the nearest pixel, shows the mask again."""
    mask = torch.randint(3, (height, width))
    image = (mask * 100).to(torch.uint8).expand(3, -1, -1)
    nearest = Preprocessing(size, "nearest", crop, (0.0,) * 3, (1.0,) * 3)
    prepared, cut = prepare_pair(image, mask, nearest)
    assert prepared.shape == (3, *size)
    assert (cut.shape, cut.dtype) == (size, torch.int64)
    assert set(cut.unique().tolist()) <= set(mask.unique().tolist())
    _, again = prepare_pair(image, mask, Preprocessing(size, "bilinear", crop, (0.0,) * 3, (1.0,) * 3))
    assert torch.equal(cut, again)


def test_a_resized_edge_lies_where_the_pictures_edge_lies():
    mask = torch.zeros(64, 64, dtype=torch.int64)
    mask[:, 40:] = 1
    image = (mask * 255).to(torch.uint8).expand(3, -1, -1)
    prepared, cut = prepare_pair(image, mask, Preprocessing((16, 16), "bilinear", 1.0, (0.0,) * 3, (1.0,) * 3))
    assert torch.equal(cut, (prepared[0] > 0.5).long())


def test_one_by_one_pixels_are_a_segmentation():
    part = ArraySegmentation(torch.zeros(1, 1, 1, 1, dtype=torch.uint8), torch.zeros(1, 1, 1).long(), ("a",), PLAIN)
    assert part[0][1].tolist() == [[0] * 4] * 4


@pytest.mark.parametrize(
    ("images", "masks", "error", "complaint"),
    [
        (torch.zeros(2, 4, 4, 4), torch.zeros(2, 4, 4).long(), ValueError, r"must be \(N, C, H, W\)"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 5).long(), ValueError, r"must be \(2, 4, 4\)"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4), TypeError, "masks are torch.float32"),
        (torch.zeros(2, 3, 4, 4).long(), torch.zeros(2, 4, 4).long(), TypeError, "images are torch.int64"),
        (torch.full((1, 3, 4, 4), 2.0), torch.zeros(1, 4, 4).long(), ValueError, r"image 0 leaves \[0, 1\]"),
        (
            torch.zeros(2, 3, 4, 4),
            torch.tensor([0, 7]).view(2, 1, 1).expand(2, 4, 4),
            ValueError,
            "mask of item 1 holds the class index 7; 3 classes take 0 to 2, and 255",
        ),
        (torch.zeros(1, 3, 1, 1), torch.full((1, 1, 1), -1), ValueError, "item 0 holds the class index -1"),
    ],
)
def test_arrays_that_are_no_segmentation_are_refused(images, masks, error, complaint):
    with pytest.raises(error, match=complaint) as caught:
        ArraySegmentation(images, masks, CLASSES, PLAIN)
    assert "\n" not in str(caught.value)


def test_files_are_read_with_their_masks(tmp_path):
    colour = np.arange(4 * 5 * 3).reshape(4, 5, 3)
    indices = np.arange(20).reshape(4, 5) % 3
    pairs = [
        (save(tmp_path / f"{mode}.jpg", colour), save(tmp_path / f"{mode}.png", indices, mode)) for mode in ("L", "P")
    ]
    part = FileSegmentation(pairs, CLASSES, PLAIN)
    for index in range(2):
        image, mask = part.raw(index)
        assert (image.shape, image.dtype) == ((3, 4, 5), torch.uint8)
        assert torch.equal(mask, torch.from_numpy(indices))
    assert part.describe(0) == str(pairs[0][0])


def test_a_bad_mask_file_is_named(tmp_path):
    picture = save(tmp_path / "x.png", np.zeros((4, 5, 3)))
    cases = {
        "large": (np.full((4, 5), 9), "large.png holds the class index 9; 3 classes take 0 to 2"),
        "other": (np.zeros((5, 4)), "x.png has 4 x 5 pixels and its mask 5 x 4"),
        "rgb": (np.zeros((4, 5, 3)), "rgb.png stores RGB values instead of class indices"),
        "rgba": (np.zeros((4, 5, 4)), "rgba.png stores RGBA values"),
    }
    for name, (array, complaint) in cases.items():
        part = FileSegmentation([(picture, save(tmp_path / f"{name}.png", array))], CLASSES, PLAIN)
        with pytest.raises(ValueError, match=complaint) as caught:
            part[0]
        assert "\n" not in str(caught.value)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 9)
    with pytest.raises(ValueError, match=r"cannot read the mask .*broken.png"):
        read_mask(tmp_path / "broken.png")
    with pytest.raises(FileNotFoundError, match=r"no mask at .*absent.png"):
        read_mask(tmp_path / "absent.png")


def test_colours_become_classes_by_a_given_palette(tmp_path):
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 1] = (128, 64, 128)
    colours = {(0, 0, 0): 255, (128, 64, 128): 1}
    for mode in ("RGB", "RGBA"):
        found = read_mask(save(tmp_path / f"{mode}.png", pixels, mode), colours)
        assert found.tolist() == [[255, 1, 255], [255, 255, 255]]
    pixels[1, 2] = (9, 8, 7)
    with pytest.raises(ValueError, match=r"strange.png holds the colour \(9, 8, 7\), which is no class"):
        read_mask(save(tmp_path / "strange.png", pixels), colours)


def test_indices_of_sixteen_bits_are_kept(tmp_path):
    Image.fromarray(np.array([[0, 300, 65535]], np.uint16)).save(tmp_path / "deep.png")
    assert read_mask(tmp_path / "deep.png").tolist() == [[0, 300, 65535]]
    (tmp_path / "deep.pgm").write_bytes(b"P5 2 1 65535 " + bytes([1, 44, 0, 7]))
    assert read_mask(tmp_path / "deep.pgm").tolist() == [[300, 7]]


def test_values_above_all_that_are_known_are_named(tmp_path):
    Image.fromarray(np.array([[3, 65535]], np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep.png holds the value 65535, which stands for no class"):
        read_mask(tmp_path / "deep.png", values={3: 0})


def test_data_know_their_task_and_follow_a_models_preprocessing():
    data = SegmentationData("toy", arrays(), arrays(1), CLASSES)
    larger = data.with_preprocessing(Preprocessing(size=(8, 6)))
    assert larger.val[0][0].shape == (3, 8, 6)
    assert larger.val[0][1].shape == (8, 6)
    assert data.val[0][0].shape == (3, 4, 4)
    assert (data.task, ImageData.task) == ("segmentation", "classification")
    assert data.palette.tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]


def test_the_default_colours_are_those_of_pascal_voc():
    # aeroplane, bicycle, person and tvmonitor as the development kit draws them
    assert pascal_palette(21)[[1, 2, 15, 20]].tolist() == [[128, 0, 0], [0, 128, 0], [192, 128, 128], [0, 64, 128]]


def test_a_subset_keeps_its_sources_items():
    part = arrays(3)
    chosen = part.subset([2, 0])
    assert len(chosen) == 2
    assert torch.equal(chosen[0][1], part[2][1])
    assert chosen.describe(0) == "item 2"
    with pytest.raises(ValueError, match="index 3 is out of range: the set has 3 items"):
        part.subset([3])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"val": arrays(1).subset([])}, "the val part of toy has no image"),
        ({"classes": ("a", "b", "c")}, "train part of toy has other classes"),
        ({"ignore_index": 254}, "another ignore_index"),
        ({"palette": np.zeros((2, 3), np.uint8)}, r"palette is uint8 of shape \(2, 3\)"),
    ],
)
def test_data_that_do_not_fit_together_are_refused(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        SegmentationData(**({"name": "toy", "train": arrays(), "val": arrays(1), "classes": CLASSES} | change))


def test_the_ignored_index_is_no_class():
    images, masks = torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2).long()
    with pytest.raises(ValueError, match="ignore_index is 1, the index of the class 'thing'"):
        ArraySegmentation(images, masks, CLASSES, PLAIN, ignore_index=1)
    with pytest.raises(ValueError, match="classes is empty"):
        ArraySegmentation(images, masks, (), PLAIN)
