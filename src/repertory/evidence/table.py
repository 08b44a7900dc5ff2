"""The terminal table of a reproduction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from repertory.evidence.statistics import BETTER, WORSE
from repertory.evidence.wording import (
    arm_places,
    difference_text,
    interval_text,
    number,
    plural,
    spoken,
    spread_text,
    with_unit,
)

HEADINGS = (
    "system",
    "metric",
    "baseline",
    "method",
    "paired difference (95% interval)",
    "published difference",
    "verdict",
)
STYLES = {BETTER: "bold green", WORSE: "bold red"}


def evidence_table(results: Mapping[str, Any]) -> Table:
    """One row a system: metric, both arms, paired difference with its interval, published difference, verdict."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"Evidence at scale {results['scale']}",
        caption=_caption(results),
        caption_justify="left",
    )
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold")
    for system in results["systems"]:
        table.add_row(*_row(system), Text(system["verdict"], style=STYLES.get(system["verdict"], "")))
    return table


def _row(system: Mapping[str, Any]) -> list[str]:
    unit, comparison = system["unit"], system["comparison"]
    name = system["system"] + (" (synthetic probe)" if system["probe"] else "")
    metric = f"{spoken(system['metric'])}, {'higher' if system['higher_is_better'] else 'lower'} is better"
    difference = "–"
    if comparison:
        interval = interval_text(comparison)
        seeds = plural(len(comparison["seeds"]), "seed")
        difference = f"{difference_text(comparison, unit)}\n" + (f"({interval}; {seeds})" if interval else f"({seeds})")
    return [name, metric, _arm(system, "baseline"), _arm(system, "method"), difference, _published(system)]


def _arm(system: Mapping[str, Any], role: str) -> str:
    arm = next(arm for arm in system["arms"] if arm["name"] == system[role])
    value = arm["metrics"].get(system["metric"])
    return f"{arm['label']}\n" + (_value(system, value) if value else "no result")


def _value(system: Mapping[str, Any], value: Mapping[str, Any]) -> str:
    return spread_text(value["mean"], value["spread"], system["unit"], arm_places(system, system["metric"]))


def _published(system: Mapping[str, Any]) -> str:
    published = system["published_difference"]
    if published is None:
        return "–"
    return f"{with_unit(number(published['value'], sign=True), published['unit'])}\n({published['setting']})"


def _caption(results: Mapping[str, Any]) -> str:
    if results["scale"] == "smoke":
        return (
            "A smoke run shows that all works from end to end, and nothing about effects; --scale small gives evidence."
        )
    return "Differences are method minus baseline, paired by seed; verdicts are Holm-adjusted over systems."
