"""Two processes on a CPU take the steps that one takes at the same global batch."""

import copy
import os
import signal
import threading

import pytest
import torch
from torch import nn
from training_cases import (
    Kill,
    MovingAverage,
    assert_same,
    digits,
    furthest,
    normed_net,
    plain_net,
    run_all,
    settings,
    small_vit,
    weights,
)

from repertory.errors import NonFiniteError
from repertory.systems.bake.method import Bake
from repertory.systems.petl_two_stage.method import ChannelTuning
from repertory.systems.scalable_transformers.method import ScalableTraining
from repertory.training import Method, fit
from repertory.training.checkpoint import load_checkpoint
from repertory.training.engine import Job
from repertory.training.processes import start
from repertory.training.sync_batchnorm import SyncBatchNorm, convert_sync_batchnorm, revert_sync_batchnorm

STEPS = 20
LENGTH = {"max_images": STEPS * 32, "augment": "flip", "evaluate_every": 0}


CASES = {
    "plain": (plain_net, [MovingAverage()], {}),
    "synchronised": (normed_net, [], {"sync_batchnorm": True}),
    "bake": (plain_net, [Bake(omega=0.9, partners=1)], {}),
    "scalable": (small_vit, [ScalableTraining(heads=(4, 2), depths=(2, 1), resolutions=(8, 6))], {"lr": 0.01}),
    "channels": (small_vit, [ChannelTuning(channels=4)], {}),
    "apart": (normed_net, [], {}),
}


def both(tmp_path, model, methods=(), **changes):
    """The results of one process and of two."""
    run = {**LENGTH, **changes}
    one = fit(model, digits(), methods, out=tmp_path / "one", settings=settings(**run))
    two = fit(model, digits(), methods, out=tmp_path / "two", settings=settings(devices=2, **run))
    return one, two


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Every case on one process and on two; the two are started once for all cases, which is what takes the time."""
    folder = tmp_path_factory.mktemp("pairs")
    jobs = [
        Job(model(), digits(), methods, folder / name, settings(devices=2, **LENGTH, **changes), False)
        for name, (model, methods, changes) in CASES.items()
    ]
    two = dict(zip(CASES, start(run_all, jobs, 2, lambda done, total: None)))
    one = {
        name: fit(model(), digits(), methods, out=folder / f"{name}-alone", settings=settings(**LENGTH, **changes))
        for name, (model, methods, changes) in CASES.items()
    }
    return folder, one, two


@pytest.mark.parametrize("name", ["plain", "synchronised", "bake", "scalable", "channels"])
def test_two_processes_equal_one_at_the_same_global_batch(pairs, name):
    folder, one, two = pairs[0], pairs[1][name], pairs[2][name]
    assert (one.steps, one.images) == (two.steps, two.images) == (STEPS, STEPS * 32)
    assert furthest(weights(one.model), weights(two.model)) < 1e-5
    assert two.metrics == pytest.approx(one.metrics, abs=1e-4)
    assert two.curves["train_loss"][-1][0] == STEPS * 32
    best = load_checkpoint(folder / name / "checkpoints" / "best.ckpt")
    assert_same(best["model"], weights(two.model))


def test_without_synchronised_batch_norm_two_processes_differ_from_one(pairs):
    assert furthest(weights(pairs[1]["apart"].model), weights(pairs[2]["apart"].model)) > 1e-4


def test_the_model_of_a_synchronised_run_has_ordinary_batch_norms(pairs):
    assert type(pairs[2]["synchronised"].model[1]) is nn.BatchNorm2d


@pytest.mark.slow
def test_fit_starts_its_own_processes(tmp_path):
    one, two = both(tmp_path, plain_net())
    assert furthest(weights(one.model), weights(two.model)) < 1e-5


@pytest.mark.slow
def test_two_processes_accumulating_equal_one_that_does_not(tmp_path):
    one = fit(plain_net(), digits(), out=tmp_path / "one", settings=settings(**LENGTH))
    two = fit(plain_net(), digits(), out=tmp_path / "two", settings=settings(devices=2, accumulate=2, **LENGTH))
    assert furthest(weights(one.model), weights(two.model)) < 1e-5


@pytest.mark.slow
def test_a_run_of_two_processes_resumes_exactly_after_one_is_killed(tmp_path):
    run = settings(devices=2, checkpoint_steps=4, epochs=4)
    whole = fit(normed_net(dropout=0.2), digits(), [MovingAverage()], out=tmp_path / "whole", settings=run)
    with pytest.raises(RuntimeError, match="training process"):
        fit(normed_net(dropout=0.2), digits(), [Kill(10)], out=tmp_path / "cut", settings=run)
    resumed = fit(normed_net(dropout=0.2), digits(), [MovingAverage()], out=tmp_path / "cut", settings=run, resume=True)
    assert_same(weights(whole.model), weights(resumed.model))


@pytest.mark.slow
def test_a_signal_to_the_caller_stops_both_processes_after_the_same_step(tmp_path):
    def interrupt(done, total):
        if done == 3 * 32:
            os.kill(os.getpid(), signal.SIGTERM)

    run = settings(devices=2, epochs=400)
    result = fit(plain_net(), digits(), out=tmp_path, settings=run, progress=interrupt)
    assert result.interrupted == signal.SIGTERM
    saved = load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert saved["position"]["step"] == result.steps
    assert_same(saved["model"], weights(result.model))


@pytest.mark.slow
def test_an_error_in_a_process_is_raised_here(tmp_path):
    data = digits()
    data.train.images = torch.full_like(data.train.images, float("nan"))
    with pytest.raises(NonFiniteError, match="loss is nan at step 0"):
        fit(plain_net(), data, out=tmp_path, settings=settings(devices=2))


class Unpicklable(Method):
    def __init__(self):
        self.lock = threading.Lock()


def test_what_cannot_be_sent_to_other_processes_is_said(tmp_path):
    with pytest.raises(TypeError, match="devices is 2, so the model, the data and the methods are sent"):
        fit(plain_net(), digits(), [Unpicklable()], out=tmp_path, settings=settings(devices=2))


def test_several_nodes_need_an_outside_starter(tmp_path):
    with pytest.raises(ValueError, match="num_nodes is 2: start the same command on every node"):
        fit(plain_net(), digits(), out=tmp_path, settings=settings(num_nodes=2))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_synchronised_batch_norm_alone_is_batch_norm(momentum):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.BatchNorm2d(3, momentum=momentum))
    nn.init.uniform_(plain[0].weight)
    plain.append(nn.Conv2d(3, 2, 1))
    shared = convert_sync_batchnorm(copy.deepcopy(plain))
    assert isinstance(shared[0], SyncBatchNorm)
    for _ in range(2):
        x = torch.randn(4, 3, 5, 5) * 3 + 2
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        ys = [net(given) for net, given in zip((plain, shared), inputs)]
        torch.testing.assert_close(ys[1], ys[0])
        for y in ys:
            y.square().sum().backward()
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(shared.state_dict(), plain.state_dict())
    torch.testing.assert_close(shared.eval()(x), plain.eval()(x))
    restored = revert_sync_batchnorm(shared)
    assert type(restored[0]) is nn.BatchNorm2d
    torch.testing.assert_close(restored.state_dict(), plain.state_dict())


def test_synchronised_batch_norm_keeps_the_activation_that_timm_folds_in():
    from timm.layers import BatchNormAct2d

    plain = nn.Sequential(BatchNormAct2d(3))
    shared = convert_sync_batchnorm(nn.Sequential(BatchNormAct2d(3)))
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(shared(x), plain(x))
    assert shared.state_dict().keys() == plain.state_dict().keys()
