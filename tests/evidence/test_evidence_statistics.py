import numpy as np
import pytest
from scipy import stats

from repertory.evidence.statistics import detectable, holm, paired, power, verdict


def arms(differences, base=10.0):
    return (
        {seed: base + seed for seed in range(len(differences))},
        {seed: base + seed + d for seed, d in enumerate(differences)},
    )


def test_interval_and_p_are_those_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    baseline, method = rng.normal(size=7), rng.normal(0.5, 1.0, size=7)
    ours = paired(dict(enumerate(baseline)), dict(enumerate(method)))
    theirs = stats.ttest_rel(method, baseline)
    interval = theirs.confidence_interval(0.95)
    assert ours.mean == pytest.approx((method - baseline).mean())
    assert ours.p == pytest.approx(theirs.pvalue)
    assert (ours.lower, ours.upper) == pytest.approx((interval.low, interval.high))


def test_only_seeds_that_both_arms_have_are_paired():
    pairs = paired({0: 1.0, 1: 2.0, 3: 9.0}, {1: 2.5, 0: 1.5, 2: 7.0})
    assert pairs.seeds == (0, 1)
    assert pairs.differences == pytest.approx((0.5, 0.5))


def test_no_shared_seed_is_refused_by_name():
    with pytest.raises(ValueError, match=r"seeds \[0\] and method has seeds \[1\]"):
        paired({0: 1.0}, {1: 1.0})


def test_a_difference_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="finite"):
        paired({0: 1.0}, {0: float("nan")})


def test_one_pair_has_a_mean_and_no_interval():
    pairs = paired(*arms([0.5]))
    assert pairs.mean == pytest.approx(0.5)
    assert pairs.lower is pairs.upper is pairs.p is pairs.spread is None
    assert detectable(pairs.spread, 1) is None


def test_equal_differences_leave_no_doubt_and_no_difference_leaves_p_at_one():
    assert paired(*arms([0.1] * 5)).p == 0.0
    same = paired(*arms([0.0] * 5))
    assert (same.p, same.lower, same.upper) == (1.0, 0.0, 0.0)


def test_holm_multiplies_by_what_is_left_and_never_decreases():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(("count", "alpha"), [(5, 0.05), (5, 0.0125), (12, 0.05)])
def test_the_detectable_difference_is_shown_by_four_runs_in_five(count, alpha):
    effect = detectable(2.0, count, alpha)
    samples = np.random.default_rng(1).normal(effect, 2.0, (60_000, count))
    t = samples.mean(1) / (samples.std(1, ddof=1) / np.sqrt(count))
    assert (t > stats.t.ppf(1 - alpha / 2, count - 1)).mean() == pytest.approx(0.8, abs=0.01)


def test_power_at_the_detectable_difference_is_80_percent_even_with_two_pairs():
    assert power(detectable(3.0, 2, 0.0125), 3.0, 2, 0.0125) == pytest.approx(0.8, abs=1e-6)


@pytest.mark.parametrize(
    ("differences", "higher", "p", "scale", "words"),
    [
        ([1.0, 1.1, 0.9, 1.0, 1.2], True, 0.01, "small", "better"),
        ([1.0, 1.1, 0.9, 1.0, 1.2], False, 0.01, "small", "worse"),
        ([-1.0, -1.1, -0.9, -1.0, -1.2], False, 0.01, "small", "better"),
        ([-1.0, -1.1, -0.9, -1.0, -1.2], True, 0.01, "small", "worse"),
        ([1.0, 1.1, 0.9, 1.0, 1.2], True, 0.05, "small", "no difference shown"),
        ([1.0, 1.1, 0.9, 1.0, 1.2], True, 0.01, "smoke", "smoke: not evidence"),
        ([1.0, 1.1, 0.9, 1.0], True, 0.01, "small", "4 seeds: not evidence"),
        ([1.0], True, None, "small", "1 seed: not evidence"),
    ],
)
def test_verdict_follows_direction_adjusted_p_and_the_number_of_seeds(differences, higher, p, scale, words):
    assert verdict(paired(*arms(differences)), p, higher, scale) == words
