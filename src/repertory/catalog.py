"""The catalogue: the card of every system, and models and methods by name.

Reading cards imports no torch; building a model does.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import import_module
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from repertory.errors import unknown_name

FIELDS = (
    "attention backbones",
    "segmentation and parsing",
    "person re-identification",
    "pose",
    "video and language",
    "medical imaging",
    "continual learning",
    "training methods",
    "3D geometry",
    "filtering",
)
SOURCES = ("code", "paper", "abstract", "third-party")
STATUSES = ("planned", "reading", "reading_base_verified", "parity_with_readings", "parity")


@dataclass(frozen=True)
class Part:
    """One defining part of a system; its proof is vectors of ``kinds``, the exact ``test``, or none (``inferred``)."""

    name: str
    kinds: tuple[str, ...] = ()
    test: str = ""
    inferred: bool = False
    core: bool = True


@dataclass(frozen=True)
class Figure:
    """A published figure with ``unit`` and ``setting``; ``source`` is code, paper, abstract or third-party."""

    metric: str
    value: float
    unit: str
    setting: str
    source: str


@dataclass(frozen=True)
class Card:
    """What ``systems/<slug>/card.toml`` says of a system."""

    slug: str
    field: str
    task: str
    title: str
    venue: str
    year: int
    purpose: str
    training_only: str
    inference: str
    arxiv: str = ""
    doi: str = ""
    repository: str = ""
    licence: str = ""
    parts: tuple[Part, ...] = ()
    published: tuple[Figure, ...] = ()
    models: Mapping[str, str] = field(default_factory=dict)
    methods: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Status:
    """What ``repertory verify --record`` derived for a system, and whether its code has changed since (``stale``)."""

    status: str = "planned"
    vectors_passed: int = 0
    vectors_total: int = 0
    inferred: tuple[str, ...] = ()
    stale: bool = False


def room(slug: str) -> Traversable:
    """The folder of the system called ``slug``."""
    return files("repertory.systems") / slug


def parse_card(text: str, slug: str) -> Card:
    """The card in ``text``; ``ValueError`` names what is wrong with it."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"card of {slug}: {error}") from None
    known = {f.name for f in fields(Card)}
    if extra := sorted(set(raw) - known):
        raise ValueError(f"card of {slug}: unknown entries {', '.join(extra)}; a card has {', '.join(sorted(known))}")
    try:
        raw["parts"] = tuple(
            Part(**{k: tuple(v) if k == "kinds" else v for k, v in p.items()}) for p in raw.get("parts", ())
        )
        raw["published"] = tuple(Figure(**figure) for figure in raw.get("published", ()))
        card = Card(**raw)
    except TypeError as error:
        raise ValueError(f"card of {slug}: {error}") from None
    problems = _problems(card, slug)
    if problems:
        raise ValueError(f"card of {slug}: {'; '.join(problems)}")
    return card


def _problems(card: Card, slug: str) -> list[str]:
    problems = []
    if card.slug != slug:
        problems.append(f"slug is {card.slug!r}, the folder is {slug!r}")
    if card.field not in FIELDS:
        problems.append(f"field {card.field!r} is none of {', '.join(FIELDS)}")
    if not 1990 <= card.year <= 2100:
        problems.append(f"year {card.year} is not a year")
    problems += [
        f"{name} is empty" for name in ("task", "title", "venue", "purpose", "inference") if not getattr(card, name)
    ]
    if not card.parts:
        problems.append("no parts: every card names what defines its system")
    for part in card.parts:
        if bool(part.kinds) + bool(part.test) + part.inferred != 1:
            problems.append(f"part {part.name!r} needs exactly one of kinds, test, inferred")
    for figure in card.published:
        if figure.source not in SOURCES:
            problems.append(
                f"figure {figure.metric!r} has source {figure.source!r}; published figures cite {', '.join(SOURCES)}"
            )
    return problems


@cache
def cards() -> Mapping[str, Card]:
    """Every card, by slug, in alphabetical order."""
    folders = sorted(
        (f for f in files("repertory.systems").iterdir() if (f / "card.toml").is_file()), key=lambda f: f.name
    )
    return {f.name: parse_card((f / "card.toml").read_text(encoding="utf-8"), f.name) for f in folders}


def card(slug: str) -> Card:
    """The card of ``slug``; ``ValueError`` with the nearest names where there is none."""
    if slug not in cards():
        raise unknown_name("system", slug, cards())
    return cards()[slug]


def entry(slug: str, reference: str) -> Any:
    """The object that ``module:name`` means in the room of ``slug``."""
    module, _, name = reference.partition(":")
    return getattr(import_module(f"repertory.systems.{slug}.{module}"), name)


def list_systems(field: str | None = None, task: str | None = None) -> list[str]:
    """Slugs of all systems, or of those in one ``field`` or for one ``task``."""
    return [c.slug for c in cards().values() if field in (None, c.field) and task in (None, c.task)]


def status(slug: str) -> Status:
    """The recorded status of ``slug``; ``planned`` where nothing was recorded."""
    path = room(card(slug).slug) / "status.json"
    if not path.is_file():
        return Status()
    raw = json.loads(path.read_text(encoding="utf-8"))
    return Status(
        raw["status"],
        raw["vectors_passed"],
        raw["vectors_total"],
        tuple(raw["inferred"]),
        stale=raw["hash"] != fingerprint(slug),
    )


_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(repertory[\w.]*)[ \t]+import[ \t]+(\([^)]*\)|[^\n]*)|import[ \t]+(repertory[\w.]+))", re.M
)


def _module_file(name: str) -> Traversable | None:
    """The source file of the module ``repertory.…``, found without importing it."""
    parts = name.split(".")[1:]
    place = files("repertory")
    for part in parts:
        place = place / part
    if place.is_dir():
        return place / "__init__.py" if (place / "__init__.py").is_file() else None
    parent = files("repertory")
    for part in parts[:-1]:
        parent = parent / part
    source = parent / f"{parts[-1]}.py" if parts else parent / "__init__.py"
    return source if source.is_file() else None


@cache
def _imports(name: str) -> tuple[bytes, frozenset[str]]:
    """The source of module ``name`` and the ``repertory`` modules that it imports."""
    source = _module_file(name)
    content = source.read_bytes() if source else b""
    found = set()
    for base, names, plain in _IMPORT.findall(content.decode("utf-8")):
        found.add(base or plain)
        found |= {f"{base}.{word}" for word in re.findall(r"\w+", names) if base and _module_file(f"{base}.{word}")}
    return content, frozenset(n for n in found if _module_file(n))


def fingerprint(slug: str) -> str:
    """A hash over the room of ``slug`` and every ``repertory`` module that it imports, directly or not."""
    digest, seen = hashlib.sha256(), set()
    queue = [f"repertory.systems.{slug}.{f.name[:-3]}" for f in room(slug).iterdir() if f.name.endswith(".py")]
    while queue:
        name = queue.pop()
        if name not in seen:
            seen.add(name)
            queue += _imports(name)[1]
    for name in sorted(seen):
        digest.update(name.encode() + b"\0" + _imports(name)[0])
    folder = room(slug) / "vectors"
    proofs = sorted(folder.iterdir(), key=lambda f: f.name) if folder.is_dir() else []
    for proof in [room(slug) / "card.toml", *proofs]:
        digest.update(proof.name.encode() + b"\0" + proof.read_bytes())
    return digest.hexdigest()[:16]
