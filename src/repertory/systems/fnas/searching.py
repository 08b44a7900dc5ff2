"""The search: sample, decide, train, learn; resumable after every iteration, each module replaceable or off.

Liu et al., "FNAS: Uncertainty-Aware Fast Neural Architecture Search", arXiv 2105.11694. In each iteration the
policy samples architectures, the critic spares those it is sure of a training, the pool initialises the others, and PPO
learns from the new samples and from replayed ones.
"""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from repertory.files import Replacement
from repertory.systems.fnas.cost import Cost, check_feasible
from repertory.systems.fnas.critic import UncertaintyAwareCritic, UncertaintyThreshold
from repertory.systems.fnas.model import MobileNetwork
from repertory.systems.fnas.policy import PPO, Batch, LSTMPolicy, Policy, as_tensor
from repertory.systems.fnas.pool import Inheritance, KnowledgePool
from repertory.systems.fnas.replay import ExperienceBuffer
from repertory.systems.fnas.reward import AccuracyReward, WeighedReward
from repertory.systems.fnas.space import Architecture, SearchSpace, Tokens
from repertory.systems.fnas.trials import Evaluate, Outcome, Trial, Workers
from repertory.training.checkpoint import load_checkpoint, save_checkpoint
from repertory.training.randomness import derive_seed, generator
from repertory.training.reporting import Report, reporting

T = TypeVar("T")
Reward = Callable[[float, Architecture], float]
REAL = ("trained", "remembered")  # sources whose reward comes from a training

# A search may go on with other values of these: they do not change what is computed, or lengthen it.
FREE_ON_RESUME = frozenset({"trainings", "iterations", "processes"})


