"""ELSA in the place of the local attention of timm's networks."""

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2, SwinTransformerV2Block
from timm.models.volo import VOLO, OutlookAttention

from repertory import catalog
from repertory.systems.elsa import HadamardAttention, elsa_in_swin, elsa_in_volo, elsa_volo_d1
from repertory.systems.elsa.drop_in import LocalBlock

SIZES = {"img_size": 64, "embed_dim": 12, "depths": (2, 1, 1, 2), "num_heads": (1, 2, 3, 4), "num_classes": 5}
FAMILIES = {
    SwinTransformer: (SwinTransformerBlock, {"window_size": 2}),
    SwinTransformerV2: (SwinTransformerV2Block, {"window_size": 2}),
}


def swin(family):
    torch.manual_seed(0)
    model = family(**SIZES, **FAMILIES[family][1]).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):  # V2 begins with zeros, which would hide its blocks
            torch.nn.init.ones_(module.weight)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_all_stages_but_the_last_attend_by_elsa_and_the_rest_keeps_its_weights(family):
    plain = swin(family)
    model = elsa_in_swin(plain, kernel_size=3).eval()
    kinds = [[type(block) for block in stage.blocks] for stage in model.layers]
    assert kinds == [[LocalBlock] * 2, [LocalBlock], [LocalBlock], [FAMILIES[family][0]] * 2]
    assert not any(isinstance(module, LocalBlock) for module in plain.modules())
    state, before = model.state_dict(), plain.state_dict()
    kept = [name for name in before if not (name.startswith(("layers.0", "layers.1", "layers.2")) and ".attn." in name)]
    assert all(torch.equal(state[name], before[name]) for name in kept)
    images = torch.randn(2, 3, 64, 64)
    assert model(images).shape == (2, 5)
    assert not torch.allclose(model(images), plain(images))


@pytest.mark.parametrize("family", FAMILIES)
def test_with_attention_silenced_the_network_is_the_one_it_was_made_from(family):
    plain = swin(family)
    model = elsa_in_swin(plain, stages=[0, -3], kernel_size=3).eval()
    for network in (plain, model):
        for stage in (0, 1):
            for block in network.layers[stage].blocks:
                torch.nn.init.zeros_(block.attn.proj.weight)
                torch.nn.init.zeros_(block.attn.proj.bias)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(images), plain(images))


def test_dropout_and_type_are_those_of_the_blocks():
    plain = SwinTransformer(**SIZES, window_size=2, proj_drop_rate=0.3, attn_drop_rate=0.2).double()
    layer = elsa_in_swin(plain, kernel_size=3).layers[1].blocks[0].attn
    assert isinstance(layer, HadamardAttention)
    assert (layer.drop.p, layer.attn_drop.p, layer.num_heads) == (0.3, 0.2, 2)
    assert layer.qkv.weight.dtype == torch.float64


@pytest.mark.parametrize("family", FAMILIES)
def test_timm_can_still_change_its_size_train_and_extract_features(family):
    model = elsa_in_swin(swin(family), kernel_size=3).train()
    model.set_input_size(img_size=(96, 64))
    model.set_grad_checkpointing(True)
    images = torch.randn(2, 3, 96, 64)
    model(images).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    maps = model.eval().forward_intermediates(images, intermediates_only=True)
    assert [tuple(m.shape[1:]) for m in maps] == [(12, 24, 16), (24, 12, 8), (48, 6, 4), (96, 3, 2)]


def volo(**settings):
    torch.manual_seed(0)
    sizes = {"layers": (2, 1, 1, 1), "embed_dims": (24, 48, 48, 48), "num_heads": (2, 4, 4, 4), "stem_hidden_dim": 8}
    return VOLO(img_size=64, num_classes=5, **sizes, **settings).eval()


def test_the_outlookers_of_volo_attend_by_elsa():
    plain = volo()
    model = elsa_in_volo(plain)
    assert sum(isinstance(module, HadamardAttention) for module in model.modules()) == 2
    assert not any(isinstance(module, OutlookAttention) for module in model.modules())
    assert any(isinstance(module, OutlookAttention) for module in plain.modules())
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 5)
    assert elsa_in_volo(plain, kernel_size=3).network[0][0].attn.kernel_size == 3


def test_the_volo_form_is_named_a_reading():
    with torch.device("meta"):
        model = elsa_volo_d1(num_classes=10)
    assert model.num_classes == 10
    assert "reading" in (elsa_volo_d1.__doc__ or "")
    assert {part.name for part in catalog.card("elsa").parts if part.inferred} == {"ELSA in VOLO"}


@pytest.mark.parametrize(
    ("make", "error", "complaint"),
    [
        (lambda: elsa_in_swin(timm.create_model("test_resnet")), TypeError, "model is a ResNet; it must be"),
        (lambda: elsa_in_volo(swin(SwinTransformer)), TypeError, "model is a SwinTransformer; it must be a VOLO"),
        (lambda: elsa_in_swin(swin(SwinTransformer), stages=[4]), ValueError, "stages 0 to 3"),
        (lambda: elsa_in_swin(swin(SwinTransformer), kernel_size=2), ValueError, "kernel_size is 2"),
        (lambda: elsa_in_swin(elsa_in_swin(swin(SwinTransformer))), ValueError, "by ELSA already"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(make, error, complaint):
    with pytest.raises(error, match=complaint):
        make()
