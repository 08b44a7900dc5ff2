"""Stage one: only the scale and shift of every LayerNorm, and the head, are tuned.

Zhao et al., "Revisit Parameter-Efficient Transfer Learning: A Two-Stage Paradigm", arXiv 2303.07910. A frozen,
pre-trained transformer meets a small data set of another distribution; the norms' affine maps move its features there.
Of ViT-B/16 that is (2 x 12 + 1) x 2 x 768 = 38,400 parameters beside the head. What is tuned changes values only: the
network at inference is the one that was given.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


def layer_norms(model: nn.Module) -> dict[str, nn.LayerNorm]:
    """Every LayerNorm of ``model`` that has a scale, by its name; ``ValueError`` where there is none."""
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm) and module.weight is not None
    }
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no LayerNorm with a scale and shift; stage one tunes nothing else"
        )
    return found


def heads(model: Any) -> list[nn.Module]:
    """The layers of ``model`` that make logits: of ``get_classifier()`` (timm's and ours), else the last linear layer.

    Raises:
        ValueError: where there is none: the new task needs a head of its own.
    """
    if hasattr(model, "get_classifier"):
        found = model.get_classifier()
        layers = list(found) if isinstance(found, (tuple, list, nn.ModuleList)) else [found]
    else:
        layers = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    if not any(True for layer in layers for _ in layer.parameters()):
        raise ValueError(f"{type(model).__name__} has no classifier; give it one of the new task's classes first")
    return layers


def tune_layer_norms(model: nn.Module) -> list[nn.Parameter]:
    """Freeze all of ``model`` but the LayerNorms' scales and shifts and the head; return these, the norms' first.

    Raises:
        ValueError: where ``model`` has no LayerNorm or no head.
    """
    return train_only(model, [*_parameters(layer_norms(model).values()), *_parameters(heads(model))])


def train_only(model: nn.Module, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    """Let ``parameters`` take gradients and nothing else of ``model``; return them, each once."""
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    return list(dict.fromkeys(parameters))


def norm_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Scales and shifts of the LayerNorms of ``model``, in their order; empty where there are none."""
    return _parameters(module for module in model.modules() if isinstance(module, nn.LayerNorm))


def parameter_groups(model: nn.Module, weight_decay: float, norm_weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """What takes gradients, as two groups for an optimiser: all but the norms, and the norms.

    Decay would pull the norms' scales towards zero, away from what the network was trained with, so theirs is zero
    unless ``norm_weight_decay`` says otherwise. An empty group is left out.
    """
    norms = set(map(id, norm_parameters(model)))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in norms], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in norms], "weight_decay": norm_weight_decay},
    ]
    return [group for group in groups if group["params"]]


def _parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    return [parameter for module in modules for parameter in module.parameters()]
