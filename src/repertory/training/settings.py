"""How a model is trained: one frozen record, from which the command line derives its options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "constant", "step")
ACCELERATORS = ("cpu", "gpu", "mps", "auto")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true")
AUGMENTATIONS = ("none", "flip", "crop", "crop-flip", "resized-crop-flip")


@dataclass(frozen=True)
class FitSettings:
    """Settings of one training run; what a method or a model wants of its own is not here.

    Args:
        epochs: passes over the training data (a method's sampler says what a pass is); max_images overrides it.
        max_images: images through forward and backward in the whole run; 0 leaves the length to epochs.
        batch_size: images an optimiser step takes over all devices and accumulated parts; replicas take as many each.
        optimizer: sgd or adamw; a method may replace it.
        lr: learning rate after warm-up.
        momentum: momentum of sgd; the first beta of adamw stays 0.9.
        nesterov: Nesterov momentum for sgd.
        weight_decay: decay of every parameter; decoupled in adamw.
        schedule: cosine (to zero), constant, or step (a tenth at one half and again at three quarters of the run).
        warmup_epochs: epochs over which the learning rate rises linearly to lr; fractions are allowed.
        label_smoothing: share of the target spread evenly over the classes, 0 to below 1.
        clip_grad: largest norm of the gradient (of each replica); 0 leaves it alone.
        seed: seed of sample order, augmentation, dropout and every other draw of the run.
        devices: processes on this node, one a device; 2 on a CPU gives two processes.
        num_nodes: nodes; more than one must be started by torchrun or SLURM, one process a device.
        accelerator: cpu, gpu, mps, or auto for what is there.
        precision: 32-true, bf16-mixed, 16-mixed or 64-true.
        accumulate: parts into which a process splits its share of the batch, one after the other, to save memory.
        workers: loader processes for each device; 0 loads in the training process.
        sync_batchnorm: share the statistics of batch norm over all devices.
        deterministic: refuse operations without a deterministic implementation (needed for exact resume on CUDA).
        augment: none, flip, crop (pad an eighth, crop back), crop-flip, or resized-crop-flip (8-100% of the area).
        checkpoint_steps: write a checkpoint after so many steps.
        checkpoint_seconds: write a checkpoint after so many seconds, whichever comes first.
        evaluate_every: evaluate on the validation data after so many epochs; 0 only at the end.
        log_steps: write a row of training losses after so many steps, averaged over them.
        tensorboard: write TensorBoard events beside metrics.csv.
    """

    epochs: int = 10
    max_images: int = 0
    batch_size: int = 128
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    warmup_epochs: float = 0.0
    label_smoothing: float = 0.0
    clip_grad: float = 0.0
    seed: int = 0
    devices: int = 1
    num_nodes: int = 1
    accelerator: str = "auto"
    precision: str = "32-true"
    accumulate: int = 1
    workers: int = 0
    sync_batchnorm: bool = False
    deterministic: bool = False
    augment: str = "none"
    checkpoint_steps: int = 200
    checkpoint_seconds: float = 120.0
    evaluate_every: int = 1
    log_steps: int = 20
    tensorboard: bool = True

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            _at_least(name, getattr(self, name), least)
        for name, choices in _CHOICES.items():
            _one_of(name, getattr(self, name), choices)
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it must be at least 0 and below 1")
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}; it must be above 0")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum above 0, momentum is 0")
        parts = self.devices * self.num_nodes * self.accumulate
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of devices x num_nodes x accumulate = "
                f"{self.devices} x {self.num_nodes} x {self.accumulate} = {parts}"
            )

    @property
    def world(self) -> int:
        """Processes in the whole run."""
        return self.devices * self.num_nodes

    @property
    def micro_batch(self) -> int:
        """Images of one forward pass of one process."""
        return self.batch_size // (self.world * self.accumulate)


_LEAST: dict[str, float] = {
    "epochs": 1,
    "max_images": 0,
    "batch_size": 1,
    "momentum": 0,
    "weight_decay": 0,
    "warmup_epochs": 0,
    "clip_grad": 0,
    "seed": 0,
    "devices": 1,
    "num_nodes": 1,
    "accumulate": 1,
    "workers": 0,
    "checkpoint_steps": 1,
    "checkpoint_seconds": 0,
    "evaluate_every": 0,
    "log_steps": 1,
}
_CHOICES: dict[str, Sequence[str]] = {
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "accelerator": ACCELERATORS,
    "precision": PRECISIONS,
    "augment": AUGMENTATIONS,
}


def _at_least(name: str, value: Any, least: float) -> None:
    if not isinstance(value, (int, float)) or not value >= least:
        raise ValueError(f"{name} is {value!r}; it must be at least {least}")


def _one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")
