"""The attention benchmark: what it measures, writes and refuses, on tiny sides."""

import io
import json

import pytest
import torch
from rich.console import Console

from repertory.workflows import bench
from repertory.workflows.bench import GLOBAL, REFERENCES, bench_attention, draw


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    told = []
    with torch.compiler.set_stance("force_eager"):  # nothing here is worth the compiler's time
        found = bench_attention(
            tmp_path_factory.mktemp("bench"),
            (16, 32),
            backbones=["afformer_tiny"],
            throughput_side=32,
            batch=2,
            rounds=2,
            compiled=False,
            memory=False,
            progress=lambda done, total: told.append((done, total)),
        )
    return found, told


def test_every_operator_and_backbone_is_timed_at_every_side(measured):
    rows = measured[0].results["rows"]
    names = [*bench.operators(), "afformer_tiny"]
    assert [(row["name"], row["side"]) for row in rows] == [
        *((name, side) for side in (16, 32) for name in names[:-1]),
        *((names[-1], side) for side in (16, 32)),
    ]
    assert measured[0].results["notes"] == []
    assert all(row["seconds"] > 0 for row in rows)
    assert GLOBAL in names


def test_progress_counts_every_point(measured):
    found, told = measured
    total = len(found.results["rows"]) + 1
    assert told == [(done + 1, total) for done in range(total)]


def test_what_is_written_is_what_was_measured(measured):
    found = measured[0]
    json_file, png, svg = found.files
    assert json.loads(json_file.read_text()) == found.results
    assert {"machine", "threads", "torch", "device", "command"} <= set(found.results)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in svg.read_text()


def test_the_tables_name_everything(measured):
    console = Console(width=150, file=io.StringIO())
    console.print(measured[0])
    text = " ".join(console.file.getvalue().split())  # titles are wrapped
    for name in (*bench.operators(), "afformer_tiny", "16 px", "Images per second at 32 px, batches of 2"):
        assert name in text


def test_images_per_second_are_a_batch_over_its_time(monkeypatch):
    monkeypatch.setattr(bench, "_rounds", lambda calls, rounds, device: dict.fromkeys(calls, 0.5))
    (row,) = bench._rates(["afformer_tiny"], 32, 4, 1, False, "cpu", [], lambda: None)
    assert row == {"name": "afformer_tiny", "eager": 8.0, "compiled": None}


def test_all_take_turns_and_the_median_counts(monkeypatch):
    order, clock = [], iter(float(i) ** 2 for i in range(100))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    found = bench._rounds({name: lambda name=name: order.append(name) for name in "ab"}, 3, "cpu")
    assert order == ["a", "b", "b", "a", "a", "b"]
    # the clock shows 0, 1, 4, 9, …: the k-th measurement takes 4 k + 1
    assert found == {"a": 13.0, "b": 9.0}


def test_memory_of_an_operator_is_that_of_a_process_of_its_own():
    names = [GLOBAL, "dilated attention 3x3"]
    rises = bench._memory("operator", names, 256, "cpu")
    assert list(rises) == names
    assert all(4 * 96 * (256 // 4) ** 2 <= rise < 2**28 for rise in rises.values())  # at least the output


def test_a_network_that_does_not_take_a_size_is_noted(monkeypatch, tmp_path):
    def refuse(name, side, device):
        raise ValueError(f"{side} px is too small")

    monkeypatch.setattr(bench, "_network", refuse)
    found = bench_attention(
        tmp_path, (16,), operators=[], backbones=["afformer_tiny"], throughput_side=16, compiled=False, memory=False
    )
    assert found.results["rows"][0]["seconds"] is None
    assert found.results["notes"] == ["afformer_tiny at 16 px failed: 16 px is too small"] * 2
    assert found.tables()[0].columns[1]._cells == ["failed"]


def test_a_figure_with_gaps_is_drawn(tmp_path):
    rows = [
        {"kind": "backbone", "name": name, "side": side, "seconds": None if side == 56 else 1.0, "memory": None}
        for name in ("ours", *REFERENCES)
        for side in (56, 112)
    ]
    draw({"rows": rows, "sides": [56, 112], "machine": "m", "threads": 1, "torch": "2"}, tmp_path / "f.png")
    assert (tmp_path / "f.png").stat().st_size > 1000


def test_backbones_are_ours_and_the_three_that_they_are_held_against():
    names = bench.backbones()
    assert {"dilateformer_tiny", "afformer_tiny"} <= set(names)
    assert names[-3:] == list(REFERENCES)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("side", [56, 112])
def test_the_references_take_other_sides(name, side):
    assert bench._call("backbone", name, side, "cpu")().shape == (1, 1000)


@pytest.mark.slow
def test_compiled_networks_are_measured_beside_eager_ones(tmp_path):
    if not bench.compiler_found():
        pytest.skip("no C++ compiler")
    found = bench_attention(
        tmp_path, (32,), operators=[], backbones=["afformer_tiny"], throughput_side=32, batch=1, rounds=1, memory=False
    )
    assert found.results["throughput"][0]["compiled"] > 0


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"sides": ()}, "sides is empty"),
        ({"sides": (56, 57)}, "sides has 57; sides must be multiples of 4 from 16 on"),
        ({"throughput_side": 8}, "throughput_side has 8"),
        ({"rounds": 0}, "rounds is 0; it must be at least 1"),
        ({"batch": 0}, "batch is 0; it must be at least 1"),
        ({"operators": ["criss attention"]}, "did you mean criss-cross attention"),
        ({"backbones": ["afformer_tinny"]}, "did you mean afformer_tiny"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(tmp_path, settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        bench_attention(tmp_path, **{"operators": [], "backbones": [], **settings})


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match="is a file; it must be a folder"):
        bench_attention(tmp_path / "taken", operators=[], backbones=[])


@pytest.mark.gpu
def test_memory_on_cuda_is_that_of_the_allocator():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert bench._memory("operator", [GLOBAL], 256, "cuda")[GLOBAL] > 0
