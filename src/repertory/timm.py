"""Our backbones in timm: ``import repertory.timm``, then ``timm.create_model("dilateformer_tiny", …)``.

A room's model module lists its backbones in ``BACKBONES``: the name of a model in its card, then what timm must know,
``feature_cfg``, ``first_conv`` and ``classifier``. No weights are distributed: ``pretrained=True`` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from repertory.catalog import cards, entry
from repertory.data.preprocessing import Preprocessing

TIMM_NAMES = {"drop_rate": "drop", "drop_path_rate": "drop_path"}  # timm's names of our settings


def _backbones() -> Iterator[tuple[str, Callable[..., nn.Module], Mapping[str, Any], Preprocessing]]:
    """Name, builder, timm's facts and input description of each backbone in the cards."""
    for card in cards().values():
        for name, reference in card.models.items():
            module = import_module(f"repertory.systems.{card.slug}.{reference.partition(':')[0]}")
            if name in getattr(module, "BACKBONES", {}):
                yield name, entry(card.slug, reference), module.BACKBONES[name], module.PREPROCESSING


def _describe(facts: Mapping[str, Any], preprocessing: Preprocessing) -> dict[str, Any]:
    """What timm writes about a model, with no address of weights."""
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (len(preprocessing.mean), *preprocessing.size),
        "interpolation": preprocessing.interpolation,
        "crop_pct": preprocessing.crop,
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "classifier": facts["classifier"],
        "first_conv": facts["first_conv"],
    }


def _entry_point(
    name: str, builder: Callable[..., nn.Module], feature_cfg: Mapping[str, Any]
) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        if pretrained:
            raise ValueError(
                f"pretrained is True, but no weights of {name} are distributed; it must be False, "
                f"and repertory.create_model({name!r}, checkpoint=FILE) loads the authors' file"
            )
        settings = {TIMM_NAMES.get(key, key): value for key, value in kwargs.items()}
        return build_model_with_cfg(builder, name, False, feature_cfg=dict(feature_cfg), **settings)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = builder.__doc__
    return create


_found = list(_backbones())
default_cfgs = generate_default_cfgs(
    {name: _describe(facts, preprocessing) for name, _, facts, preprocessing in _found}
)
__all__: list[str] = []  # register_model adds the names of the entry points
for _name, _builder, _facts, _ in _found:
    globals()[_name] = register_model(_entry_point(_name, _builder, _facts["feature_cfg"]))
