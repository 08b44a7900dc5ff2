from pathlib import Path

import pytest
import torch

from repertory.catalog import card, room
from repertory.errors import unknown_name
from repertory.parity import check_conversion, load, run_vector
from repertory.systems.bake import model as networks
from repertory.systems.bake.authors import from_authors
from repertory.systems.bake.parity import DRIVERS

VECTORS = sorted(Path(str(room("bake"))).glob("vectors/*.json"))
COUNTS = [
    ("cifar_resnet18", 100, 11_217_444),
    ("cifar_resnet18", 200, 11_268_744),
    ("cifar_resnet34", 100, 21_325_604),
    ("cifar_densenet121", 100, 7_048_548),
    ("cifar_densenet121", 200, 7_151_048),
    ("resnet18", 200, 11_279_112),
    ("resnet18", 120, 11_238_072),
    ("resnet18", 67, 11_210_883),
    ("densenet121", 200, 7_158_856),
    ("densenet121", 67, 7_022_531),
    ("resnet50", 1000, 25_557_032),
    ("resnet101", 1000, 44_549_160),
    ("resnet152", 1000, 60_192_808),
    ("resnext101_32x4d", 1000, 44_177_704),
    ("resnext152_32x4d", 1000, 59_951_400),
    ("resnest50", 1000, 27_483_240),
    ("resnest101", 1000, 48_275_016),
    ("mobilenetv2", 1000, 3_504_872),
    ("efficientnet_b0", 1000, 5_288_548),
]


def build(name, **settings):
    with torch.device("meta"):
        return getattr(networks, name)(**settings)


@pytest.mark.parametrize(("name", "classes", "count"), COUNTS)
def test_parameters_are_those_of_the_tables(name, classes, count):
    assert sum(p.numel() for p in build(name, num_classes=classes).parameters()) == count


def test_the_card_lists_every_network_with_its_count():
    listed = {name.removeprefix("bake_"): count for name, count in card("bake").parameters.items()}
    assert set(listed) == {name for name, _, _ in COUNTS}
    assert all((name, count) in {(n, c) for n, _, c in COUNTS} for name, count in listed.items())
    assert set(card("bake").models) == set(card("bake").parameters)


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.slow] if "imagenet" in p.stem else []) for p in VECTORS],
    ids=lambda p: p.stem,
)
def test_vectors_agree(path):
    report = run_vector(load(path), path.stem, DRIVERS)
    assert report.passed, [output for output in report.outputs if output.problem]


def pycls_names(depths, expanded=False):
    """Names of the authors' residual (or EfficientNet) networks, by the rule of their layout."""
    parts = {"f.a": 0, "f.a_bn": 1, "f.b": 0, "f.b_bn": 1, "f.c": 0, "f.c_bn": 1}
    if expanded:
        parts = {"exp": 0, "exp_bn": 1, "dwise": 0, "dwise_bn": 1, "se.f_ex.0": 2, "se.f_ex.2": 2}
        parts |= {"lin_proj": 0, "lin_proj_bn": 1}
    layers = {"stem.conv": 0, "stem.bn": 1, "head.fc": 2} | ({"head.conv": 0, "head.conv_bn": 1} if expanded else {})
    for stage, depth in enumerate(depths, start=1):
        for block in range(1, depth + 1):
            own = {part: kind for part, kind in parts.items() if not (part[:3] == "exp" and stage == 1)}
            if block == 1 and not expanded:
                own |= {"proj": 0, "bn": 1}
            layers |= {f"s{stage}.b{block}.{part}": kind for part, kind in own.items()}
    leaves = [["weight"], ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"], ["weight", "bias"]]
    return [f"{layer}.{leaf}" for layer, kind in layers.items() for leaf in leaves[kind]]


def mobile_names():
    """Names of torchvision's old flat layout of MobileNetV2."""
    norm = ("weight", "bias", "running_mean", "running_var")
    names = [
        f"features.{i}.{j}.{leaf}" for i in (0, 18) for j, leaves in ((0, ("weight",)), (1, norm)) for leaf in leaves
    ]
    for block in range(1, 18):
        pairs = [(0, 1), (3, 4)] if block == 1 else [(0, 1), (3, 4), (6, 7)]
        names += [f"features.{block}.conv.{conv}.weight" for conv, _ in pairs]
        names += [f"features.{block}.conv.{bn}.{leaf}" for _, bn in pairs for leaf in norm]
    return [*names, "classifier.weight", "classifier.bias"]


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("resnet50", pycls_names((3, 4, 6, 3))),
        ("resnext152_32x4d", pycls_names((3, 8, 36, 3))),
        ("efficientnet_b0", pycls_names((1, 2, 2, 3, 3, 4, 1), expanded=True)),
        ("mobilenetv2", mobile_names()),
    ],
)
def test_names_of_the_authors_cover_ours_exactly(name, theirs):
    marks = {key: torch.tensor(i) for i, key in enumerate(theirs)}
    converted = from_authors(marks)
    assert len(converted) == len(theirs)
    ours = {key for key in build(name).state_dict() if not key.endswith("num_batches_tracked")}
    assert {key for key in converted if not key.endswith("num_batches_tracked")} == ours
    assert all(any(value is mark for mark in marks.values()) for value in list(converted.values())[:5])


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "resnest50"])
def test_layouts_that_timm_kept_come_through_as_they_are(name):
    model = build(name)
    state = model.state_dict()
    assert set(from_authors(state)) == set(state)


