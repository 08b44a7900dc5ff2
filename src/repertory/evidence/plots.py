"""Figures of the report as hand-written SVG: they take their colours from the page, and say in words what they show.

Every function returns one ``<svg role="img">`` with a title and a description. Series differ by dash and marker as well
as by colour (after Okabe and Ito's palette, in the page's style sheet).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import count
from textwrap import shorten
from typing import Any

from repertory.evidence.wording import (
    decimals,
    difference_text,
    difference_unit,
    interval_text,
    number,
    plural,
    short_unit,
    spoken,
    with_unit,
)

DASHES = ("", "7 4", "2 3", "10 3 2 3", "5 2", "1 5", "12 4")
WIDTH = 440.0

_ids = count(1)


@dataclass(frozen=True)
class Series:
    """One arm in a figure: its ``label``, its place in the palette, and a line (x, y) per seed."""

    label: str
    color: int
    lines: Sequence[Sequence[tuple[float, float | None]]]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``, ``about`` so many, in steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def svg(width: float, height: float, title: str, description: str, body: str, kind: str) -> str:
    """An SVG image of this size with its text alternative."""
    name = f"figure{next(_ids)}"
    return (
        f'<svg class="plot {kind}" viewBox="0 0 {width:g} {height:g}" role="img" aria-labelledby="{name}t {name}d">'
        f'<title id="{name}t">{escape(title)}</title><desc id="{name}d">{escape(description)}</desc>{body}</svg>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, words: str, anchor: str = "middle", kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def marker(color: int, x: float, y: float, size: float = 5, hollow: bool = False) -> str:
    """The mark of the palette's place ``color``: circle, square, diamond, triangle, …, so that colour is not alone."""
    kind = f"mark c{color % len(DASHES)}{' hollow' if hollow else ''}"
    if color % 4 == 0:
        return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}"/>'
    s = size
    corners = {
        1: [(0, -1.3 * s), (1.3 * s, 0), (0, 1.3 * s), (-1.3 * s, 0)],
        2: [(-s, -s), (s, -s), (s, s), (-s, s)],
        3: [(0, -1.2 * s), (1.2 * s, 0.9 * s), (-1.2 * s, 0.9 * s)],
    }[color % 4]
    return f'<polygon class="{kind}" points="{" ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)}"/>'


def swatch(color: int) -> str:
    """The key of a series for a legend, decorative: the label stands beside it."""
    dash = DASHES[color % len(DASHES)]
    style = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        '<svg class="swatch" viewBox="0 0 34 14" aria-hidden="true" focusable="false">'
        f'<path class="curve c{color % len(DASHES)}" d="M1 7H33"{style}/>{marker(color, 17, 7, 4)}</svg>'
    )


def difference_plot(system: Mapping[str, Any]) -> str:
    """Paired differences of one system on an axis of its own, improvement to the right.

    Hollow dots are seeds, the filled mark is their mean, the bar its 95% interval, and the band what a run of this size
    could not have told from nothing (smallest detectable difference at 80% power).
    """
    comparison, unit = system["comparison"], system["unit"]
    title = f"{system['system']}: paired differences in {spoken(system['metric'])}"
    values = [*comparison["differences"], comparison["lower"], comparison["upper"], comparison["mean"]]
    reach = max((abs(v) for v in values if v is not None), default=0.0) * 1.12 or 1.0
    height, left, right, middle, base = 106.0, 14.0, WIDTH - 14.0, 28.0, 62.0
    way = 1 if system["higher_is_better"] else -1

    def at(value: float) -> float:
        return (left + right) / 2 + way * value / reach * (right - left) / 2

    parts = []
    if comparison["detectable"]:
        band = min(comparison["detectable"], reach)
        start, end = sorted((at(-band), at(band)))
        parts.append(
            f'<rect class="band" x="{start:.1f}" y="6" width="{end - start:.1f}" height="{base - 6:.1f}" rx="3"/>'
        )
    marks = ticks(-reach, reach, 4)
    for tick in marks:
        parts.append(_line(at(tick), base, at(tick), base + 4, "axis"))
        parts.append(_text(at(tick), base + 18, _signed(tick, marks)))
    parts += [_line(left, base, right, base, "axis"), _line(at(0), 4, at(0), base, "zero")]
    if comparison["lower"] is not None:
        low, high = at(comparison["lower"]), at(comparison["upper"])
        parts.append(_line(low, middle, high, middle, "interval"))
        parts += [_line(x, middle - 5, x, middle + 5, "interval") for x in (low, high)]
    parts += [
        f'<circle class="seed" cx="{at(d):.1f}" cy="{middle + 20:.1f}" r="3.2"/>' for d in comparison["differences"]
    ]
    parts.append(marker(1, at(comparison["mean"]), middle, 5.5))
    axis = f"difference in {short_unit(difference_unit(unit)) or spoken(system['metric'])}"
    parts.append(_text((left + right) / 2, height - 4, f"{axis}, improvement \N{RIGHTWARDS ARROW}", kind="axis-name"))
    words = f"Mean {difference_text(comparison, unit)} over {plural(len(comparison['seeds']), 'seed')}"
    if interval := interval_text(comparison):
        words += f", 95% interval {interval}"
    words += (
        f". {'Higher' if way > 0 else 'Lower'} is better; improvement lies to the right. Verdict: {system['verdict']}."
    )
    return svg(WIDTH, height, title, words, "".join(parts), "differences")


