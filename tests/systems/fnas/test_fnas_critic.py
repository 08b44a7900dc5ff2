"""The critic knows what it does not know, spares some trainings and never all, and learns from real ones alone."""

import pytest
import torch
from scipy.stats import spearmanr

from repertory.systems.fnas import SearchSpace, Stage, UncertaintyAwareCritic, UncertaintyThreshold, UniformPolicy
from repertory.systems.fnas.policy import as_tensor

SPACE = SearchSpace((Stage(8, 1, 1), Stage(16, 1, 1), Stage(24, 1, 1)))


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(count, seed):
    return [tuple(row) for row in UniformPolicy(SPACE).sample(count, random(seed)).tolist()]


def rewards(sequences):
    """Easy where the first token is 0; elsewhere the reward hangs on all other tokens at once."""
    tokens = as_tensor(sequences)
    hard = ((tokens[:, 1:] * torch.arange(3, 20)).sum(1) % 7).double() / 7 - 0.5
    return torch.where(tokens[:, 0] == 0, torch.full_like(hard, 0.8), 0.4 + 0.4 * hard)


@pytest.fixture(scope="module")
def critic():
    torch.manual_seed(0)
    made = UncertaintyAwareCritic(SPACE, hidden=64)
    known = drawn(400, 0)
    for tokens, reward in zip(known, rewards(known).tolist(), strict=True):
        made.add(tokens, reward)
    for part in range(6):
        made.fit(random(part))
    return made


def test_uncertainty_ranks_the_errors_on_samples_that_were_held_out(critic):
    unseen = drawn(400, 1)
    value, uncertainty = critic.predict(unseen)
    error = (value - rewards(unseen)).abs()
    assert spearmanr(uncertainty, error).statistic > 0.2
    assert uncertainty.min() >= 0


def test_predictions_are_in_units_of_the_reward(critic):
    easy = [tokens for tokens in drawn(400, 2) if tokens[0] == 0]
    value, uncertainty = critic.predict(easy)
    assert float((value - 0.8).abs().mean()) < 0.1
    assert float(uncertainty.mean()) < 0.15


def test_the_uncertainty_leaves_the_value_alone():
    critic = UncertaintyAwareCritic(SPACE, hidden=16)
    _, uncertainty = critic(as_tensor(drawn(4, 0)))
    found = torch.autograd.grad(uncertainty.sum(), list(critic.parameters()), allow_unused=True)
    reached = {name for (name, _), grad in zip(critic.named_parameters(), found, strict=True) if grad is not None}
    assert reached
    assert all(name.startswith("error.") for name in reached)


def test_samples_held_out_never_train_the_value():
    values = []
    for changed in (0.1, 0.9):
        torch.manual_seed(0)
        critic = UncertaintyAwareCritic(SPACE, hidden=16, steps=5, held_out=2)
        known = drawn(16, 0)
        for index, tokens in enumerate(known):
            critic.add(tokens, changed if index in (1, 3) else 1.0 - changed if index in (5, 7) else index / 16)
        critic.fit(random())
        weights = critic.value.weight.clone(), critic.encoder[0].weight.clone()
        values.append(weights)
    assert all(torch.equal(a, b) for a, b in zip(*values, strict=True))


def test_too_few_samples_teach_nothing():
    critic = UncertaintyAwareCritic(SPACE, hidden=8)
    before = critic.encoder[0].weight.clone()
    critic.add(drawn(1, 0)[0], 0.5)
    critic.fit(random())
    assert torch.equal(critic.encoder[0].weight, before)


def test_a_critic_comes_back_as_it_was(critic):
    again = UncertaintyAwareCritic(SPACE, hidden=64)
    again.restore(critic.snapshot())
    for first, second in zip(critic.predict(drawn(8, 3)), again.predict(drawn(8, 3)), strict=True):
        assert torch.equal(first, second)
    assert again.samples == critic.samples


def test_the_threshold_spares_a_share_and_never_all():
    threshold = UncertaintyThreshold(quantile=0.5, start=10, end=20, always=0.1)
    shares = []
    for step in range(40):
        uncertainties = torch.rand(100, generator=random(step))
        shares.append(float(threshold.sure(uncertainties, step, random(step)).double().mean()))
    assert not any(shares[:11])
    assert 0 < sum(shares[11:20]) / 9 < sum(shares[20:]) / 20
    assert 0.35 < sum(shares[20:]) / 20 < 0.55  # half of them, less a tenth that is trained in any case
    assert max(shares) < 1


def test_even_a_critic_that_is_always_sure_leaves_some_to_train():
    threshold = UncertaintyThreshold(quantile=0.9, start=0, end=0, always=0.2)
    threshold.sure(torch.ones(256), 1, random())
    spared = threshold.sure(torch.zeros(1000), 2, random())
    assert 0.75 < float(spared.double().mean()) < 0.85


def test_the_surest_are_spared():
    threshold = UncertaintyThreshold(quantile=0.5, start=0, end=0, always=1e-9)
    uncertainties = torch.linspace(0, 1, 64)
    threshold.sure(uncertainties, 1, random())
    assert threshold.sure(uncertainties, 1, random()).tolist() == [True] * 32 + [False] * 32


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: UncertaintyThreshold(quantile=1.0), "quantile is 1.0"),
        (lambda: UncertaintyThreshold(start=5, end=2), "start and end are 5 and 2"),
        (lambda: UncertaintyThreshold(always=0), "always is 0; it must be above 0"),
        (lambda: UncertaintyAwareCritic(SPACE, held_out=1), "held_out is 1"),
        (lambda: UncertaintyAwareCritic(SPACE, hidden=0), "hidden, steps and batch_size are 0"),
        (lambda: UncertaintyAwareCritic(SPACE).add((0,) * 18, float("inf")), "reward is inf; it must be finite"),
    ],
)
def test_bad_input_is_named(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()
