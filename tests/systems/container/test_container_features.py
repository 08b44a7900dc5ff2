"""The maps for dense prediction: four strides, each before the next embedding, in our API and in timm's."""

import pytest
import timm
import torch

import repertory.timm  # noqa: F401
from repertory.systems.container import Container

NARROW = {"embed_dims": (8, 12, 16, 24), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 4), "mlp_ratios": (2, 2, 2, 2)}
NAMES = ["container_full", "container_light", "container_pam_small", "container_pam_tiny"]


def test_stage_maps_are_what_the_next_embedding_receives():
    model = Container(5, **NARROW).eval()
    received = []
    for stage in list(model.stages)[1:]:
        stage.downsample.register_forward_pre_hook(lambda _, args: received.append(args[0]))
    maps = model.forward_pyramid(torch.randn(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(1, 8, 16, 24), (1, 12, 8, 12), (1, 16, 4, 6), (1, 24, 2, 3)]
    for taken, seen in zip(maps, received, strict=False):
        assert torch.equal(taken, seen)
    assert len(received) == 3


@pytest.mark.parametrize("name", ["container_light", "container_full"])
def test_timm_extracts_the_same_four_maps(name):
    backbone = timm.create_model(name, features_only=True, **NARROW).eval()
    images = torch.randn(1, 3, 64, 96)
    maps = backbone(images)
    assert backbone.feature_info.reduction() == [4, 8, 16, 32]
    assert backbone.feature_info.channels() == [m.shape[1] for m in maps] == [8, 12, 16, 24]
    for found, expected in zip(maps, backbone.model.forward_pyramid(images), strict=True):
        assert torch.equal(found, expected)


def test_timm_extracts_some_stages_and_drops_the_others():
    backbone = timm.create_model("container_light", features_only=True, out_indices=(0, 2), **NARROW).eval()
    assert [tuple(m.shape[1:]) for m in backbone(torch.randn(1, 3, 64, 32))] == [(8, 16, 8), (16, 4, 2)]
    assert len(backbone.model.stages) == 3


def test_timm_extracts_maps_of_the_deit_variant_at_the_stride_of_its_patches():
    sizes = {"embed_dim": 12, "depth": 2, "img_size": (32, 48)}
    backbone = timm.create_model("container_pam_tiny", features_only=True, out_indices=(0, 1), **sizes).eval()
    assert [tuple(m.shape) for m in backbone(torch.randn(2, 3, 32, 48))] == [(2, 12, 2, 3)] * 2
    assert backbone.feature_info.reduction() == [16, 16]


def test_timm_knows_the_models_and_has_no_weights():
    assert timm.list_models("container_*") == NAMES
    model = timm.create_model("container_light", num_classes=7, in_chans=1, drop_path_rate=0.2, **NARROW)
    assert model.eval()(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    assert model.stages[3].blocks[0].drop_path.drop_prob == pytest.approx(0.2)
    assert timm.data.resolve_model_data_config(model)["interpolation"] == "bicubic"
    for name in NAMES:
        with pytest.raises(ValueError, match=f"no weights of {name} are distributed"):
            timm.create_model(name, pretrained=True)


def test_intermediates_can_be_normalised_and_come_with_the_last_map():
    model = Container(5, **NARROW).eval()
    images = torch.randn(1, 3, 32, 32)
    last, maps = model.forward_intermediates(images, indices=2, norm=True)
    assert len(maps) == 2
    assert torch.equal(last, maps[1])
    torch.testing.assert_close(last, model.forward_features(images))
    with pytest.raises(ValueError, match="indices are"):
        model.forward_intermediates(images, indices=[4])
    with pytest.raises(ValueError, match="output_fmt is 'NLC'"):
        model.forward_intermediates(images, output_fmt="NLC")


def test_intermediates_stop_after_the_last_wanted_stage():
    model = Container(5, **NARROW).eval()
    images = torch.randn(1, 3, 32, 32)
    model.stages[2].register_forward_pre_hook(lambda *_: pytest.fail("a stage ran that nobody wanted"))
    last, maps = model.forward_intermediates(images, indices=[0, 1], stop_early=True)
    assert last is maps[1]
