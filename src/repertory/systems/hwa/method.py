"""HWA as a training method: K replicas in one process, averaged every H steps, evaluated as the window's mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import nn

from repertory.systems.hwa.averaging import BATCH_NORMS, OPTIMIZER_STATES, HierarchicalWeightAveraging
from repertory.training.method import Batch, Method, Progress

if TYPE_CHECKING:
    from torch.optim import Optimizer


class Hwa(Method):
    """Hierarchical weight averaging (arXiv 2304.11519); all defaults are inferred, since no figures could be verified.

    Each step consumes ``replicas`` batches. The last cycle ends with the run, even where it is shorter than H.

    Args:
        replicas: K, networks trained side by side on batches of their own, at least 1.
        period: H, optimiser steps between synchronisations, at least 1; none given: one epoch.
        window: I, outer weights in the evaluated mean, at least 1; null averages every one, as SWA does.
        optimizer_state: momenta at a synchronisation: "keep" (each replica its own), "average", or "reset".
        batch_norm: statistics of the evaluated mean: "recalibrate" (a pass over training images) or "average".
        batch_norm_batches: batches of that pass, at least 1; none given: the whole training set.
        window_device: where the window is kept, such as "cpu" or "cuda".

    Raises:
        ValueError: for K, H or I below their least value, or an unknown setting.
    """

    name: ClassVar[str] = "hwa"
    claims: ClassVar[frozenset[str]] = frozenset({"weights"})

    def __init__(
        self,
        replicas: int = 2,
        period: int | None = None,
        window: int | None = 20,
        optimizer_state: Literal["keep", "average", "reset"] = "keep",
        batch_norm: Literal["recalibrate", "average"] = "recalibrate",
        batch_norm_batches: int | None = None,
        window_device: str = "cpu",
    ) -> None:
        for argument, value in (
            ("replicas", replicas),
            ("period", period),
            ("window", window),
            ("batch_norm_batches", batch_norm_batches),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{argument} is {value}; it must be at least 1")
        for argument, chosen, known in (
            ("optimizer_state", optimizer_state, OPTIMIZER_STATES),
            ("batch_norm", batch_norm, BATCH_NORMS),
        ):
            if chosen not in known:
                raise ValueError(f"{argument} is {chosen!r}; it must be one of {', '.join(known)}")
        self.replicas, self.period, self.window = replicas, period, window
        self.optimizer_state, self.batch_norm = optimizer_state, batch_norm
        self.batch_norm_batches, self.window_device = batch_norm_batches, window_device
        self._optimizer: Optimizer | None = None
        self._averaging: HierarchicalWeightAveraging | None = None
        self._saved: Mapping[str, Any] | None = None
        self._epoch = 0

    def build_optimizer(self, model: nn.Module, default: Optimizer) -> Optimizer:
        """Keep ``default``; its state is what ``optimizer_state`` speaks of."""
        self._optimizer = default
        return default

    def before_step(self, model: nn.Module, progress: Progress) -> None:
        """Take hold of the replicas; note the epoch that the step belongs to."""
        self._of(model)
        self._epoch = progress.epoch

    def after_step(self, model: nn.Module, progress: Progress) -> None:
        """Count the step; synchronise at the end of a cycle and of the run."""
        averaging = self._of(model)
        synchronised = averaging.step()
        epoch_ended = self.period is None and progress.epoch > self._epoch
        if not synchronised and (epoch_ended or progress.step == progress.total):
            averaging.synchronize()

    def evaluation_model(self, model: nn.Module, train_loader: Iterable[Batch]) -> nn.Module:
        """A new network with the mean of the window, batch norm re-estimated from ``train_loader``."""
        images = (batch.images for batch in train_loader)
        return self._of(model).deploy(images, self.batch_norm_batches)

    def state_dict(self) -> dict[str, Any]:
        """The window and the counters."""
        if self._averaging is None:
            return dict(self._saved or {})
        return self._averaging.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved window as soon as the replicas are seen."""
        self._averaging, self._saved = None, state

    def _of(self, model: nn.Module) -> HierarchicalWeightAveraging:
        """The averaging of the replicas in ``model``, made when they are first seen; other replicas start afresh."""
        members = list(model) if isinstance(model, nn.ModuleList) else [model]
        if self._averaging is None or self._averaging.replicas != members:
            if len(members) != self.replicas:
                raise ValueError(f"replicas is {self.replicas}, but the model given holds {len(members)}")
            self._averaging = HierarchicalWeightAveraging(
                members,
                period=self.period,
                window=self.window,
                optimizers=self._optimizer if self._optimizer is not None else (),
                optimizer_state=self.optimizer_state,
                batch_norm=self.batch_norm,
                window_device=self.window_device,
            )
            if self._saved:
                self._averaging.load_state_dict(self._saved)
            self._saved = None
        return self._averaging
