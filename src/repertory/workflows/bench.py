"""Where each attention wins: time and memory of operators and backbones against the side of the input."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from repertory.catalog import cards
from repertory.errors import unknown_name
from repertory.files import Replacement
from repertory.ops.backend import compiler_found
from repertory.ops.criss_cross import criss_cross_attention
from repertory.ops.dilated_attention import dilated_attention
from repertory.ops.frequency_filter import frequency_filter
from repertory.ops.sliding_window import sliding_window_sum

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIDES = (56, 112, 224, 448)
STRIDE = 4  # operators see the map of a first stage
CHANNELS, HEADS = 96, 3
WINDOW = 7
GLOBAL = "global attention"
FIELDS = ("attention backbones", "segmentation and parsing")  # of the systems whose backbones attend
REFERENCES = ("swin_tiny_patch4_window7_224", "convnext_tiny", "deit_small_patch16_224")  # timm's
BOUND = ("swin", "container_pam")  # networks that are built for one size
MEBIBYTE = 2**20

Call = Callable[[], object]


def _leaves(side: int, device: str, *channels: int) -> list[Tensor]:
    """Maps (1, C, side / 4, side / 4) for each of ``channels``, which want gradients."""
    generator = torch.Generator().manual_seed(0)
    shape = side // STRIDE, side // STRIDE
    return [torch.randn(1, c, *shape, generator=generator).to(device).requires_grad_() for c in channels]


def _both_ways(forward: Callable[..., Tensor], leaves: Sequence[Tensor]) -> Call:
    """Forward, and backward to every leaf."""
    grad = torch.ones_like(forward(*leaves))
    return lambda: torch.autograd.grad(forward(*leaves), leaves, grad)


def _global(side: int, device: str) -> Call:
    """On tokens (1, heads, N, C / heads), as a transformer has them: other strides would forfeit the fast kernels."""
    maps = _leaves(side, device, *[CHANNELS] * 3)
    tokens = [x.detach().reshape(1, HEADS, CHANNELS // HEADS, -1).transpose(2, 3).contiguous() for x in maps]
    return _both_ways(lambda q, k, v: F.scaled_dot_product_attention(q, k, v), [x.requires_grad_() for x in tokens])


def _dilated(side: int, device: str) -> Call:
    def forward(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return dilated_attention(query, key, value, 3, (1, 2, 3), HEADS)

    return _both_ways(forward, _leaves(side, device, *[CHANNELS] * 3))


def _sliding(side: int, device: str) -> Call:
    def forward(value: Tensor, weights: Tensor) -> Tensor:
        return sliding_window_sum(value, weights.unflatten(1, (HEADS, WINDOW**2)))

    return _both_ways(forward, _leaves(side, device, CHANNELS, HEADS * WINDOW**2))


def _criss_cross(side: int, device: str) -> Call:
    return _both_ways(criss_cross_attention, _leaves(side, device, CHANNELS // 8, CHANNELS // 8, CHANNELS))


def _frequency(side: int, device: str) -> Call:
    sizes = {3: CHANNELS // 4, 5: 3 * CHANNELS // 8, 7: 3 * CHANNELS // 8}
    weights = [torch.randn(c, 1, k, k).to(device) for k, c in sizes.items()]
    biases = [torch.zeros(c, device=device) for c in sizes.values()]
    return _both_ways(lambda qkv: frequency_filter(qkv, weights, biases), _leaves(side, device, 3 * CHANNELS))


def _natten(side: int, device: str) -> Call:
    """On (1, H, W, heads, C / heads), as that package wants them."""
    na2d = importlib.import_module("natten").na2d
    maps = _leaves(side, device, *[CHANNELS] * 3)
    heads = [x.detach().permute(0, 2, 3, 1).unflatten(3, (HEADS, CHANNELS // HEADS)).contiguous() for x in maps]
    return _both_ways(lambda q, k, v: na2d(q, k, v, kernel_size=WINDOW), [x.requires_grad_() for x in heads])


_OPERATORS: dict[str, Callable[[int, str], Call]] = {
    GLOBAL: _global,
    "dilated attention 3x3": _dilated,
    f"sliding-window sum {WINDOW}x{WINDOW}": _sliding,
    "criss-cross attention": _criss_cross,
    "frequency filter": _frequency,
    f"NATTEN {WINDOW}x{WINDOW}": _natten,
}


def operators() -> list[str]:
    """Names of the operators that can be measured here: NATTEN among them where it is installed."""
    natten = importlib.util.find_spec("natten") is not None
    return [name for name in _OPERATORS if natten or not name.startswith("NATTEN")]


def backbones() -> list[str]:
    """Names of every backbone of ours that attends and that timm knows, then :data:`REFERENCES`."""
    import repertory.timm

    ours = (name for card in cards().values() if card.field in FIELDS for name in card.models)
    return [*sorted(set(ours) & set(repertory.timm.__all__)), *REFERENCES]


def _network(name: str, side: int, device: str) -> nn.Module:
    import timm

    import repertory.timm  # noqa: F401

    if name.startswith("deit"):
        settings: dict[str, Any] = {"dynamic_img_size": True, "dynamic_img_pad": True}
    else:
        settings = {"img_size": side} if name.startswith(BOUND) else {}
    torch.manual_seed(0)
    return timm.create_model(name, **settings).eval().to(device)


def _inference(model: Callable[[Tensor], Tensor], images: Tensor) -> Call:
    @torch.no_grad()
    def call() -> Tensor:
        return model(images)

    return call


def _call(kind: str, name: str, side: int, device: str) -> Call:
    """What is measured: an operator forward and backward, or a backbone's inference on one image."""
    if kind == "operator":
        return _OPERATORS[name](side, device)
    return _inference(_network(name, side, device), torch.zeros(1, 3, side, side, device=device))


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _rounds(calls: Mapping[Any, Call], rounds: int, device: str) -> dict[Any, float]:
    """Median seconds of each call; all take turns, so that a slow moment of the machine meets all alike."""
    times: dict[Any, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(rounds):
        first = turn % max(len(names), 1)
        for name in names[first:] + names[:first]:
            _wait(device)
            start = time.perf_counter()
            calls[name]()
            _wait(device)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def _peak(kind: str, name: str, side: int, device: str) -> int:
    """Bytes by which memory rises above inputs and weights during a second call; the first compiles what is compiled.

    On CPU this is for a process of its own: that of one which has done other things is worth nothing.
    """
    if device.startswith("cuda"):
        call = _call(kind, name, side, device)
        call()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        _wait(device)
        return torch.cuda.max_memory_allocated() - before
    _give_memory_back()
    call = _call(kind, name, side, device)
    call()
    gc.collect()
    return _resident_rise(call)


def _give_memory_back() -> None:
    """Let glibc return every freed block above 64 KiB at once, so that a later peak is that of what is in use."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(-3, 2**16)  # M_MMAP_THRESHOLD


def _resident_rise(call: Call) -> int:
    """Bytes by which the peak of resident memory exceeds what is resident before ``call``."""
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():  # not Linux: the peak cannot be reset, so it shows only what exceeds all that was before
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        call()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    reset.write_text("5", encoding="ascii")
    before = _resident("VmRSS")
    call()
    return max(_resident("VmHWM") - before, 0)


def _resident(entry: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{entry}:")) * 1024


def _memory(kind: str, names: Sequence[str], side: int, device: str) -> dict[str, int | None]:
    """:func:`_peak` of each of ``names``, on CPU each in a process of its own; None where that failed."""
    if device.startswith("cuda"):
        return {name: _peak(kind, name, side, device) for name in names}
    # A new interpreter imports all this once and forks for each name: one forked from here would have our threads.
    code = f"from {__name__} import _fork_for_each; _fork_for_each()"
    request = json.dumps([kind, list(names), side, torch.get_num_threads()])
    settings = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}  # a process that ends at once must start no others
    done = subprocess.run(
        [sys.executable, "-c", code], input=request, env=settings, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"measuring memory failed: {_line(RuntimeError(done.stderr.strip()[-300:]))}")
    return json.loads(done.stdout.splitlines()[-1])


def _fork_for_each() -> None:
    """Read what is wanted from standard input, and print bytes by name: one process after the other."""
    kind, names, side, threads = json.loads(sys.stdin.read())
    found = {}
    for name in names:
        receiver, sender = os.pipe()
        child = os.fork()
        if child == 0:
            torch.set_num_threads(threads)
            try:
                os.write(sender, str(_peak(kind, name, side, "cpu")).encode())
            finally:
                os._exit(0)
        os.close(sender)
        with os.fdopen(receiver) as pipe:
            told = pipe.read()
        os.waitpid(child, 0)
        found[name] = int(told) if told else None
    print(json.dumps(found))


@dataclass(frozen=True)
class AttentionBench:
    """What :func:`bench_attention` measured.

    ``results`` is what stands in ``attention.json``: ``rows``, one for each operator or backbone and side, with
    ``seconds`` and ``memory`` in bytes (None where it was not measured, or failed); ``throughput``, images per second
    of each backbone, ``eager`` and ``compiled``; ``notes``; and the machine. ``files`` are what was written.
    """

    results: Mapping[str, Any]
    files: tuple[Path, ...]

    def tables(self) -> list[Table]:
        """Three tables for the terminal: operators, backbones, throughput."""
        titles = {
            "operator": "Operators, forward and backward (ms, MiB)",
            "backbone": "Backbones, inference on one image (ms, MiB)",
        }
        found = [self._curves(kind, title) for kind, title in titles.items() if self._names(kind)]
        return [*found, self._throughput()] if self.results["throughput"] else found

    def _names(self, kind: str) -> list[str]:
        return list(dict.fromkeys(row["name"] for row in self.results["rows"] if row["kind"] == kind))

    def _curves(self, kind: str, title: str) -> Table:
        table = Table(title=title)
        table.add_column(kind)
        for side in self.results["sides"]:
            table.add_column(f"{side} px", justify="right")
        cells = {(row["name"], row["side"]): row for row in self.results["rows"] if row["kind"] == kind}
        for name in self._names(kind):
            table.add_row(name, *(_cell(cells[name, side]) for side in self.results["sides"]))
        return table

    def _throughput(self) -> Table:
        side, batch = self.results["throughput_side"], self.results["batch"]
        table = Table(title=f"Images per second at {side} px, batches of {batch}")
        for column in ("backbone", "eager", "compiled"):
            table.add_column(column, justify="left" if column == "backbone" else "right")
        for row in self.results["throughput"]:
            rates = [row[mode] for mode in ("eager", "compiled")]
            table.add_row(row["name"], *("" if rate is None else f"{rate:.1f}" for rate in rates))
        return table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self.tables()
        yield from self.results["notes"]
        yield "wrote " + ", ".join(str(path) for path in self.files)


def _cell(row: Mapping[str, Any]) -> str:
    if row["seconds"] is None:
        return "failed"
    memory = "" if row["memory"] is None else f", {row['memory'] / MEBIBYTE:.0f}"
    return f"{1e3 * row['seconds']:.1f}{memory}"


def bench_attention(
    out: Path | str,
    sides: Sequence[int] = SIDES,
    *,
    operators: Sequence[str] | None = None,
    backbones: Sequence[str] | None = None,
    throughput_side: int = 224,
    batch: int = 8,
    rounds: int = 5,
    compiled: bool = True,
    memory: bool = True,
    device: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AttentionBench:
    """Measure attention operators and backbones against the side of the input, and draw what was measured.

    Operators get the map of a first stage, a quarter as wide as the input, with 96 channels, forward and backward;
    backbones do inference on one image. Everything at one side takes turns, after a first call that does not count.

    Args:
        out: folder for ``attention.json``, ``attention.png`` and ``attention.svg``.
        sides: of the input in pixels, multiples of 4 from 16 on.
        operators: names of :func:`operators`; None for all, an empty list for none.
        backbones: names of timm, ours among them; None for all of :func:`backbones`, an empty list for none.
        throughput_side: side at which images per second are measured.
        batch: images at a time there.
        rounds: turns each measurement takes; the median counts.
        compiled: also measure images per second under ``torch.compile``, where a compiler is found.
        memory: also measure peak memory (on CPU in a new process for each point).
        device: ``cuda`` or ``cpu``; None for CUDA where it is there.
        progress: called with (points done, points in all).

    Raises:
        ValueError: for a side, a number or a name that does not fit.
    """
    chosen = _chosen("operator", operators, globals()["operators"]())
    networks = _chosen_networks(backbones)
    _check(sides, throughput_side, batch, rounds)
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out {str(folder)!r} is a file; it must be a folder, or not exist yet")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    total = (len(chosen) + len(networks)) * len(sides) + len(networks)
    report = _counted(progress, total)
    notes: list[str] = []
    rows: list[dict[str, Any]] = []
    for kind, names in (("operator", chosen), ("backbone", networks)):
        for side in sides:
            rows += _points(kind, names, side, rounds, memory, device, notes, report)
    throughput = _rates(networks, throughput_side, batch, rounds, compiled, device, notes, report)
    results = {
        "command": "repertory bench attention",
        **_where(device),
        "sides": list(sides),
        "stride": STRIDE,
        "channels": CHANNELS,
        "rounds": rounds,
        "batch": batch,
        "throughput_side": throughput_side,
        "rows": rows,
        "throughput": throughput,
        "notes": notes,
    }
    return AttentionBench(results, tuple(_write(folder, results)))


def _points(
    kind: str,
    names: Sequence[str],
    side: int,
    rounds: int,
    memory: bool,
    device: str,
    notes: list[str],
    report: Callable[[], None],
) -> list[dict[str, Any]]:
    """A row for each of ``names`` at one side."""
    calls: dict[str, Call] = {}
    for name in names:
        try:
            call = _call(kind, name, side, device)
            call()
        except (RuntimeError, ValueError, AssertionError) as error:  # some networks do not take every size
            notes.append(f"{name} at {side} px failed: {_line(error)}")
        else:
            calls[name] = call
    seconds = _rounds(calls, rounds, device)
    calls.clear()
    rows = []
    peaks = _memory(kind, list(seconds), side, device) if memory and seconds else {}
    for name in names:
        found = {"seconds": seconds.get(name), "memory": peaks.get(name)}
        rows.append({"kind": kind, "name": name, "side": side, **found})
        report()
    return rows


def _rates(
    names: Sequence[str],
    side: int,
    batch: int,
    rounds: int,
    compiled: bool,
    device: str,
    notes: list[str],
    report: Callable[[], None],
) -> list[dict[str, Any]]:
    """Images per second of each backbone, eager and compiled taking turns with all others."""
    images = torch.zeros(batch, 3, side, side, device=device)
    if compiled and device == "cpu" and not compiler_found():
        notes.append("no C++ compiler was found, so nothing was compiled")
        compiled = False
    calls: dict[tuple[str, str], Call] = {}
    for name in names:
        try:
            model = _network(name, side, device)
            variants: dict[str, Any] = {"eager": model}
            if compiled:
                variants["compiled"] = torch.compile(model)
            for mode, variant in variants.items():
                call = _inference(variant, images)
                call()
                calls[name, mode] = call
        except Exception as error:  # what a compiler raises has no common base
            notes.append(f"{name} at {side} px failed: {_line(error)}")
        report()
    seconds = _rounds(calls, rounds, device)
    return [
        {"name": name, **{mode: _rate(batch, seconds.get((name, mode))) for mode in ("eager", "compiled")}}
        for name in names
    ]


def _rate(batch: int, seconds: float | None) -> float | None:
    return None if seconds is None else batch / seconds


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _counted(progress: Callable[[int, int], None] | None, total: int) -> Callable[[], None]:
    done = 0

    def report() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return report


def _chosen(what: str, names: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    if names is None:
        return list(known)
    for name in names:
        if name not in known:
            raise unknown_name(what, name, known)
    return list(names)


def _chosen_networks(names: Sequence[str] | None) -> list[str]:
    if names is not None and not names:
        return []  # timm need not be read then
    import timm

    known = backbones()
    return known if names is None else _chosen("backbone", names, [*known, *timm.list_models()])


def _check(sides: Iterable[int], throughput_side: int, batch: int, rounds: int) -> None:
    sides = tuple(sides)
    if not sides:
        raise ValueError("sides is empty; it must name one side or more")
    for name, side in (*(("sides", side) for side in sides), ("throughput_side", throughput_side)):
        if side < 4 * STRIDE or side % STRIDE:
            raise ValueError(f"{name} has {side}; sides must be multiples of {STRIDE} from {4 * STRIDE} on")
    for name, value in (("batch", batch), ("rounds", rounds)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")


def _where(device: str) -> dict[str, Any]:
    """The machine, in words."""
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name()
    else:
        info = Path("/proc/cpuinfo")
        text = info.read_text(encoding="utf-8") if info.is_file() else ""
        models = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
        name = f"{models[0] if models else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    return {
        "machine": name,
        "device": device,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "date": time.strftime("%Y-%m-%d"),
    }


def _write(folder: Path, results: Mapping[str, Any]) -> list[Path]:
    files = [folder / f"attention.{ending}" for ending in ("json", "png", "svg")]
    with Replacement(files[0]) as partial:
        partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    draw(results, *files[1:])
    return files


def draw(results: Mapping[str, Any], *files: Path) -> None:
    """Draw time and memory against the side, both logarithmic, operators above backbones; one file a name."""
    from matplotlib.figure import Figure

    kinds = [kind for kind in ("operator", "backbone") if any(row["kind"] == kind for row in results["rows"])]
    figure = Figure(figsize=(13, 5 * max(len(kinds), 1)), layout="constrained")
    for place, kind in enumerate(kinds):
        for column, (quantity, scale, label) in enumerate(
            (("seconds", 1e3, "time, ms"), ("memory", 1 / MEBIBYTE, "peak memory, MiB"))
        ):
            axes = figure.add_subplot(len(kinds), 2, 2 * place + column + 1)
            _lines(axes, results, kind, quantity, scale)
            axes.set_ylabel(label)
            told = "forward and backward, map at a quarter" if kind == "operator" else "inference, one image"
            axes.set_title(f"{kind}s: {told}")
            if column == 0:
                handles = axes.get_legend_handles_labels()
        if handles[0]:
            axes.legend(*handles, loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize="small", frameon=False)
    figure.suptitle(f"{results['machine']}, {results['threads']} threads, torch {results['torch']}", fontsize="small")
    for file in files:
        with Replacement(file) as partial:
            figure.savefig(partial, format=file.suffix[1:], dpi=130)


def _lines(axes: Axes, results: Mapping[str, Any], kind: str, quantity: str, scale: float) -> None:
    """A line for each name, told apart by mark and dash as well as colour; what all is compared with is black."""
    rows = [row for row in results["rows"] if row["kind"] == kind]
    marks, dashes = "osD^vPX*<>", ("-", "--", ":", "-.")
    names = list(dict.fromkeys(row["name"] for row in rows))
    own = 0
    if not any(row[quantity] for row in rows):
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center")
        return
    for name in names:
        points = [(row["side"], scale * row[quantity]) for row in rows if row["name"] == name and row[quantity]]
        compared = name in (GLOBAL, *REFERENCES)
        index = REFERENCES.index(name) + 1 if name in REFERENCES else own
        axes.plot(
            [side for side, _ in points],
            [value for _, value in points],
            color="black" if compared else f"C{own % 10}",
            linestyle=dashes[index % len(dashes)] if compared else dashes[own // 10 % len(dashes)],
            marker=marks[index % len(marks)],
            markersize=4,
            linewidth=2 if compared else 1.3,
            label=name,
        )
        own += not compared
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(results["sides"], [str(side) for side in results["sides"]])
    axes.set_xlabel("side of the input, pixels")
    axes.grid(alpha=0.3)
