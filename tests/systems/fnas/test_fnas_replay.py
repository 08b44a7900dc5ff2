"""Replayed samples need the off-policy correction: with it the update is the present policy's, without it is not."""

import itertools
import math

import pytest
import torch

from repertory.systems.fnas import PPO, ExperienceBuffer, FactorisedPolicy, SearchSpace, Stage
from repertory.systems.fnas.policy import Batch
from repertory.systems.fnas.replay import TruncatedImportance, Uncorrected

SPACE = SearchSpace((Stage(8, 1, 1),), se_ratios=(0.0,), widths=(1.0,), depths=(0,), kernels=(3,))
ALL = torch.tensor(list(itertools.product(*map(range, SPACE.sizes))))
REWARDS = torch.linspace(0, 1, len(ALL), dtype=torch.float64).sqrt()


def policy_of(seed, size):
    policy, random = FactorisedPolicy(SPACE), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        policy.logits += size * torch.randn(policy.logits.shape, generator=random, dtype=torch.float64)
    return policy


def expected_gradient(policy, behaviour, correction):
    """Of PPO's loss at its first step over infinitely many samples of ``behaviour``, exactly: all sequences, weighed.

    Advantages are those of a fixed baseline, the mean reward under ``policy``, and not standardised: an expectation.
    """
    log_now, _ = policy(ALL)
    log_behaviour = behaviour(ALL)[0].detach()
    baseline = (log_now.detach().exp() * REWARDS).sum()
    weights = log_behaviour.exp() * correction(log_now.detach(), log_behaviour)
    loss = -(weights * (REWARDS - baseline) * (log_now - log_now.detach()).exp()).sum()
    return torch.autograd.grad(loss, policy.logits)[0].flatten()


def likeness(a, b):
    return float(torch.cosine_similarity(a, b, 0))


def test_untruncated_the_correction_gives_the_gradient_of_the_present_policy():
    policy, stale = policy_of(0, 1.0), policy_of(1, 2.0)
    own = expected_gradient(policy, policy, Uncorrected())
    corrected = expected_gradient(policy, stale, TruncatedImportance(math.inf))
    torch.testing.assert_close(corrected, own)


def test_without_correction_very_stale_samples_pull_elsewhere():
    corrected, plain = [], []
    for seed in range(30):
        policy, stale = policy_of(seed, 1.5), policy_of(seed + 100, 3.0)
        own = expected_gradient(policy, policy, Uncorrected())
        corrected.append(likeness(expected_gradient(policy, stale, TruncatedImportance(1.0)), own))
        plain.append(likeness(expected_gradient(policy, stale, Uncorrected()), own))
    assert sum(corrected) / 30 > sum(plain) / 30 + 0.1
    assert sum(a > b for a, b in zip(corrected, plain, strict=True)) >= 20


def test_fresh_samples_count_in_full_and_old_ones_as_far_as_they_are_still_likely():
    weights = TruncatedImportance(1.0)(torch.tensor([-40.0, -40.0, -41.0]), torch.tensor([-40.0, -50.0, -40.0]))
    assert weights.dtype == torch.float64
    assert weights.tolist() == pytest.approx([1, 1, math.exp(-1)])
    assert TruncatedImportance(2.0)(torch.tensor([0.0]), torch.tensor([-9.0])).tolist() == pytest.approx([2])


def test_products_over_many_tokens_neither_overflow_nor_vanish():
    far = torch.tensor([-900.0, -1e-3], dtype=torch.float64)
    weights = TruncatedImportance(1.0)(far, far.flip(0))
    assert weights.isfinite().all()
    assert weights[1] == 1
    assert 0 <= weights[0] < 1e-300


def test_a_stale_sample_of_weight_zero_changes_nothing():
    policy = policy_of(0, 1.0)
    rewards = torch.tensor([0.1, 0.9, 0.5], dtype=torch.float64)
    logs = policy(ALL[:3])[0].detach()
    loss = PPO(entropy=0.0).loss(policy, Batch(ALL[:3], rewards, torch.tensor([1.0, 1.0, 0.0])), logs)
    kept = torch.autograd.grad(loss, policy.logits, retain_graph=True)[0]
    third = torch.autograd.grad(policy(ALL[2:3])[0].sum(), policy.logits)[0]
    assert kept.any()
    assert third.any()
    without = -(torch.tensor([1.0, 1.0]).double() * ((rewards - rewards.mean()) / rewards.std(unbiased=False))[:2])
    expected = torch.autograd.grad((without * policy(ALL[:2])[0]).sum() / 3, policy.logits)[0]
    torch.testing.assert_close(kept, expected)


def test_the_oldest_sample_leaves_first():
    buffer = ExperienceBuffer(capacity=3)
    for index in range(5):
        buffer.add((index,), index / 10, -1.0)
    assert [tokens for tokens, _, _ in buffer.entries] == [(2,), (3,), (4,)]


def test_half_of_a_batch_is_replayed_once_there_is_enough():
    buffer = ExperienceBuffer()
    for index in range(4):
        assert buffer.replayed(8) == 0
        buffer.add((index,), 0.5, -1.0)
    assert buffer.replayed(8) == 4
    tokens, rewards, logs = buffer.draw(4, torch.Generator().manual_seed(0))
    assert sorted(tokens[:, 0].tolist()) == [0, 1, 2, 3]
    assert (rewards.dtype, logs.dtype) == (torch.float64, torch.float64)


def test_a_buffer_comes_back_as_it_was():
    buffer, again = ExperienceBuffer(), ExperienceBuffer()
    buffer.add((1, 2), 0.25, -3.5)
    again.load_state_dict(buffer.state_dict())
    assert again.entries == [((1, 2), 0.25, -3.5)]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: ExperienceBuffer(capacity=0), "capacity is 0"),
        (lambda: ExperienceBuffer(share=1.0), "share is 1.0; it must be above 0 and below 1"),
        (lambda: TruncatedImportance(0.0), "truncation is 0.0"),
        (lambda: ExperienceBuffer().draw(1, torch.Generator()), "the buffer holds 0 samples"),
        (lambda: ExperienceBuffer().add((0,), float("nan"), -1.0), "reward and log_behaviour are nan"),
    ],
)
def test_bad_input_is_named(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()
