"""The decoded networks: published counts, timm's numbers, and what every layer must do."""

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from repertory import catalog, create_model
from repertory.parity import check_conversion, load, run_vector
from repertory.systems.fnas import Architecture, Block, MobileNetwork, MultiplyAdds, SearchSpace, miniature
from repertory.systems.fnas.authors import from_authors
from repertory.systems.fnas.model import MNASNET_A1, mnasnet_a1, mnasnet_b1, mobilenet_v2
from repertory.systems.fnas.parity import DRIVERS

VECTORS = sorted((catalog.room("fnas") / "vectors").iterdir(), key=lambda path: path.name)
PUBLISHED = {
    "fnas_mnasnet_a1": (mnasnet_a1, "semnasnet_100", 3_887_038),
    "fnas_mnasnet_b1": (mnasnet_b1, "mnasnet_100", 4_383_312),
    "fnas_mobilenet_v2": (mobilenet_v2, "mobilenetv2_100", 3_504_872),
}


@pytest.mark.slow
@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.name)
def test_the_numbers_of_the_reference_are_reproduced(path):
    assert run_vector(load(path), path.stem, DRIVERS).passed


@pytest.mark.slow
@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.name)
def test_tensors_can_be_matched_by_the_order_of_their_use(path):
    vector = load(path)
    vector["config"] = {**vector["config"], "names": "another library"}
    assert run_vector(vector, path.stem, DRIVERS).passed


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts_are_exact(name):
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name][2] == catalog.card("fnas").parameters[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_timms_weights_give_timms_logits(name):
    build, theirs, _ = PUBLISHED[name]
    reference, model = timm.create_model(theirs, num_classes=7).eval(), build(num_classes=7).eval()
    with torch.no_grad():
        for tensor in reference.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5) if tensor.ndim == 1 else tensor.normal_(0, 0.05)
        converted = from_authors(reference.state_dict())
        check_conversion(model, converted)
        model.load_state_dict(converted)
        images = torch.randn(1, 3, 40, 56)
        expected = reference(images)
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_every_choice_of_a_block_makes_a_network_of_the_right_shape():
    space = SearchSpace(miniature().stages[1:2], stem=8, stem_stride=1, head=8, num_classes=3)
    images, cost = torch.randn(1, 3, 7, 9), MultiplyAdds((3, 7, 9), 3)
    for choice in list(space.choices())[::19]:
        architecture = space.decode(choice)
        model = MobileNetwork(architecture, 3).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            assert model(images).shape == (1, 3)
        assert model.forward_features(images).shape == (1, 8, 4, 5)
        assert cost(architecture) == counter.get_total_flops() / 2, architecture.key


def test_multiply_adds_of_a1_are_those_that_torch_counts():
    with torch.device("meta"):
        model, images = MobileNetwork(MNASNET_A1).eval(), torch.empty(1, 3, 224, 224)
        with FlopCounterMode(display=False) as counter:
            model(images)
    assert MultiplyAdds((3, 224, 224), 1000)(MNASNET_A1) == counter.get_total_flops() / 2


def test_an_identity_adds_the_input_where_a_layer_keeps_its_shape():
    def network(skip):
        torch.manual_seed(0)
        return MobileNetwork(Architecture((Block("sep", 3, 8, 1, 1, 1, 0.0, skip),), stem=8, head=8), 2).eval()

    x = torch.randn(1, 8, 6, 6)
    with_skip, without = network("identity").blocks[0](x), network("none").blocks[0](x)
    torch.testing.assert_close(with_skip, without + x)
    assert network("identity").architecture.key != network("none").architecture.key


def test_a_pooling_skip_averages_what_is_inside_the_map():
    block = Block("sep", 3, 8, 1, 2, 1, 0.0, "pool")
    model = MobileNetwork(Architecture((block,), stem=8, head=8), 2).eval()
    layer = model.blocks[0][0]
    torch.nn.init.zeros_(layer.project.weight)
    torch.testing.assert_close(layer(torch.ones(1, 8, 5, 5)), torch.ones(1, 8, 3, 3))


@pytest.mark.parametrize("act", ["relu", "relu6", "hswish"])
def test_the_activation_is_that_of_the_architecture(act):
    kinds = {"relu": torch.nn.ReLU, "relu6": torch.nn.ReLU6, "hswish": torch.nn.Hardswish}
    model = MobileNetwork(SearchSpace(act=act).decode((2,) + (0,) * 41))
    found = {type(module) for module in model.modules() if isinstance(module, tuple(kinds.values()))}
    assert kinds[act] in found
    assert len(found) == 1


def test_the_classifier_can_be_replaced():
    model = MobileNetwork(miniature().decode((1,) * 18), 10, 1)
    model.reset_classifier(4)
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 4)
    assert model.get_classifier() is model.classifier
    features = model.forward_head(model.forward_features(torch.randn(2, 1, 8, 8)), pre_logits=True)
    assert features.shape == (2, model.num_features)


def test_a_wrong_dropout_is_refused():
    with pytest.raises(ValueError, match="drop_rate is 1; it must be at least 0 and below 1"):
        MobileNetwork(MNASNET_A1, drop_rate=1)
