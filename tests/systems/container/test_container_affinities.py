"""Context aggregation: three known layers are special cases of it, and it is what its matrices say."""

import pytest
import torch
from torch import nn

from repertory.systems.container import ContextAggregation, DenseAffinity, DynamicAffinity, LocalAffinity
from repertory.systems.container.pam import TokenAggregation

SIZE = (5, 7)
MAPS = torch.randn(2, 12, *SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TOKENS = MAPS.flatten(2).transpose(1, 2)  # (B, N, C)
MAKERS = {
    "dynamic": lambda: DynamicAffinity(12, 3),
    "local": lambda: LocalAffinity(12, 5, bias=False),
    "dense": lambda: DenseAffinity(12, SIZE, num_heads=2),
}


def as_map(tokens):
    return tokens.transpose(1, 2).unflatten(2, SIZE)


def layer(affinities, *args, **settings):
    torch.manual_seed(1)
    made = ContextAggregation(12, affinities, *args, **settings).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def multi_head_attention(ours):
    """PyTorch's own layer with the weights of ``ours``."""
    theirs = nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.project.weight[:, :, 0, 0])
        theirs.in_proj_bias.copy_(ours.project.bias)
        theirs.out_proj.weight.copy_(ours.output.weight[:, :, 0, 0])
        theirs.out_proj.bias.copy_(ours.output.bias)
    return theirs


def depth_wise(local):
    """PyTorch's own convolution with the weights of ``local``."""
    theirs = nn.Conv2d(12, 12, 5, padding=2, groups=12, dtype=torch.float64)
    theirs.load_state_dict(local.conv.state_dict())
    return theirs


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_dynamic_affinity_alone_is_multi_head_self_attention(backend):
    ours = layer([DynamicAffinity(12, 3, backend=backend)])
    attended, _ = multi_head_attention(ours)(TOKENS, TOKENS, TOKENS)
    torch.testing.assert_close(ours(MAPS), as_map(attended))


def test_a_local_affinity_alone_is_a_depth_wise_convolution():
    local = LocalAffinity(12, 5)
    ours = layer([local], value_projection=False, output_projection=False)
    torch.testing.assert_close(ours(MAPS), depth_wise(local)(MAPS))


def test_a_dense_affinity_alone_is_the_token_mixing_of_mlp_mixer():
    dense = DenseAffinity(12, SIZE, bias=True)
    ours = layer([dense], value_projection=False, output_projection=False)
    theirs = nn.Linear(35, 35, dtype=torch.float64)  # from all positions to all positions, alike for every channel
    with torch.no_grad():
        theirs.weight.copy_(dense.weight[0])
        theirs.bias.copy_(dense.bias[0])
    torch.testing.assert_close(ours(MAPS), theirs(TOKENS.transpose(1, 2)).unflatten(2, SIZE))


def test_the_ends_of_a_mixture_are_attention_and_the_projected_convolution():
    local = LocalAffinity(12, 5)
    ours = layer([DynamicAffinity(12, 3), local], mixing="free")
    with torch.no_grad():
        ours.mixing_weights.copy_(torch.tensor([1.0, 0.0]))
        attended, _ = multi_head_attention(ours)(TOKENS, TOKENS, TOKENS)
        torch.testing.assert_close(ours(MAPS), as_map(attended))
        ours.mixing_weights.copy_(torch.tensor([0.0, 1.0]))
        values = nn.functional.linear(TOKENS, ours.project.weight[24:, :, 0, 0], ours.project.bias[24:])
        torch.testing.assert_close(ours(MAPS), ours.output(depth_wise(local)(as_map(values))))


@pytest.mark.parametrize("mixing", ["convex", "free", (0.3, -2.0), None])
@pytest.mark.parametrize("kinds", [("dynamic", "local"), ("dynamic", "dense"), ("dense", "local")])
def test_a_layer_is_the_product_of_its_matrix_and_its_values(kinds, mixing):
    ours = layer([MAKERS[kind]() for kind in kinds], mixing)
    values = ours.project(MAPS)[:, -12:].flatten(2)  # (B, C, N)
    aggregated = torch.einsum("bcij,bcj->bci", ours.matrix(MAPS), values)
    torch.testing.assert_close(ours(MAPS), ours.output(aggregated.unflatten(2, SIZE)))


def test_matrices_have_the_form_of_their_kind():
    query, key = torch.randn(2, 2, 12, *SIZE, dtype=torch.float64)
    dynamic = DynamicAffinity(12, 3).matrix(SIZE, query, key)
    assert dynamic.shape == (2, 3, 35, 35)
    torch.testing.assert_close(dynamic.sum(-1), torch.ones_like(dynamic[..., 0]))
    local = LocalAffinity(12, 3).matrix(SIZE)[0]
    assert local.shape == (12, 35, 35)
    assert (local[0] != 0).sum(-1).unflatten(0, SIZE)[[0, 0, 2], [0, 3, 3]].tolist() == [
        4,
        6,
        9,
    ]  # corner, edge, inside
    torch.testing.assert_close(local[:, 9, 17], local[:, 10, 18])  # the same one row down and one column on


