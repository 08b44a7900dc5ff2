"""Training from a model, data and methods to an evaluated model, on one process or many, resumable to the bit."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from repertory.training.checkpoint import load_checkpoint
from repertory.training.method import Method
from repertory.training.reporting import Report, reporting
from repertory.training.settings import FitSettings, SegmentationSettings

TASKS = ("classification", "segmentation")


@dataclass
class FitResult:
    """What a run gave.

    ``model``, on the CPU in evaluation mode, is the one the methods want evaluated, and ``metrics`` are its figures on
    the validation data: ``top1``, ``top1_error``, ``ece`` as fractions, ``loss`` in nats; of segmentation ``miou``,
    ``pixel_accuracy``, ``mean_accuracy`` as fractions, ``loss``. ``best`` are those of the best evaluation by top1 (or
    miou), with its ``step`` (its weights are in ``checkpoints/best.ckpt``). ``curves`` maps each
    recorded quantity to (images processed, value). ``images`` went through forward and backward in ``steps`` optimiser
    steps and ``seconds``, all counted over resumed parts. ``interrupted`` is the number of the signal that ended the
    run early (then ``metrics`` is empty and ``model`` as trained so far), or None.
    """

    model: nn.Module
    metrics: dict[str, float]
    best: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    images: int = 0
    steps: int = 0
    epochs: int = 0
    seconds: float = 0.0
    interrupted: int | None = None


@dataclass
class Job:
    """All that a process needs to take part in a run."""

    model: nn.Module
    data: Any
    methods: list[Method]
    out: Path
    settings: FitSettings
    resume: bool


def fit(
    model: nn.Module,
    data: Any,
    methods: Sequence[Method] = (),
    *,
    out: Path | str,
    settings: FitSettings | None = None,
    resume: bool = False,
    progress: Report | bool | None = None,
) -> FitResult:
    """Train a copy of ``model`` on ``data`` with copies of ``methods``; what is given stays as it is.

    Args:
        model: a classifier (B, C, H, W) -> (B, classes), of ours, of timm, or one that ends in a linear layer; or a
            segmentor, see :class:`~repertory.training.segmentation.SegmentationTask`.
        data: has ``name``, ``classes`` (names), ``train`` and ``val``: sequences of (image (C, H, W), label, index)
            with ``targets``, the labels; or :class:`~repertory.data.segmentation.SegmentationData`, whose ``task`` says
            that segmentation is to be trained.
        methods: acted on in this order; two that claim one thing are refused.
        out: folder of the run: ``metrics.csv``, ``checkpoints/last.ckpt`` and ``best.ckpt``, TensorBoard events.
        settings: how to train; :class:`~repertory.training.SegmentationSettings` has what segmentation adds.
        resume: go on from ``out/checkpoints/last.ckpt`` if it is there; otherwise what is there of a run is replaced.
        progress: called with (images done, images in all) after each step; True and False force or forbid the bar,
            None shows it where standard error is a terminal.

    Raises:
        ValueError: clashing methods, labels outside the classes, another run's checkpoint, settings that do not fit.
        NonFiniteError: a loss stopped being finite; the message names the step.
        CheckpointError: a checkpoint could not be written; the one before is intact.
    """
    settings = settings or FitSettings()
    if task_of(data) == "segmentation":
        settings = SegmentationSettings.of(settings)
    elif isinstance(settings, SegmentationSettings):
        raise ValueError(f"settings are SegmentationSettings, but {data.name} is data for classification")
    check_claims(methods)
    check_labels(data)
    job = Job(model, data, list(methods), Path(out), settings, resume)
    with reporting(progress, "training") as report:
        if settings.world > 1 and not _launched():
            from repertory.training.processes import launch

            return launch(job, report)
        return run_job(job, report)


def check_claims(methods: Sequence[Method]) -> None:
    """ValueError naming two methods that each need one thing (sampler, optimizer, weights, replicas) alone."""
    owner: dict[str, str] = {}
    for method in methods:
        claims = set(method.claims) | ({"replicas"} if method.replicas > 1 else set())
        for claim in sorted(claims):
            if claim in owner:
                raise ValueError(
                    f"methods {owner[claim]} and {method.name} cannot be combined: both need the {claim} alone"
                )
            owner[claim] = method.name


def check_labels(data: Any) -> None:
    """ValueError for a part of ``data`` without images, or with a label outside its classes."""
    for part in ("train", "val"):
        dataset = getattr(data, part)
        if not len(dataset):
            raise ValueError(f"{data.name} has no image to {'train on' if part == 'train' else 'evaluate on'}")
        if task_of(data) == "segmentation":  # masks are checked where they are made or read
            continue
        targets = torch.as_tensor(list(dataset.targets))
        wrong = ((targets < 0) | (targets >= len(data.classes))).nonzero().flatten()
        if len(wrong):
            raise ValueError(
                f"label {int(targets[wrong[0]])} of sample {int(wrong[0])} in the {part} part of {data.name} is out of "
                f"range: it must be 0 to {len(data.classes) - 1}"
            )


def run_job(job: Job, report: Report) -> FitResult:
    """Take this process's part in a run; all processes return the same figures."""
    import lightning.pytorch as pl

    from repertory.training.keeper import Interrupts, RunKeeper
    from repertory.training.loading import TrainLoader
    from repertory.training.plan import Plan
    from repertory.training.randomness import reseed
    from repertory.training.sync_batchnorm import convert_sync_batchnorm
    from repertory.training.task import replicate

    settings, methods, out = job.settings, copy.deepcopy(job.methods), job.out
    out.mkdir(parents=True, exist_ok=True)
    interrupts = Interrupts(patient=settings.world > 1)
    with _quiet(), _deterministic(settings.deterministic), interrupts.installed():
        trainer = _trainer(pl, settings, out)
        rank = trainer.global_rank
        reseed(settings.seed, 0, 0)
        model = copy.deepcopy(job.model).train()
        for method in methods:
            model = method.prepare_model(model)
        if settings.sync_batchnorm and settings.world > 1:
            model = convert_sync_batchnorm(model)
        model = replicate(model, methods)
        replicas = len(model) if isinstance(model, nn.ModuleList) else 1
        loader = TrainLoader(
            job.data.train,
            methods,
            settings,
            rank=rank,
            replicas=replicas,
            pin_memory=trainer.accelerator.__class__.__name__ == "CUDAAccelerator",
        )
        task = _task_class(job.data)(model, methods, settings, Plan(loader, settings), loader, job.data)
        keeper = RunKeeper(task, job.data, out, settings, interrupts, report, rank)
        trainer.callbacks.append(keeper)
        _begin_or_restore(keeper, job)
        try:
            if task.position.step < task.total:
                trainer.fit(task, train_dataloaders=loader)
        finally:
            loader.close()
        if keeper.interrupted is None and keeper.final is None:
            keeper.evaluate()
        return _result(task, keeper)


