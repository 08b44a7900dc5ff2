"""Arms x seeds of declared experiments: run what is missing, resume what was cut, keep what is done.

Every run has a folder ``OUT/<system>/<scale>/<arm>/<seed>/``: ``declared.json`` says what it is, ``log.txt`` what it
printed, ``result.json`` (written whole at the end) what it gave. A result is used again only where everything
declared is the same.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repertory.evidence.experiment import Arm, Experiment
from repertory.evidence.worker import CAN_FORK, plain, write_json


@dataclass(frozen=True)
class Study:
    """One experiment to run: ``reference`` (``module:NAME``) for the worker, ``version`` (a hash of its code), and
    ``facts`` about its system for the report: ``title``, ``venue``, ``year`` and ``published``, a list of mappings with
    ``metric``, ``value``, ``unit``, ``setting`` and ``source``.
    """

    experiment: Experiment
    reference: str
    version: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """One run to do."""

    study: Study
    scale: str
    arm: Arm
    seed: int
    folder: Path

    @property
    def declared(self) -> dict[str, Any]:
        """What makes a run this run and no other."""
        experiment, scale = self.study.experiment, self.study.experiment.scales[self.scale]
        return {
            "system": experiment.system,
            "scale": self.scale,
            "arm": self.arm.name,
            "seed": self.seed,
            "arm_settings": plain(self.arm.settings),
            "scale_images": scale.images,
            "scale_settings": plain(scale.settings),
            "metric": experiment.metric,
            "version": self.study.version,
        }


@dataclass(frozen=True)
class Run:
    """What became of a task: its ``record`` (as in ``result.json``), ``reused`` from an earlier start, or ``error``."""

    task: Task
    record: Mapping[str, Any] | None = None
    reused: bool = False
    error: str = ""


@dataclass
class Watcher:
    """Whom the runner tells: ``started(task)``, ``moved(task, done, total)`` in the run's own units, ``ended(run)``."""

    started: Callable[[Task], None] = lambda task: None
    moved: Callable[[Task, int, int], None] = lambda task, done, total: None
    ended: Callable[[Run], None] = lambda run: None


def tasks_of(study: Study, scale: str, seeds: int | None, out: Path) -> list[Task]:
    """All runs of a study, seed by seed so that a cut job leaves whole pairs; ``seeds`` None takes the scale's own."""
    experiment = study.experiment
    if scale not in experiment.scales:
        raise ValueError(f"scale {scale!r} is not one of {experiment.system}'s: {', '.join(experiment.scales)}")
    count = experiment.scales[scale].seeds if seeds is None else seeds
    folder = out / experiment.system / scale
    return [
        Task(study, scale, arm, seed, folder / arm.name / str(seed)) for seed in range(count) for arm in experiment.arms
    ]


def _read(path: Path) -> dict[str, Any] | None:
    """The JSON in ``path``; None where there is none, or none whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def finished(task: Task, roots: Mapping[str, str]) -> dict[str, Any] | None:
    """The record of ``task`` where it was done with the same declaration and the same roots of what it looked up."""
    record = _read(task.folder / "result.json")
    if record is None or record.get("declared") != task.declared:
        return None
    same = all(roots.get(name) == root for name, root in record["consulted_roots"].items())
    return record if same else None


def _refuse_foreign(folder: Path) -> None:
    """ValueError where ``folder`` holds anything that no run wrote: it would be cleared."""
    foreign = folder.exists() and any(file.name != "declared.json.partial" for file in folder.iterdir())
    if foreign and _read(folder / "declared.json") is None:
        raise ValueError(f"folder {folder} holds files that are not a run's; move them, or give another out")


def _open_folder(task: Task, roots: Mapping[str, str]) -> int:
    """Make the folder ready, cleared unless it holds this same run, cut; the number of this attempt, from 1."""
    folder, own = task.folder, {"declared": task.declared, "roots": dict(roots)}
    found = _read(folder / "declared.json")
    cut = found is not None and not (folder / "result.json").exists() and {k: found.get(k) for k in own} == own
    if folder.exists() and not cut:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    attempts = found["attempts"] + 1 if cut and found is not None else 1
    write_json({**own, "attempts": attempts}, folder / "declared.json")
    return attempts


class _Worker:
    """The process that does runs; started when needed, and again where one was used up or died."""

    def __init__(self, can_fork: bool) -> None:
        self._can_fork = can_fork
        self._process: subprocess.Popen[str] | None = None

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            command = [sys.executable, "-m", "repertory.evidence.worker", *([] if self._can_fork else ["--fresh"])]
            path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                env={**os.environ, "PYTHONPATH": path},
            )
        return self._process

    def run(self, job: Mapping[str, Any], moved: Callable[[int, int], None]) -> str:
        """Do ``job``; the sentence of what went wrong, empty where nothing did."""
        process = self._running()
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        error, ended = "the run ended without an answer", False
        for line in process.stdout:
            message = json.loads(line)
            if "progress" in message:
                moved(*message["progress"])
            elif "done" in message:
                error = ""
            elif "failed" in message:
                error = message["failed"]
            else:
                ended = True
                break
        if not (ended and self._can_fork):
            self.close()
        return error

    def close(self) -> None:
        """End the process, and the run that it is at."""
        if self._process is not None:
            assert self._process.stdin
            assert self._process.stdout
            self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()
            self._process = None


@contextmanager
def _worker(can_fork: bool) -> Iterator[_Worker]:
    worker = _Worker(can_fork)
    try:
        yield worker
    finally:
        worker.close()


def run_all(
    tasks: Sequence[Task],
    roots: Mapping[str, Path],
    watcher: Watcher | None = None,
    can_fork: bool = CAN_FORK,
) -> list[Run]:
    """Do every task that is not done; a run that fails is reported and the others go on.

    Args:
        tasks: what to run, in this order.
        roots: folders of data sets the user has, by name.
        watcher: whom to tell.
        can_fork: fork runs from one process that holds the imports; else start a fresh interpreter for each.

    Returns:
        One :class:`Run` a task, in the same order.
    """
    watcher, known = watcher or Watcher(), {name: str(Path(root).resolve()) for name, root in roots.items()}
    for task in tasks:
        _refuse_foreign(task.folder)
    runs = []
    with _worker(can_fork) as worker:
        for task in tasks:
            watcher.started(task)
            record = finished(task, known)
            run = Run(task, record, reused=True) if record is not None else _do(task, known, worker, watcher)
            runs.append(run)
            watcher.ended(run)
    return runs


def _do(task: Task, roots: Mapping[str, str], worker: _Worker, watcher: Watcher) -> Run:
    try:
        attempts = _open_folder(task, roots)
    except OSError as problem:
        return Run(task, error=f"folder {task.folder}: {problem.strerror or problem}")
    job = {
        "reference": task.study.reference,
        "declared": task.declared,
        "folder": str(task.folder),
        "roots": dict(roots),
        "attempts": attempts,
    }
    error = worker.run(job, lambda done, total: watcher.moved(task, done, total))
    record = _read(task.folder / "result.json")
    if error or record is None:
        return Run(task, error=error or "the run left no result")
    return Run(task, record)
