"""Weights on disk: recognising whose they are, reading them without running anything, fitting them to a model, writing.

A pickle is read with ``weights_only=True`` and a short list of inert types (:data:`INERT`); anything else in it is
refused by name before it is built.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelHubMixin, hf_hub_download
from torch import Tensor, nn

from repertory import __version__
from repertory.data.preprocessing import Preprocessing
from repertory.files import Replacement
from repertory.training.checkpoint import CheckpointError

WEIGHTS = "model.safetensors"
DESCRIPTION = "config.json"
# Where the weights lie inside a training checkpoint, in the order in which the names are tried.
ENTRIES = ("state_dict", "model", "model_state", "model_state_dict", "net", "network", "model_ema", "state_dict_ema")
# Prefixes that wrappers put before every name: DataParallel and DistributedDataParallel, torch.compile.
PREFIXES = ("module.", "_orig_mod.")

Converter = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


def _inert() -> list[Any]:
    """Types that authors' files hold beside tensors, reviewed to do nothing but hold their value.

    Pickles name a type by its module at the time of writing, hence the pairs of object and name.
    """
    multiarray = np._core.multiarray  # type: ignore[attr-defined]
    listed: list[Any] = [argparse.Namespace, np.ndarray, np.dtype]
    numbers = "?bhilqBHILQefdgFD"
    listed += list({type(np.dtype(code)) for code in numbers} | {type(np.dtype("U1")), type(np.dtype("S1"))})
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        listed += [(multiarray.scalar, f"{module}.scalar"), (multiarray._reconstruct, f"{module}._reconstruct")]
    for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path"):
        pure = pathlib.PureWindowsPath if "Windows" in name else pathlib.PurePosixPath
        listed += [(pure, f"{module}.{name}") for module in ("pathlib", "pathlib._local")]
    return listed


INERT = tuple(_inert())


@dataclass
class Weights:
    """Tensors by name, what is known of them, and where they come from.

    ``description`` may hold ``model`` (name), ``settings`` (of its builder), ``preprocessing`` and ``classes``;
    ``ours`` says that the names are those of our models and nothing is to be converted.
    """

    state: dict[str, Tensor]
    source: str
    description: dict[str, Any] = field(default_factory=dict)
    ours: bool = False


def read_weights(path: str | Path, entry: str | None = None) -> Weights:
    """The weights in ``path``: a run folder, a folder that ``save_pretrained`` wrote, a safetensors file or a pickle.

    Args:
        path: file or folder.
        entry: name inside a training checkpoint, such as ``model_ema``; the first of :data:`ENTRIES` when absent.

    Raises:
        FileNotFoundError: where there is nothing, or a folder without weights.
        ValueError: where the file is damaged, holds no weights, or needs a type that is not inert.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        path = _weights_of_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    loaded = _read_pickle(path)
    state = _find_state(loaded, path, entry)
    ours = isinstance(loaded, Mapping) and {"position", "classes", "preprocessing"} <= set(loaded)
    known = ("classes", "preprocessing", "palette")
    description = {k: loaded[k] for k in known if loaded.get(k) is not None} if ours else {}
    return Weights(state, str(path), description, ours)


def _weights_of_folder(folder: Path) -> Path:
    for name in (WEIGHTS, "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"the folder {folder} holds no weights: neither {WEIGHTS} nor checkpoints/best.ckpt")


def _read_safetensors(path: Path) -> Weights:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a file is no mapping)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
    if "repertory" not in metadata:
        return Weights(_strip(state), str(path))
    try:
        description = json.loads(metadata["repertory"])
    except json.JSONDecodeError as error:
        raise ValueError(f"the metadata of {path} are damaged: {error}") from None
    return Weights(state, str(path), description, ours=True)


