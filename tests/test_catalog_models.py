"""Models and methods by name, and everybody's checkpoints into them without running anything in the files."""

import argparse
import copy
import json
import os
import pathlib
import pickle
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import repertory
from repertory import catalog
from repertory.checkpoints import read_weights
from repertory.data import Preprocessing

NAME, TIMM = "bake_cifar_resnet18", "test_resnet"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    built = repertory.create_model(NAME, num_classes=7)
    built.class_names = tuple("abcdefg")
    return built


@pytest.fixture(scope="module")
def authors(model):
    """The weights as the authors name them: their shortcut is a sequence of one convolution."""
    return OrderedDict((k.replace(".shortcut.", ".shortcut.0."), v) for k, v in model.state_dict().items())


def same(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def refused(path, name=NAME, **settings):
    with pytest.raises(ValueError, match=r".") as caught:
        repertory.create_model(name, checkpoint=path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_models_and_methods_are_listed_by_name():
    assert NAME in repertory.list_models()
    assert set(repertory.list_models("bake_*")) == {m for m in repertory.list_models() if m.startswith("bake_")}
    assert "bake" in repertory.list_methods()


def test_listing_imports_no_torch():
    code = (
        "import sys, repertory; repertory.list_models(); repertory.list_methods(); repertory.list_systems(); "
        "assert not {'torch', 'timm', 'numpy', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "settings", "complaint"),
    [
        ("bake_cifar_resnet81", {}, "did you mean bake_cifar_resnet18"),
        ("resnet81", {}, "unknown model 'resnet81': did you mean .*resnet18"),
        (NAME, {"num_clases": 3}, "num_clases.* did you mean num_classes"),
        (TIMM, {"num_clases": 3}, "num_clases"),
        (NAME, {"pretrained": True}, "no weights of bake_cifar_resnet18 are distributed"),
    ],
)
def test_unknown_models_and_settings_meet_the_nearest(name, settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        repertory.create_model(name, **settings)


def test_unknown_methods_and_settings_meet_the_nearest():
    with pytest.raises(ValueError, match="did you mean bake"):
        catalog.create_method("bkae")
    with pytest.raises(ValueError, match="did you mean omega"):
        catalog.create_method("bake", omga=0.5)
    with pytest.raises(ValueError, match="omega"):
        catalog.create_method("bake", omega=2.0)
    assert catalog.create_method("bake", omega=0.9).name == "bake"


def test_timms_models_carry_their_preprocessing():
    built = repertory.create_model(TIMM, num_classes=3)
    assert built.num_classes == 3
    assert built.preprocessing == Preprocessing((160, 160), "bilinear", 0.95, (0.5,) * 3, (0.5,) * 3, "RGB")
    grey = repertory.create_model(TIMM, in_chans=1)
    assert (grey.preprocessing.channels, grey.preprocessing.mean) == ("L", (0.5,))


def test_a_model_survives_copying_and_pickling(model):
    copied = copy.deepcopy(model)
    assert copied.save_pretrained.args == (copied,)
    assert same(pickle.loads(pickle.dumps(model)), model)


@pytest.mark.parametrize(
    ("wrapper", "prefix"),
    [(None, ""), ("model", "module."), ("state_dict", "_orig_mod.module."), ("net", "module."), ("model_state", "")],
)
def test_the_authors_layouts_are_recognised(tmp_path, model, authors, wrapper, prefix):
    state = OrderedDict((prefix + key, value) for key, value in authors.items())
    torch.save(
        state if wrapper is None else {"epoch": 3, wrapper: state, "optimizer": {"state": {}}}, tmp_path / "a.pth"
    )
    assert same(repertory.create_model(NAME, checkpoint=tmp_path / "a.pth", num_classes=7), model)


def test_a_deit_file_with_its_namespace_and_numpy_scalars_loads(tmp_path, model, authors):
    extras = {
        "args": argparse.Namespace(lr=np.float64(0.1), out=pathlib.Path("x"), windows=pathlib.PureWindowsPath("c:\\x")),
        "epoch": np.int64(3),
        "best": np.float32(0.5),
        "flag": np.bool_(True),
        "history": np.arange(3.0),
        "where": pathlib.Path("/tmp"),
        "name": np.str_("run"),
    }
    torch.save({"model": authors, **extras}, tmp_path / "deit.pth")
    assert same(repertory.create_model(NAME, checkpoint=tmp_path / "deit.pth", num_classes=7), model)
    torch.save({"model": authors, **extras}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(repertory.create_model(NAME, checkpoint=tmp_path / "old.pth", num_classes=7), model)


def test_numpy_arrays_serve_as_weights(tmp_path, model, authors):
    arrays = {key: value.numpy() if value.ndim else value for key, value in authors.items()}
    torch.save({"net": arrays}, tmp_path / "arrays.pth")
    assert same(repertory.create_model(NAME, checkpoint=tmp_path / "arrays.pth", num_classes=7), model)


def test_the_averaged_weights_are_taken_on_request(tmp_path, model, authors):
    averaged = OrderedDict((key, value + 1 if value.is_floating_point() else value) for key, value in authors.items())
    torch.save({"model": authors, "model_ema": averaged}, tmp_path / "both.pth")
    plain = repertory.create_model(NAME, checkpoint=tmp_path / "both.pth", num_classes=7)
    ema = repertory.create_model(NAME, checkpoint=tmp_path / "both.pth", checkpoint_entry="model_ema", num_classes=7)
    assert torch.equal(plain.conv1.weight + 1, ema.conv1.weight)
    assert "no weights under 'ema'; it has model, model_ema" in refused(tmp_path / "both.pth", checkpoint_entry="ema")


def test_safetensors_of_the_authors_load_too(tmp_path, model, authors):
    save_file(dict(authors), tmp_path / "a.safetensors")
    assert same(repertory.create_model(NAME, checkpoint=tmp_path / "a.safetensors", num_classes=7), model)


def test_our_own_state_dict_loads_as_it_is(tmp_path, model):
    torch.save(model.state_dict(), tmp_path / "ours.pth")
    assert same(repertory.create_model(NAME, checkpoint=tmp_path / "ours.pth", num_classes=7), model)


def test_half_precision_weights_become_the_models_own(tmp_path, authors):
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in authors.items()}, tmp_path / "half.pth")
    loaded = repertory.create_model(NAME, checkpoint=tmp_path / "half.pth", num_classes=7)
    assert loaded.conv1.weight.dtype == torch.float32


def test_timm_checkpoints_load_by_name(tmp_path):
    built = repertory.create_model(TIMM, num_classes=4)
    torch.save({"state_dict": {f"module.{k}": v for k, v in built.state_dict().items()}}, tmp_path / "t.pth")
    assert same(repertory.create_model(TIMM, checkpoint=tmp_path / "t.pth", num_classes=4), built)


def test_a_checkpoint_of_another_model_names_the_keys(tmp_path, authors):
    torch.save(authors, tmp_path / "a.pth")
    assert "missing layer1.2." in refused(tmp_path / "a.pth", "bake_cifar_resnet34", num_classes=7)
    short = OrderedDict(list(authors.items())[1:])
    torch.save(short, tmp_path / "short.pth")
    assert f"another model than {NAME}: missing conv1.weight" in refused(tmp_path / "short.pth", num_classes=7)
    torch.save({**authors, "extra.weight": torch.ones(1)}, tmp_path / "long.pth")
    assert "unknown extra.weight" in refused(tmp_path / "long.pth", num_classes=7)


def test_running_statistics_are_needed_and_counters_are_not(tmp_path, model, authors):
    fewer = {k: v for k, v in authors.items() if not k.endswith("num_batches_tracked")}
    torch.save(fewer, tmp_path / "counterless.pth")
    loaded = repertory.create_model(NAME, checkpoint=tmp_path / "counterless.pth", num_classes=7)
    assert torch.equal(loaded.conv1.weight, model.conv1.weight)
    torch.save({k: v for k, v in fewer.items() if not k.endswith("running_mean")}, tmp_path / "statless.pth")
    assert "running_mean" in refused(tmp_path / "statless.pth", num_classes=7)


def test_another_number_of_classes_needs_a_request(tmp_path, model, authors):
    torch.save(authors, tmp_path / "a.pth")
    complaint = refused(tmp_path / "a.pth", num_classes=5)
    assert "linear.weight is (7, 512), not (5, 512)" in complaint
    assert "give num_classes=7" in complaint
    loaded = repertory.create_model(NAME, checkpoint=tmp_path / "a.pth", num_classes=5, reset_head=True)
    assert loaded.linear.weight.shape == (5, 512)
    assert torch.equal(loaded.conv1.weight, model.conv1.weight)


def test_weights_that_are_not_finite_are_named(tmp_path, authors):
    broken = OrderedDict(authors)
    broken["linear.bias"] = torch.full((7,), torch.nan)
    torch.save(broken, tmp_path / "nan.pth")
    assert "linear.bias holds NaN" in refused(tmp_path / "nan.pth", num_classes=7)


class Malicious:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_malicious_pickle_is_refused_by_type_and_nothing_in_it_runs(tmp_path, authors, new_format):
    trap = tmp_path / "trap"
    content = {"model": authors, "extra": Malicious(trap)}
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=new_format)
    assert "posix.mkdir" in refused(tmp_path / "evil.pth", num_classes=7)
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Malicious(trap), protocol=2))
    assert "refused" in refused(tmp_path / "plain.pkl")
    (tmp_path / "later.pkl").write_bytes(pickle.dumps(Malicious(trap)))
    assert "later.pkl" in refused(tmp_path / "later.pkl")
    assert not trap.exists()
    pickle.loads((tmp_path / "plain.pkl").read_bytes())
    assert trap.exists(), "the trap does not work, so the test would show nothing"


