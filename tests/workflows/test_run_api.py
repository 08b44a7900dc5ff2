"""A run is trained, opened, evaluated, applied and exported, on bundled data and on a folder of real pictures."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import repertory
from repertory.data import ArrayImages, ImageData, Preprocessing, load
from repertory.errors import MissingExtraError
from repertory.nn import ConvNet
from repertory.training import FitSettings
from repertory.workflows import Run, train

QUICK = FitSettings(max_images=64, batch_size=32, accelerator="cpu")
TIMM = "test_resnet"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Real digits as a folder of PNG files, three classes."""
    root = tmp_path_factory.mktemp("photos")
    digits = load("digits")
    for label in range(3):
        members = [i for i, target in enumerate(digits.train.targets) if target == label][:12]
        (root / f"digit {label}").mkdir()
        for i in members:
            Image.fromarray(digits.train.raw(i)[0].numpy()).resize((20, 24)).save(root / f"digit {label}" / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory, photos):
    out = tmp_path_factory.mktemp("runs") / "named"
    return train(TIMM, data=photos, methods=[("bake", {"omega": 0.9})], settings=QUICK, image_size=64, out=out)


def net(classes=10, channels=1):
    torch.manual_seed(0)
    return ConvNet(classes, channels, 4)


def error_of(kind, **arguments):
    with pytest.raises(kind) as caught:
        train(**({"settings": QUICK, "data": "digits", "model": net()} | arguments))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_run_folder_holds_what_the_run_was(run):
    assert {p.name for p in run.path.iterdir()} == {
        "config.yaml",
        "classes.json",
        "checkpoints",
        "model.safetensors",
        "metrics.csv",
        "tensorboard",
    }
    assert {p.name for p in (run.path / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert json.loads((run.path / "classes.json").read_text()) == ["digit 0", "digit 1", "digit 2"]
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    assert (config["model"], config["method"], config["bake"]) == (TIMM, ["bake"], {"omega": 0.9})
    assert config["batch_size"] == 32


def test_an_opened_run_is_the_one_that_was_trained(run, photos):
    opened = Run.open(run.path)
    assert opened.metrics == pytest.approx(run.metrics)
    assert opened.classes == ("digit 0", "digit 1", "digit 2")
    assert opened.model.preprocessing.size == (64, 64)
    assert opened.evaluate() == pytest.approx(run.metrics, abs=1e-6)


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_a_checkpoint_of_a_run_opens_alone(run, tmp_path, name):
    assert Run.open(run.path / "checkpoints" / name).classes == run.classes
    shutil.copy(run.path / "checkpoints" / name, tmp_path)
    alone = Run.open(tmp_path / name, model=TIMM)
    assert alone.classes == run.classes
    assert alone.model.preprocessing == run.model.preprocessing
    with pytest.raises(ValueError, match="does not say which model"):
        Run.open(tmp_path / name)


def test_other_pictures_of_the_same_classes_are_all_counted(run, photos, tmp_path):
    shutil.copytree(photos / "digit 1", tmp_path / "new" / "digit 1")
    shutil.copytree(photos / "digit 2", tmp_path / "new" / "digit 2")
    rows = run.predict(sorted((tmp_path / "new").iterdir()))
    right = sum(row["top"][0][0] in row["image"] for row in rows)
    assert run.evaluate(tmp_path / "new")["top1"] == pytest.approx(right / 24)
    (tmp_path / "new" / "digit 2").rename(tmp_path / "new" / "letter")
    with pytest.raises(ValueError, match="class 'letter'"):
        run.evaluate(tmp_path / "new")


def test_predictions_have_names_and_probabilities_and_go_to_csv(run, photos, tmp_path):
    rows = run.predict(photos, top_k=2, out=tmp_path / "x.csv", batch_size=5)
    assert len(rows) == 36
    assert {name for row in rows for name, _ in row["top"]} <= set(run.classes)
    assert all(row["top"][0][1] >= row["top"][1][1] for row in rows)
    with (tmp_path / "x.csv").open() as file:
        written = list(csv.DictReader(file))
    assert list(written[0]) == ["image", "class_1", "probability_1", "class_2", "probability_2"]
    assert [row["image"] for row in written] == [row["image"] for row in rows]
    whole = run.predict(rows[0]["image"], top_k=99)[0]["top"]
    assert sum(probability for _, probability in whole) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("images", "error", "complaint"),
    [
        ("absent", FileNotFoundError, "no picture or folder at .*absent"),
        ("empty", ValueError, "empty holds no image"),
        ("cut.png", ValueError, "cannot read the picture .*cut.png"),
        ([], ValueError, "images is empty"),
    ],
)
def test_pictures_that_cannot_be_classified_are_named(run, photos, tmp_path, images, error, complaint):
    (tmp_path / "empty").mkdir()
    first = next((photos / "digit 1").iterdir())
    (tmp_path / "cut.png").write_bytes(first.read_bytes()[:60])
    with pytest.raises(error, match=complaint):
        run.predict(tmp_path / images if isinstance(images, str) else images)
    with pytest.raises(ValueError, match="top_k is 0"):
        run.predict(photos, top_k=0)


def test_torch_export_computes_the_same_at_other_sizes(run, tmp_path):
    extra = {"repertory.json": ""}
    path = run.export("torch_export", tmp_path / "m.pt2")
    loaded = torch.export.load(path, extra_files=extra).module()
    images = torch.randn(5, 3, 96, 160)
    with torch.no_grad():
        assert torch.allclose(loaded(images), run.model(images), atol=1e-4)
    inside = json.loads(extra["repertory.json"])
    assert inside["classes"] == list(run.classes)
    assert inside["preprocessing"]["size"] == [64, 64]


def test_onnx_computes_the_same_at_other_sizes(run):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(run.export())
    images = torch.randn(5, 3, 96, 160)
    with torch.no_grad():
        expected = run.model(images).numpy()
    assert np.allclose(session.run(None, {"images": images.numpy()})[0], expected, atol=1e-4)
    inside = json.loads(session.get_modelmeta().custom_metadata_map["repertory"])
    assert (inside["model"], inside["classes"]) == (TIMM, list(run.classes))
    (run.path / "model.onnx").unlink()


class FixedSize(nn.Module):
    """Flattens, so its size cannot be free."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.preprocessing, self.class_names = load("digits").preprocessing, None

    def forward(self, x):
        return self.linear(x.flatten(1))


def test_a_model_of_one_size_keeps_a_free_number_of_images(tmp_path):
    model = FixedSize()
    path = Run(tmp_path, model, {}).export("torch_export")
    assert path == tmp_path / "model.pt2"
    images = torch.randn(7, 1, 8, 8)
    assert torch.allclose(torch.export.load(path).module()(images), model(images), atol=1e-5)


def test_export_says_what_is_missing_or_unknown(run, monkeypatch):
    with pytest.raises(ValueError, match="format is 'tflite'; it must be one of onnx, torch_export"):
        run.export("tflite")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'repertory\[export\]'"):
        run.export("onnx")


def test_a_module_is_trained_as_a_copy_and_opened_with_another(tmp_path):
    model = net()
    before = model.head.weight.clone()
    run = train(model, data="digits", methods=["bake"], settings=QUICK, out=tmp_path / "m")
    assert torch.equal(model.head.weight, before)
    assert not hasattr(model, "preprocessing")
    with pytest.raises(ValueError, match="trained on a module, ConvNet: give model="):
        Run.open(tmp_path / "m")
    assert Run.open(tmp_path / "m", model=net()).evaluate() == pytest.approx(run.metrics, abs=1e-6)
    with pytest.raises(ValueError, match=r"another model than ConvNet: .*head.weight is"):
        Run.open(tmp_path / "m", model=net(classes=4))


def test_the_default_folder_is_named_after_model_methods_and_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stacked = train(net(), data="digits", methods=["bake", "hwa"], settings=QUICK, seed=3)
    assert str(stacked.path) == "runs/ConvNet-bake-hwa-3"
    assert str(train(net(), data="digits", settings=QUICK).path) == "runs/ConvNet-plain-0"


def test_an_existing_run_is_neither_mixed_nor_lost(tmp_path):
    def again(**options):
        return train(net(), data="digits", settings=QUICK, out=tmp_path / "r", **options)

    first = again()
    (tmp_path / "r" / "notes.txt").write_text("mine")
    weights = (tmp_path / "r" / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match=r"resume=True .* overwrite=True"):
        again()
    with pytest.raises(ValueError, match=r"another configuration: lr was 0.1 and is 0.2"):
        again(resume=True, lr=0.2)
    with pytest.raises(ValueError, match="exclude each other"):
        again(resume=True, overwrite=True)
    assert (tmp_path / "r" / "model.safetensors").read_bytes() == weights
    assert again(resume=True).metrics == pytest.approx(first.metrics)
    longer = again(resume=True, max_images=128)
    assert Run.open(tmp_path / "r", model=net()).config["max_images"] == 128
    assert longer.metrics != first.metrics
    assert again(overwrite=True).metrics == pytest.approx(first.metrics)
    assert (tmp_path / "r" / "notes.txt").read_text() == "mine"


def test_grey_and_colour_meet_in_the_model(tmp_path, photos):
    assert (
        train(net(channels=3), data="digits", settings=QUICK, out=tmp_path / "a").model.preprocessing.channels == "RGB"
    )
    grey = train(net(3), data=photos, settings=QUICK, image_size=16, out=tmp_path / "b")
    assert grey.model.preprocessing.channels == "L"
    assert len(grey.predict(photos)) == 36
    named = train(TIMM, data="digits", settings=QUICK, image_size=32, out=tmp_path / "c")
    assert named.model.preprocessing.channels == "L"
    assert Run.open(tmp_path / "c").evaluate() == pytest.approx(named.metrics, abs=1e-6)


def test_fine_tuning_begins_with_a_checkpoint_and_a_new_head(run, tmp_path):
    tuned = train(TIMM, data="digits", checkpoint=run.path, settings=QUICK, image_size=32, lr=1e-9, out=tmp_path / "t")
    assert tuned.model.num_classes == 10
    assert tuned.model.preprocessing.channels == "RGB"
    name = next(name for name, value in run.model.named_parameters() if value.ndim == 4)
    assert torch.allclose(
        dict(tuned.model.named_parameters())[name], dict(run.model.named_parameters())[name], atol=1e-4
    )


@pytest.mark.parametrize(
    ("arguments", "kind", "complaint"),
    [
        ({"data": "digit"}, ValueError, "did you mean digits"),
        ({"data": "./nowhere"}, FileNotFoundError, "nowhere does not exist"),
        ({"model": "test_resnt"}, ValueError, "did you mean test_resnet"),
        ({"methods": ["bkae"]}, ValueError, "did you mean bake"),
        ({"methods": ["bake", "bake"]}, ValueError, "both need the sampler"),
        ({"methods": [("bake", {"omega": 1.5})]}, ValueError, "omega"),
        ({"learning_rate": 0.1}, ValueError, "unknown setting of train 'learning_rate'"),
        ({"lr": -1}, ValueError, "lr is -1"),
        ({"model": net(7)}, ValueError, r"gives shape \(1, 7\); digits needs logits \(images, 10\)"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(9, 10))}, ValueError, r"does not take images of \(1, 8, 8\)"),
        ({"model": nn.Sequential(nn.Conv2d(2, 10, 3), nn.Flatten())}, ValueError, "does not take images of"),
        ({"model": TIMM, "model_args": {"num_classes": 4}}, ValueError, "num_classes is 4, but digits has 10"),
        ({"model_args": {"width": 4}}, ValueError, "for a model given by name"),
        ({"image_size": 0}, ValueError, "image_size is 0"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, arguments, kind, complaint):
    assert re.search(complaint, error_of(kind, out=tmp_path / "r", **arguments))
    assert not (tmp_path / "r").exists()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "is a file" in error_of(FileExistsError, out=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_opening_nothing_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run folder or checkpoint at"):
        Run.open(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        Run.open(tmp_path)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    channels=st.sampled_from([1, 3]),
    stored=st.sampled_from([1, 3]),
    batch=st.integers(2, 9),
    augment=st.sampled_from(["none", "flip", "crop", "crop-flip", "resized-crop-flip"]),
    optimizer=st.sampled_from(["sgd", "adamw"]),
    methods=st.sampled_from([[], ["bake"], ["hwa"], ["bake", "hwa"]]),
    image_size=st.sampled_from([None, 4, 9]),
)
def test_any_configuration_trains_on_images_of_any_size(
    tmp_path_factory, size, channels, stored, batch, augment, optimizer, methods, image_size
):
    images = torch.randint(256, (12, stored, *size), dtype=torch.uint8)
    statistics = (0.5,) * stored
    preprocessing = Preprocessing(size, "bilinear", 1.0, statistics, statistics, "L" if stored == 1 else "RGB")
    part = ArrayImages(images, [0, 1, 2] * 4, ("a", "b", "c"), preprocessing)
    chosen = FitSettings(
        epochs=1, batch_size=batch, tensorboard=False, augment=augment, optimizer=optimizer, lr=1e-3, accelerator="cpu"
    )
    out = tmp_path_factory.mktemp("any") / "run"
    if "bake" in methods and batch % 2:
        with pytest.raises(ValueError, match="batch"):
            _trained(channels, part, methods, chosen, image_size, out)
        return
    run = _trained(channels, part, methods, chosen, image_size, out)
    assert 0 <= run.metrics["top1"] <= 1
    assert Run.open(out, model=ConvNet(3, channels, 2)).classes == ("a", "b", "c")


def _trained(channels, part, methods, chosen, image_size, out):
    data = ImageData("toy", part, part, part.classes)
    return train(ConvNet(3, channels, 2), data=data, methods=methods, settings=chosen, image_size=image_size, out=out)


def test_the_package_offers_the_same_names():
    assert repertory.train is train
    assert repertory.Run is Run
    assert callable(repertory.verify)
