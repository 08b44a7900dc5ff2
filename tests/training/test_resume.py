"""A run that is cut and resumed gives the weights of the run that was not, to the bit."""

import multiprocessing
import os
import random
import signal
import time

import pytest
import torch
from training_cases import Kill, MovingAverage, Noise, assert_same, digits, normed_net, plain_net, settings, weights

from repertory.systems.bake.method import Bake
from repertory.systems.hwa.method import Hwa
from repertory.training import CheckpointError, fit
from repertory.training.checkpoint import load_checkpoint, save_checkpoint

EPOCH = 5  # steps: 160 images in batches of 32


@pytest.fixture(autouse=True)
def one_thread():
    """Equal thread counts are part of the promise, and a forked process has only one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def in_another_process(target, *arguments):
    """Run ``target`` in a forked process; its exit code, negative for the signal that ended it."""
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    process.join(120)
    return process.exitcode


def run(out, methods=None, resume=False, progress=None, **changes):
    chosen = {"epochs": 4, "augment": "crop-flip", "checkpoint_steps": 1, "label_smoothing": 0.1, **changes}
    return fit(
        normed_net(dropout=0.2),
        digits(),
        methods or [Noise(), MovingAverage()],
        out=out,
        settings=settings(**chosen),
        resume=resume,
        progress=progress,
    )


def kill_after(step):
    def progress(done, total):
        if done >= step * 32:
            os.kill(os.getpid(), signal.SIGKILL)

    return progress


def assert_resumes_exactly(tmp_path, cut, **changes):
    whole = run(tmp_path / "whole", **changes)
    assert in_another_process(cut, tmp_path / "cut") == -signal.SIGKILL
    assert load_checkpoint(tmp_path / "cut" / "checkpoints" / "last.ckpt")["position"]["step"] < whole.steps
    resumed = run(tmp_path / "cut", resume=True, **changes)
    ends = [load_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "cut")]
    assert_same(ends[0]["model"], ends[1]["model"])
    assert_same(weights(whole.model), weights(resumed.model))
    assert (resumed.metrics, resumed.images, resumed.steps) == (whole.metrics, whole.images, whole.steps)
    assert resumed.curves == whole.curves
    return ends


@pytest.mark.parametrize("step", [EPOCH, random.Random().randrange(1, 4 * EPOCH)], ids=["between epochs", "random"])
def test_killed_and_resumed_gives_the_same_bits(tmp_path, step):
    assert_resumes_exactly(tmp_path, lambda out: run(out, progress=kill_after(step)))


def test_killed_in_the_middle_of_a_step_after_steps_that_were_not_saved(tmp_path):
    changes = {"checkpoint_steps": 3}
    assert_resumes_exactly(tmp_path, lambda out: run(out, [Noise(), Kill(8)], **changes), **changes)


def test_killed_with_two_loader_workers(tmp_path):
    changes = {"workers": 2}
    assert_resumes_exactly(tmp_path, lambda out: run(out, progress=kill_after(7), **changes), **changes)
    assert multiprocessing.active_children() == []


def test_killed_between_accumulated_steps_of_adamw(tmp_path):
    changes = {"accumulate": 2, "optimizer": "adamw", "lr": 1e-3, "warmup_epochs": 1, "checkpoint_steps": 2}
    assert_resumes_exactly(tmp_path, lambda out: run(out, progress=kill_after(9), **changes), **changes)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("attempt", range(8))
def test_killed_at_a_random_moment_even_more_than_once(tmp_path, workers, attempt):
    changes = {"workers": workers, "epochs": 12, "checkpoint_steps": 4, "evaluate_every": 3}
    whole = run(tmp_path / "whole", **changes)
    draws = random.Random()
    for _ in range(2):
        process = multiprocessing.get_context("fork").Process(
            target=lambda: run(tmp_path / "cut", resume=True, **changes)
        )
        process.start()
        time.sleep(draws.uniform(0.05, 1.2))
        process.kill()
        process.join()
    resumed = run(tmp_path / "cut", resume=True, **changes)
    assert_same(weights(whole.model), weights(resumed.model))
    assert resumed.metrics == whole.metrics
    assert resumed.curves == whole.curves


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_says_so(tmp_path, number):
    def interrupt(done, total):
        if done == 6 * 32:
            os.kill(os.getpid(), number)

    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    whole = run(tmp_path / "whole", checkpoint_steps=200)
    cut = run(tmp_path / "cut", progress=interrupt, checkpoint_steps=200)
    assert cut.interrupted == number
    assert cut.steps == 7
    assert cut.metrics == {}
    resumed = run(tmp_path / "cut", resume=True, checkpoint_steps=200)
    assert resumed.interrupted is None
    assert_same(weights(whole.model), weights(resumed.model))
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_finished_run_resumed_gives_its_result_again(tmp_path):
    first = run(tmp_path)
    again = run(tmp_path, resume=True)
    assert_same(weights(first.model), weights(again.model))
    assert (again.metrics, again.steps, again.curves, again.best) == (
        first.metrics,
        first.steps,
        first.curves,
        first.best,
    )


def test_a_run_may_be_lengthened(tmp_path):
    fit(plain_net(), digits(), out=tmp_path / "two", settings=settings(epochs=2, schedule="constant"))
    longer = fit(
        plain_net(), digits(), out=tmp_path / "two", settings=settings(epochs=4, schedule="constant"), resume=True
    )
    whole = fit(plain_net(), digits(), out=tmp_path / "four", settings=settings(epochs=4, schedule="constant"))
    assert_same(weights(whole.model), weights(longer.model))


def test_without_resume_an_earlier_run_is_replaced(tmp_path):
    fit(plain_net(), digits(), out=tmp_path, settings=settings(epochs=3))
    again = fit(plain_net(), digits(), out=tmp_path, settings=settings(epochs=1))
    assert len(again.curves["val_top1"]) == 1
    assert load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["position"]["step"] == EPOCH


@pytest.mark.parametrize(
    ("model", "methods", "changes", "sentence"),
    [
        (normed_net, [], {}, r"last.ckpt is of another model: .* is missing"),
        (plain_net, [Noise()], {}, "methods are noise, but the run in .* was started with no method"),
        (plain_net, [], {"seed": 1}, "seed is 1, but the run in .* was started with 0"),
        (plain_net, [], {"batch_size": 16}, "batch_size is 16, but"),
    ],
)
def test_another_run_is_not_resumed(tmp_path, model, methods, changes, sentence):
    fit(plain_net(), digits(), out=tmp_path, settings=settings(epochs=1))
    with pytest.raises(ValueError, match=sentence):
        fit(model(), digits(), methods, out=tmp_path, settings=settings(epochs=2, **changes), resume=True)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_leaves_the_old_checkpoint_whole(tmp_path):
    fit(plain_net(), digits(), out=tmp_path, settings=settings(epochs=1))
    last = tmp_path / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    last.with_name("last.ckpt.partial").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"cannot write .*last.ckpt \(No space left on device\); .* is intact"):
        fit(plain_net(), digits(), out=tmp_path, settings=settings(epochs=2), resume=True)
    assert last.read_bytes() == before
    fit(plain_net(), digits(), out=tmp_path, settings=settings(epochs=2), resume=True)


def test_a_write_cut_half_way_leaves_the_old_checkpoint_whole(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    save_checkpoint({"model": {}, "step": 1}, path)
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_checkpoint({"model": {}, "step": 2}, path)
    assert load_checkpoint(path)["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"last.ckpt cannot be read as a checkpoint"):
        load_checkpoint(path)


def test_bake_and_hwa_together_resume_exactly(tmp_path):
    def interrupt(done, total):
        if done == 12 * 64:
            signal.raise_signal(signal.SIGTERM)

    changes = {"max_images": 20 * 64, "epochs": 1}
    whole = run(tmp_path / "whole", [Bake(), Hwa(window=2)], **changes)
    cut = run(tmp_path / "cut", [Bake(), Hwa(window=2)], progress=interrupt, **changes)
    assert (cut.interrupted, cut.steps) == (signal.SIGTERM, 13)
    resumed = run(tmp_path / "cut", [Bake(), Hwa(window=2)], resume=True, **changes)
    assert resumed.images == 20 * 64
    assert_same(weights(whole.model), weights(resumed.model))
