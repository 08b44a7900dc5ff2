"""Side-by-side timing: interleaved pairs in one process, memory in a fresh process a variant, rows in JSON."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Ratio:
    """How many times faster the candidate is: median of paired ratios, its quartiles, and both median seconds."""

    median: float
    lower: float
    upper: float
    baseline: float
    candidate: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.median:.2f}x [{self.lower:.2f}, {self.upper:.2f}]"


def _seconds(call: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleaved(
    baseline: Callable[[], object],
    candidates: Mapping[str, Callable[[], object]],
    rounds: int = 15,
    warmup: int = 3,
) -> dict[str, Ratio]:
    """Time ``baseline`` and every candidate in turn, ``rounds`` times after ``warmup`` rounds; the order rotates.

    Each candidate is paired with the baseline of its own round.
    """
    calls = {"": baseline, **candidates}
    names = list(calls)
    for _ in range(warmup):
        for call in calls.values():
            call()
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(_seconds(calls[name]))
    return {name: _ratio(times[""], times[name]) for name in candidates}


def _ratio(baseline: list[float], candidate: list[float]) -> Ratio:
    ratios = [a / b for a, b in zip(baseline, candidate, strict=True)]
    lower, median, upper = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(median, lower, upper, statistics.median(baseline), statistics.median(candidate), len(ratios))


def paired(baseline: Callable[[], object], candidate: Callable[[], object], pairs: int = 15, warmup: int = 3) -> Ratio:
    """Time ``baseline`` and ``candidate`` in turn, ``pairs`` times after ``warmup`` turns; the order alternates."""
    return interleaved(baseline, {"candidate": candidate}, pairs, warmup)["candidate"]


def _child(function: Callable[..., Callable[[], object]], arguments: tuple[Any, ...], threads: int, pipe: Any) -> None:
    torch.set_num_threads(threads)
    call = function(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        pipe.send(torch.cuda.max_memory_allocated() - before)
        return
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call()
    pipe.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)


def peak_rise(function: Callable[..., Callable[[], object]], *arguments: Any) -> int:
    """Bytes by which peak memory rises when ``function(*arguments)()`` runs in a fresh process.

    ``function`` makes inputs and returns the call to measure; it must be importable. On CUDA it is that of allocated
    memory, on CPU that of the largest resident set.
    """
    # An executed process inherits the peak of its starter; one forked from a small server begins at its own.
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(function, arguments, torch.get_num_threads(), sender))
    process.start()
    sender.close()
    try:
        rise = receiver.recv()
    except EOFError:
        raise RuntimeError(f"measuring {function.__name__}{arguments} failed in its process") from None
    finally:
        process.join()
    return rise


def machine() -> str:
    """The device that rows are measured on, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return f"{cpu}, {os.cpu_count()} cores"


def write(name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], notes: Sequence[str] = ()) -> Path:
    """Print a table and write it to ``benchmarks/results/NAME.json`` (``NAME-cuda.json`` on CUDA)."""
    widths = [max(len(str(cell)) for cell in column) for column in zip(columns, *rows, strict=True)]
    for line in (columns, *rows):
        print("  ".join(str(cell).ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for note in notes:
        print(note)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / (f"{name}-cuda.json" if torch.cuda.is_available() else f"{name}.json")
    record = {
        "command": f"python -m benchmarks.{name}",
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "date": time.strftime("%Y-%m-%d"),
        "columns": list(columns),
        "rows": [list(row) for row in rows],
        "notes": list(notes),
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path
