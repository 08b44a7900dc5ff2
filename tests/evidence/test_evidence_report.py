import copy
import io
import json
import re
from html.parser import HTMLParser

import pytest
from quick_results import results_of
from rich.console import Console

from repertory.evidence.plots import Series, arms_plot, curves_plot, difference_plot, ticks
from repertory.evidence.report import render
from repertory.evidence.summary import NO_RESULT
from repertory.evidence.table import evidence_table

VOID = {"meta", "link", "img", "br"}


class Reader(HTMLParser):
    """Checks nesting, and gathers elements and text."""

    def __init__(self, page):
        super().__init__()
        self.open, self.elements, self.words = [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)


def text_of(results):
    return " ".join(" ".join(Reader(render(results)).words).replace("\N{NO-BREAK SPACE}", " ").split())


def system_of(results, name):
    return next(system for system in results["systems"] if system["system"] == name)


def terminal(results, width=160):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(evidence_table(results))
    return console.export_text().replace("\N{NO-BREAK SPACE}", " ")


def test_results_judge_each_system_by_its_direction_and_the_holm_family(small_results):
    assert [s["verdict"] for s in small_results["systems"]] == ["better", "no difference shown", "worse"]
    comparison = system_of(small_results, "quick")["comparison"]
    assert comparison["family"] == 3
    assert comparison["detectable_alpha"] == pytest.approx(0.05 / 3)
    assert comparison["lower"] < comparison["mean"] < comparison["upper"] < 0
    assert comparison["adjusted_p"] >= comparison["p"]


def test_smoke_results_are_never_evidence(smoke_results):
    assert [s["verdict"] for s in smoke_results["systems"]] == ["smoke: not evidence"] * 2 + [NO_RESULT]
    assert all(s["comparison"]["adjusted_p"] is None for s in smoke_results["systems"] if s["comparison"])
    assert "Smoke run: not evidence." in text_of(smoke_results)


def test_a_small_run_with_few_seeds_is_no_evidence_and_leaves_the_holm_family(tmp_path):
    results = results_of(("EXPERIMENT",), "small", tmp_path, seeds=3)
    assert system_of(results, "quick")["verdict"] == "3 seeds: not evidence"
    assert system_of(results, "quick")["comparison"]["family"] == 0


def test_results_are_plain_json_with_every_run(small_results):
    assert json.loads(json.dumps(small_results, allow_nan=False)) == small_results
    run = system_of(small_results, "quick")["arms"][1]["runs"][4]
    assert {"seed", "settings", "versions", "wall_seconds", "peak_memory_bytes", "images", "steps"} <= set(run)
    assert run["seed"] == 4


def test_failures_stand_in_results_and_report(smoke_results):
    assert [(f["system"], f["arm"], f["seed"]) for f in smoke_results["failures"]] == [
        ("failing", "better", 0),
        ("failing", "better", 1),
    ]
    assert "2 runs failed." in text_of(smoke_results)
    assert "the disk is full of cats" in text_of(smoke_results)


def test_the_terminal_table_has_a_row_a_system_with_difference_interval_and_verdict(small_results):
    table = terminal(small_results)
    assert re.search(r"quick +top-1 error.* −\d\.\d+ points .* better", table)
    assert re.search(r"\(−\d\.\d+ to −\d\.\d+; 5", table)
    assert "−1.20 points" in table
    assert "(synthetic probe)" in table


@pytest.mark.parametrize("width", [80, 60])
def test_a_narrow_terminal_loses_no_words(small_results, width):
    assert "…" not in terminal(small_results, width)


def test_the_page_is_well_formed_and_asks_for_nothing(small_results):
    page = Reader(render(small_results))
    for tag, attrs in page.elements:
        for name in ("src", "href", "action"):
            assert attrs.get(name, "#").startswith(("#", "data:")), (tag, attrs)
    assert "url(" not in render(small_results)
    assert "@import" not in render(small_results)


