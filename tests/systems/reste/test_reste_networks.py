"""The authors' networks: counts, shapes, timm, and a backward pass that does not depend on the order of sums."""

import pytest
import timm
import torch
import torch.nn.functional as F

import repertory.timm  # noqa: F401
from repertory import catalog, create_model
from repertory.parity import check_conversion, load, run_vector
from repertory.systems.reste import cifar
from repertory.systems.reste import model as imagenet
from repertory.systems.reste.authors import from_authors
from repertory.systems.reste.layers import BinaryConv2d, binary_layers
from repertory.systems.reste.model import ReSTEResNet
from repertory.systems.reste.parity import DRIVERS

VECTORS = sorted((catalog.room("reste") / "vectors").iterdir(), key=lambda path: path.name)
CARD = catalog.card("reste")


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.slow] if "imagenet" in p.name else []) for p in VECTORS],
    ids=lambda p: p.name,
)
def test_the_numbers_of_the_authors_are_reproduced(path):
    report = run_vector(load(path), path.stem, DRIVERS)
    assert report.passed, report


@pytest.mark.parametrize("name", CARD.parameters)
def test_parameters_are_counted_as_the_authors_networks_have_them(name):
    with torch.device("meta"):
        model = catalog.entry("reste", CARD.models[name])()
    assert sum(p.numel() for p in model.parameters()) == CARD.parameters[name]


@pytest.mark.parametrize("name", [name for name in CARD.models if not name.endswith("_real")])
def test_stem_shortcuts_and_classifier_stay_real(name):
    with torch.device("meta"):
        model = catalog.entry("reste", CARD.models[name])()
    real = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Conv2d) and not isinstance(module, BinaryConv2d)
    ]
    assert real[0] in ("stem.conv", "layers.0.conv")
    assert all("shortcut" in name for name in real[1:])
    assert all(layer.kernel_size == (3, 3) for _, layer in binary_layers(model))


@pytest.mark.parametrize("name", [name for name in CARD.models if name.endswith("_real")])
def test_a_full_precision_counterpart_has_no_sign(name):
    with torch.device("meta"):
        model = catalog.entry("reste", CARD.models[name])()
    assert not list(binary_layers(model))


def tiny(**settings):
    torch.manual_seed(0)
    return cifar.small_resnet(5, width=4, depth=1, **settings)


@pytest.mark.parametrize("around_each", [False, True])
def test_logits_are_the_head_of_the_features(around_each):
    model, images = tiny(around_each=around_each).eval(), torch.randn(2, 3, 20, 16)
    last = model.forward_features(images)
    assert last.shape == (2, 16, 5, 4)
    assert torch.equal(model.forward_head(last), model(images))
    features = model.forward_head(last, pre_logits=True)
    assert torch.equal(model.get_classifier()(features), model(images))
    model.reset_classifier(0)
    assert torch.equal(model(images), features)


def test_the_bireal_form_adds_what_enters_each_convolution():
    plain, double = tiny().eval(), tiny(around_each=True).eval()
    x = torch.randn(1, 4, 6, 6)
    one, other = plain.stages[0].blocks[0], double.stages[0].blocks[0]
    middle = one.norm1(F.relu(one.conv1(x)))
    torch.testing.assert_close(one(x), one.norm2(F.relu(one.conv2(middle))) + x)
    middle = other.norm1(F.relu(other.conv1(x))) + x
    torch.testing.assert_close(other(x), other.norm2(F.relu(other.conv2(middle))) + middle)


def test_gradients_do_not_depend_on_the_order_in_which_terms_are_summed():
    """Permuted channels change the order of every sum; residues in place of zeros would decide what the ReLU passes."""
    conv, x, g = BinaryConv2d(16, 8, 3, padding=1, bias=False), torch.randn(2, 16, 8, 8), torch.randn(2, 8, 8, 8)
    order = torch.randperm(16)

    def gradient(weight, x):
        conv.weight = torch.nn.Parameter(weight.clone())
        x = x.clone().requires_grad_()
        return torch.autograd.grad(F.relu(conv(x)), x, g)[0]

    weight = conv.weight.detach()
    straight, permuted = gradient(weight, x), gradient(weight[:, order], x[:, order])
    torch.testing.assert_close(straight[:, order], permuted, rtol=1e-4, atol=1e-5)


