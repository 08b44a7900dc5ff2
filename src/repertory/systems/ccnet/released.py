"""Criss-cross attention over three axes as the authors released it, to the number.

Their layer (branch pure-python) differs from attention along three axes in two ways. The own position is masked along
the first axis alone, so that it counts twice. And the weights of the second axis are permuted wrongly before they meet
the values: (w', w, d) is read as (d, w, w'), so that pixels take each other's weights along it and what a pixel
receives no longer sums to 1. Kept for parity and their weights; new work takes :class:`CrissCrossAttention` with
three axes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from repertory.systems.ccnet.model import CrissCrossAttention


class ReleasedAttention3d(CrissCrossAttention):
    """gamma * the released attention + input, (B, ``dim``, H, W, D); parameters of :class:`CrissCrossAttention`."""

    def __init__(self, dim: int, qk_dim: int | None = None) -> None:
        super().__init__(dim, qk_dim, axes=3)

    def _attend(self, x: Tensor, value: Tensor) -> Tensor:
        query, key, value = (y.movedim(1, -1) for y in (self.query(x), self.key(x), value))
        batch, height, width, depth, _ = query.shape
        by_height = torch.einsum("bhwdc,bgwdc->bhwdg", query, key)
        own = torch.eye(height, dtype=torch.bool, device=x.device)[:, None, None]
        by_height = by_height.masked_fill(own, float("-inf"))
        by_width = torch.einsum("bhwdc,bhvdc->bhwdv", query, key)
        by_depth = torch.einsum("bhwdc,bhwec->bhwde", query, key)
        weights = torch.cat([by_height, by_width, by_depth], -1).softmax(-1).split([height, width, depth], -1)
        misread = weights[1].permute(0, 1, 4, 2, 3).reshape(batch, height, depth, width, width)
        out = torch.einsum("bhwdg,bgwdc->bhwdc", weights[0], value)
        out = out + torch.einsum("bhdwv,bhvdc->bhwdc", misread, value)
        out = out + torch.einsum("bhwde,bhwec->bhwdc", weights[2], value)
        return out.movedim(-1, 1)