def _signed(tick: float, marks: Sequence[float]) -> str:
    return number(tick, decimals([marks[-1]], 2), sign=True) if tick else "0"


def arms_plot(metric: str, unit: str, better: str, arms: Sequence[tuple[str, int, Sequence[float], float]]) -> str:
    """Every run of every arm as a dot, arms in rows: ``arms`` are (label, palette place, values, mean)."""
    values = [value for _, _, found, _ in arms for value in found]
    low, high = min(values), max(values)
    margin = (high - low) * 0.06 or max(abs(high) * 0.05, 1e-3)
    low, high = low - margin, high + margin
    row, top, left, right = 38.0, 6.0, 14.0, WIDTH - 14.0
    base = top + row * len(arms)

    def at(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    metric, marks, parts, words = spoken(metric), ticks(low, high), [], []
    places = decimals([marks[-1] - marks[0]] if len(marks) > 1 else marks, 2)
    for tick in marks:
        parts += [_line(at(tick), top, at(tick), base, "grid"), _text(at(tick), base + 16, number(tick, places))]
    for index, (label, color, found, mean) in enumerate(arms):
        y = top + row * index + 26
        parts.append(_text(left, y - 13, shorten(label, 50, placeholder=" …"), "start", "row-name"))
        parts.append(_line(left, y, right, y, "track"))
        parts += [marker(color, at(value), y, 3.4, hollow=True) for value in found]
        parts.append(_line(at(mean), y - 8, at(mean), y + 8, f"mean c{color % len(DASHES)}"))
        words.append(f"{label}: mean {with_unit(number(mean), unit)} over {plural(len(found), 'run')}")
    parts.append(_line(left, base, right, base, "axis"))
    name = f"{metric}{f' ({short_unit(unit)})' if short_unit(unit) else ''}, {better} is better"
    parts.append(_text((left + right) / 2, base + 35, name, kind="axis-name"))
    return svg(WIDTH, base + 42, f"{metric} of every run, by arm", "; ".join(words) + ".", "".join(parts), "arms")


def _mean_line(lines: Sequence[Sequence[tuple[float, float | None]]]) -> list[tuple[float, float | None]]:
    """The mean over seeds where all lines have the same x; else nothing."""
    grids = [[x for x, _ in line] for line in lines]
    if not grids or any(grid != grids[0] for grid in grids):
        return []
    means: list[tuple[float, float | None]] = []
    for index, x in enumerate(grids[0]):
        here = [line[index][1] for line in lines]
        known = [value for value in here if value is not None]
        means.append((x, sum(known) / len(known) if len(known) == len(here) else None))
    return means


def curves_plot(name: str, series: Sequence[Series]) -> str:
    """One curve against images processed: thin lines are seeds, thick ones their mean."""
    points = [(x, y) for s in series for line in s.lines for x, y in line if y is not None]
    lowest, highest = min(y for _, y in points), max(y for _, y in points)
    margin = (highest - lowest) * 0.05 or max(abs(highest) * 0.05, 1e-3)
    low, high, end = lowest - margin, highest + margin, max(x for x, _ in points) or 1.0
    height, top, left, right = 250.0, 10.0, 50.0, WIDTH - 14.0
    base = height - 40

    def at(x: float, y: float) -> tuple[float, float]:
        return left + x / end * (right - left), base - (y - low) / (high - low) * (base - top)

    rows, columns, parts = ticks(low, high), ticks(0, end, 4), []
    places = decimals([rows[-1] - rows[0]] if len(rows) > 1 else rows, 2)
    for tick in rows:
        y = at(0, tick)[1]
        parts += [_line(left, y, right, y, "grid"), _text(left - 7, y + 4, number(tick, places), "end")]
    for tick in columns:
        parts.append(_text(at(tick, low)[0], base + 16, _short(tick), "end" if tick > 0.97 * end else "middle"))
    parts.append(_line(left, base, right, base, "axis"))
    parts.append(_text((left + right) / 2, height - 5, "images processed", kind="axis-name"))
    words = []
    for item in series:
        mean = _mean_line(item.lines)
        if len(item.lines) > 1 or not mean:
            parts += [_path(line, at, item.color, "thin") for line in item.lines]
        if mean:
            parts.append(_path(mean, at, item.color, "curve"))
            ends = [(x, y) for x, y in mean if y is not None]
            if ends:
                parts.append(marker(item.color, *at(*ends[-1]), 4))
                words.append(f"{item.label} ends at {number(ends[-1][1])} (mean of {plural(len(item.lines), 'seed')})")
    name = spoken(name)
    description = f"{name} against images processed. " + "; ".join(words) + ("." if words else "")
    return svg(WIDTH, height, f"Curves of {name}", description, "".join(parts), "curves")


def _short(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 10_000 else number(value, 0)


def _path(line: Sequence[tuple[float, float | None]], at: Any, color: int, kind: str) -> str:
    pieces, pen = [], "M"
    for x, y in line:
        if y is None:
            pen = "M"
            continue
        px, py = at(x, y)
        pieces.append(f"{pen}{px:.1f} {py:.1f}")
        pen = "L"
    dash = DASHES[color % len(DASHES)] if kind == "curve" else ""
    style = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path class="{kind} c{color % len(DASHES)}" d="{"".join(pieces)}"{style}/>'
