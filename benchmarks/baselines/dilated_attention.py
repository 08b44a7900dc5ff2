"""Sliding-window dilated attention as its authors formulate it: unfold keys and values, then two matrix products.

Frozen: what the operator is timed against. One rate a call, so a layer of several rates is several calls.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def unfold_attention(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: int, dilation: int, head_dim: int
) -> Tensor:
    """(B, C, H, W) queries, keys and values to (B, H, W, C); heads are contiguous slices of ``head_dim`` channels."""
    batch, channels, height, width = query.shape
    heads, window, pixels = channels // head_dim, kernel_size**2, height * width
    padding = dilation * (kernel_size - 1) // 2
    q = query.reshape(batch, heads, head_dim, 1, pixels).permute(0, 1, 4, 3, 2)
    k = F.unfold(key, kernel_size, dilation, padding).reshape(batch, heads, head_dim, window, pixels)
    v = F.unfold(value, kernel_size, dilation, padding).reshape(batch, heads, head_dim, window, pixels)
    weights = ((q @ k.permute(0, 1, 4, 2, 3)) * head_dim**-0.5).softmax(-1)
    out = weights @ v.permute(0, 1, 4, 3, 2)
    return out.transpose(1, 2).reshape(batch, height, width, channels)
