"""The search: every training counted, none repeated, exactly resumable, each module switchable."""

import json
import time
from pathlib import Path

import pytest
import torch

from repertory.systems.fnas import (
    PPO,
    ExperienceBuffer,
    FactorisedPolicy,
    KnowledgePool,
    MultiplyAdds,
    Outcome,
    SearchSettings,
    UncertaintyAwareCritic,
    UncertaintyThreshold,
    UniformPolicy,
    WeighedReward,
    cheapest,
    miniature,
    search,
)
from repertory.systems.fnas.oracle import TabularOracle

SPACE = miniature((1, 8, 8))
ORACLE = TabularOracle(SPACE, seed=0)
SHORT = SearchSettings(trainings=24, batch_size=8, seed=1)


def modules(**settings):
    """Fresh modules, equal ones each time: a search changes those that it is given."""
    torch.manual_seed(0)
    chosen = {
        "critic": UncertaintyAwareCritic(SPACE, hidden=16, steps=4),
        "replay": ExperienceBuffer(),
        "pool": False,
        "policy": FactorisedPolicy(SPACE),
        "threshold": UncertaintyThreshold(start=4, end=12, quantile=0.5),
        "optimisation": PPO(lr=5e-2),
    }
    return {**chosen, **settings}


class Weighted:
    """Trains nothing, and gives back weights that tell the trial."""

    def __init__(self, folder=None, until=10**9, delay=0.0):
        self.trials, self.folder, self.until, self.delay = [], folder, until, delay
        self.configuration = {"name": "Weighted"}

    def __call__(self, trial):
        if len(self.trials) >= self.until:
            raise KeyboardInterrupt
        self.trials.append(trial)
        time.sleep(self.delay * (trial.number % 3))
        if self.folder is not None:
            (Path(self.folder) / f"{trial.number}-{time.monotonic_ns()}").touch()
        model = trial.build()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.01 * trial.number
        return Outcome(ORACLE.accuracy(trial.tokens), model.state_dict(), images=100, updates=5)


def told(result):
    return [(s.iteration, s.tokens, s.source, s.reward, s.value, s.uncertainty) for s in result.history]


