import pytest
import torch
from torch import nn

from repertory.nn.convnet import ConvNet
from repertory.training import features_and_logits


def test_features_are_those_before_the_classifier_and_logits_the_models():
    model, images = ConvNet(num_classes=7, width=4).eval(), torch.randn(3, 1, 8, 8)
    outputs = features_and_logits(model, images)
    assert torch.equal(outputs.logits, model(images))
    assert torch.equal(outputs.features, model.forward_head(model.forward_features(images), pre_logits=True))


@pytest.mark.parametrize(
    "name",
    [
        "resnet10t",
        "vit_tiny_patch16_224",
        "mobilenetv3_small_050",
        "test_efficientnet",
        "test_convnext",
        "test_byobnet",
    ],
)
def test_any_timm_model_gives_features_and_logits(name):
    import timm

    size = {"img_size": 32, "patch_size": 16} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=5, **size).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        outputs = features_and_logits(model, images)
        assert torch.equal(outputs.logits, model(images))
        pooled = model.forward_head(model.forward_features(images), pre_logits=True)
    assert outputs.logits.shape == (2, 5)
    torch.testing.assert_close(outputs.features, pooled.flatten(1))


def test_a_model_with_two_classifiers_gives_what_its_head_gives():
    import timm

    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=5, img_size=32).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        outputs = features_and_logits(model, images)
        assert torch.equal(outputs.logits, model(images))
    assert outputs.features.shape[0] == 2


def test_no_hook_is_left_behind():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    outputs = features_and_logits(model, torch.ones(2, 1, 2, 2))
    assert outputs.features.shape == (2, 4)
    assert not model[1]._forward_pre_hooks
