"""Policies are distributions over token sequences; PPO raises the reward of what they propose."""

import itertools

import pytest
import torch

from repertory.systems.fnas import PPO, FactorisedPolicy, LSTMPolicy, SearchSpace, Stage, UniformPolicy
from repertory.systems.fnas.policy import Batch, standardised

SMALL = SearchSpace(
    (Stage(8, 1, 1), Stage(8, 1, 1)),
    operations=(("sep", 1), ("mb", 3)),
    kernels=(3, 5),
    se_ratios=(0.0,),
    skips=("pool", "identity", "none"),
    widths=(1.0,),
    depths=(0,),
)
ALL = torch.tensor(list(itertools.product(*map(range, SMALL.sizes))))


def disturbed(policy, seed=0, size=0.5):
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += size * torch.randn(parameter.shape, generator=random, dtype=parameter.dtype)
    return policy


POLICIES = [LSTMPolicy, FactorisedPolicy]


@pytest.mark.parametrize("policy", POLICIES)
def test_probabilities_of_all_sequences_sum_to_one(policy):
    logs, _ = disturbed(policy(SMALL))(ALL)
    assert logs.dtype == torch.float64
    assert float(logs.exp().sum()) == pytest.approx(1)


@pytest.mark.parametrize("policy", POLICIES)
def test_sequences_are_drawn_as_often_as_they_are_likely(policy):
    policy = disturbed(policy(SMALL))
    drawn = policy.sample(20_000, torch.Generator().manual_seed(1))
    found = (drawn[:, None] == ALL).all(2).double().mean(0)
    torch.testing.assert_close(found, policy(ALL)[0].exp().detach(), rtol=0, atol=0.012)


@pytest.mark.parametrize("policy", [*POLICIES, UniformPolicy])
def test_the_first_samples_are_uniform(policy):
    space = SearchSpace()
    logs, entropy = policy(space)(policy(space).sample(3, torch.Generator().manual_seed(0)))
    sizes = torch.tensor(space.sizes, dtype=torch.float64)
    torch.testing.assert_close(logs.detach(), -sizes.log().sum().expand(3))
    torch.testing.assert_close(entropy.detach(), sizes.log().mean().expand(3))


@pytest.mark.parametrize("policy", [*POLICIES, UniformPolicy])
def test_draws_are_those_of_the_generator(policy):
    policy = policy(SMALL)
    first, again, other = (policy.sample(8, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("policy", "lr"), [(LSTMPolicy, 1e-2), (FactorisedPolicy, 1e-1)])
def test_ppo_finds_the_rewarded_tokens(policy, lr):
    torch.manual_seed(0)
    policy, ppo = policy(SMALL), PPO(lr=lr, entropy=0.0)
    optimizer = ppo.optimizer(policy)
    wanted = torch.tensor([1, 0, 0, 2, 0, 0, 0, 1, 0, 1, 0, 0])

    def rewards(tokens):
        return (tokens == wanted).double().mean(1)

    before = rewards(policy.sample(256, torch.Generator().manual_seed(0))).mean()
    for step in range(25):
        tokens = policy.sample(48, torch.Generator().manual_seed(step))
        ppo.update(policy, optimizer, Batch(tokens, rewards(tokens), torch.ones(48)))
    after = rewards(policy.sample(256, torch.Generator().manual_seed(0))).mean()
    assert before < 0.85
    assert after > 0.95


def test_the_first_step_follows_the_policy_gradient():
    policy, random = disturbed(FactorisedPolicy(SMALL)), torch.Generator().manual_seed(0)
    tokens = policy.sample(32, random)
    rewards, weights = torch.rand(32, generator=random), torch.rand(32, generator=random)
    logs, _ = policy(tokens)
    loss = PPO(entropy=0.0).loss(policy, Batch(tokens, rewards, weights), logs.detach())
    found = torch.autograd.grad(loss, policy.logits)[0]
    expected = torch.autograd.grad(-(weights * standardised(rewards.double()) * logs).mean(), policy.logits)[0]
    torch.testing.assert_close(found, expected)


def test_a_ratio_beyond_the_clip_gives_no_gradient():
    policy = disturbed(FactorisedPolicy(SMALL))
    tokens = ALL[:2]
    old = policy(tokens)[0].detach() - torch.tensor([1.0, -1.0])  # ratios e and 1/e
    batch = Batch(tokens, torch.tensor([1.0, 0.0]), torch.ones(2))  # advantages 1 and -1: both have gone far enough
    loss = PPO(entropy=0.0).loss(policy, batch, old)
    assert not torch.autograd.grad(loss, policy.logits)[0].any()


def test_equal_rewards_teach_nothing():
    assert not standardised(torch.full((4,), 0.3)).any()
    assert standardised(torch.tensor([1.0, 3.0])).tolist() == [-1, 1]


def test_random_search_has_nothing_to_learn():
    assert PPO().optimizer(UniformPolicy(SMALL)) is None


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"clip": 0}, "clip is 0; it must be above 0"),
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"lr": 0}, "lr and clip_grad are 0"),
        ({"entropy": -1}, "entropy is -1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        PPO(**settings)