def test_a_pickled_model_is_refused_by_its_class(tmp_path, model):
    torch.save(model, tmp_path / "whole.pth")
    assert "repertory.systems.bake.model.PreActResNet" in refused(tmp_path / "whole.pth")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.pth", b""), ("a.pth", b"junk" * 100), ("a.safetensors", b"junk" * 100), ("a.pth", b"PK\x03\x04" + b"0" * 99)],
)
def test_damaged_files_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert name in refused(tmp_path / name)


def test_files_without_weights_are_named(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    assert "holds no weights" in refused(tmp_path / "empty.pth")
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    assert "holds a list" in refused(tmp_path / "list.pth")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*absent.pth"):
        repertory.create_model(NAME, checkpoint=tmp_path / "absent.pth")
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        repertory.create_model(NAME, checkpoint=tmp_path)


@pytest.mark.parametrize("name", [NAME, TIMM])
def test_saved_models_come_back_with_all_that_belongs_to_them(tmp_path, name):
    built = repertory.create_model(name, num_classes=3, in_chans=1)
    built.class_names = ("x", "y", "z")
    built.preprocessing = Preprocessing((40, 44), "nearest", 1.0, (0.25,), (0.5,), "L")
    built.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["model"] == name
    assert (tmp_path / "saved" / "README.md").is_file()
    back = repertory.from_pretrained(str(tmp_path / "saved"))
    assert same(back, built)
    assert (back.preprocessing, back.class_names) == (built.preprocessing, built.class_names)
    assert same(repertory.create_model(name, checkpoint=tmp_path / "saved"), built)


def test_a_new_head_after_saving_is_saved(tmp_path, model):
    changed = copy.deepcopy(model)
    changed.reset_classifier(4)
    changed.save_pretrained(tmp_path)
    assert repertory.from_pretrained(tmp_path).linear.weight.shape == (4, 512)


def test_what_is_saved_names_its_model(tmp_path, model):
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"holds the model {NAME}, not {TIMM}"):
        repertory.create_model(TIMM, checkpoint=tmp_path)
    plain = load_file(tmp_path / "model.safetensors")
    save_file(plain, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="does not say which model"):
        repertory.from_pretrained(tmp_path)


def test_an_absent_folder_is_not_looked_for_on_the_network(tmp_path):
    for place in (tmp_path / "absent", "./absent", "absent"):
        with pytest.raises(FileNotFoundError, match="no folder"):
            repertory.from_pretrained(place)


def test_weights_are_whole_or_not_there(tmp_path, model, monkeypatch):
    from repertory import checkpoints

    kept = checkpoints.write_weights(model, tmp_path / "w.safetensors").read_bytes()
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        checkpoints.write_weights(model, tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").read_bytes() == kept
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_weights_say_where_they_come_from(tmp_path, authors):
    torch.save(authors, tmp_path / "a.pth")
    weights = read_weights(tmp_path / "a.pth")
    assert weights.source.endswith("a.pth")
    assert not weights.ours