def test_three_lines_are_enough():
    result = search(SPACE, ORACLE, settings=SHORT)
    assert result.trainings == 24
    assert result.network()(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_every_real_training_is_counted_and_no_network_is_trained_twice():
    evaluate = Weighted()
    result = search(SPACE, evaluate, settings=SHORT, **modules(pool=KnowledgePool()))
    assert result.trainings == len(evaluate.trials) == len(result.candidates) == result.counts()["trained"] == 24
    assert [trial.number for trial in evaluate.trials] == list(range(1, 25))
    assert len({trial.architecture.key for trial in evaluate.trials}) == 24
    assert result.images == 2400
    counts = [sample.trainings for sample in result.history]
    assert counts == sorted(counts)
    assert counts[-1] == 24


def test_the_budget_is_kept_when_it_ends_within_a_batch():
    result = search(SPACE, ORACLE, settings=SearchSettings(trainings=11, batch_size=8), **modules(critic=False))
    assert result.trainings == 11


def test_a_space_that_is_exhausted_ends_with_its_iterations():
    from repertory.systems.fnas import SearchSpace, Stage

    space = SearchSpace((Stage(8, 1, 1),), kernels=(3,), skips=("none",), widths=(1.0,), depths=(0,), num_classes=2)
    oracle, calls = TabularOracle(space, 0), []

    def evaluate(trial):
        calls.append(trial.architecture.key)
        return oracle(trial)

    settings = SearchSettings(trainings=1000, iterations=12, batch_size=16)
    result = search(space, evaluate, settings=settings, critic=False, pool=False)
    assert result.iterations == 12
    assert result.trainings == len(set(calls)) == len(calls) == 7  # 4 operations x 2 ratios, one of them twice
    assert result.counts()["remembered"] > 80
    assert result.best.reward == max(result.candidates, key=lambda c: c.reward).reward


def test_predictions_take_the_place_of_trainings_and_are_not_learned_from():
    critic = UncertaintyAwareCritic(SPACE, hidden=16, steps=4)
    replay = ExperienceBuffer()
    settings = SearchSettings(trainings=48, batch_size=8, seed=1)
    result = search(SPACE, ORACLE, settings=settings, **modules(critic=critic, replay=replay))
    predicted = [sample for sample in result.history if sample.source == "predicted"]
    real = {sample.reward for sample in result.history if sample.source != "predicted"}
    assert 0 < len(predicted) < len(result.history) / 2
    assert all(sample.reward == sample.value and sample.accuracy is None for sample in predicted)
    assert len(critic.samples) == 48
    assert {reward for _, reward in critic.samples} <= real
    assert {reward for _, reward, _ in replay.entries} <= real


def test_half_a_batch_is_replayed():
    result = search(SPACE, ORACLE, settings=SHORT, **modules(critic=False))
    sizes = [sum(sample.iteration == i for sample in result.history) for i in range(1, result.iterations + 1)]
    assert sizes == [8, 4, 4, 4, 4]


@pytest.mark.parametrize("off", ["critic", "replay", "pool"])
def test_each_module_can_be_switched_off(off):
    result = search(SPACE, Weighted(), settings=SHORT, **modules(**{"pool": KnowledgePool(), off: False}))
    assert result.trainings == 24
    assert ("predicted" in result.counts()) == (off != "critic")
    assert (result.hit_ratio is None) == (off == "pool")
    assert sum(sample.iteration == 2 for sample in result.history) == (8 if off == "replay" else 4)


def test_networks_inherit_from_the_pool_as_it_was_before_the_iteration():
    evaluate = Weighted()
    result = search(SPACE, evaluate, settings=SHORT, **modules(pool=KnowledgePool(), critic=False, replay=False))
    weights = [float(trial.inherited["classifier.bias"][0]) for trial in evaluate.trials]
    assert weights[:8] == [0] * 8
    assert min(weights[8:]) > 0
    assert result.hit_ratio == pytest.approx(16 / 24)


def test_rewards_weigh_accuracy_and_cost():
    cost = MultiplyAdds(SPACE.input_size, 10)
    reward = WeighedReward(cost, target=2e5)
    result = search(SPACE, ORACLE, settings=SHORT, reward=reward, **modules())
    best = result.best
    assert best.cost == cost(best.architecture)
    assert best.reward == reward(best.accuracy, best.architecture)


def test_an_architecture_above_the_limit_is_not_trained():
    cost, evaluate = MultiplyAdds(SPACE.input_size, 10), Weighted()
    limit = 3 * cheapest(SPACE, cost)[1]
    result = search(SPACE, evaluate, settings=SHORT, cost=cost, limit=limit, **modules(critic=False))
    assert all(cost(trial.architecture) <= limit for trial in evaluate.trials)
    above = [sample for sample in result.history if sample.source == "infeasible"]
    assert above
    assert all(sample.reward == 0 and sample.cost > limit for sample in above)


def test_a_limit_that_nothing_keeps_is_refused_before_anything_is_trained(tmp_path):
    evaluate = Weighted()
    cost = MultiplyAdds(SPACE.input_size, 10)
    with pytest.raises(ValueError, match=r"limit is 1000 multiply-adds, but the cheapest .* no architecture is feas"):
        search(SPACE, evaluate, settings=SHORT, cost=cost, limit=1000, out=tmp_path / "new")
    with pytest.raises(ValueError, match="nothing says of what: give cost"):
        search(SPACE, evaluate, settings=SHORT, limit=1000)
    assert not evaluate.trials
    assert not (tmp_path / "new").exists()


def test_the_same_seed_gives_the_same_search():
    first, again = (search(SPACE, ORACLE, settings=SHORT, **modules()) for _ in range(2))
    other = search(SPACE, ORACLE, settings=SearchSettings(24, batch_size=8, seed=2), **modules())
    assert told(first) == told(again)
    assert told(first) != told(other)


@pytest.mark.parametrize(
    "until", [pytest.param(3, marks=pytest.mark.slow), 13, pytest.param(20, marks=pytest.mark.slow)]
)
def test_a_cut_search_resumes_as_if_it_had_not_been(tmp_path, until):
    settings = {"settings": SHORT}
    whole = search(SPACE, Weighted(), out=tmp_path / "whole", **settings, **modules(pool=KnowledgePool()))
    cut = Weighted(until=until)
    with pytest.raises(KeyboardInterrupt):
        search(SPACE, cut, out=tmp_path / "cut", **settings, **modules(pool=KnowledgePool()))
    rest = Weighted()
    own = modules(pool=KnowledgePool())
    resumed = search(SPACE, rest, out=tmp_path / "cut", resume=True, **settings, **own)
    assert told(resumed) == told(whole)
    assert resumed.curve() == whole.curve()
    assert (resumed.trainings, resumed.images, resumed.hit_ratio) == (24, 2400, whole.hit_ratio)
    assert len(cut.trials) + len(rest.trials) == 24  # what the cut run had trained is not trained again
    assert not list((tmp_path / "cut" / "trials").iterdir())


def test_a_search_cut_in_its_first_iteration_goes_on_with_the_critic_it_began_with(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        search(SPACE, Weighted(until=3), out=tmp_path, settings=SHORT, **modules())
    before = torch.load(tmp_path / "search.ckpt", weights_only=True)["critic"]["weights"]
    torch.manual_seed(5)
    other = modules() | {"critic": UncertaintyAwareCritic(SPACE, hidden=16, steps=4)}
    whole = search(SPACE, Weighted(), settings=SHORT, **modules())
    torch.manual_seed(6)
    assert not torch.equal(other["critic"].error[0].weight, before["error.0.weight"])
    assert told(search(SPACE, Weighted(), out=tmp_path, settings=SHORT, resume=True, **other)) == told(whole)


def test_a_finished_search_may_go_on_for_longer(tmp_path):
    search(SPACE, ORACLE, settings=SHORT, out=tmp_path, **modules())
    longer = SearchSettings(trainings=32, batch_size=8, seed=1)
    result = search(SPACE, ORACLE, settings=longer, out=tmp_path, resume=True, **modules())
    assert result.trainings == 32
    assert json.loads((tmp_path / "search.json").read_text())["trainings"] == 32


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"settings": SearchSettings(24, batch_size=12, seed=1)}, "settings.batch_size is 12, but .* started with 8"),
        ({"settings": SearchSettings(24, batch_size=8, seed=7)}, "settings.seed is 7"),
        ({"replay": False}, "replay is None"),
        ({"replay": ExperienceBuffer(capacity=9)}, "replay.capacity is 9"),
        ({"optimisation": PPO(lr=1e-3)}, "optimisation.lr is 0.001"),
        ({"policy": UniformPolicy(SPACE)}, "policy.name is 'UniformPolicy'"),
        ({"threshold": UncertaintyThreshold()}, "threshold.end is 256"),
        ({"reward": WeighedReward(MultiplyAdds((1, 8, 8), 10), 1e6)}, "cost is {'name': 'MultiplyAdds'"),
    ],
)
def test_a_search_of_another_configuration_is_not_resumed(tmp_path, change, complaint):
    search(SPACE, ORACLE, settings=SHORT, out=tmp_path, **modules())
    before = {path: path.read_bytes() for path in tmp_path.glob("search.*")}
    with pytest.raises(ValueError, match=complaint):
        search(SPACE, ORACLE, out=tmp_path, resume=True, **{"settings": SHORT, **modules(), **change})
    assert {path: path.read_bytes() for path in tmp_path.glob("search.*")} == before


