"""The joint training of a network and its sub-models: in fit, in a hand-written loop, and what it does in a step."""

import runpy
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from repertory.data import load
from repertory.systems.hwa import Hwa
from repertory.systems.scalable_transformers.crops import Crop
from repertory.systems.scalable_transformers.losses import distillation_loss
from repertory.systems.scalable_transformers.method import ScalableTraining
from repertory.systems.scalable_transformers.model import ScalableViT
from repertory.training import Batch, FitSettings, Outputs, Progress, fit

SNIPPET = Path(__file__).parents[3] / "docs" / "snippets" / "scalable_transformers.py"
SIZES = {"num_classes": 10, "in_chans": 1, "img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3}


def supernet():
    torch.manual_seed(0)
    return ScalableViT(**SIZES)


def step(method, model, batch, number=0):
    method.before_step(model, Progress(number, 0, 10))
    members = list(model) if isinstance(model, nn.ModuleList) else [model]
    return [method.extra_loss(Outputs(batch.images, member(batch.images)), batch) for member in members]


def drawn_batch():
    return Batch(torch.randn(4, 1, 8, 8), torch.arange(4), torch.arange(4))


def test_terms_are_the_divergences_of_a_random_and_the_smallest_sub_model():
    model, batch = supernet(), drawn_batch()
    method = ScalableTraining(heads=(3, 2), depths=(2, 1), resolutions=(8, 4), weight=0.5, temperature=2.0, seed=3)
    (terms,) = step(method, model, batch, 7)
    logits = model(batch.images)
    crops = {"random": model.crop_space((3, 2), (2, 1), (8, 4)).sample(3, 7), "smallest": Crop(2, 1, 4)}
    assert method.draw(model, 7) == crops
    for name, crop in crops.items():
        torch.testing.assert_close(terms[name], 0.5 * distillation_loss(model(batch.images, crop), logits, 2.0))


def test_sub_models_of_a_step_are_the_same_on_every_process_and_after_a_resume():
    drawn = []
    for rank in range(2):
        torch.manual_seed(rank)  # the trainer seeds each process apart
        method = ScalableTraining(seed=5)
        drawn.append([method.draw(supernet(), number) for number in range(20)])
    assert drawn[0] == drawn[1]
    assert len({crops["random"] for crops in drawn[0]}) > 3


def test_with_labels_for_supervision_nothing_is_learnt_from_the_whole():
    model, batch = supernet(), drawn_batch()
    (terms,) = step(ScalableTraining(supervision="labels"), model, batch)
    torch.testing.assert_close(
        terms["smallest"], F.cross_entropy(model(batch.images, model.crop_space().smallest), batch.labels)
    )


def test_each_replica_trains_its_own_sub_models():
    first, second = supernet(), supernet()
    with torch.no_grad():
        second.head.bias.add_(torch.arange(10.0))
        second.norm.weight.mul_(3)
    batch = drawn_batch()
    together = step(ScalableTraining(), nn.ModuleList([first, second]), batch)
    apart = [step(ScalableTraining(), model, batch)[0] for model in (first, second)]
    for ours, expected in zip(together, apart, strict=True):
        torch.testing.assert_close(dict(ours), dict(expected))
    assert not torch.equal(together[0]["smallest"], together[1]["smallest"])


def test_a_vit_of_timm_is_trained_in_fit_and_stacks_with_averaging(tmp_path):
    names = {"num_classes", "in_chans", "img_size", "patch_size", "embed_dim", "depth", "num_heads"}
    vit = timm.create_model("vit_tiny_patch16_224", **{name: SIZES[name] for name in names})
    settings = FitSettings(
        max_images=64, batch_size=16, optimizer="adamw", lr=1e-3, accelerator="cpu", tensorboard=False
    )
    methods = [ScalableTraining(), Hwa(replicas=2, period=2, window=2)]
    result = fit(vit, load("digits"), methods, out=tmp_path, settings=settings)
    assert isinstance(result.model, ScalableViT)
    assert {"train_scalable_transformers_random", "train_scalable_transformers_smallest"} <= set(result.curves)
    assert result.model.extract(heads=1, depth=1)(torch.randn(1, 1, 8, 8)).shape == (1, 10)


def test_the_loop_of_the_notes_runs_on_a_model_of_timm():
    done = runpy.run_path(str(SNIPPET))
    supernet, part = done["supernet"], done["part"]
    images = torch.randn(2, 3, 32, 32)
    crop = Crop(part.num_heads, len(part.blocks), part.resolution)
    with torch.no_grad():
        torch.testing.assert_close(part(images), supernet.eval()(images, crop), rtol=0, atol=1e-6)
    assert done["losses"][-1] < done["losses"][0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"supervision": "none"}, "supervision is 'none'; it must be one of distillation, labels"),
        ({"weight": -1.0}, "weight is -1.0; it must be at least 0"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
    ],
)
def test_settings_out_of_range_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        ScalableTraining(**settings)


def test_sub_models_that_a_network_does_not_have_are_refused_before_training():
    with pytest.raises(ValueError, match="heads is 4; it must be from 1 to 3"):
        ScalableTraining(heads=(4,)).prepare_model(supernet())
    with pytest.raises(ValueError, match="model is a Linear"):
        ScalableTraining().prepare_model(nn.Linear(2, 2))