def _task_class(data: Any) -> Any:
    """The Lightning module that trains on such data."""
    if task_of(data) == "segmentation":
        from repertory.training.segmentation import SegmentationTask

        return SegmentationTask
    from repertory.training.task import ClassificationTask

    return ClassificationTask


def task_of(data: Any) -> str:
    """``data.task``, classification where it does not say; ValueError for one that is not trained here."""
    task = getattr(data, "task", "classification")
    if task not in TASKS:
        raise ValueError(f"the task of {data.name} is {task!r}; it must be one of {', '.join(TASKS)}")
    return task


def _begin_or_restore(keeper: Any, job: Job) -> None:
    if job.resume and keeper.last.exists():
        keeper.restore(load_checkpoint(keeper.last))
        return
    if keeper.rank == 0:
        for stale in (keeper.last, keeper.last.with_name("best.ckpt"), keeper.records.path):
            stale.unlink(missing_ok=True)


def _trainer(pl: Any, settings: FitSettings, out: Path) -> Any:
    """A Lightning trainer without the parts that :class:`RunKeeper` does."""
    from lightning.pytorch.loggers import TensorBoardLogger
    from lightning.pytorch.strategies import DDPStrategy

    strategy: Any = DDPStrategy() if settings.world > 1 else "auto"
    logger = TensorBoardLogger(save_dir=out, name="", version="tensorboard") if settings.tensorboard else False
    return pl.Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=strategy,
        precision=settings.precision,
        accumulate_grad_batches=settings.accumulate,
        max_epochs=-1,  # the task counts steps; the keeper ends the run
        max_steps=-1,
        logger=logger,
        default_root_dir=out,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )


def _result(task: Any, keeper: Any) -> FitResult:
    from repertory.training.sync_batchnorm import revert_sync_batchnorm

    model, metrics = keeper.final if keeper.interrupted is None else (task.replicas[0], {})
    position = task.position
    return FitResult(
        model=revert_sync_batchnorm(model).cpu().eval(),
        metrics=dict(metrics),
        best=dict(keeper.best),
        curves=keeper.records.curves(),
        images=position.images,
        steps=position.step,
        epochs=position.epoch,
        seconds=position.seconds,
        interrupted=keeper.interrupted,
    )


def _launched() -> bool:
    """Whether torchrun, SLURM or :mod:`~repertory.training.processes` started this process as one of several."""
    by_slurm = "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS", 1)) > 1
    return "LOCAL_RANK" in os.environ or by_slurm


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Deterministic operations only, inside, if ``wanted``."""
    if not wanted:
        yield
        return
    before, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = benchmark


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's notices about the machine and its hints on loaders."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            warnings.filterwarnings("ignore", message=r".*(does not have many workers|isn't supported|No device id).*")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
