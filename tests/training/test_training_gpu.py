"""Training on CUDA: it learns, and under ``deterministic`` it resumes to the bit."""

import dataclasses

import pytest
import torch

from repertory.data import load
from repertory.nn import ConvNet
from repertory.training import FitSettings
from repertory.training.engine import fit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SETTINGS = FitSettings(epochs=4, batch_size=64, accelerator="gpu", deterministic=True, tensorboard=False)


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def network():
    torch.manual_seed(0)
    return ConvNet(num_classes=10, in_chans=1, width=8)


def test_digits_are_learnt(digits, tmp_path):
    assert fit(network(), digits, out=tmp_path, settings=SETTINGS).metrics["top1"] > 0.8


def test_a_run_in_two_parts_is_the_uncut_run(digits, tmp_path):
    uncut = fit(network(), digits, out=tmp_path / "uncut", settings=dataclasses.replace(SETTINGS, schedule="constant"))
    half = dataclasses.replace(SETTINGS, schedule="constant", epochs=2)
    fit(network(), digits, out=tmp_path / "cut", settings=half)
    whole = dataclasses.replace(half, epochs=4)
    resumed = fit(network(), digits, out=tmp_path / "cut", settings=whole, resume=True)
    for name, value in uncut.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_half_precision_stays_finite(digits, tmp_path, precision):
    settings = dataclasses.replace(SETTINGS, precision=precision, epochs=1, deterministic=False)
    assert fit(network(), digits, out=tmp_path, settings=settings).metrics["loss"] < 3
