"""The vector format is the reference's: held to numbers that its definition gave once."""

import json
from pathlib import Path

import pytest
import torch

from repertory import parity
from repertory.parity.vector import STEPS

FIXTURE = json.loads((Path(__file__).parent / "format.json").read_text())


def _number(value):
    return float(value) if isinstance(value, str) else value


def _tensor(entry):
    values = [_number(value) for value in entry["values"]]
    return torch.tensor(values, dtype=getattr(torch, entry["dtype"])).reshape(entry["shape"])


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return float(value) if value in ("nan", "inf", "-inf") else value


def _same(got, expected):
    assert got.dtype == expected.dtype
    assert torch.equal(got, expected)


@pytest.mark.parametrize("entry", FIXTURE["draws"], ids=lambda entry: entry["name"])
def test_a_parameter_is_drawn_from_its_name(entry):
    _same(parity.draw(entry["name"], tuple(entry["shape"])), _tensor(entry["value"]))


@pytest.mark.parametrize("entry", FIXTURE["inputs"], ids=lambda entry: entry["name"])
def test_an_input_is_drawn_from_its_name(entry):
    got = parity.make_input(entry["name"], tuple(entry["shape"]), entry["kind"], entry["high"])
    _same(got, _tensor(entry["value"]))


@pytest.mark.parametrize("entry", FIXTURE["feeds"], ids=lambda entry: entry["step"])
def test_a_transform_step_gives_the_recorded_value(entry):
    vector = {"config": entry["config"], "inputs": entry["inputs"], "parameters": {}}
    fed = parity.feed(vector)
    for name, expected in entry["fed"].items():
        got, want = fed[name], _tensor(expected)
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


def test_the_fixture_covers_every_step():
    listed = {
        step
        for feed in FIXTURE["feeds"]
        for steps in (feed["config"]["inputs_transform"] or {}).values()
        for step in steps
    }
    assert set(STEPS) <= listed
    assert {"add_rows", "diagonal", "from", "boxes"} <= listed


def test_an_unknown_step_is_refused():
    vector = {"config": {"inputs_transform": {"x": {"twist": 1}}}, "inputs": {"x": {"shape": [2]}}, "parameters": {}}
    with pytest.raises(ValueError, match="twist"):
        parity.feed(vector)


@pytest.mark.parametrize("entry", FIXTURE["summaries"], ids=lambda entry: entry["name"])
def test_a_summary_is_the_recorded_one(entry):
    got = parity.summarise(_tensor(entry["tensor"]))
    expected = entry["summary"]
    assert got["shape"] == expected["shape"]
    assert got["samples"] == expected["samples"]
    for moment in ("mean", "std", "norm"):
        assert got[moment] == pytest.approx(expected[moment], rel=1e-12)


@pytest.mark.parametrize("entry", FIXTURE["comparisons"], ids=lambda entry: entry["what"])
def test_a_comparison_decides_as_recorded(entry):
    tensor, expected = _tensor(entry["tensor"]), _plain(entry["expected"])
    if entry["accepted"]:
        assert parity.compare(tensor, expected, **entry["options"]) == pytest.approx(
            entry["error"], rel=1e-6, abs=1e-12
        )
    else:
        with pytest.raises(parity.Mismatch):
            parity.compare(tensor, expected, **entry["options"])
