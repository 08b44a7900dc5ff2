"""What the experiment and the probe compare; the oracle, the shared supernet and the figure that they need."""

import dataclasses

import numpy as np
import pytest
import torch

from repertory.evidence import Context
from repertory.systems.fnas import MultiplyAdds, SearchSpace, Stage, WeighedReward, miniature, plot_rewards
from repertory.systems.fnas.evaluator import proxy_split
from repertory.systems.fnas.experiment import EXPERIMENT, PROBE, critic_metrics, trainings_to
from repertory.systems.fnas.oracle import TabularOracle
from repertory.systems.fnas.plots import at_trainings
from repertory.systems.fnas.searching import Sample
from repertory.systems.fnas.supernet import Supernet
from repertory.training import FitSettings

SPACE = miniature((1, 8, 8))


def drawn(count, seed=0):
    draw = np.random.default_rng(seed)
    return [tuple(int(draw.integers(size)) for size in SPACE.sizes) for _ in range(count)]


def run(experiment, arm, folder, **settings):
    scale = experiment.scales["smoke"]
    scale = dataclasses.replace(scale, settings={**scale.settings, **settings})
    return experiment.run(experiment.arm(arm), 1, scale, Context(folder, {}, lambda done, total: None))


def test_the_oracle_is_a_function_of_the_network():
    oracle, again, other = TabularOracle(SPACE, 1), TabularOracle(SPACE, 1), TabularOracle(SPACE, 2)
    accuracies = [oracle.accuracy(tokens) for tokens in drawn(50)]
    assert accuracies == [again.accuracy(SPACE.canonical(tokens)) for tokens in drawn(50)]
    assert accuracies != [other.accuracy(tokens) for tokens in drawn(50)]
    assert 0.2 < min(accuracies) < max(accuracies) < 0.9


def test_a_related_oracle_agrees_in_part():
    own = [TabularOracle(SPACE, 1).accuracy(tokens) for tokens in drawn(200)]
    likeness = [
        np.corrcoef(own, [TabularOracle(SPACE, 1, shift=shift).accuracy(tokens) for tokens in drawn(200)])[0, 1]
        for shift in (0.3, 0.8, 1.0)
    ]
    assert likeness[0] > 0.85 > likeness[1] > 0.3 > abs(likeness[2])


def test_the_best_known_reward_is_found_where_all_can_be_tried():
    space = SearchSpace((Stage(8, 1, 1),), kernels=(3,), input_size=(1, 8, 8), num_classes=2)
    oracle = TabularOracle(space, 3, pairs=4)
    reward = WeighedReward(MultiplyAdds(space.input_size, 2), 1e5)
    everything = [reward(oracle.accuracy(t, noisy=False), space.decode(t)) for t in space.choices()]
    assert oracle.best_known(reward) == max(everything)
    assert oracle.calls == 0


def test_the_first_training_that_reaches_the_share_is_counted():
    curve = [(1, 0.5), (2, 0.9), (3, 0.96), (4, 0.99)]
    assert trainings_to(0.95, curve, 100) == 3
    assert trainings_to(0.999, curve, 100) == 100


def test_the_critic_is_judged_by_errors_that_came_after_its_word():
    history = [Sample(1, (0,), "k", "trained", 0.5 + u, value=0.5, uncertainty=u) for u in np.linspace(0, 0.4, 12)]
    history += [Sample(2, (0,), "k", "predicted", 0.5, value=0.5, uncertainty=0.0)] * 4
    assert critic_metrics(history) == {"spared": 25.0, "uncertainty_spearman": pytest.approx(1)}
    assert critic_metrics([Sample(1, (0,), "k", "trained", 0.5)]) == {"spared": 0.0}


@pytest.mark.parametrize("arm", ["random", "ppo_uac_aeb", pytest.param("prior", marks=pytest.mark.slow)])
def test_an_arm_of_the_probe_counts_its_evaluations(arm, tmp_path):
    result = run(PROBE, arm, tmp_path, trainings=40, iterations=3, prior=60)
    assert 0 < result.metrics["trainings_to_95"] <= 40
    counts = [count for count, _ in result.curves["share_of_best_known"]]
    assert counts == list(range(1, len(counts) + 1))
    assert ("uncertainty_spearman" in result.metrics) == (arm != "random")


