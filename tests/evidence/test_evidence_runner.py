import functools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import quick_experiment
from quick_experiment import experiment

from repertory.evidence.experiment import Scale
from repertory.evidence.runner import Study, Watcher, run_all, tasks_of
from repertory.evidence.worker import Consulted, write_json


def study(name="EXPERIMENT", version="1"):
    return Study(getattr(quick_experiment, name), f"quick_experiment:{name}", version)


def run(tmp_path, name="EXPERIMENT", version="1", roots=None, seeds=1, watcher=None, scale="smoke", **options):
    return run_all(tasks_of(study(name, version), scale, seeds, tmp_path), roots or {}, watcher, **options)


def finish_times(runs):
    return [(one.task.folder / "result.json").stat().st_mtime_ns for one in runs]


def test_every_run_has_its_folder_and_records_what_it_did(tmp_path):
    runs = run(tmp_path, seeds=2)
    folder = tmp_path / "quick" / "smoke" / "better" / "1"
    record = json.loads((folder / "result.json").read_text())
    assert [one.task.folder.relative_to(tmp_path).parts[2:] for one in runs][:3] == [
        ("plain", "0"),
        ("better", "0"),
        ("other", "0"),
    ]
    assert record["declared"] == {
        "system": "quick",
        "scale": "smoke",
        "arm": "better",
        "seed": 1,
        "arm_settings": {"gain": 2.0},
        "scale_images": 100,
        "scale_settings": {"width": 8},
        "metric": "top-1 error",
        "version": "1",
    }
    assert (record["images"], record["steps"], record["attempts"]) == (100, 2, 1)
    assert record["settings"]["learning_rate"] == 0.1
    assert {"python", "torch", "numpy", "repertory", "platform"} <= set(record["versions"])
    assert record["wall_seconds"] > 0
    assert record["peak_memory_bytes"] >= record["start_memory_bytes"] > 2**20
    assert "better from 0" in (folder / "log.txt").read_text()


def test_what_is_done_is_not_run_again(tmp_path):
    first = run(tmp_path)
    before = finish_times(first)
    second = run(tmp_path)
    assert all(one.reused for one in second)
    assert not any(one.reused for one in first)
    assert finish_times(second) == before
    assert [one.record for one in second] == [one.record for one in first]


def test_a_run_that_was_cut_goes_on_where_it_was(tmp_path):
    cut = run(tmp_path, "CUT")
    assert [bool(one.record) for one in cut] == [True, False]
    assert "signal 9" in cut[1].error
    again = run(tmp_path, "CUT")
    assert again[0].reused
    assert again[1].record["settings"]["resumed_from"] == 50
    assert again[1].record["attempts"] == 2


@pytest.mark.parametrize("change", ["version", "arm settings", "scale"])
def test_a_result_of_other_settings_is_made_anew_from_nothing(tmp_path, change):
    run(tmp_path)
    changed = study()
    if change == "version":
        changed = replace(changed, version="2")
    elif change == "arm settings":
        arms = tuple(replace(arm, settings={**arm.settings, "temperature": 2.0}) for arm in changed.experiment.arms)
        changed = replace(changed, experiment=replace(changed.experiment, arms=arms))
    else:
        changed = replace(changed, experiment=replace(changed.experiment, scales={"smoke": Scale(2, 150)}))
    runs = run_all(tasks_of(changed, "smoke", 1, tmp_path), {})
    assert not any(one.reused for one in runs)
    assert all(one.record["settings"]["resumed_from"] == 0 for one in runs)


def test_a_cut_run_of_another_version_is_not_resumed(tmp_path):
    run(tmp_path, "CUT")
    runs = run(tmp_path, "CUT", version="2")
    assert runs[1].error
    assert run(tmp_path, "CUT", version="2")[1].record["settings"]["resumed_from"] == 50


def test_only_the_roots_that_a_run_looked_up_bind_its_result(tmp_path):
    data = {name: tmp_path / name for name in ("cifar", "imagenet", "moved")}
    for folder in data.values():
        folder.mkdir()
    out = tmp_path / "out"
    first = run(out, roots={"cifar": data["cifar"]})
    assert first[0].record["settings"]["root"] == str(data["cifar"])
    assert all(one.reused for one in run(out, roots={"cifar": data["cifar"], "imagenet": data["imagenet"]}))
    assert not any(one.reused for one in run(out, roots={"cifar": data["moved"]}))
    assert not any(one.reused for one in run(out))


def test_roots_note_every_way_of_looking():
    roots = Consulted({"a": "/a", "b": "/b"})
    assert roots.get("missing") is None
    assert "a" in roots
    assert roots.names == {"missing": None, "a": "/a"}
    assert dict(roots) == {"a": Path("/a"), "b": Path("/b")}
    assert roots.names == {"missing": None, "a": "/a", "b": "/b"}


