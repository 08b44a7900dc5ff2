"""The maps for dense prediction: any size, four strides, each before the next downsampler, in our API and in timm's."""

import pytest
import timm
import torch

import repertory.timm  # noqa: F401
from repertory.systems.elsa import ELSASwin

NARROW = {"embed_dim": 12, "depths": (1, 1, 1, 2), "num_heads": (1, 2, 3, 4), "kernel_size": 3}


def test_stage_maps_are_what_the_next_downsampler_receives():
    model = ELSASwin(5, **NARROW).eval()
    received = []
    for stage in list(model.stages)[1:]:
        stage.downsample.register_forward_pre_hook(lambda _, args: received.append(args[0].permute(0, 3, 1, 2)))
    maps = model.forward_pyramid(torch.randn(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(1, 12, 16, 24), (1, 24, 8, 12), (1, 48, 4, 6), (1, 96, 2, 3)]
    for taken, seen in zip(maps, received, strict=False):
        assert torch.equal(taken, seen)
    assert len(received) == 3


@pytest.mark.parametrize("size", [(1, 1), (33, 47), (70, 40), (64, 289)])
@pytest.mark.parametrize("dense", [False, True])
def test_any_size_works_and_sizes_round_up(size, dense):
    model = ELSASwin(0, dense=dense, window_size=3, **NARROW).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    maps = model.forward_pyramid(torch.randn(1, 3, *size))
    strides = (4, 8, 16, 32)
    assert [tuple(m.shape[2:]) for m in maps] == [tuple(-(-side // stride) for side in size) for stride in strides]
    assert all(m.isfinite().all() for m in maps)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        n: t.shape for n, t in before.items()
    }
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_forward_leaves_nothing_behind_that_another_size_would_meet():
    model = ELSASwin(5, window_size=2, **NARROW).eval()
    small, large = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 160, 96)
    expected = model(small)
    model(large)
    assert torch.equal(model(small), expected)


def test_windows_shift_only_where_the_map_is_wider_than_a_window():
    model = ELSASwin(0, window_size=2, **NARROW).eval()
    shifting = model.stages[3].blocks[1].attn
    for side, shifts in ((2, False), (4, True)):
        tokens = torch.randn(1, side, side, 96)
        found = shifting(tokens)
        shifting.shifted = False
        assert torch.equal(found, shifting(tokens)) != shifts
        shifting.shifted = True


def test_pixels_from_opposite_edges_do_not_attend_to_each_other_in_a_shifted_window():
    model = ELSASwin(0, window_size=2, **NARROW).eval()
    shifting = model.stages[3].blocks[1].attn
    tokens = torch.randn(1, 4, 4, 96, requires_grad=True)
    shifting(tokens)[0, 0, 0].sum().backward()  # the corner shares its shifted window with the other three corners
    assert tokens.grad[0, 0, 0].abs().max() > 1e-4
    assert tokens.grad[0, 3, 3].abs().max() < 1e-9


def test_the_dense_form_normalises_every_map_and_has_no_classifier():
    model = ELSASwin(0, dense=True, **NARROW).eval()
    for m in model.forward_pyramid(torch.randn(2, 3, 64, 96)):
        torch.testing.assert_close(m.mean(1), torch.zeros_like(m[:, 0]), atol=1e-5, rtol=0)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 96)
    with pytest.raises(ValueError, match="num_classes is 5; the dense form has no classifier"):
        ELSASwin(5, dense=True, **NARROW)


def test_timm_extracts_the_same_four_maps():
    backbone = timm.create_model("elsa_swin_tiny", features_only=True, **NARROW).eval()
    images = torch.randn(1, 3, 64, 96)
    maps = backbone(images)
    assert backbone.feature_info.reduction() == [4, 8, 16, 32]
    assert backbone.feature_info.channels() == [m.shape[1] for m in maps] == [12, 24, 48, 96]
    for found, expected in zip(maps, backbone.model.forward_pyramid(images), strict=True):
        assert torch.equal(found, expected)


def test_timm_extracts_some_stages_and_drops_the_others():
    backbone = timm.create_model("elsa_swin_tiny", features_only=True, out_indices=(0, 2), **NARROW).eval()
    assert [tuple(m.shape[1:]) for m in backbone(torch.randn(1, 3, 32, 32))] == [(12, 8, 8), (48, 2, 2)]
    assert len(backbone.model.stages) == 3


def test_timm_knows_the_models_and_has_no_weights():
    assert timm.list_models("elsa_swin*") == ["elsa_swin_base", "elsa_swin_small", "elsa_swin_tiny"]
    model = timm.create_model("elsa_swin_tiny", num_classes=7, in_chans=1, drop_path_rate=0.2, **NARROW)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    assert model.stages[3].blocks[1].drop_path.drop_prob == pytest.approx(0.2)
    assert timm.data.resolve_model_data_config(model)["crop_pct"] == pytest.approx(0.9)
    with pytest.raises(ValueError, match="no weights of elsa_swin_tiny are distributed"):
        timm.create_model("elsa_swin_tiny", pretrained=True)


def test_intermediates_can_be_normalised_and_come_with_the_last_map():
    model = ELSASwin(5, **NARROW).eval()
    images = torch.randn(1, 3, 32, 32)
    last, maps = model.forward_intermediates(images, indices=2, norm=True)
    assert len(maps) == 2
    assert torch.equal(last, maps[1])
    torch.testing.assert_close(last, model.forward_features(images))
    with pytest.raises(ValueError, match="indices are"):
        model.forward_intermediates(images, indices=[4])
    with pytest.raises(ValueError, match="output_fmt is 'NLC'"):
        model.forward_intermediates(images, output_fmt="NLC")
