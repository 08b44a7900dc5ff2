"""What the tests of training share: digits in memory, small networks, methods that watch or kill."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import torch
from sklearn.datasets import load_digits
from torch import nn

from repertory.training import FitSettings, Method
from repertory.training.engine import run_job

QUICK = {"accelerator": "cpu", "tensorboard": False, "batch_size": 32, "lr": 0.05}


class Images(torch.utils.data.Dataset):
    def __init__(self, images, labels):
        self.images, self.targets = images, [int(label) for label in labels]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.targets[index], index


def digits(train=160, val=64):
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1
    return SimpleNamespace(
        name="digits",
        classes=[str(digit) for digit in range(10)],
        train=Images(images[:train], found.target[:train]),
        val=Images(images[train : train + val], found.target[train : train + val]),
    )


def settings(**changes):
    return FitSettings(**{**QUICK, **changes})


def plain_net(seed=0):
    """No batch norm, no dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 24), nn.ReLU(), nn.Linear(24, 10)
    )


def normed_net(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(96, 10)
    )


def small_vit(seed=0):
    """A vision transformer, which every method can train: convolution, attention, layer norms, one linear head."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(seed)
    return VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2
    )


class MovingAverage(Method):
    """Keeps state from step to step: the mean of the weights so far is what is evaluated."""

    name = "moving_average"

    def __init__(self):
        self.mean = {}

    def after_step(self, model, progress):
        for name, weight in model.state_dict().items():
            old = self.mean.get(name, torch.zeros_like(weight))
            self.mean[name] = old + (weight - old) / progress.step if weight.is_floating_point() else weight.clone()

    def evaluation_model(self, model, train_loader):
        import copy

        averaged = copy.deepcopy(model)
        averaged.load_state_dict(self.mean)
        return averaged

    def state_dict(self):
        return {"mean": self.mean}

    def load_state_dict(self, state):
        self.mean = dict(state["mean"])


class Noise(Method):
    """Draws from torch's generator in every step, as dropout and mixing do."""

    name = "noise"

    def transform_batch(self, batch, progress):
        batch.images = batch.images + 0.1 * torch.randn_like(batch.images)
        return batch


class Kill(MovingAverage):
    """Ends the process by SIGKILL in the middle of a step; otherwise the method it resumes as."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def transform_batch(self, batch, progress):
        if progress.step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)
        return batch


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def run_all(jobs, report):
    """Take part in several runs, one after the other: what the two processes of a test are started for."""
    return [run_job(job, report) for job in jobs]


def furthest(first, second):
    return max(float((first[n].double() - second[n].double()).abs().max()) for n in first)
