"""What an iteration of the architecture search costs beside the trainings that it does, and trials side by side.

``python -m benchmarks.fnas [--pairs 15] [--threads 2]``: sampling, decision and learning of one iteration on a free
oracle, with each module in turn beside plain PPO; one trial of the miniature space on the digits, from scratch and with
its blocks from a pool; and eight such trials in one process and in two.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.timing import interleaved, write
from repertory.data import load
from repertory.systems.fnas import (
    ExperienceBuffer,
    KnowledgePool,
    SearchSettings,
    SearchSpace,
    TrainedAccuracy,
    Trial,
    UncertaintyAwareCritic,
    UniformPolicy,
    miniature,
    search,
)
from repertory.systems.fnas.oracle import TabularOracle
from repertory.systems.fnas.trials import Workers
from repertory.training import FitSettings

ITERATIONS, BATCH, TRIALS = 4, 64, 8
MOBILE, SMALL = SearchSpace(), miniature((1, 8, 8))
EPOCH = FitSettings(epochs=1, batch_size=64, accelerator="cpu")


def iterations(**modules: Any) -> Callable[[], object]:
    """So many iterations of a search of the mobile space that costs nothing but itself."""
    oracle = TabularOracle(MOBILE, 0)
    settings = SearchSettings(trainings=10**6, iterations=ITERATIONS, batch_size=BATCH)
    chosen = {"critic": False, "replay": False, "pool": False}

    def call() -> object:
        made = {name: make() for name, make in modules.items()}
        return search(MOBILE, oracle, settings=settings, **{**chosen, **made})

    return call


def trials(count: int) -> list[Trial]:
    """Different networks of the miniature space."""
    tokens = UniformPolicy(SMALL).sample(count, torch.Generator().manual_seed(0)).tolist()
    return [Trial(i + 1, SMALL.canonical(row), SMALL.decode(row), i, 10, 1) for i, row in enumerate(tokens)]


def rows_of_iterations(pairs: int) -> list[list[str]]:
    calls = {
        "PPO + AEB": iterations(replay=ExperienceBuffer),
        "PPO + UAC": iterations(critic=lambda: UncertaintyAwareCritic(MOBILE)),
        "PPO + UAC + AEB": iterations(replay=ExperienceBuffer, critic=lambda: UncertaintyAwareCritic(MOBILE)),
        "random search": iterations(policy=lambda: UniformPolicy(MOBILE)),
    }
    found = interleaved(iterations(), calls, pairs)
    first = next(iter(found.values()))
    rows = [["PPO", f"{1e3 * first.baseline / ITERATIONS:.0f}", ""]]
    return rows + [[name, f"{1e3 * r.candidate / ITERATIONS:.0f}", str(r)] for name, r in found.items()]


def rows_of_pool(pairs: int) -> list[list[str]]:
    evaluate, pool = TrainedAccuracy(load("digits"), EPOCH), KnowledgePool()
    first, second = trials(2)
    model = first.build()
    pool.deposit(model, model.state_dict(), 0.5, 1, pool.inherit(model))

    def inherited() -> object:
        state = pool.inherit(second.build()).state
        whole = Trial(2, second.tokens, second.architecture, second.seed, 10, 1, state)
        outcome = evaluate(whole)
        heritage = pool.inherit(second.build())
        pool.deposit(second.build(), outcome.weights or {}, outcome.accuracy, outcome.updates, heritage)
        return outcome

    ratio = interleaved(lambda: evaluate(second), {"pool": inherited}, pairs)["pool"]
    return [
        ["one trial (1 epoch of digits)", f"{1e3 * ratio.baseline:.0f}", ""],
        ["one trial with AKP", f"{1e3 * ratio.candidate:.0f}", str(ratio)],
    ]


def rows_of_processes(rounds: int) -> list[list[str]]:
    evaluate, chosen, seconds = TrainedAccuracy(load("digits"), EPOCH), trials(TRIALS), {}
    for processes in (1, 2):
        with Workers(evaluate, processes) as workers:
            list(workers.run(chosen[:processes]))  # started and imported
            times = []
            for _ in range(rounds):
                start = time.perf_counter()
                list(workers.run(chosen))
                times.append(time.perf_counter() - start)
            seconds[processes] = statistics.median(times)
    names = {1: f"{TRIALS} trials, one process", 2: f"{TRIALS} trials, two processes"}
    return [
        [names[count], f"{1e3 * value:.0f}", f"{seconds[1] / value:.2f}x" if count > 1 else ""]
        for count, value in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = rows_of_iterations(options.pairs) + rows_of_pool(options.pairs) + rows_of_processes(3)
    notes = [
        f"iterations of {BATCH} samples of the mobile space, mean of the first {ITERATIONS}; speed: against plain PPO",
        "trials of the miniature space; speed: against the same trial from scratch, and against one process",
    ]
    write("fnas", ["what", "ms", "speed"], rows, notes)


if __name__ == "__main__":
    main()
