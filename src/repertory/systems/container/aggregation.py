"""Context aggregation: convolution, self-attention and MLP-Mixer as one layer with different affinity matrices.

Gao et al., "Container: Context Aggregation Network", NeurIPS 2021, arXiv 2106.01401. Every such layer computes

    Y = Concat_m(A_m V_m) W_2,  V = X W_1,

and a residual block adds X. What differs is the affinity matrix A_m of a head, (N, N) over the N positions of the map:
softmax of queries against keys (:class:`DynamicAffinity`), a kernel shared by all positions (:class:`LocalAffinity`),
or one free weight a pair of positions (:class:`DenseAffinity`). :class:`ContextAggregation` mixes any of them by
scalars: A = alpha A_dynamic(X) + beta A_static.

Maps are (B, C, H, W); positions are numbered along rows. A token sequence is a map of one column, (B, C, N, 1).
No layer writes an affinity out: ``matrix`` does, for inspection and for proofs, at a cost quadratic in N.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BACKENDS = ("auto", "reference")


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, C, H, W) to (B, heads, N, C / heads): heads are contiguous slices of the channels."""
    # The fused attention of PyTorch refuses rows whose elements are not neighbours.
    return x.flatten(2).unflatten(1, (num_heads, -1)).transpose(2, 3).contiguous()


def _divides(dim: int, num_heads: int) -> None:
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"dim is {dim}; it must be a multiple of num_heads, which is {num_heads}")


class Affinity(nn.Module, ABC):
    """How much each position takes from each other; ``num_heads`` matrices, each for a slice of the channels.

    ``dim`` are the channels C; ``dynamic`` says that the matrix depends on the input: queries and keys are needed then.
    """

    dynamic = False
    dim: int
    num_heads: int

    @abstractmethod
    def forward(self, value: Tensor, query: Tensor | None = None, key: Tensor | None = None) -> Tensor:
        """A V of ``value`` (B, C, H, W), of the same shape; ``query`` and ``key`` (B, C, H, W) where dynamic."""

    @abstractmethod
    def matrix(self, size: tuple[int, int], query: Tensor | None = None, key: Tensor | None = None) -> Tensor:
        """A itself, (B or 1, num_heads, N, N), for maps of ``size`` (H, W), N = H W. Biases are no part of it."""


class DynamicAffinity(Affinity):
    """softmax(Q K^T / sqrt(C / heads)): the affinity of self-attention.

    Args:
        dim: channels C.
        num_heads: heads; must divide ``dim``.
        drop: dropout of what was aggregated.
        backend: ``auto`` (fused attention), or ``reference``, which shows every product to a FLOP counter.

    Raises:
        ValueError: for heads that do not divide the width, or an unknown backend.
    """

    dynamic = True

    def __init__(self, dim: int, num_heads: int, drop: float = 0.0, backend: str = "auto") -> None:
        super().__init__()
        _divides(dim, num_heads)
        if backend not in BACKENDS:
            raise ValueError(f"backend is {backend!r}; it must be one of {', '.join(BACKENDS)}")
        self.dim, self.num_heads, self.backend = dim, num_heads, backend
        self.drop = nn.Dropout(drop)

    def forward(self, value: Tensor, query: Tensor | None = None, key: Tensor | None = None) -> Tensor:
        """softmax(Q K^T) V, (B, C, H, W)."""
        assert query is not None
        assert key is not None
        values = _heads(value, self.num_heads)
        if self.backend == "reference":
            out = self._softmax(query, key) @ values
        else:
            out = F.scaled_dot_product_attention(_heads(query, self.num_heads), _heads(key, self.num_heads), values)
        return self.drop(out.transpose(2, 3).reshape(value.shape))

    def matrix(self, size: tuple[int, int], query: Tensor | None = None, key: Tensor | None = None) -> Tensor:
        """(B, heads, N, N); every row is a distribution."""
        assert query is not None
        assert key is not None
        return self._softmax(query, key)

    def _softmax(self, query: Tensor, key: Tensor) -> Tensor:
        queries, keys = _heads(query, self.num_heads), _heads(key, self.num_heads)
        return ((queries * queries.shape[-1] ** -0.5) @ keys.transpose(2, 3)).softmax(-1)


