"""A status is what the proofs have earned, and nobody types it."""

import json

import pytest

from repertory import catalog
from repertory.catalog import Card, Part
from repertory.parity import OutputReport, VectorReport, run_vector
from repertory.workflows import verify
from repertory.workflows.verify import derive_status, drivers, vectors_of


def card(*parts):
    return Card("toy", "filtering", "smoothing", "Toy", "Toys", 2020, "Smooths.", "", "All.", parts=parts)


def report(kind, origin="authors", problem=""):
    return VectorReport("toy", kind, origin, kind, [OutputReport("out", 0.0, problem)])


CORE = Part("core", kinds=("network",))
SAMPLER = Part("sampler", test="tests/sampler.py")
GUESS = Part("guess", inferred=True, core=False)


@pytest.mark.parametrize(
    ("parts", "reports", "tests", "status"),
    [
        ((CORE,), [report("network")], {}, "parity"),
        ((CORE,), [report("network", "transcription")], {}, "parity"),
        ((CORE, SAMPLER), [report("network")], {"tests/sampler.py": True}, "parity"),
        ((CORE, SAMPLER), [report("network")], {"tests/sampler.py": False}, "reading"),
        ((CORE, SAMPLER), [report("network")], {}, "reading"),
        ((CORE, GUESS), [report("network")], {}, "parity_with_readings"),
        ((CORE, Part("guess", inferred=True)), [report("network")], {}, "reading"),
        ((CORE,), [report("network"), report("network", problem="off")], {}, "reading"),
        ((CORE,), [report("network", "third_party")], {}, "reading_base_verified"),
        ((CORE,), [report("network", "related", problem="off")], {}, "reading"),
        ((SAMPLER,), [], {"tests/sampler.py": True}, "reading"),
        ((Part("two", kinds=("network", "loss")),), [report("network")], {}, "reading"),
    ],
)
def test_a_status_follows_from_parts_and_proofs(parts, reports, tests, status):
    assert derive_status(card(*parts), reports, tests) == status


@pytest.mark.parametrize("slug", [slug for slug in catalog.cards() if drivers(slug)])
def test_every_kind_of_vector_in_a_room_has_its_driver(slug):
    kinds = {json.loads(path.read_text())["kind"] for path in vectors_of(slug)}
    assert kinds == set(drivers(slug))


def test_nothing_runs_when_one_vector_is_not_understood(tmp_path):
    good = vectors_of("bake")[-1]
    odd = tmp_path / "odd.json"
    odd.write_text(json.dumps(json.loads(good.read_text()) | {"kind": "riddle"}))
    seen = []
    with pytest.raises(ValueError, match="riddle"):
        verify([good, odd], on_report=seen.append)
    assert not seen


def test_a_vector_of_an_unknown_system_is_named(tmp_path):
    odd = tmp_path / "odd.json"
    odd.write_text(json.dumps(json.loads(vectors_of("bake")[-1].read_text()) | {"system": "bakk"}))
    with pytest.raises(ValueError, match="did you mean bake"):
        verify([odd])


@pytest.mark.parametrize("name", ["loss", "operators", "msda_72"])
def test_drivers_read_neither_notes_nor_the_case_in_words(name):
    path = next(path for slug in catalog.cards() for path in vectors_of(slug) if path.stem == name)
    vector = json.loads(path.read_text()) | {"notes": "", "case": "", "source": ""}
    assert run_vector(vector, name, drivers(vector["system"])).passed
