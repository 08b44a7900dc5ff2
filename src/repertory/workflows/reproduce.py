"""The main job: run declared experiments, compare method and baseline, write table, ``results.json`` and report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from repertory.catalog import card, cards, fingerprint, room
from repertory.evidence.report import write_report
from repertory.evidence.runner import Run, Study, Task, Watcher, run_all, tasks_of
from repertory.evidence.summary import summarise
from repertory.evidence.table import evidence_table
from repertory.evidence.wording import duration, number, plural, spoken, with_unit
from repertory.evidence.worker import load_experiment, write_json

LOG_WIDTH = 132  # columns of the table where standard output is no terminal


@dataclass(frozen=True)
class Reproduction:
    """What :func:`reproduce` gives back.

    ``results`` is what stands in ``results.json``; ``failed`` holds the runs that failed (exit status 3 on the command
    line), ``results_path`` and ``report_path`` where the files lie.
    """

    results: Mapping[str, Any]
    runs: tuple[Run, ...]
    out: Path

    @property
    def failed(self) -> list[Run]:
        """The runs that gave no result."""
        return [run for run in self.runs if run.record is None]

    @property
    def results_path(self) -> Path:
        """Every run's settings, seed, versions, wall time and peak memory, with the comparisons."""
        return self.out / "results.json"

    @property
    def report_path(self) -> Path:
        """The self-contained page."""
        return self.out / "report.html"

    def verdict(self, system: str) -> str:
        """``better``, ``no difference shown``, ``worse``, or why there is no evidence."""
        return next(s["verdict"] for s in self.results["systems"] if s["system"] == system)

    def table(self) -> Table:
        """The terminal table."""
        return evidence_table(self.results)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.table()
        yield from (_failure(run) for run in self.failed)
        yield f"report: {escape(str(self.report_path))}"


def experiments() -> list[str]:
    """Slugs of the systems that declare an experiment."""
    return [slug for slug in cards() if (room(slug) / "experiment.py").is_file()]


def reproduce(
    systems: Sequence[str] | None = None,
    *,
    scale: Literal["smoke", "small"] = "smoke",
    seeds: int | None = None,
    data: Mapping[str, str | Path] | None = None,
    probe: bool = False,
    out: str | Path = "reproduced",
    progress: bool = True,
) -> Reproduction:
    """Run arms x seeds of declared experiments and report what they show.

    Started again with the same ``out`` it skips what is done and resumes what was cut; a result whose settings or code
    have changed since is made anew. A run that fails is reported and the others go on.

    Args:
        systems: slugs; None for every system that declares an experiment.
        scale: ``smoke`` shows that all works and is never evidence; ``small`` is the declared budget.
        seeds: seeds an arm, from 0; None for the experiment's own number. Fewer than 5 are not evidence.
        data: folders of published data sets the user has, by name.
        probe: run each system's second comparison, ``PROBE``, in place of its experiment: on data drawn by the sheet's
            recipe, where what is claimed shows alone, or on another task.
        out: folder for the runs, ``results.json`` and ``report.html``; probes go to ``probes`` in it.
        progress: show progress, then the table.

    Raises:
        ValueError: an unknown system, one without an experiment or probe, an unknown scale, a bad number of seeds.
        FileNotFoundError: a folder in ``data`` that is not there.
    """
    roots = _roots(data or {})
    if seeds is not None and (isinstance(seeds, bool) or seeds < 1):
        raise ValueError(f"seeds is {seeds}; it must be at least 1")
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"out {str(out)!r} is a file; it must be a folder, or not exist yet")
    studies = [study for slug in _chosen(systems) if (study := _study(slug, probe, systems is not None)) is not None]
    place = out / "probes" if probe else out
    return run_studies(studies, scale=scale, seeds=seeds, roots=roots, out=place, progress=progress)


