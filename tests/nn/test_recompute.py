"""Recomputed blocks train exactly as plain ones do, batch norm included."""

import copy

import torch
from torch import nn

from repertory.nn.recompute import recompute


def _trained(block: nn.Module, run) -> nn.Module:
    block = copy.deepcopy(block).train()
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    run(block, x).square().mean().backward()
    return block


def test_gradients_and_running_statistics_are_those_of_the_plain_block():
    block = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6))
    plain, recomputed = _trained(block, lambda b, x: b(x)), _trained(block, recompute)
    for name, value in plain.state_dict().items():
        assert torch.equal(recomputed.state_dict()[name], value), name
    for one, other in zip(plain.parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad)
    assert all(norm.momentum == 0.1 for norm in recomputed if isinstance(norm, nn.BatchNorm2d))


def test_activations_within_the_block_are_not_kept():
    kept: list[int] = []
    block = nn.Sequential(nn.Linear(4, 512), nn.GELU(), nn.Linear(512, 4))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        recompute(block, torch.randn(8, 4, requires_grad=True))
    assert max(kept) <= 8 * 4
