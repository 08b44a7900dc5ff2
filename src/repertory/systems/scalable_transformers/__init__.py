"""Scalable Transformers: one network that holds many smaller ones. Nothing is imported until it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repertory.systems.scalable_transformers.crops import Crop, CropSpace
    from repertory.systems.scalable_transformers.losses import distillation_loss, sub_model_losses
    from repertory.systems.scalable_transformers.method import ScalableTraining
    from repertory.systems.scalable_transformers.model import (
        ScalableViT,
        scalable_deit_base,
        scalable_deit_small,
        scalable_deit_tiny,
    )
    from repertory.systems.scalable_transformers.translation_model import ScalableTransformer
    from repertory.systems.scalable_transformers.translation_scores import bleu, token_accuracy
    from repertory.systems.scalable_transformers.translation_search import beam_search, translate
    from repertory.systems.scalable_transformers.translation_training import TranslationSettings, fit_translation

_HOMES = {
    "Crop": "crops",
    "CropSpace": "crops",
    "ScalableTraining": "method",
    "ScalableTransformer": "translation_model",
    "ScalableViT": "model",
    "TranslationSettings": "translation_training",
    "beam_search": "translation_search",
    "bleu": "translation_scores",
    "distillation_loss": "losses",
    "fit_translation": "translation_training",
    "scalable_deit_base": "model",
    "scalable_deit_small": "model",
    "scalable_deit_tiny": "model",
    "sub_model_losses": "losses",
    "token_accuracy": "translation_scores",
    "translate": "translation_search",
}
__all__ = [
    "Crop",
    "CropSpace",
    "ScalableTraining",
    "ScalableTransformer",
    "ScalableViT",
    "TranslationSettings",
    "beam_search",
    "bleu",
    "distillation_loss",
    "fit_translation",
    "scalable_deit_base",
    "scalable_deit_small",
    "scalable_deit_tiny",
    "sub_model_losses",
    "token_accuracy",
    "translate",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
