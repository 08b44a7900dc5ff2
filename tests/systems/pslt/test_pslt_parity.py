"""PSLT against the authors' numbers, and their checkpoints in its names."""

import argparse

import pytest
import torch

from repertory import catalog, create_model
from repertory.parity import check_conversion, load, run_vector
from repertory.systems.pslt.authors import from_authors
from repertory.systems.pslt.model import PSLT
from repertory.systems.pslt.parity import DRIVERS

VECTORS = sorted((catalog.room("pslt") / "vectors").iterdir(), key=lambda path: path.name)
NARROW = {"embed_dim": 12, "conv_depths": (2, 1), "depths": (2, 1), "num_heads": (2, 4)}
LAYERS = {"expand": "0", "norm1": "2", "depthwise": "3", "norm2": "5", "project": "6", "norm3": "7"}


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
    counts = [len(stage.blocks) for stage in list(model.stages)[: len(NARROW["conv_depths"])]]
    state = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if parts[0] == "stem":
            parts[:1] = ["patch_embed", "proj"]
        elif parts[0] == "stages":
            stage, kind = int(parts[1]), parts[2]
            if stage < len(counts):
                parts = ["conv_layers", str(sum(counts[:stage]) + int(parts[3])), *bottleneck(parts[4:])]
            elif kind == "downsample" and stage == len(counts):
                parts = ["conv_layers", str(sum(counts)), *bottleneck(parts[3:])]
            elif kind == "downsample":
                parts = ["layers", str(stage - len(counts) - 1), *parts[2:]]
            else:
                parts = ["layers", str(stage - len(counts)), "blocks", parts[3], *ladder(parts[4:])]
        state[".".join(parts)] = tensor.clone()
    return state


def bottleneck(parts):
    return ["se", *parts[1:]] if parts[0] == "gate" else ["conv", LAYERS[parts[1]], *parts[2:]]


def ladder(parts):
    if parts[0] != "branches":
        return [{"gate": "se", "mix": "pointconv"}[parts[0]], *parts[1:]]
    if parts[2] == "ffn":
        return ["blocks", parts[1], "mlp", "conv", LAYERS[parts[3]], *parts[4:]]
    renamed = {"qk": "kv", "bias_table": "relative_position_bias_table"}
    return ["blocks", parts[1], *(renamed.get(part, part) for part in parts[2:])]


def test_conversion_is_strict():
    model = PSLT(5, **NARROW)
    state = theirs(model)
    check_conversion(model, from_authors(state))
    for name in ("conv_layers.1.conv.2.running_mean", "layers.0.blocks.1.blocks.2.attn.kv.weight", "norm.bias"):
        with pytest.raises(ValueError, match="missing"):
            check_conversion(model, from_authors({key: value for key, value in state.items() if key != name}))
    for name in (
        "layers.0.extra.weight",
        "conv_layers.0.conv.9.weight",
        "layers.0.blocks.0.blocks.0.mlp.conv.1.weight",
    ):
        with pytest.raises(ValueError, match="unexpected"):
            check_conversion(model, from_authors({**state, name: torch.zeros(1)}))


def test_buffers_of_one_input_size_are_ignored():
    model = PSLT(5, **NARROW)
    state = theirs(model)
    for branch in range(3):
        prefix = f"layers.0.blocks.0.blocks.{branch}"
        state[f"{prefix}.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
        state[f"{prefix}.attn_mask"] = torch.zeros(4, 49, 49)
    check_conversion(model, from_authors(state))


def test_a_distilled_checkpoint_becomes_one_head_with_the_same_logits():
    model = PSLT(5, **NARROW).eval()
    state = theirs(model)
    state |= {"head_dist.weight": torch.randn(5, 192), "head_dist.bias": torch.randn(5)}
    distilled = PSLT(5, **NARROW).eval()
    distilled.load_state_dict(from_authors(state), strict=False)
    images = torch.randn(2, 3, 32, 32)
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    second = features @ state["head_dist.weight"].T + state["head_dist.bias"]
    torch.testing.assert_close(distilled(images), (model(images) + second) / 2)


def test_the_backbone_of_a_detector_is_loaded(tmp_path):
    bare = NARROW | {"num_classes": 0, "final_norm": False}
    model = PSLT(**bare).eval()
    state = {f"backbone.{name}": value for name, value in theirs(model).items()}
    state |= {"neck.lateral_convs.0.conv.weight": torch.zeros(8, 24, 1, 1), "rpn_head.rpn_cls.bias": torch.zeros(3)}
    torch.save({"meta": {"epoch": 12}, "state_dict": state}, tmp_path / "mask_rcnn.pth")
    loaded = create_model("pslt", checkpoint=tmp_path / "mask_rcnn.pth", **bare).eval()
    images = torch.randn(1, 3, 32, 32)
    for found, expected in zip(loaded.forward_pyramid(images), model.forward_pyramid(images), strict=True):
        assert torch.equal(found, expected)


def test_a_deit_checkpoint_of_the_authors_is_loaded(tmp_path):
    model = PSLT(5, **NARROW).eval()
    wrapped = {"model": theirs(model), "epoch": 3, "args": argparse.Namespace(lr=1e-3), "lr_scheduler": {"t": 1}}
    torch.save(wrapped, tmp_path / "authors.pth")
    loaded = create_model("pslt", checkpoint=tmp_path / "authors.pth", num_classes=5, **NARROW).eval()
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(images), model(images))
    with pytest.raises(ValueError, match=r"head\.weight|num_classes=5"):
        create_model("pslt", checkpoint=tmp_path / "authors.pth", num_classes=7, **NARROW)
    with pytest.raises(ValueError, match="of another model"):
        create_model("pslt", checkpoint=tmp_path / "authors.pth", num_classes=5)