def run_studies(
    studies: Sequence[Study],
    *,
    scale: str,
    seeds: int | None = None,
    roots: Mapping[str, Path] | None = None,
    out: Path = Path("reproduced"),
    progress: bool = True,
) -> Reproduction:
    """:func:`reproduce` for studies at hand, such as an experiment of one's own that stands in no system's room."""
    tasks = [task for study in studies for task in tasks_of(study, scale, seeds, out)]
    out.mkdir(parents=True, exist_ok=True)
    with _display(tasks) if progress else nullcontext(Watcher()) as watcher:
        runs = run_all(tasks, roots or {}, watcher)
    results = summarise(studies, runs, scale)
    reproduction = Reproduction(results, tuple(runs), out)
    write_json(results, reproduction.results_path)
    write_report(results, reproduction.report_path)
    if progress:
        _console().print(reproduction)
    return reproduction


def _console() -> Console:
    """Standard output; a file or a pipe has no width, and is given one that the table fits."""
    console = Console()
    return console if console.is_terminal else Console(width=LOG_WIDTH)


def _roots(data: Mapping[str, str | Path]) -> dict[str, Path]:
    roots = {name: Path(root).expanduser() for name, root in data.items()}
    for name, root in roots.items():
        if not root.is_dir():
            raise FileNotFoundError(f"data {name}={root}: no such folder")
    return roots


def _chosen(systems: Sequence[str] | None) -> list[str]:
    if isinstance(systems, str):
        raise TypeError(f"systems is the string {systems!r}; give a list of slugs")
    available = experiments()
    if systems is None:
        return available
    for slug in systems:
        if card(slug).slug not in available:
            raise ValueError(
                f"system {slug!r} declares no experiment; those that do: {', '.join(available) or 'none yet'}"
            )
    return list(dict.fromkeys(systems))


def _study(slug: str, probe: bool, named: bool) -> Study | None:
    """The study of a system; None where it has no probe, ValueError if it was ``named`` for one."""
    module, name = f"repertory.systems.{slug}.experiment", "PROBE" if probe else "EXPERIMENT"
    if not hasattr(import_module(module), name):
        if named:
            raise ValueError(f"system {slug!r} declares an experiment but no probe")
        return None
    own = card(slug)
    published = [asdict(figure) for figure in own.published]
    facts = {"title": own.title, "venue": own.venue, "year": own.year, "published": published}
    reference = f"{module}:{name}"
    return Study(load_experiment(reference), reference, fingerprint(slug), facts)


def _name(task: Task) -> str:
    return f"{task.study.experiment.system} · {task.arm.name} · seed {task.seed}"


def _failure(run: Run) -> RenderableType:
    log = run.task.folder / "log.txt"
    return f"[red]failed[/red] {escape(_name(run.task))}: {escape(run.error)} (log: {escape(str(log))})"


def _line(run: Run) -> RenderableType:
    """What a run came to, in one line."""
    if run.record is None:
        return _failure(run)
    experiment = run.task.study.experiment
    value = with_unit(number(run.record["metrics"][experiment.metric]), experiment.unit)
    how = "done before" if run.reused else duration(run.record["wall_seconds"])
    return escape(f"{_name(run.task)}: {spoken(experiment.metric)} {value} ({how})")


@contextmanager
def _display(tasks: Sequence[Task]) -> Iterator[Watcher]:
    """One progress display for the whole job on stderr: a bar over all runs, the present run beneath it.

    Where stderr is no terminal, a line a run takes its place.
    """
    console = Console(stderr=True)
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    whole = bars.add_task("all runs", total=max(1, len(tasks)), count=plural(len(tasks), "run"))
    current = bars.add_task("", total=1, count="", visible=False)
    ended: list[Run] = []

    def started(task: Task) -> None:
        bars.reset(current, total=1, description=escape(_name(task)), visible=True, count="")

    def moved(task: Task, done: int, total: int) -> None:
        bars.update(current, completed=done, total=max(total, 1), count=f"{number(done, 0)}/{number(total, 0)}")
        bars.update(whole, completed=len(ended) + min(1.0, done / max(total, 1)))

    def finish(run: Run) -> None:
        ended.append(run)
        bars.update(whole, completed=len(ended), count=f"{len(ended)}/{plural(len(tasks), 'run')}")
        if run.record is None or not console.is_terminal:
            bars.console.print(_line(run), soft_wrap=True, highlight=False)

    with bars:
        yield Watcher(started, moved, finish)
        bars.update(current, visible=False)
