"""Real trainings: what a trial is given and gives back, one after the other or in parallel processes."""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

import torch
from torch import Tensor

from repertory.systems.fnas.model import MobileNetwork
from repertory.systems.fnas.space import Architecture, Tokens


@dataclass(frozen=True)
class Trial:
    """One real training to do: number ``number`` (from 1) of a search.

    ``tokens`` are canonical; ``seed`` is the trial's own, the same however many processes there are; ``inherited`` is
    the state that the network begins with where a knowledge pool gives one.
    """

    number: int
    tokens: Tokens
    architecture: Architecture
    seed: int
    num_classes: int
    in_chans: int
    inherited: Mapping[str, Tensor] | None = None

    def build(self, drop_rate: float = 0.0) -> MobileNetwork:
        """The network, initialised by the trial's seed, or with the inherited weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = MobileNetwork(self.architecture, self.num_classes, self.in_chans, drop_rate)
        if self.inherited is not None:
            model.load_state_dict(dict(self.inherited))
        return model


@dataclass
class Outcome:
    """What a training gave: ``accuracy`` in [0, 1] on held-out images, ``weights`` (the network's state, where a pool
    is to learn from it), ``images`` through forward and backward, and optimiser steps ``updates``.
    """

    accuracy: float
    weights: dict[str, Tensor] | None = None
    images: int = 0
    updates: int = 0

    @classmethod
    def of(cls, given: Outcome | float, trial: Trial) -> Outcome:
        """What an evaluation gave, checked; ``ValueError`` naming the trial for an accuracy that is none."""
        outcome = given if isinstance(given, Outcome) else cls(float(given))
        if not (math.isfinite(outcome.accuracy) and 0 <= outcome.accuracy <= 1):
            raise ValueError(f"trial {trial.number} gave the accuracy {outcome.accuracy}; it must be 0 to 1")
        return outcome


Evaluate = Callable[[Trial], Outcome | float]

_evaluate: Evaluate | None = None  # of a started process


class Workers:
    """``with Workers(evaluate, processes) as workers``: runs trials, in this process or in so many others.

    The processes end with the block, and also when this process is gone. ``TypeError`` where ``evaluate`` is to be sent
    to processes and cannot be pickled.
    """

    def __init__(self, evaluate: Evaluate, processes: int = 1) -> None:
        if processes < 1:
            raise ValueError(f"processes is {processes}; it must be at least 1")
        self.evaluate, self.processes = evaluate, processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        if self.processes > 1:
            try:
                payload = pickle.dumps(self.evaluate)
            except Exception as error:
                raise TypeError(
                    f"processes is {self.processes}, so evaluate is sent to other processes, "
                    f"but it cannot be pickled: {error}"
                ) from error
            self._pool = ProcessPoolExecutor(
                self.processes, multiprocessing.get_context("spawn"), _begin, (payload, self.processes)
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def run(self, trials: Sequence[Trial]) -> Iterator[tuple[int, Outcome]]:
        """(index, outcome) of every trial as it ends; an error of a trial is raised here."""
        if self._pool is None:
            for index, trial in enumerate(trials):
                yield index, Outcome.of(self.evaluate(trial), trial)
            return
        # Plain bytes: torch would hand tensors over as open files, of which a long search runs out.
        futures = {self._pool.submit(_work, pickle.dumps(trial)): index for index, trial in enumerate(trials)}
        for future in as_completed(futures):
            yield futures[future], pickle.loads(future.result())


def _begin(payload: bytes, processes: int) -> None:
    """A started process: take ``evaluate``, a share of the cores, and an eye on who started it."""
    global _evaluate
    _evaluate = pickle.loads(payload)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: Any) -> None:
    wait([sentinel])
    os._exit(1)


def _work(payload: bytes) -> bytes:
    trial: Trial = pickle.loads(payload)
    assert _evaluate is not None
    return pickle.dumps(Outcome.of(_evaluate(trial), trial))
