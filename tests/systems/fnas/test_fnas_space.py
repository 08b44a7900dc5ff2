"""Tokens, architectures and keys of the mobile search space."""

import math

import pytest

from repertory.systems.fnas import Architecture, Block, SearchSpace, Stage, miniature
from repertory.systems.fnas.model import MNASNET_A1, MOBILENET_V2
from repertory.systems.fnas.space import round_channels

SPACE = SearchSpace()


def drawn(space, count, seed=0):
    import random

    random = random.Random(seed)
    return [tuple(random.randrange(size) for size in space.sizes) for _ in range(count)]


def test_the_mobile_space_has_42_tokens_and_432_choices_a_block():
    assert len(SPACE) == 42
    assert math.prod(SPACE.options) == len(list(SPACE.choices())) == 432
    assert SPACE.count == 432**7


def test_tokens_of_an_architecture_mean_it_again():
    for tokens in drawn(SPACE, 30):
        architecture = SPACE.decode(tokens)
        assert SPACE.decode(SPACE.encode(architecture)) == architecture
        assert SPACE.encode(architecture) == SPACE.canonical(tokens)
        assert SPACE.canonical(SPACE.canonical(tokens)) == SPACE.canonical(tokens)


def test_mobilenet_v2_stands_in_the_space():
    space = SearchSpace(act="relu6")
    assert space.decode(space.encode(MOBILENET_V2)) == MOBILENET_V2.canonical()


def test_the_released_a1_is_off_the_grid_and_the_block_is_named():
    with pytest.raises(ValueError, match=r"block 3 \(mb3 k5 se0.25 identity 40 x3 s2\) is not in"):
        SearchSpace(widths=(0.75, 1.0)).encode(MNASNET_A1)
    with pytest.raises(ValueError, match=r"block 5 \(mb6 k3 se0.25 identity 112 x2 s1\) is not in"):
        SPACE.encode(MNASNET_A1)


@pytest.mark.parametrize(
    ("target", "channels"), [(12, 16), (18, 24), (20, 24), (24, 24), (30, 32), (40, 40), (72, 72), (1, 8), (6, 8)]
)
def test_widths_are_multiples_of_8_and_never_below_90_per_cent(target, channels):
    assert round_channels(target) == channels
    assert round_channels(target) >= 0.9 * target


def test_networks_that_are_equal_share_a_key():
    width, depth, skip, se, op = 4, 5, 3, 2, 0
    base = list(SPACE.canonical((1, 0, 0, 2, 1, 1) * 7))

    def with_token(place, value, stage=0):
        changed = list(base)
        changed[stage * 6 + place] = value
        return SPACE.decode(changed).key

    key = SPACE.decode(base).key
    assert with_token(depth, 0) == with_token(depth, 1) != with_token(depth, 2)  # one layer less than one is one
    assert with_token(width, 0) == with_token(width, 1) != with_token(width, 2)  # 12 and 16 channels both become 16
    assert with_token(skip, 1) == key  # an identity where widths differ (32 to 16) is none
    assert with_token(skip, 0) != key
    assert with_token(skip, 1, stage=2) != key  # the second layer of three can have one
    base[op] = 0
    assert with_token(se, 0) == with_token(se, 1)  # a plain convolution has no squeeze-and-excitation


def test_an_identity_survives_where_one_layer_can_have_it():
    assert Block("mb", 3, 16, 1, 1, 6, 0.0, "identity").canonical(16).skip == "identity"
    assert Block("mb", 3, 16, 2, 2, 6, 0.0, "identity").canonical(8).skip == "identity"
    assert Block("mb", 3, 16, 1, 2, 6, 0.0, "identity").canonical(16).skip == "none"


def test_no_block_is_dropped_so_strides_stay():
    space = SearchSpace(depths=(-3,))
    architecture = space.decode((0,) * len(space))
    assert [block.layers for block in architecture.blocks] == [1, 1, 1, 1, 1, 1, 1]
    assert [block.stride for block in architecture.blocks] == [1, 2, 2, 2, 1, 2, 1]


def test_an_architecture_travels_as_plain_values():
    assert Architecture.from_dict(MNASNET_A1.to_dict()) == MNASNET_A1
    with pytest.raises(ValueError, match="no architecture: .*colour"):
        Architecture.from_dict({**MNASNET_A1.to_dict(), "colour": 1})


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"kernels": ()}, "kernels is empty; a search space needs at least one"),
        ({"stages": ()}, "stages is empty"),
        ({"kernels": (3, 4)}, "kernel is 4; it must be odd"),
        ({"kernels": (3, 3)}, "an option stands there twice"),
        ({"operations": (("wave", 1),)}, "op is 'wave'; it must be one of conv, sep, mb"),
        ({"skips": ("dense",)}, "skip is 'dense'"),
        ({"widths": (0.0,)}, "every factor must be above 0"),
        ({"act": "tanh"}, "act is 'tanh'; it must be one of relu, relu6, hswish"),
        ({"input_size": (3, 0, 8)}, "input_size is"),
        ({"se_ratios": (2.0,)}, "se_ratio is 2.0; it must be 0 to 1"),
    ],
)
def test_a_space_that_means_nothing_is_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        SearchSpace(**settings)
    assert "\n" not in str(caught.value)


def test_wrong_tokens_are_named():
    space = miniature()
    with pytest.raises(ValueError, match="tokens has 3 entries; this space takes 18"):
        space.decode((0, 0, 0))
    with pytest.raises(ValueError, match=r"token 7 \(kernel\) is 2; it must be 0 to 1"):
        space.decode((0,) * 7 + (2,) + (0,) * 10)


def test_spaces_are_equal_by_what_they_hold():
    assert miniature() == miniature()
    assert hash(miniature()) == hash(miniature())
    assert miniature() != miniature(num_classes=3)
    assert SearchSpace((Stage(8, 1, 1),)).count == 432
