"""The binary convolution, and what is said of all those of a model at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from repertory.systems.reste.estimators import Estimator, binary_sign, make_estimator


class BinaryConv2d(nn.Conv2d):
    """A convolution with the signs of its weights and, unless told otherwise, of its input.

    out = conv(sign(x), sign(weight)) * mean(|weight|) + bias: one scale for the whole layer, through which gradient
    flows. Its latent real weights are what is trained and stored. Zero padding comes after the signs, so a border
    contributes 0; a weight or input of exactly 0 does too.

    The authors multiply the weights by the scale before the convolution. Multiplied after it, the sums of +-1 terms are
    whole numbers and exact: where they cancel the output is exactly 0, where the authors' has a residue of either sign,
    by which the ReLU that follows passes or stops the gradient.

    Args:
        in_channels, out_channels, kernel_size, ...: those of ``nn.Conv2d``.
        estimator: gradient of the signs, of weights and input alike; a name or an :class:`Estimator`.
        real_activations: take the input as it is (1-bit weights, 32-bit activations).
    """

    def __init__(
        self,
        *args: Any,
        estimator: str | Estimator = "reste",
        real_activations: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.real_activations = real_activations
        self.estimator = self.activation_estimator = make_estimator(estimator)

    @classmethod
    def of(cls, layer: nn.Conv2d, estimator: str | Estimator = "reste", real_activations: bool = False) -> BinaryConv2d:
        """A binary layer in the place of ``layer``, with its very parameters."""
        with torch.device("meta"):
            made = cls(
                layer.in_channels,
                layer.out_channels,
                layer.kernel_size,
                layer.stride,
                layer.padding,
                layer.dilation,
                layer.groups,
                layer.bias is not None,
                layer.padding_mode,
                estimator=estimator,
                real_activations=real_activations,
            )
        made.weight, made.bias = layer.weight, layer.bias
        return made.train(layer.training)

    @property
    def scale(self) -> Tensor:
        """mean(|weight|), a scalar."""
        return self.weight.abs().mean()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H', W')."""
        if not self.real_activations:
            x = binary_sign(x, self.activation_estimator)
        out = self._conv_forward(x, binary_sign(self.weight, self.estimator), None) * self.scale
        return out if self.bias is None else out + self.bias[:, None, None]

    def extra_repr(self) -> str:
        """As that of ``nn.Conv2d``, with what is binary and how."""
        inputs = "real inputs, " if self.real_activations else ""
        return f"{super().extra_repr()}, {inputs}{self.estimator}"


def binary_layers(model: nn.Module) -> Iterator[tuple[str, BinaryConv2d]]:
    """Name and layer of each binary convolution of ``model``."""
    for name, module in model.named_modules():
        if isinstance(module, BinaryConv2d):
            yield name, module


def set_estimator(model: nn.Module, estimator: str | Estimator, activations: str | Estimator | None = None) -> None:
    """Give all binary convolutions of ``model`` an estimator, and their inputs another where ``activations`` is given.

    ValueError where the model has no binary convolution.
    """
    weights = make_estimator(estimator)
    inputs = weights if activations is None else make_estimator(activations)
    found = False
    for _, layer in binary_layers(model):
        layer.estimator, layer.activation_estimator, found = weights, inputs, True
    if not found:
        raise ValueError(f"{type(model).__name__} has no binary convolution; binarize(model) makes one of it")


def advance(model: nn.Module, share: float) -> None:
    """Move the estimators of all binary convolutions to where they are when ``share`` (0 to 1) of training is done."""
    for _, layer in binary_layers(model):
        layer.estimator, layer.activation_estimator = layer.estimator.at(share), layer.activation_estimator.at(share)
