import inspect
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F

from repertory.nn import ConvNet
from repertory.systems.bake import Bake, BAKELoss, ClassPairBatchSampler, deploy, distillation_loss
from repertory.training import Batch, Outputs, features_and_logits
from repertory.training.engine import check_claims

TIMM = ["resnet10t", "vit_tiny_patch16_224", "mobilenetv3_small_050", "convnext_atto"]


@pytest.mark.parametrize("name", TIMM)
def test_any_timm_model_trains_with_it(name):
    size = {"img_size": 32} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=5, **size)
    images, labels = torch.randn(6, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2])
    outputs = features_and_logits(model, images)
    terms = Bake(omega=0.9).extra_loss(outputs, Batch(images, labels, torch.arange(6)))
    assert set(terms) == {"distillation"}
    (F.cross_entropy(outputs.logits, labels) + terms["distillation"]).backward()
    assert terms["distillation"] > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.get_classifier().parameters())


def test_it_adds_the_weighted_loss():
    outputs = Outputs(torch.randn(8, 4), torch.randn(8, 3))
    batch = Batch(torch.zeros(8, 1, 2, 2), torch.zeros(8).long(), torch.arange(8))
    found = Bake(temperature=2.0, omega=0.3, weight=0.5).extra_loss(outputs, batch)["distillation"]
    torch.testing.assert_close(found, 0.5 * BAKELoss(2.0, 0.3)(outputs.features, outputs.logits))


def test_a_lone_image_adds_nothing():
    logits = torch.randn(1, 3, requires_grad=True)
    batch = Batch(torch.zeros(1, 1, 2, 2), torch.zeros(1).long(), torch.zeros(1).long())
    term = Bake().extra_loss(Outputs(torch.randn(1, 4), logits), batch)["distillation"]
    term.backward()
    assert term == 0
    assert torch.equal(logits.grad, torch.zeros(1, 3))


def test_self_targets_give_no_weight_any_gradient():
    model, images = ConvNet(width=4), torch.randn(8, 1, 12, 12)
    labels = torch.arange(8)
    outputs = features_and_logits(model, images)
    term = Bake(omega=0.0).extra_loss(outputs, Batch(images, labels, labels))["distillation"]
    gradients = torch.autograd.grad(term, list(model.parameters()))
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


def test_targets_of_a_hot_ensemble_are_softer_than_the_predictions():
    draws = torch.Generator().manual_seed(0)
    features, logits = torch.randn(16, 8, generator=draws), 5 * torch.randn(16, 4, generator=draws)
    own = distillation_loss(logits, torch.full((16, 4), 0.25))
    spread = Bake(omega=0.9).extra_loss(Outputs(features, logits), Batch(logits, logits, logits))["distillation"]
    assert 0.2 * own < spread < own


def test_its_sampler_pairs_the_targets_of_the_data():
    data = SimpleNamespace(targets=[0, 0, 1, 1] * 6)
    sampler = Bake(partners=3).batch_sampler(data, 8, 5, 1, 2)
    assert isinstance(sampler, ClassPairBatchSampler)
    assert (sampler.group, sampler.batch_size, sampler.seed, sampler.rank, sampler.world) == (4, 8, 5, 1, 2)
    with pytest.raises(TypeError, match="list has no targets"):
        Bake().batch_sampler([1, 2], 8, 0, 0, 1)
    with pytest.raises(ValueError, match="batch_size is 9"):
        Bake().batch_sampler(data, 9, 0, 0, 1)


def test_it_claims_the_sampler_alone():
    with pytest.raises(ValueError, match="both need the sampler"):
        check_claims([Bake(), Bake()])


@pytest.mark.parametrize("bad", [{"omega": 1.0}, {"temperature": 0.0}, {"weight": -1.0}, {"partners": -1}])
def test_bad_settings_are_named(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=f"{name} is {bad[name]}"):
        Bake(**bad)


def test_every_setting_has_a_type_and_an_explanation():
    parameters = list(inspect.signature(Bake).parameters.values())
    assert [p.name for p in parameters] == ["temperature", "omega", "weight", "partners", "gather"]
    for parameter in parameters:
        assert parameter.annotation is not parameter.empty
        assert f"        {parameter.name}: " in Bake.__doc__


def test_deployment_copies_the_network_unchanged():
    model = ConvNet(width=4).train()
    deployed = deploy(model)
    assert not deployed.training
    assert model.training
    assert sum(p.numel() for p in deployed.parameters()) == sum(p.numel() for p in model.parameters())
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(deployed(images), model.eval()(images))
    with torch.no_grad():
        deployed.head.bias += 1
    assert not torch.equal(deployed.head.bias, model.head.bias)
