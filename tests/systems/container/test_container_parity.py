"""CONTAINER-LIGHT against the authors' numbers, and their checkpoints in its names."""

import argparse
import re

import pytest
import torch

from repertory import catalog, create_model
from repertory.parity import check_conversion, load, run_vector
from repertory.systems.container import Container
from repertory.systems.container.authors import from_authors
from repertory.systems.container.parity import DRIVERS

VECTORS = sorted((catalog.room("container") / "vectors").iterdir(), key=lambda path: path.name)
NARROW = {"embed_dims": (8, 8, 8, 16), "depths": (1, 2, 1, 2), "num_heads": (1, 1, 1, 4), "mlp_ratios": (2, 2, 2, 2)}


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.slow] if "224" in p.name else []) for p in VECTORS],
    ids=lambda p: p.name,
)
def test_the_numbers_of_the_authors_are_reproduced(path):
    vector = load(path)
    report = run_vector(vector, path.stem, DRIVERS)
    assert report.passed, report


def test_names_of_the_authors_network_are_all_of_ours():
    vector = load(catalog.room("container") / "vectors" / "container_light_224.json")
    with torch.device("meta"):
        ours = create_model("container_light").state_dict()
    shapes = {name: torch.empty(shape, device="meta") for name, shape in vector["parameters"].items()}
    converted = {name: tuple(value.shape) for name, value in from_authors(shapes).items()}
    counters = "num_batches_tracked"
    assert converted == {name: tuple(v.shape) for name, v in ours.items() if not name.endswith(counters)}


def theirs(model):
    """The state of ``model`` under the authors' names, written down the other way round than the conversion does it."""
    names = {}
    for name, tensor in model.state_dict().items():
        stage = re.match(r"stages\.(\d)\.", name)
        if stage:
            number, rest = int(stage[1]) + 1, name[stage.end() :]
            if rest.startswith("downsample."):
                name = f"patch_embed{number}." + rest.removeprefix("downsample.")
            else:
                name = f"blocks{number}." + rest.removeprefix("blocks.")
                name = name.replace("aggregation.mixing_logit", "sa_weight").replace("aggregation.project", "conv1")
                name = name.replace("aggregation.output", "conv2")
                name = name.replace("aggregation.affinities.0.conv", "attn")
                name = name.replace("aggregation.affinities.1.conv", "conv")
        names[name] = tensor.clone()
    return names


def test_conversion_is_strict():
    model = Container(5, **NARROW)
    state = theirs(model)
    check_conversion(model, from_authors(state))
    for name in ("norm.running_mean", "blocks4.1.sa_weight", "patch_embed2.norm.bias", "blocks1.0.attn.weight"):
        lacking = {key: value for key, value in state.items() if key != name}
        with pytest.raises(ValueError, match="missing"):
            check_conversion(model, from_authors(lacking))
    with pytest.raises(ValueError, match="extra"):
        check_conversion(model, from_authors({**state, "blocks2.0.extra": torch.zeros(1)}))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_deit_checkpoint_of_the_authors_is_loaded(tmp_path, prefix):
    model = Container(5, **NARROW).eval()
    with torch.no_grad():
        model.stages[3].blocks[1].aggregation.mixing_logit.fill_(-1.5)
    state = {prefix + name: value for name, value in theirs(model).items()}
    wrapped = {"model": state, "epoch": 3, "args": argparse.Namespace(lr=1e-3), "lr_scheduler": {"t": 1}}
    torch.save(wrapped, tmp_path / "authors.pth")
    loaded = create_model("container_light", checkpoint=tmp_path / "authors.pth", num_classes=5, **NARROW).eval()
    images = torch.randn(1, 3, 32, 64)
    assert torch.equal(loaded(images), model(images))


def test_a_checkpoint_with_other_classes_gives_a_new_head_when_asked(tmp_path):
    model = Container(5, **NARROW)
    torch.save({"model": theirs(model)}, tmp_path / "authors.pth")
    with pytest.raises(ValueError, match="give num_classes=5"):
        create_model("container_light", checkpoint=tmp_path / "authors.pth", num_classes=3, **NARROW)
    loaded = create_model("container_light", tmp_path / "authors.pth", reset_head=True, num_classes=3, **NARROW)
    assert loaded.head.weight.shape == (3, 16)
    assert torch.equal(loaded.stages[2].blocks[0].norm1.weight, model.stages[2].blocks[0].norm1.weight)


def test_the_light_checkpoint_is_not_taken_for_the_reading_of_the_full_network(tmp_path):
    torch.save({"model": theirs(Container(5, **NARROW))}, tmp_path / "authors.pth")
    with pytest.raises(ValueError, match=r"missing stages\.0\.blocks\.0\.aggregation"):
        create_model("container_full", checkpoint=tmp_path / "authors.pth", num_classes=5, **NARROW)


@pytest.mark.parametrize("name", ["container_full", "container_pam_tiny"])
def test_our_own_weights_of_the_readings_come_back(tmp_path, name):
    sizes = NARROW if name == "container_full" else {"embed_dim": 12, "depth": 1, "img_size": 32}
    model = create_model(name, num_classes=4, **sizes).eval()
    model.save_pretrained(tmp_path)
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(create_model(name, checkpoint=tmp_path).eval()(images), model(images))
