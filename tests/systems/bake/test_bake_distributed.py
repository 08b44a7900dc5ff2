"""Two gloo processes make the ensemble that one process makes of the whole batch."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from repertory.systems.bake.losses import BAKELoss, gathered_soft_targets, soft_targets
from repertory.systems.bake.method import Bake
from repertory.training.method import Batch, Outputs

CUTS = {"equal": [(0, 6), (6, 12)], "unequal": [(0, 9), (9, 12)], "one image": [(0, 11), (11, 12)]}


def whole_batch():
    draws = torch.Generator().manual_seed(0)
    return torch.randn(12, 8, generator=draws), 3 * torch.randn(12, 5, generator=draws)


def take_part(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    features, logits = whole_batch()
    found = {}
    for name, cuts in CUTS.items():
        mine = slice(*cuts[rank])
        own = logits[mine].clone().requires_grad_()
        targets = gathered_soft_targets(features[mine], own, 4.0, 0.9)
        terms = Bake(omega=0.9).extra_loss(Outputs(features[mine], own), Batch(own, own.argmax(1), own.argmax(1)))
        terms["distillation"].backward()
        alone = None
        if len(own) > 1:
            alone = BAKELoss(omega=0.9, gather=False)(features[mine], own).detach()
        found[name] = (targets, terms["distillation"].detach(), own.grad, alone)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(take_part, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", CUTS)
def test_each_process_gets_its_rows_of_the_global_targets(ranks, name):
    together = torch.cat([rank[name][0] for rank in ranks])
    torch.testing.assert_close(together, soft_targets(*whole_batch(), 4.0, 0.9), rtol=0, atol=1e-6)


def test_mean_loss_and_gradient_of_equal_parts_are_those_of_the_whole(ranks):
    features, logits = whole_batch()
    logits.requires_grad_()
    loss = BAKELoss(omega=0.9)(features, logits)
    loss.backward()
    torch.testing.assert_close(sum(rank["equal"][1] for rank in ranks) / 2, loss.detach())
    gradient = torch.cat([rank["equal"][2] for rank in ranks]) / 2  # data-parallel training averages over processes
    torch.testing.assert_close(gradient, logits.grad, rtol=0, atol=1e-7)


def test_without_gathering_a_process_knows_only_its_own_samples(ranks):
    features, logits = whole_batch()
    own = BAKELoss(omega=0.9)(features[:6], logits[:6])
    torch.testing.assert_close(ranks[0]["equal"][3], own)
    assert abs(ranks[0]["equal"][1] - own) > 1e-4


def test_one_process_alone_is_the_plain_ensemble():
    assert torch.equal(gathered_soft_targets(*whole_batch()), soft_targets(*whole_batch()))
