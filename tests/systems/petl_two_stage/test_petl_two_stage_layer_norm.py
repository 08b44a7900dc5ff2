import pytest
import timm
import torch
from petl_cases import steps, swin, trained, values, vit
from torch import nn

from repertory.systems.petl_two_stage import parameter_groups, tune_layer_norms
from repertory.systems.petl_two_stage.layer_norm import heads, layer_norms


@pytest.mark.parametrize("classes", [10, 100])
def test_vit_base_tunes_38400_parameters_and_769_a_class(classes):
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=classes)
    assert sum(parameter.numel() for parameter in tune_layer_norms(model)) == 38_400 + 769 * classes
    assert sum(parameter.numel() for parameter in model.parameters()) == 85_798_656 + 769 * classes


def test_every_norm_and_the_head_train_and_nothing_else():
    model = vit()
    tune_layer_norms(model)
    norms = {f"blocks.{block}.norm{norm}" for block in range(3) for norm in (1, 2)} | {"norm"}
    assert set(layer_norms(model)) == norms
    assert trained(model) == {f"{name}.{leaf}" for name in norms | {"head"} for leaf in ("weight", "bias")}


def test_norms_of_a_swin_are_those_of_its_patches_and_stages_too():
    model = swin()
    tune_layer_norms(model)
    assert {"patch_embed.norm.weight", "layers.1.downsample.norm.bias", "head.fc.weight"} <= trained(model)
    assert not any("attn" in name or "mlp" in name for name in trained(model))


@pytest.mark.parametrize("make", [vit, swin])
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_frozen_parameters_come_out_bit_identical(make, optimizer):
    model = make()
    tuned = tune_layer_norms(model)
    before = values(model)
    steps(model, optimizer(tuned, lr=0.05, weight_decay=0.1))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == trained(model)


def test_norms_do_not_decay_unless_asked():
    model = vit()
    tune_layer_norms(model)
    for given, expected in (({}, 0.0), ({"norm_weight_decay": 0.3}, 0.3)):
        others, norms = parameter_groups(model, weight_decay=0.1, **given)
        assert (others["weight_decay"], norms["weight_decay"]) == (0.1, expected)
        assert sum(p.numel() for p in norms["params"]) == 7 * 2 * 48
        assert {id(p) for p in others["params"]} == {id(p) for p in model.head.parameters()}
    model.head.requires_grad_(False)
    assert len(parameter_groups(model, 0.1)) == 1


def test_any_network_with_layer_norms_has_a_first_stage():
    model = timm.create_model("convnext_atto", num_classes=3)
    tune_layer_norms(model)
    assert {"stem.1.weight", "stages.3.blocks.1.norm.bias", "head.fc.bias"} <= trained(model)


def test_the_head_is_the_last_linear_layer_of_a_plain_module_and_both_of_a_distilled_one():
    plain = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    assert heads(plain) == [plain[2]]
    distilled = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, num_classes=2)
    assert heads(distilled) == [distilled.head, distilled.head_dist]


def test_a_model_without_layer_norm_or_head_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="ResNet has no LayerNorm with a scale and shift"):
        tune_layer_norms(timm.create_model("resnet10t"))
    with pytest.raises(ValueError, match="VisionTransformer has no classifier"):
        tune_layer_norms(timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32))
