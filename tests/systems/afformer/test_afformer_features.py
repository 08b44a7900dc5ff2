"""The maps for dense prediction: strides 4, 8, 8 and 8, each before the next embedding, in our API and in timm's."""

import pytest
import timm
import torch

import repertory.timm  # noqa: F401
from repertory.systems.afformer import AFFormer

NARROW = {"embed_dims": (16, 16, 24, 32), "num_layers": (1, 1, 1, 1)}


def test_stage_maps_are_what_the_next_embedding_receives():
    model = AFFormer(5, **NARROW).eval()
    received = []
    for stage in list(model.stages)[1:]:
        stage.pixels.register_forward_pre_hook(lambda _, args: received.append(args[0]))
    maps = model.forward_pyramid(torch.randn(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(1, 16, 16, 24), (1, 24, 8, 12), (1, 32, 8, 12), (1, 32, 8, 12)]
    assert len(received) == 3
    for taken, seen in zip(maps, received, strict=False):
        assert torch.equal(taken, seen)


def test_timm_extracts_the_same_four_maps():
    backbone = timm.create_model("afformer_base", features_only=True, **NARROW).eval()
    images = torch.randn(1, 3, 64, 96)
    maps = backbone(images)
    assert backbone.feature_info.reduction() == [4, 8, 8, 8]
    assert backbone.feature_info.channels() == [m.shape[1] for m in maps] == [16, 24, 32, 32]
    for found, expected in zip(maps, backbone.model.forward_pyramid(images), strict=True):
        assert torch.equal(found, expected)


def test_timm_extracts_some_stages_and_drops_the_others():
    backbone = timm.create_model("afformer_base", features_only=True, out_indices=(0, 2), **NARROW).eval()
    assert [tuple(m.shape[1:]) for m in backbone(torch.randn(1, 3, 32, 32))] == [(16, 8, 8), (32, 4, 4)]
    assert len(backbone.model.stages) == 3


def test_timm_knows_the_backbones_and_has_no_weights():
    assert timm.list_models("afformer*") == ["afformer_base", "afformer_small", "afformer_tiny"]
    model = timm.create_model("afformer_tiny", num_classes=7, in_chans=1, drop_path_rate=0.2, **NARROW)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    assert model.stages[3].encoder.blocks[0].drop_path.drop_prob == pytest.approx(0.2)
    assert timm.data.resolve_model_data_config(model)["interpolation"] == "bicubic"
    with pytest.raises(ValueError, match="no weights of afformer_tiny are distributed"):
        timm.create_model("afformer_tiny", pretrained=True)


def test_intermediates_come_with_the_last_map():
    model = AFFormer(5, **NARROW).eval()
    images = torch.randn(1, 3, 32, 32)
    last, maps = model.forward_intermediates(images, indices=2)
    assert len(maps) == 2
    assert torch.equal(last, maps[1])
    assert torch.equal(last, model.forward_features(images))
    with pytest.raises(ValueError, match="indices are"):
        model.forward_intermediates(images, indices=[4])
    with pytest.raises(ValueError, match="output_fmt is 'NLC'"):
        model.forward_intermediates(images, output_fmt="NLC")
