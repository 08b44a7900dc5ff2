"""From runs to what they say: plain data, written as ``results.json`` and read by the table and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np

from repertory.evidence.runner import Run, Study
from repertory.evidence.statistics import ALPHA, FEWEST_SEEDS, POWER, detectable, holm, paired, verdict
from repertory.evidence.wording import difference_unit
from repertory.evidence.worker import plain, versions

FORMAT = 1
NO_RESULT = "failed: no result"


def summarise(studies: Sequence[Study], runs: Sequence[Run], scale: str) -> dict[str, Any]:
    """Everything that ``results.json`` holds: every run, and per system its comparison, Holm-adjusted over systems."""
    systems = [_system(study, [run for run in runs if run.task.study is study], scale) for study in studies]
    _judge(systems, scale)
    failures = [
        {
            "system": run.task.study.experiment.system,
            "arm": run.task.arm.name,
            "seed": run.task.seed,
            "error": run.error,
            "log": str(run.task.folder / "log.txt"),
        }
        for run in runs
        if run.record is None
    ]
    return plain(
        {
            "format": FORMAT,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "scale": scale,
            "versions": versions(),
            "rule": {"alpha": ALPHA, "power": POWER, "fewest_seeds": FEWEST_SEEDS, "adjustment": "Holm, over systems"},
            "systems": systems,
            "failures": failures,
        }
    )


def _system(study: Study, runs: Sequence[Run], scale: str) -> dict[str, Any]:
    experiment = study.experiment
    arms = [_arm(arm.name, arm.label, arm.settings, [r for r in runs if r.task.arm is arm]) for arm in experiment.arms]
    values = {
        arm["name"]: {run["seed"]: run["metrics"][experiment.metric] for run in arm["runs"]}
        for arm in arms
        if arm["name"] in (experiment.baseline, experiment.method)
    }
    return {
        "system": experiment.system,
        "title": study.facts.get("title", experiment.system),
        "venue": study.facts.get("venue", ""),
        "year": study.facts.get("year"),
        "published": list(study.facts.get("published", ())),
        "question": experiment.question,
        "data": experiment.data,
        "probe": experiment.probe,
        "metric": experiment.metric,
        "unit": experiment.unit,
        "difference_unit": difference_unit(experiment.unit),
        "higher_is_better": experiment.higher_is_better,
        "baseline": experiment.baseline,
        "method": experiment.method,
        "published_difference": asdict(experiment.published) if experiment.published else None,
        "scale": asdict(experiment.scales[scale]),
        "version": study.version,
        "arms": arms,
        "comparison": _comparison(values.get(experiment.baseline, {}), values.get(experiment.method, {})),
    }


def _arm(name: str, label: str, settings: Mapping[str, Any], runs: Sequence[Run]) -> dict[str, Any]:
    done = [
        {"seed": run.task.seed, "folder": str(run.task.folder), "reused": run.reused, **run.record}
        for run in runs
        if run.record is not None
    ]
    metrics = {}
    for metric in done[0]["metrics"] if done else ():
        values = [run["metrics"].get(metric) for run in done]
        known = [value for value in values if value is not None]
        metrics[metric] = {
            "values": values,
            "mean": float(np.mean(known)) if known else None,
            "spread": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        }
    return {"name": name, "label": label, "settings": dict(settings), "metrics": metrics, "runs": done}


def _comparison(baseline: Mapping[int, float], method: Mapping[int, float]) -> dict[str, Any] | None:
    if not set(baseline) & set(method):
        return None
    pairs = paired(baseline, method)
    means = {
        "baseline_mean": float(np.mean([baseline[seed] for seed in pairs.seeds])),
        "method_mean": float(np.mean([method[seed] for seed in pairs.seeds])),
    }
    return {**asdict(pairs), **means, "pairs": pairs}


def _judge(systems: Sequence[dict[str, Any]], scale: str) -> None:
    """Add to each comparison its adjusted p-value, its smallest detectable difference and its verdict.

    The family that Holm adjusts is what could be evidence: at least five pairs, not a smoke run. The detectable
    difference is that of the strictest of Holm's levels, 0.05 over the size of the family, so that it holds
    whatever the others show.
    """
    compared = [system for system in systems if system["comparison"]]
    able = [s for s in compared if scale != "smoke" and len(s["comparison"]["seeds"]) >= FEWEST_SEEDS]
    adjusted = dict(zip((s["system"] for s in able), holm([s["comparison"]["p"] for s in able]), strict=True))
    level = ALPHA / max(1, len(able))
    for system in systems:
        comparison = system["comparison"]
        if comparison is None:
            system["verdict"] = NO_RESULT
            continue
        pairs = comparison.pop("pairs")
        comparison["adjusted_p"] = adjusted.get(system["system"])
        comparison["family"] = len(able)
        comparison["detectable"] = detectable(pairs.spread, len(pairs.seeds), level)
        comparison["detectable_alpha"] = level
        system["verdict"] = verdict(pairs, comparison["adjusted_p"], system["higher_is_better"], scale)
