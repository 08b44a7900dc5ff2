"""One process a replica: two gloo processes against two replicas in one process."""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from repertory.errors import NonFiniteError
from repertory.systems.hwa import HierarchicalWeightAveraging


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def batches(replica: int, steps: int = 6) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(100 + replica)
    return [(torch.randn(4, 6, generator=generator), torch.randint(3, (4,), generator=generator)) for _ in range(steps)]


def update(model, optimizer, batch) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def run_distributed(rank: int) -> dict:
    """Everything that needs two processes, in one start of them; returns what this process saw."""
    seen: dict = {}
    model = network(rank)
    optimizer = sgd(model)
    averaging = HierarchicalWeightAveraging(
        model, period=2, window=2, optimizers=optimizer, optimizer_state="average", process_group=dist.group.WORLD
    )
    averaging.align()
    seen["count"] = averaging.count
    calls, all_reduce = [], dist.all_reduce

    def counting(tensor, *args, **kwargs):
        calls.append(tensor.numel())
        return all_reduce(tensor, *args, **kwargs)

    dist.all_reduce = counting
    for step, batch in enumerate(batches(rank)):
        if step == 3:
            model[1].num_batches_tracked += 2**33 * rank
        update(model, optimizer, batch)
        averaging.step()
    dist.all_reduce = all_reduce
    seen["all_reduces"] = len(calls)
    seen["state"] = copy.deepcopy(model.state_dict())
    seen["deployed"] = averaging.deploy([x for x, _ in batches(0)]).state_dict()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        averaging.synchronize()
    seen["warnings"] = [str(w.message) for w in caught]

    if rank == 1:
        model[3].bias.data[0] = float("inf")
    before = copy.deepcopy(model[0].weight)
    try:
        averaging.synchronize()
    except NonFiniteError as error:
        seen["non_finite"] = str(error)
    seen["untouched"] = torch.equal(before, model[0].weight)

    try:
        HierarchicalWeightAveraging(nn.Linear(2, 2 + rank), period=1, process_group=dist.group.WORLD)
    except ValueError as error:
        seen["shapes"] = str(error)
    return seen


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(run_distributed(rank), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(process, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_two_processes_equal_two_replicas_in_one_process(seen):
    replicas = [network(0), network(0)]
    optimizers = [sgd(r) for r in replicas]
    averaging = HierarchicalWeightAveraging(
        replicas, period=2, window=2, optimizers=optimizers, optimizer_state="average"
    )
    for step, pair in enumerate(zip(batches(0), batches(1))):
        if step == 3:
            replicas[1][1].num_batches_tracked += 2**33
        for model, optimizer, batch in zip(replicas, optimizers, pair):
            update(model, optimizer, batch)
        averaging.step()
    deployed = averaging.deploy([x for x, _ in batches(0)]).state_dict()
    for rank in range(2):
        assert seen[rank]["count"] == 2
        for name, value in replicas[rank].state_dict().items():
            torch.testing.assert_close(seen[rank]["state"][name], value, rtol=1e-6, atol=1e-7, msg=name)
            torch.testing.assert_close(seen[rank]["deployed"][name], deployed[name], rtol=1e-6, atol=1e-7, msg=name)


def test_counters_take_the_maximum_over_processes_exactly(seen):
    for rank in range(2):
        assert seen[rank]["state"]["1.num_batches_tracked"].item() == 2**33 + 6


def test_a_synchronisation_is_one_all_reduce(seen):
    assert [s["all_reduces"] for s in seen] == [3, 3]


def test_every_process_is_warned_of_identical_replicas(seen):
    assert all("all 2 replicas are identical" in s["warnings"][0] for s in seen)


def test_every_process_names_the_replica_that_is_not_finite(seen):
    for s in seen:
        assert "3.bias of replica 1 is not finite" in s["non_finite"]
        assert s["untouched"]


def test_every_process_refuses_other_shapes(seen):
    assert all("replica 1 has weight (3, 2)" in s["shapes"] for s in seen)
