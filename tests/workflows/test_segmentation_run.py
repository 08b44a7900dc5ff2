"""A segmentor is trained on a folder of pictures and masks, opened, evaluated, applied to pictures and exported."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from repertory import catalog
from repertory.cli import main
from repertory.data import load, read_mask
from repertory.data.overlays import NO_CLASS, colored, overlaid
from repertory.nn.segmentor import LinearSegmentor
from repertory.training import SegmentationSettings
from repertory.workflows import Run, train

NAMES = ("ground", "red", "blue")
COLOURS = np.array([[60, 60, 60], [200, 40, 40], [40, 40, 200]], np.uint8)
QUICK = SegmentationSettings(max_images=96, batch_size=8, lr=0.1, accelerator="cpu", augment="flip", tensorboard=False)


def scene(seed, size=(24, 32)):
    """A picture of rectangles, and its mask."""
    random = np.random.default_rng(seed)
    mask = np.zeros(size, np.uint8)
    for label in (1, 2):
        top, left = random.integers(0, size[0] // 2), random.integers(0, size[1] // 2)
        mask[top : top + size[0] // 2, left : left + size[1] // 2] = label
    picture = COLOURS[mask] + random.integers(-20, 20, (*size, 3))
    return picture.clip(0, 255).astype(np.uint8), mask


def write_scenes(root, train=12, val=4, names=NAMES):
    for part, count in (("train", train), ("val", val)):
        for kind in ("images", "masks"):
            (root / kind / part).mkdir(parents=True)
        for number in range(count):
            picture, mask = scene(number + 100 * (part == "val"))
            mask[0] = 255
            Image.fromarray(picture).save(root / "images" / part / f"{number}.png")
            Image.fromarray(mask).save(root / "masks" / part / f"{number}.png")
    (root / "classes.json").write_text(json.dumps(names))
    return root


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, scenes):
    out = tmp_path_factory.mktemp("runs") / "named"
    return train("test_resnet", data=scenes, task="segmentation", settings=QUICK, image_size=32, out=out)


def error_of(kind, **arguments):
    with pytest.raises(kind) as caught:
        train(**({"model": "test_resnet", "settings": QUICK, "image_size": 32} | arguments))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_opened_run_is_the_segmentor_that_was_trained(run, scenes):
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    assert (config["task"], config["model"], config["schedule"]) == ("segmentation", "test_resnet", "poly")
    opened = Run.open(run.path)
    assert (opened.task, opened.classes) == ("segmentation", NAMES)
    assert isinstance(opened.model, LinearSegmentor)
    assert opened.model.preprocessing.size == (32, 32)
    assert opened.model.palette == load(scenes).palette.tolist()
    assert opened.evaluate() == pytest.approx(run.metrics, abs=1e-6)
    assert opened.evaluate(scenes, batch_size=1) == pytest.approx(run.metrics, abs=1e-5)
    assert 0 < run.metrics["miou"] <= 1


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_a_checkpoint_of_a_run_opens_as_the_segmentor_it_is(run, name):
    opened = Run.open(run.path / "checkpoints" / name)
    assert (opened.task, opened.classes, opened.model.palette) == ("segmentation", NAMES, run.model.palette)


def test_evaluation_gives_classes_and_takes_windows_scales_and_mirror(run):
    figures = run.evaluate(per_class=True, inference=run.inference("sliding", scales=(0.75, 1.25), mirror=True))
    assert set(figures) == {"miou", "pixel_accuracy", "mean_accuracy", "loss", *(f"iou {name}" for name in NAMES)}
    assert run.inference().window is None
    assert run.inference("sliding").window == (32, 32)
    with pytest.raises(ValueError, match="the data have no masks"):
        run.evaluate("digits")
    with pytest.raises(ValueError, match=r"the data have the classes background, 0, .* was trained on ground, red"):
        run.evaluate("composites")


def test_pictures_are_segmented_at_their_own_size(run, tmp_path):
    (tmp_path / "in" / "below").mkdir(parents=True)
    sizes = {"a.png": (24, 32), "below/b.jpg": (41, 29), "b.jpg": (30, 30), "b.png": (16, 50)}
    for seed, (name, size) in enumerate(sizes.items()):
        Image.fromarray(scene(seed, size)[0]).save(tmp_path / "in" / name)
    told = []
    rows = run.segment(
        tmp_path / "in", tmp_path / "in" / "out", progress=lambda done, total: told.append((done, total))
    )
    assert told[-1] == (4, 4)
    again = run.segment(tmp_path / "in", tmp_path / "in" / "out")  # its own results are no input
    assert [row["image"] for row in again] == [row["image"] for row in rows]
    written = {
        path.relative_to(tmp_path / "in" / "out").as_posix() for path in (tmp_path / "in" / "out").rglob("*.png")
    }
    assert written == {f"{kind}/{name}" for kind in ("indices", "overlays") for name in NAMED}
    for row in rows:
        picture = np.array(Image.open(row["image"]).convert("RGB"))
        found = read_mask(row["indices"])
        assert found.shape == picture.shape[:2]
        assert found.max() < 3
        assert Image.open(row["indices"]).mode == "P"
        expected = overlaid(picture, found, np.array(run.model.palette), 0.6)
        assert np.array_equal(np.array(Image.open(row["overlay"])), expected)
        assert sum(row["shares"].values()) == pytest.approx(1)
    image, _ = load(run.config["data"]).val.with_preprocessing(run.model.preprocessing).whole(0)
    one = run.segment(load(run.config["data"]).val.pairs[0][0], tmp_path / "one")[0]
    with torch.no_grad():
        assert np.array_equal(read_mask(one["indices"]), run.model(image[None]).argmax(1)[0].numpy())


NAMED = ("a.png", "b.jpg.png", "b.png.png", "below/b.png")


@pytest.mark.parametrize(
    ("images", "error", "complaint"),
    [
        ("absent", FileNotFoundError, "no picture or folder at .*absent"),
        ("empty", ValueError, "empty holds no image"),
        ("cut.png", ValueError, "cannot read the picture .*cut.png"),
        ([], ValueError, "images is empty"),
    ],
)
def test_pictures_that_cannot_be_segmented_are_named(run, tmp_path, images, error, complaint):
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.png").write_bytes(b"\x89PNG")
    with pytest.raises(error, match=complaint):
        run.segment(tmp_path / images if isinstance(images, str) else images, tmp_path / "out")
    with pytest.raises(ValueError, match="opacity is 2; it must be between 0 and 1"):
        run.segment(tmp_path, tmp_path / "out", opacity=2)
    with pytest.raises(FileExistsError, match=r"out .*cut.png is a file"):
        run.segment(tmp_path, tmp_path / "cut.png")
    with pytest.raises(ValueError, match="is a segmentor: use segment"):
        run.predict(tmp_path)


def test_colours_are_the_palettes_and_pixels_without_a_class_have_their_own():
    mask = np.array([[0, 2], [255, 1]])
    assert colored(mask, COLOURS)[1, 0].tolist() == list(NO_CLASS)
    assert colored(mask, COLOURS)[0, 1].tolist() == COLOURS[2].tolist()
    grey = np.full((2, 2, 3), 100, np.uint8)
    assert np.array_equal(overlaid(grey, mask, COLOURS, 0.0), grey)
    assert np.array_equal(overlaid(grey, mask, COLOURS, 1.0), colored(mask, COLOURS))
    with pytest.raises(ValueError, match="they must be of one size"):
        overlaid(grey, mask[:1], COLOURS)


def test_a_segmentor_exported_computes_the_same_at_other_sizes(tmp_path):
    model = catalog.create_model("test_efficientnet", task="segmentation", num_classes=3)
    model.preprocessing, model.palette = dataclasses.replace(model.preprocessing, size=(32, 32)), COLOURS.tolist()
    path = Run(tmp_path, model, {}).export("torch_export")
    extra = {"repertory.json": ""}
    loaded = torch.export.load(path, extra_files=extra).module()
    images = torch.randn(3, 3, 40, 72)
    with torch.no_grad():
        assert torch.allclose(loaded(images), model(images), atol=1e-4)
    assert json.loads(extra["repertory.json"])["palette"] == model.palette


@pytest.mark.slow
def test_onnx_computes_the_same_at_other_sizes(run, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(run.export("onnx", tmp_path / "m.onnx"))
    images = torch.randn(3, 3, 40, 72)
    with torch.no_grad():
        assert np.allclose(session.run(None, {"images": images.numpy()})[0], run.model(images).numpy(), atol=1e-4)


def test_a_checkpoint_of_other_classes_is_refused_or_gets_a_new_head_when_asked(run, tmp_path):
    other = write_scenes(tmp_path / "other", 8, 2, (*NAMES, "green"))
    complaint = error_of(ValueError, data=other, checkpoint=run.path, out=tmp_path / "r")
    assert "head.weight is (3, 96, 1, 1), not (4, 96, 1, 1)" in complaint
    assert "--reset-head" in complaint
    assert not (tmp_path / "r").exists()
    arguments = {"data": other, "checkpoint": run.path, "out": tmp_path / "r", "max_images": 8, "lr": 1e-9}
    tuned = train("test_resnet", settings=QUICK, reset_head=True, **arguments)
    assert tuned.model.num_classes == 4
    before, after = (dict(model.backbone.named_parameters()) for model in (run.model, tuned.model))
    assert all(torch.allclose(value, after[name], atol=1e-4) for name, value in before.items())


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (
            lambda m: np.where(m == 2, 9, m),
            r"the mask .*masks/train/3.png holds the class index 9; 3 classes take 0 to 2",
        ),
        (lambda m: np.stack([m] * 4, 2), "the mask .*masks/train/3.png stores RGBA values instead of class indices"),
        (lambda m: m[:-2], r"the image .*images/train/3.png has 24 x 32 pixels and its mask 22 x 32"),
    ],
)
def test_masks_that_cannot_be_are_named_with_their_file(tmp_path, damage, complaint):
    root = write_scenes(tmp_path / "scenes", 4, 1)
    path = root / "masks" / "train" / "3.png"
    Image.fromarray(damage(np.array(Image.open(path))).astype(np.uint8)).save(path)
    with pytest.raises(ValueError, match=complaint):
        train("test_resnet", data=root, settings=QUICK, image_size=32, out=tmp_path / "r")


def test_palette_masks_are_read_as_the_indices_they_hold(scenes, tmp_path):
    root = write_scenes(tmp_path / "scenes", 2, 1)
    for path in (root / "masks").rglob("*.png"):
        image = Image.open(path)
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
        image.save(path)
    assert torch.equal(load(root).train.raw(1)[1], load(scenes).train.raw(1)[1])


def test_data_and_task_that_do_not_meet_are_refused_before_anything_is_written(tmp_path):
    digits = error_of(ValueError, data="digits", task="segmentation", out=tmp_path / "r")
    assert digits.startswith(
        "task is 'segmentation', but digits is data for classification: give task='classification'"
    )
    assert "did you mean segmentation" in error_of(ValueError, data="digits", task="segmenting", out=tmp_path / "r")
    root = write_scenes(tmp_path / "scenes", 2, 1)
    (root / "images" / "val" / "0.png").unlink()
    assert "images/val holds no image" in error_of(ValueError, data=root, out=tmp_path / "r")
    assert "unknown setting of train 'scale_mni'" in error_of(ValueError, data="composites", scale_mni=1.0)
    assert not (tmp_path / "r").exists()


def test_any_backbone_becomes_a_segmentor_at_stride_8_or_over_its_pyramid():
    dilated = catalog.create_model("test_resnet", task="segmentation", num_classes=5).eval()
    assert dilated.forward_features(torch.zeros(1, 3, 64, 64)).shape == (1, dilated.num_features, 8, 8)
    grey = catalog.create_model("test_convnext", task="segmentation", num_classes=5, in_chans=1).eval()
    assert (grey(torch.zeros(1, 1, 41, 64)).shape, grey.preprocessing.channels) == ((1, 5, 41, 64), "L")
    tokens = catalog.create_model("test_vit", task="segmentation", num_classes=5).eval()
    assert tokens(torch.zeros(2, 3, 40, 56)).shape == (2, 5, 40, 56)
    ours = catalog.create_model("dilateformer_tiny", task="segmentation", num_classes=5).eval()
    assert ours.num_features == 144 + 288 + 576
    assert ours(torch.zeros(1, 3, 56, 64)).shape == (1, 5, 56, 64)
    ours.reset_classifier(3)
    assert (ours.num_classes, ours(torch.zeros(1, 3, 32, 32)).shape) == (3, (1, 3, 32, 32))
    with pytest.raises(ValueError, match="unknown task 'detection'"):
        catalog.create_model("test_resnet", task="detection")
    with pytest.raises(ValueError, match=r"model test_resnet: .*bogus"):
        catalog.create_model("test_resnet", task="segmentation", bogus=1)


def test_maps_that_end_in_their_channels_are_turned():
    class Maps(torch.nn.Module):
        def forward(self, x):
            return [x.new_zeros(1, 8, 8, 5), x.new_ones(1, 4, 4, 7), x.new_ones(1, 2, 2, 3)]

    segmentor = LinearSegmentor(Maps(), (5, 7, 3), (4, 8, 16), 2, channels_last=True)
    assert segmentor.forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 10, 4, 4)


def test_the_command_line_trains_resumes_evaluates_and_segments(scenes, tmp_path, capsys):
    out = str(tmp_path / "r")
    command = [
        "train",
        "--task",
        "segmentation",
        "--model",
        "test_resnet",
        "--data",
        f"{scenes}/",
        "--image-size",
        "32",
    ]
    command += ["--batch-size", "4", "--aux-weight", "0.2", "--accelerator", "cpu", "--out", out]
    assert main([*command, "--max-images", "16"]) == 0
    assert main([*command, "--max-images", "32", "--resume"]) == 0
    assert "miou" in capsys.readouterr().out
    assert main(["train", "--config", f"{out}/config.yaml", "--overwrite"]) == 2  # what a run adds is no option
    capsys.readouterr()
    assert main(["evaluate", out, "--json", "--per-class", "--scales", "0.5", "1", "--mirror"]) == 0
    assert "iou red" in json.loads(capsys.readouterr().out)
    pictures = str(scenes / "images" / "val")
    assert main(["predict", out, pictures, "--out", str(tmp_path / "seg")]) == 0
    assert "class indices of 4 pictures in" in capsys.readouterr().out
    assert len(list((tmp_path / "seg" / "overlays").iterdir())) == 4
    assert main(["predict", out, pictures]) == 2
    assert "--out is missing; it must name the folder" in capsys.readouterr().err
    assert main(["predict", out, pictures, "--out", out, "--inference", "tiled"]) == 2
    assert "inference is 'tiled'; it must be one of whole, resized, sliding" in capsys.readouterr().err
