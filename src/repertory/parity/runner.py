"""Running one vector through its system's driver, and the report of what agreed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

import torch

from repertory.parity.case import Case, Driver
from repertory.parity.compare import Mismatch, compare


@dataclass(frozen=True)
class OutputReport:
    """One output: its worst relative ``error``, and the ``problem`` in words where it does not agree."""

    name: str
    error: float
    problem: str = ""


@dataclass
class VectorReport:
    """One vector: who it is of, and one report an output."""

    system: str
    kind: str
    origin: str
    name: str
    outputs: list[OutputReport] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Every output was known and agreed."""
        return bool(self.outputs) and not any(output.problem for output in self.outputs)

    @property
    def worst(self) -> float:
        """The worst error of any output."""
        return max((output.error for output in self.outputs), default=float("inf"))


def _tolerance(name: str, patterns: Mapping[str, float]) -> float:
    if name in patterns:
        return patterns[name]
    return next((value for pattern, value in patterns.items() if fnmatch(name, pattern)), 1e-4)


def run_vector(vector: Mapping[str, Any], name: str, drivers: Mapping[str, Driver]) -> VectorReport:
    """Run ``vector`` by the driver of its kind and compare every recorded output.

    ``KeyError`` where no driver knows the kind. An output that the driver does not return is a mismatch, and so is a
    driver that fails.
    """
    report = VectorReport(vector["system"], vector["kind"], vector["origin"], name)
    driver = drivers[vector["kind"]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            got = driver(Case(vector))
        except Exception as error:  # whatever a driver dies of is a mismatch of this vector, not of the whole run
            problem = f"the driver failed: {type(error).__name__}: {error}"
            report.outputs = [OutputReport(output, float("inf"), problem) for output in vector["outputs"]]
            return report
    patterns = vector["config"].get("rtol") or {}
    for output, expected in vector["outputs"].items():
        if output not in got:
            report.outputs.append(OutputReport(output, float("inf"), "the driver does not know this output"))
            continue
        try:
            worst = compare(got[output], expected, rtol=_tolerance(output, patterns))
            report.outputs.append(OutputReport(output, worst))
        except Mismatch as mismatch:
            report.outputs.append(OutputReport(output, mismatch.error, str(mismatch)))
    return report
