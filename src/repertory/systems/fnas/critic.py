"""The uncertainty-aware critic: it predicts an architecture's reward and its own error, and spares trainings.

That predictions replace trainings where the critic is sure is the paper's; its form, losses and threshold are inferred.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repertory.systems.fnas.policy import as_tensor
from repertory.systems.fnas.space import SearchSpace, Tokens


class UncertaintyAwareCritic(nn.Module):
    """Value V(a) and uncertainty U(a) >= 0 of token sequences (inferred).

    One-hot tokens enter a linear map and a two-layer network, whose sum is V. A second network on the same hidden
    features predicts |V - R|. Rewards come from real trainings alone. One in ``held_out`` of them never trains V, and
    U learns from these only: on the samples that V was fitted to, its error says nothing about new ones.

    Args:
        space: whose tokens are judged; give canonical ones, so that equal networks are judged alike.
        hidden: width of the features.
        steps: gradient steps of one :meth:`fit`.
        batch_size: of each step.
        lr: of AdamW.
        weight_decay: of AdamW.
        held_out: one sample in so many, at least 2.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        space: SearchSpace,
        hidden: int = 256,
        steps: int = 60,
        batch_size: int = 128,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        held_out: int = 5,
    ) -> None:
        super().__init__()
        if min(hidden, steps, batch_size) < 1:
            raise ValueError(f"hidden, steps and batch_size are {hidden}, {steps} and {batch_size}; at least 1 each")
        if held_out < 2:
            raise ValueError(f"held_out is {held_out}; one sample in so many is held out, at least 2")
        self.sizes, self.steps, self.batch_size, self.held_out = space.sizes, steps, batch_size, held_out
        self.settings = {"hidden": hidden, "steps": steps, "batch_size": batch_size, "lr": lr}
        self.settings |= {"weight_decay": weight_decay, "held_out": held_out}
        width = sum(self.sizes)
        self.encoder = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.linear, self.value = nn.Linear(width, 1), nn.Linear(hidden, 1)
        self.error = nn.Sequential(nn.Linear(hidden, hidden // 4 or 1), nn.ReLU(), nn.Linear(hidden // 4 or 1, 1))
        for layer in (self.linear, self.value):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=lr, weight_decay=weight_decay)
        self.samples: list[tuple[Tokens, float]] = []

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """V and U, both (B,) in units of the reward, of sequences (B, L)."""
        value, error = self._scaled(tokens)
        return value * self.deviation + self.mean, error * self.deviation

    def _scaled(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """V and U in units of the standardised reward."""
        columns = [F.one_hot(tokens[:, i], size) for i, size in enumerate(self.sizes)]
        x = torch.cat(columns, 1).to(self.mean)
        features = self.encoder(x)
        value = self.linear(x)[:, 0] + self.value(features)[:, 0]
        return value, F.softplus(self.error(features.detach())[:, 0])

    @torch.no_grad()
    def predict(self, tokens: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
        """V and U of token sequences."""
        return self(as_tensor(tokens))

    def add(self, tokens: Tokens, reward: float) -> None:
        """Keep a sample whose reward comes from a real training; never one of the critic's own predictions."""
        if not math.isfinite(reward):
            raise ValueError(f"reward is {reward}; it must be finite")
        self.samples.append((tuple(tokens), float(reward)))

    def held(self) -> Tensor:
        """Which samples, (N,), are held out from V: every so-manyth in the order of their coming."""
        return torch.arange(len(self.samples)) % self.held_out == self.held_out - 1

    def fit(self, generator: torch.Generator) -> None:
        """Train V on the samples that are not held out, U on those that are; nothing happens below two of each."""
        held = self.held()
        if int(held.sum()) < 2 or int((~held).sum()) < 2:
            return
        tokens = as_tensor([tokens for tokens, _ in self.samples])
        rewards = torch.tensor([reward for _, reward in self.samples])
        self.mean.copy_(rewards.mean())
        self.deviation.copy_(rewards.std(unbiased=False).clamp(min=1e-6))
        targets = (rewards - self.mean) / self.deviation
        fitted, judged = (~held).nonzero()[:, 0], held.nonzero()[:, 0]
        for _ in range(self.steps):
            ours, others = (_draw(part, self.batch_size, generator) for part in (fitted, judged))
            value, _ = self._scaled(tokens[ours])
            guess, uncertainty = self._scaled(tokens[others])
            error = (guess.detach() - targets[others]).abs()
            loss = F.l1_loss(value, targets[ours]) + F.l1_loss(uncertainty, error)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    @property
    def configuration(self) -> dict[str, Any]:
        """Plain values by which a resumed search knows its critic again."""
        return {"name": type(self).__name__, **self.settings}

    def snapshot(self) -> dict[str, Any]:
        """Weights, optimiser and samples."""
        samples = [[list(tokens), reward] for tokens, reward in self.samples]
        return {"weights": self.state_dict(), "optimizer": self.optimizer.state_dict(), "samples": samples}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`snapshot` gave."""
        self.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.samples = [(tuple(tokens), reward) for tokens, reward in state["samples"]]


def _draw(indices: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """At most ``most`` of ``indices``, drawn without replacement."""
    return indices[torch.randperm(len(indices), generator=generator)[:most]]


@dataclass
class UncertaintyThreshold:
    """Which samples the critic is sure of: U below a quantile of the uncertainties seen last (inferred).

    The quantile is 0 up to ``start`` real trainings, rises linearly to ``quantile`` at ``end`` and stays. A share of
    the samples is trained whatever the critic says, so that it cannot settle in its own opinion.

    Args:
        quantile: share of samples that is spared in the end, as long as their uncertainties are alike.
        start: real trainings up to which every sample is trained.
        end: real trainings from which the quantile holds.
        window: uncertainties that the quantile is taken of.
        always: share of samples that is trained in any case.
    """

    quantile: float = 0.5
    start: int = 64
    end: int = 256
    window: int = 256
    always: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.quantile < 1:
            raise ValueError(f"quantile is {self.quantile}; it must be at least 0 and below 1")
        if not 0 <= self.start <= self.end:
            raise ValueError(f"start and end are {self.start} and {self.end}; they must be at least 0 and in order")
        if self.window < 1:
            raise ValueError(f"window is {self.window}; it must be at least 1")
        if not 0 < self.always <= 1:
            raise ValueError(f"always is {self.always}; it must be above 0 and at most 1")
        self.seen: list[float] = []

    def sure(self, uncertainties: Tensor, trainings: int, generator: torch.Generator) -> Tensor:
        """Which of the samples (B,) need no training, after so many real ``trainings``."""
        span = max(1, self.end - self.start)
        quantile = self.quantile * min(1.0, max(0.0, (trainings - self.start) / span))
        spared = torch.zeros(len(uncertainties), dtype=torch.bool)
        if quantile > 0 and self.seen:
            tau = torch.tensor(self.seen, dtype=torch.float64).quantile(quantile)
            chance = torch.rand(len(uncertainties), generator=generator)
            spared = (uncertainties.double() < tau) & (chance >= self.always)
        if trainings >= self.start:
            self.seen = [*self.seen, *uncertainties.double().tolist()][-self.window :]
        return spared

    @property
    def configuration(self) -> dict[str, Any]:
        """Plain values by which a resumed search knows its threshold again."""
        return asdict(self)

    def state_dict(self) -> dict[str, Any]:
        """The uncertainties seen last."""
        return {"seen": list(self.seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the uncertainties of ``state``."""
        self.seen = list(state["seen"])
