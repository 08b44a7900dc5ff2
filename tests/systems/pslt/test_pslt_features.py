"""The maps for detection and re-identification: four strides, each before the next downsampler, here and in timm."""

import pytest
import timm
import torch

import repertory.timm
from repertory.systems.pslt import PSLT

NARROW = {"embed_dim": 6, "conv_depths": (2, 1), "depths": (2, 1), "num_heads": (2, 4)}


def test_stage_maps_are_what_the_next_stage_receives():
    model = PSLT(5, **NARROW).eval()
    received = []
    for stage in list(model.stages)[1:]:
        stage.register_forward_pre_hook(lambda _, args: received.append(args[0]))
    maps = model.forward_pyramid(torch.randn(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(1, 12, 16, 24), (1, 24, 8, 12), (1, 48, 4, 6), (1, 96, 2, 3)]
    for taken, seen in zip(maps, received, strict=False):
        assert torch.equal(taken, seen)
    assert len(received) == 3


def test_the_maps_of_a_ladder_stage_come_before_the_patch_merging():
    model = PSLT(5, **NARROW).eval()
    received = []
    model.stages[3].downsample.register_forward_pre_hook(lambda _, args: received.append(args[0]))
    maps = model.forward_pyramid(torch.randn(1, 3, 64, 64))
    assert torch.equal(maps[2], received[0])


def test_the_widths_are_those_of_the_authors_feature_pyramid():
    with torch.device("meta"):
        maps = repertory.create_model("pslt", depths=(1, 1)).eval().forward_pyramid(torch.zeros(1, 3, 64, 64))
    assert [m.shape[1] for m in maps] == [72, 144, 288, 576]


def test_timm_extracts_the_same_four_maps():
    backbone = timm.create_model("pslt", features_only=True, **NARROW).eval()
    images = torch.randn(1, 3, 64, 96)
    maps = backbone(images)
    assert backbone.feature_info.reduction() == [4, 8, 16, 32]
    assert backbone.feature_info.channels() == [m.shape[1] for m in maps] == [12, 24, 48, 96]
    for found, expected in zip(maps, backbone.model.forward_pyramid(images), strict=True):
        assert torch.equal(found, expected)


def test_timm_extracts_some_stages_and_drops_the_others():
    backbone = timm.create_model("pslt", features_only=True, out_indices=(0, 2), **NARROW).eval()
    assert [tuple(m.shape[1:]) for m in backbone(torch.randn(1, 3, 32, 32))] == [(12, 8, 8), (48, 2, 2)]
    assert len(backbone.model.stages) == 3


def test_timm_knows_the_models_and_has_no_weights():
    assert timm.list_models("pslt*") == ["pslt", "pslt_large", "pslt_tiny"]
    model = timm.create_model("pslt", num_classes=7, in_chans=1, drop_path_rate=0.3, **NARROW)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    assert model.stages[3].blocks[0].branches[2].drop_path.p == pytest.approx(0.3)
    assert timm.data.resolve_model_data_config(model)["interpolation"] == "bicubic"
    with pytest.raises(ValueError, match="no weights of pslt are distributed"):
        timm.create_model("pslt", pretrained=True)


def test_intermediates_can_be_normalised_and_come_with_the_last_map():
    model = PSLT(5, **NARROW).eval()
    images = torch.randn(1, 3, 32, 32)
    last, maps = model.forward_intermediates(images, indices=2, norm=True)
    assert len(maps) == 2
    assert torch.equal(last, maps[1])
    torch.testing.assert_close(last, model.forward_features(images))
    with pytest.raises(ValueError, match="indices are"):
        model.forward_intermediates(images, indices=[4])
    with pytest.raises(ValueError, match="output_fmt is 'NLC'"):
        model.forward_intermediates(images, output_fmt="NLC")


def test_pictures_of_persons_give_an_embedding_and_a_map_of_parts():
    """Re-identification takes 256 x 128 pixels: one pooled vector a person, or the last map cut into stripes."""
    model = PSLT(0, **NARROW).eval()
    persons = torch.randn(2, 3, 256, 128)
    assert model(persons).shape == (2, model.num_features)
    assert model.forward_features(persons).shape == (2, model.num_features, 8, 4)