def test_conversion_is_strict():
    vector = load(next(p for p in VECTORS if p.stem == "cifar_resnet18"))
    state = {name: torch.empty(shape, device="meta") for name, shape in vector["parameters"].items()}
    model = build("cifar_resnet18")
    check_conversion(model, from_authors(state))
    missing = {name: value for name, value in state.items() if name != "layer2.0.shortcut.0.weight"}
    with pytest.raises(ValueError, match=r"missing layer2\.0\.shortcut\.weight"):
        check_conversion(model, from_authors(missing))
    with pytest.raises(ValueError, match=r"unexpected extra\.weight"):
        check_conversion(model, from_authors(state | {"extra.weight": torch.empty(1)}))
    for stranger in ("s1.b1.f.d.weight", "other.weight"):
        with pytest.raises(ValueError, match=f"'{stranger}'"):
            from_authors({"stem.conv.weight": torch.zeros(1), stranger: torch.zeros(1)})
    with pytest.raises(ValueError, match=r"'features.30.conv.0.weight'"):
        from_authors({"features.0.0.weight": torch.zeros(1), "features.30.conv.0.weight": torch.zeros(1)})


@pytest.mark.parametrize("name", ["cifar_resnet18", "cifar_densenet121", "efficientnet_b0"])
def test_networks_have_the_common_interface(name):
    model = getattr(networks, name)(num_classes=7).eval()
    images = torch.randn(2, 3, 32, 32)
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    assert features.shape == (2, model.num_features)
    torch.testing.assert_close(model.get_classifier()(features), model(images))
    model.reset_classifier(3)
    assert model(images).shape == (2, 3)
    assert model.num_classes == 3


def test_cifar_networks_take_other_sizes_and_channels():
    model = networks.cifar_resnet18(num_classes=4, in_chans=1).eval()
    assert model(torch.randn(1, 1, 28, 40)).shape == (1, 4)
    assert model.preprocessing.channels == "L"
    model.reset_classifier(0)
    assert model(torch.randn(1, 1, 28, 28)).shape == (1, 512)


def test_identity_shortcut_carries_the_activated_tensor():
    block = networks.PreActBlock(4, 4, 1).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(block(x), block.bn1(x).relu())
    assert (block(x) - x).abs().max() > 0.1


def test_dense_layers_put_new_channels_first():
    layer, x = networks.DenseLayer(6, 3).eval(), torch.randn(1, 6, 4, 4)
    assert torch.equal(layer(x)[:, 3:], x)


def test_imagenet_networks_say_that_they_want_bgr():
    for name in ("resnet50", "mobilenetv2"):
        preprocessing = build(name).preprocessing
        assert preprocessing.channels == "BGR"
        assert (preprocessing.mean, preprocessing.std) == ((0.406, 0.456, 0.485), (0.225, 0.224, 0.229))
        assert (preprocessing.size, preprocessing.crop) == ((224, 224), 0.875)
    assert build("resnet18").preprocessing.channels == build("cifar_resnet34").preprocessing.channels == "RGB"


def test_unknown_architecture_is_named():
    vector = load(next(p for p in VECTORS if p.stem == "cifar_resnet18"))
    vector |= {"config": vector["config"] | {"arch": "CIFAR_ResNet19"}, "parameters": {}}
    report = run_vector(vector, "other", DRIVERS)
    assert str(unknown_name("architecture", "CIFAR_ResNet19", ["cifarresnet18"]))[:40] in report.outputs[0].problem
