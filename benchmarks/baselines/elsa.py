"""ELSA's neighbour aggregation as its authors formulate it without their extension: unfold, multiply, sum.

Frozen: what the operator is timed against. Heads are folded into the batch, and a filter is made for every channel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def unfold_aggregation(
    value: Tensor, weights: Tensor, ghost_mul: Tensor | None, ghost_add: Tensor | None, kernel_size: int
) -> Tensor:
    """Values (B, C, H, W) and weights (B, G, K, H, W), ghosts (C, k, k) or None, to (B, C, H, W)."""
    batch, channels, height, width = value.shape
    heads, taps = weights.shape[1], kernel_size**2
    depth = channels // heads
    mul = value.new_ones(channels, taps) if ghost_mul is None else ghost_mul
    add = value.new_zeros(channels, taps) if ghost_add is None else ghost_add
    mul, add = (ghost.expand(batch, *ghost.shape).reshape(batch * heads, depth, taps, 1) for ghost in (mul, add))
    unfolded = F.unfold(value.reshape(batch * heads, depth, height, width), kernel_size, padding=kernel_size // 2)
    unfolded = unfolded.reshape(batch * heads, depth, taps, height * width)
    filters = mul * weights.reshape(batch * heads, 1, taps, height * width) + add
    return torch.sum(unfolded * filters, 2).reshape(value.shape)