class LocalAffinity(Affinity):
    """Ker[j - i] inside a window and 0 outside, the same for every position: the affinity of depth-wise convolution.

    Args:
        dim: channels C, each a head of its own.
        kernel_size: odd side of the window.
        bias: add a bias to each channel of A V.

    Raises:
        ValueError: for an even kernel.
    """

    def __init__(self, dim: int, kernel_size: int = 5, bias: bool = True) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}; it must be odd and at least 1")
        self.dim = self.num_heads = dim
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=bias)

    def forward(self, value: Tensor, query: Tensor | None = None, key: Tensor | None = None) -> Tensor:
        """The convolved ``value``, (B, C, H, W)."""
        return self.conv(value)

    def matrix(self, size: tuple[int, int], query: Tensor | None = None, key: Tensor | None = None) -> Tensor:
        """(1, C, N, N): a kernel laid around the position of each row, cut off at the border."""
        kernel = self.conv.weight[:, 0]
        side = kernel.shape[-1]
        down, right = (torch.arange(length, device=kernel.device) for length in size)
        y, x = (grid.flatten() for grid in torch.meshgrid(down, right, indexing="ij"))
        dy, dx = (at[None, :] - at[:, None] + side // 2 for at in (y, x))  # column minus row: where a row looks
        inside = (dy >= 0) & (dy < side) & (dx >= 0) & (dx < side)
        return (kernel[:, dy.clamp(0, side - 1), dx.clamp(0, side - 1)] * inside)[None]


class DenseAffinity(Affinity):
    """One free weight a pair of positions: the affinity of MLP-Mixer, a linear layer over tokens. Bound to one size.

    Args:
        dim: channels C.
        size: (H, W) of the maps.
        num_heads: matrices; MLP-Mixer has one for all channels. Must divide ``dim``.
        bias: add a bias to each position of A V.

    Raises:
        ValueError: for heads that do not divide the width, or (in ``forward``) for maps of another size.
    """

    def __init__(self, dim: int, size: tuple[int, int], num_heads: int = 1, bias: bool = False) -> None:
        super().__init__()
        _divides(dim, num_heads)
        if min(size) < 1:
            raise ValueError(f"size is {tuple(size)}; height and width must be at least 1")
        self.dim, self.num_heads, self.size = dim, num_heads, (int(size[0]), int(size[1]))
        positions = self.size[0] * self.size[1]
        self.weight = nn.Parameter(torch.empty(num_heads, positions, positions))
        self.bias = nn.Parameter(torch.zeros(num_heads, positions)) if bias else None
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, value: Tensor, query: Tensor | None = None, key: Tensor | None = None) -> Tensor:
        """A V, (B, C, H, W)."""
        self._check(value.shape[-2], value.shape[-1])
        out = value.flatten(2).unflatten(1, (self.num_heads, -1)) @ self.weight.transpose(1, 2)
        if self.bias is not None:
            out = out + self.bias[:, None]
        return out.reshape(value.shape)

    def matrix(self, size: tuple[int, int], query: Tensor | None = None, key: Tensor | None = None) -> Tensor:
        """(1, heads, N, N)."""
        self._check(*size)
        return self.weight[None]

    def _check(self, height: int, width: int) -> None:
        if (height, width) != self.size:
            held = " x ".join(map(str, self.size))
            raise ValueError(f"the map is {height} x {width}; a dense affinity built for {held} takes that size only")


