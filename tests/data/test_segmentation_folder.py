"""A folder of one's own pictures and masks is read, and what cannot be is said in one sentence."""

import json

import numpy as np
import pytest
from PIL import Image

from repertory.data import ImageData, load


def save(path, array, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(array, np.uint8))
    if palette is not None:
        image = Image.frombytes("P", image.size, image.tobytes())
        image.putpalette(palette)
    image.save(path)


def folder(root, masks=([[0, 1], [2, 255]],) * 2, held_out="val", **settings):
    """One picture a part, the mask of each from ``masks``."""
    for part, mask in zip(("train", held_out), masks):
        save(root / "images" / part / "a.jpg", np.full((2, 2, 3), 80))
        save(root / "masks" / part / "a.png", mask, **settings)
    return root


def described(root, entries):
    (root / "classes.json").write_text(json.dumps(entries))
    return root


def masks_of(data):
    return [part.raw(0)[1].tolist() for part in (data.train, data.val)]


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_without_names_classes_are_numbers(tmp_path, held_out):
    data = load(folder(tmp_path / "mine", held_out=held_out))
    assert (data.name, data.classes, data.split) == ("mine", ("0", "1", "2"), f"the folder images/{held_out}")
    assert masks_of(data) == [[[0, 1], [2, 255]]] * 2
    assert data.val[0][0].shape == (3, 512, 512)


def test_names_come_from_a_text_file(tmp_path):
    folder(tmp_path)
    (tmp_path / "classes.txt").write_text("sky\nroad\r\n car \n\n")
    assert load(tmp_path).classes == ("sky", "road", "car")


def test_names_come_from_json(tmp_path):
    assert load(described(folder(tmp_path), ["sky", "road", "car"])).classes == ("sky", "road", "car")


def test_subfolders_and_other_picture_formats_match_by_name(tmp_path):
    folder(tmp_path)
    save(tmp_path / "images" / "train" / "deep" / "b.png", np.zeros((2, 2, 3)))
    save(tmp_path / "masks" / "train" / "deep" / "b.bmp", np.ones((2, 2)))
    (tmp_path / "masks" / "train" / "notes.txt").write_text("no mask")
    data = load(f"{tmp_path}/")
    assert len(data.train) == 2
    assert data.train.raw(1)[1].tolist() == [[1, 1], [1, 1]]


def test_a_palette_mask_gives_its_indices(tmp_path):
    data = load(folder(tmp_path, palette=bytes(range(255, -1, -1)) * 3))
    assert masks_of(data) == [[[0, 1], [2, 255]]] * 2


COLOURS = [
    {"name": "sky", "color": [0, 0, 255]},
    {"name": "road", "color": [128, 64, 128]},
    {"ignore": True, "color": [0, 0, 0]},
]
PAINTED = [[[0, 0, 255], [128, 64, 128]], [[0, 0, 0], [0, 0, 255]]]


@pytest.mark.parametrize("alpha", [False, True])
def test_colours_become_classes_where_they_are_described(tmp_path, alpha):
    painted = np.concatenate([PAINTED, np.full((2, 2, 1), 200)], 2) if alpha else PAINTED
    data = load(described(folder(tmp_path, [painted] * 2), COLOURS))
    assert data.classes == ("sky", "road")
    assert data.palette.tolist() == [[0, 0, 255], [128, 64, 128]]
    assert masks_of(data) == [[[0, 1], [255, 0]]] * 2


def test_a_palette_mask_counts_by_its_colours_where_those_are_described(tmp_path):
    palette = bytes([0, 0, 0, 128, 64, 128, 0, 0, 255])
    data = load(described(folder(tmp_path, [[[2, 1], [0, 2]]] * 2, palette=palette), COLOURS))
    assert masks_of(data) == [[[0, 1], [255, 0]]] * 2


def test_values_may_stand_for_classes(tmp_path):
    folder(tmp_path, [[[0, 255], [255, 128]]] * 2)
    described(tmp_path, [{"name": "no", "value": 0}, {"name": "polyp", "value": 255}, {"ignore": True, "value": 128}])
    data = load(tmp_path)
    assert masks_of(data) == [[[0, 1], [1, 255]]] * 2


