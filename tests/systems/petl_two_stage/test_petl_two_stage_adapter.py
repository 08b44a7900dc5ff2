import copy
import pickle

import pytest
import timm
import torch
from petl_cases import pictures, steps, stir, swin, trained, values, vit
from torch import nn
from torch.autograd import gradcheck

from repertory.systems.petl_two_stage import (
    ChannelAdapter,
    adapters,
    insert_adapters,
    select_channels,
    taylor_scores,
    tune_channels,
)
from repertory.systems.petl_two_stage.adapter import transformer_blocks


def adapted(model, channels=None, **settings):
    """``model`` with adapters of its Taylor channels."""
    insert_adapters(model, select_channels(taylor_scores(model, [pictures(model)]), channels), **settings)
    return model


def test_the_formula_with_scale_and_untouched_channels():
    index = torch.tensor([1, 4, 5])
    adapter = ChannelAdapter(7, index, scale=0.3)
    nn.init.normal_(adapter.weight)
    nn.init.normal_(adapter.bias)
    x = torch.randn(2, 3, 7)
    before = x.clone()
    chosen = x[..., index]
    expected = x.clone()
    expected[..., index] = chosen + 0.3 * (chosen @ adapter.weight.T + adapter.bias)
    torch.testing.assert_close(adapter(x), expected)
    assert torch.equal(x, before)
    assert torch.equal(adapter(x)[..., [0, 2, 3, 6]], x[..., [0, 2, 3, 6]])


def test_gradients_are_those_of_the_formula():
    adapter = ChannelAdapter(5, torch.tensor([0, 3]), scale=0.7, init="normal").double()
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)

    def run(x, weight, bias):
        return torch.func.functional_call(adapter, {"weight": weight, "bias": bias}, (x,))

    assert gradcheck(run, (x, adapter.weight, adapter.bias))


@pytest.mark.parametrize(
    ("channels", "count"), [(32, 12_672), (48, 28_224), (64, 49_920), (96, 111_744), (128, 198_144)]
)
def test_adapters_of_vit_base_count_k_squared_plus_k_a_block(channels, count):
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=10)
    indices = [torch.arange(channels)] * 12
    made = insert_adapters(model, indices)
    assert sum(p.numel() for adapter in made for p in adapter.parameters()) == count
    assert sum(p.numel() for p in tune_channels(model)) == count + 7_690


@pytest.mark.parametrize("make", [vit, swin])
@pytest.mark.parametrize("place", ["attention", "mlp"])
def test_stage_two_begins_as_exactly_what_stage_one_left(make, place):
    model = stir(make()).eval()
    images, _ = pictures(model)
    before = model(images)
    assert torch.equal(adapted(model, place=place)(images), before)


def test_the_normal_start_is_truncated_at_deviation_002():
    adapter = ChannelAdapter(256, torch.arange(256), init="normal")
    assert adapter.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not adapter.bias.any()


def test_adapters_act_after_the_attentions_residual_sum_of_a_vit():
    model = stir(adapted(vit(), scale=0.5)).eval()
    images, _ = pictures(model)
    x = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    for block in model.blocks:
        x = x + block.attn(block.norm1(x))
        x = block.adapter(x)
        x = x + block.mlp(block.norm2.forward(x))  # without the hook
    torch.testing.assert_close(model(images), model.forward_head(model.norm(x)), rtol=1e-5, atol=1e-6)


def test_adapters_act_after_the_attentions_residual_sum_of_a_swin():
    model = stir(adapted(swin(), scale=0.5)).eval()
    images, _ = pictures(model)
    x = model.patch_embed(images)
    for stage in model.layers:
        x = stage.downsample(x)
        for block in stage.blocks:
            x = block.adapter(x + block._attn(block.norm1(x)))
            x = x + block.mlp(block.norm2.forward(x))  # without the hook
    torch.testing.assert_close(model(images), model.forward_head(model.norm(x)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "vit_relpos_small_patch16_224", "deit3_small_patch16_224"])
def test_without_its_mlp_any_block_returns_what_the_adapter_made(name):
    model = stir(adapted(vit(name))).eval()
    block = model.blocks[1]
    seen = []
    block.norm2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    block.mlp.register_forward_hook(lambda _, __, out: torch.zeros_like(out))
    block.register_forward_hook(lambda _, __, out: seen.append(out))
    model(pictures(model)[0])
    torch.testing.assert_close(*seen)