def _read_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(list(INERT)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files fail in many ways; all are the same to the reader
        if refused := _refused_type(str(error)):
            raise ValueError(
                f"{path} is refused: it needs the type {refused}, which is not among the inert types that a checkpoint "
                "may hold; nothing in it was run"
            ) from None
        raise ValueError(
            f"{path} cannot be read as a checkpoint: it is damaged, or neither torch.save nor safetensors wrote it"
        ) from None


def _refused_type(message: str) -> str:
    """The type that torch's weights-only reader names in its refusal, or nothing."""
    patterns = (
        r"GLOBAL (\S+) was not an allowed global",
        r"[Uu]nsupported (?:class|global|type):? (\S+)",
        r"(?:Trying to (?:call|instantiate|load|set|append)[^\n]*?) ([\w.]+\.[\w.]+)",
    )
    found = next((m for p in patterns if (m := re.search(p, message))), None)
    return found[1].strip("'\"`,") if found else ""


def _find_state(loaded: Any, path: Path, entry: str | None) -> dict[str, Tensor]:
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not tensors by name")
    if entry is not None:
        if not isinstance(loaded.get(entry), Mapping):
            raise ValueError(f"{path} has no weights under {entry!r}; it has {_some(map(str, loaded))}")
        loaded = loaded[entry]
    while not _is_state(loaded):
        name = next((e for e in ENTRIES if isinstance(loaded.get(e), Mapping) and loaded[e]), None)
        if name is None:
            raise ValueError(f"{path} holds no weights: neither tensors nor an entry among {', '.join(ENTRIES)}")
        lightning = name == "state_dict" and "pytorch-lightning_version" in loaded
        loaded = loaded[name]
        if lightning and all(str(key).startswith("model.") for key in loaded):
            loaded = {key.removeprefix("model."): value for key, value in loaded.items()}
    return _strip({str(key): torch.as_tensor(value) for key, value in loaded.items() if _is_array(value)})


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray, np.generic))


def _is_state(loaded: Mapping[str, Any]) -> bool:
    """Whether this level is the weights themselves: tensors, but not one entry that is a mapping."""
    values = loaded.values()
    return any(isinstance(v, Tensor) for v in values) and not any(isinstance(v, Mapping) for v in values)


