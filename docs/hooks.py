"""Pages that are made from the cards, the recorded status, the benchmark rows and the evidence: nothing is typed twice.

A line ``[benchmark: NAME]`` in ``docs/notes/<slug>.md`` becomes the rows that ``python -m benchmarks.NAME`` wrote.
Each ``docs/evidence*.json`` is a ``results.json`` of ``repertory reproduce --scale small``, copied without its curves;
those whose name ends in ``_probes`` are of its second comparisons.
"""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repertory import catalog
from repertory.evidence.wording import (
    arm_places,
    difference_text,
    duration,
    interval_text,
    number,
    plural,
    spread_text,
    with_unit,
)

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"
SENTENCES = {
    "planned": "Planned: the card stands, the code does not yet.",
    "reading": "A reading: built from the paper, with no numbers of its authors to hold it to.",
    "reading_base_verified": "A reading: built from the paper; only the system that it builds on is held to numbers.",
    "parity_with_readings": "At parity, apart from the parts named as readings below.",
    "parity": "At parity: every part is held to its authors' numbers, or to an exact test.",
}
SHORT = {
    "planned": "planned",
    "reading": "reading",
    "reading_base_verified": "reading, base verified",
    "parity_with_readings": "parity with readings",
    "parity": "parity",
}
WITHOUT_VECTORS = "No parity vector exists; exact tests stand in for them."
ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|obj):<code>~?(?:repertory\.(?:\w+\.)*(?=[A-Z]))?([^<]*)</code>")
GITHUB = re.compile(r"[\w.-]+/[\w.-]+")


