"""ReSTE's estimator as its authors formulate the backward pass: regions selected by masks, the power on their elements.

Frozen: what the estimator is timed against.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class MaskedReSTE(torch.autograd.Function):
    """Sign forward; backward five masked writes, two of them powers of the elements selected."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, clip: Tensor, power: Tensor, flat: float) -> Tensor:
        ctx.save_for_backward(x, clip, power)
        ctx.flat = flat
        return torch.sign(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        x, clip, power = ctx.saved_tensors
        flat = ctx.flat
        slope = torch.zeros_like(x)
        positive, negative = (x <= clip) & (x > flat), (x >= -clip) & (x < -flat)
        slope[positive] = (1 / power) * torch.pow(x[positive], (1 - power) / power)
        slope[negative] = (1 / power) * torch.pow(-x[negative], (1 - power) / power)
        slope[(x <= flat) & (x >= 0)] = flat ** (1 / power.item()) / flat
        slope[(x <= 0) & (x >= -flat)] = flat ** (1 / power.item()) / flat
        return slope * grads[0].clone(), None, None, None
