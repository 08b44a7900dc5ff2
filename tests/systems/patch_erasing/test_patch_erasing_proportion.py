"""Shares of easy, moderate and hard samples, how fast they move, and the periods of training."""

import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from repertory.systems.patch_erasing import (
    DataProportion,
    Periods,
    assimilation_rate,
    periods_of,
    plot_periods,
    smoothed_rate,
)
from repertory.training.difficulty import label_entropy


def logits_of(probabilities):
    """Logits (B, 2) that give class 0 these probabilities."""
    p = torch.tensor(probabilities, dtype=torch.float64)
    return torch.stack([p.log(), (1 - p).log()], 1)


def measured(probabilities, **thresholds):
    metric = DataProportion(**thresholds)
    metric.update(logits_of(probabilities), torch.zeros(len(probabilities), dtype=torch.int64))
    return {name: float(value) for name, value in metric.compute().items()}


def test_shares_are_counted_by_the_probability_of_the_label():
    found = measured([0.9, 0.81, 0.79, 0.5, 0.31, 0.29, 0.1, 0.05])
    assert [found[name] for name in ("easy", "moderate", "hard")] == [2 / 8, 3 / 8, 3 / 8]
    assert found["probability"] == pytest.approx(np.mean([0.9, 0.81, 0.79, 0.5, 0.31, 0.29, 0.1, 0.05]))
    assert found["easy_loss"] == pytest.approx(-(math.log(0.9) + math.log(0.81)) / 2)
    assert found["hard_loss"] == pytest.approx(-(math.log(0.29) + math.log(0.1) + math.log(0.05)) / 3)


def test_boundary_values_are_moderate():
    logits, labels = logits_of([0.75, 0.25]), torch.zeros(2, dtype=torch.int64)
    alpha, beta = (-label_entropy(logits, labels)).exp().tolist()  # the very numbers that are compared
    metric = DataProportion(alpha, beta)
    metric.update(logits, labels)
    assert float(metric.compute()["moderate"]) == 1


@pytest.mark.parametrize("thresholds", [{}, {"alpha": 0.9, "beta": 0.4}])
def test_the_three_shares_sum_to_one(thresholds):
    metric = DataProportion(**thresholds)
    for size in (7, 32, 1):
        metric.update(3 * torch.randn(size, 5), torch.randint(5, (size,)))
    found = metric.compute()
    assert float(found["easy"] + found["moderate"] + found["hard"]) == pytest.approx(1, abs=1e-6)


def test_batches_weigh_by_their_samples():
    metric = DataProportion()
    for probabilities in ([0.9] * 9, [0.1]):
        metric.update(logits_of(probabilities), torch.zeros(len(probabilities), dtype=torch.int64))
    assert float(metric.compute()["easy"]) == pytest.approx(0.9)


def test_processes_add_their_counts_before_they_divide():
    parts, whole = [DataProportion() for _ in range(2)], DataProportion()
    for metric, probabilities in zip(parts, ([0.9] * 9, [0.1])):
        for one in (metric, whole):
            one.update(logits_of(probabilities), torch.zeros(len(probabilities), dtype=torch.int64))
    assert all(parts[0]._reductions[name] is not None for name in ("count", "loss", "probability"))
    for name, reduce in parts[0]._reductions.items():
        together = reduce(torch.stack([getattr(part, name) for part in parts]))
        torch.testing.assert_close(together, getattr(whole, name))


def test_smoothing_and_mixing_have_no_say_but_the_dominant_class():
    logits, labels = 2 * torch.randn(16, 4), torch.randint(4, (16,))
    plain, mixed = DataProportion(), DataProportion()
    plain.update(logits, labels)
    mixed.update(logits, 0.7 * torch.nn.functional.one_hot(labels, 4) + 0.3 / 4)
    torch.testing.assert_close(plain.compute(), mixed.compute(), equal_nan=True)


def test_an_empty_group_has_no_loss():
    assert math.isnan(measured([0.9])["hard_loss"])


@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.8), (1.0, 0.3), (0.8, 0.0), (0.5, 0.5)])
def test_thresholds_out_of_order_are_named(alpha, beta):
    with pytest.raises(ValueError, match=f"alpha and beta are {alpha} and {beta}"):
        DataProportion(alpha, beta)


