import pytest
import timm
import torch
from petl_cases import pictures, stir, swin, vit
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from repertory.systems.petl_two_stage import adapters, insert_adapters, load_tuned, merge, save_tuned
from repertory.systems.petl_two_stage.layer_norm import layer_norms


def tuned(make, **settings):
    """A model after both stages, of which every tuned value differs from its base's."""
    model = make()
    width = min(norm.normalized_shape[0] for norm in layer_norms(model).values())
    blocks = [module for module in model.modules() if hasattr(module, "norm2")]
    indices = [torch.tensor([1, 2, width - 1])] * len(blocks)
    insert_adapters(model, indices, **settings)
    nn.init.normal_(model.get_classifier().weight)
    return stir(model).eval()


@pytest.mark.parametrize("make", [vit, swin])
@pytest.mark.parametrize("place", ["attention", "mlp"])
def test_the_file_brings_a_base_to_the_very_same_outputs(make, place, tmp_path):
    model = tuned(make, scale=0.4, place=place)
    images, _ = pictures(model)
    path = save_tuned(model, tmp_path / "new" / "tuned.safetensors")
    loaded = load_tuned(make(), path).eval()
    assert torch.equal(loaded(images), model(images))
    assert [adapter.index.tolist() for adapter in adapters(loaded).values()] == [
        adapter.index.tolist() for adapter in adapters(model).values()
    ]


def test_only_tuned_values_are_in_it_and_channels_are_integers(tmp_path):
    model = tuned(vit)
    path = save_tuned(model, tmp_path / "tuned.safetensors")
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        assert file.get_tensor("blocks.1.adapter.index").tolist() == [1, 2, 47]
    block = {f"norm{i}.{leaf}" for i in (1, 2) for leaf in ("weight", "bias")}
    block |= {f"adapter.{leaf}" for leaf in ("weight", "bias", "index")}
    assert names == {f"blocks.{i}.{leaf}" for i in range(3) for leaf in block} | {
        "norm.weight", "norm.bias", "head.weight", "head.bias"
    }  # fmt: skip


@pytest.mark.slow
def test_a_tuned_vit_base_is_a_file_of_kilobytes(tmp_path):
    model = timm.create_model("vit_base_patch16_224", num_classes=10)
    insert_adapters(model, [torch.arange(96)] * 12)
    assert save_tuned(model, tmp_path / "tuned.safetensors").stat().st_size < 660_000


def test_stage_one_alone_is_saved_without_adapters(tmp_path):
    model = stir(vit()).eval()
    images, _ = pictures(model)
    loaded = load_tuned(vit(), save_tuned(model, tmp_path / "one.safetensors")).eval()
    assert not adapters(loaded)
    assert torch.equal(loaded(images), model(images))


def test_a_base_with_the_classes_of_its_pre_training_gets_the_new_head(tmp_path):
    model = tuned(vit)
    model.class_names = ("a", "b", "c", "d", "e")
    path = save_tuned(model, tmp_path / "tuned.safetensors")
    base = vit()
    base.reset_classifier(1000)
    loaded = load_tuned(base, path).eval()
    assert loaded.class_names == ("a", "b", "c", "d", "e")
    assert torch.equal(loaded(pictures(model)[0]), model(pictures(model)[0]))


def test_another_base_is_refused_and_left_alone(tmp_path):
    path = save_tuned(tuned(vit), tmp_path / "tuned.safetensors")
    other = vit()
    with torch.no_grad():
        other.blocks[1].mlp.fc1.weight[0, 0] += 1e-3
    before = {name: value.clone() for name, value in other.state_dict().items()}
    for wrong in (other, swin()):
        with pytest.raises(ValueError, match=r"was tuned on another base than this .*: it fits a VisionTransformer"):
            load_tuned(wrong, path)
    assert not adapters(other)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    with pytest.raises(ValueError, match="has channel adapters already"):
        load_tuned(tuned(vit), path)


def test_files_that_are_missing_damaged_or_anothers_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tuned values at"):
        load_tuned(vit(), tmp_path / "absent.safetensors")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(save_tuned(vit(), tmp_path / "whole.safetensors").read_bytes()[:200])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_tuned(vit(), damaged)
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="save_tuned did not write it"):
        load_tuned(vit(), tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    "make",
    [
        vit,
        lambda: vit(global_pool="avg"),
        lambda: vit(qkv_bias=False),
        lambda: vit("deit3_small_patch16_224"),
        lambda: vit("vit_base_patch16_siglip_224"),
        lambda: vit("beit_base_patch16_224"),
        lambda: vit("vit_relpos_small_patch16_224"),
        swin,
        lambda: swin(64),
    ],
)
def test_merging_changes_no_output_and_leaves_the_model_alone(make):
    model = tuned(make, scale=0.4)
    images, _ = pictures(model)
    with torch.no_grad():
        before = model(images)
        merged = merge(model)
        assert float((merged(images) - before).norm() / before.norm()) < 1e-6
        assert torch.equal(model(images), before)
        exact = merge(model.double())(images.double())
        torch.testing.assert_close(exact, model(images.double()), rtol=1e-10, atol=1e-10)
    assert not merged.training
    assert all(adapter.scale == 1 for adapter in adapters(merged).values())


def test_every_norm_of_a_vit_is_folded_and_the_adapters_stay():
    model = tuned(vit, scale=0.4)
    merged = merge(model)
    assert not [module for module in merged.modules() if isinstance(module, nn.LayerNorm) and module.weight is not None]
    folded = sum(parameter.numel() for parameter in model.parameters()) - 7 * 2 * 48
    assert sum(parameter.numel() for parameter in merged.parameters()) == folded
    assert len(adapters(merged)) == 3


def test_a_swin_keeps_norms_whose_outputs_are_padded():
    whole, padded = merge(tuned(swin)), merge(tuned(lambda: swin(64)))  # maps of 14 and 7, or of 16 and 8, windows of 7
    assert set(layer_norms(whole)) == {"patch_embed.norm"}
    kept = {f"layers.{stage}.blocks.{block}.norm1" for stage in (0, 1) for block in (0, 1)}
    assert set(layer_norms(padded)) == {"patch_embed.norm"} | kept
