"""The policy that writes architectures token by token, and its optimisation by PPO.

Everything here is inferred: of FNAS's controller only PPO could be read. A policy is anything with ``sample`` and
``forward`` as :class:`Policy` has them; an episode is one architecture with one reward, so nothing is discounted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repertory.systems.fnas.space import SearchSpace


class Policy(nn.Module, ABC):
    """A distribution over the token sequences of ``space``."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.sizes, self.kinds = space.sizes, len(space.options)

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` sequences (count, L), drawn by ``generator``."""

    @abstractmethod
    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability and mean entropy of a token, both (B,) in float64, along the sequences ``tokens`` (B, L)."""

    @property
    def configuration(self) -> dict[str, Any]:
        """Plain values by which a resumed search knows its policy again."""
        return {"name": type(self).__name__}


class LSTMPolicy(Policy):
    """One LSTM layer reads the tokens so far; one softmax for each kind of token, the same in all blocks (inferred).

    The place in the sequence is embedded beside the last token, since kinds share their softmax over the blocks. The
    softmaxes start at zero, so that the first samples are uniform.

    Args:
        space: whose tokens are written.
        hidden: units of the LSTM.
        embedding: width of embedded tokens and places.
    """

    offsets: Tensor

    def __init__(self, space: SearchSpace, hidden: int = 100, embedding: int = 32) -> None:
        super().__init__(space)
        self.hidden, self.embedding = hidden, embedding
        offsets = [0]
        for size in self.sizes:
            offsets.append(offsets[-1] + size)
        self.register_buffer("offsets", torch.tensor(offsets[:-1]), persistent=False)
        self.token = nn.Embedding(offsets[-1] + 1, embedding)  # the last one stands before the first token
        self.place = nn.Embedding(len(self.sizes), embedding)
        self.lstm = nn.LSTM(embedding, hidden, batch_first=True)
        heads = [nn.Linear(hidden, size) for size in space.options]
        for head in heads:
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.heads = nn.ModuleList(heads)

    @property
    def configuration(self) -> dict[str, Any]:
        """Plain values by which a resumed search knows its policy again."""
        return {**super().configuration, "hidden": self.hidden, "embedding": self.embedding}

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` sequences (count, L), drawn by ``generator`` one token after the other."""
        before = self._start(count)
        state: tuple[Tensor, Tensor] | None = None
        drawn = []
        for place in range(len(self.sizes)):
            embedded = self.token(before) + self.place.weight[place]
            read, state = self.lstm(embedded[:, None], state)
            chances = self.heads[place % self.kinds](read[:, 0]).double().softmax(1)
            drawn.append(torch.multinomial(chances, 1, generator=generator)[:, 0])
            before = drawn[-1] + self.offsets[place]
        return torch.stack(drawn, 1)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability and mean entropy of a token, both (B,) in float64, along the sequences ``tokens`` (B, L)."""
        before = torch.cat([self._start(len(tokens))[:, None], (tokens + self.offsets)[:, :-1]], 1)
        read, _ = self.lstm(self.token(before) + self.place.weight)
        total = torch.zeros(len(tokens), dtype=torch.float64)
        entropy = torch.zeros(len(tokens), dtype=torch.float64)
        for kind, head in enumerate(self.heads):
            logs = head(read[:, kind :: self.kinds]).double().log_softmax(2)
            total = total + logs.gather(2, tokens[:, kind :: self.kinds, None]).sum((1, 2))
            entropy = entropy - (logs.exp() * logs).sum((1, 2))
        return total, entropy / len(self.sizes)

    def _start(self, count: int) -> Tensor:
        return torch.full((count,), self.token.num_embeddings - 1)


