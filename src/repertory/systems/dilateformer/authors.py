"""From the names of the authors' checkpoints to ours.

Theirs put a stage's downsampler after its blocks; ours stands before the blocks of the next stage, so that a stage's
output is what dense prediction takes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state_dict`` of the authors' network under the names of ours; the tensors are those given."""
    return {_rename(name): value for name, value in state_dict.items()}


def _rename(name: str) -> str:
    if name.startswith("patch_embed.proj."):
        rest = name.removeprefix("patch_embed.proj.")
        return f"patch_embed.{rest if rest[0].isdigit() else '0.' + rest}"  # one bare convolution has no index
    downsampler = re.fullmatch(r"stages\.(\d+)\.downsample\.proj\.(.+)", name)
    return f"stages.{int(downsampler[1]) + 1}.downsample.{downsampler[2]}" if downsampler else name
