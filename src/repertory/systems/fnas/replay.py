"""The architecture experience buffer: past samples replayed beside new ones, with an off-policy correction.

Half of a batch being replayed is the paper's; the correction is inferred, and an argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from repertory.systems.fnas.policy import as_tensor
from repertory.systems.fnas.space import Tokens

Correction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TruncatedImportance:
    """Weight min(c, pi_old / pi_behaviour) of a replayed sample, computed in log space (inferred, after V-trace).

    Args:
        truncation: c; infinite leaves the weight unbiased and its variance unbounded.
    """

    truncation: float = 1.0

    def __post_init__(self) -> None:
        if not self.truncation > 0:
            raise ValueError(f"truncation is {self.truncation}; it must be above 0")

    def __call__(self, log_old: Tensor, log_behaviour: Tensor) -> Tensor:
        """Weights (B,) from log-probabilities (B,), in float64, of the policy now and when the samples were drawn."""
        return (log_old.double() - log_behaviour.double()).clamp(max=math.log(self.truncation)).exp()


@dataclass(frozen=True)
class Uncorrected:
    """Weight 1 for every replayed sample, however old: what the correction is compared with."""

    def __call__(self, log_old: Tensor, log_behaviour: Tensor) -> Tensor:
        """Ones (B,)."""
        return torch.ones_like(log_old)


class ExperienceBuffer:
    """The last samples with a real reward, first in, first out.

    Args:
        capacity: samples kept.
        share: of a batch that is replayed, once so many are there; the paper's half.
        correction: weight of a replayed sample by its log-probability now and then; inferred, see
            :class:`TruncatedImportance`.
    """

    def __init__(self, capacity: int = 512, share: float = 0.5, correction: Correction | None = None) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; it must be at least 1")
        if not 0 < share < 1:
            raise ValueError(f"share is {share}; it must be above 0 and below 1")
        self.capacity, self.share = capacity, share
        self.correction: Correction = correction or TruncatedImportance()
        self.entries: list[tuple[Tokens, float, float]] = []

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, tokens: Tokens, reward: float, log_behaviour: float) -> None:
        """Keep a sample with the log-probability that the policy gave it when it drew it."""
        if not math.isfinite(reward) or not math.isfinite(log_behaviour):
            raise ValueError(f"reward and log_behaviour are {reward} and {log_behaviour}; they must be finite")
        self.entries = [*self.entries, (tuple(tokens), reward, log_behaviour)][-self.capacity :]

    def replayed(self, batch_size: int) -> int:
        """How many of a batch are replayed now: the share, or none while there are fewer samples than that."""
        wanted = int(batch_size * self.share)
        return wanted if len(self) >= wanted else 0

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """``count`` different samples: tokens (count, L), rewards and behaviour log-probabilities (count,) float64."""
        if not 0 < count <= len(self):
            raise ValueError(f"count is {count}; the buffer holds {len(self)} samples")
        chosen = [self.entries[i] for i in torch.randperm(len(self), generator=generator)[:count].tolist()]
        tokens, rewards, logs = zip(*chosen, strict=True)
        return as_tensor(tokens), torch.tensor(rewards, dtype=torch.float64), torch.tensor(logs, dtype=torch.float64)

    @property
    def configuration(self) -> dict[str, Any]:
        """Plain values by which a resumed search knows its buffer again."""
        correction: Any = self.correction
        values = asdict(correction) if hasattr(correction, "__dataclass_fields__") else {}
        name = getattr(correction, "__name__", type(correction).__name__)
        return {"capacity": self.capacity, "share": self.share, "correction": {"name": name, **values}}

    def state_dict(self) -> dict[str, Any]:
        """The samples."""
        return {"entries": [[list(tokens), reward, log] for tokens, reward, log in self.entries]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the samples of ``state``."""
        self.entries = [(tuple(tokens), reward, log) for tokens, reward, log in state["entries"]]
