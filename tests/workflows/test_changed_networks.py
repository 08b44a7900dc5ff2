"""Networks that a method changed before training come back from their run as they were trained."""

import pytest
import torch
from torch import nn

import repertory
from repertory import catalog
from repertory.workflows import Run

SHORT = {"max_images": 32, "batch_size": 16, "progress": False, "tensorboard": False}
RESTE = ("reste", {"keep": ["conv1.*"], "real_activations": True})


def logits(model):
    size, channels = model.preprocessing.size, len(model.preprocessing.mean)
    with torch.no_grad():
        return model.eval()(torch.linspace(-1, 1, channels * size[0] * size[1]).view(1, channels, *size))


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return repertory.train("test_resnet", data="digits", methods=[RESTE], out=folder, **SHORT)


def test_a_run_is_loaded_with_what_its_method_made_of_the_network(binary):
    loaded = Run.open(binary.path)
    assert any(type(module).__name__ == "BinaryConv2d" for module in loaded.model.modules())
    torch.testing.assert_close(logits(loaded.model), logits(binary.model), rtol=0, atol=0)
    assert loaded.model.prepared_by == [{"name": "reste", "settings": RESTE[1]}]
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())


def test_so_are_its_weights_alone_and_its_checkpoint(binary):
    for place in (binary.path / "model.safetensors", binary.path / "checkpoints" / "last.ckpt"):
        torch.testing.assert_close(logits(Run.open(place).model), logits(binary.model), rtol=0, atol=0)
    alone = catalog.create_model("test_resnet", checkpoint=binary.path)
    torch.testing.assert_close(logits(alone), logits(binary.model), rtol=0, atol=0)


def test_a_network_that_no_method_changed_says_nothing_of_methods(tmp_path):
    run = repertory.train("test_resnet", data="digits", methods=["bake"], out=tmp_path / "run", **SHORT)
    assert run.model.prepared_by == []
    assert not hasattr(Run.open(run.path).model, "prepared_by")


def test_settings_of_a_method_given_as_an_object_are_not_guessed(tmp_path):
    method = catalog.create_method("reste", keep=["conv1.*"])
    run = repertory.train("test_resnet", data="digits", methods=[method], out=tmp_path / "run", **SHORT)
    with pytest.raises(ValueError, match="changed by the method reste with settings that were not recorded"):
        Run.open(run.path)


def test_two_stages_are_two_runs_of_which_the_second_knows_the_first(tmp_path):
    options = {"data": "digits", **SHORT}
    first = repertory.train("test_vit", methods=["petl_layer_norm"], out=tmp_path / "one", **options)
    assert isinstance(first.model, nn.Module)
    second = repertory.train(
        "test_vit",
        methods=[("petl_channels", {"channels": 4})],
        checkpoint=tmp_path / "one",
        out=tmp_path / "two",
        **options,
    )
    loaded = Run.open(tmp_path / "two").model
    assert [method["name"] for method in loaded.prepared_by] == ["petl_layer_norm", "petl_channels"]
    torch.testing.assert_close(logits(loaded), logits(second.model), rtol=0, atol=0)
