"""Mixing as a control of difficulty: how strongly images are mixed follows what the network finds easy.

Zhou et al., "Effective Vision Transformer Training: A Data-Centric Perspective", arXiv 2209.15006. A pair mixed at
equal parts is hard, one of which little is mixed in is easy. That the paper adjusts this, by period (static) or by
measure (dynamic), is from a summary of it; both policies here are inferred, and any callable of their kind may stand
in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from repertory.systems.patch_erasing.periods import periods_of

# From the figures of all epochs so far (each with "easy" and "hard") to the parameter a of Beta(a, a) for the next.
MixingPolicy = Callable[[Sequence[Mapping[str, float]]], float]


class FollowProportion:
    """Dynamic: a = lowest + (highest - lowest) min(easy / target, 1), by the share of easy samples in the last epoch.

    Inferred. ValueError where not 0 < lowest <= highest, or for a target outside (0, 1].
    """

    def __init__(self, lowest: float = 0.2, highest: float = 1.0, target: float = 0.5) -> None:
        if not 0 < lowest <= highest:
            raise ValueError(f"lowest and highest are {lowest} and {highest}; they must be 0 < lowest <= highest")
        if not 0 < target <= 1:
            raise ValueError(f"target is {target}; it must be above 0 and at most 1")
        self.lowest, self.highest, self.target = lowest, highest, target

    def __call__(self, history: Sequence[Mapping[str, float]]) -> float:
        """The parameter for the epoch after ``history``."""
        easy = history[-1]["easy"] if history else 0.0
        return self.lowest + (self.highest - self.lowest) * min(easy / self.target, 1.0)


class FollowPeriod:
    """Static: one parameter for each period of training, told from the epochs so far.

    Inferred. ValueError for a parameter that is not above 0.
    """

    def __init__(self, formation: float = 0.2, growth: float = 0.5, exploration: float = 1.0) -> None:
        self.parameters = {"formation": formation, "growth": growth, "exploration": exploration}
        for name, value in self.parameters.items():
            if not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0")

    def __call__(self, history: Sequence[Mapping[str, float]]) -> float:
        """The parameter for the epoch after ``history``."""
        periods = periods_of([past["easy"] for past in history], [past["hard"] for past in history])
        # What the last epoch belongs to; before the first there is only formation.
        return self.parameters[periods.at(len(history) - 1) if history else "formation"]


def mixup(images: Tensor, labels: Tensor, parameter: float, num_classes: int) -> tuple[Tensor, Tensor]:
    """Each of ``images`` (B, C, H, W) mixed with another of the batch, and soft labels (B, ``num_classes``).

    One weight, drawn from Beta(``parameter``, ``parameter``), for the batch; ``labels`` are (B,) or already soft.
    """
    weight = float(torch.distributions.Beta(parameter, parameter).sample())
    soft = labels if labels.ndim == 2 else F.one_hot(labels, num_classes).to(images.dtype)
    return images.lerp(images.flip(0), 1 - weight), soft.lerp(soft.flip(0), 1 - weight)