def test_every_picture_has_words_in_its_place(small_results):
    page = render(small_results)
    elements = Reader(page).elements
    ids = [attrs["id"] for _, attrs in elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    images = [attrs for tag, attrs in elements if tag == "svg" and attrs.get("role") == "img"]
    assert len(images) >= 9
    assert all(set(attrs["aria-labelledby"].split()) <= set(ids) for attrs in images)
    assert all("aria-hidden" in attrs for tag, attrs in elements if tag == "svg" and attrs.get("role") != "img")
    pictures = [attrs["alt"] for tag, attrs in elements if tag == "img"]
    assert pictures == [
        "input (shared by 2 arms)",
        "output (plain training, seed 0)",
        "output (better training, seed 0)",
    ]


def test_every_header_cell_says_what_it_heads_and_every_button_has_a_name(small_results):
    elements = Reader(render(small_results)).elements
    assert all("scope" in attrs for tag, attrs in elements if tag == "th")
    assert sum(tag == "h1" for tag, _ in elements) == 1


def test_published_figures_stand_beside_ours_with_both_settings(small_results):
    words = text_of(small_results)
    assert "CIFAR-100, ResNet-18" in words
    assert "TinyImageNet, <ResNet-18>" in words
    assert "made-up numbers; 200 images processed a run" in words
    assert "21.28%" in words
    assert "The settings differ" in words


def test_the_verdict_is_said_in_words_with_what_could_have_been_shown(small_results):
    words = text_of(small_results)
    assert re.search(r"Better\. Top-1 error of “better training” was \d\.\d+ points lower than", words)
    assert "No difference shown at this scale." in words
    assert re.search(r"smallest difference that such a run shows with 80% power is \d\.\d+ points", words)


def test_text_from_elsewhere_cannot_become_markup(small_results):
    results = copy.deepcopy(small_results)
    results["systems"][0]["title"] = "<script>alert(1)</script>"
    results["systems"][0]["question"] = results["systems"][0]["arms"][0]["label"] = "<b>&"
    assert "<script>alert" not in render(results)
    assert "<b>" not in render(results)


def test_improvement_lies_to_the_right_whatever_the_direction(small_results):
    def place(system):
        return float(re.search(r'<polygon class="mark c1" points="([\d.]+)', difference_plot(system))[1])

    down = system_of(small_results, "quick")
    up = {**copy.deepcopy(down), "higher_is_better": True}
    assert place(up) < 220 < place(down)


def test_one_seed_draws_no_interval(tmp_path):
    results = results_of(("EXPERIMENT",), "smoke", tmp_path, seeds=1)
    assert 'class="interval"' not in difference_plot(system_of(results, "quick"))
    assert "one seed: no interval" in text_of(results)


def test_curves_leave_gaps_where_values_are_missing_and_say_where_they_end():
    image = curves_plot("loss", [Series("arm", 1, [[(0, 3.0), (1, None), (2, 1.0)], [(0, 5.0), (1, 2.0), (2, 2.0)]])])
    mean = re.search(r'<path class="curve c1" d="([^"]+)"', image)[1]
    assert mean.count("M") == 2
    assert "arm ends at 1.50 (mean of 2" in image


def test_a_long_label_is_cut_in_the_figure_and_whole_in_its_description():
    label = "SGD with twice the batch, half the steps and the schedule of the other arm"
    image = arms_plot("m", "", "higher", [(label, 0, [1.0, 2.0], 1.5)])
    assert f"{label}: mean 1.50" in image
    assert re.search(r">SGD with twice [^<]+…<", image)


def test_equal_values_still_draw():
    assert "nan" not in arms_plot("m", "", "higher", [("a", 0, [1.0, 1.0], 1.0)])
    assert "nan" not in curves_plot("m", [Series("a", 0, [[(0, 0.0)]])])


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.7, 12.1), (19.98, 20.03), (0, 51_200), (1e-6, 3e-6)])
def test_ticks_are_round_within_the_axis_and_neither_few_nor_many(low, high):
    found = ticks(low, high)
    assert 3 <= len(found) <= 7
    assert low - 1e-9 <= found[0] <= found[-1] <= high + 1e-9
