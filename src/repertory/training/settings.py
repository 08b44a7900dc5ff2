"""How a model is trained: one frozen record, from which the command line derives its options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "constant", "step", "poly")
ACCELERATORS = ("cpu", "gpu", "mps", "auto")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true")
AUGMENTATIONS = ("none", "flip", "crop", "crop-flip", "resized-crop-flip")
MASK_AUGMENTATIONS = ("none", "flip", "crop", "crop-flip", "scale-crop-flip")
INFERENCES = ("whole", "resized", "sliding")


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
        schedule: cosine (to zero), constant, step (a tenth at one half and again at three quarters of the run), or
            poly (the share of the run that is left, to the power poly_power).
        poly_power: exponent of the poly schedule.
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
    poly_power: float = 0.9
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

    choices: ClassVar[Mapping[str, Sequence[str]]] = {
        "optimizer": OPTIMIZERS,
        "schedule": SCHEDULES,
        "accelerator": ACCELERATORS,
        "precision": PRECISIONS,
        "augment": AUGMENTATIONS,
    }

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            _at_least(name, getattr(self, name), least)
        for name, choices in self.choices.items():
            _one_of(name, getattr(self, name), choices)
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it must be at least 0 and below 1")
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}; it must be above 0")
        if not self.poly_power > 0:
            raise ValueError(f"poly_power is {self.poly_power}; it must be above 0")
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


@dataclass(frozen=True)
class SegmentationSettings(FitSettings):
    """Settings of a run that trains semantic segmentation.

    Args:
        batch_size: images an optimiser step takes over all devices and accumulated parts.
        lr: learning rate after warm-up.
        schedule: poly (the share of the run that is left, to the power poly_power), cosine, constant or step.
        augment: none, flip, crop (pad an eighth, crop back), crop-flip, or scale-crop-flip (a random scale between
            scale_min and scale_max, then a crop of the model's size anywhere); image and mask together.
        scale_min: smallest scale of scale-crop-flip, as a factor of the picture's own size.
        scale_max: largest scale of scale-crop-flip.
        aux_weight: factor of the loss of each auxiliary output beside the main one.
        ohem: train on hard pixels alone: those whose true class has at most this probability; 0 trains on all.
        ohem_kept: pixels of a batch that ohem keeps at least, for all that they may be easy.
        inference: how pictures are evaluated: whole (in one pass at their own size), resized (in one pass, the shorter
            side brought to the model's, the scores back), or sliding (in windows of the model's size).
        overlap: share of a sliding window that the next one covers again.
        scales: factors of the picture's size whose scores are averaged in evaluation.
        mirror: average the scores of the mirrored picture too, in evaluation.
    """

    batch_size: int = 8
    lr: float = 0.01
    schedule: str = "poly"
    augment: str = "scale-crop-flip"
    scale_min: float = 0.5
    scale_max: float = 2.0
    aux_weight: float = 0.4
    ohem: float = 0.0
    ohem_kept: int = 100_000
    inference: str = "whole"
    overlap: float = 1 / 3
    scales: tuple[float, ...] = (1.0,)
    mirror: bool = False

    choices: ClassVar[Mapping[str, Sequence[str]]] = {
        **FitSettings.choices,
        "augment": MASK_AUGMENTATIONS,
        "inference": INFERENCES,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "scales", tuple(float(scale) for scale in self.scales))
        _at_least("aux_weight", self.aux_weight, 0)
        _at_least("ohem_kept", self.ohem_kept, 0)
        if not 0 < self.scale_min <= self.scale_max:
            raise ValueError(
                f"scale_min and scale_max are {self.scale_min} and {self.scale_max}; they must be above 0, "
                "the first not above the second"
            )
        if not 0 <= self.ohem <= 1:
            raise ValueError(f"ohem is {self.ohem}; it must be a probability, or 0 for all pixels")
        if self.ohem and self.label_smoothing:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; with ohem it must be 0")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap is {self.overlap}; it must be at least 0 and below 1")
        if not self.scales or not min(self.scales) > 0:
            raise ValueError(f"scales is {self.scales}; it must name one factor or more, each above 0")

    @classmethod
    def of(cls, settings: FitSettings) -> SegmentationSettings:
        """``settings`` themselves, or plain ones with what segmentation adds at its defaults."""
        return settings if isinstance(settings, cls) else cls(**asdict(settings))


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


def _at_least(name: str, value: Any, least: float) -> None:
    if not isinstance(value, (int, float)) or not value >= least:
        raise ValueError(f"{name} is {value!r}; it must be at least {least}")


def _one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")
