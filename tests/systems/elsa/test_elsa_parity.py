"""ELSA against the authors' numbers, and their checkpoints in its names."""

import pytest
import torch

from repertory import catalog, create_model
from repertory.parity import check_conversion, load, run_vector
from repertory.systems.elsa.authors import from_authors
from repertory.systems.elsa.model import ELSASwin
from repertory.systems.elsa.parity import DRIVERS

VECTORS = sorted((catalog.room("elsa") / "vectors").iterdir(), key=lambda path: path.name)
NARROW = {"embed_dim": 12, "depths": (1, 1, 1, 2), "num_heads": (1, 2, 3, 4), "window_size": 2, "kernel_size": 3}


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.slow] if "224" in p.name else []) for p in VECTORS],
    ids=lambda p: p.name,
)
def test_the_numbers_of_the_authors_are_reproduced(path):
    vector = load(path)
    report = run_vector(vector, path.stem, DRIVERS)
    assert report.passed, report


def test_a_stride_that_the_authors_code_cannot_run_is_a_mismatch():
    path = next(path for path in VECTORS if path.name == "op_k5.json")
    vector = load(path)
    vector["config"]["stride"] = 2
    report = run_vector(vector, path.stem, DRIVERS)
    assert not report.passed
    assert "stride is 2" in report.outputs[0].problem


def theirs(model):
    """The state of ``model`` under the authors' names, written down the other way round than the conversion does it."""
    names = {"qkv": "pre_proj", "filters": "attn", "proj": "post_proj", "relative_bias": "rb"}
    state = {}
    for name, tensor in model.state_dict().items():
        tensor, parts = tensor.clone(), name.split(".")
        if parts[0] == "feature_norms":
            state[f"norm{parts[1]}.{parts[2]}"] = tensor
            continue
        if parts[0] == "stages" and parts[2] == "downsample":
            parts[1] = str(int(parts[1]) - 1)
        if "attn" in parts:
            if parts[1] == "3" and "qkv" in parts:
                query, key, value = tensor.chunk(3)
                tensor = torch.cat([value, query, key])
            parts = [names.get(part, part) for part in parts]
        state[".".join(["layers" if part == "stages" else part for part in parts])] = tensor
    return state


def test_conversion_is_strict_and_leaves_out_what_is_bound_to_a_resolution():
    model = ELSASwin(5, **NARROW)
    state = theirs(model)
    computed = {
        "layers.3.blocks.0.attn.relative_id": torch.zeros(16, dtype=torch.int64),
        "layers.3.blocks.1.attn_mask": torch.zeros(4, 4, 4),
    }
    converted = from_authors({**state, **computed})
    check_conversion(model, converted)
    for name, tensor in model.state_dict().items():
        assert torch.equal(converted[name], tensor), name
    for name in (
        "layers.0.downsample.reduction.weight",
        "layers.0.blocks.0.attn.ghost_head",
        "layers.3.blocks.0.attn.rb",
    ):
        lacking = {key: value for key, value in state.items() if key != name}
        with pytest.raises(ValueError, match="missing"):
            check_conversion(model, from_authors(lacking))
    with pytest.raises(ValueError, match="absolute_pos_embed"):
        check_conversion(model, from_authors({**state, "absolute_pos_embed": torch.zeros(1, 64, 12)}))


def test_a_dense_backbone_of_the_authors_is_converted():
    model = ELSASwin(0, dense=True, **NARROW)
    state = theirs(model)
    assert {"norm0.weight", "norm3.bias"} <= set(state)
    check_conversion(model, from_authors(state))


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}}])
def test_a_checkpoint_of_the_authors_is_loaded(tmp_path, wrap):
    model = ELSASwin(5, **NARROW).eval()
    torch.save(wrap(theirs(model)), tmp_path / "authors.pth")
    loaded = create_model("elsa_swin_small", checkpoint=tmp_path / "authors.pth", num_classes=5, **NARROW).eval()
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(images), model(images))
    with pytest.raises(ValueError, match=r"give num_classes=5"):
        create_model("elsa_swin_small", checkpoint=tmp_path / "authors.pth", num_classes=4, **NARROW)


def test_the_averaged_weights_of_a_checkpoint_are_loaded_by_name(tmp_path):
    plain, averaged = ELSASwin(5, **NARROW).eval(), ELSASwin(5, **NARROW).eval()
    torch.save({"state_dict": theirs(plain), "state_dict_ema": theirs(averaged)}, tmp_path / "base.pth")
    settings = {"num_classes": 5, **NARROW}
    loaded = create_model(
        "elsa_swin_small", checkpoint=tmp_path / "base.pth", checkpoint_entry="state_dict_ema", **settings
    )
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded.eval()(images), averaged(images))
