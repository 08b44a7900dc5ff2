"""What backbones with a pyramid of stages share: stages that can recompute, and timm's interface around them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from repertory.nn.recompute import recompute


class Stage(nn.Module):
    """A downsampler (``nn.Identity`` where there is none), then blocks. Its output is what dense prediction takes.

    With ``grad_checkpointing`` each block is computed again in the backward pass instead of keeping its activations.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.downsample, self.blocks = downsample, nn.Sequential(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """The stage's map of the map of the stage before."""
        x = self.downsample(x)
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            for block in self.blocks:
                x = recompute(block, x)
            return x
        return self.blocks(x)


class PyramidBackbone(nn.Module):
    """Timm's interface of a classifier whose maps shrink from stage to stage.

    The constructor of a subclass makes ``stages`` (``nn.Sequential``; each stage has a switch ``grad_checkpointing``),
    ``norm`` and then calls :meth:`finish`. It overrides the three steps where it differs: :meth:`enter`,
    :meth:`stage_map` and :meth:`last_map`. Inside and between stages maps may lie as it likes; what it gives away is
    (B, C, H, W).
    """

    stages: nn.Sequential
    norm: nn.Module
    grad_checkpointing = False

    def finish(self, num_classes: int, widths: Sequence[int], strides: Sequence[int]) -> None:
        """Make the classifier and say of each stage how wide it is and by how much it has shrunk."""
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = widths[-1]
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.feature_info = [
            {"num_chs": width, "reduction": stride, "module": f"stages.{stage}"}
            for stage, (width, stride) in enumerate(zip(widths, strides, strict=True))
        ]

    def enter(self, x: Tensor) -> Tensor:
        """What the first stage takes of the images (B, in_chans, H, W); the place to refuse bad ones."""
        return x

    def stage_map(self, index: int, x: Tensor) -> Tensor:
        """The map (B, C, H, W) that stage ``index`` offers, from its output."""
        return x

    def last_map(self, x: Tensor) -> Tensor:
        """The normalised map (B, num_features, H, W) from the output of the last stage."""
        return self.norm(x)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable
        for stage in self.stages:
            stage.grad_checkpointing = enable  # type: ignore[assignment]

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """The maps of all stages, (B, C_i, H_i, W_i), each before the next downsampler."""
        return self.forward_intermediates(x, intermediates_only=True)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Stage maps as timm's feature extractors ask for them.

        Args:
            x: images (B, in_chans, H, W).
            indices: stages wanted (negative ones count from the end), the last so many, or None for all.
            norm: also normalise the last map.
            stop_early: leave out the stages after the last wanted one.
            output_fmt: ``NCHW``, the only layout.
            intermediates_only: return the list alone, and not (last map, list).

        Raises:
            ValueError: for another layout, or a stage that is not there.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is {output_fmt!r}; it must be 'NCHW'")
        wanted, final = self._stage_indices(indices), len(self.stages) - 1
        x = self.enter(x)
        maps, reached = [], max(wanted) if stop_early else final
        for index in range(reached + 1):
            x = self.stages[index](x)
            if index in wanted:
                maps.append(self.last_map(x) if norm and index == final else self.stage_map(index, x))
        if intermediates_only:
            return maps
        return (self.last_map(x) if reached == final else self.stage_map(reached, x)), maps

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the wanted stages do not need; return their indices."""
        wanted = self._stage_indices(indices)
        self.stages = self.stages[: max(wanted) + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return wanted

    def _stage_indices(self, indices: int | Sequence[int] | None) -> list[int]:
        count = len(self.stages)
        if indices is None:
            return list(range(count))
        listed = range(count - indices, count) if isinstance(indices, int) else indices
        wanted = [index + count if index < 0 else index for index in listed]
        if not wanted or not all(0 <= index < count for index in wanted):
            raise ValueError(f"indices are {indices}; there are stages 0 to {count - 1}")
        return wanted

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, normalised: (B, num_features, H', W')."""
        return self.last_map(self.stages(self.enter(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) of a normalised map, or its mean (B, num_features) with ``pre_logits``."""
        features = x.mean((2, 3))
        return features if pre_logits else self.head(features)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, in_chans, H, W)."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The layer that makes logits out of features."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the network a new head for ``num_classes``; 0 leaves pooled features. Pooling is always the mean."""
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool is {global_pool!r}; it must be 'avg'")
        like = next(self.parameters())
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head.to(device=like.device, dtype=like.dtype)
        initialise_linear(self.head)

    def deploy(self) -> Self:
        """A copy for inference: the same parameters, none being training-only, in evaluation mode."""
        model = copy.deepcopy(self).eval()
        model.set_grad_checkpointing(False)
        return model


def initialise_linear(module: nn.Module) -> None:
    """A truncated normal of deviation 0.02 and no bias for a linear layer; other modules are left as they are."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
