"""Binary networks for inference: weights of one bit, convolutions that count bits, batch norms folded to thresholds.

The authors publish no inference code; this is ours, and equals the float network: sums of +-1 terms are whole numbers,
exact either way. An input of exactly 0 has sign 0 here as in training, since a packed input says which values count.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from repertory.ops.binary_conv import binary_conv2d, pack_signs, unpack_signs
from repertory.systems.reste.layers import BinaryConv2d, binary_layers

log = logging.getLogger("repertory")

_RELU: tuple[Any, ...] = (F.relu, torch.relu, "relu", "relu_")
_ELEMENTWISE = (nn.ReLU, nn.BatchNorm2d, nn.Identity, nn.Dropout)


class Thresholds(nn.Module):
    """The sign of what follows a convolution, read off its sum: per channel two whole numbers and a direction.

    A sum s of direction 1 gives 1 from ``upper`` on, -1 up to ``lower``, and 0 between; direction -1 turns s round.
    """

    upper: Tensor
    lower: Tensor
    direction: Tensor

    def __init__(self, upper: Tensor, lower: Tensor, direction: Tensor) -> None:
        super().__init__()
        for name, value in (("upper", upper), ("lower", lower), ("direction", direction)):
            self.register_buffer(name, value.float().view(-1, 1, 1))

    @classmethod
    def of(cls, signs: Tensor) -> Thresholds | None:
        """Those of a table ``signs`` (channels, 2 n + 1), one for every sum from -n to n; None where it is no step."""
        most = signs.shape[1] // 2
        steps = signs.diff(dim=1)
        falling = (steps < 0).any(1)
        if bool((falling & (steps > 0).any(1)).any()):
            return None
        direction = torch.where(falling, -1.0, 1.0)
        rising = torch.where(falling[:, None], signs.flip(1), signs)
        return cls(most + 1 - (rising > 0).sum(1), (rising < 0).sum(1) - most - 1, direction)

    def forward(self, sums: Tensor) -> Tensor:
        """Signs (B, C, H, W) of whole ``sums`` of that shape."""
        turned = sums * self.direction
        return (turned >= self.upper).to(sums.dtype) - (turned <= self.lower).to(sums.dtype)


class PackedConv2d(nn.Module):
    """A binary convolution for inference: one bit a weight, and its scale; no parameters and no gradient.

    Equal to the :class:`BinaryConv2d` it is made from. With ``thresholds`` it returns the signs of what came after it.
    """

    words: Tensor
    scale: Tensor
    bias: Tensor | None
    thresholds: Thresholds | None

    def __init__(self, layer: BinaryConv2d) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = layer.in_channels, layer.out_channels, layer.groups
        self.kernel_size = (layer.kernel_size[0], layer.kernel_size[1])
        self.stride, self.dilation = (layer.stride[0], layer.stride[1]), (layer.dilation[0], layer.dilation[1])
        plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        self.padding = (int(layer.padding[0]), int(layer.padding[1])) if plain else (0, 0)
        self.padded = () if plain else tuple(layer._reversed_padding_repeated_twice)
        self.padding_mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        self.real_activations, self.backend = layer.real_activations, "auto"
        with torch.no_grad():
            self.register_buffer("words", pack_signs(layer.weight))
            self.register_buffer("scale", layer.scale.clone())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())
        self.thresholds = None

    def sums(self, x: Tensor) -> Tensor:
        """Sums before scale and bias, (B, C_out, H', W'): whole numbers unless the input is taken as it is."""
        if self.padded:
            x = F.pad(x, self.padded, self.padding_mode)
        sizes = self.stride, self.padding, self.dilation, self.groups
        if self.real_activations:
            shape = self.out_channels, self.in_channels // self.groups, *self.kernel_size
            return F.conv2d(x, unpack_signs(self.words, shape, x.dtype), None, *sizes)
        return binary_conv2d(x, self.words, self.kernel_size, *sizes, backend=self.backend)

    def finish(self, sums: Tensor) -> Tensor:
        """The output of the layer from its ``sums``."""
        out = sums * self.scale
        return out if self.bias is None else out + self.bias[:, None, None]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H', W')."""
        sums = self.sums(x)
        return self.finish(sums) if self.thresholds is None else self.thresholds(sums)

    def extra_repr(self) -> str:
        """Channels and kernel, and whether inputs are real."""
        sizes = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        return f"{sizes}, groups={self.groups}, real_activations={self.real_activations}"


