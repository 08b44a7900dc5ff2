"""The cards say what every system is; the catalogue reads them without torch."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from repertory import catalog

GOOD = """
slug = "toy"
field = "filtering"
task = "smoothing"
title = "Toy"
venue = "Toys"
year = 2020
purpose = "Smooths."
training_only = ""
inference = "All."
[[parts]]
name = "core"
kinds = ["op"]
"""


def test_a_good_card_is_read():
    card = catalog.parse_card(GOOD, "toy")
    assert card.parts[0].kinds == ("op",)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t.replace('"filtering"', '"cookery"'), "field 'cookery'"),
        (lambda t: t.replace("2020", "20"), "year 20"),
        (lambda t: t.replace('slug = "toy"', 'slug = "toi"'), "the folder is 'toy'"),
        (lambda t: t.replace('"Smooths."', '""'), "purpose is empty"),
        (lambda t: t + "inferred = true\n", "exactly one of"),
        (lambda t: t.replace('kinds = ["op"]', ""), "exactly one of"),
        (lambda t: t.split("[[parts]]")[0], "no parts"),
        (lambda t: "colour = 1\n" + t, "unknown entries colour"),
        (lambda t: t.replace("2020", "20 20"), "card of toy"),
        (
            lambda t: (
                t + '[[published]]\nmetric = "PSNR"\nvalue = 3.0\nunit = "dB"\nsetting = "x"\nsource = "recalled"\n'
            ),
            "'recalled'",
        ),
        (lambda t: t + '[[published]]\nmetric = "PSNR"\n', "card of toy"),
    ],
)
def test_a_bad_card_is_refused_in_one_sentence(change, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        catalog.parse_card(change(GOOD), "toy")
    assert "\n" not in str(caught.value)


def test_the_catalogue_holds_fifty_systems():
    assert len(catalog.cards()) == 50
    assert {card.field for card in catalog.cards().values()} == set(catalog.FIELDS)


@pytest.mark.parametrize("slug", list(catalog.cards()))
def test_every_vector_of_a_room_is_claimed_by_a_part_of_its_card(slug):
    folder = Path(str(catalog.room(slug))) / "vectors"
    kinds = {json.loads(path.read_text())["kind"] for path in folder.glob("*.json")}
    assert kinds <= {kind for part in catalog.card(slug).parts for kind in part.kinds}


@pytest.mark.parametrize(
    "slug", [slug for slug in catalog.cards() if catalog.card(slug).models or catalog.card(slug).methods]
)
def test_no_recorded_status_is_stale_or_failing(slug):
    status = catalog.status(slug)
    assert status.status != "planned", f"run `repertory verify {slug} --record`"
    assert not status.stale, f"{slug} changed since: run `repertory verify {slug} --record`"
    assert status.vectors_passed == status.vectors_total


def test_a_systems_fingerprint_covers_what_it_imports(monkeypatch):
    before = catalog.fingerprint("dilateformer")
    real = catalog._imports
    changed = "repertory.ops.dilated_attention"

    def edited(name):
        content, found = real(name)
        return (content + b"#" if name == changed else content), found

    monkeypatch.setattr(catalog, "_imports", edited)
    assert catalog.fingerprint("dilateformer") != before


def test_unknown_names_meet_the_nearest():
    with pytest.raises(ValueError, match="did you mean dilateformer"):
        catalog.card("dilatformer")


def test_package_data_lists_every_kind_of_file_a_room_holds():
    root = Path(__file__).parents[1]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["repertory"]
    assert {"systems/*/card.toml", "systems/*/status.json", "systems/*/vectors/*.json"} <= set(patterns)


@pytest.mark.parametrize("command", [["--help"], ["list"], ["show", "bake"], ["list", "--json"]])
def test_the_catalogue_commands_do_not_import_torch(command):
    code = (
        "import sys; from repertory.cli import main\n"
        f"try: main({command!r})\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'timm', 'lightning', 'numpy'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_importing_the_package_imports_neither_timm_nor_lightning():
    code = "import sys, repertory; assert not {'torch', 'timm', 'lightning'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