def test_a_search_is_not_written_over(tmp_path):
    search(SPACE, ORACLE, settings=SHORT, out=tmp_path, **modules())
    with pytest.raises(ValueError, match="holds a search: give resume=True to go on with it, or another folder"):
        search(SPACE, ORACLE, settings=SHORT, out=tmp_path, **modules())


def test_a_failing_trial_loses_nothing_that_was_trained(tmp_path):
    def broken(trial):
        if trial.number > 10:
            raise RuntimeError("out of memory")
        return 0.5

    with pytest.raises(RuntimeError, match="out of memory"):
        search(SPACE, broken, settings=SHORT, out=tmp_path, **modules(critic=False))
    assert [path.name for path in sorted((tmp_path / "trials").iterdir())] == ["000009.ckpt", "000010.ckpt"]


@pytest.mark.parametrize("accuracy", [1.5, -0.1, float("nan")])
def test_an_accuracy_that_is_none_is_refused(accuracy):
    with pytest.raises(ValueError, match=r"trial 1 gave the accuracy .*; it must be 0 to 1"):
        search(SPACE, lambda trial: accuracy, settings=SHORT)


@pytest.mark.slow
def test_trials_in_parallel_processes_give_the_same_search(tmp_path):
    (tmp_path / "marks").mkdir()
    settings = SearchSettings(trainings=8, batch_size=4, seed=1)
    alone = search(SPACE, Weighted(), settings=settings, **modules(pool=KnowledgePool()))
    parallel = SearchSettings(trainings=8, batch_size=4, seed=1, processes=2)
    evaluate = Weighted(tmp_path / "marks", delay=0.02)
    together = search(SPACE, evaluate, settings=parallel, **modules(pool=KnowledgePool()))
    assert told(together) == told(alone)
    assert not evaluate.trials  # this process trained none of them
    assert len(list((tmp_path / "marks").iterdir())) == 8


