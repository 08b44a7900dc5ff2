"""Any torch model with its convolutions binary."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch

from torch import nn

from repertory.systems.reste.estimators import Estimator
from repertory.systems.reste.layers import BinaryConv2d, set_estimator

Keep = Sequence[str] | Callable[[str, nn.Conv2d], bool]


def binarize(
    model: nn.Module,
    keep: Keep | None = None,
    estimator: str | Estimator = "reste",
    activations: str | Estimator | None = None,
    real_activations: bool = False,
) -> nn.Module:
    """A copy of ``model`` with the same weights, in which all convolutions are binary but those that are kept.

    Only layers whose type is ``nn.Conv2d`` itself are replaced: a subclass computes something else.

    A binary convolution takes the signs of its input. Where that comes straight out of a ReLU, every sign is 0 or 1 and
    half of what one bit can say is lost; the authors' blocks have the batch norm after the ReLU for that reason.

    Args:
        model: any module; it stays as it is.
        keep: convolutions that stay real: patterns of their names (``"stem.*"``), or a function of name and layer; none
            given, the authors' choice: the first convolution and all of 1 x 1.
        estimator: gradient of the signs, a name of ``ESTIMATORS`` or an :class:`Estimator`.
        activations: another one for the signs of the inputs.
        real_activations: leave inputs as they are: 1-bit weights, 32-bit activations.

    Raises:
        ValueError: the model has no convolution, or ``keep`` leaves none to replace, or a pattern of it fits none.
    """
    convolutions = dict(_convolutions(model))
    if not convolutions:
        raise ValueError(f"{type(model).__name__} has no nn.Conv2d, and only convolutions can be made binary")
    kept = _kept(convolutions, keep)
    if len(kept) == len(convolutions):
        rule = "the first convolution and all of 1 x 1" if keep is None else f"keep={keep!r}"
        raise ValueError(
            f"no convolution of {type(model).__name__} is left to be binary: {rule} covers all {len(convolutions)}"
        )
    model = copy.deepcopy(model)
    made: dict[nn.Module, nn.Module] = {}
    for name, layer in _convolutions(model):
        if name not in kept:
            made[layer] = BinaryConv2d.of(layer, real_activations=real_activations)
    if isinstance(model, nn.Conv2d):
        model = made[model]
    for parent in list(model.modules()):  # every place of a shared layer gets the same new one
        for name, child in list(parent._modules.items()):
            if child is not None and child in made:
                setattr(parent, name, made[child])
    set_estimator(model, estimator, activations)
    return model


def authors_choice(model: nn.Module) -> set[str]:
    """Names of the convolutions that the authors keep real: the first, and all of 1 x 1 (their shortcuts)."""
    return _kept(dict(_convolutions(model)), None)


def _convolutions(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    """Plain convolutions, in the order in which the model has them, which is that of its forward as a rule."""
    for name, module in model.named_modules():
        if type(module) is nn.Conv2d:
            yield name, module


def _kept(convolutions: dict[str, nn.Conv2d], keep: Keep | None) -> set[str]:
    if keep is None:
        first = next(iter(convolutions))
        return {name for name, layer in convolutions.items() if name == first or layer.kernel_size == (1, 1)}
    if callable(keep):
        return {name for name, layer in convolutions.items() if keep(name, layer)}
    if isinstance(keep, str):
        raise TypeError(f"keep is the string {keep!r}; it must be a sequence of patterns or a function")
    kept: set[str] = set()
    for pattern in keep:
        found = {name for name in convolutions if fnmatch(name, pattern)}
        if not found:
            raise ValueError(f"keep names {pattern!r}, which fits no convolution; there are {', '.join(convolutions)}")
        kept |= found
    return kept