def _table(header: list[str], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def _status(card: catalog.Card) -> str:
    status = catalog.status(card.slug)
    kind = {"planned": "note", "parity": "success"}.get(status.status, "info")
    facts = (
        [f"{status.vectors_passed} of {plural(status.vectors_total, 'parity vector')} pass."]
        if status.vectors_total
        else []
    )
    facts += ["The code has changed since this was recorded."] if status.stale else []
    facts += ["This page is its card: what it is, and what it will be held to."] if status.status == "planned" else []
    return f'!!! {kind} "{SENTENCES[status.status]}"\n\n    {" ".join(facts) or WITHOUT_VECTORS}\n'


def _sources(card: catalog.Card) -> str:
    links = [f"{card.venue}, {card.year}"]
    if card.arxiv:
        links.append(f"[arXiv {card.arxiv}](https://arxiv.org/abs/{card.arxiv})")
    if card.doi:
        links.append(f"[doi {card.doi}](https://doi.org/{card.doi})")
    if card.repository:
        code = (
            f"[{card.repository}](https://github.com/{card.repository})"
            if GITHUB.fullmatch(card.repository)
            else card.repository
        )
        links.append(f"authors' code {code} ({card.licence or 'licence unknown'})")
    return f"*{card.title}*  \n{' · '.join(links)}\n"


def _benchmark(name: str) -> str:
    """The rows measured by ``benchmarks/<name>.py``, on each device that has some."""
    found = [
        json.loads(path.read_text())
        for path in (RESULTS / f"{name}.json", RESULTS / f"{name}-cuda.json")
        if path.is_file()
    ]
    if not found:
        return f"Not measured yet: `python -m benchmarks.{name}` measures it.\n"
    return "\n".join(_rows(record) for record in found)


def _rows(record: Mapping[str, Any]) -> str:
    where = f"{record['machine']}, {plural(record['threads'], 'thread')}, torch {record['torch']}, {record['date']}"
    notes = [f"- {note}" for note in record["notes"]]
    return "\n".join([_table(record["columns"], record["rows"]), f"`{record['command']}` on {where}.\n", *notes])


def _attention() -> str:
    """What ``repertory bench attention --out docs/attention`` wrote: its figure and its tables."""
    path = DOCS / "attention" / "attention.json"
    if not path.is_file():
        return "Not measured yet: `repertory bench attention --out docs/attention` measures it.\n"
    results = json.loads(path.read_text(encoding="utf-8"))
    parts = ["![Time and memory against the side of the input](attention/attention.svg)\n"]
    kinds = {"operator": "Operators, forward and backward", "backbone": "Backbones, inference on one image"}
    for kind, title in kinds.items():
        cells: dict[str, list[str]] = {}
        for row in results["rows"]:
            if row["kind"] == kind:
                memory = "" if row["memory"] is None else f", {row['memory'] / 2**20:.0f} MiB"
                time = "failed" if row["seconds"] is None else f"{1e3 * row['seconds']:.1f} ms{memory}"
                cells.setdefault(row["name"], []).append(time)
        header = [kind, *(f"{side} px" for side in results["sides"])]
        parts += [f"## {title}\n", _table(header, [[name, *row] for name, row in cells.items()])]
    rates = [
        [row["name"], *("" if row[mode] is None else f"{row[mode]:.1f}" for mode in ("eager", "compiled"))]
        for row in results["throughput"]
    ]
    parts += [f"## Images per second at {results['throughput_side']} px, batches of {results['batch']}\n"]
    parts += [_table(["backbone", "eager", "compiled"], rates), *(f"- {note}" for note in results["notes"])]
    where = f"{results['machine']}, {plural(results['threads'], 'thread')}, torch {results['torch']}"
    parts.append(f"\n`{results['command']}` on {where}, medians of {results['rounds']} turns.\n")
    return "\n".join(parts)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the tables of the attention benchmark where a page asks for them."""
    return markdown.replace("[attention benchmark]", _attention()) if "[attention benchmark]" in markdown else markdown


def _evidence(slug: str) -> str:
    """What the recorded reproductions say of a system, in the order of the files' names, in the words of the report."""
    parts = []
    for path in sorted(DOCS.glob("evidence*.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        found = [entry for entry in results["systems"] if entry["system"] == slug]
        parts += [_comparison(results, entry, path.stem.endswith("_probes")) for entry in found]
    return "\n".join(parts)


def _command(system: Mapping[str, Any], scale: str, probe: bool) -> str:
    """The command that makes the runs of ``system`` again."""
    runs = max(len(arm["runs"]) for arm in system["arms"])
    seeds = f" --seeds {runs}" if runs != system["scale"]["seeds"] else ""
    return f"repertory reproduce {system['system']} --scale {scale}{' --probe' if probe else ''}{seeds}"


def _comparison(results: Mapping[str, Any], system: Mapping[str, Any], probe: bool) -> str:
    better = "higher" if system["higher_is_better"] else "lower"
    made = f"{results['made'][:10]}, torch {results['versions'].get('torch', 'unknown')}"
    parts = [
        f"**{system['question']}** {'Synthetic probe: ' if system['probe'] else ''}{system['data']}.",
        _table(
            ["arm", f"{system['metric'].replace('_', ' ')}, {better} is better", "seeds", "images a run", "time a run"],
            [_arm(arm, system) for arm in system["arms"]],
        ),
        _difference(system),
        f"`{_command(system, results['scale'], probe)}`, {made}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _arm(arm: Mapping[str, Any], system: Mapping[str, Any]) -> list[str]:
    runs, metric = arm["runs"], system["metric"]
    role = {system["baseline"]: " (baseline)", system["method"]: " (method)"}.get(arm["name"], "")
    if not runs:
        return [arm["label"] + role, "no result", "0", "", ""]
    value = arm["metrics"][metric]
    figure = spread_text(value["mean"], value["spread"], system["unit"], arm_places(system, metric))
    seconds = statistics.median(run["wall_seconds"] for run in runs)  # a run may have waited for others
    return [arm["label"] + role, figure, str(len(runs)), number(runs[0]["images"], 0), duration(seconds)]


def _difference(system: Mapping[str, Any]) -> str:
    comparison = system["comparison"]
    if comparison is None:
        return f"Verdict: **{system['verdict']}**."
    interval = interval_text(comparison)
    text = f"Paired difference, method minus baseline: **{difference_text(comparison, system['unit'])}**"
    text += f" (95% interval {interval}; {plural(len(comparison['seeds']), 'seed')})." if interval else "."
    text += f" Verdict: **{system['verdict']}**."
    if comparison["detectable"] is not None:
        least = with_unit(number(comparison["detectable"]), system["difference_unit"])
        text += f" The smallest difference that this run could have shown: {least}."
    return text


def _notes(slug: str) -> str:
    path = DOCS / "notes" / f"{slug}.md"
    if not path.is_file():
        return ""
    text = path.read_text(encoding="utf-8")
    return re.sub(r"^\[benchmark: (\w+)\]$", lambda found: _benchmark(found[1]), text, flags=re.M)


def _path(path: str) -> str:
    """``path`` as code that may break after a slash."""
    return f"<code>{path.replace('/', '/<wbr>')}</code>"


def _proof(card: catalog.Card) -> str:
    rows = []
    for part in card.parts:
        vectors = "vectors of kind " + ", ".join(f"`{kind}`" for kind in part.kinds)
        rows.append(
            [part.name, "inferred, not proved" if part.inferred else _path(part.test) if part.test else vectors]
        )
    parts = ["## Proof\n", _table(["part", "proved by"], rows)]
    if any(part.kinds for part in card.parts) and catalog.status(card.slug).vectors_total:
        parts.append(f"```console\n$ repertory verify {card.slug} --verbose\n```\n")
    if card.parameters:
        parts.append(_table(["model", "parameters"], [[f"`{n}`", f"{v:,}"] for n, v in card.parameters.items()]))
        parts.append("Parameters are counted and must agree exactly with the authors' networks.\n")
    return "\n".join(parts)


def _published(card: catalog.Card) -> str:
    if not card.published or catalog.status(card.slug).status not in ("parity", "parity_with_readings"):
        return ""
    rows = [[f.metric, with_unit(f"{f.value:g}", f.unit), f.setting, f.source] for f in card.published]
    told = "The authors' figures on their data, not ours; the source is where we read them.\n"
    return "\n".join(["## Published figures\n", told, _table(["metric", "value", "setting", "source"], rows)])


def _names(found: Mapping[str, str]) -> str:
    return ", ".join(f"`{name}`" for name in found)


def page(card: catalog.Card) -> str:
    """The page of one system; its first line after the title is its status."""
    slug, snippet = card.slug, DOCS / "snippets" / f"{card.slug}.py"
    parts = [f"# {slug}\n", _status(card), _sources(card)]
    parts.append(card.purpose + "\n")
    facts = {"Field": f"{card.field}, {card.task}", "Training only": card.training_only or "Nothing."}
    facts |= {"At inference": card.inference}
    facts |= {kind: _names(found) for kind, found in (("Models", card.models), ("Methods", card.methods)) if found}
    parts.append("  \n".join(f"**{name}.** {value[:1].upper()}{value[1:]}" for name, value in facts.items()) + "\n")
    if snippet.is_file():
        parts += ["## Use\n", f"```python\n{snippet.read_text(encoding='utf-8').strip()}\n```\n"]
    parts += [_notes(slug), _proof(card)]
    evidence = _evidence(slug)
    parts += ["## Evidence\n", evidence] if evidence else []
    return "\n".join([*parts, _published(card)])


def _index() -> str:
    """All systems by field, those that stand first."""
    cards, status = catalog.cards().values(), {slug: catalog.status(slug).status for slug in catalog.cards()}
    counts = Counter(status.values())
    order = list(reversed(catalog.STATUSES))
    tally = "; ".join(f"{counts[name]} {SHORT[name]}" for name in order if counts[name])
    parts = [
        "# Systems\n",
        f"{len(status)} systems: {tally}. [What a status means](../proof.md#status).\n",
        "`repertory list` prints this as a table, `repertory list --json` for programs.\n",
    ]
    for field in catalog.FIELDS:
        own = sorted((c for c in cards if c.field == field), key=lambda c: (order.index(status[c.slug]), c.slug))
        if own:
            parts += [f"## {field[0].upper()}{field[1:]}\n", *(_entry(card, status[card.slug]) for card in own), ""]
    return "\n".join(parts)


def _entry(card: catalog.Card, status: str) -> str:
    mark = "" if status == "planned" else f" **{SHORT[status]}**"
    return f"- [{card.slug}]({card.slug}.md){mark}  \n  {card.title}, {card.year}"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the systems that stand in the navigation, below the overview."""
    standing = [slug for slug in catalog.cards() if catalog.status(slug).status != "planned"]
    pages: list[Any] = [{"All systems": "systems/index.md"}, *({slug: f"systems/{slug}.md"} for slug in standing)]
    config.nav = [{"Systems": pages} if "Systems" in entry else entry for entry in config.nav or ()]
    return config


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings name objects by Sphinx's roles, which mean nothing here: leave the bare name."""
    return ROLE.sub(r"<code>\1</code>", html)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page a system, and their index."""
    from mkdocs.structure.files import File  # the pages themselves can be tested without MkDocs

    pages = {f"systems/{card.slug}.md": page(card) for card in catalog.cards().values()}
    for path, text in {**pages, "systems/index.md": _index()}.items():
        files.append(File.generated(config, path, content=text))
    return files
