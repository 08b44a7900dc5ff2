"""Features and logits of any classifier in one forward pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from repertory.training.method import Outputs


def features_and_logits(model: nn.Module, images: Tensor) -> Outputs:
    """Run ``model`` on ``images`` (B, C, H, W): ``features`` (B, D) before the classifier, ``logits`` (B, classes).

    The logits are exactly ``model(images)``. Features are what enters ``model.get_classifier()`` (our models and
    timm's), or the last linear layer of a model without that method; a model with several classifiers gives
    ``forward_head(…, pre_logits=True)``. ValueError where a model offers none of these.
    """
    classifier = _classifier(model)
    if classifier is None:
        return _from_heads(model, images)
    entered: list[Tensor] = []
    handle = classifier.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    try:
        logits = model(images)
    finally:
        handle.remove()
    if not entered:
        raise ValueError(f"{type(model).__name__} did not call its classifier, so its features cannot be read")
    return Outputs(entered[-1].flatten(1), logits)


def _classifier(model: Any) -> nn.Module | None:
    """The one layer that makes logits of pooled features, or None where there are several."""
    if hasattr(model, "get_classifier"):
        found = model.get_classifier()
        return found if isinstance(found, nn.Module) and not isinstance(found, nn.ModuleList) else None
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        name = type(model).__name__
        raise ValueError(f"{name} has neither get_classifier() nor a linear layer to read features from")
    return linear[-1]


def _from_heads(model: Any, images: Tensor) -> Outputs:
    last = model.forward_features(images)
    return Outputs(model.forward_head(last, pre_logits=True).flatten(1), model.forward_head(last))
