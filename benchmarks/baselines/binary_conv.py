"""What a packed binary convolution stands in for: the float32 convolution of the same shape, as PyTorch runs it.

Frozen: what the operator is timed against.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def float_convolution(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """(B, C, H, W) and (O, C, k, k) to (B, O, H', W')."""
    return F.conv2d(x, weight, padding=padding)
