"""What a driver is given: one vector, unpacked, with the authors' tensors as leaves of the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from repertory.parity.vector import draws_of, feed, reference_state

Converter = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
GRADIENT = "grad:"


class Bound:
    """A model as a function of its inputs, run on ``tensors`` in place of its own parameters and buffers."""

    def __init__(self, model: nn.Module, tensors: dict[str, Tensor]) -> None:
        self.model, self.tensors = model, tensors

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward, whatever it returns."""
        return functional_call(self.model, self.tensors, args, kwargs)


class Case:
    """One vector ready to run.

    ``config`` are its settings; ``state`` the authors' tensors (name -> leaf that requires grad, running statistics
    excepted); ``inputs`` what is fed, by name (floating ones require grad); ``outputs`` the names that are wanted.
    A driver reads only these: never the notes, nor the case's wording.
    """

    def __init__(self, vector: Mapping[str, Any]) -> None:
        self.config: Mapping[str, Any] = vector["config"]
        self.outputs: tuple[str, ...] = tuple(vector["outputs"])
        self.dtype: torch.dtype = getattr(torch, self.config.get("dtype", "float32"))
        self.state: dict[str, Tensor] = {}
        for name, value in reference_state(vector).items():
            statistic = name.rsplit(".", 1)[-1] in ("running_mean", "running_var")
            self.state[name] = value.to(self.dtype).requires_grad_(not statistic)
        draws = {name: x.requires_grad_(x.is_floating_point()) for name, x in draws_of(vector).items()}
        fed = feed(vector, {name: x.detach() for name, x in draws.items()})
        if self.config.get("grad_at") == "draw":  # gradients of draws: keep the transform in the graph
            fed = feed(vector, draws)
            self._leaves = draws
        else:
            fed = {name: x.detach().requires_grad_(x.is_floating_point()) for name, x in fed.items()}
            self._leaves = fed
        self.inputs: dict[str, Tensor] = fed

    def input(self, role: str) -> Tensor:
        """The input that plays ``role``: through ``input_roles``, ``input_prefix``, or by its own name."""
        roles = self.config.get("input_roles") or {}
        name = roles[role] if role in roles else self.config.get("input_prefix", "") + role
        return self.inputs[name]

    def _leaf(self, name: str) -> Tensor:
        """The leaf called ``name``: an authors' tensor, an input, or an input by its role."""
        roles = self.config.get("input_roles") or {}
        candidates = (name, roles.get(name), self.config.get("input_prefix", "") + name)
        for leaves in (self.state, self._leaves):
            for candidate in candidates:
                if isinstance(candidate, str) and candidate in leaves:
                    return leaves[candidate]
        raise KeyError(f"no input or parameter of the authors is called {name!r}")

    def bind(self, model: nn.Module, from_authors: Converter) -> Bound:
        """``model`` as a function of its inputs, run on the authors' tensors converted by ``from_authors``.

        The conversion is part of the graph, so gradients reach the authors' leaves. Running statistics are copied once:
        forwards in training mode update the copy from call to call as they would in the model.
        """
        converted = dict(from_authors(self.state))
        check_conversion(model, converted)
        tensors = {name: value if value.requires_grad else value.clone() for name, value in converted.items()}
        names = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
        return Bound(model, {name: value for name, value in tensors.items() if name in names})

    def gradients(
        self, scalar: Tensor, prefix: str = GRADIENT, names: Iterable[str] | None = None
    ) -> dict[str, Tensor]:
        """d ``scalar`` / d leaf for every wanted output ``prefix + NAME`` (or for ``names``); zeros where unused."""
        wanted = [o[len(prefix) :] for o in self.outputs if o.startswith(prefix)] if names is None else list(names)
        if not wanted:
            return {}
        leaves = [self._leaf(name) for name in wanted]
        found = torch.autograd.grad(scalar, leaves, retain_graph=True, allow_unused=True)
        pairs = zip(wanted, leaves, found, strict=True)
        return {prefix + name: torch.zeros_like(leaf) if grad is None else grad for name, leaf, grad in pairs}


def check_conversion(
    model: nn.Module, converted: Mapping[str, Tensor], computed: Iterable[str] = (), what: str = "the checkpoint"
) -> None:
    """Hold a conversion to be strict: every learned parameter and running statistic once, nothing left over.

    ``computed`` are name endings of buffers that the model makes itself; step counters always are.
    Raises ``ValueError`` naming the keys.
    """
    skipped = (*computed, "num_batches_tracked")
    persistent = dict(model.state_dict(keep_vars=True))
    expected = {name for name in persistent if not name.endswith(skipped)}
    given = {name for name in converted if not name.endswith(skipped)}
    problems = []
    if expected - given:
        problems.append(f"missing {_some(expected - given)}")
    if given - expected:
        problems.append(f"unexpected {_some(given - expected)}")
    for name in sorted(expected & given):
        if persistent[name].shape != converted[name].shape:
            shapes = f"{tuple(converted[name].shape)} where the model has {tuple(persistent[name].shape)}"
            problems.append(f"{name} is {shapes}")
    if problems:
        raise ValueError(f"{what} does not fit {type(model).__name__}: {'; '.join(problems[:6])}")


def _some(names: set[str], most: int = 6) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


Driver = Callable[[Case], Mapping[str, Tensor]]
