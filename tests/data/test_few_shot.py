import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as VF
from torchvision.transforms.v2.functional import InterpolationMode

from repertory.data import ArrayImages, ImageData, load
from repertory.data.few_shot import (
    LISTS,
    VTAB_GROUPS,
    VTAB_TASKS,
    few_shot,
    load_vtab,
    vtab_averages,
    write_vtab,
)
from repertory.data.preprocessing import Preprocessing


@pytest.fixture
def folder(tmp_path):
    """Three classes of 10 oblong pictures each, no two alike."""
    for label, name in enumerate(("ant", "bee", "cat")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(10):
            shade = 10 * (10 * label + number) % 256
            Image.new("RGB", (12 + number, 6), (shade, label, number)).save(
                tmp_path / "photos" / name / f"{number}.png"
            )
    return tmp_path / "photos"


def shades(part):
    return [tuple(part.raw(index)[:, 0, 0].tolist()) for index in range(len(part))]


def test_a_draw_has_the_sizes_asked_for_and_nothing_twice(folder):
    data = load(folder, size=8, val_fraction=0.2)
    split = few_shot(data, train=12, val=5, seed=1)
    search, final = split.search, split.final
    assert (len(search.train), len(search.val), len(final.train)) == (12, 5, 17)
    assert final.val is data.val
    assert set(shades(search.train)).isdisjoint(shades(search.val))
    assert set(shades(search.train)) | set(shades(search.val)) == set(shades(final.train))
    assert set(shades(final.train)).isdisjoint(shades(data.val))
    assert search.classes == final.classes == ("ant", "bee", "cat")
    assert "seed 1" in final.split


def test_labels_go_with_their_pictures_and_samples_are_counted_anew(folder):
    train = few_shot(load(folder, size=8), 12, 5).final.train
    for index in range(len(train)):
        image, label, number = train[index]
        assert (label, number) == (int(train.raw(index)[1, 0, 0]), index)
        assert image.shape == (3, 8, 8)


def test_the_seed_decides(folder):
    data = load(folder, size=8)
    first, again, other = (shades(few_shot(data, 8, 4, seed).search.train) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_every_class_has_a_picture_to_train_on(folder):
    data = load(folder, size=8)
    for seed in range(20):
        assert set(few_shot(data, 3, 1, seed).search.train.targets) == {0, 1, 2}
    assert len(few_shot(data, 2, 1).search.train) == 2


def test_the_split_takes_on_a_models_preprocessing(folder):
    split = few_shot(load(folder, size=8), 12, 5)
    other = split.final.with_preprocessing(Preprocessing(size=(4, 6), channels="L", mean=(0.0,), std=(1.0,)))
    assert other.train[0][0].shape == other.val[0][0].shape == (1, 4, 6)
    assert split.final.train[0][0].shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train": 0}, "train is 0; it must be at least 1"),
        ({"val": -1}, "val is -1; it must be at least 1"),
        ({"train": 800}, "train and val are 800 and 4; photos has 24 training images"),
    ],
)
def test_a_draw_that_cannot_be_is_refused(folder, given, message):
    data = load(folder, size=8)
    whole = ImageData("photos", data.train, data.val, data.classes)
    if len(data.train) != 24:
        message = message.replace("24", str(len(data.train)))
    with pytest.raises(ValueError, match=message):
        few_shot(whole, **{"train": 8, "val": 4, **given})


def test_lists_that_were_written_are_read_back(folder):
    split = few_shot(load(folder, size=8), 12, 5)
    write_vtab(split, folder)
    assert sorted(path.stem for path in folder.glob("*.txt")) == sorted(LISTS)
    read = load_vtab(folder.parent, "photos")
    parts = [(split.search.train, read.search.train), (split.search.val, read.search.val)]
    parts += [(split.final.train, read.final.train), (split.final.val, read.final.val)]
    for written, found in parts:
        assert found.targets == written.targets
        assert shades(found) == shades(written)
    assert read.final.classes == ("0", "1", "2")


