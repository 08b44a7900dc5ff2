import pytest
import timm
import torch
from petl_cases import pictures, stir, swin, values, vit
from scipy.stats import spearmanr
from torch.nn import functional as F

from repertory.systems.petl_two_stage import (
    insert_adapters,
    norm_scores,
    random_scores,
    select_channels,
    taylor_scores,
)


def by_hand(model, images, labels):
    """Feature maps before every ``norm2`` and the gradients of the summed loss, kept whole."""
    kept = []

    def keep(module, inputs):
        if not inputs[0].requires_grad:
            inputs[0].requires_grad_()
        kept.append(inputs[0])

    handles = [block.norm2.register_forward_pre_hook(keep) for block in model.blocks]
    loss = F.cross_entropy(model.eval()(images), labels, reduction="sum")
    gradients = torch.autograd.grad(loss, kept)
    for handle in handles:
        handle.remove()
    return [(x.detach() * gradient).double() for x, gradient in zip(kept, gradients)]


FORMULAE = {
    "abs_of_sum": lambda products: products.sum((0, 1)).abs() / len(products),
    "per_sample": lambda products: products.sum(1).abs().sum(0) / len(products),
    "squared": lambda products: products.square().sum((0, 1)) / len(products),
}


@pytest.mark.parametrize("variant", FORMULAE)
@pytest.mark.parametrize("class_token", [True, False])
def test_streamed_scores_are_the_formula_on_whole_features(variant, class_token):
    model = stir(vit())
    images, labels = pictures(model)
    streamed = taylor_scores(model, [(images[:4], labels[:4]), (images[4:], labels[4:])], variant, class_token)
    for score, products in zip(streamed, by_hand(model, images, labels), strict=True):
        expected = FORMULAE[variant](products if class_token else products[:, 1:])
        torch.testing.assert_close(score, expected, rtol=1e-4, atol=1e-5 * float(expected.max()))


@pytest.mark.parametrize("variant", FORMULAE)
def test_class_means_weigh_classes_alike(variant):
    model = stir(vit())
    images, labels = pictures(model)  # class 0 twice, the others once
    (first, *_), (products, *_) = (
        taylor_scores(model, [(images, labels)], variant, class_mean=True),
        by_hand(model, images, labels),
    )
    expected = torch.stack([FORMULAE[variant](products[labels == label]) for label in range(5)]).mean(0)
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-5 * float(expected.max()))


@pytest.mark.parametrize("make", [vit, swin])
def test_the_score_ranks_channels_as_the_true_change_of_loss_does(make):
    """The estimator itself: |sum of X G| against |loss with the channel at zero - loss|."""
    model = stir(make()).eval().requires_grad_(False)
    images, labels = pictures(model, count=8)
    scores = taylor_scores(model, [(images, labels)], "abs_of_sum")
    block = [module for module in model.modules() if hasattr(module, "norm2")][-1]

    def loss_without(channel):
        kept = torch.ones(len(scores[-1]))
        if channel is not None:
            kept[channel] = 0
        scaled = {}

        def enter(module, inputs):
            scaled["removed"] = inputs[0] * (kept - 1)
            return (inputs[0] * kept,)

        handles = [
            block.norm2.register_forward_pre_hook(enter),
            block.register_forward_hook(lambda _, __, out: out + scaled["removed"].reshape(out.shape)),
        ]
        loss = F.cross_entropy(model.double()(images.double()), labels)
        for handle in handles:
            handle.remove()
        return loss.item()

    whole = loss_without(None)
    changes = [abs(loss_without(channel) - whole) for channel in range(len(scores[-1]))]
    assert spearmanr(scores[-1], changes).statistic > 0.5


def test_scoring_leaves_the_model_as_it_was():
    model = vit(drop_path_rate=0.5).train()
    model.head.requires_grad_(False)
    before, images_labels = values(model), pictures(model)
    first = taylor_scores(model, [images_labels])
    norm_scores(model, [images_labels])
    assert all(torch.equal(one, other) for one, other in zip(first, taylor_scores(model, [images_labels])))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert model.blocks[2].training
    assert model.blocks[0].attn.qkv.weight.requires_grad
    assert not model.head.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_a_fresh_adapter_changes_no_score():
    model = stir(vit())
    plain = taylor_scores(model, [pictures(model)])
    insert_adapters(model, select_channels(plain, 5))
    for one, other in zip(plain, taylor_scores(model, [pictures(model)]), strict=True):
        torch.testing.assert_close(one, other)