def deploy(model: nn.Module) -> nn.Module:
    """A copy of ``model`` for inference, equal to it in evaluation mode, with its binary convolutions packed.

    Where nothing but ReLU, batch norm and max-pooling stands between a binary convolution and others, the signs that
    these take depend on its whole sum alone, and both become a comparison with thresholds. A batch norm whose output is
    also added to a shortcut, as in the networks for ImageNet and every Bi-Real one, is needed in full and stays.

    The copy has the names of the original in its ``state_dict``; where batch norms were folded it is a
    ``torch.fx.GraphModule``. Save its ``state_dict``, and load it into a deployed network of the same kind.

    Raises:
        ValueError: the model has no binary convolution, or one with a weight that is exactly 0.
    """
    model = copy.deepcopy(model).eval()
    if not any(True for _ in binary_layers(model)):
        raise ValueError(f"{type(model).__name__} has no binary convolution to pack; binarize(model) makes one of it")
    if isinstance(model, BinaryConv2d):
        return PackedConv2d(model).eval()
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, BinaryConv2d):
                setattr(parent, name, PackedConv2d(child).eval())
    return _folded(model)


class _Tracer(torch.fx.Tracer):
    """Looks into every module but packed convolutions."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether ``m`` is one step of the graph."""
        return isinstance(m, PackedConv2d) or super().is_leaf_module(m, module_qualified_name)


def _folded(model: nn.Module) -> nn.Module:
    """``model`` with those batch norms folded that can be; itself where none can, or its forward cannot be traced."""
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # whatever a stranger's forward does with a symbolic tensor
        log.info("batch norms of %s are not folded: its forward cannot be traced (%s)", type(model).__name__, error)
        return model
    modules = dict(model.named_modules())
    folded = [node for node in graph.nodes if _is_packed(node, modules) and _fold(node, modules)]
    if not folded:
        return model
    graph.lint()
    made = torch.fx.GraphModule(model, graph, type(model).__name__)
    made.delete_all_unused_submodules()
    for name in ("preprocessing", "class_names"):
        if hasattr(model, name):
            setattr(made, name, getattr(model, name))
    return made.eval()


def _is_packed(node: torch.fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether ``node`` is a packed convolution of signs."""
    layer = modules.get(str(node.target)) if node.op == "call_module" else None
    return isinstance(layer, PackedConv2d) and not layer.real_activations


def _fold(node: torch.fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Give the convolution ``node`` thresholds in place of what follows it, if only signs are taken of that."""
    chain, last = _followers(node, modules)
    if not chain or not all(_is_packed(user, modules) for user in last.users) or not last.users:
        return False
    layer = modules[str(node.target)]
    assert isinstance(layer, PackedConv2d)
    thresholds = Thresholds.of(_signs_of_all_sums(layer, [_function(step, modules) for step in chain]))
    if thresholds is None:
        return False
    layer.thresholds = thresholds
    chain[-1].replace_all_uses_with(node)
    for step in reversed(chain):
        node.graph.erase_node(step)
    return True


def _followers(node: torch.fx.Node, modules: dict[str, nn.Module]) -> tuple[list[torch.fx.Node], torch.fx.Node]:
    """The elementwise steps that alone use ``node``, and the last of the poolings that alone use these."""
    chain: list[torch.fx.Node] = []
    pooled = False
    while len(node.users) == 1:
        (user,) = node.users
        if _is_pool(user, modules):
            pooled = True
        elif not pooled and _function(user, modules) is not None:
            chain.append(user)
        else:
            break
        node = user
    return chain, node


def _is_pool(node: torch.fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Max-pooling, which commutes with signs."""
    return node.op == "call_module" and isinstance(modules[str(node.target)], nn.MaxPool2d)


def _function(node: torch.fx.Node, modules: dict[str, nn.Module]) -> Callable[[Tensor], Tensor] | None:
    """What ``node`` does to each value of a channel, or None where it does more."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        return module if isinstance(module, _ELEMENTWISE) else None
    return F.relu if node.op in ("call_function", "call_method") and node.target in _RELU else None


@torch.no_grad()
def _signs_of_all_sums(layer: PackedConv2d, steps: Iterable[Callable[[Tensor], Tensor] | None]) -> Tensor:
    """Signs (C_out, 2 n + 1) that ``steps`` make of every sum from -n to n that ``layer`` can have."""
    most = layer.in_channels // layer.groups * layer.kernel_size[0] * layer.kernel_size[1]
    every = torch.arange(-most, most + 1, dtype=layer.scale.dtype, device=layer.scale.device)
    values = layer.finish(every.expand(1, layer.out_channels, -1)[..., None])
    for step in steps:
        assert step is not None
        values = step(values)
    return values[0, ..., 0].sign()
