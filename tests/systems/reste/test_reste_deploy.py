"""Packed networks equal the float simulation; what is folded, what is not, and how small the file is."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from repertory.systems.reste import BinaryConv2d, PackedConv2d, binarize, deploy
from repertory.systems.reste.cifar import VGGSmall, small_resnet
from repertory.systems.reste.deployment import Thresholds


def lived_in(model, shape=(8, 3, 16, 16)):
    """``model`` with batch norms that have seen something, and some that turn values round."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.randn(shape))
    return model.eval()


def packed(model):
    return [module for module in model.modules() if isinstance(module, PackedConv2d)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bias": False, "stride": 2, "dilation": 2, "groups": 2},
        {"padding_mode": "reflect", "padding": 2},
        {"padding": "same"},
        {"real_activations": True},
    ],
)
@pytest.mark.parametrize("backend", ["reference", "eager", "compiled"])
def test_a_packed_layer_equals_the_float_one(settings, backend):
    torch.manual_seed(0)
    layer = BinaryConv2d(6, 4, 3, **{"padding": 1, **settings})
    x = torch.randn(2, 6, 9, 8)
    x[torch.rand_like(x) < 0.1] = 0
    found = deploy(layer)
    found.backend = backend
    torch.testing.assert_close(found(x), layer(x), rtol=0, atol=1e-5 if settings.get("real_activations") else 0)
    assert not list(found.parameters())


def test_plain_blocks_have_their_inner_batch_norm_folded():
    model = lived_in(small_resnet(5, width=8, depth=2))
    network, images = deploy(model), torch.randn(4, 3, 16, 16)
    assert torch.equal(network(images), model(images))
    assert [layer.thresholds is not None for layer in packed(network)] == [True, False] * 6
    assert not any("norm1" in name for name in network.state_dict())
    assert any(
        torch.equal(layer.thresholds.direction.unique(), torch.tensor([-1.0, 1.0])) for layer in packed(network)[::2]
    )


def test_a_packed_network_is_exported_for_other_batches():
    model = lived_in(small_resnet(5, width=8, depth=1))
    network, free = deploy(model), torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        program = torch.export.export(network, (torch.randn(2, 3, 16, 16),), dynamic_shapes=({0: free},))
        images = torch.randn(5, 3, 16, 16)
        torch.testing.assert_close(program.module()(images), model(images), atol=1e-4, rtol=1e-4)


def test_bireal_blocks_need_every_batch_norm():
    model = lived_in(small_resnet(5, width=8, depth=1, around_each=True))
    network, images = deploy(model), torch.randn(4, 3, 16, 16)
    assert torch.equal(network(images), model(images))
    assert all(layer.thresholds is None for layer in packed(network))
    assert type(network) is type(model)


def test_vgg_is_folded_through_its_pooling(monkeypatch):
    monkeypatch.setattr(VGGSmall, "WIDTHS", (6, 6, 8, 8, 10, 10))
    model = lived_in(VGGSmall(4), (4, 3, 32, 32))
    network, images = deploy(model), torch.randn(3, 3, 32, 32)
    assert torch.equal(network(images), model(images))
    assert [layer.thresholds is not None for layer in packed(network)] == [True] * 4 + [False]


def test_one_bit_weights_with_real_activations_are_packed_and_not_folded():
    model = lived_in(small_resnet(5, width=8, depth=1, real_activations=True))
    network, images = deploy(model), torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(network(images), model(images))
    assert all(layer.thresholds is None and layer.words.dtype == torch.int32 for layer in packed(network))


def test_a_timm_model_is_deployed():
    model = lived_in(binarize(timm.create_model("test_resnet", num_classes=3)), (4, 3, 64, 64))
    network, images = deploy(model), torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(network(images), model(images))
    assert packed(network)


class Branching(nn.Module):
    """What a tracer cannot follow."""

    def __init__(self):
        super().__init__()
        self.conv = BinaryConv2d(3, 3, 3, padding=1)
        self.norm, self.last = nn.BatchNorm2d(3), BinaryConv2d(3, 3, 3)

    def forward(self, x):
        return self.last(self.norm(self.conv(x))) if x.mean() > 0 else x


def test_a_forward_that_cannot_be_traced_keeps_its_batch_norms():
    model = lived_in(Branching())
    network, images = deploy(model), torch.randn(2, 3, 6, 6).abs()
    assert torch.equal(network(images), model(images))
    assert all(layer.thresholds is None for layer in packed(network))


class Twice(nn.Module):
    """Batch norm whose output goes to signs and elsewhere."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = BinaryConv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.last = BinaryConv2d(4, 4, 3, padding=1)

    def forward(self, x):
        y = self.norm(F.relu(self.conv(x)))
        return self.last(y) + y


def test_a_batch_norm_that_something_else_needs_is_not_folded():
    model = lived_in(Twice(), (2, 4, 6, 6))
    images = torch.randn(2, 4, 6, 6)
    assert torch.equal(deploy(model)(images), model(images))
    assert all(layer.thresholds is None for layer in packed(deploy(model)))


def test_the_original_stays_trainable():
    model = lived_in(small_resnet(5, width=4, depth=1))
    before = copy.deepcopy(model.state_dict())
    deploy(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.train()(torch.randn(2, 3, 16, 16)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_weights_take_one_bit_and_are_loaded_into_another_deployed_network():
    model, other = lived_in(small_resnet(5, width=32, depth=1)), small_resnet(5, width=32, depth=1)
    network, fresh = deploy(model), deploy(other)
    fresh.load_state_dict(network.state_dict())
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(fresh(images), network(images))
    latent = sum(m.weight.numel() for m in model.modules() if isinstance(m, BinaryConv2d))
    assert sum(layer.words.numel() * 32 for layer in packed(network)) == latent


def test_thresholds_reproduce_any_step_and_refuse_what_is_none():
    tables = torch.tensor(
        [
            [-1, -1, 0, 1, 1],
            [1, 1, 1, 0, -1],
            [1, 1, 1, 1, 1],
            [-1, -1, -1, -1, 1],
            [0, 0, 0, 0, 0],
            [1, -1, -1, -1, -1],
        ]
    ).float()
    sums = torch.arange(-2.0, 3.0).expand(1, 6, 5)[..., None]
    assert torch.equal(Thresholds.of(tables)(sums)[0, ..., 0], tables)
    assert Thresholds.of(torch.tensor([[-1.0, 1.0, -1.0]])) is None


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Conv2d(3, 3, 3), "Conv2d has no binary convolution to pack"),
        (nn.Sequential(BinaryConv2d(3, 3, 3)), "weight has 81 values of exactly 0"),
    ],
)
def test_what_cannot_be_packed_is_refused(model, message):
    if isinstance(model, nn.Sequential):
        nn.init.zeros_(model[0].weight)
    with pytest.raises(ValueError, match=message):
        deploy(model)
