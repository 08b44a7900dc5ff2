"""The gates between stages, held to values worked out by hand and to timm's squeeze-and-excite."""

import math

import pytest
import torch
from timm.layers import SEModule

from repertory.systems.spgnet.gates import (
    GatherExciteGate,
    Reweighting,
    SemanticGate,
    SemanticPredictionGuidance,
    SqueezeExciteGate,
    build_gate,
)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def given(layer, weight, bias):
    """Set a 1x1 convolution's ``weight`` (out, in) and ``bias``."""
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight)[:, :, None, None])
        layer.bias.copy_(torch.tensor(bias))


def by_hand(gate):
    """P = 2 f0 - f1 + 1 (one class); what is guided is 0.5 P - 1 in channel 0 and -P in channel 1."""
    given(gate.predict, [[2.0, -1.0]], [1.0])
    given(gate.guide, [[0.5], [-1.0]], [-1.0, 0.0])
    return gate


F = torch.tensor([[[[1.0, 0.0]], [[3.0, -2.0]]]])  # (1, 2, 1, 2): pixels (1, 3) and (0, -2)


def test_the_semantic_gate_by_hand():
    weights, logits = by_hand(SemanticGate(2, 1))(F)
    assert logits.flatten().tolist() == [0.0, 3.0]
    expected = [sigmoid(-1.0), sigmoid(0.5), sigmoid(0.0), sigmoid(-3.0)]
    assert weights.flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("identity", "kept"), [(True, 1.0), (False, 0.0)])
def test_guided_features_by_hand(identity, kept):
    module = SemanticPredictionGuidance(2, 1, identity=identity)
    by_hand(module.gate)
    passed, logits = module(F)
    gates = [sigmoid(-1.0), sigmoid(0.5), sigmoid(0.0), sigmoid(-3.0)]
    assert passed.flatten().tolist() == pytest.approx(
        [f * (g + kept) for f, g in zip([1.0, 0.0, 3.0, -2.0], gates, strict=True)]
    )
    assert logits.flatten().tolist() == [0.0, 3.0]


