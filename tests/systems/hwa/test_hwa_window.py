"""The offline module against its definition: a direct float64 mean, SWA, and what evaluation may not touch."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

from repertory.systems.hwa import HierarchicalWeightAveraging, SlidingWindow, recalibrate


def small_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    convolution = nn.Conv2d(1, 4, 3, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def batches(count: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(8, 1, 8, 8, generator=generator), torch.arange(8) % 3) for _ in range(count)]


def train(network: nn.Module, data, after_step, lr: float = 0.1) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)
    for images, labels in data:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
        after_step()


@pytest.mark.parametrize("size", [1, 3, 20, None])
def test_the_mean_is_the_direct_float64_mean_of_the_last_i(size):
    generator = torch.Generator().manual_seed(1)
    draw = lambda count: torch.randn(count, generator=generator)  # noqa: E731
    pushed = [{"w": 100 * draw(40), "b": draw(3)} for _ in range(50)]
    window = SlidingWindow(size)
    for number, weights in enumerate(pushed, 1):
        window.push(weights)
        recent = pushed[max(0, number - size) if size else 0 : number]
        assert len(window) == len(recent)
        for name, mean in window.mean().items():
            direct = torch.stack([w[name].double() for w in recent]).mean(0)
            torch.testing.assert_close(mean, direct, rtol=1e-6, atol=1e-12)


def test_a_transient_of_huge_weights_leaves_no_trace_once_it_left_the_window():
    window = SlidingWindow(2)
    for value in [1e7, -3e7, 0.1, 0.3, *([0.25, 0.5] * 500)]:
        window.push({"w": torch.full((5,), value)})
    torch.testing.assert_close(window.mean()["w"], torch.full((5,), 0.375, dtype=torch.float64), rtol=1e-6, atol=0)


def test_pushed_weights_may_change_afterwards():
    weights = {"w": torch.ones(3)}
    window = SlidingWindow(4)
    window.push(weights)
    weights["w"].zero_()
    assert window.mean()["w"].tolist() == [1, 1, 1]


def test_the_window_keeps_float32_masters_of_half_weights():
    network = small_network().bfloat16()
    averaging = HierarchicalWeightAveraging(network, period=1, window=2)
    averaging.synchronize()
    entry = averaging.window.state_dict()["entries"][0]
    assert {tensor.dtype for tensor in entry.values()} == {torch.float32}


def test_unfreezing_starts_the_window_again_with_a_warning():
    network = small_network()
    network[0].requires_grad_(False)
    averaging = HierarchicalWeightAveraging(network, period=1, window=5)
    averaging.synchronize()
    assert "0.weight" not in averaging.window.mean()
    network[0].requires_grad_(True)
    with pytest.warns(UserWarning, match=r"0\.weight.*starts again"):
        averaging.synchronize()
    assert len(averaging.window) == 1
    assert "0.weight" in averaging.window.mean()


def test_one_replica_with_a_window_of_everything_is_swa():
    network = small_network()
    swa = AveragedModel(network)
    averaging = HierarchicalWeightAveraging(network, period=3, window=None)

    def after_step():
        if averaging.step():
            swa.update_parameters(network)

    data = batches(30)
    train(network, data, after_step)
    images = [x for x, _ in data]
    update_bn(images, swa)
    deployed = averaging.deploy(images)
    assert averaging.cycle == 10
    for name, value in swa.module.state_dict().items():
        torch.testing.assert_close(deployed.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_one_replica_with_a_window_averages_the_last_checkpoints():
    network = small_network()
    averaging = HierarchicalWeightAveraging(network, period=2, window=3)
    checkpoints = []

    def after_step():
        if averaging.step():
            checkpoints.append(copy.deepcopy(network.state_dict()))

    train(network, batches(14), after_step)
    deployed = dict(averaging.deploy([x for x, _ in batches(2)]).named_parameters())
    assert len(checkpoints) == 7
    for name, value in deployed.items():
        direct = torch.stack([c[name].double() for c in checkpoints[-3:]]).mean(0)
        torch.testing.assert_close(value.double(), direct, rtol=1e-6, atol=1e-8)


def test_deploying_changes_neither_training_nor_the_random_state():
    network = small_network()
    network.append(nn.Dropout())
    averaging = HierarchicalWeightAveraging(network, period=1, window=3)
    train(network, batches(5), averaging.step)
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    deployed = averaging.deploy([x for x, _ in batches(3)])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    with torch.no_grad():
        deployed[0].weight.zero_()
    assert network[0].weight.abs().sum() > 0


def test_the_deployed_network_has_the_parameters_of_one_replica():
    replicas = [small_network(), small_network()]
    averaging = HierarchicalWeightAveraging(replicas, period=1, batch_norm="average")
    deployed = averaging.deploy()
    assert list(deployed.state_dict()) == list(replicas[0].state_dict())
    assert sum(p.numel() for p in deployed.parameters()) == sum(p.numel() for p in replicas[0].parameters())


def test_without_recalibration_the_averaged_network_is_wrong():
    """Two weights far apart: their mean has activations that the stale statistics of the last one do not fit."""
    network = small_network()
    images = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    averaging = HierarchicalWeightAveraging(network, period=1, window=2)
    for scale in (10.0, 0.1):
        with torch.no_grad():
            network[0].weight.mul_(scale)
        recalibrate(network, [images])
        averaging.step()
    deployed = averaging.deploy([images]).eval()
    stale = copy.deepcopy(deployed)
    stale[1].load_state_dict(network[1].state_dict())

    def normalized(model):
        return model[1](model[0](images))

    assert normalized(deployed).std().item() == pytest.approx(1, abs=0.05)
    assert normalized(stale).std().item() > 3


def test_averaged_buffers_are_the_mean_of_the_outer_statistics():
    network = small_network()
    averaging = HierarchicalWeightAveraging(network, period=1, window=2, batch_norm="average")
    statistics = []

    def after_step():
        averaging.step()
        statistics.append(network[1].running_var.double())

    train(network, batches(4), after_step)
    torch.testing.assert_close(averaging.deploy()[1].running_var.double(), (statistics[2] + statistics[3]) / 2)


def test_recalibration_is_the_plain_mean_over_batches_and_keeps_mode_and_momentum():
    network = small_network().eval()
    images = [x for x, _ in batches(3)]
    recalibrate(network, images)
    with torch.no_grad():
        means = torch.stack([network[0](x).mean((0, 2, 3)) for x in images]).mean(0)
    torch.testing.assert_close(network[1].running_mean, means)
    assert not network.training
    assert network[1].momentum == 0.1


def test_a_frozen_batch_norm_keeps_its_statistics():
    network = small_network().train()
    network[1].eval()
    network[1].running_mean.fill_(7)
    recalibrate(network, [x for x, _ in batches(2)])
    assert network[1].running_mean.tolist() == [7] * 4


def test_bad_windows_and_missing_images_are_refused():
    with pytest.raises(ValueError, match="window is 0; it must be at least 1"):
        SlidingWindow(0)
    with pytest.raises(ValueError, match="window is empty"):
        SlidingWindow(2).mean()
    with pytest.raises(ValueError, match="images is None, but the network has batch norm"):
        HierarchicalWeightAveraging(small_network(), period=1).deploy()
    with pytest.raises(ValueError, match="empty loader"):
        recalibrate(small_network(), [])
    saved = SlidingWindow(2).state_dict()
    with pytest.raises(ValueError, match="window is 3, but the saved one is 2"):
        SlidingWindow(3).load_state_dict(saved)