class ContextAggregation(nn.Module):
    """Y = ((w_1 A_1 + w_2 A_2 + …) V) W_2 with V = X W_1: what a block adds to X.

    Special cases, each held to an independent implementation in the tests:

    - ``[DynamicAffinity(dim, heads)]`` is multi-head self-attention;
    - ``[LocalAffinity(dim, k)]`` without projections is a depth-wise convolution;
    - ``[DenseAffinity(dim, size)]`` without projections is the token-mixing linear layer of MLP-Mixer;
    - ``[DynamicAffinity(…), LocalAffinity(…)]`` with ``mixing="convex"`` is CONTAINER-LIGHT's last stage.

    Args:
        dim: channels C.
        affinities: what is mixed, at least one.
        mixing: the weights. ``convex``: s and 1 - s of two affinities, s = sigmoid of a learned scalar that starts at 0
            [authors' code]. ``free``: a learned scalar each, all starting at one part in their number [the form of the
            paper; its initial values are inferred]. A sequence of numbers: fixed. None: all 1.
        value_projection: whether there is a W_1 (1 x 1 convolution with bias); a dynamic affinity needs it, since its
            queries and keys come out of the same layer, in the order query, key, value.
        output_projection: whether there is a W_2 (1 x 1 convolution with bias).

    Raises:
        ValueError: for no affinity, one of another width, weights that are not as many, an unknown mixing, or a
            dynamic affinity without W_1.
    """

    def __init__(
        self,
        dim: int,
        affinities: Sequence[Affinity],
        mixing: str | Sequence[float] | None = None,
        value_projection: bool = True,
        output_projection: bool = True,
    ) -> None:
        super().__init__()
        self.affinities = nn.ModuleList(affinities)
        count = len(self.affinities)
        if not count:
            raise ValueError("affinities is empty; at least one is needed")
        for affinity in affinities:
            if affinity.dim != dim:
                raise ValueError(f"an affinity of {affinity.dim} channels is given; it must have dim, {dim}")
        self.dynamic = any(affinity.dynamic for affinity in affinities)
        if self.dynamic and not value_projection:
            raise ValueError("value_projection is False; a dynamic affinity needs it for its queries and keys")
        self.mixing = mixing if isinstance(mixing, str) else "fixed"
        if mixing == "convex":
            if count != 2:
                raise ValueError(f"mixing is 'convex', which takes two affinities; there are {count}")
            self.mixing_logit = nn.Parameter(torch.zeros(1))
        elif mixing == "free":
            self.mixing_weights = nn.Parameter(torch.full((count,), 1 / count))
        elif isinstance(mixing, str):
            raise ValueError(f"mixing is {mixing!r}; it must be 'convex', 'free', numbers or None")
        else:
            self.fixed_weights = (1.0,) * count if mixing is None else tuple(float(weight) for weight in mixing)
            if len(self.fixed_weights) != count:
                raise ValueError(f"mixing lists {len(self.fixed_weights)} numbers; there are {count} affinities")
        width = dim * (3 if self.dynamic else 1)
        self.project: nn.Module = nn.Conv2d(dim, width, 1) if value_projection else nn.Identity()
        self.output: nn.Module = nn.Conv2d(dim, dim, 1) if output_projection else nn.Identity()

    def weights(self) -> tuple[Tensor | float, ...]:
        """The scalar of each affinity: (1,) or () tensors where learned, numbers where fixed."""
        if self.mixing == "fixed":
            return self.fixed_weights
        if self.mixing == "free":
            return self.mixing_weights.unbind()
        share = self.mixing_logit.sigmoid()
        return share, 1 - share

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W), without the residual."""
        query, key, value = self._projected(x)
        mixed: Tensor | None = None
        for weight, affinity in zip(self.weights(), self.affinities, strict=True):
            taken = affinity(value, query, key)
            if not (isinstance(weight, float) and weight == 1):
                taken = weight * taken
            mixed = taken if mixed is None else mixed + taken
        return self.output(mixed)

    def matrix(self, x: Tensor) -> Tensor:
        """The mixed affinity for ``x`` (B, C, H, W), one for each channel: (B, C, N, N)."""
        query, key, value = self._projected(x)
        size, channels = (x.shape[-2], x.shape[-1]), value.shape[1]
        total = value.new_zeros(len(x), channels, size[0] * size[1], size[0] * size[1])
        for weight, affinity in zip(self.weights(), self.affinities, strict=True):
            each = affinity.matrix(size, query, key)  # type: ignore[operator]
            total = total + weight * each.repeat_interleave(channels // each.shape[1], dim=1)
        return total

    def _projected(self, x: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor]:
        projected = self.project(x)
        if not self.dynamic:
            return None, None, projected
        query, key, value = projected.chunk(3, dim=1)
        return query, key, value
