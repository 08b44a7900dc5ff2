"""The Lightning modules that train a network with any list of methods: what all tasks share, and classification."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from repertory.errors import NonFiniteError
from repertory.training.evaluation import evaluate
from repertory.training.loading import TrainLoader, to_device
from repertory.training.method import Batch, Method, Outputs, Progress
from repertory.training.optimization import default_optimizer, lr_factor, set_lr
from repertory.training.outputs import features_and_logits
from repertory.training.plan import Plan
from repertory.training.randomness import reseed
from repertory.training.settings import FitSettings


@dataclass
class Position:
    """Where a run stands: steps done, epochs done, steps done in this epoch, images through forward and backward."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    images: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class TrainingTask(pl.LightningModule):
    """The task's loss plus what the methods add; each Lightning batch is a list with one :class:`Batch` a replica.

    A task says what its loss and its figures are: :meth:`loss_terms`, :meth:`evaluate`, and ``headline``, the figure by
    which the best evaluation is known (higher is better).

    The position is counted here and not in Lightning's loops, and all randomness and the learning rate follow from it,
    so a run resumed at any step does what the uncut run would have done.
    """

    headline: ClassVar[str]

    def __init__(
        self,
        model: nn.Module,
        methods: Sequence[Method],
        settings: FitSettings,
        plan: Plan,
        loader: TrainLoader,
        data: Any,
    ) -> None:
        super().__init__()
        self.loader, self.data = loader, data
        self.model, self.methods, self.settings = model, list(methods), settings
        self.replicas = list(model) if isinstance(model, nn.ModuleList) else [model]
        self.plan = plan
        self.warmup = round(settings.warmup_epochs * plan.full)
        self.position = Position()
        self.part = 0
        self.step_images = 0
        self.losses: dict[str, list[float]] = {}
        self.optimizer_state: dict[str, Any] | None = None

    @abstractmethod
    def loss_terms(self, model: nn.Module, batch: Batch) -> tuple[Outputs, dict[str, Tensor]]:
        """What ``model`` gave for ``batch``, and the task's own terms, weighted; the first is called ``loss``."""

    @abstractmethod
    def evaluate(self, model: nn.Module, rank: int, world: int) -> dict[str, float]:
        """Figures of ``model`` on the validation data; the same on all processes."""

    @property
    def total(self) -> int:
        """Optimiser steps of the whole run, as far as they are known."""
        return self.plan.total(self.position)

    @property
    def progress(self) -> Progress:
        """What the methods are told."""
        return Progress(self.position.step, self.position.epoch, self.total)

    def configure_optimizers(self) -> Optimizer:
        """The default optimiser, passed through every method, with the state of the checkpoint if there is one."""
        optimizer = default_optimizer(self.model.parameters(), self.settings)
        for method in self.methods:
            optimizer = method.build_optimizer(self.model, optimizer)
        set_lr(optimizer, 1.0)
        if self.optimizer_state is not None:
            optimizer.load_state_dict(self.optimizer_state)
            self.optimizer_state = None
        return optimizer

    def transfer_batch_to_device(self, batch: list[Batch], device: torch.device, dataloader_idx: int) -> list[Batch]:
        """Move the batch of every replica."""
        dtype = torch.float64 if self.settings.precision == "64-true" else torch.float32
        return [to_device(one, device, dtype) for one in batch]

    def training_step(self, batches: list[Batch], batch_idx: int) -> Tensor:
        """The sum of the replicas' losses on one part of a step."""
        if self.part == 0:
            self._begin_step()
        terms = [self._losses(replica, batch) for replica, batch in zip(self.replicas, batches)]
        self.part += 1
        self.step_images += sum(len(batch.images) for batch in batches) * self.settings.world
        loss = torch.stack([sum(one.values(), torch.zeros_like(one["loss"])) for one in terms]).sum()
        self._watch(terms)
        return loss

    def configure_gradient_clipping(self, optimizer: Optimizer, *_: Any, **__: Any) -> None:
        """Clip the gradient of each replica apart, so that replicas do not act on each other."""
        if self.settings.clip_grad:
            for replica in self.replicas:
                nn.utils.clip_grad_norm_(replica.parameters(), self.settings.clip_grad)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """One step, after which the methods act."""
        optimizer.step(closure=optimizer_closure)
        self.position.step += 1
        self.position.step_in_epoch += 1
        self.position.images += self.step_images
        if self.position.step_in_epoch >= self.loader.length:
            self.position.epoch += 1
            self.position.step_in_epoch = 0
        self.part = self.step_images = 0
        for method in self.methods:
            method.after_step(self.model, self.progress)

    def _begin_step(self) -> None:
        settings, plan = self.settings, self.plan
        plan.begin(self.position.epoch, self.loader.length)
        reseed(settings.seed, self.position.step, self.global_rank)
        optimizer = self.optimizers(use_pl_optimizer=False)
        place = plan.place(self.position)
        factor = lr_factor(settings.schedule, place, plan.horizon, self.warmup, settings.poly_power)
        set_lr(optimizer, factor)  # type: ignore[arg-type]
        for method in self.methods:
            method.before_step(self.model, self.progress)

    def _losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The task's terms and the methods' own for one replica."""
        for method in self.methods:
            batch = method.transform_batch(batch, self.progress)
        outputs, losses = self.loss_terms(model, batch)
        for method in self.methods:
            for name, term in method.extra_loss(outputs, batch).items():
                losses[f"{method.name}_{name}"] = term
        return losses

    @torch.no_grad()
    def _watch(self, terms: list[dict[str, Tensor]]) -> None:
        """Add the terms to the running means; NonFiniteError naming the step where one is not finite."""
        names = list(terms[0])
        values = torch.stack([torch.stack([one[name].float() for name in names]) for one in terms]).tolist()
        for replica, row in enumerate(values):
            for name, value in zip(names, row):
                if value != value or value in (float("inf"), float("-inf")):
                    where = f" of replica {replica}" if len(terms) > 1 else ""
                    raise NonFiniteError(
                        f"{name}{where} is {value} at step {self.position.step} (epoch {self.position.epoch}); "
                        "lower the learning rate, or check the data for NaN"
                    )
                mean = self.losses.setdefault(name, [0.0, 0])
                mean[0] += value
                mean[1] += 1

    def take_losses(self) -> dict[str, float]:
        """Mean of every term since the last call."""
        means = {f"train_{name}": total / count for name, (total, count) in self.losses.items()}
        self.losses = {}
        return means

    def evaluated(self, train_loader: Any) -> nn.Module:
        """The model the methods want evaluated; of replicas that no method joins, the first."""
        model: nn.Module = self.model
        for method in self.methods:
            model = method.evaluation_model(model, train_loader)
        return model[0] if isinstance(model, nn.ModuleList) else model


class ClassificationTask(TrainingTask):
    """Cross-entropy over the classes of an image."""

    headline = "top1"

    def loss_terms(self, model: nn.Module, batch: Batch) -> tuple[Outputs, dict[str, Tensor]]:
        """Features and logits, and the cross-entropy with ``label_smoothing``."""
        outputs = features_and_logits(model, batch.images)
        logits = outputs.logits if outputs.logits.dtype == torch.float64 else outputs.logits.float()
        return outputs, {"loss": F.cross_entropy(logits, batch.labels, label_smoothing=self.settings.label_smoothing)}

    def evaluate(self, model: nn.Module, rank: int, world: int) -> dict[str, float]:
        """Accuracy, cross-entropy and calibration, see :func:`~repertory.training.evaluation.evaluate`."""
        settings = self.settings
        return evaluate(
            model,
            self.data.val,
            batch_size=max(settings.micro_batch, 128),
            workers=settings.workers,
            precision=settings.precision,
            rank=rank,
            world=world,
        )


def replicate(model: nn.Module, methods: Sequence[Method]) -> nn.Module:
    """``model`` itself, or a ``ModuleList`` of K copies where a method trains K replicas."""
    count = max([method.replicas for method in methods], default=1)
    if count == 1:
        return model
    return nn.ModuleList([model, *(copy.deepcopy(model) for _ in range(count - 1))])
