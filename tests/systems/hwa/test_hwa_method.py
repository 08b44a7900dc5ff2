"""HWA as a training method, in a hand-written loop and under the engine."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from repertory.data import load
from repertory.evidence import Context, Scale
from repertory.nn import ConvNet
from repertory.systems.hwa import Hwa
from repertory.systems.hwa.baselines import AveragedWeights
from repertory.systems.hwa.experiment import EXPERIMENT
from repertory.training.engine import fit
from repertory.training.method import Batch, Progress
from repertory.training.settings import FitSettings


def network(seed: int = 0) -> ConvNet:
    torch.manual_seed(seed)
    return ConvNet(10, width=4)


def batches(count: int, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Batch(torch.randn(8, 1, 8, 8, generator=generator), torch.arange(8) % 10, torch.arange(8)) for _ in range(count)
    ]


def loop(method: Hwa, replicas: nn.ModuleList, steps: int, per_epoch: int, start: int = 0) -> list[int]:
    """The slots in their order; returns the steps after which all replicas were equal."""
    optimizer = method.build_optimizer(replicas, torch.optim.SGD(replicas.parameters(), lr=0.05, momentum=0.9))
    together = []
    for step in range(start, steps):
        method.before_step(replicas, Progress(step, step // per_epoch, steps))
        optimizer.zero_grad()
        for k, replica in enumerate(replicas):
            batch = batches(1, seed=10 * step + k)[0]
            nn.functional.cross_entropy(replica(batch.images), batch.labels).backward()
        optimizer.step()
        method.after_step(replicas, Progress(step + 1, (step + 1) // per_epoch, steps))
        if torch.equal(replicas[0].head.weight, replicas[1].head.weight):
            together.append(step + 1)
    return together


def pair() -> nn.ModuleList:
    first = network()
    return nn.ModuleList([first, copy.deepcopy(first)])


def test_replicas_meet_every_h_steps_and_at_the_end_of_the_run():
    assert loop(Hwa(replicas=2, period=3), pair(), steps=8, per_epoch=4) == [3, 6, 8]


def test_without_a_period_replicas_meet_at_the_end_of_each_epoch():
    assert loop(Hwa(replicas=2), pair(), steps=7, per_epoch=3) == [3, 6, 7]


def test_evaluation_gives_one_new_network_and_leaves_the_replicas_unchanged():
    method, replicas = Hwa(replicas=2, period=2, window=2), pair()
    loop(method, replicas, steps=5, per_epoch=5)
    before = copy.deepcopy(replicas.state_dict())
    evaluated = method.evaluation_model(replicas, batches(3))
    assert isinstance(evaluated, ConvNet)
    assert all(torch.equal(value, before[name]) for name, value in replicas.state_dict().items())
    with torch.no_grad():
        mean = torch.stack([replica.head.weight for replica in replicas]).mean(0)
    assert not torch.equal(evaluated.head.weight, mean)
    assert int(evaluated.body[1].num_batches_tracked) == 3


def test_one_method_object_may_train_a_second_run():
    method = Hwa(replicas=2, period=2, window=5)
    loop(method, pair(), steps=6, per_epoch=3)
    loop(method, pair(), steps=4, per_epoch=3)
    assert method.state_dict()["window"]["count"] == 2


def test_bad_settings_are_refused_by_name():
    for argument in ("replicas", "period", "window", "batch_norm_batches"):
        with pytest.raises(ValueError, match=f"{argument} is 0; it must be at least 1"):
            Hwa(**{argument: 0})
    with pytest.raises(ValueError, match="optimizer_state is 'drop'"):
        Hwa(optimizer_state="drop")
    with pytest.raises(ValueError, match="batch_norm is 'none'"):
        Hwa(batch_norm="none")
    with pytest.raises(ValueError, match="replicas is 3, but the model given holds 1"):
        Hwa(replicas=3).before_step(network(), Progress(0, 0, 4))


SETTINGS = FitSettings(
    max_images=1280, batch_size=32, lr=0.05, accelerator="cpu", evaluate_every=0, tensorboard=False, checkpoint_steps=7
)


@pytest.fixture(scope="module")
def digits():
    return load("digits")


class StoppedError(Exception):
    pass


def test_a_run_cut_in_a_cycle_and_resumed_by_the_engine_is_the_uncut_run(tmp_path, digits):
    def method():
        return Hwa(replicas=2, period=4, window=3, optimizer_state="average")

    whole = fit(network(), digits, [method()], out=tmp_path / "whole", settings=SETTINGS, progress=False)

    def stop(done: int, total: int) -> None:
        if done >= 640:
            raise StoppedError

    with pytest.raises(StoppedError):
        fit(network(), digits, [method()], out=tmp_path / "cut", settings=SETTINGS, progress=stop)
    resumed = fit(network(), digits, [method()], out=tmp_path / "cut", settings=SETTINGS, resume=True, progress=False)
    assert (whole.images, whole.steps) == (1280, 20)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_one_replica_and_a_window_of_one_evaluates_plain_training(tmp_path, digits):
    plain = fit(network(), digits, out=tmp_path / "plain", settings=SETTINGS, progress=False)
    hwa = Hwa(replicas=1, period=4, window=1, batch_norm="average")
    averaged = fit(network(), digits, [hwa], out=tmp_path / "hwa", settings=SETTINGS, progress=False)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(averaged.model.state_dict()[name], value), name


@pytest.mark.parametrize("decay", [None, 0.5])
def test_the_compared_averages_are_those_of_torch(decay):
    from torch.optim.swa_utils import get_ema_multi_avg_fn

    model, method = nn.Linear(2, 2), AveragedWeights(start=0.5, period=2, decay=decay)
    expected = AveragedModel(model, multi_avg_fn=None if decay is None else get_ema_multi_avg_fn(decay))
    for step in range(12):
        method.before_step(model, Progress(step, 0, 12))
        with torch.no_grad():
            model.weight.add_(step)
        method.after_step(model, Progress(step + 1, 0, 12))
        if step + 1 in (8, 10, 12):
            expected.update_parameters(model)
        if step == 8:  # as a resumed run does
            resumed = AveragedWeights(start=0.5, period=2, decay=decay)
            resumed.load_state_dict(method.state_dict())
            method = resumed
    assert torch.equal(method.evaluation_model(model, []).weight, expected.module.weight)


@pytest.mark.parametrize(
    "arm",
    [pytest.param(arm.name, marks=[] if arm.name == "hwa" else pytest.mark.slow) for arm in EXPERIMENT.arms],
)
def test_every_arm_runs_on_the_same_number_of_images(arm, tmp_path):
    scale = Scale(1, 512, {**EXPERIMENT.scales["smoke"].settings, "width": 2})
    result = EXPERIMENT.run(EXPERIMENT.arm(arm), 0, scale, Context(tmp_path, {}, lambda done, total: None))
    assert result.images == 512
    assert 0 <= result.metrics[EXPERIMENT.metric] <= 100
