"""Drivers of AFFormer's parity vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from repertory.parity import Case, Driver
from repertory.systems.afformer.authors import from_authors
from repertory.systems.afformer.model import (
    WINDOWS,
    AdaptiveFrequencyFilter,
    AFFormer,
    AFFormerSegmentor,
    HighPassFilters,
    PrototypeEncoder,
)

Model = TypeVar("Model", bound=nn.Module)
SIZES = ("embed_dims", "num_layers", "num_heads", "mlp_ratios")


def _windows(config: Mapping[str, Any]) -> dict[int, int]:
    return {int(side): heads for side, heads in config.get("window", WINDOWS).items()}


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    if set(config["num_path"]) != {1}:
        raise ValueError(f"num_path is {config['num_path']}; the published networks have one path a stage")
    rates = {"drop_path": config["drop_path_rate"]} if "drop_path_rate" in config else {}
    return {name: config[name] for name in SIZES} | rates | {"windows": _windows(config)}


def _ready(model: Model, case: Case) -> Model:
    return model.to(case.dtype).train(case.config.get("mode", "eval") == "train")


class _Pyramid(nn.Module):
    """The maps of all stages."""

    def __init__(self, model: AFFormer) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {f"stage{index}": found for index, found in enumerate(self.model.forward_pyramid(x))}


def backbone(case: Case) -> dict[str, Tensor]:
    """The map of each stage."""
    x = case.input("x")
    model = _Pyramid(_ready(AFFormer(0, x.shape[1], **_settings(case.config)), case))
    run = case.bind(model, lambda state: {f"model.{k}": v for k, v in from_authors(state).items()})
    outputs = run(x)
    return outputs | case.gradients(outputs[max(outputs)].sum())


class _Logits(nn.Module):
    """Logits at the stride of the last stage."""

    def __init__(self, model: AFFormerSegmentor) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.forward_head(self.model.forward_features(x))


def segmentor(case: Case) -> dict[str, Tensor]:
    """Logits before they are resized to the image."""
    config, x = case.config, case.input("x")
    sizes = {name: config[name] for name in ("channels", "norm_groups") if name in config}
    model = AFFormerSegmentor(config["num_classes"], x.shape[1], **sizes, **_settings(config))
    run = case.bind(
        _Logits(_ready(model, case)), lambda state: {f"model.{k}": v for k, v in from_authors(state).items()}
    )
    out = run(x)
    return {"out": out} | case.gradients(out.sum())


def _image(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Row-major tokens (B, H W, C) as (B, H, W, C)."""
    return tokens.unflatten(1, tuple(size))


def encoder(case: Case) -> dict[str, Tensor]:
    """Tokens (B, H W, C) in, (B, C, H, W) out."""
    config = case.config
    model = PrototypeEncoder(
        config["dim"], config["num_heads"], config["mlp_ratio"], [0.0] * config["num_layers"], _windows(config)
    )
    run = case.bind(_ready(model, case), from_authors)
    out = run(_image(case.input("x"), config["size"]).permute(0, 3, 1, 2))
    return {"out": out} | case.gradients(out.sum())


class _FilterAlone(nn.Module):
    """The filter with a bank of its own, on tokens."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.attn = AdaptiveFrequencyFilter(config["dim"], config["num_heads"], config.get("qkv_bias", True))
        self.filters = HighPassFilters(config["dim"], config["num_heads"], _windows(config))
        self.size = config["size"]

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(_image(x, self.size), self.filters).flatten(1, 2)


def _filter_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    converted = from_authors(state)
    return {name if name.startswith("filters.") else f"attn.{name}": value for name, value in converted.items()}


def frequency_filter(case: Case) -> dict[str, Tensor]:
    """The filter alone, tokens in and out; gradients against ``grad_out`` where there is one, else of the sum."""
    out = case.bind(_ready(_FilterAlone(case.config), case), _filter_names)(case.input("x"))
    weighted = out * case.input("grad_out") if "grad_out" in case.inputs else out
    return {"out": out} | case.gradients(weighted.sum())


DRIVERS: dict[str, Driver] = {
    "backbone": backbone,
    "segmentor": segmentor,
    "encoder": encoder,
    "frequency_filter": frequency_filter,
    "frequency_filter_grad": frequency_filter,
}