def test_scores_can_be_taken_behind_the_block():
    model = stir(vit())
    images, labels = pictures(model)
    behind = taylor_scores(model, [(images, labels)], place="mlp")
    assert all(bool((score > 0).all()) for score in behind)
    patches = taylor_scores(model, [(images, labels)], class_token=False, place="mlp")
    assert float(patches[0].min()) > 0
    assert float(patches[2].max()) == 0  # of the last block only the class token reaches the head


def test_widths_follow_the_stages_of_a_swin():
    model = swin()
    scores = taylor_scores(model, [pictures(model)])
    assert [len(score) for score in scores] == [16, 16, 32, 32]
    assert [len(index) for index in select_channels(scores)] == [2, 2, 4, 4]


@pytest.mark.parametrize(
    "name",
    [
        "deit3_small_patch16_224",
        "vit_base_patch16_siglip_224",
        "beit_base_patch16_224",
        "eva02_tiny_patch14_224",
        "vit_relpos_small_patch16_224",
    ],
)
def test_other_pre_norm_transformers_of_timm_have_scores(name):
    model = vit(name)
    scores = taylor_scores(model, [pictures(model)])
    assert [len(score) for score in scores] == [48] * 3
    assert all(bool((score > 0).all()) for score in scores)


def test_norm_scores_are_root_mean_squares():
    model = stir(vit())
    images, labels = pictures(model)
    seen = []
    model.blocks[1].norm2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    scores = norm_scores(model, [(images[:2], labels[:2]), (images[2:], labels[2:])])
    torch.testing.assert_close(scores[1], torch.cat(seen).double().square().mean((0, 1)).sqrt(), rtol=1e-5, atol=0)


def test_random_scores_follow_their_seed():
    first, again, other = (random_scores(vit(), seed) for seed in (3, 3, 4))
    assert all(torch.equal(one, same) for one, same in zip(first, again))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], first[1])


def test_the_largest_scores_are_chosen_ascending_and_ties_go_to_the_first():
    scores = torch.tensor([1.0, 5.0, 2.0, 5.0, 2.0, 2.0])
    assert select_channels([scores], 3)[0].tolist() == [1, 2, 3]
    assert select_channels([scores], 4)[0].tolist() == [1, 2, 3, 4]
    assert select_channels([torch.zeros(1000)], 7)[0].tolist() == list(range(7))
    assert [len(index) for index in select_channels([scores, scores], [1, 6])] == [1, 6]
    assert len(select_channels([torch.rand(768)])[0]) == 96


@pytest.mark.parametrize("count", [0, -1, 7])
def test_k_below_one_or_above_the_width_is_refused(count):
    with pytest.raises(ValueError, match=f"channels is {count}; it must be 1 to 6, the width of block 1"):
        select_channels([torch.rand(9), torch.rand(6)], [2, count])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_named(bad):
    scores = torch.ones(4)
    scores[2] = bad
    with pytest.raises(ValueError, match=f"the score of channel 2 of block 0 is {bad}; scores must be finite"):
        select_channels([scores], 2)


def test_other_bad_input_is_refused_in_a_sentence():
    model = vit()
    batches = [pictures(model)]
    with pytest.raises(ValueError, match="variant is 'cubed'"):
        taylor_scores(model, batches, "cubed")
    with pytest.raises(ValueError, match="place is 'head'"):
        taylor_scores(model, batches, place="head")
    for score in (taylor_scores, norm_scores):
        with pytest.raises(ValueError, match="batches hold no sample"):
            score(model, [])
    with pytest.raises(ValueError, match="channels has 2 numbers; there are 1 blocks"):
        select_channels([torch.ones(3)], [1, 1])
    with pytest.raises(ValueError, match="ResNet has no pre-norm transformer block"):
        taylor_scores(timm.create_model("resnet10t"), batches)
    post_norm = timm.create_model("swinv2_tiny_window8_256", img_size=64, embed_dim=8, depths=(1,), num_heads=(1,))
    with pytest.raises(ValueError, match="SwinTransformerV2 has no pre-norm transformer block"):
        taylor_scores(post_norm, batches)