def test_padded_shortcut_has_zeros_on_both_sides():
    x = torch.randn(1, 4, 6, 6)
    found = imagenet.PaddedShortcut(4, 8, 2)(x)
    assert torch.equal(found[:, 2:6], x[:, :, ::2, ::2])
    assert found[:, :2].abs().sum() == found[:, 6:].abs().sum() == 0


def theirs(model, vgg=False):
    """The state of ``model`` under the authors' names, written down the other way round than the conversion does it."""
    state = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if vgg:
            parts = ["fc", parts[1]] if parts[0] == "head" else [parts[2].replace("norm", "bn") + parts[1], *parts[3:]]
        elif parts[0] == "stem":
            parts = ["conv1" if parts[1] == "conv" else "bn1", parts[2]]
        elif parts[0] == "stages":
            part = [{"conv": "0", "norm": "1"}.get(p, p).replace("norm", "bn") for p in parts[4:]]
            parts = [f"layer{int(parts[1]) + 1}", parts[3], *part]
        else:
            parts = ["bn2" if parts[0] == "head_norm" else "linear", parts[1]]
        state[".".join(parts)] = tensor.clone()
    return state


@pytest.mark.parametrize("make", [lambda: tiny(shortcut=imagenet.ProjectedShortcut), lambda: cifar.VGGSmall(5)])
def test_conversion_is_strict(make):
    model = make()
    state = theirs(model, vgg=isinstance(model, cifar.VGGSmall))
    converted = from_authors(state)
    check_conversion(model, converted)
    assert all(torch.equal(converted[name], tensor) for name, tensor in model.state_dict().items())
    lacking = {name: value for name, value in state.items() if not name.startswith("bn1.w")}
    with pytest.raises(ValueError, match="missing"):
        check_conversion(model, from_authors(lacking))
    with pytest.raises(ValueError, match=r"tensor 'layer9.strange.weight' that no network"):
        from_authors({**state, "layer9.strange.weight": torch.zeros(1)})


def test_a_checkpoint_of_the_authors_is_loaded(tmp_path):
    model = cifar.cifar_resnet20().eval()
    parameters = [p.detach() for p in model.parameters()]  # theirs also holds these, in a list
    held = {"epoch": 3, "model": "resnet20_1w1a", "state_dict": theirs(model), "best_prec1": 86.0}
    torch.save({**held, "parameters": parameters}, tmp_path / "model_best.pth.tar")
    loaded = create_model("reste_cifar_resnet20", checkpoint=tmp_path / "model_best.pth.tar", num_classes=10).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(images), model(images))
    assert loaded.preprocessing.size == (32, 32)


def test_timm_knows_the_residual_networks():
    backbone = timm.create_model("reste_cifar_resnet20", features_only=True)
    maps = backbone(torch.randn(1, 3, 32, 32))
    assert [tuple(m.shape[1:]) for m in maps] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert backbone.feature_info.reduction() == [1, 2, 4]
    model = timm.create_model("reste_cifar_resnet20_bireal", num_classes=4, in_chans=1)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 4)
    with pytest.raises(ValueError, match="no weights of reste_resnet18"):
        timm.create_model("reste_resnet18", pretrained=True)


def test_checkpointing_changes_neither_gradients_nor_statistics():
    images = torch.randn(4, 3, 16, 16)
    results = []
    for enable in (False, True):
        model = tiny().train()
        model.set_grad_checkpointing(enable)
        model(images).square().sum().backward()
        results.append(([p.grad for p in model.parameters()], list(model.buffers())))
    for kind in range(2):
        for one, other in zip(results[0][kind], results[1][kind], strict=True):
            torch.testing.assert_close(one, other)


def test_a_network_trains_compiled_in_one_graph():
    torch._dynamo.reset()
    model = tiny()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    images = torch.randn(2, 3, 16, 16)
    compiled(images).sum().backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(images).sum().backward()
    for one, other in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "shape"),
    [(lambda: tiny(), (3, 32, 32)), (lambda: tiny(), (1, 1, 32, 32)), (cifar.VGGSmall, (1, 3, 28, 28))],
)
def test_wrong_images_meet_a_sentence(model, shape):
    with pytest.raises(ValueError, match=r"images are \(.*\); they must be \(B, 3, "):
        model()(torch.randn(shape))


def test_one_bit_weights_with_real_activations():
    model = tiny(real_activations=True)
    assert all(layer.real_activations for _, layer in binary_layers(model))
    assert isinstance(model, ReSTEResNet)
    assert model(torch.randn(2, 3, 16, 16)).isfinite().all()
