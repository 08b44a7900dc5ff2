"""Reading a parity vector: the weights and inputs that both sides regenerate from their names.

A vector is a JSON file without tensors. Every tensor is drawn from numpy's legacy generator, whose stream is frozen,
seeded with the CRC-32 of the tensor's name, so that neither the torch version nor the order of visits matters.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FIELDS = ("system", "kind", "origin", "config", "parameters", "inputs", "outputs")


def load(path: str | Path) -> dict[str, Any]:
    """Read the vector at ``path``; ``ValueError`` where it is not one."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no parity vector at {path}")
    try:
        vector = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a parity vector: {error}") from None
    missing = [name for name in FIELDS if not isinstance(vector, dict) or name not in vector]
    if missing:
        raise ValueError(f"{path} is not a parity vector: it lacks {', '.join(missing)}")
    return vector


def _generator(seed_text: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(seed_text.encode()))


def draw(name: str, shape: tuple[int, ...]) -> Tensor:
    """The float32 tensor that the authors' parameter or running statistic ``name`` of ``shape`` holds.

    By the last part of the name and the rank: running variances are uniform in [0.5, 1.5), running means normal with
    deviation 0.1, matrices and kernels normal scaled by fan-in, 1-D weights normal about one, the rest small normals.
    """
    generator, leaf = _generator(name), name.split(".")[-1]
    shape = tuple(shape)
    if leaf == "running_var":
        values = generator.uniform(0.5, 1.5, shape)
    else:
        values = generator.standard_normal(shape)
        if leaf == "running_mean":
            values = 0.1 * values
        elif len(shape) > 1:
            values = values / np.sqrt(math.prod(shape[1:]))
        elif leaf == "weight":
            values = 1.0 + 0.1 * values
        else:
            values = 0.05 * values
    return torch.tensor(np.asarray(values), dtype=torch.float32).reshape(shape)


def reference_state(vector: Mapping[str, Any]) -> dict[str, Tensor]:
    """The authors' filled ``state_dict`` of ``vector``: drawn parameters, then constants that are set."""
    state = {name: draw(name, tuple(shape)) for name, shape in vector["parameters"].items()}
    for name, value in vector.get("constants", {}).items():
        state[name] = torch.tensor(value, dtype=torch.float32)
    return state


def make_input(name: str, shape: tuple[int, ...], kind: str = "normal", high: int = 2) -> Tensor:
    """The input called ``name``: ``normal`` or ``uniform`` in [0, 1) float32, or ``int`` in [0, high) int64."""
    generator = _generator(f"input:{name}")
    if kind == "normal":
        return torch.tensor(generator.standard_normal(shape), dtype=torch.float32)
    if kind == "uniform":
        return torch.tensor(generator.uniform(0.0, 1.0, shape), dtype=torch.float32)
    if kind == "int":
        return torch.tensor(generator.randint(0, high, shape), dtype=torch.int64)
    raise ValueError(f"unknown input kind {kind!r}: use normal, uniform or int")


def _broadcastable(argument: Any) -> Any:
    return torch.tensor(argument) if isinstance(argument, list) else argument


def _repeat_interleave(x: Tensor, argument: Mapping[str, Any]) -> Tensor:
    for dim in argument["dims"]:
        x = torch.repeat_interleave(x, argument["times"], dim=dim)
    return x


def _fill(x: Tensor, argument: Mapping[str, Any]) -> Tensor:
    index = torch.arange(argument["start"], argument["stop"], device=x.device)
    return x.index_fill(argument["dim"], index, argument["value"])


def _add_boxes(x: Tensor, boxes: list[Mapping[str, Any]]) -> Tensor:
    x = x.clone()
    for box in boxes:
        region = tuple(slice(*box[axis]) for axis in ("channels", "rows", "columns"))
        x[region] += box["value"]
    return x


def _min_max(x: Tensor, argument: Mapping[str, Any]) -> Tensor:
    shifted = x - x.amin(dim=argument["dim"], keepdim=True)
    return shifted / shifted.amax(dim=argument["dim"], keepdim=True)


