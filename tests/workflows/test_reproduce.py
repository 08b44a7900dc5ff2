import json
import sys
from importlib import import_module

import pytest
from rich.console import Console

from repertory.evidence.runner import Study
from repertory.evidence.worker import load_experiment
from repertory.workflows.reproduce import experiments, reproduce, run_studies

MODULE = """
from repertory.evidence import Arm, ArmResult, Experiment, Scale

def run(arm, seed, scale, context):
    if arm.settings.get("fail"):
        raise OSError("no space left on device")
    context.progress(1, 1)
    return ArmResult({"accuracy": 50.0 + seed % 3 + arm.settings.get("gain", 0.0) * (1 + 0.1 * seed)})

def experiment(system, **method):
    return Experiment(system, "?", "accuracy", "%", True, "plain", "method",
                      (Arm("plain", "plain"), Arm("method", "the method", method)),
                      {"smoke": Scale(1, 10), "small": Scale(5, 10)}, run, "numbers")

GOOD, BAD = experiment("good", gain=2.0), experiment("bad", fail=True)
"""


@pytest.fixture
def studies(tmp_path, monkeypatch):
    (tmp_path / "declared_here.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "declared_here", raising=False)
    return {
        name: Study(load_experiment(f"declared_here:{name}"), f"declared_here:{name}", "1") for name in ("GOOD", "BAD")
    }


def test_one_call_leaves_results_a_report_and_a_verdict(studies, tmp_path, capsys):
    given = run_studies([studies["GOOD"]], scale="small", out=tmp_path / "out")
    assert given.verdict("good") == "better"
    assert given.failed == []
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written == given.results
    assert len(written["systems"][0]["arms"][1]["runs"]) == 5
    assert "<!doctype html>" in given.report_path.read_text()
    shown = capsys.readouterr()
    assert "better" in shown.out
    assert "report.html" in shown.out.replace("\n", "")
    assert "good · method · seed 4" in shown.err


def test_started_again_it_does_nothing_anew(studies, tmp_path):
    run_studies([studies["GOOD"]], scale="smoke", out=tmp_path, progress=False)
    again = run_studies([studies["GOOD"]], scale="smoke", out=tmp_path, progress=False)
    assert all(run.reused for run in again.runs)


def test_without_progress_nothing_is_printed(studies, tmp_path, capfd):
    run_studies([studies["GOOD"]], scale="smoke", out=tmp_path, progress=False)
    assert capfd.readouterr() == ("", "")


def test_a_failed_run_is_told_with_its_log_and_the_others_finish(studies, tmp_path, capsys):
    given = run_studies([studies["BAD"], studies["GOOD"]], scale="small", seeds=2, out=tmp_path)
    assert [(run.task.study.experiment.system, run.task.arm.name) for run in given.failed] == [("bad", "method")] * 2
    assert given.verdict("bad") == "failed: no result"
    assert given.verdict("good") == "2 seeds: not evidence"
    out = capsys.readouterr().out.replace("\n", "")
    assert "no space left on device" in out
    assert str(tmp_path / "bad/small/method/1/log.txt") in out


def test_one_progress_display_covers_the_whole_job_in_a_terminal(studies, tmp_path, monkeypatch):
    from repertory.workflows import reproduce as module

    consoles = []

    def terminal(**options):
        consoles.append(Console(force_terminal=True, width=120, file=(tmp_path / "screen").open("a")))
        return consoles[-1]

    monkeypatch.setattr(module, "Console", terminal)
    run_studies([studies["GOOD"]], scale="small", out=tmp_path / "out")
    consoles[0].file.flush()
    screen = (tmp_path / "screen").read_text()
    assert "all runs" in screen
    assert "10/10" in screen


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"systems": ["bakke"]}, ValueError, r"unknown system 'bakke': did you mean bake"),
        ({"systems": "bake"}, TypeError, "give a list of slugs"),
        ({"systems": [], "seeds": 0}, ValueError, "seeds is 0; it must be at least 1"),
        ({"systems": [], "data": {"cifar": "/no/such"}}, FileNotFoundError, "data cifar=/no/such: no such folder"),
        ({"systems": [], "out": __file__}, ValueError, "is a file; it must be a folder"),
    ],
)
def test_bad_input_meets_one_sentence(given, error, words):
    with pytest.raises(error, match=words):
        reproduce(**given)


def test_a_system_without_an_experiment_is_named_with_those_that_have_one(monkeypatch):
    from repertory.workflows import reproduce as module

    monkeypatch.setattr(module, "experiments", lambda: ["hwa"])
    with pytest.raises(ValueError, match=r"system 'bake' declares no experiment; those that do: hwa"):
        reproduce(["bake"])


def test_a_probe_is_run_in_place_of_the_experiment_and_kept_apart(monkeypatch, tmp_path):
    from repertory.workflows import reproduce as module

    asked = []
    monkeypatch.setattr(module, "run_studies", lambda studies, **given: asked.append((studies, given)))
    reproduce(["ccnet"], probe=True, out=tmp_path)
    (((study,), given),) = asked
    assert study.reference == "repertory.systems.ccnet.experiment:PROBE"
    assert study.experiment.probe
    assert given["out"] == tmp_path / "probes"


def test_a_system_without_a_probe_is_passed_over_unless_it_is_named(monkeypatch, tmp_path):
    from repertory.workflows import reproduce as module

    asked = []
    monkeypatch.setattr(module, "run_studies", lambda studies, **given: asked.extend(studies))
    monkeypatch.setattr(module, "experiments", lambda: ["bake", "ccnet"])
    reproduce(probe=True, out=tmp_path)
    assert [study.experiment.system for study in asked] == ["ccnet"]
    with pytest.raises(ValueError, match="system 'bake' declares an experiment but no probe"):
        reproduce(["bake"], probe=True, out=tmp_path)


def declared_by(slug):
    module = import_module(f"repertory.systems.{slug}.experiment")
    return [name for name in ("EXPERIMENT", "PROBE") if hasattr(module, name)]


@pytest.mark.parametrize(("slug", "name"), [(slug, name) for slug in experiments() for name in declared_by(slug)])
def test_what_a_system_declares_can_be_run_and_judged(slug, name):
    declared = load_experiment(f"repertory.systems.{slug}.experiment:{name}")
    names = [arm.name for arm in declared.arms]
    assert declared.system == slug
    assert len(names) == len(set(names))
    assert {declared.baseline, declared.method} <= set(names)
    assert declared.baseline != declared.method
    assert {"smoke", "small"} <= set(declared.scales)
    assert declared.scales["small"].seeds >= 5
    assert all(name.replace("_", "").isalnum() for name in names)
    assert declared.question
    assert declared.data
    assert json.dumps([dict(arm.settings) for arm in declared.arms])
