"""FNAS: reinforcement-learning architecture search made cheaper. Nothing is imported until it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repertory.systems.fnas.cost import LatencyTable, MultiplyAdds, cheapest
    from repertory.systems.fnas.critic import UncertaintyAwareCritic, UncertaintyThreshold
    from repertory.systems.fnas.evaluator import TrainedAccuracy
    from repertory.systems.fnas.model import MobileNetwork
    from repertory.systems.fnas.plots import plot_rewards
    from repertory.systems.fnas.policy import PPO, FactorisedPolicy, LSTMPolicy, UniformPolicy
    from repertory.systems.fnas.pool import DescriptorSimilarity, KnowledgePool
    from repertory.systems.fnas.replay import ExperienceBuffer, TruncatedImportance, Uncorrected
    from repertory.systems.fnas.reward import WeighedReward, weighed_accuracy
    from repertory.systems.fnas.searching import SearchResult, SearchSettings, search
    from repertory.systems.fnas.space import Architecture, Block, SearchSpace, Stage, miniature
    from repertory.systems.fnas.trials import Outcome, Trial

_HOMES = {
    "Architecture": "space",
    "Block": "space",
    "DescriptorSimilarity": "pool",
    "ExperienceBuffer": "replay",
    "FactorisedPolicy": "policy",
    "KnowledgePool": "pool",
    "LSTMPolicy": "policy",
    "LatencyTable": "cost",
    "MobileNetwork": "model",
    "MultiplyAdds": "cost",
    "Outcome": "trials",
    "PPO": "policy",
    "SearchResult": "searching",
    "SearchSettings": "searching",
    "SearchSpace": "space",
    "Stage": "space",
    "TrainedAccuracy": "evaluator",
    "Trial": "trials",
    "TruncatedImportance": "replay",
    "UncertaintyAwareCritic": "critic",
    "UncertaintyThreshold": "critic",
    "Uncorrected": "replay",
    "UniformPolicy": "policy",
    "WeighedReward": "reward",
    "cheapest": "cost",
    "miniature": "space",
    "plot_rewards": "plots",
    "search": "searching",
    "weighed_accuracy": "reward",
}
__all__ = [
    "PPO",
    "Architecture",
    "Block",
    "DescriptorSimilarity",
    "ExperienceBuffer",
    "FactorisedPolicy",
    "KnowledgePool",
    "LSTMPolicy",
    "LatencyTable",
    "MobileNetwork",
    "MultiplyAdds",
    "Outcome",
    "SearchResult",
    "SearchSettings",
    "SearchSpace",
    "Stage",
    "TrainedAccuracy",
    "Trial",
    "TruncatedImportance",
    "UncertaintyAwareCritic",
    "UncertaintyThreshold",
    "Uncorrected",
    "UniformPolicy",
    "WeighedReward",
    "cheapest",
    "miniature",
    "plot_rewards",
    "search",
    "weighed_accuracy",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
