"""The reward of accuracy and latency, exactly as MnasNet defines it."""

import pytest

from repertory.systems.fnas import MultiplyAdds, WeighedReward, weighed_accuracy
from repertory.systems.fnas.model import MNASNET_A1
from repertory.systems.fnas.reward import AccuracyReward


def test_at_the_target_the_reward_is_the_accuracy():
    assert weighed_accuracy(0.7, 80.0, 80.0) == 0.7


def test_the_soft_setting_prices_a_doubling_at_about_five_per_cent():
    assert weighed_accuracy(0.75, 160, 80) == pytest.approx(0.75 * 2**-0.07)
    assert weighed_accuracy(0.75, 40, 80) == pytest.approx(0.75 * 2**0.07)
    assert weighed_accuracy(0.75, 160, 80) / 0.75 == pytest.approx(0.9526, abs=1e-4)


def test_the_hard_setting_leaves_what_is_within_the_target_alone():
    assert weighed_accuracy(0.75, 40, 80, alpha=0, beta=-1) == 0.75
    assert weighed_accuracy(0.75, 160, 80, alpha=0, beta=-1) == 0.375


def test_the_exponents_part_at_the_target():
    within, above = (weighed_accuracy(0.5, cost, 1.0, alpha=-0.5, beta=-2) for cost in (0.25, 4.0))
    assert (within, above) == (1.0, 0.03125)


@pytest.mark.parametrize("accuracy", [-0.1, 1.01, float("nan")])
def test_an_accuracy_is_a_fraction(accuracy):
    with pytest.raises(ValueError, match=r"accuracy is .*; it must be 0 to 1"):
        weighed_accuracy(accuracy, 1, 1)


@pytest.mark.parametrize("bad", [0, -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["cost", "target"])
def test_costs_are_above_zero(name, bad):
    with pytest.raises(ValueError, match=rf"{name} is .*; it must be above 0 and finite"):
        weighed_accuracy(0.5, **{"cost": 1.0, "target": 1.0, name: bad})


def test_the_reward_of_an_architecture_reads_its_cost():
    cost = MultiplyAdds((3, 224, 224), 1000)
    reward = WeighedReward(cost, target=cost(MNASNET_A1) / 2)
    assert reward(0.752, MNASNET_A1) == pytest.approx(0.752 * 2**-0.07)
    assert AccuracyReward()(0.752, MNASNET_A1) == 0.752
    with pytest.raises(ValueError, match="target is 0; it must be above 0"):
        WeighedReward(cost, 0)
