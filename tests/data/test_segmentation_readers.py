"""Published segmentation sets are read from trees as they are unpacked, and what is missing is named."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from repertory.data import SegmentationData, dense_classes, load
from repertory.data.dense_readers import PUBLISHED, read_voc_mask
from repertory.data.segmentation import pascal_palette

HEIGHT, WIDTH = 4, 6


def photograph(path, value=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), (value, 0, 0)).save(path)


def index_map(path, *values, palette=False):
    """A mask whose rows hold ``values`` in turn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(rows(*values))
    if palette:
        image = Image.frombytes("P", image.size, image.tobytes())
        image.putpalette(pascal_palette(256).tobytes())
    image.save(path)


def rows(*values):
    return np.repeat(np.resize(np.array(values, np.uint8), HEIGHT)[:, None], WIDTH, 1)


def write(path, *names):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def column(data, part="train", index=0):
    """The first column of a mask: its rows' class indices."""
    return getattr(data, part).raw(index)[1][:, 0].tolist()


def cityscapes(root):
    for part, cities in (("train", ("aachen", "ulm")), ("val", ("lindau",))):
        for city in cities:
            stem = f"{city}_000000_000019"
            photograph(root / "leftImg8bit" / part / city / f"{stem}_leftImg8bit.png")
            index_map(root / "gtFine" / part / city / f"{stem}_gtFine_labelIds.png", 7, 33, 0, 29)
            index_map(root / "gtFine" / part / city / f"{stem}_gtFine_instanceIds.png", 99)
    return root


def ade20k(root):
    for part, short in (("training", "train"), ("validation", "val")):
        for number in range(1, 3):
            stem = f"ADE_{short}_{number:08d}"
            photograph(root / "ADEChallengeData2016" / "images" / part / f"{stem}.jpg")
            index_map(root / "ADEChallengeData2016" / "annotations" / part / f"{stem}.png", 0, 1, 21, 150)
    return root


def pascal_voc(root):
    voc = root / "VOCdevkit" / "VOC2012"
    for name in ("2007_000032", "2007_000033", "2008_000100", "2009_000200"):
        photograph(voc / "JPEGImages" / f"{name}.jpg")
    for name in ("2007_000032", "2007_000033"):
        index_map(voc / "SegmentationClass" / f"{name}.png", 0, 1, 20, 255, palette=True)
    write(voc / "ImageSets" / "Segmentation" / "train.txt", "2007_000032")
    write(voc / "ImageSets" / "Segmentation" / "val.txt", "2007_000033")
    return root


def pascal_voc_aug(root):
    pascal_voc(root)
    sbd = root / "benchmark_RELEASE" / "dataset"
    (sbd / "cls").mkdir(parents=True)
    # SBD shares pictures with VOC's train and val; its files hold one struct GTcls.
    for name in ("2007_000032", "2007_000033", "2008_000100", "2009_000200"):
        content = {"Segmentation": rows(0, 15), "CategoriesPresent": np.array([15], np.uint8)}
        savemat(sbd / "cls" / f"{name}.mat", {"GTcls": content})
    write(sbd / "train.txt", "2008_000100", "2007_000033")
    write(sbd / "val.txt", "2009_000200", "2007_000032")
    return root


def coco_stuff(root):
    for part in ("train2017", "val2017"):
        photograph(root / "images" / part / "000000000009.jpg")
        index_map(root / "annotations" / part / "000000000009.png", 0, 12, 181, 255)
        index_map(root / "annotations" / part / "000000000009_labelTrainIds.png", 170)
    return root


TREES = {
    "cityscapes": cityscapes,
    "ade20k": ade20k,
    "pascal_voc": pascal_voc,
    "pascal_voc_aug": pascal_voc_aug,
    "coco_stuff": coco_stuff,
}


