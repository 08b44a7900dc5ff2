import inspect

import pytest
import torch
from petl_cases import steps, stir, swin, trained, values, vit
from torch import nn

from repertory.data import ArrayImages, ImageData
from repertory.data.preprocessing import Preprocessing
from repertory.systems.petl_two_stage import (
    ChannelTuning,
    LayerNormTuning,
    adapters,
    norm_scores,
    random_scores,
    select_channels,
    taylor_scores,
)
from repertory.training import FitSettings, Progress, check_claims, fit

START = Progress(0, 0, 10)


def noise(count=20):
    """Pictures of noise, 32 x 32, five classes."""
    draws = torch.Generator().manual_seed(2)
    look = Preprocessing(size=(32, 32), crop=1.0)
    sets = [
        ArrayImages(torch.rand(count, 3, 32, 32, generator=draws), [i % 5 for i in range(count)], "abcde", look)
        for _ in range(2)
    ]
    return ImageData("noise", sets[0], sets[1], tuple("abcde"))


def settings(**given):
    return FitSettings(
        **{"max_images": 40, "batch_size": 10, "optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1,
           "accelerator": "cpu", "tensorboard": False, **given}
    )  # fmt: skip


def changed(before, model):
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def test_the_two_stages_run_one_after_the_other_and_change_only_their_own(tmp_path):
    base = stir(vit())
    one = fit(base, noise(), [LayerNormTuning()], out=tmp_path / "one", settings=settings()).model
    touched = changed(values(base), one)
    assert touched == {name for name in base.state_dict() if "norm" in name or name.startswith("head")}
    two = fit(one, noise(), [ChannelTuning(channels=4)], out=tmp_path / "two", settings=settings()).model
    before = {**values(one), **{name: torch.zeros(()) for name in two.state_dict() if ".adapter." in name}}
    assert {name for name in changed(before, two) if ".adapter." not in name} == {"head.weight", "head.bias"}
    assert all(adapter.weight.any() for adapter in adapters(two).values())
    samples = [noise().train[index] for index in range(20)]
    batch = torch.stack([image for image, _, _ in samples]), torch.tensor([label for _, label, _ in samples])
    for adapter, index in zip(adapters(two).values(), select_channels(taylor_scores(one, [batch]), 4), strict=True):
        assert adapter.index.tolist() == index.tolist()


def test_a_run_cut_in_stage_two_resumes_to_the_same_weights(tmp_path):
    whole = fit(vit(), noise(), [ChannelTuning(4)], out=tmp_path / "a", settings=settings()).model
    seen = []

    class Cut(RuntimeError):
        pass

    def cut(done, total):
        seen.append(done)
        if done == 20:
            raise Cut

    common = {"out": tmp_path / "b", "settings": settings(checkpoint_steps=1)}
    with pytest.raises(Cut):
        fit(vit(), noise(), [ChannelTuning(4)], progress=cut, **common)
    resumed = fit(vit(), noise(), [ChannelTuning(4)], resume=True, **common).model
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())


@pytest.mark.parametrize("score", ["taylor", "norm", "random"])
def test_channels_are_chosen_once_before_the_first_step(score):
    method, data = ChannelTuning(channels=5, score=score, seed=3), noise().train
    model = method.prepare_model(stir(vit()))
    assert method.batch_sampler(data, 8, 0, 0, 1) is None
    samples = [data[index] for index in range(len(data))]
    batch = torch.stack([image for image, _, _ in samples]), torch.tensor([label for _, label, _ in samples])
    expected = {
        "taylor": lambda: taylor_scores(model, [batch]),
        "norm": lambda: norm_scores(model, [batch]),
        "random": lambda: random_scores(model, 3),
    }[score]()
    method.before_step(model, START)
    chosen = [adapter.index.tolist() for adapter in adapters(model).values()]
    assert chosen == [index.tolist() for index in select_channels(expected, 5)]
    stir(model)
    method.before_step(model, Progress(1, 0, 10))
    assert chosen == [adapter.index.tolist() for adapter in adapters(model).values()]
    again = ChannelTuning(channels=5)
    again.load_state_dict(method.state_dict())
    again.before_step(model, START)  # asks for no data: the channels are chosen
    assert ChannelTuning().state_dict() == {"chosen": False}


def test_replicas_get_the_same_channels():
    method = ChannelTuning(channels=3)
    first, second = method.prepare_model(stir(vit())), ChannelTuning(channels=3).prepare_model(vit())
    method.batch_sampler(noise().train, 8, 0, 0, 1)
    method.before_step(nn.ModuleList([first, second]), START)
    pairs = zip(adapters(first).values(), adapters(second).values(), strict=True)
    assert all(torch.equal(one.index, other.index) for one, other in pairs)


@pytest.mark.parametrize("make", [vit, swin])
@pytest.mark.parametrize("method", [LayerNormTuning(), ChannelTuning(tune_norms=True)])
def test_norms_have_a_group_without_decay(make, method):
    model = method.prepare_model(make())
    default = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02, weight_decay=0.1)
    optimizer = method.build_optimizer(model, default)
    assert optimizer is default
    others, norms = optimizer.param_groups
    assert (others["weight_decay"], norms["weight_decay"]) == (0.1, 0.0)
    assert (others["lr"], norms["lr"]) == (0.02, 0.02)
    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    steps(model, optimizer, 1)
    assert all(p.grad is not None for group in optimizer.param_groups for p in group["params"])


def test_frozen_norms_take_no_group():
    method = ChannelTuning()
    model = method.prepare_model(vit())
    default = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    assert len(method.build_optimizer(model, default).param_groups) == 1
    assert not any("norm" in name for name in trained(model))


def test_one_run_has_one_stage():
    with pytest.raises(ValueError, match="both need the trainable parameters alone"):
        check_claims([LayerNormTuning(), ChannelTuning()])


@pytest.mark.parametrize(
    "bad",
    [
        {"channels": 0},
        {"score": "loss"},
        {"variant": "sum"},
        {"place": "end"},
        {"init": "one"},
        {"norm_weight_decay": -1},
    ],
)
def test_bad_settings_are_named(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=f"{name} is {bad[name]!r}; it must be"):
        ChannelTuning(**bad)


def test_bad_models_and_missing_data_are_named():
    with pytest.raises(ValueError, match="channels is 49; it must be 1 to 48, the width of block 0"):
        ChannelTuning(channels=49).prepare_model(vit())
    with pytest.raises(ValueError, match="norm_weight_decay is -1; it must be at least 0"):
        LayerNormTuning(norm_weight_decay=-1)
    method = ChannelTuning()
    with pytest.raises(ValueError, match="petl_channels has no data"):
        method.before_step(method.prepare_model(vit()), START)


@pytest.mark.parametrize("method", [LayerNormTuning, ChannelTuning])
def test_every_setting_has_a_type_and_an_explanation(method):
    for parameter in inspect.signature(method).parameters.values():
        assert parameter.annotation is not parameter.empty
        assert f"        {parameter.name}: " in method.__doc__