@dataclass(frozen=True)
class SearchSettings:
    """How long and how widely to search.

    Args:
        trainings: real trainings in all; the search ends with them.
        iterations: iterations at most, for a policy that comes to propose what is known already.
        batch_size: samples of one iteration, replayed ones included.
        seed: of every draw of the search and of its trials.
        processes: trials that run at once.
    """

    trainings: int = 1000
    iterations: int = 1000
    batch_size: int = 64
    seed: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        for name, least in (("trainings", 1), ("iterations", 1), ("batch_size", 2), ("seed", 0), ("processes", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")


@dataclass
class Sample:
    """One architecture that the policy proposed.

    ``source`` says where its reward comes from: ``trained``, ``remembered`` (the same network was trained before),
    ``predicted`` (by the critic, no training) or ``infeasible`` (above the limit: reward 0, no training). ``trainings``
    counts the real trainings up to and including it. ``value`` and ``uncertainty`` are the critic's.
    """

    iteration: int
    tokens: Tokens
    key: str
    source: str = ""
    reward: float = 0.0
    accuracy: float | None = None
    cost: float | None = None
    value: float | None = None
    uncertainty: float | None = None
    trainings: int = 0


@dataclass(frozen=True)
class Candidate:
    """A trained architecture with its proxy ``accuracy``, ``reward`` and ``cost`` (None without a cost)."""

    architecture: Architecture
    tokens: Tokens
    accuracy: float
    reward: float
    cost: float | None


@dataclass
class SearchResult:
    """What a search gave.

    ``history`` holds every sample in order; ``trainings`` and ``images`` count the real trainings and the images that
    these put through forward and backward; ``hit_ratio`` is the pool's, None without one.
    """

    space: SearchSpace
    history: list[Sample]
    trainings: int
    images: int
    iterations: int
    hit_ratio: float | None = None
    candidates: list[Candidate] = field(default_factory=list)

    @property
    def best(self) -> Candidate:
        """The trained architecture of highest reward; ``ValueError`` where none was trained."""
        return self.top(1)[0]

    def top(self, count: int) -> list[Candidate]:
        """The ``count`` trained architectures of highest reward, best first."""
        if not self.candidates:
            raise ValueError("the search trained no architecture: every sample was above the limit")
        return sorted(self.candidates, key=lambda c: -c.reward)[:count]

    def network(self, drop_rate: float = 0.0) -> MobileNetwork:
        """The best architecture as a new network, to be trained in the ordinary way."""
        return MobileNetwork(self.best.architecture, self.space.num_classes, self.space.input_size[0], drop_rate)

    def counts(self) -> dict[str, int]:
        """Samples by where their reward came from."""
        return dict(Counter(sample.source for sample in self.history))

    def curve(self) -> list[tuple[int, float]]:
        """(real trainings, best reward so far), a point for each training."""
        points, best = [], -math.inf
        for sample in self.history:
            if sample.source == "trained":
                best = max(best, sample.reward)
                points.append((sample.trainings, best))
        return points

    def experience(self) -> list[tuple[Tokens, float]]:
        """(tokens, reward) of every real training: knowledge for a later search of the same space."""
        return [(candidate.tokens, candidate.reward) for candidate in self.candidates]


def search(
    space: SearchSpace,
    evaluate: Evaluate,
    *,
    settings: SearchSettings | None = None,
    reward: Reward | None = None,
    limit: float | None = None,
    cost: Cost | None = None,
    critic: UncertaintyAwareCritic | bool = True,
    threshold: UncertaintyThreshold | None = None,
    pool: KnowledgePool | bool = True,
    replay: ExperienceBuffer | bool = True,
    policy: Policy | None = None,
    optimisation: PPO | None = None,
    knowledge: Sequence[tuple[Sequence[int], float]] = (),
    out: Path | str | None = None,
    resume: bool = False,
    progress: Report | bool | None = None,
    watch: Callable[[SearchResult], None] | None = None,
) -> SearchResult:
    """Look in ``space`` for the architecture of highest reward; each module may be replaced, or switched off by False.

    An iteration samples a batch; equal networks are trained once in the whole search. Trials of an iteration inherit
    from the pool as it was before, so that the result does not depend on ``processes``.

    Args:
        space: what to search.
        evaluate: called with a :class:`~repertory.systems.fnas.trials.Trial`, gives an accuracy in [0, 1] or an
            :class:`~repertory.systems.fnas.trials.Outcome`; every call counts as a real training.
        settings: how long to search.
        reward: (accuracy, architecture) -> reward; the accuracy by default.
        limit: an architecture of higher cost is not trained, its reward is 0.
        cost: what ``limit`` bounds; the reward's own where it has one.
        critic: predicts rewards and spares trainings.
        threshold: how sure the critic must be.
        pool: gives each network its first weights; learns where ``evaluate`` returns weights.
        replay: past samples beside new ones.
        policy: proposes architectures; an LSTM by default, ``UniformPolicy`` is random search.
        optimisation: of the policy.
        knowledge: (tokens, reward) pairs of an earlier search, on which the critic is trained first.
        out: folder for ``search.ckpt``, written after every iteration, trials of a cut iteration, and ``search.json``.
        resume: go on from ``out`` if a search is there.
        progress: called with (real trainings done, in all); True and False force or forbid the bar, which tells the
            best reward too, None shows it where standard error is a terminal.
        watch: called with the state of the search after every iteration.

    Raises:
        ValueError: no architecture is within the limit; ``out`` holds a search and ``resume`` is off, or one of another
            configuration; an accuracy or a reward that is none.
        TypeError: several processes, and ``evaluate`` cannot be pickled.
    """
    settings = settings or SearchSettings()
    reward = reward or AccuracyReward()
    cost = cost or (reward.cost if isinstance(reward, WeighedReward) else None)
    if limit is not None and cost is None:
        raise ValueError(f"limit is {limit}, but nothing says of what: give cost, or a reward that has one")
    if limit is not None and cost is not None:
        check_feasible(space, cost, limit)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("search", settings.seed))
        modules = _Modules(
            policy or LSTMPolicy(space),
            optimisation or PPO(),
            _chosen(critic, lambda: UncertaintyAwareCritic(space)),
            threshold or UncertaintyThreshold(),
            _chosen(pool, KnowledgePool),
            _chosen(replay, ExperienceBuffer),
        )
    run = _Search(space, evaluate, settings, reward, cost, limit, modules, Path(out) if out is not None else None)
    run.begin([(space.canonical(tokens), float(value)) for tokens, value in knowledge], resume)
    with reporting(progress, run.headline, "trainings") as report, Workers(evaluate, settings.processes) as workers:
        report(run.trainings, settings.trainings)
        while run.trainings < settings.trainings and run.iteration < settings.iterations:
            run.iterate(workers, report)
            if watch is not None:
                watch(run.result())
    return run.finish()


def _chosen(given: T | bool, default: Callable[[], T]) -> T | None:
    """What is given, the default for True, nothing for False."""
    if isinstance(given, bool):
        return default() if given else None
    return given


@dataclass
class _Modules:
    policy: Policy
    optimisation: PPO
    critic: UncertaintyAwareCritic | None
    threshold: UncertaintyThreshold
    pool: KnowledgePool | None
    replay: ExperienceBuffer | None

    def configuration(self) -> dict[str, Any]:
        """What each is, None where it is off."""
        return {name: None if module is None else module.configuration for name, module in vars(self).items()}


class _Search:
    """The state of a search between iterations, and one iteration."""

    def __init__(
        self,
        space: SearchSpace,
        evaluate: Evaluate,
        settings: SearchSettings,
        reward: Reward,
        cost: Cost | None,
        limit: float | None,
        modules: _Modules,
        out: Path | None,
    ) -> None:
        self.space, self.settings, self.reward, self.cost, self.limit = space, settings, reward, cost, limit
        self.modules, self.out = modules, out
        self.optimizer = modules.optimisation.optimizer(modules.policy)
        self.iteration = self.trainings = self.images = 0
        self.history: list[Sample] = []
        self.known: dict[str, Candidate] = {}  # every network trained, by its key
        self.configuration = {
            "space": space.to_dict(),
            "settings": asdict(settings),
            "reward": _configuration(reward),
            "cost": cost and cost.configuration,
            "limit": limit,
            "evaluate": _configuration(evaluate),
            **modules.configuration(),
        }

    def headline(self) -> str:
        """What the search has found before this iteration, in a few words."""
        best = max((candidate.reward for candidate in self.known.values()), default=None)
        return "searching" if best is None else f"searching, best reward {best:.3f}"

    def begin(self, knowledge: Sequence[tuple[Tokens, float]], resume: bool) -> None:
        """Take up the search in ``out``, or start with what the critic is told."""
        self.configuration["knowledge"] = [len(knowledge), zlib.crc32(repr(list(knowledge)).encode())]
        if self.out is not None and self.checkpoint.exists():
            if not resume:
                raise ValueError(f"{self.out} holds a search: give resume=True to go on with it, or another folder")
            self._restore()
            return
        critic = self.modules.critic
        if critic is not None and knowledge:
            for tokens, value in knowledge:
                critic.add(tokens, value)
            for part in range(10):  # ten times the steps of an iteration: there is all that is known so far to learn
                critic.fit(generator("critic-knowledge", self.settings.seed, part))
        self._save()  # a search that is cut in its first iteration goes on with the modules that it began with

    def iterate(self, workers: Workers, report: Report) -> None:
        """One iteration, written to disk at its end."""
        self.iteration += 1
        samples = self._sample()
        self._decide(samples)
        samples = self._within_budget(samples)
        self._train(samples, workers, report)
        self._reward(samples)
        self._learn(samples)
        self.history += samples
        self._save()

    def _generator(self, purpose: str) -> torch.Generator:
        return generator(purpose, self.settings.seed, self.iteration)

    def _sample(self) -> list[Sample]:
        """New architectures, as many as are not replayed."""
        replay = self.modules.replay
        size = self.settings.batch_size
        count = size if replay is None else size - replay.replayed(size)
        drawn = self.modules.policy.sample(count, self._generator("sample")).tolist()
        samples = []
        for tokens in drawn:
            architecture = self.space.decode(tokens)
            price = self.cost(architecture) if self.cost else None
            samples.append(Sample(self.iteration, tuple(tokens), architecture.key, cost=price))
        return samples

    def _decide(self, samples: list[Sample]) -> None:
        """What becomes of each sample: known, above the limit, predicted, or to be trained."""
        critic, threshold = self.modules.critic, self.modules.threshold
        spared = torch.zeros(len(samples), dtype=torch.bool)
        if critic is not None:
            values, uncertainties = critic.predict([self.space.canonical(sample.tokens) for sample in samples])
            for sample, value, uncertainty in zip(samples, values.tolist(), uncertainties.tolist(), strict=True):
                sample.value, sample.uncertainty = value, uncertainty
            spared = threshold.sure(uncertainties, self.trainings, self._generator("always"))
        for sample, sure in zip(samples, spared.tolist(), strict=True):
            if sample.key in self.known:
                sample.source = "remembered"
            elif self.limit is not None and sample.cost is not None and sample.cost > self.limit:
                sample.source = "infeasible"
            else:
                sample.source = "predicted" if sure else "trained"

    def _within_budget(self, samples: list[Sample]) -> list[Sample]:
        """Each network trained once, and none beyond the budget; a sample without a reward is dropped."""
        kept: list[Sample] = []
        new: set[str] = set()
        for sample in samples:
            if sample.source == "trained":
                if sample.key in new:
                    sample.source = "remembered"
                elif self.trainings + len(new) < self.settings.trainings:
                    new.add(sample.key)
                else:
                    continue
            kept.append(sample)
        known = new | set(self.known)
        for sample in kept:  # one that is trained in this batch anyway need not be predicted
            if sample.source == "predicted" and sample.key in known:
                sample.source = "remembered"
        return kept

    def _train(self, samples: list[Sample], workers: Workers, report: Report) -> None:
        """The real trainings of the batch; those that a cut run had done are taken over."""
        chosen = [sample for sample in samples if sample.source == "trained"]
        if not chosen:
            return
        inherited: list[Inheritance | None] = []
        trials = []
        for index, sample in enumerate(chosen):
            trial, heritage = self._trial(sample, self.trainings + index + 1)
            trials.append(trial)
            inherited.append(heritage)
        outcomes = {i: found for i, trial in enumerate(trials) if (found := self._pending(trial)) is not None}
        missing = [i for i in range(len(trials)) if i not in outcomes]
        for index, outcome in workers.run([trials[i] for i in missing]):
            outcomes[missing[index]] = outcome
            self._keep(trials[missing[index]], outcome)
            report(self.trainings + len(outcomes), self.settings.trainings)
        for index, (sample, trial) in enumerate(zip(chosen, trials, strict=True)):
            self._account(sample, trial, outcomes[index], inherited[index])

    def _trial(self, sample: Sample, number: int) -> tuple[Trial, Inheritance | None]:
        trial = Trial(
            number,
            self.space.canonical(sample.tokens),
            self.space.decode(sample.tokens),
            derive_seed("trial", self.settings.seed, number),
            self.space.num_classes,
            self.space.input_size[0],
        )
        if self.modules.pool is None:
            return trial, None
        heritage = self.modules.pool.inherit(trial.build())
        return replace(trial, inherited=heritage.state), heritage

    def _account(self, sample: Sample, trial: Trial, outcome: Outcome, inherited: Inheritance | None) -> None:
        """Count a training and remember what it gave."""
        self.trainings += 1
        self.images += outcome.images
        value = self.reward(outcome.accuracy, trial.architecture)
        if not math.isfinite(value):
            raise ValueError(f"the reward of trial {trial.number} is {value}; it must be finite")
        candidate = Candidate(trial.architecture, trial.tokens, outcome.accuracy, value, sample.cost)
        self.known[sample.key] = candidate
        if self.modules.critic is not None:
            self.modules.critic.add(trial.tokens, value)
        if self.modules.pool is not None and inherited is not None and outcome.weights is not None:
            with torch.device("meta"):
                shape = MobileNetwork(trial.architecture, trial.num_classes, trial.in_chans)
            self.modules.pool.deposit(shape, outcome.weights, outcome.accuracy, outcome.updates, inherited)

    def _reward(self, samples: list[Sample]) -> None:
        """Every sample's reward, from a training, the critic or the limit."""
        count = self.trainings - sum(sample.source == "trained" for sample in samples)
        for sample in samples:
            count += sample.source == "trained"
            sample.trainings = count
            if sample.source in REAL:
                sample.accuracy, sample.reward = self.known[sample.key].accuracy, self.known[sample.key].reward
            elif sample.source == "predicted":
                assert sample.value is not None
                sample.reward = sample.value

    def _learn(self, samples: list[Sample]) -> None:
        """Improve the policy on the batch and the critic on all that was trained."""
        if not samples:
            return
        policy, replay, critic = self.modules.policy, self.modules.replay, self.modules.critic
        tokens = as_tensor([sample.tokens for sample in samples])
        rewards = torch.tensor([sample.reward for sample in samples], dtype=torch.float64)
        with torch.no_grad():
            logs, _ = policy(tokens)
        batch = Batch(tokens, rewards, torch.ones(len(samples), dtype=torch.float64))
        count = replay.replayed(self.settings.batch_size) if replay is not None else 0
        if replay is not None and count:
            batch = self._with_replayed(batch, replay, count)
        if self.optimizer is not None:
            self.modules.optimisation.update(policy, self.optimizer, batch)
        if replay is not None:
            for sample, log in zip(samples, logs.tolist(), strict=True):
                if sample.source != "predicted":
                    replay.add(sample.tokens, sample.reward, log)
        if critic is not None and any(sample.source == "trained" for sample in samples):
            critic.fit(self._generator("critic"))

    def _with_replayed(self, batch: Batch, replay: ExperienceBuffer, count: int) -> Batch:
        tokens, rewards, behaviour = replay.draw(count, self._generator("replay"))
        with torch.no_grad():
            logs, _ = self.modules.policy(tokens)
        weights: Tensor = replay.correction(logs, behaviour)
        return Batch(
            torch.cat([batch.tokens, tokens]),
            torch.cat([batch.rewards, rewards]),
            torch.cat([batch.weights, weights]),
        )

    # What is on disk

    @property
    def checkpoint(self) -> Path:
        """The file from which a search resumes."""
        assert self.out is not None
        return self.out / "search.ckpt"

    def _pending_path(self, trial: Trial) -> Path | None:
        return self.out / "trials" / f"{trial.number:06d}.ckpt" if self.out is not None else None

    def _pending(self, trial: Trial) -> Outcome | None:
        """The outcome of ``trial`` where a cut run had it."""
        path = self._pending_path(trial)
        if path is None or not path.exists():
            return None
        state = load_checkpoint(path)
        same = state["tokens"] == list(trial.tokens) and state["iteration"] == self.iteration
        return Outcome(state["accuracy"], state["model"], state["images"], state["updates"]) if same else None

    def _keep(self, trial: Trial, outcome: Outcome) -> None:
        """Keep ``outcome`` until the iteration is written."""
        path = self._pending_path(trial)
        if path is not None:
            state = {"model": outcome.weights, "accuracy": outcome.accuracy, "images": outcome.images}
            own = {"updates": outcome.updates, "tokens": list(trial.tokens), "iteration": self.iteration}
            save_checkpoint({**state, **own}, path)

    def _save(self) -> None:
        if self.out is None:
            return
        modules = self.modules
        save_checkpoint(
            {
                "model": modules.policy.state_dict(),
                "optimizer": self.optimizer and self.optimizer.state_dict(),
                "critic": modules.critic and modules.critic.snapshot(),
                "threshold": modules.threshold.state_dict(),
                "pool": modules.pool and modules.pool.state_dict(),
                "replay": None if modules.replay is None else modules.replay.state_dict(),
                "position": [self.iteration, self.trainings, self.images],
                "history": [asdict(sample) for sample in self.history],
                "known": [_plain(candidate) for candidate in self.known.values()],
                "configuration": json.dumps(self.configuration, sort_keys=True),
            },
            self.checkpoint,
        )
        for path in (self.out / "trials").glob("*.ckpt"):
            path.unlink()

    def _restore(self) -> None:
        state, modules = load_checkpoint(self.checkpoint), self.modules
        if "configuration" not in state:
            raise ValueError(f"{self.checkpoint} is not a checkpoint of a search")
        check_same(json.loads(json.dumps(self.configuration)), json.loads(state["configuration"]), str(self.out))
        modules.policy.load_state_dict(state["model"])
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        if modules.critic is not None:
            modules.critic.restore(state["critic"])
        if modules.pool is not None:
            modules.pool.load_state_dict(state["pool"])
        if modules.replay is not None:
            modules.replay.load_state_dict(state["replay"])
        modules.threshold.load_state_dict(state["threshold"])
        self.iteration, self.trainings, self.images = state["position"]
        self.history = [Sample(**{**values, "tokens": tuple(values["tokens"])}) for values in state["history"]]
        candidates = [self._candidate(values) for values in state["known"]]
        self.known = {candidate.architecture.key: candidate for candidate in candidates}

    def _candidate(self, values: Mapping[str, Any]) -> Candidate:
        tokens = tuple(values["tokens"])
        numbers = {name: values[name] for name in ("accuracy", "reward", "cost")}
        return Candidate(self.space.decode(tokens), tokens, **numbers)

    def result(self) -> SearchResult:
        """The search as it stands."""
        ratio = self.modules.pool.hit_ratio if self.modules.pool is not None else None
        own = (list(self.history), self.trainings, self.images, self.iteration, ratio, list(self.known.values()))
        return SearchResult(self.space, *own)

    def finish(self) -> SearchResult:
        """The result, also as ``search.json``."""
        result = self.result()
        if self.out is not None:
            best = None if not result.candidates else {**_plain(result.best), **result.best.architecture.to_dict()}
            counts = {"trainings": result.trainings, "images": result.images, "iterations": result.iterations}
            record: dict[str, Any] = {"best": best, **counts, "sources": result.counts(), "hit_ratio": result.hit_ratio}
            record |= {"configuration": self.configuration, "history": [asdict(sample) for sample in result.history]}
            with Replacement(self.out / "search.json") as partial:
                partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return result


def _plain(candidate: Candidate) -> dict[str, Any]:
    numbers = {name: getattr(candidate, name) for name in ("accuracy", "reward", "cost")}
    return {"tokens": list(candidate.tokens), **numbers}


def _configuration(given: Any) -> Any:
    """What ``given`` says of itself, else its name."""
    return getattr(given, "configuration", None) or getattr(given, "__qualname__", type(given).__name__)


def check_same(now: Any, before: Any, out: str, name: str = "") -> None:
    """ValueError naming the first setting by which a search is not the one in ``out``."""
    if isinstance(now, dict) and isinstance(before, dict):
        for key in sorted(set(now) | set(before)):
            if key not in FREE_ON_RESUME:
                check_same(now.get(key), before.get(key), out, f"{name}.{key}".lstrip("."))
    elif now != before:
        raise ValueError(f"{name} is {now!r}, but the search in {out} was started with {before!r}")
