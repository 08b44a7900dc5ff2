"""One run of one arm, in a process of its own, so that its peak memory is its own and its crash is nobody else's.

``python -m repertory.evidence.worker`` reads jobs, one JSON line each, on standard input and answers in JSON lines on
standard output. On Linux it forks a child for every job after importing what the experiment imports: the imports
(seconds) are paid once, and the peak memory of a child starts at what the imports hold. Elsewhere the process does one
job and ends. What a run prints goes to ``log.txt`` in its folder. When the caller is gone, however it died, the run is
stopped too: two runs never write one folder.
"""

from __future__ import annotations

import json
import math
import os
import platform
import resource
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from repertory.errors import NonFiniteError
from repertory.evidence.experiment import ArmResult, Context, Experiment
from repertory.files import Replacement

CAN_FORK = sys.platform == "linux"
GRACE = 5.0  # seconds between asking a run to end and ending it
TICK = 0.05

Answer = Callable[[Mapping[str, Any]], None]


class Consulted(Mapping[str, Path]):
    """The roots a user gave, noting in ``names`` which of them a run looked up, found or not."""

    def __init__(self, roots: Mapping[str, str]) -> None:
        self._roots = {name: Path(root) for name, root in roots.items()}
        self.names: dict[str, str | None] = {}

    def __getitem__(self, name: str) -> Path:
        self.names[name] = str(self._roots[name]) if name in self._roots else None
        return self._roots[name]

    def __iter__(self) -> Iterator[str]:
        for name in self._roots:
            self.names[name] = str(self._roots[name])
            yield name

    def __len__(self) -> int:
        return len(list(iter(self)))


def load_experiment(reference: str) -> Experiment:
    """The experiment that ``module:NAME`` refers to."""
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


def write_json(value: Any, path: Path) -> None:
    """Write ``value`` to ``path`` whole or not at all; arrays, scalars and paths become plain, non-finite is null."""
    text = json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False)
    with Replacement(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def plain(value: Any) -> Any:
    """``value`` as JSON has it."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)


def versions() -> dict[str, str]:
    """What a run ran on: Python, the packages that bear on its numbers, and the platform."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("repertory", "torch", "torchvision", "numpy", "scipy", "scikit-learn", "scikit-image"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _own_memory() -> int:
    """Peak resident memory of this process so far, in bytes (Linux counts KiB, macOS bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _device() -> dict[str, Any]:
    """Threads, and the CUDA device with its peak memory where the run used one; empty where it never imported torch."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    device: dict[str, Any] = {"threads": torch.get_num_threads()}
    if torch.cuda.is_initialized():
        device |= {"cuda": torch.cuda.get_device_name(), "peak_cuda_memory_bytes": torch.cuda.max_memory_allocated()}
    return device


def _save_pictures(result: ArmResult, folder: Path) -> list[dict[str, str]]:
    from PIL import Image

    saved = []
    for number, (caption, pixels) in enumerate(result.pictures.items()):
        name = f"picture_{number:02d}.png"
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / name)
        saved.append({"caption": caption, "file": name})
    return saved


def do_run(job: Mapping[str, Any], answer: Answer) -> None:
    """Run ``job`` in this process and write its ``result.json``; the job is what ``runner.run_all`` sends."""
    start_memory, began = _own_memory(), time.perf_counter()
    experiment, folder = load_experiment(job["reference"]), Path(job["folder"])
    declared, roots = job["declared"], Consulted(job["roots"])
    last = -math.inf

    def progress(done: int, total: int) -> None:
        nonlocal last
        if done >= total or time.monotonic() - last > 0.1:
            last = time.monotonic()
            answer({"progress": [int(done), int(total)]})

    context = Context(folder, roots, progress)
    result = experiment.run(
        experiment.arm(declared["arm"]), declared["seed"], experiment.scales[declared["scale"]], context
    )
    value = result.metrics.get(experiment.metric)
    if value is None:
        raise ValueError(f"metric {experiment.metric!r} is missing; the run gave {', '.join(result.metrics) or 'none'}")
    if not math.isfinite(value):
        raise NonFiniteError(f"metric {experiment.metric!r} is {value}; it must be finite")
    record = {
        "declared": declared,
        "consulted_roots": roots.names,
        "metrics": result.metrics,
        "curves": result.curves,
        "images": result.images,
        "steps": result.steps,
        "settings": result.settings,
        "pictures": _save_pictures(result, folder),
        "versions": versions(),
        "wall_seconds": time.perf_counter() - began,
        "attempts": job["attempts"],
        "peak_memory_bytes": _own_memory(),
        "start_memory_bytes": start_memory,
        **_device(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(record, folder / "result.json")


def _attempt(job: Mapping[str, Any], answer: Answer) -> None:
    """``do_run``, with whatever it raises answered in one line and kept in the log."""
    try:
        do_run(job, answer)
        answer({"done": True})
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        answer({"failed": f"{type(error).__name__}: {error}".splitlines()[0]})


def _leave_with_parent(parent: int) -> None:
    """End this process within a second of its parent's end."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _redirect(job: Mapping[str, Any]) -> None:
    """Send what this process prints to the run's log."""
    log = os.open(Path(job["folder"]) / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _child(job: Mapping[str, Any], answer: Answer, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _leave_with_parent(parent)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    _redirect(job)
    _attempt(job, answer)


def _end(child: int) -> None:
    """Ask ``child`` to end, and end it after a grace."""
    os.kill(child, signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return
        time.sleep(TICK)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _supervise(child: int, answer: Answer) -> bool:
    """Wait for ``child``; False where the caller went away first."""
    while True:
        gone, status = os.waitpid(child, os.WNOHANG)
        if gone:
            code = os.waitstatus_to_exitcode(status)
            if code:
                answer({"failed": _death(code)})
            return True
        # Nothing is sent during a run, so that standard input becomes readable only when the caller closes it or dies.
        if select.select([0], [], [], TICK)[0]:
            _end(child)
            return False


def _death(code: int) -> str:
    if code == -signal.SIGKILL:
        return "the run was killed (signal 9), as the system does when memory runs out"
    return f"the run ended by signal {-code}" if code < 0 else f"the run ended with exit status {code}"


def _lines() -> Iterator[str]:
    """Lines of standard input, unbuffered, so that ``select`` sees what there is."""
    pending = b""
    while chunk := os.read(0, 65536):
        pending += chunk
        while b"\n" in pending:
            line, pending = pending.split(b"\n", 1)
            yield line.decode("utf-8")


def serve(can_fork: bool = CAN_FORK) -> None:
    """Do jobs from standard input until it closes; without forking, one job."""
    out = os.dup(1)
    os.dup2(2, 1)

    def answer(message: Mapping[str, Any]) -> None:
        os.write(out, (json.dumps(message) + "\n").encode("utf-8"))

    if can_fork:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in _lines():
        job = json.loads(line)
        if not can_fork:
            _leave_with_parent(os.getppid())
            _redirect(job)
            _attempt(job, answer)
            answer({"ended": True})
            return
        try:
            load_experiment(job["reference"])
        except BaseException as error:
            answer({"failed": f"{type(error).__name__}: {error}".splitlines()[0]})
            answer({"ended": True})
            continue
        own = os.getpid()
        child = os.fork()
        if child == 0:
            try:
                _child(job, answer, own)
            finally:
                os._exit(0)
        if not _supervise(child, answer):
            return
        answer({"ended": True})


if __name__ == "__main__":
    serve(can_fork=CAN_FORK and "--fresh" not in sys.argv)