@pytest.mark.parametrize(
    ("name", "train", "val", "classes", "first_column"),
    [
        ("cityscapes", 2, 1, 19, [0, 18, 255, 255]),
        ("ade20k", 2, 2, 150, [255, 0, 20, 149]),
        ("pascal_voc", 1, 1, 21, [0, 1, 20, 255]),
        ("pascal_voc_aug", 3, 1, 21, [0, 1, 20, 255]),
        ("coco_stuff", 1, 1, 171, [0, 11, 170, 255]),
    ],
)
def test_a_tree_is_read_as_published(tmp_path, name, train, val, classes, first_column):
    data = load(name, root=TREES[name](tmp_path))
    assert isinstance(data, SegmentationData)
    assert (len(data.train), len(data.val), len(data.classes)) == (train, val, classes)
    assert len(data.palette) == len(set(map(tuple, data.palette.tolist()))) == classes
    assert column(data) == column(data, "val") == first_column
    image, mask = data.val.raw(0)
    assert (image.shape, mask.shape) == ((3, HEIGHT, WIDTH), (HEIGHT, WIDTH))
    small = load(name, root=str(tmp_path), size=(3, 5))
    assert small.train[0][0].shape == (3, 3, 5)
    assert small.train[0][1].shape == (3, 5)


def test_every_published_set_has_a_tree_here():
    assert set(TREES) == set(PUBLISHED)


@pytest.mark.parametrize("name", list(TREES))
def test_sets_travel_to_loader_processes(tmp_path, name):
    data = load(name, root=TREES[name](tmp_path))
    again = pickle.loads(pickle.dumps(data.train))
    assert torch.equal(again.raw(0)[1], data.train.raw(0)[1])


def test_a_pictures_name_is_its_path(tmp_path):
    data = load("cityscapes", root=cityscapes(tmp_path))
    assert data.train.describe(1).endswith("leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png")


def test_class_names_stand_at_their_published_index():
    names, colours, _ = dense_classes.cityscapes_classes(255)
    assert (names[0], names[13], names[18]) == ("road", "car", "bicycle")
    assert colours[0].tolist() == [128, 64, 128]
    ade = dense_classes.ADE20K
    assert (ade[0], ade[12], ade[20], ade[136], ade[149]) == ("wall", "person", "car", "traffic light", "flag")
    voc = dense_classes.PASCAL_VOC
    assert (voc[0], voc[15], voc[20]) == ("background", "person", "tvmonitor")
    coco = dense_classes.COCO_STUFF
    assert (coco[0], coco[11], coco[79], coco[80], coco[170]) == ("person", "stop sign", "toothbrush", "banner", "wood")
    assert all(len(set(given)) == len(given) for given in (ade, voc, coco))


def test_the_augmented_list_takes_vocs_masks_before_sbds_and_no_validation_picture(tmp_path):
    data = load("pascal_voc_aug", root=pascal_voc_aug(tmp_path))
    stems = [image.stem for image, _ in data.train.pairs]
    assert stems == ["2007_000032", "2008_000100", "2009_000200"]
    assert column(data, index=0) == [0, 1, 20, 255]
    assert column(data, index=1) == [0, 15, 0, 15]


def test_a_converted_augmentation_and_its_list_are_read(tmp_path):
    voc = pascal_voc(tmp_path) / "VOCdevkit" / "VOC2012"
    index_map(voc / "SegmentationClassAug" / "2008_000100.png", 0, 15)
    with pytest.raises(FileNotFoundError, match=r"no list of the augmented pictures .*trainaug.txt"):
        load("pascal_voc_aug", root=tmp_path)
    # DeepLab's lists give the picture's path and the mask's
    write(voc / "ImageSets" / "Segmentation" / "train_aug.txt", "/JPEGImages/2008_000100.jpg /Aug/2008_000100.png")
    data = load("pascal_voc_aug", root=tmp_path)
    assert [image.stem for image, _ in data.train.pairs] == ["2008_000100"]
    assert column(data) == [0, 15, 0, 15]


@pytest.mark.parametrize("inner", ["VOCdevkit", "VOCdevkit/VOC2012"])
def test_vocs_root_may_be_the_folder_itself(tmp_path, inner):
    assert len(load("pascal_voc", root=pascal_voc(tmp_path) / inner).train) == 1


def test_coco_stuffs_maps_may_lie_beside_their_pictures(tmp_path):
    coco_stuff(tmp_path)
    (tmp_path / "annotations").rename(tmp_path / "stuffthingmaps_trainval2017")
    for part in ("train2017", "val2017"):
        (tmp_path / "images" / part).rename(tmp_path / part)
    assert column(load("coco_stuff", root=tmp_path)) == [0, 11, 170, 255]


