"""A free reward over the whole search space, by which searches can be compared in seconds; its calls are counted.

Utilities of single tokens, interactions of pairs, and noise that is the architecture's own, so that the same network
always gets the same accuracy.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from repertory.systems.fnas.reward import WeighedReward
from repertory.systems.fnas.space import SearchSpace, Tokens
from repertory.systems.fnas.trials import Trial


class TabularOracle:
    """An accuracy for every token sequence, drawn by ``seed``; callable as ``evaluate`` of a search.

    Args:
        space: whose canonical tokens are judged: equal networks are equally good.
        seed: of the tables.
        pairs: random pairs of tokens that interact.
        interaction: deviation of a pair's table beside 1 for a token's.
        noise: deviation of the accuracy that no table explains.
        shift: 0 for the oracle itself, up to 1 for an unrelated one: how far the tables are turned to others.
    """

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        pairs: int = 60,
        interaction: float = 0.5,
        noise: float = 0.005,
        shift: float = 0.0,
    ) -> None:
        if not 0 <= shift <= 1:
            raise ValueError(f"shift is {shift}; it must be 0 to 1")
        self.space, self.seed, self.noise, self.calls = space, seed, noise, 0
        self.settings = {"seed": seed, "pairs": pairs, "interaction": interaction, "noise": noise, "shift": shift}
        places = np.random.default_rng([seed, 0]).integers(len(space), size=(pairs, 2))
        self.pairs = [(int(a), int(b)) for a, b in places if a != b]
        own, other = (np.random.default_rng([seed, part]) for part in (1, 2))

        def table(*shape: int) -> np.ndarray:
            drawn, foreign = own.standard_normal(shape), other.standard_normal(shape)
            return np.sqrt(1 - shift**2) * drawn + shift * foreign

        self.single = [table(size) for size in space.sizes]
        self.double = [interaction * table(space.sizes[a], space.sizes[b]) for a, b in self.pairs]
        # About as much as the best tokens could give together: accuracies stay well within [0, 1].
        self.reach = sum(float(t.max()) for t in self.single) + interaction * len(self.pairs) / 2

    def accuracy(self, tokens: Tokens, noisy: bool = True) -> float:
        """The accuracy of the network of ``tokens``, in [0, 1]."""
        tokens = self.space.canonical(tokens)
        total = sum(float(table[token]) for table, token in zip(self.single, tokens, strict=True))
        total += sum(float(table[tokens[a], tokens[b]]) for table, (a, b) in zip(self.double, self.pairs, strict=True))
        drawn = np.random.default_rng([self.seed, zlib.crc32(bytes(tokens))]).standard_normal() if noisy else 0.0
        return float(np.clip(0.5 + 0.4 * total / self.reach + self.noise * drawn, 0, 1))

    def __call__(self, trial: Trial) -> float:
        """What a real training of ``trial`` would give; counted in ``calls``."""
        self.calls += 1
        return self.accuracy(trial.tokens)

    @property
    def configuration(self) -> dict[str, Any]:
        """Plain values by which a resumed search knows its oracle again."""
        return {"name": "TabularOracle", **self.settings}

    def best_known(self, reward: WeighedReward, starts: int = 16) -> float:
        """The highest reward, without noise, that ascent token by token finds from ``starts`` random sequences."""
        draw = np.random.default_rng([self.seed, 3])

        def value(tokens: Tokens) -> float:
            return reward(self.accuracy(tokens, noisy=False), self.space.decode(tokens))

        best = 0.0
        for _ in range(starts):
            tokens: Tokens = tuple(int(draw.integers(size)) for size in self.space.sizes)
            reached, before = value(tokens), -1.0
            while reached > before:
                before = reached
                for place, size in enumerate(self.space.sizes):
                    options = [(*tokens[:place], option, *tokens[place + 1 :]) for option in range(size)]
                    reached, tokens = max((value(option), option) for option in options)
            best = max(best, reached)
        return best
