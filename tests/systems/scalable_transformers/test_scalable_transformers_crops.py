"""What a crop of the vision supernet is: which parameters, which tokens, and the network that it makes of its own."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from repertory import create_model
from repertory.systems.scalable_transformers.crops import Crop, CropSpace
from repertory.systems.scalable_transformers.layers import CroppedQKV
from repertory.systems.scalable_transformers.losses import distillation_loss, sub_model_losses
from repertory.systems.scalable_transformers.model import ScalableViT, scalable_deit_base

MILLIONS = {  # of the sheet, 12, 10, 8 and 6 blocks
    12: (86.57, 72.39, 58.22, 44.04),
    10: (60.34, 50.50, 40.65, 30.80),
    8: (38.84, 32.53, 26.23, 19.92),
    6: (22.05, 18.50, 14.95, 11.40),
    4: (9.98, 8.40, 6.82, 5.24),
    3: (5.72, 4.83, 3.94, 3.05),
}
CROPS = [Crop(), Crop(4, 2, 24), Crop(6, 1), Crop(2, 3, 16), Crop(1, 1, 8)]


def supernet(qkv_crop="fused", **settings):
    torch.manual_seed(0)
    sizes = {"embed_dim": 36, "num_heads": 6, "depth": 3, "img_size": 32, "patch_size": 8}
    return ScalableViT(5, 1, qkv_crop=qkv_crop, **sizes | settings).eval()


@pytest.mark.parametrize("heads", MILLIONS)
def test_every_size_has_the_published_count(heads):
    with torch.device("meta"):
        whole = scalable_deit_base()
    for depth, millions in zip((12, 10, 8, 6), MILLIONS[heads], strict=True):
        width = 64 * heads
        formula = depth * (12 * width**2 + 13 * width) + (769 + 197 + 1 + 2) * width + 1000 * (width + 1)
        part = whole.extract(width, depth)
        assert sum(p.numel() for p in part.parameters()) == formula
        assert formula / 1e6 == pytest.approx(millions, abs=0.0051)
    known = {12: 86_567_656, 6: 22_050_664, 3: 5_717_416}
    if heads in known:
        assert sum(p.numel() for p in whole.extract(64 * heads).parameters()) == known[heads]


@pytest.mark.parametrize("qkv_crop", ["fused", "per_projection"])
@pytest.mark.parametrize("crop", CROPS, ids=str)
def test_an_extracted_network_is_contiguous_and_gives_the_output_of_the_crop(qkv_crop, crop):
    model, images = supernet(qkv_crop), torch.randn(2, 1, 32, 32)
    part = model.extract(heads=crop.heads, depth=crop.depth, resolution=crop.resolution)
    with torch.no_grad():
        torch.testing.assert_close(part(images), model(images, crop), rtol=0, atol=1e-6)
    assert all(p.is_contiguous() for p in part.parameters())
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in part.parameters()}
    assert not shared


def test_a_crop_of_an_extracted_network_is_the_crop_of_the_whole():
    for qkv_crop in ("fused", "per_projection"):
        model, images = supernet(qkv_crop), torch.randn(2, 1, 32, 32)
        part = model.extract(width=24, depth=2)
        with torch.no_grad():
            torch.testing.assert_close(part(images, Crop(2, 1, 16)), model(images, Crop(2, 1, 16)), rtol=0, atol=1e-6)


def test_fused_rows_of_a_narrow_model_are_other_rows_than_those_of_its_projections():
    fused, apart = CroppedQKV(8, crop="fused"), CroppedQKV(8, crop="per_projection")
    apart.load_state_dict(fused.state_dict())
    numbers = torch.arange(24.0)
    with torch.no_grad():
        fused.bias.copy_(numbers)
        apart.bias.copy_(numbers)
    assert fused.cropped(12, 4)[1].tolist() == list(range(12))
    assert apart.cropped(12, 4)[1].tolist() == [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19]
    torch.testing.assert_close(apart.cropped(24, 8)[0], fused.weight)


def test_what_lies_outside_the_crop_gets_no_gradient():
    model, crop = supernet(), Crop(2, 2, 16)
    model(torch.randn(2, 1, 32, 32), crop).square().sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert all(grads[name] is None for name in grads if name.startswith("blocks.2."))
    width = 12
    outside = {
        "cls_token": grads["cls_token"][..., width:],
        "pos_embed": grads["pos_embed"][..., width:],
        "patch": grads["patch_embed.proj.weight"][width:],
        "norm": grads["norm.weight"][width:],
        "qkv rows": grads["blocks.0.attn.qkv.weight"][3 * width :],
        "qkv columns": grads["blocks.0.attn.qkv.weight"][:, width:],
        "hidden rows": grads["blocks.1.mlp.fc1.weight"][4 * width :],
        "hidden columns": grads["blocks.1.mlp.fc2.weight"][:, 4 * width :],
        "head": grads["head.weight"][:, width:],
    }
    assert {name for name, grad in outside.items() if grad.any()} == set()
    assert grads["blocks.1.mlp.fc2.weight"][:width, : 4 * width].all()


def test_the_teacher_gets_no_gradient_and_passes_once():
    model, images = supernet(), torch.randn(3, 1, 32, 32)
    teacher = model(images)
    passes = []
    model.register_forward_pre_hook(lambda _, inputs: passes.append(inputs))
    losses = sub_model_losses(model, images, teacher, [Crop(3), Crop(1)])
    assert len(passes) == 2
    assert torch.autograd.grad(sum(losses), teacher, allow_unused=True) == (None,)


def test_distillation_is_the_divergence_averaged_over_what_counts():
    student, teacher = torch.randn(2, 3, 7, dtype=torch.float64), torch.randn(2, 3, 7, dtype=torch.float64)
    counts = torch.tensor([[True, True, False], [True, False, False]])
    p, q = (teacher / 2).softmax(-1), (student / 2).softmax(-1)
    expected = 4 * (p * (p / q).log()).sum(-1)[counts].mean()
    torch.testing.assert_close(distillation_loss(student, teacher, 2.0, counts), expected)
    assert distillation_loss(student, teacher, counts=torch.zeros(2, 3, dtype=torch.bool)) == 0
    padded = torch.where(counts[..., None], student, torch.full_like(student, 50.0))
    torch.testing.assert_close(distillation_loss(padded, teacher, 2.0, counts), expected)


def test_tokens_and_positions_are_resized_bilinearly_and_the_class_token_is_not():
    model, images = supernet(), torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        tokens = model.embed(images, 12, 16)
        maps = F.conv2d(images, model.patch_embed.proj.weight, model.patch_embed.proj.bias, 8)
        positions = model.pos_embed[:, 1:].transpose(1, 2).reshape(1, 36, 4, 4)
        small = sum(F.interpolate(m, (2, 2), mode="bilinear", align_corners=False) for m in (maps, positions))
    torch.testing.assert_close(tokens[:, 1:], small[:, :12].flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tokens[:, 0], (model.cls_token + model.pos_embed[:, :1])[:, 0, :12])


def test_images_of_any_size_and_patches_of_any_shape():
    model = supernet(img_size=(32, 24), patch_size=(8, 4))
    assert model.pos_embed.shape == (1, 1 + 4 * 6, 36)
    with torch.no_grad():
        assert model(torch.randn(1, 1, 32, 24)).shape == (1, 5)
        assert model(torch.randn(1, 1, 40, 16), Crop(2, 1, (16, 8))).shape == (1, 5)
    space = model.crop_space()
    assert space.resolutions == ((32, 24), (24, 20), (24, 16), (16, 12))


def test_drop_path_of_a_block_is_its_own_in_every_crop():
    model = supernet(drop_path=0.3)
    rates = [block.drop_path.drop_prob for block in model.extract(depth=2).blocks]
    assert rates == pytest.approx([0, 0.15])
    torch.manual_seed(1)
    model.train()
    images = torch.randn(1, 1, 32, 32).expand(64, -1, -1, -1)
    assert model(images, Crop(2, 2)).unique(dim=0).shape[0] > 1


def test_the_authors_space_is_the_default_of_deit_base():
    with torch.device("meta"):
        model = scalable_deit_base()
    space = model.crop_space()
    assert (space.heads, space.depths) == ((12, 10, 8, 6, 4, 3), (12, 10, 8, 6))
    assert [side // 16 for side, _ in space.resolutions] == [14, 12, 10, 8]
    assert space.smallest == Crop(3, 6, (128, 128))


def test_draws_are_uniform_and_follow_from_seed_and_step():
    space = CropSpace((3, 2, 1), (2, 1), (16, 8))
    drawn = [space.sample(0, step) for step in range(1200)]
    assert drawn == [space.sample(0, step) for step in range(1200)]
    assert drawn != [space.sample(1, step) for step in range(1200)]
    for crop in itertools.product((3, 2, 1), (2, 1), (16, 8)):
        assert drawn.count(Crop(*crop)) == pytest.approx(100, abs=40)


@pytest.mark.parametrize(
    ("crop", "error", "words"),
    [
        (Crop(0), ValueError, "heads is 0; it must be from 1 to 6"),
        (Crop(7), ValueError, "heads is 7; it must be from 1 to 6"),
        (Crop(2.5), TypeError, "heads is 2.5; it must be a whole number"),
        (Crop(depth=0), ValueError, "depth is 0; it must be from 1 to 3"),
        (Crop(depth=4), ValueError, "depth is 4; it must be from 1 to 3"),
        (Crop(resolution=4), ValueError, "resolution is 4; its sides must be from one patch, 8 x 8"),
        (Crop(resolution=40), ValueError, "to those of the image, 32 x 32"),
    ],
)
def test_a_crop_that_the_network_does_not_have_is_refused(crop, error, words):
    with pytest.raises(error, match=words):
        supernet()(torch.zeros(1, 1, 32, 32), crop)


def test_a_resolution_between_patches_is_rounded_down_with_a_warning():
    model, images = supernet(), torch.randn(1, 1, 32, 32)
    with pytest.warns(UserWarning, match="resolution 30 is no multiple of the patch.* the grid is 3 x 3"):
        rounded = model(images, Crop(resolution=30))
    torch.testing.assert_close(rounded, model(images, Crop(resolution=24)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mlp_ratio": 3.5}, "mlp_ratio is 3.5; it must be a whole number"),
        ({"embed_dim": 35}, "embed_dim is 35; it must be a multiple of num_heads, which is 6"),
        ({"depth": 0}, "depth is 0"),
        ({"qkv_crop": "half"}, "qkv_crop is 'half'; it must be one of fused, per_projection"),
        (
            {"img_size": 30},
            "img_size is 30 x 30 pixels; both sides must be multiples of the patch, 8 x 8: pad to 32 x 32",
        ),
    ],
)
def test_sizes_that_cannot_be_cropped_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        supernet(**settings)


def test_bad_images_and_widths_are_named():
    model = supernet()
    with pytest.raises(ValueError, match="the image is 30 x 32 pixels"):
        model(torch.zeros(1, 1, 30, 32))
    with pytest.raises(ValueError, match="images are"):
        model(torch.zeros(1, 32, 32))
    with pytest.raises(ValueError, match="width is 10; it must be a multiple of 6"):
        model.extract(width=10)
    with pytest.raises(ValueError, match="width is 12 and heads is 3"):
        model.extract(width=12, heads=3)
    with pytest.raises(ValueError, match=r"give \(height, width\)"):
        model(torch.zeros(1, 1, 32, 24), Crop(resolution=16))
    with pytest.raises(ValueError, match="heads is 9"):
        model.crop_space(heads=(9,))


def test_crops_compile_without_a_graph_break():
    model, images = supernet(depth=2), torch.randn(2, 1, 32, 32)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    crop = Crop(2, 1, 16)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images, crop), model(images, crop))


def test_an_exported_program_takes_other_batches_and_sizes():
    model, free = supernet(depth=2).eval(), torch.export.Dim.DYNAMIC
    program = torch.export.export(model, (torch.randn(2, 1, 40, 48),), dynamic_shapes=({0: free, 2: free, 3: free},))
    images = torch.randn(3, 1, 48, 56)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), model(images), atol=1e-4, rtol=1e-4)


def test_blocks_can_be_computed_again_in_the_backward_pass():
    model, images, crop = supernet().train(), torch.randn(2, 1, 32, 32), Crop(4, 2, 16)
    grads = []
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        model(images, crop).square().sum().backward()
        grads.append(model.blocks[0].mlp.fc1.weight.grad.clone())
    torch.testing.assert_close(*grads)


def test_maps_of_blocks_and_the_registration_in_timm():
    import timm

    import repertory.timm  # noqa: F401

    sizes = {"embed_dim": 24, "num_heads": 3, "depth": 4, "img_size": 32, "patch_size": 8}
    backbone = timm.create_model("scalable_deit_tiny", features_only=True, out_indices=(1, 3), **sizes)
    assert [tuple(m.shape) for m in backbone(torch.randn(1, 3, 32, 64))] == [(1, 24, 4, 8)] * 2
    model = timm.create_model("scalable_deit_tiny", num_classes=3, drop_path_rate=0.2, **sizes)
    last, maps = model.forward_intermediates(torch.randn(1, 3, 32, 32), indices=2, crop=Crop(2, 3, 16))
    assert (last.shape, [m.shape for m in maps]) == ((1, 5, 16), [(1, 16, 2, 2)] * 2)
    assert model.no_weight_decay() == {"pos_embed", "cls_token"}
    model.reset_classifier(7)
    assert model.extract(16, 2)(torch.randn(1, 3, 32, 32)).shape == (1, 7)
    with pytest.raises(ValueError, match="indices are"):
        model.forward_intermediates(torch.randn(1, 3, 32, 32), indices=[4])


def test_an_extracted_network_is_saved_and_made_again(tmp_path):
    from repertory.catalog import from_pretrained

    sizes = {"embed_dim": 24, "num_heads": 3, "depth": 2, "img_size": 32, "patch_size": 8}
    whole = create_model("scalable_deit_tiny", num_classes=3, **sizes).eval()
    part = whole.extract(width=16, depth=1, resolution=16)
    part.save_pretrained(tmp_path / "part")
    again, images = from_pretrained(tmp_path / "part").eval(), torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(again(images), whole(images, Crop(2, 1, 16)), rtol=0, atol=1e-6)


def test_deployment_adds_no_parameter():
    model = supernet().train()
    model.set_grad_checkpointing()
    deployed = model.deploy(Crop(2, 1))
    assert not deployed.training
    assert not deployed.grad_checkpointing
    assert model.training
    assert sum(p.numel() for p in deployed.parameters()) == sum(p.numel() for p in model.extract(12, 1).parameters())
    assert model.deploy().state_dict().keys() == model.state_dict().keys()