def _strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((p for p in PREFIXES if state and all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def fit_weights(model: nn.Module, weights: Weights, convert: Converter | None, reset_head: bool = False) -> None:
    """Load ``weights`` into ``model``, strictly: every parameter and running statistic once, nothing left over.

    Args:
        model: takes the values; counters and tables that it computes itself may be absent.
        weights: what was read.
        convert: the authors' names to ours; not used where the weights are ours.
        reset_head: leave the classifier as it is where its shape differs.

    Raises:
        ValueError: naming the keys by which they are of another model, or the first that is not finite.
    """
    state = dict(weights.state) if weights.ours else _converted(model, weights, convert)
    head = _head_keys(model)
    own = model.state_dict()
    differing = [key for key in own if key in state and own[key].shape != state[key].shape]
    if reset_head:
        for key in [key for key in differing if key in head]:
            del state[key]
            differing.remove(key)
    else:
        head = set()
    needed = _learned(model) - (head - set(state))
    problems = _named("missing", needed - set(state))
    problems += _named("unknown", {k for k in set(state) - set(own) if not k.endswith("num_batches_tracked")})
    problems += [f"{key} is {tuple(state[key].shape)}, not {tuple(own[key].shape)}" for key in differing[:3]]
    if problems:
        hint = ""
        if differing and set(differing) <= _head_keys(model) and len(problems) == len(differing[:3]):
            classes = state[differing[0]].shape[0]
            hint = f" (give num_classes={classes} for its own classifier, or reset_head=True (--reset-head) for a new)"
        raise ValueError(f"{weights.source} is of another model than {_called(model)}: {'; '.join(problems)}{hint}")
    for key, value in state.items():
        if key in own and value.is_floating_point() and not bool(value.isfinite().all()):
            raise ValueError(f"{weights.source} is unusable: {key} holds NaN or infinity")
    model.load_state_dict({key: value for key, value in state.items() if key in own}, strict=False)


def _converted(model: nn.Module, weights: Weights, convert: Converter | None) -> dict[str, Tensor]:
    """The authors' names as ours; a file that already has our names is left alone where the conversion says no."""
    if convert is None:
        return dict(weights.state)
    fits = _learned(model) <= set(weights.state)
    try:
        state = dict(convert(weights.state))
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        if fits:
            return dict(weights.state)
        reason = str(error.args[0] if isinstance(error, KeyError) and error.args else error).splitlines()[0]
        absent = _named("missing", _learned(model) - set(weights.state))
        raise ValueError(
            f"{weights.source} is of another model than {_called(model)}: {reason}"
            + (f" (under our names, {absent[0]})" if absent else "")
        ) from None
    return dict(weights.state) if fits and not _learned(model) <= set(state) else state


def _learned(model: nn.Module) -> set[str]:
    """Names of parameters and running statistics."""
    running = ("running_mean", "running_var")
    return {name for name, _ in model.named_parameters(remove_duplicate=False)} | {
        name for name, _ in model.named_buffers() if name.endswith(running)
    }


def _head_keys(model: Any) -> set[str]:
    """Names of the tensors of the layers that make logits."""
    if not hasattr(model, "get_classifier"):
        return set()
    found = model.get_classifier()
    heads = found if isinstance(found, (tuple, list, nn.ModuleList)) else [found]
    places = [name for name, module in model.named_modules() if any(module is head for head in heads)]
    return {key for key in model.state_dict() if any(key.startswith(f"{place}.") for place in places if place)}


def _called(model: Any) -> str:
    return getattr(model, "catalogue_entry", {}).get("name", type(model).__name__)


def _named(complaint: str, keys: set[str]) -> list[str]:
    return [f"{complaint} {_some(sorted(keys))}"] if keys else []


def _some(keys: Any, most: int = 4) -> str:
    listed = list(keys)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def describe(model: Any) -> dict[str, Any]:
    """What travels with the weights of ``model``: its name, the builder's settings, preprocessing, classes, colours.

    Where methods changed the network before it was trained (``prepared_by``), their names and settings do too.
    """
    entry = getattr(model, "catalogue_entry", None) or {}
    settings = dict(entry.get("settings", {}))
    if entry and getattr(model, "num_classes", None) is not None:
        settings["num_classes"] = int(model.num_classes)
    preprocessing = getattr(model, "preprocessing", None)
    classes = getattr(model, "class_names", None)
    prepared = getattr(model, "prepared_by", None)
    return {
        "model": entry.get("name"),
        "settings": settings,
        "preprocessing": preprocessing.to_dict() if isinstance(preprocessing, Preprocessing) else None,
        "classes": [str(name) for name in classes] if classes is not None else None,
        "palette": getattr(model, "palette", None),
        **({"prepared": prepared} if prepared else {}),
        "repertory": __version__,
    }


def adopt(model: Any, description: Mapping[str, Any]) -> None:
    """Give ``model`` the preprocessing, class names and colours of ``description``, where it has them."""
    if description.get("preprocessing"):
        model.preprocessing = Preprocessing.from_dict(dict(description["preprocessing"]))
    classes = description.get("classes")
    if classes and len(classes) == getattr(model, "num_classes", len(classes)):
        model.class_names = tuple(classes)
        if description.get("palette"):
            model.palette = [list(colour) for colour in description["palette"]]


def write_weights(model: nn.Module, path: Path) -> Path:
    """Write ``model`` and :func:`describe` of it to the safetensors file ``path``: whole, or CheckpointError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    state = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in model.state_dict().items()}
    metadata = {"format": "pt", "repertory": json.dumps(describe(model), default=str)}
    try:
        with Replacement(path) as partial:
            save_file(state, partial, metadata)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        kept = "the file that stood there is intact" if path.exists() else "nothing was left behind"
        raise CheckpointError(f"cannot write {path} ({reason}); {kept}") from error
    return path


class _Shelf(ModelHubMixin, library_name="repertory", tags=["repertory"]):
    """What huggingface-hub's mixin saves and finds: a model on its way out, or weights on their way in."""

    def __init__(self, model: nn.Module | None = None, weights: Weights | None = None) -> None:
        self.model, self.weights = model, weights

    def _save_pretrained(self, save_directory: Path) -> None:
        assert self.model is not None
        write_weights(self.model, save_directory / WEIGHTS)
        text = json.dumps(describe(self.model), indent=2, default=str)
        (save_directory / DESCRIPTION).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: Any,
        force_download: bool,
        local_files_only: bool,
        token: Any,
        **_: Any,
    ) -> _Shelf:
        if Path(model_id).is_dir():
            return cls(weights=read_weights(model_id))
        file = hf_hub_download(
            repo_id=model_id,
            filename=WEIGHTS,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        return cls(weights=read_weights(file))


def save_pretrained(model: nn.Module, folder: str | Path, **hub: Any) -> None:
    """Write ``model.safetensors``, ``config.json`` and a model card into ``folder``.

    ``hub`` goes to huggingface-hub: ``push_to_hub=True`` and ``repo_id`` upload them, which needs the network.
    """
    _Shelf(model).save_pretrained(folder, **hub)


def find_pretrained(place: str | Path, **hub: Any) -> Weights:
    """The weights that :func:`save_pretrained` wrote to a local folder, or to the repository ``owner/name`` of the hub.

    ``FileNotFoundError`` where a path does not exist; ``hub`` goes to huggingface-hub (``revision``, ``token``, …).
    """
    text = str(place)
    is_path = isinstance(place, Path) or text.startswith((".", "/", "~")) or text.count("/") != 1
    if is_path and not Path(text).expanduser().is_dir():
        raise FileNotFoundError(f"no folder {text}; save_pretrained writes one, and owner/name is read from the hub")
    local = Path(text).expanduser()
    shelf = _Shelf.from_pretrained(str(local) if local.is_dir() else text, **hub)
    assert shelf.weights is not None
    return shelf.weights