def test_what_cannot_be_sent_to_other_processes_is_named():
    with pytest.raises(TypeError, match="processes is 2, so evaluate is sent .* cannot be pickled"):
        search(SPACE, lambda trial: 0.5, settings=SearchSettings(8, processes=2))


def test_the_bar_tells_the_best_reward(capsys):
    result = search(SPACE, ORACLE, settings=SHORT, **modules(), progress=True)
    shown = capsys.readouterr().err
    before = max(sample.reward for sample in result.history if sample.iteration < result.iterations and sample.accuracy)
    assert f"searching, best reward {before:.3f}" in " ".join(shown.split())
    assert "24/24 trainings" in shown


def test_progress_counts_real_trainings():
    reports, seen = [], []
    search(
        SPACE,
        ORACLE,
        settings=SHORT,
        progress=lambda done, total: reports.append((done, total)),
        watch=lambda result: seen.append((result.iterations, result.best.reward)),
        **modules(),
    )
    assert reports[0] == (0, 24)
    assert reports[-1] == (24, 24)
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)
    assert [iteration for iteration, _ in seen] == list(range(1, len(seen) + 1))
    assert seen[-1][1] >= seen[0][1]


def test_knowledge_of_an_earlier_search_teaches_the_critic_first():
    earlier = search(SPACE, ORACLE, settings=SearchSettings(trainings=120, batch_size=40), **modules(critic=False))
    critic = UncertaintyAwareCritic(SPACE, hidden=32)
    settings = SearchSettings(trainings=8, iterations=1, batch_size=8, seed=5)
    later = search(SPACE, ORACLE, settings=settings, knowledge=earlier.experience(), **modules(critic=critic))
    assert len(critic.samples) == 120 + later.trainings
    assert len({sample.value for sample in later.history}) > 1  # it had an opinion in its first iteration


def test_the_curve_is_the_best_reward_so_far():
    curve = search(SPACE, ORACLE, settings=SHORT, **modules()).curve()
    assert [count for count, _ in curve] == list(range(1, 25))
    rewards = [reward for _, reward in curve]
    assert rewards == sorted(rewards)


def test_a_search_without_a_trained_architecture_has_no_best():
    from repertory.systems.fnas import SearchResult

    with pytest.raises(ValueError, match="trained no architecture"):
        SearchResult(SPACE, [], 0, 0, 0).best  # noqa: B018


@pytest.mark.parametrize("name", ["trainings", "iterations", "batch_size", "processes"])
def test_settings_out_of_range_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 0; it must be at least"):
        SearchSettings(**{name: 0})


def test_knowledge_is_part_of_what_a_search_is_known_by(tmp_path):
    known = [((0,) * 18, 0.5), ((1,) * 18, 0.7)]
    search(SPACE, ORACLE, settings=SHORT, knowledge=known, out=tmp_path, **modules())
    with pytest.raises(ValueError, match=r"knowledge is \[0, "):
        search(SPACE, ORACLE, settings=SHORT, out=tmp_path, resume=True, **modules())
