"""The two quantities that ReSTE trades against each other: estimating error and stability of gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repertory.systems.reste.estimators import power_function
from repertory.systems.reste.layers import binary_layers

POWER = 3.0  # the authors' o_end


def distance(x: Tensor, power: float) -> Tensor:
    """|| f_o(``x``) - sign(``x``) ||_2, the estimating error of one tensor, a scalar; o is ``power``."""
    return torch.linalg.vector_norm(power_function(x, power) - x.sign())


@torch.no_grad()
def estimating_error(model: nn.Module, power: float = POWER) -> float:
    """Sum over the binary convolutions of ``model`` of the distance between f_o of the weights and their signs.

    The authors evaluate it at the power that their schedule approaches, not at the present one, so that only the
    weights move it.
    """
    errors = [distance(layer.weight.float(), power) for _, layer in binary_layers(model)]
    return float(torch.stack(errors).sum()) if errors else 0.0


@torch.no_grad()
def gradient_instability(model: nn.Module) -> float:
    """Sum over the binary convolutions of the (unbiased) variance of |grad| of their weights; larger is less stable.

    Layers without a gradient count as 0.
    """
    gradients = [layer.weight.grad for _, layer in binary_layers(model)]
    variances = [gradient.float().abs().var() for gradient in gradients if gradient is not None]
    return float(torch.stack(variances).sum()) if variances else 0.0