def test_a_failed_run_is_reported_and_the_others_go_on(tmp_path):
    runs = run(tmp_path, "FAILING", seeds=2)
    assert [bool(one.record) for one in runs] == [True, False, True, False]
    assert runs[1].error == "RuntimeError: the disk is full of cats"
    assert "Traceback" in (runs[1].task.folder / "log.txt").read_text()
    assert not (runs[1].task.folder / "result.json").exists()


def test_a_metric_that_is_not_finite_fails_the_run(tmp_path):
    assert run(tmp_path, "DIVERGING")[1].error == "NonFiniteError: metric 'top-1 error' is nan; it must be finite"


def test_a_worker_that_cannot_fork_gives_the_same_results(tmp_path):
    forked = run(tmp_path / "a")
    fresh = run(tmp_path / "b", can_fork=False)
    assert [one.record["metrics"] for one in fresh] == [one.record["metrics"] for one in forked]
    assert not any(one.error for one in fresh)


def test_an_experiment_that_cannot_be_loaded_fails_by_name(tmp_path):
    missing = Study(experiment("lost"), "quick_experiment:LOST", "1")
    runs = run_all(tasks_of(missing, "smoke", 1, tmp_path), {})
    assert all("LOST" in one.error for one in runs)


def test_the_peak_memory_of_a_run_is_its_own(tmp_path):
    heavy, light = run(tmp_path, "HEAVY")
    assert heavy.record["peak_memory_bytes"] - light.record["peak_memory_bytes"] > 250 * 2**20


def test_the_watcher_hears_of_every_run_and_its_progress(tmp_path):
    heard = []
    watcher = Watcher(
        started=lambda task: heard.append(("start", task.arm.name)),
        moved=lambda task, done, total: heard.append(("move", task.arm.name, done, total)),
        ended=lambda one: heard.append(("end", one.task.arm.name)),
    )
    run(tmp_path, watcher=watcher)
    assert heard[0] == ("start", "plain")
    assert ("move", "plain", 100, 100) in heard
    assert [event for event in heard if event[0] == "end"] == [("end", n) for n in ("plain", "better", "other")]


def test_a_folder_of_somebody_elses_files_is_never_cleared(tmp_path):
    folder = tmp_path / "quick" / "smoke" / "better" / "0"
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="not a run's"):
        run(tmp_path)
    assert (folder / "thesis.tex").read_text() == "years of work"


def test_an_unknown_scale_is_named_with_those_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"scale 'huge' is not one of quick's: smoke, small"):
        tasks_of(study(), "huge", None, tmp_path)


def test_json_is_written_whole_with_plain_values(tmp_path):
    import numpy as np

    target = tmp_path / "x.json"
    write_json({"a": np.float32(0.5), "b": np.arange(2), "c": float("nan"), "d": (1, Path("p"))}, target)
    assert json.loads(target.read_text()) == {"a": 0.5, "b": [0, 1], "c": None, "d": [1, "p"]}
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


SLOW = """
import sys, time
from pathlib import Path
from repertory.evidence.experiment import *
from repertory.evidence.runner import *

def run(arm, seed, scale, context):
    ticks = context.out / "ticks"
    ticks.touch()
    while ticks.stat().st_size < 100:
        with ticks.open("a") as file:
            file.write("x")
        time.sleep(0.03)
    return ArmResult({"m": 1.0})

EXPERIMENT = Experiment("slow", "?", "m", "", True, "a", "a", (Arm("a", "a"),), {"smoke": Scale(1, 1)}, run, "none")

if __name__ == "__main__":
    run_all(tasks_of(Study(EXPERIMENT, "slow_experiment:EXPERIMENT", "1"), "smoke", 1, Path(sys.argv[1])), {})
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_job_stops_its_run_and_goes_on_with_it_when_started_again(tmp_path, number):
    (tmp_path / "slow_experiment.py").write_text(SLOW)
    folder = tmp_path / "out" / "slow" / "smoke" / "a" / "0"
    ticks = folder / "ticks"
    command = [sys.executable, str(tmp_path / "slow_experiment.py"), str(tmp_path / "out")]
    # Tests that a shell runs in the background inherit SIGINT ignored; the job is to get it as from a terminal.
    listen = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    job = subprocess.Popen(command, stderr=subprocess.DEVNULL, preexec_fn=listen)
    deadline = time.monotonic() + 60
    while not (ticks.exists() and ticks.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(job.pid, number)
    job.wait(30)
    time.sleep(0.6)
    stopped = ticks.stat().st_size
    time.sleep(0.3)
    assert 0 < ticks.stat().st_size == stopped < 100
    assert not (folder / "result.json").exists()
    subprocess.run(command, check=True, timeout=60)
    assert ticks.stat().st_size == 100
    assert json.loads((folder / "result.json").read_text())["attempts"] == 2
