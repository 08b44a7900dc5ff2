"""The online module against its exact special cases, and what it refuses."""

import copy
import warnings

import pytest
import torch
from torch import nn

from repertory.errors import NonFiniteError
from repertory.systems.hwa import HierarchicalWeightAveraging


def network_without_norm(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def network_with_norm(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def data(steps: int, count: int, dtype=torch.float32) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(5)
    draw = lambda: (torch.randn(4, 6, generator=generator, dtype=dtype), torch.randint(3, (4,), generator=generator))  # noqa: E731
    return [[draw() for _ in range(count)] for _ in range(steps)]


def update(network, optimizer, batch) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(network(batch[0]), batch[1]).backward()
    optimizer.step()


def sgd(network, momentum=0.9):
    return torch.optim.SGD(network.parameters(), lr=0.1, momentum=momentum, weight_decay=1e-3)


def state(network) -> dict[str, torch.Tensor]:
    return copy.deepcopy(network.state_dict())


def assert_same(actual, expected, **tolerance) -> None:
    for name, value in expected.items():
        if tolerance:
            torch.testing.assert_close(actual[name], value, **tolerance)
        else:
            assert torch.equal(actual[name], value), name


def test_one_replica_and_a_window_of_one_is_plain_training_bit_for_bit():
    plain, averaged = network_with_norm(), network_with_norm()
    first, second = sgd(plain), sgd(averaged)
    averaging = HierarchicalWeightAveraging(
        averaged, period=2, window=1, optimizers=second, optimizer_state="reset", batch_norm="average"
    )
    for (batch,) in data(6, 1):
        update(plain, first, batch)
        update(averaged, second, batch)
        averaging.step()
    assert_same(averaged.state_dict(), plain.state_dict())
    assert_same(averaging.deploy().state_dict(), plain.state_dict())


def test_a_window_of_one_is_local_sgd():
    """K = 3, H = 4 against periodic parameter averaging written out."""
    replicas = [network_without_norm() for _ in range(3)]
    by_hand = [network_without_norm() for _ in range(3)]
    ours, theirs = [sgd(r) for r in replicas], [sgd(r) for r in by_hand]
    averaging = HierarchicalWeightAveraging(replicas, period=4, window=1)
    for step, batches in enumerate(data(8, 3, torch.float64), 1):
        for k, batch in enumerate(batches):
            update(replicas[k], ours[k], batch)
            update(by_hand[k], theirs[k], batch)
        assert averaging.step() == (step % 4 == 0)
        if step % 4 == 0:
            mean = {n: sum(r.state_dict()[n] for r in by_hand) / 3 for n in by_hand[0].state_dict()}
            for network in by_hand:
                network.load_state_dict(mean)
        for k in range(3):
            assert_same(replicas[k].state_dict(), by_hand[k].state_dict(), rtol=1e-12, atol=1e-14)
    assert_same(averaging.deploy().state_dict(), replicas[0].state_dict(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("policy", ["keep", "average"])
def test_synchronising_every_step_is_large_batch_sgd(momentum, policy):
    """H = 1, batch b each equals one network with batch K b; with momentum too, since the update is linear."""
    replicas, large = [network_without_norm() for _ in range(3)], network_without_norm()
    optimizers, single = [sgd(r, momentum) for r in replicas], sgd(large, momentum)
    averaging = HierarchicalWeightAveraging(replicas, period=1, window=1, optimizers=optimizers, optimizer_state=policy)
    for batches in data(20, 3, torch.float64):
        for network, optimizer, batch in zip(replicas, optimizers, batches):
            update(network, optimizer, batch)
        averaging.step()
        update(large, single, tuple(torch.cat(part) for part in zip(*batches)))
    for network in replicas:
        assert_same(network.state_dict(), large.state_dict(), rtol=1e-10, atol=1e-12)


def one_cycle(policy: str):
    replicas = [network_without_norm() for _ in range(2)]
    optimizer = torch.optim.SGD([p for r in replicas for p in r.parameters()], lr=0.1, momentum=0.9)
    averaging = HierarchicalWeightAveraging(replicas, period=1, window=1, optimizers=optimizer, optimizer_state=policy)
    for network, batch in zip(replicas, data(1, 2, torch.float64)[0]):
        nn.functional.cross_entropy(network(batch[0]), batch[1]).backward()
    optimizer.step()
    before = [optimizer.state[r[0].weight]["momentum_buffer"].clone() for r in replicas]
    averaging.step()
    after = [optimizer.state.get(r[0].weight, {}).get("momentum_buffer") for r in replicas]
    return before, after


def test_optimiser_state_is_kept_averaged_or_reset():
    """One optimiser may hold all replicas, as the Lightning task's does."""
    before, after = one_cycle("keep")
    assert not torch.equal(before[0], before[1])
    assert all(torch.equal(b, a) for b, a in zip(before, after))
    before, after = one_cycle("average")
    for momentum in after:
        torch.testing.assert_close(momentum, (before[0] + before[1]) / 2)
    assert one_cycle("reset")[1] == [None, None]


def test_missing_momenta_count_as_zero_in_their_mean():
    replicas = [network_without_norm() for _ in range(2)]
    optimizers = [sgd(r) for r in replicas]
    averaging = HierarchicalWeightAveraging(replicas, period=1, optimizers=optimizers, optimizer_state="average")
    update(replicas[0], optimizers[0], data(1, 1, torch.float64)[0][0])
    before = optimizers[0].state[replicas[0][0].weight]["momentum_buffer"].clone()
    averaging.step()
    torch.testing.assert_close(optimizers[0].state[replicas[0][0].weight]["momentum_buffer"], before / 2)
    assert replicas[1][0].weight not in optimizers[1].state


def test_float_buffers_are_averaged_and_counters_take_the_maximum():
    replicas = [network_with_norm(), network_with_norm()]
    replicas[0][1].running_mean.fill_(1.0)
    replicas[1][1].running_mean.fill_(2.0)
    replicas[0][1].num_batches_tracked.fill_(4)
    replicas[1][1].num_batches_tracked.fill_(9)
    HierarchicalWeightAveraging(replicas, period=1).synchronize()
    for network in replicas:
        assert network[1].running_mean.tolist() == [1.5] * 8
        assert network[1].num_batches_tracked.item() == 9


def test_tied_parameters_are_averaged_once_and_stay_tied():
    class Tied(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
            self.decoder.weight = self.encoder.weight
            nn.init.constant_(self.encoder.weight, value)

    replicas = [Tied(1.0), Tied(4.0)]
    averaging = HierarchicalWeightAveraging(replicas, period=1)
    averaging.synchronize()
    assert replicas[1].decoder.weight is replicas[1].encoder.weight
    assert replicas[1].decoder.weight.tolist() == [[2.5, 2.5], [2.5, 2.5]]
    assert list(averaging.window.mean()) == ["encoder.weight"]
    deployed = averaging.deploy()
    assert deployed.decoder.weight is deployed.encoder.weight


def test_frozen_parameters_are_skipped():
    replicas = [network_without_norm(), network_without_norm(1)]
    for network in replicas:
        network[0].requires_grad_(False)
    frozen = replicas[1][0].weight.clone()
    averaging = HierarchicalWeightAveraging(replicas, period=1)
    averaging.synchronize()
    assert torch.equal(replicas[1][0].weight, frozen)
    assert torch.equal(replicas[0][2].weight, replicas[1][2].weight)
    assert sorted(averaging.window.mean()) == ["2.bias", "2.weight"]


def test_half_replicas_are_averaged_in_float32():
    """Three bfloat16 values whose running sum would lose the last one."""
    replicas = [nn.Linear(1, 1, bias=False).bfloat16() for _ in range(3)]
    for network, value in zip(replicas, (256.0, 1.0, 1.0)):
        nn.init.constant_(network.weight, value)
    averaging = HierarchicalWeightAveraging(replicas, period=1)
    averaging.synchronize()
    assert averaging.window.mean()["weight"].item() == pytest.approx(86)
    assert replicas[0].weight.item() == 86
    assert replicas[0].weight.dtype == torch.bfloat16


def test_a_non_finite_replica_is_named_and_nothing_is_changed():
    replicas = [network_with_norm(k) for k in range(3)]
    with torch.no_grad():
        replicas[2][3].weight[1, 1] = float("nan")
    before = [state(r) for r in replicas]
    averaging = HierarchicalWeightAveraging(replicas, period=1)
    with pytest.raises(NonFiniteError, match=r"3\.weight of replica 2 is not finite after 1 steps"):
        averaging.step()
    for network, kept in zip(replicas[:2], before):
        assert_same(network.state_dict(), kept)
    assert len(averaging.window) == 0


def test_identical_replicas_are_warned_of_once():
    replicas = [network_with_norm(), network_with_norm()]
    averaging = HierarchicalWeightAveraging(replicas, period=1)
    with pytest.warns(UserWarning, match="all 2 replicas are identical"):
        averaging.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        averaging.step()


def test_align_gives_a_common_start():
    replicas = [network_with_norm(k) for k in range(3)]
    expected = state(replicas[0])
    HierarchicalWeightAveraging(replicas, period=1).align()
    for network in replicas:
        assert_same(network.state_dict(), expected)


def test_before_the_first_synchronisation_the_mean_of_the_replicas_is_deployed():
    replicas = [network_without_norm(0), network_without_norm(1)]
    deployed = HierarchicalWeightAveraging(replicas, period=5).deploy()
    torch.testing.assert_close(deployed[0].weight, (replicas[0][0].weight + replicas[1][0].weight) / 2)


def test_a_resumed_run_is_the_uninterrupted_one():
    """Saved in the middle of a cycle: weights, window and deployed network come out bit for bit."""
    steps = data(11, 2)

    def build():
        replicas = [network_with_norm() for _ in range(2)]
        optimizers = [sgd(r) for r in replicas]
        return replicas, optimizers, HierarchicalWeightAveraging(replicas, period=2, window=3)

    def advance(replicas, optimizers, averaging, steps):
        for batches in steps:
            for network, optimizer, batch in zip(replicas, optimizers, batches):
                update(network, optimizer, batch)
            averaging.step()

    whole = build()
    advance(*whole, steps)
    cut = build()
    advance(*cut, steps[:7])
    saved = copy.deepcopy([[r.state_dict() for r in cut[0]], [o.state_dict() for o in cut[1]], cut[2].state_dict()])
    resumed = build()
    for item, kept in zip([*resumed[0], *resumed[1], resumed[2]], [*saved[0], *saved[1], saved[2]]):
        item.load_state_dict(kept)
    advance(*resumed, steps[7:])
    for a, b in zip(resumed[0], whole[0]):
        assert_same(a.state_dict(), b.state_dict())
    images = [x for x, _ in steps[0]]
    assert resumed[2].cycle == whole[2].cycle == 5
    assert_same(resumed[2].deploy(images).state_dict(), whole[2].deploy(images).state_dict())


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_bad_settings_are_refused_in_one_sentence():
    network = network_with_norm()
    with pytest.raises(ValueError, match="replicas is empty; K must be at least 1"):
        HierarchicalWeightAveraging([], period=1)
    with pytest.raises(ValueError, match="period is 0; it must be at least 1"):
        HierarchicalWeightAveraging(network, period=0)
    with pytest.raises(ValueError, match="window is 0; it must be at least 1"):
        HierarchicalWeightAveraging(network, period=1, window=0)
    with pytest.raises(ValueError, match="optimizer_state is 'drop'; it must be one of keep, average, reset"):
        HierarchicalWeightAveraging(network, period=1, optimizer_state="drop")
    with pytest.raises(ValueError, match="batch_norm is 'no'; it must be one of recalibrate, average"):
        HierarchicalWeightAveraging(network, period=1, batch_norm="no")
    with pytest.raises(ValueError, match="needs optimizers"):
        HierarchicalWeightAveraging(network, period=1, optimizer_state="average")
    with pytest.raises(ValueError, match="no trainable parameter"):
        HierarchicalWeightAveraging(network_with_norm().requires_grad_(False), period=1)
    with pytest.raises(TypeError, match="complex"):
        HierarchicalWeightAveraging(nn.Linear(2, 2).to(torch.complex64), period=1)
    saved = HierarchicalWeightAveraging(network, period=1).state_dict()
    with pytest.raises(ValueError, match="there are 2 replicas, but the saved run had 1"):
        HierarchicalWeightAveraging([network, network_with_norm()], period=1).load_state_dict(saved)


@pytest.mark.parametrize(
    "other", [nn.Linear(6, 4), nn.Linear(6, 3, bias=False), nn.Linear(6, 3).double()], ids=["shape", "names", "dtype"]
)
def test_replicas_that_are_no_copies_are_refused(other):
    with pytest.raises(ValueError, match=r"replica 1.*replicas must be copies of one network"):
        HierarchicalWeightAveraging([nn.Linear(6, 3), other], period=1)
