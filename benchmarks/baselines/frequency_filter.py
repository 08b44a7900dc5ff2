"""The adaptive frequency filter as its authors formulate it: heads before tokens, images made and unmade between parts.

Frozen: what the operator is timed against.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def authors_filter(
    qkv: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], size: tuple[int, int], num_heads: int
) -> Tensor:
    """Projected tokens (B, N, 3 C), laid out (3, heads, c), to filtered tokens (B, N, C); ``size`` is (H, W)."""
    batch, tokens, channels = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    head_dim = channels // num_heads
    query, key, value = qkv.reshape(batch, tokens, 3, num_heads, head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    kernel = torch.einsum("bhnk,bhnv->bhkv", key.softmax(2), value)
    attended = torch.einsum("bhnk,bhkv->bhnv", query, kernel)

    image = value.transpose(2, 3).reshape(batch, channels, *size)
    pooled = [F.adaptive_avg_pool2d(part, bins) for part, bins in zip(image.chunk(4, 1), (1, 2, 3, 6), strict=True)]
    low = F.relu(torch.cat([F.interpolate(part, size=size, mode="bilinear") for part in pooled], 1))
    parts = image.split([weight.shape[0] for weight in weights], 1)
    high = torch.cat(
        [
            F.conv2d(part, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))
            for part, weight, bias in zip(parts, weights, biases, strict=True)
        ],
        1,
    )
    high, low = (x.reshape(batch, num_heads, head_dim, tokens).transpose(2, 3) for x in (high, low))
    out = head_dim**-0.5 * attended + (query * high + low)
    return out.transpose(1, 2).reshape(batch, tokens, channels)
