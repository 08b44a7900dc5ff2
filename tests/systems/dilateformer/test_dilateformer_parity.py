"""DilateFormer against the authors' numbers, and their checkpoints in its names."""

import argparse

import pytest
import torch

from repertory import catalog, create_model
from repertory.parity import check_conversion, load, run_vector
from repertory.systems.dilateformer.authors import from_authors
from repertory.systems.dilateformer.model import DilateFormer
from repertory.systems.dilateformer.parity import DRIVERS

VECTORS = sorted((catalog.room("dilateformer") / "vectors").iterdir(), key=lambda path: path.name)
NARROW = {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (3, 3, 6, 6)}


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.slow] if "224" in p.name else []) for p in VECTORS],
    ids=lambda p: p.name,
)
def test_the_numbers_of_the_authors_are_reproduced(path):
    vector = load(path)
    report = run_vector(vector, path.stem, DRIVERS)
    assert report.passed, report


def theirs(model):
    """The state of ``model`` under the authors' names, written down the other way round than the conversion does it."""
    names = {}
    for name, tensor in model.state_dict().items():
        head, _, rest = name.partition(".")
        if head == "patch_embed":
            name = f"patch_embed.proj.{rest}"
        elif ".downsample." in name:
            stage, _, inner = rest.partition(".downsample.")
            name = f"stages.{int(stage) - 1}.downsample.proj.{inner}"
        names[name] = tensor.clone()
    return names


def test_conversion_is_strict():
    model = DilateFormer(5, **NARROW)
    state = theirs(model)
    check_conversion(model, from_authors(state))
    for name in ("stages.0.downsample.proj.1.running_mean", "stages.0.blocks.0.attn.qkv.weight"):
        lacking = {key: value for key, value in state.items() if key != name}
        with pytest.raises(ValueError, match="missing|lacks|needs"):
            check_conversion(model, from_authors(lacking))
    with pytest.raises(ValueError, match="extra"):
        check_conversion(model, from_authors({**state, "stages.0.extra.weight": torch.zeros(1)}))


def test_a_deit_checkpoint_of_the_authors_is_loaded(tmp_path):
    model = DilateFormer(5, **NARROW).eval()
    wrapped = {"model": theirs(model), "epoch": 3, "args": argparse.Namespace(lr=1e-3), "lr_scheduler": {"t": 1}}
    torch.save(wrapped, tmp_path / "authors.pth")
    loaded = create_model("dilateformer_tiny", checkpoint=tmp_path / "authors.pth", num_classes=5, **NARROW).eval()
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(images), model(images))
    with pytest.raises(ValueError, match=r"stages\.0\.blocks"):
        create_model("dilateformer_small", checkpoint=tmp_path / "authors.pth", num_classes=5)