MISSING = [
    ("cityscapes", "gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png"),
    ("cityscapes", "leftImg8bit/train"),
    ("ade20k", "ADEChallengeData2016/annotations/training/ADE_train_00000002.png"),
    ("ade20k", "ADEChallengeData2016/images/validation"),
    ("pascal_voc", "VOCdevkit/VOC2012/SegmentationClass/2007_000033.png"),
    ("pascal_voc", "VOCdevkit/VOC2012/JPEGImages/2007_000032.jpg"),
    ("pascal_voc", "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"),
    ("pascal_voc", "VOCdevkit/VOC2012/JPEGImages"),
    ("pascal_voc_aug", "benchmark_RELEASE/dataset"),
    ("pascal_voc_aug", "benchmark_RELEASE/dataset/train.txt"),
    ("pascal_voc_aug", "benchmark_RELEASE/dataset/cls/2009_000200.mat"),
    ("coco_stuff", "annotations/val2017/000000000009.png"),
    ("coco_stuff", "annotations/train2017"),
    ("coco_stuff", "images/val2017"),
]


@pytest.mark.parametrize(("name", "gone"), MISSING)
def test_what_is_missing_is_named_with_its_path(tmp_path, name, gone):
    TREES[name](tmp_path / "tree")
    (tmp_path / "tree" / gone).rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError) as caught:
        load(name, root=tmp_path / "tree")
    assert "expected" in str(caught.value)
    assert str(tmp_path / "tree" / gone) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_pictures_is_named(tmp_path):
    for part in ("training", "validation"):
        (tmp_path / "images" / part).mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"ade20k has no picture in .*images/training: expected"):
        load("ade20k", root=tmp_path)


@pytest.mark.parametrize("name", list(TREES))
def test_a_root_is_asked_for(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} is not part of the library: give root="):
        load(name)
    with pytest.raises(FileNotFoundError, match=f"the root .*absent of {name} does not exist"):
        load(name, root=tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=f"the root .*file of {name} is a file"):
        load(name, root=tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "mask", "value", "complaint"),
    [
        (
            "cityscapes",
            "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png",
            34,
            "the value 34, which stands",
        ),
        ("ade20k", "ADEChallengeData2016/annotations/training/ADE_train_00000001.png", 151, "the value 151"),
        ("pascal_voc", "VOCdevkit/VOC2012/SegmentationClass/2007_000032.png", 21, "the class index 21; 21 classes"),
        ("coco_stuff", "annotations/train2017/000000000009.png", 11, "the value 11, which stands for no class"),
    ],
)
def test_an_index_outside_the_map_is_named_with_its_file(tmp_path, name, mask, value, complaint):
    root = TREES[name](tmp_path)
    index_map(root / mask, value)
    data = load(name, root=root)
    with pytest.raises(ValueError, match=complaint) as caught:
        data.train[0]
    assert str(root / mask) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_mat_file_is_named(tmp_path):
    (tmp_path / "x.mat").write_bytes(b"MATLAB 5.0" + b"\0" * 300)
    savemat(tmp_path / "other.mat", {"GTinst": np.zeros(3)})
    savemat(tmp_path / "odd.mat", {"GTcls": {"Segmentation": np.zeros((2, 2))}})
    for name, complaint in (
        ("x", "cannot read GTcls.Segmentation"),
        ("other", "cannot read GTcls.Segmentation"),
        ("odd", "float64 of shape"),
        ("absent", "no mask at"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=f"{complaint}.*") as caught:
            read_voc_mask(tmp_path / f"{name}.mat")
        assert f"{name}.mat" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_mask_of_another_size_is_named(tmp_path):
    photograph(tmp_path / "dummy.png")
    root = ade20k(tmp_path)
    mask = root / "ADEChallengeData2016/annotations/validation/ADE_val_00000001.png"
    Image.new("L", (WIDTH, HEIGHT + 1), 1).save(mask)
    with pytest.raises(ValueError, match=r"ADE_val_00000001.jpg has 4 x 6 pixels and its mask 5 x 6"):
        load("ade20k", root=root).val[0]
