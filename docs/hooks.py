"""Pages that are made from the cards, the recorded status, the benchmark rows and the evidence: nothing is typed twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from repertory import catalog

ROOT = Path(__file__).parents[1]
WORDS = {
    "planned": "planned: the card stands, the code does not yet",
    "reading": "a reading: built from the paper, with no authors' numbers to hold it to",
    "reading_base_verified": "a reading whose base is verified",
    "parity_with_readings": "at parity, with parts that are readings",
    "parity": "at parity",
}


def _table(header: list[str], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def _status(card: catalog.Card) -> str:
    status = catalog.status(card.slug)
    text = WORDS[status.status]
    if status.vectors_total:
        text += f"; {status.vectors_passed} of {status.vectors_total} parity vectors pass"
    return f"**{text[0].upper()}{text[1:]}.**" + (" The code has changed since; the status is stale." if status.stale else "")


def _benchmarks(slug: str) -> str:
    path = ROOT / "docs" / "notes" / f"{slug}.benchmarks"
    names = path.read_text().split() if path.is_file() else []
    out = []
    for name in names:
        rows = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
        out.append(f"`python -m benchmarks.{name}` on {rows['machine']}, {rows['threads']} threads, torch {rows['torch']}:\n")
        out.append(_table(rows["columns"], rows["rows"]))
    return "\n".join(out)


def _evidence(slug: str) -> str:
    path = ROOT / "docs" / "evidence.json"
    entries = json.loads(path.read_text())["systems"] if path.is_file() else []
    entry = next((e for e in entries if e["system"] == slug), None)
    if entry is None:
        return ""
    return entry["summary"] + "\n"


def page(card: catalog.Card) -> str:
    """The page of one system."""
    slug, notes = card.slug, ROOT / "docs" / "notes" / f"{card.slug}.md"
    snippet = ROOT / "docs" / "snippets" / f"{card.slug}.py"
    links = [f"{card.venue}, {card.year}"]
    links += [f"arXiv {card.arxiv}"] if card.arxiv else []
    links += [f"doi {card.doi}"] if card.doi else []
    links += [f"authors' code: {card.repository} ({card.licence or 'no licence'})"] if card.repository else []
    parts = [f"# {slug}\n", _status(card) + "\n", f"*{card.title}*. {'; '.join(links)}.\n", card.purpose + "\n"]
    if snippet.is_file():
        parts += ["## Use\n", f"```python\n{snippet.read_text().strip()}\n```\n"]
    parts += [f"Training only: {card.training_only or 'nothing'}\n", f"At inference: {card.inference}\n"]
    if notes.is_file():
        parts.append(notes.read_text())
    parts.append("## Proof\n")
    proofs = [
        [p.name, "inferred, not proved" if p.inferred else p.test or "vectors: " + ", ".join(p.kinds)] for p in card.parts
    ]
    parts.append(_table(["part", "proved by"], proofs))
    if card.parameters:
        parts.append(_table(["model", "parameters, checked"], [[n, f"{v:,}"] for n, v in card.parameters.items()]))
    for title, text in (("Measured cost", _benchmarks(slug)), ("Evidence", _evidence(slug))):
        parts += [f"## {title}\n", text] if text else []
    if card.published and catalog.status(slug).status in ("parity", "parity_with_readings"):
        figures = [[f.metric, f"{f.value:g} {f.unit}", f.setting, f.source] for f in card.published]
        parts += ["## Published figures\n", _table(["metric", "value", "setting", "source"], figures)]
    return "\n".join(parts)


def _index() -> str:
    rows = []
    for card in catalog.cards().values():
        rows.append([f"[{card.slug}]({card.slug}.md)", card.field, card.title, card.year, catalog.status(card.slug).status])
    return "# Systems\n\n" + _table(["system", "field", "title", "year", "status"], rows)


def on_files(files: Files, config: Any) -> Files:
    """Add a page a system, and their index."""
    pages = {f"systems/{card.slug}.md": page(card) for card in catalog.cards().values()}
    for path, text in {**pages, "systems/index.md": _index()}.items():
        files.append(File.generated(config, path, content=text))
    return files