def test_arms_of_the_probe_differ_by_their_modules_alone():
    settings = {arm.name: arm.settings for arm in PROBE.arms}
    assert PROBE.probe
    assert {**settings["ppo"], "aeb": True} == settings["ppo_aeb"]
    assert {**settings["ppo"], "uac": True} == settings["ppo_uac"]
    assert {**settings["ppo"], "uac": True, "aeb": True} == settings["ppo_uac_aeb"]
    assert PROBE.scales["small"].seeds == 10


@pytest.mark.parametrize("arm", ["pool", pytest.param("supernet", marks=pytest.mark.slow)])
def test_arms_of_the_experiment_spend_the_same_images(arm, tmp_path):
    scale = dataclasses.replace(EXPERIMENT.scales["smoke"], images=2 * 1_088)
    scale = dataclasses.replace(scale, settings={**scale.settings, "networks": 2, "full_epochs": 1})
    result = EXPERIMENT.run(EXPERIMENT.arm(arm), 1, scale, Context(tmp_path, {}, lambda done, total: None))
    assert result.images == scale.images
    assert result.steps == scale.images // scale.settings["batch_size"]
    assert set(result.metrics) == {"early_top1", "kendall_tau", "full_top1"}


def test_networks_of_the_supernet_are_parts_of_its_weights():
    supernet = Supernet(SPACE, 0)
    for tokens in drawn(12):
        architecture = SPACE.decode(tokens)
        network = supernet.network(architecture)
        for name, tensor in supernet.parameters_of(architecture).items():
            assert torch.equal(network.get_parameter(name), tensor)
    before = [tensor.clone() for tensor in supernet.parameters()]
    architecture = SPACE.decode((2, 0, 0, 2, 0, 0) * 3)
    with torch.no_grad():
        supernet.parameters_of(architecture)["stem.0.weight"].zero_()
    assert not supernet.network(SPACE.decode((0,) * 18)).stem[0].weight.any()
    assert sum(not torch.equal(a, b) for a, b in zip(before, supernet.parameters(), strict=True)) == 1


def test_a_step_of_the_supernet_moves_one_path_alone():
    from repertory.data import load

    supernet, data = Supernet(SPACE, 0), proxy_split(load("digits"), 0.2)
    before = {name: tensor.clone() for name, tensor in supernet.shared.items()}
    settings = FitSettings(batch_size=16, max_images=16, lr=0.1, weight_decay=0.0, schedule="constant")
    assert supernet.train_paths(data, settings, lambda done, total: None) == 16
    moved = {name for name, tensor in supernet.shared.items() if not torch.equal(tensor, before[name])}
    assert any(name.startswith("all/") for name in moved)
    for block in range(3):
        operations = {name.split("/")[0] for name in moved if f"/blocks/{block}/" in name}
        assert len(operations) == 1
    model = supernet.judged(SPACE.decode((2, 0, 0, 2, 0, 0) * 3), data, 256)
    assert not model.training
    assert float(model.stem[1].running_mean.abs().sum()) > 0


def test_rewards_are_held_until_the_next_training():
    rows = at_trainings([[(2, 0.1), (4, 0.5)]], np.array([1, 2, 3, 4, 9]))
    assert np.isnan(rows[0, 0])
    assert rows[0, 1:].tolist() == [0.1, 0.1, 0.5, 0.5]


def test_the_figure_is_written_whole(tmp_path):
    curves = [[(1, 0.2), (2, 0.4), (3, 0.4)], [(1, 0.3), (2, 0.3), (3, 0.6)]]
    path = plot_rewards({"PPO": curves, "FNAS": curves[:1]}, tmp_path / "rewards.svg", "oracle")
    text = path.read_text()
    assert text.lstrip().startswith("<?xml")
    assert [file.name for file in tmp_path.iterdir()] == ["rewards.svg"]
    with pytest.raises(ValueError, match="a label without a curve"):
        plot_rewards({"PPO": []}, tmp_path / "none.png")
