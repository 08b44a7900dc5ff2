"""Where the progress of a long piece of work goes: a function, a bar with the time left, or nowhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[int, int], None]


@contextmanager
def reporting(progress: Report | bool | None, what: str | Callable[[], str], unit: str = "images") -> Iterator[Report]:
    """What to call with (done, in all): ``progress`` if it is a function, else a bar named ``what``, or nothing.

    A function ``what`` is asked for the name at every report. True and False force or forbid the bar; None shows it
    where standard error is a terminal. Of several processes only the first speaks.
    """
    if callable(progress):
        yield progress if _first() else _silent
        return
    if not _first() or not (sys.stderr.isatty() if progress is None else progress):
        yield _silent
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.TaskProgressColumn(),
        bars.TextColumn(f"{{task.completed:.0f}}/{{task.total:.0f}} {unit}"),
        bars.TimeElapsedColumn(),
        bars.TextColumn("left"),
        bars.TimeRemainingColumn(),
    )
    name = what if callable(what) else lambda: what
    with bars.Progress(*columns, console=Console(stderr=True)) as bar:
        row = bar.add_task(name(), total=1)
        yield lambda done, total: bar.update(row, completed=done, total=total, description=name())


def _first() -> bool:
    """Whether this process speaks for the run."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))) == 0


def _silent(done: int, total: int) -> None:
    """Report to nobody."""
