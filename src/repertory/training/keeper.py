"""What is kept of a run while it goes: records, evaluations, checkpoints; and how it is interrupted."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import nn

from repertory.training.checkpoint import save_checkpoint
from repertory.training.evaluation import place
from repertory.training.loading import PassLoader
from repertory.training.randomness import reseed
from repertory.training.records import MetricsFile
from repertory.training.settings import FitSettings
from repertory.training.task import Position, TrainingTask

# A run may be resumed with other values of these: they do not change what is computed, or lengthen the run.
FREE_ON_RESUME = frozenset(
    {
        "epochs",
        "max_images",
        "devices",
        "num_nodes",
        "accelerator",
        "workers",
        "deterministic",
        "checkpoint_steps",
        "checkpoint_seconds",
        "evaluate_every",
        "log_steps",
        "tensorboard",
    }
)


class Interrupts:
    """Remembers SIGINT and SIGTERM, so that the step in hand can be finished.

    A second SIGINT interrupts at once, unless ``patient``: one of several processes may be told more than once.
    """

    def __init__(self, patient: bool = False) -> None:
        self.received, self.patient = 0, patient

    def __call__(self, number: int, frame: Any) -> None:
        """The signal handler."""
        if self.received == signal.SIGINT == number and not self.patient:
            raise KeyboardInterrupt
        self.received = number

    def install(self) -> None:
        """Take both signals, where Python lets this thread have them."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self)
            signal.signal(signal.SIGTERM, self)

    @contextmanager
    def installed(self) -> Iterator[Interrupts]:
        """Both signals come here inside and go where they went before outside."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self.install()
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class RunKeeper(pl.Callback):
    """After each step: a record, an evaluation at the end of an epoch, a checkpoint, and the end if a signal came."""

    def __init__(
        self,
        task: TrainingTask,
        data: Any,
        out: Path,
        settings: FitSettings,
        interrupts: Interrupts,
        report: Callable[[int, int], None],
        rank: int,
    ) -> None:
        self.task, self.data, self.out, self.settings, self.rank = task, data, out, settings, rank
        self.interrupts, self._report = interrupts, report
        self.records = MetricsFile(out / "metrics.csv")
        self.best: dict[str, float] = {}
        self.final: tuple[nn.Module, dict[str, float]] | None = None
        self.interrupted: int | None = None
        self._step = self._saved_step = task.position.step
        self._started = self._saved_at = time.monotonic()
        self._seconds_before = 0.0
        self._trainer: pl.Trainer | None = None
        self._precision_state: dict[str, Any] = {}

    @property
    def last(self) -> Path:
        """The checkpoint from which a run resumes."""
        return self.out / "checkpoints" / "last.ckpt"

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the run of a checkpoint."""
        task = self.task
        self._check_same_run(state)
        check_keys(task.model, state["model"], self.last)
        task.model.load_state_dict(state["model"])
        task.optimizer_state = state["optimizer"]
        for method, saved in zip(task.methods, state["methods"]):
            method.load_state_dict(saved["state"])
        task.position = Position(**state["position"])
        task.losses = state["losses"]
        task.loader.load_state_dict({"epoch": task.position.epoch, "step": task.position.step_in_epoch})
        self.best, self._seconds_before = state["best"], task.position.seconds
        self._step = self._saved_step = task.position.step
        self._precision_state = state["precision"]
        if self.rank == 0:
            self.records.keep_until(task.position.step)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, and take the signals back from Lightning, which would stop in the middle of a step."""
        self._trainer = trainer
        if self._precision_state:
            trainer.precision_plugin.load_state_dict(self._precision_state)
        self.interrupts.install()
        self._started = self._saved_at = time.monotonic()
        self.report()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep what is due after a whole step."""
        position = self.task.position
        if position.step == self._step:
            return
        self._step = position.step
        position.seconds = self._seconds_before + time.monotonic() - self._started
        ended, done = position.step_in_epoch == 0, position.step >= self.task.total
        if position.step % self.settings.log_steps == 0 or done:
            self._record({"lr": self._lr(), **self.task.take_losses()})
        every = self.settings.evaluate_every
        if done or (ended and every and position.epoch % every == 0):
            self.evaluate()
        if ended:
            self._record_figures()
        number, due = self._agreed()
        if done or number or due:
            self.save()
        self.report()
        self.interrupted = number if number and not done else None
        trainer.should_stop = bool(done or number)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Keep the steps done where a sampler says that the next epoch cannot be, such as one without a batch.

        Several processes might not all come here, and a method that gathers its state would wait for the others.
        """
        position, alone = self.task.position, self.settings.world == 1
        if (
            isinstance(exception, ValueError)
            and alone
            and not position.step_in_epoch
            and position.step != self._saved_step
        ):
            self.save()

    def report(self) -> None:
        """Tell how many images are done, of how many in all."""
        self._report(self.task.position.images, self.task.total * self.task.plan.images)

    def evaluate(self) -> None:
        """Evaluate the model the methods want evaluated, and keep it if it is the best so far."""
        task, settings = self.task, self.settings
        device, dtype = place(task.model)
        if settings.world > 1 and dist.is_initialized():
            for buffer in task.model.buffers():
                dist.broadcast(buffer, 0)
        reseed(settings.seed, task.position.step, 0)
        train_loader = PassLoader(self.data.train, settings, task.position.epoch, device, dtype)
        model = task.evaluated(train_loader)
        metrics = task.evaluate(model, self.rank, settings.world if dist.is_initialized() else 1)
        self.final = (model, metrics)
        self._record({f"val_{name}": value for name, value in metrics.items()})
        if metrics[task.headline] > self.best.get(task.headline, -1.0):
            self.best = {**metrics, "step": float(task.position.step)}
            if self.rank == 0:
                save_checkpoint({"model": model.state_dict(), **self._description()}, self.last.with_name("best.ckpt"))

    def save(self) -> None:
        """Write ``last.ckpt``: all that the rest of the run depends on."""
        task = self.task
        # On every process, all after the same step: a method may gather its state from all.
        methods = [{"name": method.name, "state": method.state_dict()} for method in task.methods]
        if self.rank == 0 and self._trainer is not None:
            state = {
                "model": task.model.state_dict(),
                "optimizer": task.optimizers(use_pl_optimizer=False).state_dict(),  # type: ignore[union-attr]
                "methods": methods,
                "precision": self._trainer.precision_plugin.state_dict(),
                "losses": task.losses,
                **self._description(),
            }
            save_checkpoint(state, self.last)
        self._saved_step, self._saved_at = task.position.step, time.monotonic()

    def _description(self) -> dict[str, Any]:
        preprocessing = getattr(self.task.replicas[0], "preprocessing", None)
        return {
            "position": self.task.position.to_dict(),
            "best": self.best,
            "settings": asdict(self.settings),
            "classes": [str(name) for name in self.data.classes],
            "data": str(self.data.name),
            "preprocessing": preprocessing.to_dict() if preprocessing is not None else None,
            "palette": getattr(self.task.replicas[0], "palette", None),
        }

    def _due(self) -> bool:
        steps = self.task.position.step - self._saved_step
        return steps >= self.settings.checkpoint_steps or (
            time.monotonic() - self._saved_at >= self.settings.checkpoint_seconds
        )

    def _agreed(self) -> tuple[int, bool]:
        """The signal that any process received, or 0, and whether a checkpoint is due: the same on all processes."""
        number, due = self.interrupts.received, self._due()
        if self.settings.world > 1 and dist.is_initialized():
            shared = torch.tensor([number, due], device=self.task.device)
            dist.all_reduce(shared, op=dist.ReduceOp.MAX)
            number, due = shared.tolist()
        return number, bool(due)

    def _record_figures(self) -> None:
        """Write what the methods have to say of the epoch that has ended."""
        methods = self.task.methods
        found = {f"{method.name}_{name}": value for method in methods for name, value in method.figures().items()}
        if found:
            self._record(found)

    def _lr(self) -> float:
        optimizer: Any = self.task.optimizers(use_pl_optimizer=False)
        return optimizer.param_groups[0]["lr"]

    def _record(self, values: dict[str, float]) -> None:
        position = self.task.position
        if self.rank == 0 and self._trainer is not None:
            place_in_run = {name: getattr(position, name) for name in ("step", "epoch", "images", "seconds")}
            self.records.append({**place_in_run, **values})
            for logger in self._trainer.loggers:
                logger.log_metrics(values, step=position.step)

    def _check_same_run(self, state: dict[str, Any]) -> None:
        before = state["settings"]
        for name, value in asdict(self.settings).items():
            if name not in FREE_ON_RESUME and name in before and before[name] != value:
                raise ValueError(f"{name} is {value!r}, but the run in {self.out} was started with {before[name]!r}")
        names = [method.name for method in self.task.methods]
        if names != [saved["name"] for saved in state["methods"]]:
            began = ", ".join(saved["name"] for saved in state["methods"]) or "no method"
            raise ValueError(
                f"methods are {', '.join(names) or 'none'}, but the run in {self.out} was started with {began}"
            )
        if state["classes"] != [str(name) for name in self.data.classes]:
            raise ValueError(
                f"the classes of {self.data.name} are not those that the run in {self.out} was started with"
            )


def check_keys(model: nn.Module, state: dict[str, Any], path: Path) -> None:
    """ValueError naming the keys by which ``state`` of ``path`` is of another model."""
    own = model.state_dict()
    wrong = [f"{key} is missing" for key in own if key not in state]
    wrong += [f"{key} is unknown" for key in state if key not in own]
    shapes = [key for key in own if key in state and own[key].shape != state[key].shape]
    wrong += [f"{key} is {tuple(state[key].shape)}, not {tuple(own[key].shape)}" for key in shapes]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"{path} is of another model: {'; '.join(wrong[:3])}{more}")