EPOCHS = np.arange(40)
EASY = 0.9 / (1 + np.exp(-(EPOCHS - 12) / 3))
HARD = 0.8 / (1 + np.exp((EPOCHS - 10) / 2.5))


def test_the_rate_of_a_polynomial_is_its_derivative():
    at = np.linspace(0, 1, 20)
    easy, hard = at**3, 1 - at**2
    expected = (3 * at**2 + 2 * at) / 2 / 19
    np.testing.assert_allclose(assimilation_rate(easy, hard), expected, atol=1e-9)


def test_the_rate_is_that_of_an_unscaled_fit_where_that_is_well_conditioned():
    easy, hard = EASY[:14], HARD[:14]
    expected = sum(np.abs(np.polyval(np.polyder(np.polyfit(np.arange(14), s, 4)), np.arange(14))) for s in (easy, hard))
    np.testing.assert_allclose(assimilation_rate(easy, hard, degree=4), expected / 2, atol=1e-9)


def test_three_hundred_epochs_are_fitted_without_losing_digits():
    at = np.arange(300)
    easy, hard = 1 - np.exp(-at / 60), np.exp(-at / 50)
    expected = (np.exp(-at / 60) / 60 + np.exp(-at / 50) / 50) / 2
    np.testing.assert_allclose(assimilation_rate(easy, hard)[5:-5], expected[5:-5], rtol=1e-3)


def test_fewer_than_fourteen_epochs_need_the_smoothed_difference():
    with pytest.raises(ValueError, match="there are 13 epochs, but a polynomial of degree 12 needs at least 14"):
        assimilation_rate(EASY[:13], HARD[:13])
    assert assimilation_rate(EASY[:14], HARD[:14]).shape == smoothed_rate(EASY[:14], HARD[:14]).shape == (14,)
    with pytest.raises(ValueError, match="a rate needs at least 2"):
        smoothed_rate([0.1], [0.9])


def test_the_smoothed_difference_follows_a_line_to_the_epoch():
    at = np.arange(10)
    np.testing.assert_allclose(smoothed_rate(0.02 * at, 0.5 - 0.04 * at)[2:-2], 0.03)
    np.testing.assert_allclose(smoothed_rate(0.02 * at, 0.5 - 0.04 * at, width=1), 0.03)


def test_both_rates_have_one_peak_where_training_is_fastest():
    for rate in (assimilation_rate, smoothed_rate):
        assert 9 <= int(np.argmax(rate(EASY, HARD)[3:-3])) + 3 <= 13


def test_periods_follow_one_another():
    periods = periods_of(EASY, HARD)
    rate = assimilation_rate(EASY, HARD)
    assert 2 <= periods.growth <= 6  # the hard share has fallen by a twentieth
    assert 15 <= periods.exploration <= 25
    assert rate[periods.exploration] < 0.2 * rate[periods.growth :].max() <= rate[periods.exploration - 1] / 0.999
    assert [periods.at(epoch) for epoch in (0, periods.growth, periods.exploration)] == [
        "formation",
        "growth",
        "exploration",
    ]


def test_a_period_that_has_not_come_begins_after_the_last_epoch():
    assert periods_of(EASY[:2], HARD[:2]) == Periods(2, 2, 2)
    assert periods_of([], []) == Periods(0, 0, 0)
    middle = periods_of(EASY[:12], HARD[:12])
    assert middle.growth < middle.exploration == 12


def test_another_rate_may_tell_the_periods():
    early = periods_of(EASY, HARD, rate=lambda easy, hard: np.where(EPOCHS < 20, 1.0, 0.0))
    assert early.exploration == 20


def test_series_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="easy has 3 epochs and hard 2"):
        periods_of([0.1, 0.2, 0.3], [0.9, 0.8])


@pytest.mark.parametrize("epochs", [3, 40])
def test_the_plot_shows_shares_rate_and_periods(epochs):
    history = [{"easy": e, "hard": h, "moderate": 1 - e - h} for e, h in zip(EASY[:epochs], HARD[:epochs])]
    figure = plot_periods(history)
    assert isinstance(figure, Figure)
    shares, rate = figure.axes
    assert [line.get_label() for line in shares.get_lines()[:3]] == ["easy", "moderate", "hard"]
    assert len(rate.get_lines()[0].get_xdata()) == epochs
    names = [text.get_text() for text in shares.texts]
    assert names == (["formation", "growth", "exploration"] if epochs == 40 else ["formation"])
