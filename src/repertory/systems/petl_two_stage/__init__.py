"""Two-stage parameter-efficient transfer: layer norms, then task-relevant channels. Imports nothing until asked."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repertory.systems.petl_two_stage.adapter import ChannelAdapter, adapters, insert_adapters, tune_channels
    from repertory.systems.petl_two_stage.channels import norm_scores, random_scores, select_channels, taylor_scores
    from repertory.systems.petl_two_stage.layer_norm import parameter_groups, tune_layer_norms
    from repertory.systems.petl_two_stage.merging import merge
    from repertory.systems.petl_two_stage.method import ChannelTuning, LayerNormTuning
    from repertory.systems.petl_two_stage.recipes import RELATED_RECIPES
    from repertory.systems.petl_two_stage.tuned import load_tuned, save_tuned

_HOMES = {
    "ChannelAdapter": "adapter",
    "ChannelTuning": "method",
    "LayerNormTuning": "method",
    "RELATED_RECIPES": "recipes",
    "adapters": "adapter",
    "insert_adapters": "adapter",
    "load_tuned": "tuned",
    "merge": "merging",
    "norm_scores": "channels",
    "parameter_groups": "layer_norm",
    "random_scores": "channels",
    "save_tuned": "tuned",
    "select_channels": "channels",
    "taylor_scores": "channels",
    "tune_channels": "adapter",
    "tune_layer_norms": "layer_norm",
}
__all__ = [
    "RELATED_RECIPES",
    "ChannelAdapter",
    "ChannelTuning",
    "LayerNormTuning",
    "adapters",
    "insert_adapters",
    "load_tuned",
    "merge",
    "norm_scores",
    "parameter_groups",
    "random_scores",
    "save_tuned",
    "select_channels",
    "taylor_scores",
    "tune_channels",
    "tune_layer_norms",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
