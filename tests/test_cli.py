"""The command line says what happened in one sentence, and its exit status means what the docs say."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from repertory.catalog import TASKS, cards
from repertory.cli import main
from repertory.parity import load

VECTORS = Path(__file__).parents[1] / "src" / "repertory" / "systems" / "bake" / "vectors"


def run(capsys, *arguments):
    status = main(list(arguments))
    return status, *capsys.readouterr()


def test_list_prints_rows_as_json(capsys):
    status, out, _ = run(capsys, "list", "--json")
    rows = json.loads(out)
    assert status == 0
    assert [row["slug"] for row in rows] == list(cards())
    assert {"slug", "field", "title", "year", "status", "stale", "vectors_passed", "vectors_total"} <= set(rows[0])


def test_list_narrows_by_field_task_and_status(capsys):
    _, out, _ = run(capsys, "list", "--field", "filtering", "--json")
    assert [row["slug"] for row in json.loads(out)] == ["pyramid_texture_filtering"]
    _, out, _ = run(capsys, "list", "--status", "planned", "--json")
    assert all(row["status"] == "planned" for row in json.loads(out))
    _, out, _ = run(capsys, "list", "--task", "human parsing")
    assert "schp" in out
    assert "bake" not in out


def test_show_prints_the_card(capsys):
    status, out, _ = run(capsys, "show", "bake")
    assert status == 0
    assert "Batch Knowledge Ensembling" in out
    _, out, _ = run(capsys, "show", "bake", "--json")
    assert json.loads(out)["slug"] == "bake"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["lst"], "did you mean list"),
        (["show", "bakk"], "did you mean bake"),
        (["list", "--field", "filter"], "did you mean filtering"),
        (["list", "--status", "done"], "unknown status 'done'"),
        (["verify", "nothing"], "unknown system 'nothing'"),
        (["verify", "absent.json"], "no parity vector at absent.json"),
        (["reproduce"], "name systems to reproduce"),
        (["reproduce", "bake", "--data", "cifar"], "not of the form NAME=ROOT"),
        (["train", "--data", "digits"], "model"),
        (["train", "--model", "resnet18", "--data", "digits", "--lr", "fast"], "lr"),
        (["train", "--model", "resnet18", "--data", "digits", "--bogus", "1"], "bogus"),
        (["train", "--model", "resnet81", "--data", "digits"], "resnet"),
        (["train", "--model", "resnet18", "--data", "digits", "--method", "bkae"], "did you mean bake"),
        (
            ["train", "--model", "resnet18", "--data", "digits", "--batch-size", "10", "--accumulate", "3"],
            "batch_size 10",
        ),
        (["predict", "no-such-run", "x.png"], "no-such-run"),
        (["filter", "no-such.png", "out.png"], "no-such.png"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(capsys, arguments, complaint):
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert err.startswith("repertory: ")
    assert err.count("\n") == 1
    assert complaint in err


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="bakk"):
        main(["--debug", "show", "bakk"])


def test_verify_says_how_many_passed(capsys):
    status, out, _ = run(capsys, "verify", str(VECTORS / "loss.json"), "--verbose")
    assert status == 0
    assert "soft_targets" in out
    assert out.splitlines()[-1] == "1 passed, 0 failed"


def test_verify_of_a_changed_number_fails_with_status_1(capsys, tmp_path):
    vector = load(VECTORS / "loss.json")
    vector["outputs"]["kd"]["mean"] *= 1.01
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(vector))
    status, out, _ = run(capsys, "verify", str(path))
    assert status == 1
    assert out.splitlines()[-1] == "0 passed, 1 failed"
    assert "kd" in out


def test_a_vector_that_no_driver_understands_is_status_2(capsys, tmp_path):
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(load(VECTORS / "loss.json") | {"kind": "riddle"}))
    status, _, err = run(capsys, "verify", str(path))
    assert status == 2
    assert "kind 'riddle'" in err


def test_another_vector_of_a_known_kind_runs_unseen(capsys, tmp_path):
    """The same kind with another temperature must be read from the file, and so disagree with the recorded numbers."""
    vector = load(VECTORS / "loss.json")
    vector["config"]["temp"] = 2.0
    path = tmp_path / "other.json"
    path.write_text(json.dumps(vector))
    assert run(capsys, "verify", str(path))[0] == 1


def _seconds(*arguments):
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


@pytest.fixture(scope="module")
def torch_seconds():
    """How long this machine takes to import torch, which start-up is measured by: machines differ, and their loads."""
    return min(_seconds("-c", "import torch") for _ in range(2))


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["show", "bake"]])
def test_the_catalogue_answers_at_once(torch_seconds, arguments):
    assert min(_seconds("-m", "repertory.cli", *arguments) for _ in range(3)) < torch_seconds / 3


@pytest.mark.parametrize("command", ["evaluate", "predict", "export", "reproduce", "filter", "verify", "bench"])
def test_help_of_every_command_comes_at_once(torch_seconds, command):
    assert min(_seconds("-m", "repertory.cli", command, "--help") for _ in range(2)) < torch_seconds / 3


def test_help_of_train_costs_little_more_than_torch():
    """The methods' classes are looked at for their settings, and need torch; models and data they must not load."""
    pairs = [(_seconds("-m", "repertory.cli", "train", "--help"), _seconds("-c", "import torch")) for _ in range(2)]
    assert min(took for took, _ in pairs) < 2 * min(torch for _, torch in pairs)


@pytest.mark.parametrize("task", TASKS)
def test_help_of_train_loads_no_models_and_no_data(task):
    code = f"""
import sys
from repertory.cli import main
try:
    main(["train", "--task", {task!r}, "--help"])
except SystemExit:
    sys.stderr.write(" ".join(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "--bake.temperature" in done.stdout
    loaded = set(done.stderr.split())
    assert "torch" in loaded
    assert not loaded & {"timm", "torchvision", "lightning", "pytorch_lightning", "repertory.data.loading"}


def test_importing_the_package_costs_little_beside_torch():
    code = "import torch, time; t = time.perf_counter(); import repertory; print(time.perf_counter() - t)"
    took = min(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(3))
    assert took < 0.3