def test_the_softmax_is_what_the_gate_sees_where_it_is_asked_for():
    gate = SemanticGate(2, 2, source="softmax")
    given(gate.predict, [[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
    given(gate.guide, [[4.0, 0.0], [0.0, 4.0]], [0.0, 0.0])
    weights, logits = gate(F)
    assert torch.equal(logits, F)
    share = sigmoid(1.0 - 3.0)  # softmax of two is a sigmoid of their difference
    assert weights[0, :, 0, 0].tolist() == pytest.approx([sigmoid(4 * share), sigmoid(4 * (1 - share))])


def test_a_gate_of_one_pixel_does_not_depend_on_the_others():
    """No pooling: what the paper sets against squeeze-and-excite."""
    torch.manual_seed(0)
    features = torch.randn(1, 8, 6, 6)
    changed = features.clone()
    changed[:, :, 3, 4] += 1.0
    for gate, local in ((SemanticGate(8, 3), True), (SqueezeExciteGate(8), False)):
        before, after = (gate(f)[0].expand(1, 8, 6, 6) for f in (features, changed))
        elsewhere = torch.ones(6, 6, dtype=torch.bool)
        elsewhere[3, 4] = False
        assert torch.equal(before[..., elsewhere], after[..., elsewhere]) is local
        assert not torch.equal(before[..., 3, 4], after[..., 3, 4])


@pytest.mark.parametrize("detach", [False, True])
def test_later_losses_reach_the_prediction_unless_detached(detach):
    module = SemanticPredictionGuidance(4, 3, detach=detach)
    passed, _ = module(torch.randn(2, 4, 5, 5))
    passed.square().sum().backward()
    assert (module.gate.predict.weight.grad is None) is detach
    assert module.gate.guide.weight.grad is not None


def test_squeeze_and_excite_is_that_of_timm():
    torch.manual_seed(0)
    gate, theirs = SqueezeExciteGate(32, hidden=5), SEModule(32, rd_channels=5)
    for ours, layer in ((gate.excite[0], theirs.fc1), (gate.excite[2], theirs.fc2)):
        layer.load_state_dict(ours.state_dict())
    features = torch.randn(2, 32, 7, 9)
    passed, logits = Reweighting(gate, identity=False)(features)
    torch.testing.assert_close(passed, theirs(features))
    assert logits is None


def test_squeeze_and_excite_by_hand():
    gate = SqueezeExciteGate(2, hidden=1)
    given(gate.excite[0], [[2.0, 2.0]], [0.0])
    given(gate.excite[2], [[1.0], [-1.0]], [0.0, 1.0])
    weights, _ = gate(F)  # means 0.5 and 0.5, hidden relu(2) = 2
    assert weights.shape == (1, 2, 1, 1)
    assert weights.flatten().tolist() == pytest.approx([sigmoid(2.0), sigmoid(-1.0)])


def test_gather_and_excite_without_parameters_by_hand():
    """Extent 2 averages 3 pixels around every second one, those outside the map left out of the count."""
    row = torch.tensor([1.0, 2.0, 6.0, 4.0, 5.0])
    gate = GatherExciteGate(1, extent=2, excite=False)
    weights, _ = gate(row.expand(1, 1, 5, 5))
    assert parameters(gate) == 0
    gathered = [1.5, 4.0, 4.5]  # (1 + 2) / 2, (2 + 6 + 4) / 3, (4 + 5) / 2
    spread = [gathered[i] for i in (0, 0, 1, 1, 2)]  # nearest of three positions for five pixels
    for line in weights[0, 0]:
        assert line.tolist() == pytest.approx([sigmoid(value) for value in spread])


def test_gathering_everything_is_squeeze_and_excite():
    torch.manual_seed(0)
    gather, squeeze = GatherExciteGate(16, extent=0, hidden=3), SqueezeExciteGate(16, hidden=3)
    squeeze.load_state_dict(gather.state_dict())
    features = torch.randn(2, 16, 5, 8)
    assert torch.equal(gather(features)[0], squeeze(features)[0])


def test_the_depthwise_gather_strides_by_the_extent():
    gate = GatherExciteGate(4, extent=4, gather="depthwise", excite=False).eval()
    features = torch.randn(1, 4, 16, 24)
    assert gate.gather(features).shape == (1, 4, 4, 6)
    assert gate(features)[0].shape == features.shape
    with torch.no_grad():  # a kernel that takes its centre, twice, is every fourth pixel
        for layer in (gate.gather[0], gate.gather[3]):
            layer.weight.zero_()[:, :, 1, 1] = 1.0
    features = features.abs()
    expected = torch.sigmoid(features[:, :, ::4, ::4] / (1 + 1e-5))
    torch.testing.assert_close(gate(features)[0][:, :, ::4, ::4], expected)


def test_as_many_hidden_channels_as_classes_give_equal_parameters():
    counts = {
        "spg": parameters(build_gate("spg", 32, 11)),
        "unsupervised": parameters(build_gate("unsupervised", 32, 11)),
        "se": parameters(build_gate("se", 32, 11, hidden=11)),
        "ge": parameters(build_gate("ge", 32, 11, hidden=11)),
    }
    assert set(counts.values()) == {32 * 11 + 11 + 11 * 32 + 32}


def test_only_the_semantic_gate_wants_a_loss():
    supervised = {kind: Reweighting(build_gate(kind, 8, 3)).supervised for kind in ("spg", "unsupervised", "se", "ge")}
    assert supervised == {"spg": True, "unsupervised": False, "se": False, "ge": False}


def test_without_a_gate_features_pass_as_they_are():
    module = Reweighting(build_gate("none", 8, 3))
    assert module(F)[0] is F
    assert not module.supervised


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: build_gate("sge", 8, 3), "gate is 'sge'; it must be one of spg, unsupervised, se, ge, none"),
        (lambda: build_gate("spg", 8, 3, hidden=3), "gate 'spg' does not take them"),
        (lambda: build_gate("none", 8, 3, hidden=3), "gate 'none' does not take them"),
        (lambda: SemanticGate(8, 3, source="argmax"), "source is 'argmax'; it must be one of logits, softmax"),
        (lambda: SemanticGate(8, 0), "num_classes is 0; it must be at least 1"),
        (lambda: SqueezeExciteGate(8, hidden=0), "hidden is 0; it must be at least 1"),
        (lambda: GatherExciteGate(8, extent=3), "extent is 3; it must be 0 or a power of two from 2 on"),
        (lambda: GatherExciteGate(8, gather="max"), "gather is 'max'"),
        (lambda: GatherExciteGate(8, extent=0, gather="depthwise"), "extent is 0; it must be at least 2"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()
