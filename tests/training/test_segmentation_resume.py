"""A segmentation run that is cut and resumed gives the weights of the run that was not, to the bit."""

import multiprocessing
import os
import signal

import pytest
import torch
from segmentation_cases import Segmentor, settings, squares
from training_cases import MovingAverage, Noise, assert_same, weights

from repertory.training import fit
from repertory.training.checkpoint import load_checkpoint


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(out, progress=None, resume=False, **changes):
    chosen = {"epochs": 3, "augment": "scale-crop-flip", "checkpoint_steps": 2, "ohem": 0.7, "ohem_kept": 500}
    return fit(
        Segmentor(dropout=0.2),
        squares(),
        [Noise(), MovingAverage()],
        out=out,
        settings=settings(**chosen, **changes),
        resume=resume,
        progress=progress,
    )


def killed_at(images):
    def progress(done, total):
        if done >= images:
            os.kill(os.getpid(), signal.SIGKILL)

    return progress


@pytest.mark.parametrize(
    ("step", "changes"), [(7, {}), (4, {"workers": 2}), (5, {"optimizer": "adamw", "lr": 1e-3, "accumulate": 2})]
)
def test_killed_and_resumed_gives_the_same_bits(tmp_path, step, changes):
    whole = run(tmp_path / "whole", **changes)
    process = multiprocessing.get_context("fork").Process(
        target=run, args=(tmp_path / "cut", killed_at(step * 8)), kwargs=changes
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert load_checkpoint(tmp_path / "cut" / "checkpoints" / "last.ckpt")["position"]["step"] < whole.steps
    resumed = run(tmp_path / "cut", resume=True, **changes)
    ends = [load_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")["model"] for name in ("whole", "cut")]
    assert_same(*ends)
    assert_same(weights(whole.model), weights(resumed.model))
    assert (resumed.metrics, resumed.images, resumed.steps) == (whole.metrics, whole.images, whole.steps)
    assert resumed.curves == whole.curves


def test_other_settings_of_segmentation_do_not_resume_a_run(tmp_path):
    run(tmp_path)
    with pytest.raises(ValueError, match=r"aux_weight is 1.0, but the run in .* was started with 0.4"):
        run(tmp_path, resume=True, aux_weight=1.0)