def test_pictures_of_the_benchmark_are_stretched_to_the_models_size(tmp_path):
    task = tmp_path / "kitti"
    (task / "images").mkdir(parents=True)
    pixels = torch.randint(0, 256, (3, 5, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(task / "images" / "a b.png")
    for name in LISTS:
        (task / f"{name}.txt").write_text("images/a b.png 3\n\n")
    split = load_vtab(tmp_path, "kitti")
    assert split.final.classes == ("0", "1", "2", "3")
    image, label, _ = split.final.val[0]
    stretched = VF.resize(pixels, [224, 224], InterpolationMode.BICUBIC, antialias=True).float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(image, (stretched - mean) / std)
    assert label == 3


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("a.png", ValueError, "line 2 of .*train800.txt is 'a.png'; it must be a path and a label, 0 or more"),
        ("a.png -1", ValueError, "it must be a path and a label, 0 or more"),
        ("b.png 1", FileNotFoundError, "line 2 of .*train800.txt names b.png, which is not there"),
        ("a.png 4", ValueError, "gives a.png label 4; kitti has 0 to 3"),
    ],
)
def test_damaged_lists_are_named_with_their_line(tmp_path, line, error, message):
    task = tmp_path / "kitti"
    task.mkdir()
    Image.new("RGB", (2, 2)).save(task / "a.png")
    for name in LISTS:
        (task / f"{name}.txt").write_text("a.png 0\n")
    (task / "train800.txt").write_text(f"a.png 0\n{line}\n")
    with pytest.raises(error, match=message):
        load_vtab(tmp_path, "kitti")


def test_missing_folders_lists_and_pictures_are_named(tmp_path):
    with pytest.raises(ValueError, match="unknown VTAB-1k task 'kity': did you mean kitti"):
        load_vtab(tmp_path, "kity")
    with pytest.raises(FileNotFoundError, match="no folder .*dtd; it must hold train800.txt"):
        load_vtab(tmp_path, "dtd")
    (tmp_path / "dtd").mkdir()
    with pytest.raises(FileNotFoundError, match="no list .*train800.txt"):
        load_vtab(tmp_path, "dtd")
    (tmp_path / "dtd" / "train800.txt").write_text("\n")
    with pytest.raises(ValueError, match="train800.txt names no picture"):
        load_vtab(tmp_path, "dtd")


def test_lists_need_files_below_their_folder(folder, tmp_path):
    images = ArrayImages(torch.zeros(6, 3, 4, 4), [0, 1] * 3, ("a", "b"), Preprocessing())
    with pytest.raises(TypeError, match="the pictures are in a ArrayImages; lists name files"):
        write_vtab(few_shot(ImageData("memory", images, images, ("a", "b")), 3, 2), tmp_path / "lists")
    with pytest.raises(ValueError, match="does not lie below"):
        write_vtab(few_shot(load(folder, size=8), 3, 2), tmp_path / "lists")


def test_both_averages_of_the_benchmark():
    assert {name: len(tasks) for name, tasks in VTAB_GROUPS.items()} == {
        "natural": 7,
        "specialised": 4,
        "structured": 8,
    }
    top1 = {task: 90.0 if task in VTAB_GROUPS["natural"] else 60.0 for task in VTAB_TASKS}
    averages = vtab_averages(top1)
    assert averages["tasks"] == pytest.approx((7 * 90 + 12 * 60) / 19)
    assert averages["groups"] == pytest.approx(70)
    assert (averages["natural"], averages["structured"]) == (90, 60)
    del top1["kitti"]
    with pytest.raises(ValueError, match="top1 lacks kitti; an average is over all 19 tasks"):
        vtab_averages(top1)
    with pytest.raises(ValueError, match="unknown VTAB-1k task 'mnist'"):
        vtab_averages({**top1, "kitti": 1.0, "mnist": 1.0})
