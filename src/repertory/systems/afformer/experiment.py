"""Does the frequency filter segment better than a layer of its cost that sees no frequency? Digits over photographs.

All arms are the same small head-free segmentor; they differ in what stands in the attention's place. In the baseline it
is a two-layer perceptron of the parameters and multiply-adds of the filter with its bank, within 3 %: position and MLP
still see their 3 x 3 neighbours. The ablations leave out one of the filter's three parts and are that much cheaper.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repertory.data.composites import Recipe, composites
from repertory.data.segmentation import SegmentationData
from repertory.evidence import Arm, ArmResult, Context, Experiment, Scale
from repertory.systems.afformer.model import AdaptiveFrequencyFilter, AFFormerSegmentor, HighPassFilters
from repertory.training.arms import fit_arm
from repertory.training.segmentation import sample_pictures

PARTS = ("kernel", "high", "low")
SIZES: dict[str, Any] = {"embed_dims": (16, 32, 48, 64), "num_layers": (1, 1, 1, 1), "channels": 64, "norm_groups": 8}


class PartialFilter(AdaptiveFrequencyFilter):
    """The adaptive frequency filter made of some of its ``parts`` only, by plain operations; (B, H, W, C)."""

    def __init__(self, dim: int, num_heads: int, parts: tuple[str, ...]) -> None:
        super().__init__(dim, num_heads)
        self.parts = parts

    def forward(self, x: Tensor, filters: HighPassFilters) -> Tensor:
        """``x`` filtered by what the parts say."""
        query, key, value = self.qkv(x).permute(0, 3, 1, 2).chunk(3, 1)
        found = {"kernel": self._kernel, "high": self._high, "low": self._low}
        out = torch.stack([found[part](query, key, value, filters) for part in self.parts]).sum(0)
        return self.proj(out.permute(0, 2, 3, 1))

    def _kernel(self, query: Tensor, key: Tensor, value: Tensor, filters: HighPassFilters) -> Tensor:
        q, k, v = (x.flatten(2).unflatten(1, (self.num_heads, -1)) for x in (query, key, value))
        kernel = k.softmax(3) @ v.transpose(2, 3)
        return (kernel.transpose(2, 3) @ q).reshape(query.shape) * q.shape[2] ** -0.5

    def _high(self, query: Tensor, key: Tensor, value: Tensor, filters: HighPassFilters) -> Tensor:
        parts = value.split([len(weight) for weight in filters.tensors()[0]], 1)
        return query * torch.cat([bank(part) for bank, part in zip(filters, parts, strict=True)], 1)

    def _low(self, query: Tensor, key: Tensor, value: Tensor, filters: HighPassFilters) -> Tensor:
        pooled = zip(value.chunk(len(self.bins), 1), self.bins, strict=True)
        maps = [F.interpolate(F.adaptive_avg_pool2d(x, b), query.shape[2:], mode="bilinear") for x, b in pooled]
        return torch.cat(maps, 1).relu()


class Pointwise(nn.Module):
    """A perceptron that sees one place at a time, of the filter's cost; it takes the bank and does not use it.

    The bank of a stage of one block has 31 parameters a channel, which sixteen more hidden units make up for.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 2 * dim + 16), nn.Linear(2 * dim + 16, dim)

    def forward(self, x: Tensor, filters: HighPassFilters) -> Tensor:
        """(B, H, W, dim) to (B, H, W, dim)."""
        return self.fc2(F.gelu(self.fc1(x)))


def narrow(arm: Arm, num_classes: int, seed: int) -> AFFormerSegmentor:
    """The network of ``arm`` and ``seed``: layers that arms share begin with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AFFormerSegmentor(num_classes, 3, **SIZES)
        for stage in list(model.backbone.stages)[1:]:
            encoder: Any = stage.encoder
            for block in encoder.blocks:
                block.attn = _instead(block.attn, encoder, tuple(arm.settings["parts"]))
    return model


def _instead(layer: AdaptiveFrequencyFilter, encoder: Any, parts: tuple[str, ...]) -> nn.Module:
    """``layer`` itself, or what stands in its place; the bank goes where no part looks through it."""
    if set(parts) == set(PARTS):
        return layer
    if "high" not in parts:
        encoder.filters = nn.ModuleList()
    if not parts:
        return Pointwise(layer.proj.in_features)
    partial = PartialFilter(layer.proj.in_features, layer.num_heads, parts)
    partial.load_state_dict(layer.state_dict())
    return partial


def digits_over_photographs(seed: int, scale: Scale) -> SegmentationData:
    """Large digits over photographs, drawn by ``seed``, the same for all arms."""
    recipe = Recipe(objects=(2, 3), scale=(0.6, 1.0), digits=tuple(scale.settings["digits"]))
    return composites(scale.settings["side"], scale.settings["train"], scale.settings["val"], seed, recipe)


def run(arm: Arm, seed: int, scale: Scale, context: Context) -> ArmResult:
    """Train the network of the arm, everything else alike, and judge it once, at the end."""
    data = digits_over_photographs(seed, scale)
    model = narrow(arm, len(data.classes), seed)
    result = fit_arm(model, data, scale, seed, context)
    pictures = sample_pictures(result.model, data, 2)
    return ArmResult.of(result, {**scale.settings, **arm.settings}, pictures=pictures)


_RECIPE: dict[str, Any] = {
    "side": 64,
    "digits": [0, 1, 7],
    "batch_size": 8,
    "optimizer": "adamw",
    "poly_power": 1.0,
    "lr": 3e-3,
    "weight_decay": 0.01,
    "warmup_epochs": 0.5,
    "augment": "crop",
}

EXPERIMENT = Experiment(
    system="afformer",
    question="Does the frequency filter segment better than a perceptron of its cost in its place?",
    metric="miou",
    unit="%",
    higher_is_better=True,
    baseline="pointwise",
    method="filter",
    arms=(
        Arm("pointwise", "perceptron of equal cost", {"parts": []}),
        Arm("no_high", "filter without its high-pass part", {"parts": ["kernel", "low"]}),
        Arm("no_low", "filter without its low-pass part", {"parts": ["kernel", "high"]}),
        Arm("no_kernel", "filter without its similarity kernel", {"parts": ["high", "low"]}),
        Arm("filter", "adaptive frequency filter", {"parts": list(PARTS)}),
    ),
    scales={
        "smoke": Scale(2, 64, {**_RECIPE, "train": 32, "val": 8}),
        "small": Scale(5, 8_000, {**_RECIPE, "train": 500, "val": 100}),
    },
    run=run,
    data="composites: real digits 0, 1 and 7 over real photographs, 64 x 64",
)
