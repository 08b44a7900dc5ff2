"""How features are re-weighted between two stages: by a supervised prediction (SPG), by pooled features, or not.

Cheng et al., "SPGNet: Semantic Prediction Guidance for Scene Parsing", ICCV 2019, arXiv 1908.09798, calls its gate
"Supervise-and-Excite", beside Squeeze-and-Excite (Hu et al. 2018, arXiv 1709.01507) and Gather-and-Excite (Hu et al.
2018, arXiv 1810.12348), which it compares with. **A reading**: that the gate of a pixel comes from a supervised
prediction at that pixel is published; the layers that make it, logits as their input, and the identity path are
inferred, and each is an option here.

A gate takes features F (B, C, H, W) and returns ``(G, P)``: weights G in (0, 1), (B, C, H, W) or of a size that
broadcasts to it, and semantic logits P (B, K, H, W), or None for a gate that predicts nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SOURCES = ("logits", "softmax")
GATHERS = ("average", "depthwise")


class Gate(Protocol):
    """What a gate says of itself; ``supervised`` gates want a loss on the logits that they return."""

    supervised: bool

    def __call__(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weights and, where it predicts, logits."""
        ...


class SemanticGate(nn.Module):
    """Supervise-and-Excite: ``P = Conv1x1(F)``, ``G = sigmoid(Conv1x1(P))``, for each pixel and channel, no pooling.

    Inferred: both layers being single 1x1 convolutions with bias, and the defaults of the three options.

    Args:
        dim: channels C of the features.
        num_classes: classes K, at least 1.
        source: what the second convolution sees, ``logits`` or ``softmax`` over the classes.
        detach: keep gradients of later losses out of P.
        supervised: whether P is to have a loss; False is the same gate unsupervised, the paper's control.
    """

    def __init__(
        self, dim: int, num_classes: int, source: str = "logits", detach: bool = False, supervised: bool = True
    ) -> None:
        super().__init__()
        if source not in SOURCES:
            raise ValueError(f"source is {source!r}; it must be one of {', '.join(SOURCES)}")
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; it must be at least 1")
        self.source, self.detach, self.supervised = source, detach, supervised
        self.predict = nn.Conv2d(dim, num_classes, 1)
        self.guide = nn.Conv2d(num_classes, dim, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (B, C, H, W) and logits (B, K, H, W) of features (B, C, H, W)."""
        logits = self.predict(features)
        evidence = logits.detach() if self.detach else logits
        if self.source == "softmax":
            evidence = evidence.softmax(1)
        return torch.sigmoid(self.guide(evidence)), logits


class SqueezeExciteGate(nn.Module):
    """SE: ``G = sigmoid(W2 relu(W1 mean(F)))``, one weight a channel for the whole image. Unsupervised.

    Args:
        dim: channels C.
        hidden: channels between; None is C / 16, the published reduction. As many as there are classes gives the gate
            exactly the parameters of :class:`SemanticGate`.
    """

    supervised = False

    def __init__(self, dim: int, hidden: int | None = None) -> None:
        super().__init__()
        self.excite = _excitation(dim, hidden)

    def forward(self, features: Tensor) -> tuple[Tensor, None]:
        """Weights (B, C, 1, 1) of features (B, C, H, W)."""
        return torch.sigmoid(self.excite(features.mean((2, 3), keepdim=True))), None


class GatherExciteGate(nn.Module):
    """GE: features gathered over a neighbourhood, perhaps mixed, spread again to the pixels. Unsupervised.

    ``gather="average", excite=False`` is GE-theta-minus; ``depthwise`` without excitation GE-theta; with it
    GE-theta-plus; the average with excitation at extent 0 is SE.

    Args:
        dim: channels C.
        extent: pixels between gathered positions, a power of two; 0 gathers the whole image (average only).
        gather: ``average`` over (2 extent - 1) squared pixels, border left out of the count, or ``depthwise``:
            log2(extent) depth-wise 3x3 convolutions of stride 2 with batch norm, ReLU between.
        excite: mix the gathered channels by two 1x1 convolutions with ReLU between.
        hidden: channels between those; None is C / 16.
    """

    supervised = False

    def __init__(
        self,
        dim: int,
        extent: int = 4,
        gather: str = "average",
        excite: bool = True,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        if gather not in GATHERS:
            raise ValueError(f"gather is {gather!r}; it must be one of {', '.join(GATHERS)}")
        if extent != 0 and (extent < 2 or extent & (extent - 1)):
            raise ValueError(f"extent is {extent}; it must be 0 or a power of two from 2 on")
        if gather == "depthwise" and extent == 0:
            raise ValueError("extent is 0; it must be at least 2 where gather is 'depthwise'")
        self.extent = extent
        self.gather = _strided(dim, extent.bit_length() - 1) if gather == "depthwise" else None
        self.excite = _excitation(dim, hidden) if excite else nn.Identity()

    def forward(self, features: Tensor) -> tuple[Tensor, None]:
        """Weights (B, C, H, W) of features (B, C, H, W); (B, C, 1, 1) at extent 0."""
        gathered = self.excite(self._gathered(features))
        if self.extent:
            gathered = F.interpolate(gathered, size=features.shape[-2:], mode="nearest")
        return torch.sigmoid(gathered), None

    def _gathered(self, features: Tensor) -> Tensor:
        if self.gather is not None:
            return self.gather(features)
        if self.extent == 0:
            return features.mean((2, 3), keepdim=True)
        return F.avg_pool2d(
            features, 2 * self.extent - 1, self.extent, padding=self.extent - 1, count_include_pad=False
        )


def _excitation(dim: int, hidden: int | None) -> nn.Sequential:
    hidden = max(1, dim // 16) if hidden is None else hidden
    if hidden < 1:
        raise ValueError(f"hidden is {hidden}; it must be at least 1")
    return nn.Sequential(nn.Conv2d(dim, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, dim, 1))


def _strided(dim: int, steps: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(steps):
        layers += [nn.Conv2d(dim, dim, 3, 2, 1, groups=dim, bias=False), nn.BatchNorm2d(dim), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Reweighting(nn.Module):
    """What passes from one stage to the next: ``F' = F * G + F``, or ``F * G`` without the identity path.

    Inferred: the identity path, which keeps features alive where the gate is near 0.

    Args:
        gate: as this module describes gates; None passes F as it is.
        identity: whether F is added to what the gate lets through.
    """

    def __init__(self, gate: nn.Module | None, identity: bool = True) -> None:
        super().__init__()
        self.gate, self.identity = gate, identity

    @property
    def supervised(self) -> bool:
        """Whether the logits that come with the features want a loss."""
        return self.gate is not None and bool(cast("Gate", self.gate).supervised)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """``(F', P)`` of F (B, C, H, W); P is None where nothing is predicted."""
        if self.gate is None:
            return features, None
        weights, logits = self.gate(features)
        passed = features * weights
        return (passed + features if self.identity else passed), logits


class SemanticPredictionGuidance(Reweighting):
    """The SPG module: a :class:`SemanticGate` with its identity path. Arguments are those of both."""

    def __init__(
        self, dim: int, num_classes: int, source: str = "logits", identity: bool = True, detach: bool = False
    ) -> None:
        super().__init__(SemanticGate(dim, num_classes, source, detach), identity)


def _unsupervised(dim: int, num_classes: int, **settings: Any) -> nn.Module:
    return SemanticGate(dim, num_classes, supervised=False, **settings)


GATES: dict[str, Callable[..., nn.Module | None]] = {
    "spg": SemanticGate,
    "unsupervised": _unsupervised,
    "se": lambda dim, num_classes, **settings: SqueezeExciteGate(dim, **settings),
    "ge": lambda dim, num_classes, **settings: GatherExciteGate(dim, **settings),
    "none": lambda dim, num_classes: None,
}


def build_gate(kind: str, dim: int, num_classes: int, **settings: Any) -> nn.Module | None:
    """The gate called ``kind`` (``spg``, ``unsupervised``, ``se``, ``ge`` or ``none``) for ``dim`` channels."""
    if kind not in GATES:
        raise ValueError(f"gate is {kind!r}; it must be one of {', '.join(GATES)}")
    try:
        return GATES[kind](dim, num_classes, **settings)
    except TypeError as error:
        raise ValueError(f"gate_settings are {settings}; gate {kind!r} does not take them: {error}") from None