def test_drop_path_of_the_mlp_leaves_the_adapter_alone():
    model = stir(adapted(vit(drop_path_rate=0.9))).train()
    block = model.blocks[2]
    block.drop_path1.drop_prob, block.drop_path2.drop_prob = 0.0, 1.0 - 1e-9
    x = torch.randn(4, 17, 48)
    expected = block.adapter(x + block.ls1(block.attn(block.norm1(x))))
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("make", [vit, swin])
def test_only_adapters_and_head_change_in_stage_two(make):
    model = stir(adapted(make()))
    tuned = tune_channels(model)
    before = values(model)
    steps(model, torch.optim.AdamW(tuned, lr=0.05, weight_decay=0.1))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == trained(model)
    assert all(".adapter." in name or name.startswith("head") for name in changed)
    assert len([name for name in changed if name.endswith("adapter.weight")]) == len(adapters(model))


def test_norms_train_on_where_asked():
    model = adapted(vit())
    tune_channels(model, norms=True)
    assert {"blocks.0.norm1.weight", "norm.bias", "blocks.2.adapter.bias", "head.weight"} <= trained(model)
    assert not any("attn" in name or "mlp" in name for name in trained(model))


def kept_bytes(model):
    """Bytes that are kept for the backward pass, those of weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def seen(mlp, inputs):
        pack(*inputs)

    for block in transformer_blocks(model).values():
        if "forward" in vars(block.mlp):  # what is computed again keeps its input outside autograd
            block.mlp.register_forward_pre_hook(seen)
    images, labels = pictures(model)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = nn.functional.cross_entropy(model.train()(images), labels)
    total = sum(kept.values())
    loss.backward()
    return total


@pytest.mark.parametrize(("recompute", "share"), [(False, 0.66), (True, 0.5)])
@pytest.mark.parametrize("make", [vit, swin])
def test_the_backward_pass_keeps_nothing_for_frozen_weights(make, recompute, share):
    full = kept_bytes(make())
    model = adapted(make())
    tune_channels(model, recompute=recompute)
    assert kept_bytes(model) < share * full
    assert all((parameter.grad is None) != parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("make", [vit, swin])
def test_what_is_computed_again_is_the_same(make):
    model = stir(adapted(make())).train()
    for block in transformer_blocks(model).values():
        block.mlp.drop1.p = 0.2
    images, labels = pictures(model)
    found = []
    for recompute in (True, False, True):
        model.zero_grad()
        tuned = tune_channels(model, norms=True, recompute=recompute)
        torch.manual_seed(0)
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        found.append([loss.detach(), *(parameter.grad.clone() for parameter in tuned)])
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=0, atol=0)


def test_copies_and_pickles_have_adapters_of_their_own():
    model = stir(adapted(vit())).eval()
    tune_channels(model)
    images, _ = pictures(model)
    expected = model(images)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(images), expected, rtol=0, atol=0)
        with torch.no_grad():
            other.blocks[0].adapter.bias += 1
            other.blocks[0].mlp.fc1.bias += 1
        assert not torch.allclose(other(images), expected)
        assert torch.equal(model(images), expected)


def test_gradient_checkpointing_gives_the_same_gradients():
    model = stir(adapted(vit())).train()
    tune_channels(model)
    images, labels = pictures(model)
    gradients = []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        model.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        gradients.append(model.blocks[0].adapter.weight.grad.clone())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("make", [vit, pytest.param(swin, marks=pytest.mark.slow)])
def test_it_compiles_without_a_graph_break(make):
    model = stir(adapted(make())).eval()
    images, _ = pictures(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images), rtol=1e-5, atol=1e-6)
    tuned = tune_channels(model)
    for one, other in zip(*(torch.autograd.grad(f(images).square().sum(), tuned) for f in (compiled, model))):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_half_precision_runs_under_autocast():
    model = stir(adapted(vit())).train()
    tune_channels(model)
    images, labels = pictures(model)
    with torch.autocast("cpu", torch.bfloat16):
        nn.functional.cross_entropy(model(images), labels).backward()
    assert model.blocks[0].adapter.weight.grad.isfinite().all()


def test_bad_input_is_refused_in_a_sentence():
    model = vit()
    good = [torch.arange(4)] * 3
    with pytest.raises(ValueError, match="indices for 2 blocks; VisionTransformer has 3"):
        insert_adapters(model, good[:2])
    with pytest.raises(ValueError, match="place is 'head'"):
        insert_adapters(model, good, place="head")
    with pytest.raises(ValueError, match="init is 'ones'"):
        insert_adapters(model, good, init="ones")
    with pytest.raises(ValueError, match="has no channel adapter"):
        tune_channels(model)
    for index in ([3, 1], [1, 1], [-1, 2], [0, 48]):
        with pytest.raises(ValueError, match="ascending channels, 0 to 47, each once"):
            ChannelAdapter(48, torch.tensor(index))
    for index in (torch.arange(0), torch.arange(49), torch.zeros(1, 1).long()):
        with pytest.raises(ValueError, match="it must name 1 to 48 channels"):
            ChannelAdapter(48, index)
    assert not adapters(model)
    insert_adapters(model, good)
    with pytest.raises(ValueError, match="has channel adapters already"):
        insert_adapters(model, good)
