"""Criss-cross attention as its authors formulate it: copies a row and a column, one softmax over their joined logits.

Frozen: what the operator is timed against.
"""

from __future__ import annotations

import torch
from torch import Tensor


def joined_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(B, D, H, W) queries and keys and (B, C, H, W) values to (B, C, H, W)."""
    batch, _, height, width = query.shape

    def columns(x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2).contiguous().view(batch * width, -1, height)

    def rows(x: Tensor) -> Tensor:
        return x.permute(0, 2, 1, 3).contiguous().view(batch * height, -1, width)

    own = torch.diag(torch.full((height,), float("-inf"), dtype=query.dtype, device=query.device))
    by_column = torch.bmm(columns(query).permute(0, 2, 1), columns(key)) + own.repeat(batch * width, 1, 1)
    by_column = by_column.view(batch, width, height, height).permute(0, 2, 1, 3)
    by_row = torch.bmm(rows(query).permute(0, 2, 1), rows(key)).view(batch, height, width, width)
    weights = torch.cat([by_column, by_row], 3).softmax(3)
    to_column = weights[..., :height].permute(0, 2, 1, 3).contiguous().view(batch * width, height, height)
    to_row = weights[..., height:].contiguous().view(batch * height, width, width)
    from_column = torch.bmm(columns(value), to_column.permute(0, 2, 1)).view(batch, width, -1, height)
    from_row = torch.bmm(rows(value), to_row.permute(0, 2, 1)).view(batch, height, -1, width)
    return from_column.permute(0, 2, 3, 1) + from_row.permute(0, 2, 1, 3)
