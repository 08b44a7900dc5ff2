"""What a run will process is known before, and is what it then processes."""

import pytest

from repertory.systems.dap import Confident, Cycle, DropAndPick, LowestFraction, expected_cost


def by_formula(epochs, warmup, final, period, q):
    return (warmup + final + (epochs - warmup - final) * (1 + (period - 1) * (1 - q)) / period) / epochs


def test_the_example_of_three_quarters():
    assert expected_cost(90, Cycle(warmup=5, period=3, final=1), 0.4) == pytest.approx(0.751, abs=5e-4)


@pytest.mark.parametrize("period", [1, 2, 3, 6])
@pytest.mark.parametrize("q", [0.0, 0.25, 0.7])
def test_whole_cycles_cost_what_the_formula_says(period, q):
    found = expected_cost(27, Cycle(2, period, 1), q)
    assert found == pytest.approx(by_formula(27, 2, 1, period, q))


def test_dropping_that_accumulates_costs_the_geometric_mean_of_a_cycle():
    cycle = (1 + 0.6 + 0.6**2 + 0.6**3) / 4
    assert expected_cost(11, Cycle(2, 4, 1), 0.4, accumulate=True) == pytest.approx((3 + 8 * cycle) / 11)


def test_nothing_dropped_costs_everything():
    assert expected_cost(30, Cycle(), 0.0) == 1
    assert expected_cost(4, Cycle(warmup=5), 0.9) == 1


def test_the_phases_of_a_run():
    cycle = Cycle(warmup=2, period=3, final=1)
    names = [cycle.phase(epoch, 10) for epoch in range(10)]
    assert names == ["warm-up"] * 2 + ["pick", "drop", "drop"] * 2 + ["pick", "final"]
    never = Cycle(warmup=1, period=None, final=0)
    assert [never.phase(epoch, 5) for epoch in range(5)] == ["warm-up", "pick", "drop", "drop", "drop"]
    assert cycle.phase(10) == "drop"


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("q", [0.0, 0.4, 0.85])
def test_a_selection_counts_what_it_will_keep_to_the_sample(accumulate, q):
    selection = DropAndPick(997, Cycle(1, 4, 1), LowestFraction(q), epochs=9, accumulate=accumulate)
    drops = [0, 0, 1, 2, 3, 0, 1, 2, 0]  # epochs of dropping since all were picked up
    expected = []
    for rounds in drops:
        left = 997
        for _ in range(rounds if accumulate else min(rounds, 1)):
            left -= round(q * left)
        expected.append(left)
    assert [selection.planned(epoch) for epoch in range(9)] == expected
    assert selection.cost() == sum(expected) / (9 * 997)
    assert selection.cost() == pytest.approx(expected_cost(9, Cycle(1, 4, 1), q, accumulate), abs=2e-3)


def test_the_cost_by_class_is_the_sum_of_its_classes():
    selection = DropAndPick(13, Cycle(1, 2, 0), LowestFraction(0.5), targets=[0] * 3 + [1] * 9 + [2])
    assert selection.planned(2) == (3 - 2) + (9 - 4) + (1 - 0)


def test_confidence_costs_what_training_makes_of_it():
    selection = DropAndPick(10, Cycle(1, 2, 1), Confident(0.9), epochs=5)
    assert [selection.planned(epoch) for epoch in range(5)] == [10, 10, None, 10, 10]
    assert selection.cost() is None


def test_bad_settings_are_named():
    for name, value in (("warmup", 0), ("period", 0), ("final", -1)):
        with pytest.raises(ValueError, match=f"{name} is {value}; it must be at least {value + 1}"):
            Cycle(**{name: value})
    with pytest.raises(ValueError, match="epochs is 0"):
        expected_cost(0)
    with pytest.raises(ValueError, match="epochs is None; the cost of a run follows"):
        DropAndPick(10).cost()
