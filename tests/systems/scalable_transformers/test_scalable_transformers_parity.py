"""The vision supernet against the authors' numbers, and the weights of DeiT in it."""

import copy

import pytest
import timm
import torch

from repertory import catalog
from repertory.parity import check_conversion, load, run_vector
from repertory.systems.scalable_transformers.authors import from_authors
from repertory.systems.scalable_transformers.crops import Crop
from repertory.systems.scalable_transformers.model import ScalableViT
from repertory.systems.scalable_transformers.parity import DRIVERS

VECTORS = sorted((catalog.room("scalable_transformers") / "vectors").iterdir(), key=lambda path: path.name)
TINY = {"embed_dim": 24, "num_heads": 3, "depth": 2, "img_size": 32, "patch_size": 8}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:resolution")
@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.name)
def test_the_numbers_of_the_authors_are_reproduced(path):
    vector = load(path)
    report = run_vector(vector, path.stem, DRIVERS)
    assert report.passed, report


def test_a_driver_obeys_the_settings_of_the_vector():
    """Small images, the other crop and a temperature run too, and an unknown output is a mismatch."""
    vector = copy.deepcopy(load(next(path for path in VECTORS if path.name == "supernet_small.json")))
    sizes = {"embed_dim": 24, "num_heads": 3, "depth": 2, "img_size": 32, "patch": 8, "mlp_ratio": 2}
    runs = {"max": [32, 3, 2], "random": [24, 2, 1]}
    vector["config"] |= sizes | {"configs": [[32, 3, 2]], "loss_configs": runs, "temperature": 2.0}
    vector["config"]["qkv_crop"] = "per_projection"
    own = ScalableViT(10, 3, mlp_ratio=2, **TINY)
    vector["parameters"] = {name: list(p.shape) for name, p in own.named_parameters()}
    vector["inputs"] = {"x": {"shape": [2, 3, 32, 32]}, "targets": {"shape": [2], "kind": "int", "high": 10}}
    summary = {"shape": [], "mean": 0.0, "std": 0.0, "norm": 0.0, "samples": [0.0]}
    vector["outputs"] = dict.fromkeys(("loss_kl_random", "grad:pos_embed", "unheard_of"), summary)
    problems = {output.name: output.problem for output in run_vector(vector, "other", DRIVERS).outputs}
    assert "does not know" in problems["unheard_of"]
    for name in ("loss_kl_random", "grad:pos_embed"):
        assert problems[name]
        assert "failed" not in problems[name]


def test_weights_of_deit_give_the_output_of_deit():
    deit = timm.create_model("deit_tiny_patch16_224", num_classes=5, depth=2).eval()
    supernet = ScalableViT(5, embed_dim=192, num_heads=3, depth=2).eval()
    converted = from_authors(deit.state_dict())
    check_conversion(supernet, converted)
    supernet.load_state_dict(converted)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(supernet(images), deit(images), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(supernet(images, Crop(3, 2, 224)), supernet(images))


def test_a_vit_of_timm_becomes_a_supernet_with_its_output():
    vit = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=(32, 48),
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=3,
        num_classes=4,
        in_chans=1,
        drop_path_rate=0.2,
    ).eval()
    supernet = ScalableViT.from_timm(vit, "per_projection")
    images = torch.randn(2, 1, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(supernet(images), vit(images), rtol=1e-5, atol=1e-5)
    assert supernet.blocks[1].drop_path.drop_prob == pytest.approx(0.2)
    assert supernet.crop_space().heads == (3, 2, 1)


@pytest.mark.parametrize(
    ("name", "settings", "fault"),
    [
        ("vit_tiny_patch16_224", {"global_pool": "avg"}, "global_pool 'avg'"),
        ("vit_tiny_patch16_224", {"init_values": 1.0}, "ls1"),
        ("vit_tiny_patch16_224", {"qk_norm": True}, "q_norm"),
        ("deit_tiny_distilled_patch16_224", {}, "dist_token"),
        ("vit_tiny_patch16_224", {"drop_rate": 0.1}, "dropout before the head"),
        ("resnet10t", {}, "a ResNet"),
    ],
)
def test_a_network_that_is_no_plain_vision_transformer_is_refused(name, settings, fault):
    model = timm.create_model(name, **({"depth": 1} if "patch" in name else {}), **settings)
    with pytest.raises(ValueError, match=fault):
        ScalableViT.from_timm(model)
