"""Do inherited weights make a short training tell more? Real digits; and a probe of the search on a free oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import kendalltau, spearmanr

from repertory.data import load
from repertory.evidence import Arm, ArmResult, Context, Experiment, Scale
from repertory.systems.fnas.cost import MultiplyAdds
from repertory.systems.fnas.critic import UncertaintyAwareCritic, UncertaintyThreshold
from repertory.systems.fnas.evaluator import TrainedAccuracy
from repertory.systems.fnas.oracle import TabularOracle
from repertory.systems.fnas.policy import PPO, UniformPolicy
from repertory.systems.fnas.pool import KnowledgePool, newest
from repertory.systems.fnas.replay import ExperienceBuffer
from repertory.systems.fnas.reward import WeighedReward
from repertory.systems.fnas.searching import Sample, SearchResult, SearchSettings, search
from repertory.systems.fnas.space import SearchSpace, Tokens, miniature
from repertory.systems.fnas.supernet import Supernet
from repertory.training.evaluation import evaluate
from repertory.training.settings import FitSettings

SHARE = 0.95  # of the best known reward: how soon a search reaches it is the probe's measure


def early_accuracy(arm: Arm, seed: int, scale: Scale, context: Context) -> ArmResult:
    """Judge the same random networks after one epoch, from the arm's weights, and each fully trained from scratch."""
    used, space = {**scale.settings, **arm.settings}, miniature((1, 8, 8))
    recipe = {name: used[name] for name in ("batch_size", "optimizer", "lr", "weight_decay")}
    full, short = (
        TrainedAccuracy(
            load("digits"), FitSettings(epochs=epochs, accelerator="cpu", **recipe), held_out=used["held_out"]
        )
        for epochs in (used["full_epochs"], 1)
    )
    networks = _Networks(space, used["networks"], seed, context)
    whole = networks.trained(full, False, 0)
    reference = [candidate.accuracy for candidate in whole.candidates]
    curves: dict[str, list[tuple[float, float]]] = {}
    if used["weights"] == "supernet":
        early, images = networks.sharing(whole, short, scale.images)
    else:
        result = networks.trained(short, _pool(used["weights"]), 1)
        early, images = [candidate.accuracy for candidate in result.candidates], result.images
        each = images / len(early)
        curves["early_top1"] = [((i + 1) * each, 100 * accuracy) for i, accuracy in enumerate(early)]
    metrics = {
        "early_top1": 100 * float(np.mean(early)),
        "kendall_tau": _defined(kendalltau(early, reference).statistic),
        "full_top1": 100 * float(np.mean(reference)),
    }
    return ArmResult(metrics, curves, images, images // used["batch_size"], used)


def _pool(weights: str) -> KnowledgePool | bool:
    """What networks begin with in an arm that trains each of them: nothing, the newest or the most similar blocks."""
    pools: dict[str, KnowledgePool | bool]
    pools = {"random": False, "warm": KnowledgePool(newest, capacity=1), "pool": KnowledgePool()}
    return pools[weights]


@dataclass(frozen=True)
class _Networks:
    """``count`` different networks, drawn uniformly: the same ones in every arm of a seed."""

    space: SearchSpace
    count: int
    seed: int
    context: Context

    def trained(self, how: TrainedAccuracy, pool: KnowledgePool | bool, half: int) -> SearchResult:
        """Each trained, one after the other; ``half`` 0 or 1 of the run's progress."""
        return search(
            self.space,
            how,
            settings=SearchSettings(trainings=self.count, batch_size=2, seed=self.seed),
            policy=UniformPolicy(self.space),
            critic=False,
            replay=False,
            pool=pool,
            out=self.context.out / ("full", "early")[half],
            resume=True,
            progress=lambda done, total: self.context.progress(half * total + done, 2 * total),
        )

    def sharing(self, drawn: SearchResult, like: TrainedAccuracy, images: int) -> tuple[list[float], int]:
        """Their accuracies with the weights of one supernet, trained on as many images as they would be together."""
        settings = replace(like.settings, max_images=images, seed=self.seed)
        supernet = Supernet(self.space, self.seed)
        spent = supernet.train_paths(
            like.data, settings, lambda done, total: self.context.progress(total + done, 2 * total)
        )
        networks = [supernet.judged(each.architecture, like.data, settings.batch_size) for each in drawn.candidates]
        return [evaluate(network, like.data.val)["top1"] for network in networks], spent


def _defined(value: float) -> float:
    """0 in place of what a constant list has no correlation with."""
    return 0.0 if np.isnan(value) else float(value)


def oracle_search(arm: Arm, seed: int, scale: Scale, context: Context) -> ArmResult:
    """Search the mobile space with the arm's modules, and count the oracle's answers until the share is reached."""
    used = {**scale.settings, **arm.settings}
    space = SearchSpace()
    oracle, related = TabularOracle(space, seed), TabularOracle(space, seed, shift=used["shift"])
    reward = WeighedReward(MultiplyAdds(space.input_size, space.num_classes), used["target"])
    known: list[tuple[Tokens, float]] = []
    if used.get("prior"):
        known = _elsewhere(space, related, reward, used["prior"], seed)
    result = search(
        space,
        oracle,
        settings=SearchSettings(used["trainings"], used["iterations"], used["batch_size"], seed),
        reward=reward,
        critic=UncertaintyAwareCritic(space, used["hidden"], used["steps"]) if used["uac"] else False,
        threshold=UncertaintyThreshold(start=0 if known else 64),
        replay=ExperienceBuffer(used["capacity"]) if used["aeb"] else False,
        pool=False,
        policy=UniformPolicy(space) if used["policy"] == "uniform" else None,
        optimisation=PPO(lr=used["lr"], epochs=used["epochs"], entropy=used["entropy"]),
        knowledge=known,
        out=context.out / "search",
        resume=True,
        progress=context.progress,
    )
    best = oracle.best_known(reward)
    curve = [(float(count), value / best) for count, value in result.curve()]
    metrics = {
        "trainings_to_95": trainings_to(SHARE, curve, used["trainings"]),
        "best_share": 100 * curve[-1][1],
        **critic_metrics(result.history),
    }
    return ArmResult(metrics, {"share_of_best_known": curve}, result.trainings, result.iterations, used)


def _elsewhere(
    space: SearchSpace, related: TabularOracle, reward: WeighedReward, count: int, seed: int
) -> list[tuple[Tokens, float]]:
    """Rewards that a search of a related task had trained for: knowledge that is not paid for again."""
    draw = np.random.default_rng([seed, 4])
    sequences = [tuple(int(draw.integers(size)) for size in space.sizes) for _ in range(count)]
    return [(tokens, reward(related.accuracy(tokens), space.decode(tokens))) for tokens in sequences]


def trainings_to(share: float, curve: Sequence[tuple[float, float]], budget: int) -> float:
    """Real trainings until ``curve`` (trainings, share of the best known) reaches ``share``; the budget where never."""
    return next((count for count, value in curve if value >= share), float(budget))


def critic_metrics(history: Sequence[Sample]) -> dict[str, float]:
    """Share of samples whose training was spared, and the rank correlation of U with |V - R| where R came after."""
    judged = [sample for sample in history if sample.source == "trained" and sample.value is not None]
    later = judged[len(judged) // 4 :]  # the first ones were judged by a critic that knew nothing
    spared = sum(sample.source == "predicted" for sample in history) / max(1, len(history))
    metrics = {"spared": 100 * spared}
    if len(later) > 2:
        errors = [abs(sample.value - sample.reward) for sample in later if sample.value is not None]
        metrics["uncertainty_spearman"] = _defined(
            spearmanr([sample.uncertainty for sample in later], errors).statistic
        )
    return metrics


# Learning rate and batch are those of a first guess for the baseline, random initialisation; nothing was tuned.
_TRAINING = {"batch_size": 64, "optimizer": "sgd", "lr": 0.1, "weight_decay": 1e-4, "held_out": 0.2}

EXPERIMENT = Experiment(
    system="fnas",
    question="Does a network that inherits its blocks do better after one epoch than one that starts from scratch?",
    metric="early_top1",
    unit="%",
    higher_is_better=True,
    baseline="random",
    method="pool",
    arms=(
        Arm("random", "random initialisation", {"weights": "random"}),
        Arm("warm", "blocks of the network trained last", {"weights": "warm"}),
        Arm("pool", "most similar blocks (AKP)", {"weights": "pool"}),
        Arm("supernet", "one shared supernet, single paths", {"weights": "supernet"}),
    ),
    scales={
        "smoke": Scale(2, 3 * 1_088, {**_TRAINING, "networks": 3, "full_epochs": 2}),
        "small": Scale(5, 8 * 1_088, {**_TRAINING, "networks": 8, "full_epochs": 3}),
    },
    run=early_accuracy,
    data="scikit-learn's handwritten digits (8 x 8); accuracy on a fifth of the training set, networks drawn from a "
    "miniature space of 432 ** 3",
)


_MODULES = {"policy": "lstm", "uac": False, "aeb": False}
# Controllers of the literature learn at 3.5e-4 over thousands of samples; this is ten times that for a tenth of them.
# Nothing was tuned; the capacity is four batches, since older samples weigh next to nothing. The critic is half as wide
# as by default and takes a third of the steps, to keep a search of a thousand free trainings within a minute.
_PPO = {"lr": 3e-3, "epochs": 4, "entropy": 1e-2, "batch_size": 32, "capacity": 128, "target": 3e8, "shift": 0.3}
_PPO |= {"hidden": 128, "steps": 20}

PROBE = Experiment(
    system="fnas",
    question="After how many real evaluations does the search reach 95% of the best known reward?",
    metric="trainings_to_95",
    unit="trainings",
    higher_is_better=False,
    baseline="ppo",
    method="ppo_uac_aeb",
    arms=(
        Arm("random", "random search", {**_MODULES, "policy": "uniform"}),
        Arm("ppo", "PPO", _MODULES),
        Arm("ppo_aeb", "PPO + AEB", {**_MODULES, "aeb": True}),
        Arm("ppo_uac", "PPO + UAC", {**_MODULES, "uac": True}),
        Arm("ppo_uac_aeb", "PPO + UAC + AEB", {**_MODULES, "uac": True, "aeb": True}),
        Arm("prior", "PPO + UAC + AEB, critic taught elsewhere", {**_MODULES, "uac": True, "aeb": True, "prior": 500}),
    ),
    scales={
        "smoke": Scale(2, 0, {**_PPO, "trainings": 96, "iterations": 6}),
        "small": Scale(10, 0, {**_PPO, "trainings": 1_000, "iterations": 150}),
    },
    run=oracle_search,
    data="a free tabular oracle over the mobile space, drawn by seed: utilities of tokens and pairs, noise, cost in "
    "multiply-adds; no network is trained, and every answer is counted",
    probe=True,
)