class FactorisedPolicy(Policy):
    """Independent tokens, each with logits of its own: the simplest policy that can learn (inferred)."""

    absent: Tensor

    def __init__(self, space: SearchSpace) -> None:
        super().__init__(space)
        self.logits = nn.Parameter(torch.zeros(len(self.sizes), max(self.sizes), dtype=torch.float64))
        absent = torch.arange(max(self.sizes)) >= torch.tensor(self.sizes)[:, None]
        self.register_buffer("absent", absent, persistent=False)

    def _logs(self) -> Tensor:
        return self.logits.masked_fill(self.absent, -1e9).log_softmax(1)

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` sequences (count, L), drawn by ``generator``."""
        return torch.multinomial(self._logs().exp(), count, replacement=True, generator=generator).T.contiguous()

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability and mean entropy of a token, both (B,) in float64, along the sequences ``tokens`` (B, L)."""
        logs = self._logs()
        entropy = -(logs.exp() * logs).sum(1).mean()
        return logs.gather(1, tokens.T).sum(0), entropy.expand(len(tokens))


class UniformPolicy(Policy):
    """Random search: every sequence is as likely as any other, for good."""

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` sequences (count, L), drawn by ``generator``."""
        drawn = [torch.randint(size, (count,), generator=generator) for size in self.sizes]
        return torch.stack(drawn, 1)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability and mean entropy of a token, both (B,) in float64, along the sequences ``tokens`` (B, L)."""
        logs = torch.tensor(self.sizes, dtype=torch.float64).log()
        return (-logs.sum()).expand(len(tokens)), logs.mean().expand(len(tokens))


@dataclass(frozen=True)
class Batch:
    """What a policy learns from: ``tokens`` (B, L), ``rewards`` (B,), and ``weights`` (B,) of the samples."""

    tokens: Tensor
    rewards: Tensor
    weights: Tensor


@dataclass(frozen=True)
class PPO:
    """Proximal policy optimisation of one-step episodes (inferred, as to every number).

    The advantage is the reward, standardised over the batch: any baseline that does not depend on the sample cancels.

    Args:
        lr: of Adam.
        clip: epsilon; the probability ratio is clipped to 1 - clip to 1 + clip.
        epochs: steps over one batch.
        entropy: factor of the mean entropy of a token, which is added to the objective.
        clip_grad: largest norm of the gradient.
    """

    lr: float = 3.5e-4
    clip: float = 0.2
    epochs: int = 4
    entropy: float = 1e-2
    clip_grad: float = 1.0

    def __post_init__(self) -> None:
        if not self.lr > 0 or not self.clip_grad > 0:
            raise ValueError(f"lr and clip_grad are {self.lr} and {self.clip_grad}; they must be above 0")
        if not 0 < self.clip < 1:
            raise ValueError(f"clip is {self.clip}; it must be above 0 and below 1")
        if self.epochs < 1:
            raise ValueError(f"epochs is {self.epochs}; it must be at least 1")
        if not self.entropy >= 0:
            raise ValueError(f"entropy is {self.entropy}; it must be at least 0")

    def optimizer(self, policy: Policy) -> torch.optim.Optimizer | None:
        """Adam over the policy, or None where it has nothing to learn."""
        learned = list(policy.parameters())
        return torch.optim.Adam(learned, lr=self.lr) if learned else None

    def loss(self, policy: Policy, batch: Batch, log_old: Tensor) -> Tensor:
        """What is minimised, given the log-probabilities ``log_old`` (B,) before the update."""
        log_now, entropy = policy(batch.tokens)
        ratio = (log_now - log_old).clamp(-20, 20).exp()
        advantage = standardised(batch.rewards.double())
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - self.clip, 1 + self.clip) * advantage)
        return -(batch.weights.double() * gain).mean() - self.entropy * entropy.mean()

    def update(self, policy: Policy, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
        """Improve ``policy`` on ``batch``."""
        with torch.no_grad():
            log_old, _ = policy(batch.tokens)
        for _ in range(self.epochs):
            optimizer.zero_grad()
            self.loss(policy, batch, log_old).backward()
            nn.utils.clip_grad_norm_(policy.parameters(), self.clip_grad)
            optimizer.step()

    @property
    def configuration(self) -> dict[str, Any]:
        """Plain values by which a resumed search knows its optimisation again."""
        return {"name": "PPO", **asdict(self)}


def standardised(rewards: Tensor) -> Tensor:
    """``rewards`` (B,) less their mean, over their deviation; zeros where all are equal."""
    deviation = rewards.std(unbiased=False)
    centred = rewards - rewards.mean()
    return centred / deviation if deviation > 1e-12 else torch.zeros_like(rewards)


def as_tensor(tokens: Sequence[Sequence[int]]) -> Tensor:
    """Token sequences as a tensor (B, L)."""
    return torch.tensor([tuple(row) for row in tokens], dtype=torch.long)
