"""CCNet against the authors' numbers, and their checkpoints in its names."""

import pytest
import torch

from repertory import catalog, create_model
from repertory.parity import check_conversion, load, run_vector
from repertory.systems.ccnet import ccnet_resnet101
from repertory.systems.ccnet.authors import from_authors
from repertory.systems.ccnet.parity import DRIVERS

VECTORS = sorted((catalog.room("ccnet") / "vectors").iterdir(), key=lambda path: path.name)
NARROW = {"layers": (1, 1, 1, 1), "width": 8, "out_channels": 16, "aux_channels": 16}


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.slow] if "r101" in p.name else []) for p in VECTORS],
    ids=lambda p: p.name,
)
def test_the_numbers_of_the_authors_are_reproduced(path):
    vector = load(path)
    report = run_vector(vector, path.stem, DRIVERS)
    assert report.passed, report


THEIRS = {
    "reduce.conv": "conva.0",
    "reduce.norm": "conva.1",
    "refine.conv": "convb.0",
    "refine.norm": "convb.1",
    "fuse.conv": "bottleneck.0",
    "fuse.norm": "bottleneck.1",
    "classifier": "bottleneck.3",
    "attention.query": "cca.query_conv",
    "attention.key": "cca.key_conv",
    "attention.value": "cca.value_conv",
    "attention": "cca",
}
THEIRS_AUX = {"fuse.conv": "0", "fuse.norm": "1", "classifier": "3"}


def theirs(model):
    """The state of ``model`` under the authors' names, every second scale of a batch norm negative as theirs may be."""
    state = {}
    norms = {name for name, module in model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    for name, tensor in model.state_dict().items():
        tensor = tensor.clone()
        place, _, leaf = name.rpartition(".")
        if place in norms and leaf == "weight":
            tensor = tensor - 1e-5
            tensor[::2] *= -1
        room, _, rest = place.partition(".")
        if room == "backbone":
            place = rest
        elif room == "aux_head":
            place = f"dsn.{THEIRS_AUX[rest]}"
        else:
            place = f"head.{THEIRS[rest]}"
        state[f"{place}.{leaf}"] = tensor
    return state


def network():
    torch.manual_seed(0)
    model = ccnet_resnet101(5, **NARROW).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def test_the_absolute_scale_of_their_batch_norm_is_folded():
    model = network()
    converted = from_authors(theirs(model))
    check_conversion(model, converted)
    own = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert converted.keys() == own.keys()
    for name, value in own.items():
        torch.testing.assert_close(converted[name], value, atol=1e-6, rtol=1e-6, msg=name)


def test_conversion_is_strict():
    model = network()
    state = theirs(model)
    for name in ("head.cca.gamma", "layer3.0.bn2.running_var", "dsn.0.bias", "conv1.weight"):
        lacking = {key: value for key, value in state.items() if key != name}
        with pytest.raises(ValueError, match="missing"):
            check_conversion(model, from_authors(lacking))
    with pytest.raises(ValueError, match="unexpected"):
        check_conversion(model, from_authors({**state, "layer5.0.weight": torch.zeros(1)}))


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {f"module.{k}": v for k, v in s.items()}]
)
def test_a_checkpoint_of_theirs_loads_bare_wrapped_and_without_counters(tmp_path, wrap):
    model = network()
    state = {name: value for name, value in theirs(model).items() if not name.endswith("num_batches_tracked")}
    torch.save(wrap(state), tmp_path / "theirs.pth")
    loaded = create_model("ccnet_resnet101", tmp_path / "theirs.pth", num_classes=5, **NARROW).eval()
    images = torch.randn(1, 3, 33, 41)
    torch.testing.assert_close(loaded(images), model(images), atol=1e-4, rtol=1e-4)


def test_another_number_of_classes_is_refused_or_starts_both_heads_anew(tmp_path):
    torch.save(theirs(network()), tmp_path / "theirs.pth")
    with pytest.raises(ValueError, match="reset_head=True"):
        create_model("ccnet_resnet101", tmp_path / "theirs.pth", num_classes=7, **NARROW)
    model = create_model("ccnet_resnet101", tmp_path / "theirs.pth", num_classes=7, **NARROW, reset_head=True)
    assert model.eval()(torch.randn(1, 3, 17, 17)).shape == (1, 7, 17, 17)
    torch.testing.assert_close(model.backbone.conv1.weight, network().backbone.conv1.weight)
