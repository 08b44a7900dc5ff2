"""The command line: parses and prints, nothing else.

Exit status: 0 done, 1 checked and wrong, 2 bad input, 3 the run failed, 130 or 143 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from repertory import __version__, catalog
from repertory.errors import unknown_name

if TYPE_CHECKING:
    from rich.console import Console

Command = Callable[[argparse.Namespace], int]
BAD_INPUT = (
    argparse.ArgumentError,
    ValueError,
    TypeError,
    KeyError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
)


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is one sentence and not a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see '{self.prog} --help')")


def _console() -> Console:
    from rich.console import Console

    return Console()


def _table(*columns: str, **settings: Any) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, **settings)
    for column in columns:
        table.add_column(column.lstrip("#"), justify="right" if column.startswith("#") else "left", overflow="fold")
    return table


def _row(slug: str) -> dict[str, Any]:
    card, status = catalog.card(slug), catalog.status(slug)
    return {
        "slug": slug,
        "field": card.field,
        "task": card.task,
        "title": card.title,
        "year": card.year,
        "status": status.status,
        "stale": status.stale,
        "vectors_passed": status.vectors_passed,
        "vectors_total": status.vectors_total,
    }


def _known(kind: str, value: str | None, known: Sequence[str]) -> None:
    if value is not None and value not in known:
        raise unknown_name(kind, value, known)


def _list(options: argparse.Namespace) -> int:
    cards = catalog.cards().values()
    _known("field", options.field, sorted({card.field for card in cards}))
    _known("task", options.task, sorted({card.task for card in cards}))
    _known("status", options.status, catalog.STATUSES)
    rows = [_row(slug) for slug in catalog.list_systems(options.field, options.task)]
    rows = [row for row in rows if options.status in (None, row["status"])]
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    table = _table("system", "field", "title", "#year", "status", "#vectors")
    for row in rows:
        vectors = f"{row['vectors_passed']}/{row['vectors_total']}" if row["vectors_total"] else ""
        mark = " (stale)" if row["stale"] else ""
        table.add_row(row["slug"], row["field"], row["title"], str(row["year"]), row["status"] + mark, vectors)
    _console().print(table)
    print(f"{len(rows)} systems; `repertory show SYSTEM` says more of one")
    return 0


def _show(options: argparse.Namespace) -> int:
    card, status = catalog.card(options.system), catalog.status(options.system)
    if options.json:
        parts = [vars(part) for part in card.parts]
        published = [vars(figure) for figure in card.published]
        print(
            json.dumps(_row(card.slug) | vars(card) | {"parts": parts, "published": published}, indent=1, default=list)
        )
        return 0
    console = _console()
    console.print(f"[bold]{card.title}[/bold]\n{card.venue}, {card.year}", highlight=False)
    facts = _table("", "", show_header=False)
    facts.add_row("purpose", card.purpose)
    facts.add_row("field, task", f"{card.field}, {card.task}")
    facts.add_row("status", status.status + (" (stale)" if status.stale else ""))
    if status.vectors_total:
        facts.add_row("parity vectors", f"{status.vectors_passed} of {status.vectors_total} pass")
    facts.add_row("training only", card.training_only or "nothing")
    facts.add_row("at inference", card.inference)
    sources = {"arXiv": card.arxiv, "doi": card.doi, "authors' code": card.repository, "its licence": card.licence}
    for name, value in sources.items():
        facts.add_row(name, value or "none known")
    facts.add_row("models", ", ".join(card.models) or "none")
    facts.add_row("methods", ", ".join(card.methods) or "none")
    console.print(facts)
    parts = _table("part", "proved by")
    for part in card.parts:
        proof = "inferred, not proved" if part.inferred else part.test or "vectors: " + ", ".join(part.kinds)
        parts.add_row(part.name, proof)
    console.print(parts)
    if card.published:
        figures = _table("published", "#value", "unit", "setting", "source")
        for figure in card.published:
            figures.add_row(figure.metric, f"{figure.value:g}", figure.unit, figure.setting, figure.source)
        console.print(figures)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from repertory.workflows.verify import record, verify

    def on_report(report: Any) -> None:
        verdict = "pass" if report.passed else "FAIL"
        print(f"{verdict}  {report.system:28} {report.kind:24} {report.name:32} worst {report.worst:.1e}", flush=True)
        for output in report.outputs:
            if options.verbose or output.problem:
                print(f"      {output.name:40} {output.error:.1e}  {output.problem}".rstrip())

    reports = verify(options.target, on_report=on_report)
    failed = sum(not report.passed for report in reports)
    if options.record:
        files = [target for target in options.target if target.endswith(".json")]
        if files:
            raise ValueError(f"--record derives the status of whole systems; {files[0]} is one vector")
        for slug, status in record(options.target, reports).items():
            vectors = f"{status['vectors_passed']}/{status['vectors_total']} vectors"
            print(f"recorded  {slug}: {status['status']}, {vectors}")
    print(f"{len(reports) - failed} passed, {failed} failed")
    return 1 if failed else 0


def _metrics(console: Console, metrics: Mapping[str, float]) -> None:
    table = _table("metric", "#value")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
    console.print(table)


def _run(options: argparse.Namespace) -> Any:
    from repertory.workflows import Run

    return Run.open(options.run, model=options.model)


def _inference(run: Any, options: argparse.Namespace) -> Any:
    """How a segmentor is to score pictures; None for a classifier, for which nothing may be asked."""
    names = ("overlap", "scales", "mirror")
    given = {name: value for name in names if (value := getattr(options, name)) not in (None, False)}
    if run.task == "segmentation":
        return run.inference(options.inference, **given)
    if options.inference is not None or given:
        asked = "inference" if options.inference is not None else next(iter(given))
        raise ValueError(f"--{asked} is for segmentors; the model of {run.path} is a classifier")
    return None


def _evaluate(options: argparse.Namespace) -> int:
    run = _run(options)
    metrics = run.evaluate(
        data=options.data,
        root=options.root,
        inference=_inference(run, options),
        per_class=options.per_class,
        progress=None,
    )
    if options.json:
        print(json.dumps(metrics, indent=1))
    else:
        _metrics(_console(), metrics)
    return 0


def _segment(run: Any, options: argparse.Namespace) -> int:
    if options.out is None:
        raise ValueError("--out is missing; it must name the folder for class indices and overlays")
    inference = _inference(run, options)
    rows = run.segment(options.images, options.out, inference=inference, opacity=options.opacity, progress=None)
    table = _table("image", "class", "#share of the pixels")
    for row in rows[:10]:
        for rank, (name, share) in enumerate(list(row["shares"].items())[:3]):
            table.add_row(row["image"] if rank == 0 else "", name, f"{share:.3f}")
    _console().print(table)
    pictures = "1 picture" if len(rows) == 1 else f"{len(rows)} pictures"
    print(f"class indices of {pictures} in {options.out / 'indices'}, overlays in {options.out / 'overlays'}")
    return 0


def _predict(options: argparse.Namespace) -> int:
    run = _run(options)
    if run.task == "segmentation":
        return _segment(run, options)
    _inference(run, options)
    rows = run.predict(options.images, top_k=options.top_k, out=options.out)
    if options.out:
        print(f"{len(rows)} predictions in {options.out}")
        return 0
    table = _table("image", "class", "#probability")
    for row in rows:
        for rank, (name, probability) in enumerate(row["top"]):
            table.add_row(row["image"] if rank == 0 else "", name, f"{probability:.4f}")
    _console().print(table)
    return 0


def _export(options: argparse.Namespace) -> int:
    print(_run(options).export(format=options.format, path=options.out))
    return 0


def _pairs(items: Sequence[str], option: str) -> dict[str, str]:
    for item in items:
        if "=" not in item:
            raise ValueError(f"{option} {item!r} is not of the form NAME=ROOT")
    return dict(item.split("=", 1) for item in items)


def _reproduce(options: argparse.Namespace) -> int:
    from repertory.workflows import reproduce

    if bool(options.system) == options.all:
        raise ValueError("name systems to reproduce, or --all (not both)")
    evidence = reproduce(
        options.system or None,
        scale=options.scale,
        seeds=options.seeds,
        data=_pairs(options.data, "--data"),
        probe=options.probe,
        out=options.out,
    )
    return 3 if evidence.failed else 0


def _filter(options: argparse.Namespace) -> int:
    from repertory.workflows import filter_path

    settings = {name: getattr(options, name) for name in ("sigma_s", "sigma_r", "levels", "scale", "backend", "device")}
    written = filter_path(
        options.input,
        options.output,
        application=options.application,
        compare=options.compare,
        progress=True,
        **settings,
    )
    named = ", ".join(str(path) for path in written[:3])
    print(f"wrote {named}" + (f" and {len(written) - 3} more" if len(written) > 3 else ""))
    return 0


def _bench(options: argparse.Namespace) -> int:
    from repertory.workflows import bench_attention

    found = bench_attention(
        options.out,
        options.sides,
        operators=options.operators,
        backbones=options.backbones,
        throughput_side=options.throughput_side,
        batch=options.batch,
        rounds=options.rounds,
        compiled=not options.no_compile,
        memory=not options.no_memory,
        device=options.device,
        progress=_points(),
    )
    _console().print(found)
    return 0


def _points() -> Callable[[int, int], None]:
    """A line on standard error for each point measured, written over where that is a terminal."""
    end = "\r" if sys.stderr.isatty() else "\n"
    return lambda done, total: print(f"measured {done} of {total} points", end=end, file=sys.stderr, flush=True)


def _task(arguments: Sequence[str]) -> str:
    """The task that ``arguments`` of train name, themselves or by their configuration file."""
    import yaml

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--task")
    parser.add_argument("--config", type=Path)
    given, _ = parser.parse_known_args(list(arguments))
    task = given.task
    if task is None and given.config is not None and given.config.is_file():
        config = yaml.safe_load(given.config.read_text(encoding="utf-8"))
        task = config.get("task") if isinstance(config, dict) else None
    task = "classification" if task is None else task
    _known("task", task, catalog.TASKS)
    return task


def _train_parser(task: str = "classification") -> Any:
    from jsonargparse import ArgumentParser

    from repertory.training.settings import FitSettings, SegmentationSettings

    parser = ArgumentParser(
        prog="repertory train",
        description="Train a model with any compatible methods on a data set or a folder of pictures.",
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="YAML file of options; options after it win")
    parser.add_argument(
        "--task", type=str, default=task, help="classification or segmentation; the options below depend on it"
    )
    parser.add_argument("--model", type=str, required=True, help="name of a model, of ours or timm's")
    parser.add_argument(
        "--model_args", type=dict[str, Any], default={}, help="as --model-args.NAME VALUE, for the model"
    )
    parser.add_argument("--method", type=str, action="append", default=[], help="name of a method; may be repeated")
    parser.add_argument(
        "--data", type=str, required=True, help="name of a data set, or folder (a path with / always is one)"
    )
    parser.add_argument("--root", type=str, help="where the files of a published data set lie")
    parser.add_argument("--checkpoint", type=str, help="weights to begin with; another classifier is made anew")
    parser.add_argument(
        "--reset_head",
        type=bool | None,
        nargs="?",
        const=True,
        help="make the head anew where the checkpoint has other classes; a segmentor's is not unless this is given",
    )
    parser.add_argument(
        "--image_size",
        type=int,
        help="side of the square images; when absent the model's own, or 32 for bundled thumbnails, 64 for composites",
    )
    parser.add_argument("--val_fraction", type=float, default=0.2, help="share held out where the folder has no split")
    parser.add_argument("--out", type=str, help="run folder; runs/<model>-<methods>-<seed> when absent")
    parser.add_argument("--resume", type=bool, nargs="?", const=True, default=False, help="go on with an existing run")
    parser.add_argument("--overwrite", type=bool, nargs="?", const=True, default=False, help="replace an existing run")
    parser.add_class_arguments(SegmentationSettings if task == "segmentation" else FitSettings, None)
    for name in catalog.list_methods():
        parser.add_class_arguments(catalog.method_class(name), name)
    return parser


def _underscored(argument: str) -> str:
    """An option as the typed parser spells it: ``--batch-size=8`` and ``--batch_size=8`` are one."""
    if not argument.startswith("--"):
        return argument
    option, equals, value = argument.partition("=")
    return "--" + option[2:].replace("-", "_") + equals + value


def _tenths() -> Callable[[int, int], None] | None:
    """A line each tenth of the way, where standard error is no terminal that could show a bar."""
    if sys.stderr.isatty():
        return None
    start, told = time.monotonic(), [-1]

    def report(done: int, total: int) -> None:
        if (tenth := 10 * done // max(total, 1)) > told[0]:
            told[0] = tenth
            print(f"trained on {done} of {total} images, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)

    return report


def _train(arguments: list[str]) -> int:
    from dataclasses import fields

    from repertory.training.settings import FitSettings, SegmentationSettings

    task = _task(arguments)
    parser = _train_parser(task)
    given = parser.parse_args([_underscored(argument) for argument in arguments]).as_dict()
    from repertory.workflows import train  # what loads data and models is not waited for by --help or a wrong option

    kind = SegmentationSettings if task == "segmentation" else FitSettings
    settings = kind(**{field.name: given[field.name] for field in fields(kind)})
    run = train(
        given["model"],
        methods=[(name, given.get(name, {})) for name in given["method"]],
        data=given["data"],
        task=task,
        root=given["root"],
        settings=settings,
        model_args=given["model_args"],
        checkpoint=given["checkpoint"],
        reset_head=given["reset_head"],
        image_size=given["image_size"],
        val_fraction=given["val_fraction"],
        out=given["out"],
        resume=given["resume"],
        overwrite=given["overwrite"],
        progress=_tenths(),
    )
    _metrics(_console(), run.metrics)
    print(f"run in {run.path}")
    return 0


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="folder that `repertory train` wrote, or a checkpoint with --model")
    parser.add_argument("--model", help="name of the model, where RUN is a bare checkpoint")


def _inference_arguments(parser: argparse.ArgumentParser) -> None:
    """How a segmentor scores pictures; what is absent is as in its training."""
    group = parser.add_argument_group("segmentors")
    group.add_argument(
        "--inference", help="whole (pictures in one pass), resized (to the model's size), or sliding (windows of it)"
    )
    group.add_argument("--overlap", type=float, help="share of a window that the next one covers again")
    group.add_argument("--scales", type=float, nargs="+", help="factors of the size whose scores are averaged")
    group.add_argument("--mirror", action="store_true", help="average the scores of mirrored pictures too")


def _add_catalogue(commands: Any) -> None:
    sub = commands.add_parser("list", help="list the systems and what is proved of each")
    sub.add_argument("--field", help="only systems of this field")
    sub.add_argument("--task", help="only systems for this task")
    sub.add_argument("--status", help=f"only systems of this status: {', '.join(catalog.STATUSES)}")
    sub.add_argument("--json", action="store_true", help="print JSON rows")
    sub.set_defaults(command=_list)
    sub = commands.add_parser("show", help="show the card of one system")
    sub.add_argument("system", help="slug, as `repertory list` prints it")
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub.set_defaults(command=_show)
    sub = commands.add_parser("verify", help="run the parity vectors of systems, or of files")
    sub.add_argument("target", nargs="*", help="slug or vector file; every system when none is named")
    sub.add_argument("--verbose", action="store_true", help="one line an output with its worst error")
    sub.add_argument("--record", action="store_true", help="write each system's status (in a source tree)")
    sub.set_defaults(command=_verify)


def _add_runs(commands: Any) -> None:
    commands.add_parser("train", help="train a model with any methods on a data set or folder", add_help=False)
    sub = commands.add_parser("evaluate", help="evaluate a run")
    _run_arguments(sub)
    sub.add_argument("--data", help="name of a data set, or folder; the run's own when absent")
    sub.add_argument("--root", type=Path, help="where the files of a published data set lie")
    sub.add_argument("--json", action="store_true", help="print JSON")
    _inference_arguments(sub)
    sub.add_argument("--per-class", action="store_true", help="also print the IoU of every class of a segmentor")
    sub.set_defaults(command=_evaluate)
    sub = commands.add_parser("predict", help="classify or segment images with a run")
    _run_arguments(sub)
    sub.add_argument("images", nargs="+", type=Path, help="image files or folders")
    sub.add_argument("--top-k", type=int, default=5, help="classes a picture (default 5)")
    sub.add_argument(
        "--out", type=Path, help="write a CSV file instead of a table; of a segmentor the folder to write to"
    )
    sub.add_argument("--opacity", type=float, default=0.6, help="of a segmentor's colours over pictures (default 0.6)")
    _inference_arguments(sub)
    sub.set_defaults(command=_predict)
    sub = commands.add_parser("export", help="export a run's model")
    _run_arguments(sub)
    sub.add_argument("--format", choices=("onnx", "torch_export"), default="onnx", help="file format (default onnx)")
    sub.add_argument("--out", type=Path, help="file to write; inside the run when absent")
    sub.set_defaults(command=_export)


def _add_evidence(commands: Any) -> None:
    sub = commands.add_parser("reproduce", help="run declared experiments and write a report")
    sub.add_argument("system", nargs="*", help="slugs of systems")
    sub.add_argument("--all", action="store_true", help="every system that declares an experiment")
    sub.add_argument(
        "--scale", choices=("smoke", "small"), default="smoke", help="budget (default smoke: not evidence)"
    )
    sub.add_argument("--seeds", type=int, help="seeds an arm; the experiment's own number when absent")
    sub.add_argument("--data", action="append", default=[], metavar="NAME=ROOT", help="where a published data set lies")
    sub.add_argument("--probe", action="store_true", help="the second comparison of each system, where it has one")
    sub.add_argument(
        "--out", type=Path, default=Path("reproduced"), help="folder for runs and report (default reproduced)"
    )
    sub.set_defaults(command=_reproduce)
    sub = commands.add_parser("filter", help="smooth the textures of a picture, keeping its structure")
    sub.add_argument("input", type=Path, help="picture, or folder of pictures")
    sub.add_argument("output", type=Path, help="file, or folder, to write")
    sub.add_argument("--sigma-s", type=float, default=5.0, help="spatial size of what is smoothed, pixels (default 5)")
    sub.add_argument(
        "--sigma-r", type=float, help="range of colour, of [0, 1] (default 0.05, or the application's own)"
    )
    sub.add_argument("--levels", type=int, default=11, help="pyramid levels (default 11)")
    sub.add_argument("--scale", type=float, default=0.8, help="size ratio of neighbouring levels (default 0.8)")
    sub.add_argument(
        "--application", help="detail, abstraction, tonemap, dehalftone or enhance, in place of plain smoothing"
    )
    sub.add_argument("--backend", default="auto", help="auto, reference, eager, compiled or triton (default auto)")
    sub.add_argument("--device", default="cpu", help="where to compute, such as cpu or cuda (default cpu)")
    sub.add_argument("--compare", action="store_true", help="also write input and result side by side")
    sub.set_defaults(command=_filter)
    _add_bench(commands)


def _add_bench(commands: Any) -> None:
    sub = commands.add_parser("bench", help="measure where each attention wins, on this machine")
    sub.add_argument("subject", choices=("attention",), help="what to measure")
    sub.add_argument("--sides", type=int, nargs="+", default=(56, 112, 224, 448), help="of the input, pixels")
    sub.add_argument("--operators", nargs="*", metavar="NAME", help="operators; all when absent")
    sub.add_argument("--backbones", nargs="*", metavar="NAME", help="networks of timm, ours among them; all of ours")
    sub.add_argument("--throughput-side", type=int, default=224, help="side for images per second (default 224)")
    sub.add_argument("--batch", type=int, default=8, help="images at a time there (default 8)")
    sub.add_argument("--rounds", type=int, default=5, help="turns each measurement takes (default 5)")
    sub.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    sub.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    sub.add_argument("--device", help="cuda or cpu; CUDA where it is there when absent")
    sub.add_argument(
        "--out", type=Path, default=Path("bench-attention"), help="folder for table and plot (default bench-attention)"
    )
    sub.set_defaults(command=_bench)


def _parser() -> _Parser:
    parser = _Parser(prog="repertory", description="Published vision methods, kept performable.")
    parser.add_argument("--version", action="version", version=f"repertory {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_catalogue(commands)
    _add_runs(commands)
    _add_evidence(commands)
    return parser


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["train"]:
        return _train(arguments[1:])
    parser = _parser()
    if not arguments:
        parser.print_help()
        return 2
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices
    if not arguments[0].startswith("-") and arguments[0] not in commands:
        raise unknown_name("command", arguments[0], commands)
    options = parser.parse_args(arguments)
    return options.command(options)


def _sentence(error: Exception) -> str:
    """What ``error`` says, on one line; of what a loader process died of, its own words and not torch's report."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if "Original Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        return _dispatch([argument for argument in given if argument != "--debug"])
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except KeyboardInterrupt as interrupt:
        print(f"repertory: {interrupt or 'interrupted'}", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            raise
        print(f"repertory: {_sentence(error)}", file=sys.stderr)
        return 2 if isinstance(error, (*BAD_INPUT, ImportError)) else 3


if __name__ == "__main__":
    sys.exit(main())