def _replace(x: Tensor, pairs: list[list[Any]]) -> Tensor:
    x = x.clone()
    for old, new in pairs:  # in order: a later pair sees what an earlier one wrote
        x.masked_fill_(x == old, new)
    return x


def _sphere(x: Tensor, argument: Mapping[str, Any]) -> Tensor:
    return x * argument["radius"] / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + argument["eps"])


def _clamp(x: Tensor, argument: Mapping[str, Any]) -> Tensor:
    low, high = torch.tensor(argument["min"]), torch.tensor(argument["max"])
    return torch.minimum(torch.maximum(x, low), high)


STEPS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "scale": lambda x, a: x * _broadcastable(a),
    "offset": lambda x, a: x + _broadcastable(a),
    "abs": lambda x, a: x.abs(),
    "exp": lambda x, a: x.exp(),
    "tanh": lambda x, a: x.tanh(),
    "relu": lambda x, a: x.relu(),
    "power": lambda x, a: x**a,
    "round": lambda x, a: torch.from_numpy(np.round(x.numpy(), a)),  # half to even, as numpy rounds
    "clamp": _clamp,
    "zero_below": lambda x, a: x.masked_fill(x < a, 0.0),
    "softmax": lambda x, a: torch.softmax(x, dim=a["dim"]),
    "normalize_l2": lambda x, a: torch.nn.functional.normalize(x, dim=a["dim"]),
    "normalize_sum": lambda x, a: x / x.sum(dim=a["dim"], keepdim=True),
    "min_max": _min_max,
    "sphere": _sphere,
    "tril": lambda x, a: torch.tril(x),
    "equals": lambda x, a: torch.eq(x, a),
    "replace": _replace,
    "repeat_interleave": _repeat_interleave,
    "fill": _fill,
    "crop": lambda x, a: x[..., : a[0], : a[1]].contiguous(),
    "add_boxes": _add_boxes,
    "dtype": lambda x, a: x.to(getattr(torch, a)),
}


def _apply(x: Tensor, steps: Mapping[str, Any], draws: Mapping[str, Tensor]) -> Tensor:
    for step, argument in steps.items():
        if step == "boxes":  # an instruction to the driver, not a step
            continue
        if step == "add_rows":
            x = x + argument["scale"] * draws[argument["rows_of"]][draws[argument["index"]]]
        elif step == "diagonal":
            before = torch.diagonal(x, dim1=-2, dim2=-1)
            x = x + torch.diag_embed(_apply(before, argument, draws) - before)
        elif step in STEPS:
            x = STEPS[step](x, argument)
        else:
            raise ValueError(f"unknown step {step!r} in inputs_transform: use {', '.join(sorted(STEPS))}")
    return x


def draws_of(vector: Mapping[str, Any]) -> dict[str, Tensor]:
    """The inputs of ``vector`` before their transform; floating ones in ``config.dtype``."""
    dtype = getattr(torch, vector["config"].get("dtype", "float32"))
    draws = {}
    for name, entry in vector["inputs"].items():
        x = make_input(name, tuple(entry["shape"]), entry.get("kind", "normal"), entry.get("high", 2))
        draws[name] = x.to(dtype) if x.is_floating_point() else x
    return draws


def feed(vector: Mapping[str, Any], draws: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The inputs of ``vector`` as they are fed, by name: ``draws`` put through ``config.inputs_transform``.

    Under ``input_prefix`` the transform lists roles, that is names without the prefix. An entry with ``from``,
    ``modulo`` and ``lookup`` makes a new integer input out of another.
    """
    draws = draws_of(vector) if draws is None else draws
    fed, prefix = dict(draws), vector["config"].get("input_prefix", "")
    for name, steps in (vector["config"].get("inputs_transform") or {}).items():
        target = name if name in draws else prefix + name
        if "from" in steps:
            fed[target] = torch.tensor(steps["lookup"])[draws[prefix + steps["from"]] % steps["modulo"]]
        elif target in draws:
            fed[target] = _apply(draws[target], steps, draws)
    return fed
