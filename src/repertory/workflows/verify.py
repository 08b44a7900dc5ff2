"""Running parity vectors, and deriving each system's recorded status from what they show."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from repertory.catalog import Card, Part, card, cards, fingerprint, room
from repertory.errors import unknown_name
from repertory.parity import Driver, VectorReport, load, run_vector

PROVING = ("authors", "transcription")  # origins whose numbers are those of the published method itself


def drivers(slug: str) -> Mapping[str, Driver]:
    """The parity drivers of the system ``slug``, by vector kind; empty where it has no code yet."""
    module = f"repertory.systems.{slug}.parity"
    if find_spec(f"repertory.systems.{slug}") is None or find_spec(module) is None:
        return {}
    return import_module(module).DRIVERS


def vectors_of(slug: str) -> list[Path]:
    """The vector files in the room of ``slug``."""
    folder = room(slug) / "vectors"
    return sorted(Path(str(f)) for f in folder.iterdir() if f.name.endswith(".json")) if folder.is_dir() else []


def _expand(targets: Sequence[str | Path]) -> Iterator[Path]:
    for target in targets:
        if str(target).endswith(".json"):
            yield Path(target)
        else:
            yield from vectors_of(card(str(target)).slug)


def _driver_of(vector: Mapping[str, Any], path: Path) -> Mapping[str, Driver]:
    if vector["system"] not in cards():
        raise unknown_name(f"system in {path}:", vector["system"], cards())
    known = drivers(vector["system"])
    if vector["kind"] not in known:
        raise ValueError(
            f"{path}: no driver of {vector['system']} understands kind {vector['kind']!r}; "
            f"it knows {', '.join(sorted(known)) or 'none yet'}"
        )
    return known


def verify(
    targets: Sequence[str | Path] = (), *, on_report: Callable[[VectorReport], None] | None = None
) -> list[VectorReport]:
    """Run parity vectors and report each.

    Args:
        targets: slugs of systems and paths of vector files; none means every system that carries vectors.
        on_report: called with each report as it comes.

    Returns:
        One report a vector, in order; ``report.passed`` says whether every output agreed.

    Raises:
        ValueError: for an unknown system, or a vector whose kind no driver understands (nothing is run then).
        FileNotFoundError: for a vector file that is not there.
    """
    runs = []
    for path in _expand(targets or list(cards())):
        vector = load(path)
        runs.append((path, vector, _driver_of(vector, path)))
    reports = []
    for path, vector, known in runs:
        report = run_vector(vector, path.stem, known)
        reports.append(report)
        if on_report:
            on_report(report)
    return reports


def derive_status(card: Card, reports: Sequence[VectorReport], tests_passed: Mapping[str, bool]) -> str:
    """The status that ``card``'s parts have earned by ``reports`` and by their exact tests.

    ``parity`` wants every part proved; ``parity_with_readings`` every core part, the others being inferred; without a
    vector of the method itself a system is a reading, ``reading_base_verified`` where vectors of its base pass.
    """
    passed: dict[str, bool] = {}
    for report in reports:
        if report.origin in PROVING:
            passed[report.kind] = passed.get(report.kind, True) and report.passed

    def proved(part: Part) -> bool:
        if part.kinds:
            return all(passed.get(kind, False) for kind in part.kinds)
        return bool(part.test) and tests_passed.get(part.test, False)

    if not any(report.origin in PROVING for report in reports):
        return "reading_base_verified" if reports and all(report.passed for report in reports) else "reading"
    if all(proved(part) for part in card.parts):
        return "parity"
    if all(proved(part) or part.inferred for part in card.parts) and all(proved(p) for p in card.parts if p.core):
        return "parity_with_readings"
    return "reading"


def _run_test(path: str, root: Path) -> bool:
    if not (root / path.split("::")[0]).exists():
        raise FileNotFoundError(f"the card names the test {path}, which is not in the source tree")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not gpu", "-p", "no:cacheprovider", path]
    return subprocess.run(command, cwd=root, capture_output=True, check=False).returncode == 0


def _count_parameters(card: Card) -> dict[str, dict[str, int]]:
    import torch

    from repertory.catalog import create_model

    counts = {}
    for name, expected in card.parameters.items():
        with torch.device("meta"):
            model = create_model(name)
        counts[name] = {"expected": expected, "counted": sum(p.numel() for p in model.parameters())}
    return counts


def source_root() -> Path:
    """The source tree that this package runs from; ``ValueError`` where it is installed without one."""
    root = Path(__file__).resolve().parents[3]
    if not (root / "pyproject.toml").is_file() or not (root / "tests").is_dir():
        raise ValueError("--record needs a source tree (tests/ beside src/); this is an installed package")
    return root


def record(slugs: Sequence[str] = (), reports: Sequence[VectorReport] | None = None) -> dict[str, dict[str, Any]]:
    """Write ``systems/<slug>/status.json`` of ``slugs`` (every system with code when none is named), and return it.

    Runs the exact tests that the cards name and counts the parameters that they state.
    """
    root = source_root()
    written = {}
    for slug in slugs or [s for s in cards() if find_spec(f"repertory.systems.{s}.experiment") is not None]:
        own = [r for r in reports if r.system == slug] if reports is not None else verify([slug])
        tests = sorted({part.test for part in card(slug).parts if part.test})
        tests_passed = {test: _run_test(test, root) for test in tests}
        counts = _count_parameters(card(slug))
        wrong = [name for name, count in counts.items() if count["expected"] != count["counted"]]
        status = {
            "status": derive_status(card(slug), own, tests_passed) if not wrong else "reading",
            "vectors_passed": sum(report.passed for report in own),
            "vectors_total": len(own),
            "tests": tests_passed,
            "inferred": [part.name for part in card(slug).parts if part.inferred],
            "parameters": counts,
            "hash": fingerprint(slug),
        }
        Path(str(room(slug) / "status.json")).write_text(json.dumps(status, indent=1) + "\n", encoding="utf-8")
        written[slug] = status
    return written