def test_masks_of_nothing_but_0_and_255_are_not_taken_for_one_class(tmp_path):
    folder(tmp_path, [[[0, 255], [255, 0]]] * 2)
    with pytest.raises(ValueError, match=r"hold only 0 and 255, and 255 is ignored: .* classes.json"):
        load(tmp_path)
    (tmp_path / "classes.txt").write_text("no\npolyp\n")
    with pytest.raises(ValueError, match="hold only 0 and 255"):
        load(tmp_path)


def test_folders_of_classes_stay_folders_of_classes(tmp_path):
    for name in ("masks", "gloves"):
        for number in range(3):
            save(tmp_path / name / f"{number}.png", np.zeros((2, 2, 3)))
    data = load(tmp_path)
    assert isinstance(data, ImageData)
    assert data.classes == ("gloves", "masks")


def without(path):
    def make(root):
        folder(root)
        (root / path).rename(root / "gone")

    return make


def with_json(content):
    return lambda root: (folder(root), (root / "classes.json").write_text(content))


@pytest.mark.parametrize(
    ("make", "error", "complaint"),
    [
        (without("masks/train/a.png"), FileNotFoundError, r"train/a.jpg has no mask: expected .*masks/train/a.png"),
        (without("masks"), FileNotFoundError, "no folder masks/train; expected images/train"),
        (without("images/val"), FileNotFoundError, "no folder images/val"),
        (without("masks/val"), FileNotFoundError, "no folder masks/val"),
        (without("images/train/a.jpg"), ValueError, "the split .*images/train holds no image"),
        (without("images/val/a.jpg"), ValueError, "the split .*images/val holds no image"),
        (lambda root: folder(root, [[[255, 255]] * 2] * 2), ValueError, "is 255 throughout"),
        (lambda root: folder(root, [np.zeros((2, 2, 3))] * 2), ValueError, "a.png stores RGB values instead"),
        (lambda root: folder(root, [np.zeros((2, 2, 4))] * 2), ValueError, "a.png stores RGBA values instead"),
        (lambda root: (folder(root), (root / "classes.txt").write_text(" \n")), ValueError, "names no class"),
        (lambda root: (folder(root), (root / "classes.txt").write_text("a\na")), ValueError, "class 'a' twice"),
        (with_json("{"), ValueError, "classes.json is no JSON"),
        (with_json('{"a": 1}'), ValueError, "must be a list of names"),
        (with_json('[{"color": [0, 0, 0]}]'), ValueError, "entry 0 of .*classes.json has no name"),
        (with_json('["a", {"name": "b", "color": [0, 0, 256]}]'), ValueError, r"entry 1 .* color \[0, 0, 256\]"),
        (with_json('[{"name": "b", "value": -1}]'), ValueError, "entry 0 .* the value -1"),
        (with_json('["a", {"name": "b", "value": 1}]'), ValueError, "gives some classes a value and others none"),
        (
            with_json('[{"name": "a", "color": [1, 2, 3]}, {"name": "b", "color": [1, 2, 3]}]'),
            ValueError,
            "two entries one color",
        ),
    ],
)
def test_bad_folders_are_one_sentence(tmp_path, make, error, complaint):
    make(tmp_path / "data")
    with pytest.raises(error, match=complaint) as caught:
        load(tmp_path / "data")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "mask", "complaint"),
    [
        (["a", "b"], [[0, 1], [0, 3]], r"masks/train/a.png holds the class index 3; 2 classes take 0 to 1"),
        ([{"name": "a", "value": 7}], [[7, 7], [7, 8]], r"masks/train/a.png holds the value 8, which stands for no"),
        (COLOURS, np.full((2, 2, 3), 9), r"a.png holds the colour \(9, 9, 9\), which is no class"),
    ],
)
def test_a_mask_that_does_not_fit_its_classes_is_named(tmp_path, names, mask, complaint):
    data = load(described(folder(tmp_path, [mask] * 2), names))
    with pytest.raises(ValueError, match=complaint):
        data.train[0]
