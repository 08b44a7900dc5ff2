"""The report: one self-contained HTML page, made from what ``results.json`` holds and the pictures beside the runs."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from repertory.evidence.plots import Series, arms_plot, curves_plot, difference_plot, swatch
from repertory.evidence.statistics import BETTER, NO_DIFFERENCE, WORSE
from repertory.evidence.wording import (
    arm_places,
    decimals,
    difference_text,
    difference_unit,
    duration,
    interval_text,
    memory,
    number,
    plural,
    setting_text,
    spoken,
    spread_text,
    with_unit,
)
from repertory.files import Replacement

Facts = Mapping[str, Any]

PICTURE_SIDE = 1200  # pixels; larger pictures are shown reduced, the run's folder keeps them whole
TINY_SIDE = 128  # pixels; smaller pictures are enlarged without smoothing


def write_report(results: Facts, path: Path) -> None:
    """Write the page for ``results`` (see :mod:`repertory.evidence.summary`) to ``path``, whole or not at all."""
    with Replacement(path) as partial:
        partial.write_text(render(results), encoding="utf-8")


def render(results: Facts) -> str:
    """The page as text."""
    part = {name: (files(__package__) / f"report.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    body = [_head(results), _failures(results), _summary(results), _table(results)]
    body += [_system(system, results) for system in results["systems"]]
    body.append(_reading(results))
    return Template(part["html"]).substitute(
        title=f"Evidence at scale {escape(results['scale'])}",
        style=part["css"],
        script=part["js"],
        body="\n".join(body),
        footer=_footer(results),
    )


def _head(results: Facts) -> str:
    systems = results["systems"]
    runs = sum(len(arm["runs"]) for system in systems for arm in system["arms"])
    day = results["made"].replace("T", " ")[:16]
    lead = (
        f"{plural(len(systems), 'system')}, {plural(runs, 'run')}, scale {results['scale']}. "
        "Each method against its baseline on the same data, seeds and budget."
    )
    smoke = (
        '<div class="note" role="note"><p><strong>Smoke run: not evidence.</strong> It shows that every experiment '
        "runs from end to end. It is too short to show whether a method helps; "
        "<code>repertory reproduce --scale small</code> is the run that can.</p></div>"
    )
    return (
        f'<h1>Does the method help?</h1><p class="lead">{escape(lead)}</p><p class="small">Made {escape(day)} UTC.</p>'
        + (smoke if results["scale"] == "smoke" else "")
    )


def _failures(results: Facts) -> str:
    if not results["failures"]:
        return ""
    items = "".join(
        f"<li><code>{escape(f['system'])}</code>, arm <code>{escape(f['arm'])}</code>, seed {f['seed']}: "
        f"{escape(f['error'])}</li>"
        for f in results["failures"]
    )
    count = plural(len(results["failures"]), "run")
    return f'<div class="note bad" role="note"><p><strong>{count} failed.</strong></p><ul>{items}</ul></div>'


def _pill(verdict: str) -> str:
    kind = {BETTER: "better", WORSE: "worse", NO_DIFFERENCE: "calm"}.get(verdict, "none")
    return f'<span class="pill {kind}">{escape(verdict)}</span>'


def _probe(system: Facts) -> str:
    return ' <span class="tag">synthetic probe</span>' if system["probe"] else ""


def _better(system: Facts) -> str:
    return "higher" if system["higher_is_better"] else "lower"


def _summary(results: Facts) -> str:
    rows = "".join(_forest_row(system) for system in results["systems"])
    return (
        '<section aria-labelledby="differences"><h2 id="differences">Paired differences</h2>'
        '<p class="soft">Method minus baseline, seed by seed. Improvement lies to the right whatever the metric’s '
        "direction; every system has its own axis. Hollow dots are seeds, the diamond is their mean, the bar its 95% "
        "interval, and inside the shaded band lie the differences that a run of this size could miss (80% power).</p>"
        f'<ul class="forest card">{rows}</ul></section>'
    )


def _forest_row(system: Facts) -> str:
    comparison = system["comparison"]
    name = (
        f'<div><p><a class="slug" href="#{escape(system["system"])}">{escape(system["system"])}</a>{_probe(system)}</p>'
        f'<p class="small">{escape(spoken(system["metric"]))}, {_better(system)} is better</p></div>'
    )
    if comparison is None:
        return f'<li>{name}<p class="soft">No pair of runs finished.</p><div>{_pill(system["verdict"])}</div></li>'
    interval = interval_text(comparison)
    value = (
        f'<div><p class="value">{difference_text(comparison, system["unit"])}</p>'
        f'<p class="small">{f"95% interval {interval}" if interval else "one seed: no interval"}</p>'
        f"{_pill(system['verdict'])}</div>"
    )
    return f"<li>{name}<div>{difference_plot(system)}</div>{value}</li>"


def _cell(label: str, content: str) -> str:
    return f'<td role="cell" data-label="{escape(label)}"><span>{content}</span></td>'


def _cells(headings: Sequence[str], contents: Sequence[str]) -> str:
    """The cells of a row after its first, each with its heading for the stacked form."""
    return "".join(_cell(heading, content) for heading, content in zip(headings[1:], contents, strict=True))


def _rows_table(caption: str, headings: Sequence[str], rows: Iterable[str]) -> str:
    """A table that becomes a stack of cards on a narrow screen; its roles keep it a table for screen readers."""
    head = "".join(f'<th role="columnheader" scope="col">{escape(heading)}</th>' for heading in headings)
    return (
        f'<div class="card scroll"><table class="stack" role="table"><caption>{caption}</caption>'
        f'<thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f'<tbody role="rowgroup">{"".join(rows)}</tbody></table></div>'
    )


def _table(results: Facts) -> str:
    headings = ("System", "Metric", "Baseline", "Method", "Paired difference", "Published difference", "Verdict")
    rows = [_table_row(system, headings) for system in results["systems"]]
    return (
        '<section aria-labelledby="numbers"><h2 id="numbers">In numbers</h2>'
        + _rows_table("Arms: mean ± standard deviation over seeds. Differences: mean, 95% interval.", headings, rows)
        + "</section>"
    )


def _table_row(system: Facts, headings: Sequence[str]) -> str:
    comparison = system["comparison"]
    difference = "no pair finished"
    if comparison:
        interval = interval_text(comparison)
        seeds = plural(len(comparison["seeds"]), "seed")
        small = f"{interval}; {seeds}" if interval else seeds
        difference = f'{difference_text(comparison, system["unit"])}<span class="small">{small}</span>'
    cells = [
        f'{escape(spoken(system["metric"]))}<span class="small">{_better(system)} is better</span>',
        _arm_cell(system, "baseline"),
        _arm_cell(system, "method"),
        difference,
        _published_difference(system),
        _pill(system["verdict"]),
    ]
    head = f'<th role="rowheader" scope="row"><span class="slug">{escape(system["system"])}</span>{_probe(system)}</th>'
    return f'<tr role="row">{head}{_cells(headings, cells)}</tr>'


def _arm_named(system: Facts, name: str) -> Facts:
    return next(arm for arm in system["arms"] if arm["name"] == name)


def _arm_cell(system: Facts, role: str) -> str:
    arm = _arm_named(system, system[role])
    value = arm["metrics"].get(system["metric"])
    places = arm_places(system, system["metric"])
    text = spread_text(value["mean"], value["spread"], system["unit"], places) if value else "no result"
    return f'{text}<span class="small">{escape(arm["label"])}</span>'


def _published_difference(system: Facts) -> str:
    published = system["published_difference"]
    if published is None:
        return "none citable"
    value = with_unit(number(published["value"], sign=True), published["unit"])
    return f'{escape(value)}<span class="small">{escape(published["setting"])} [{escape(published["source"])}]</span>'


def _sentence(system: Facts) -> str:
    """The verdict in words, with what the run could have shown."""
    comparison = system["comparison"]
    if comparison is None:
        return "No pair of runs finished, so that nothing can be said."
    method, baseline = (_arm_named(system, system[role])["label"] for role in ("method", "baseline"))
    opening = {
        BETTER: "Better.",
        WORSE: "Worse.",
        NO_DIFFERENCE: "No difference shown at this scale.",
    }.get(system["verdict"], f"{_capital(system['verdict'])}.")
    places = decimals([comparison["mean"], comparison["lower"], comparison["upper"]])
    size = with_unit(number(abs(comparison["mean"]), places), difference_unit(system["unit"]))
    relation = (
        "equal to" if not comparison["mean"] else f"{size} {'higher' if comparison['mean'] > 0 else 'lower'} than"
    )
    words = f"{opening} {_capital(spoken(system['metric']))} of “{method}” was {relation} that of “{baseline}”"
    interval = interval_text(comparison)
    words += f" (95% interval {interval}, {plural(len(comparison['seeds']), 'seed')})." if interval else " (one seed)."
    if comparison["adjusted_p"] is not None:
        words += f" Holm-adjusted p {_p_text(comparison['adjusted_p'])}."
    if comparison["detectable"] is not None:
        detectable = with_unit(number(comparison["detectable"]), difference_unit(system["unit"]))
        words += f" The smallest difference that such a run shows with 80% power is {detectable}."
    return words


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def _system(system: Facts, results: Facts) -> str:
    slug = escape(system["system"])
    where = ", ".join(str(part) for part in (system["venue"], system["year"]) if part)
    facts = [
        ("Question", escape(system["question"])),
        ("Data", escape(system["data"]) + _probe(system)),
        ("Budget", escape(_budget(system))),
        ("Metric", escape(f"{_metric_name(system)}, {_better(system)} is better")),
    ]
    parts = [
        f'<section class="system" id="{slug}" aria-labelledby="{slug}-title">',
        f'<p class="small"><span class="slug">{slug}</span>{f" · {escape(where)}" if where else ""}</p>',
        f'<h2 id="{slug}-title">{escape(system["title"])}</h2>',
        f"<p>{_pill(system['verdict'])}</p><p>{escape(_sentence(system))}</p>",
        '<dl class="facts">' + "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in facts) + "</dl>",
        _figures(system),
        _pictures(system),
        _arms_table(system),
        _published(system),
        _runs_table(system),
        "</section>",
    ]
    return "\n".join(part for part in parts if part)


def _budget(system: Facts) -> str:
    scale = system["scale"]
    words = f"{plural(scale['images'], 'image')} processed a run" if scale["images"] else "no training"
    settings = setting_text(scale["settings"])
    return words + (f"; {settings}" if settings else "")


def _metric_name(system: Facts) -> str:
    metric = spoken(system["metric"])
    return f"{metric} ({system['unit']})" if system["unit"] else metric


def _palette(system: Facts) -> dict[str, int]:
    """The place of every arm in the palette: baseline 0 (grey), method 1 (blue), others after them."""
    others = [arm["name"] for arm in system["arms"] if arm["name"] not in (system["baseline"], system["method"])]
    return {name: place for place, name in enumerate([system["baseline"], system["method"], *others])}


def _figures(system: Facts) -> str:
    colors, arms = _palette(system), [arm for arm in system["arms"] if arm["runs"]]
    if not arms:
        return ""
    legend = "".join(f"<li>{swatch(colors[arm['name']])}{escape(arm['label'])}</li>" for arm in arms)
    rows = [
        (
            arm["label"],
            colors[arm["name"]],
            arm["metrics"][system["metric"]]["values"],
            arm["metrics"][system["metric"]]["mean"],
        )
        for arm in arms
    ]
    figures = [
        _figure(
            f"<strong>{escape(spoken(system['metric']))}</strong>, every run; the stroke is the mean",
            arms_plot(system["metric"], system["unit"], _better(system), rows),
        )
    ]
    names = list(dict.fromkeys(name for arm in arms for run in arm["runs"] for name in run["curves"]))
    for name in names:
        series = [
            Series(
                arm["label"],
                colors[arm["name"]],
                [run["curves"][name] for run in arm["runs"] if run["curves"].get(name)],
            )
            for arm in arms
        ]
        series = [item for item in series if any(y is not None for line in item.lines for _, y in line)]
        if series:
            figures.append(
                _figure(f"<strong>{escape(spoken(name))}</strong>, mean over seeds", curves_plot(name, series))
            )
    return f'<h3>Runs</h3><ul class="legend">{legend}</ul><div class="figures">{"".join(figures)}</div>'


def _figure(caption: str, image: str) -> str:
    return f'<figure class="card"><figcaption>{caption}</figcaption>{image}</figure>'


def _pictures(system: Facts) -> str:
    """The pictures of the first finished run of each arm, a picture that several arms share shown once.

    Captions ``GROUP: WHAT`` stand in one row a group (image, truth, then what baseline, method and others made of it).
    """
    order = [system["baseline"], system["method"]]
    arms = sorted(system["arms"], key=lambda arm: order.index(arm["name"]) if arm["name"] in order else len(order))
    shown: dict[tuple[str, str], tuple[list[str], bool]] = {}
    for arm in arms:
        run = arm["runs"][0] if arm["runs"] else {"pictures": []}
        for picture in run["pictures"]:
            data, tiny = _embed(Path(run["folder"]) / picture["file"])
            labels, _ = shown.setdefault((picture["caption"], data), ([], tiny))
            labels.append(f"{arm['label']}, seed {run['seed']}")
    if not shown:
        return ""
    rows: dict[str, list[str]] = {}
    for (caption, data), (labels, tiny) in shown.items():
        group, _, what = caption.rpartition(": ")
        rows.setdefault(group, []).append(_picture(caption, what, data, labels, tiny))
    parts = [
        f'<h4>{escape(group)}</h4><div class="pictures row">{"".join(items)}</div>'
        if group
        else f'<div class="pictures">{"".join(items)}</div>'
        for group, items in rows.items()
    ]
    return f"<h3>Sample images</h3>{''.join(parts)}"


def _picture(caption: str, what: str, data: str, labels: Sequence[str], tiny: bool) -> str:
    who = labels[0] if len(labels) == 1 else f"shared by {len(labels)} arms"
    kind = ' class="tiny"' if tiny else ""
    return (
        f'<figure class="card"><img{kind} src="{data}" alt="{escape(f"{caption} ({who})")}">'
        f"<figcaption><strong>{escape(what)}</strong><br>{escape(who)}</figcaption></figure>"
    )


def _embed(path: Path) -> tuple[str, bool]:
    """The picture as a data URI, reduced where it is very large; whether it is tiny."""
    from PIL import Image

    with Image.open(path) as image:
        side = max(image.size)
        if side <= PICTURE_SIDE:
            content = path.read_bytes()
        else:
            image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
            buffer = io.BytesIO()
            image.save(buffer, "PNG", optimize=True)
            content = buffer.getvalue()
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}", side <= TINY_SIDE


def _arms_table(system: Facts) -> str:
    others = [m for m in dict.fromkeys(m for arm in system["arms"] for m in arm["metrics"]) if m != system["metric"]]
    headings = ("Arm", spoken(system["metric"]), *map(spoken, others), "Images", "Steps", "Wall time", "Peak memory")
    rows = [_arms_row(system, arm, headings, others) for arm in system["arms"]]
    caption = "Mean ± standard deviation over seeds. Wall time is the mean of a run, peak memory the largest."
    return f"<h3>All arms</h3>{_rows_table(caption, headings, rows)}"


def _arms_row(system: Facts, arm: Facts, headings: Sequence[str], others: Sequence[str]) -> str:
    role = {system["method"]: "method", system["baseline"]: "baseline"}.get(arm["name"], "")
    settings = setting_text(arm["settings"])
    head = f'<th role="rowheader" scope="row">{escape(arm["label"])}</th>'
    runs = arm["runs"]
    if not runs:
        return (
            f'<tr role="row" class="{role}">{head}{_cells(headings, ["no result", *("–" for _ in headings[2:])])}</tr>'
        )
    primary = arm["metrics"][system["metric"]]
    first = spread_text(primary["mean"], primary["spread"], system["unit"], arm_places(system, system["metric"]))
    cells = [f'{first}<span class="small">{escape(settings)}</span>' if settings else first]
    for metric in others:
        value = arm["metrics"].get(metric)
        known = value is not None and value["mean"] is not None
        cells.append(spread_text(value["mean"], value["spread"], "", arm_places(system, metric)) if known else "–")
    mean = {key: sum(run[key] for run in runs) / len(runs) for key in ("images", "steps", "wall_seconds")}
    cells += [number(mean["images"], 0), number(mean["steps"], 0), duration(mean["wall_seconds"])]
    cells.append(memory(max(run["peak_memory_bytes"] for run in runs)))
    return f'<tr role="row" class="{role}">{head}{_cells(headings, cells)}</tr>'


def _published(system: Facts) -> str:
    """Published figures beside ours: two settings, both named, so that nobody reads one number against the other."""
    figures = list(system["published"])
    if not figures and system["published_difference"] is None:
        return "<h3>Published figures</h3><p>None of this system’s published figures could be cited.</p>"
    headings = ("Figure", "Value", "Setting", "Source")
    rows = []
    difference = system["published_difference"]
    if difference is not None:
        value = with_unit(number(difference["value"], sign=True), difference["unit"])
        rows.append(
            _published_row("published: difference", value, difference["setting"], difference["source"], headings)
        )
    rows += [
        _published_row(
            f"published: {f['metric']}", with_unit(_plain(f["value"]), f["unit"]), f["setting"], f["source"], headings
        )
        for f in figures
    ]
    comparison = system["comparison"]
    if comparison:
        budget = f"{system['data']}; {_budget(system)}; {plural(len(comparison['seeds']), 'seed')}"
        value = spread_text(comparison["method_mean"], None, system["unit"])
        rows.append(_published_row(f"ours: {spoken(system['metric'])}", value, budget, "this run", headings))
        value = difference_text(comparison, system["unit"])
        rows.append(
            _published_row(f"ours: difference in {spoken(system['metric'])}", value, budget, "this run", headings)
        )
    caption = "The settings differ: published and own numbers stand side by side, not against each other."
    return f"<h3>Published figures beside ours</h3>{_rows_table(caption, headings, rows)}"


def _plain(value: float) -> str:
    """A published value with the digits that the paper gave."""
    return f"{value:g}".replace("-", "−")


def _published_row(name: str, value: str, setting: str, source: str, headings: Sequence[str]) -> str:
    cells = _cells(headings, [escape(cell) for cell in (value, setting, source)])
    return f'<tr role="row"><th role="rowheader" scope="row">{escape(name)}</th>{cells}</tr>'


def _runs_table(system: Facts) -> str:
    headings = ("Run", spoken(system["metric"]), "Steps", "Wall time", "Peak memory", "Settings used")
    rows = []
    for arm in system["arms"]:
        for run in arm["runs"]:
            value = with_unit(number(run["metrics"][system["metric"]]), system["unit"])
            head = f'<th role="rowheader" scope="row">{escape(arm["label"])}, seed {run["seed"]}</th>'
            used = escape(setting_text(run["settings"])) or "–"
            wall = duration(run["wall_seconds"]) + (f" (attempt {run['attempts']})" if run["attempts"] > 1 else "")
            cells = (value, number(run["steps"], 0), wall, memory(run["peak_memory_bytes"]), used)
            rows.append(f'<tr role="row">{head}{_cells(headings, cells)}</tr>')
    if not rows:
        return ""
    caption = "Everything recorded of each run stands in <code>results.json</code>."
    return f"<details><summary>Every run</summary>{_rows_table(caption, headings, rows)}</details>"


def _reading(results: Facts) -> str:
    rule = results["rule"]
    points = (
        "A difference is method minus baseline at one seed: same data, same seed, same budget. "
        "Baselines are never tuned down.",
        "The interval is Student’s t over those differences, at 95%, for this system alone.",
        f"“{BETTER}” and “{WORSE}” need a p-value below {rule['alpha']} after Holm’s adjustment over all systems "
        "of the run, so that an interval may leave zero out and the verdict still be “no difference shown”.",
        f"Fewer than {rule['fewest_seeds']} seeds, or a smoke run, are never evidence.",
        "The smallest detectable difference is what such a run shows with 80% power, given the spread between "
        "its seeds, at the strictest of Holm’s levels. An effect below it may exist and be missed.",
        "Peak memory is that of the run’s own process, imports included.",
    )
    items = "".join(f"<li>{escape(point)}</li>" for point in points)
    return (
        '<section class="reading" aria-labelledby="reading"><h2 id="reading">How to read this</h2>'
        f"<ul>{items}</ul></section>"
    )


def _footer(results: Facts) -> str:
    words = ", ".join(f"{name} {value}" for name, value in results["versions"].items())
    return f"<p>{escape(words)}.</p>"