def test_a_convex_mixture_starts_in_the_middle_and_stays_convex():
    ours = ContextAggregation(12, [MAKERS["dynamic"](), MAKERS["local"]()], "convex")
    assert [weight.item() for weight in ours.weights()] == [0.5, 0.5]
    with torch.no_grad():
        ours.mixing_logit.fill_(2)
    first, second = ours.weights()
    assert first.item() == pytest.approx(0.8807971)
    assert (first + second).item() == pytest.approx(1)


def test_free_scalars_start_as_equal_parts_and_learn():
    ours = layer([MAKERS["dynamic"](), MAKERS["local"]()], "free")
    fresh = ContextAggregation(12, [MAKERS["dynamic"](), MAKERS["local"]()], "free")
    assert fresh.mixing_weights.tolist() == [0.5, 0.5]
    ours(MAPS).square().sum().backward()
    assert ours.mixing_weights.grad.abs().min() > 0


def test_a_static_matrix_is_added_after_the_softmax():
    tokens = torch.randn(2, 9, 12, dtype=torch.float64)
    torch.manual_seed(2)
    ours = TokenAggregation(12, 9, 3).double()
    static = ours.aggregation.affinities[1].weight
    assert static.shape == (3, 9, 9)
    query, key, value = (
        nn.functional.linear(tokens, ours.aggregation.project.weight[:, :, 0, 0], ours.aggregation.project.bias)
        .reshape(2, 9, 3, 3, 4)
        .permute(2, 0, 3, 1, 4)
    )
    attention = (query @ key.transpose(-2, -1) * 4**-0.5).softmax(-1) + static
    out = (attention @ value).transpose(1, 2).reshape(2, 9, 12)
    expected = nn.functional.linear(out, ours.aggregation.output.weight[:, :, 0, 0], ours.aggregation.output.bias)
    torch.testing.assert_close(ours(tokens), expected)
    with pytest.raises(ValueError, match="attn_mask"):
        ours(tokens, attn_mask=torch.zeros(9, 9))


@pytest.mark.parametrize("kinds", [("dynamic", "local"), ("dense", "local")])
def test_gradients_are_those_of_finite_differences(kinds):
    ours, maps = layer([MAKERS[kind]() for kind in kinds], "convex"), MAPS[:1].clone().requires_grad_()
    assert torch.autograd.gradcheck(ours, maps, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_near_single(dtype):
    ours = layer([maker() for maker in MAKERS.values()]).float()
    maps = MAPS.float()
    expected = ours(maps)
    found = ours.to(dtype)(maps.to(dtype)).float()
    assert (found - expected).norm() < 0.02 * expected.norm()


def test_any_memory_layout_and_an_empty_batch_do():
    ours = layer([maker() for maker in MAKERS.values()])
    expected = ours(MAPS)
    torch.testing.assert_close(ours(MAPS.contiguous(memory_format=torch.channels_last)), expected)
    strided = torch.empty(*SIZE, 12, 2, dtype=torch.float64).permute(3, 2, 0, 1).copy_(MAPS)
    torch.testing.assert_close(ours(strided), expected)
    assert ours(MAPS[:0]).shape == (0, 12, *SIZE)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: DynamicAffinity(12, 5), "dim is 12; it must be a multiple of num_heads, which is 5"),
        (lambda: DynamicAffinity(12, 3, backend="fast"), "backend is 'fast'; it must be one of auto, reference"),
        (lambda: LocalAffinity(12, 4), "kernel_size is 4; it must be odd"),
        (lambda: DenseAffinity(12, (5, 7), num_heads=5), "dim is 12"),
        (lambda: DenseAffinity(12, (0, 7)), r"size is \(0, 7\)"),
        (lambda: layer([DenseAffinity(12, (7, 5))])(MAPS), "the map is 5 x 7; a dense affinity built for 7 x 5"),
        (lambda: layer([LocalAffinity(8)]), "an affinity of 8 channels is given; it must have dim, 12"),
        (lambda: layer([]), "affinities is empty"),
        (lambda: layer([LocalAffinity(12)], "convex"), "takes two affinities; there are 1"),
        (lambda: layer([LocalAffinity(12)], "sum"), "mixing is 'sum'"),
        (lambda: layer([LocalAffinity(12)], (1.0, 2.0)), "mixing lists 2 numbers; there are 1"),
        (lambda: layer([DynamicAffinity(12, 3)], value_projection=False), "value_projection is False"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()
