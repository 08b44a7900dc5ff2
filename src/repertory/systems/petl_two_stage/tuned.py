"""What tuning changed, as a file of kilobytes: norms, adapters with their channels, and the head.

A safetensors file holds values under the names that they have in the model, the channels as integers among them, and in
its metadata the place and scale of the adapters, the class names, and a fingerprint of all that was frozen: tuned
values mean nothing on another base. (The related code keeps the channels nowhere, so that its files cannot be used
without choosing them again on the same data.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from repertory.files import Replacement
from repertory.systems.petl_two_stage.adapter import adapters, insert_adapters, placed, transformer_blocks
from repertory.systems.petl_two_stage.layer_norm import heads, layer_norms

ENTRY = "repertory.petl_two_stage"


def tuned_names(model: nn.Module) -> list[str]:
    """Names of the values that the two stages may tune: of norms, adapters (with their channels) and the head."""
    owners = [*layer_norms(model).values(), *adapters(model).values(), *heads(model)]
    return sorted(
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if any(module is owner for owner in owners)
        for name in module.state_dict()
    )


def tuned_state(model: nn.Module) -> dict[str, Tensor]:
    """The values of :func:`tuned_names`, on the CPU, copied."""
    state = model.state_dict()
    return {name: state[name].detach().to("cpu", copy=True).contiguous() for name in tuned_names(model)}


def fingerprint(model: nn.Module) -> str:
    """A digest of the names, shapes and values (as float32) of all that the two stages leave frozen."""
    tuned = set(tuned_names(model))
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if name not in tuned:
            plain = value.detach().cpu()
            plain = plain.float() if plain.is_floating_point() else plain
            digest.update(f"{name} {tuple(plain.shape)};".encode())
            digest.update(plain.contiguous().numpy().data)
    return digest.hexdigest()


def save_tuned(model: nn.Module, path: str | Path) -> Path:
    """Write the tuned values of ``model`` to the safetensors file ``path``: whole, or as it was.

    Raises:
        ValueError: where ``model`` has neither LayerNorms nor a head.
        OSError: where the file cannot be written.
    """
    from safetensors.torch import save_file

    found = adapters(model)
    classes = getattr(model, "class_names", None)
    description = {
        "base": fingerprint(model),
        "model": type(model).__name__,
        "place": placed(model),
        "scale": [adapter.scale for adapter in found.values()],
        "classes": [str(name) for name in classes] if classes is not None else None,
    }
    path = Path(path)
    with Replacement(path) as partial:
        save_file(tuned_state(model), partial, {"format": "pt", ENTRY: json.dumps(description)})
    return path


def load_tuned(model: Any, path: str | Path) -> nn.Module:
    """Bring what :func:`save_tuned` wrote onto its base ``model``, in place, and return it.

    Adapters are inserted where the file has some, and a head of another number of classes is made anew. Nothing is
    changed where anything does not fit.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for a damaged file or another's, a model with adapters, or one that is not the base.
    """
    path = Path(path)
    state, description = _read(path)
    if adapters(model):
        raise ValueError(f"{type(model).__name__} has channel adapters already; tuned values go onto the plain base")
    if fingerprint(model) != description["base"]:
        raise ValueError(
            f"{path} was tuned on another base than this {type(model).__name__}: it fits a {description['model']} "
            "with the very weights that were frozen when it was tuned"
        )
    indices = _indices(model, state)
    _fit_head(model, state)
    if indices:
        for adapter, scale in zip(
            insert_adapters(model, indices, place=description["place"]), description["scale"], strict=True
        ):
            adapter.scale = float(scale)
    model.load_state_dict(state, strict=False)
    if description["classes"] is not None:
        model.class_names = tuple(description["classes"])
    return model


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"no tuned values at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a file is no mapping)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
    if ENTRY not in metadata:
        raise ValueError(f"{path} holds no tuned values: save_tuned did not write it")
    return state, json.loads(metadata[ENTRY])


def _indices(model: nn.Module, state: Mapping[str, Tensor]) -> list[Tensor]:
    """The channels of each block in ``state``; none where it has no adapters."""
    if not any(name.endswith(".adapter.index") for name in state):
        return []
    return [state[f"{block}.adapter.index"] for block in transformer_blocks(model)]


def _fit_head(model: Any, state: Mapping[str, Tensor]) -> None:
    """A new head for ``model`` where that of ``state`` has another number of classes."""
    own = model.state_dict()
    other = [name for name in tuned_names(model) if name in state and own[name].shape != state[name].shape]
    if other:
        model.reset_classifier(len(state[other[0]]))
        model.to(next(iter(own.values())))
