"""PSLT: a light backbone whose windows see one another inside one block.

Wu et al., "PSLT: A Light-weight Vision Transformer with Ladder Self-Attention and Progressive Shift", IEEE TPAMI 2023,
arXiv 2304.03481. A ladder block splits its channels into three branches. Each attends within windows of its own third:
the first as the map lies, the second after rolling it up and left, the third after rolling it down and right. The
output of a branch is the value of the next (progressive shift), so that information crosses windows inside one block,
at about a third of the cost. A gate at every pixel and a linear layer fuse the branches. Two stages of inverted
bottlenecks with squeeze and excitation come before. Nothing is training-only but drop-path and dropout.

Maps are (B, C, H, W) between stages, channels last in memory, and (B, H, W, C) inside ladder stages. Any height and
width work: what depends on them is computed in every call, and nothing is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from repertory.data.preprocessing import Preprocessing
from repertory.nn.pyramid import PyramidBackbone, Stage, initialise_linear
from repertory.nn.recompute import recompute
from repertory.ops.backend import being_traced

PREPROCESSING = Preprocessing(size=(224, 224), interpolation="bicubic", crop=0.875)
SHIFTS = ("progressive", "alternating", "none")
APART = -100.0  # added to the logit of two tokens that meet in a window only because the map was rolled
CACHE = 2**20  # values of a map that are worked on at a time where nothing need be kept


class Cut(NamedTuple):
    """Tokens of a map in the order of its windows (``order``), the way back (``back``), and the mask, if any."""

    order: Tensor
    back: Tensor
    mask: Tensor | None


class Windows:
    """How a map is cut into windows: for every shift, which token goes where and which pairs are masked.

    Windows are ``window_size`` wide, or as wide as the shorter side where that is less; in a map no wider than a window
    nothing is shifted. Sides that windows do not divide are padded at the bottom and on the right.

    Args:
        height: height of the map.
        width: width of the map.
        window_size: side of the windows that biases are kept for.
        shifts: how far the map is rolled down and right before it is cut; negative ones roll up and left.
        device: where the tables lie.
    """

    def __init__(
        self, height: int, width: int, window_size: int, shifts: Iterable[int], device: torch.device | None = None
    ) -> None:
        self.size = size = min(window_size, height, width)
        self.shape, self.padding = (height, width), (-height % size, -width % size)
        sides = (height + self.padding[0], width + self.padding[1])
        self.count = sides[0] * sides[1] // size**2
        places = torch.arange(sides[0] * sides[1], device=device).view(sides)
        fits = min(height, width) <= window_size
        cuts = {shift: self._cut(places, shift) for shift in ({0} if fits else set(shifts))}
        self.cuts = {shift: cuts[0 if fits else shift] for shift in shifts}
        # Where among the (2 window_size - 1)^2 biases the offset of two tokens of a window stands.
        place = torch.arange(size, device=device)
        offset = place[:, None] - place + window_size - 1
        pairs = offset[:, None, :, None] * (2 * window_size - 1) + offset[None, :, None, :]
        self.pairs = pairs.reshape(-1)

    def _cut(self, places: Tensor, shift: int) -> Cut:
        size, (height, width) = self.size, self.shape
        rolled = places.roll((shift, shift), (0, 1)) if shift else places
        order = rolled.unflatten(0, (-1, size)).unflatten(2, (-1, size)).transpose(1, 2).reshape(-1)
        back = torch.empty_like(order).scatter_(0, order, places.flatten())
        back = back.view(places.shape)[:height, :width].reshape(-1)
        if not shift:
            return Cut(order, back, None)
        # Tokens of a window were neighbours before the roll if their windows would begin at the same place.
        begin = order.view(-1, size**2) - places[:size, :size].reshape(-1)
        return Cut(order, back, (begin[:, :, None] != begin[:, None, :]) * APART)

    def cut(self, x: Tensor, shift: int) -> Tensor:
        """(B, H, W, D) to (B * windows, size^2, D), rolled by ``shift``, padded with zeros."""
        if any(self.padding):
            x = F.pad(x, (0, 0, 0, self.padding[1], 0, self.padding[0]))
        return x.flatten(1, 2).index_select(1, self.cuts[shift].order).view(-1, self.size**2, x.shape[-1])

    def join(self, x: Tensor, shift: int) -> Tensor:
        """The inverse of :meth:`cut`, without the padding: (B * windows, size^2, D) to (B, H, W, D)."""
        tokens = x.reshape(-1, self.count * self.size**2, x.shape[-1])
        return tokens.index_select(1, self.cuts[shift].back).view(-1, *self.shape, x.shape[-1])

    def bias(self, table: Tensor, shift: int, batch: int) -> Tensor:
        """What is added to the logits, (1 or B * windows, heads, size^2, size^2); ``table`` holds a row an offset."""
        bias = table.t().index_select(1, self.pairs).view(1, -1, self.size**2, self.size**2)
        mask = self.cuts[shift].mask
        if mask is None:
            return bias
        bias = bias + mask[:, None].to(bias.dtype)
        return bias.repeat(batch, 1, 1, 1) if batch > 1 else bias


class Gate(nn.Module):
    """Squeeze and excitation without the squeeze: a factor for each channel, (…, dim) to (…, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, dim // 2), nn.Linear(dim // 2, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Factors between 0 and 1."""
        return self.fc2(F.relu(self.fc1(x))).sigmoid()


class Bottleneck(nn.Module):
    """Pointwise, depth-wise and pointwise convolution, normalised *after* the activation: (B, C, H, W) maps.

    Args:
        inp: channels in.
        hidden: channels of the depth-wise convolution.
        oup: channels out.
        stride: of the depth-wise convolution.
        bias: whether the convolutions have one.
    """

    def __init__(self, inp: int, hidden: int, oup: int, stride: int = 1, bias: bool = False) -> None:
        super().__init__()
        self.expand, self.norm1 = nn.Conv2d(inp, hidden, 1, bias=bias), nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=bias)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.project, self.norm3 = nn.Conv2d(hidden, oup, 1, bias=bias), nn.BatchNorm2d(oup)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inp, H, W) to (B, oup, H / stride, W / stride), sizes rounded up."""
        largest = self.expand.out_channels * x.shape[2] * x.shape[3]
        if _overwrites(self, x, largest):
            return _by_parts(self._in_place, x, largest)
        x = self.norm1(_gelu(self.expand(x)))
        x = self.norm2(_gelu(self.depthwise(x)))
        return self.norm3(self.project(x))

    def _in_place(self, x: Tensor) -> Tensor:
        """The same, the last two norms folded into the pointwise convolution between them."""
        x = F.linear(x.permute(0, 2, 3, 1), self.expand.weight.flatten(1), self.expand.bias).permute(0, 3, 1, 2)
        x = self.depthwise(_gelu_and_normalize_(x, self.norm1)).permute(0, 2, 3, 1)
        (before, shift), (after, bias) = _affine(self.norm2), _affine(self.norm3)
        project = self.project.weight.flatten(1) * after[:, None]
        bias = torch.addmv(bias, project, shift)
        if self.project.bias is not None:
            bias = bias + after * self.project.bias
        return F.linear(torch.ops.aten.gelu_(x), project * before, bias).permute(0, 3, 1, 2)


class Stem(nn.Sequential):
    """Three convolutions, each with GELU and then a norm: images (B, in_chans, H, W) to maps at stride 2."""

    def __init__(self, in_chans: int, width: int) -> None:
        layers: list[nn.Module] = []
        for before, after, stride in ((in_chans, width // 2, 2), (width // 2, width, 1), (width, width, 1)):
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.GELU(), nn.BatchNorm2d(after)]
        super().__init__(*layers)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) to (B, width, H / 2, W / 2), sizes rounded up."""
        largest = self.width * x.shape[2] * x.shape[3] // 4
        if _overwrites(self, x, largest):
            return _by_parts(self._in_place, x, largest)
        return super().forward(x)

    def _in_place(self, x: Tensor) -> Tensor:
        layers = list(self.children())
        for convolution, norm in zip(layers[::3], layers[2::3], strict=True):
            x = _gelu_and_normalize_(convolution(x), norm)
        return x


def _gelu(x: Tensor) -> Tensor:
    """GELU of a map; it is faster on memory in order, and maps have their channels last."""
    return F.gelu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _gelu_and_normalize_(x: Tensor, norm: Any) -> Tensor:
    """GELU and then ``norm`` of a map, in its memory."""
    scale, shift = _affine(norm)
    torch.ops.aten.gelu_(x.permute(0, 2, 3, 1)).mul_(scale).add_(shift)
    return x


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """What a batch norm multiplies by and adds in evaluation, (C,) each."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, torch.addcmul(norm.bias, norm.running_mean, scale, value=-1)


def _overwrites(module: nn.Module, x: Tensor, largest: int) -> bool:
    """Whether ``module`` may run in place: on CPU, in evaluation, where no gradient is wanted and no hook looks on.

    Half of what the early stages take on CPU beside their products is fresh memory for maps that leave the cache; small
    maps (``largest`` values an image) are not worth it.
    """
    if torch.is_grad_enabled() or x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or being_traced():
        return False
    if x.shape[0] * largest < CACHE // 4:
        return False
    for layer in module.children():
        if layer._forward_hooks or layer._forward_pre_hooks:
            return False
        if not isinstance(layer, (nn.Conv2d, nn.GELU)) and (type(layer) is not nn.BatchNorm2d or layer.training):
            return False
    return True


def _by_parts(run: Callable[[Tensor], Tensor], x: Tensor, largest: int) -> Tensor:
    """``run`` of as many images at a time as the cache holds, ``largest`` values each."""
    parts = x.split(max(1, CACHE // largest))
    return run(x) if len(parts) < 2 else torch.cat([run(part) for part in parts])


class InvertedBottleneck(nn.Module):
    """The block of the early stages: a bottleneck of four times the width, squeeze and excitation, residual if it fits.

    Args:
        inp: channels in.
        oup: channels out.
        stride: 1 or 2.
        expansion: hidden width over ``inp``.
    """

    def __init__(self, inp: int, oup: int, stride: int = 1, expansion: int = 4) -> None:
        super().__init__()
        if stride not in (1, 2):
            raise ValueError(f"stride is {stride}; it must be 1 or 2")
        self.conv, self.gate = Bottleneck(inp, inp * expansion, oup, stride), Gate(oup)
        self.residual = stride == 1 and inp == oup

    def forward(self, x: Tensor) -> Tensor:
        """(B, inp, H, W) to (B, oup, H / stride, W / stride), sizes rounded up."""
        out = self.conv(x)
        factors = self.gate(out.mean((2, 3)))[:, :, None, None]
        return torch.addcmul(x, out, factors) if self.residual else out * factors


class WindowAttention(nn.Module):
    """Attention within windows, with a bias for each offset; values are projected, or given.

    Args:
        dim: width D.
        num_heads: heads h; must divide ``dim``.
        window_size: side of the largest window.
        chained: whether values are given; then they are used as they are, and the tokens are added to the output.
        drop: dropout of the output.
        backend: ``reference`` shows every product to a FLOP counter.
    """

    def __init__(
        self, dim: int, num_heads: int, window_size: int, chained: bool, drop: float = 0.0, backend: str = "auto"
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim is {dim}; it must be a multiple of num_heads, which is {num_heads}")
        self.num_heads, self.chained, self.backend = num_heads, chained, backend
        self.bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)
        if chained:
            self.qk = nn.Linear(dim, 2 * dim)
        else:
            self.qkv = nn.Linear(dim, 3 * dim)
        self.proj, self.drop = nn.Linear(dim, dim), nn.Dropout(drop)

    def forward(self, tokens: Tensor, values: Tensor | None, windows: Windows, shift: int) -> Tensor:
        """Tokens and values (B * windows, size^2, D), cut with ``shift``, to as many."""
        count, length, dim = tokens.shape
        heads = (self.num_heads, dim // self.num_heads)
        projected = self.qk(tokens) if self.chained else self.qkv(tokens)
        parts = projected.view(count, length, 2 if self.chained else 3, *heads).permute(2, 0, 3, 1, 4)
        query, key = parts[0], parts[1]
        value = parts[2] if values is None else values.view(count, length, *heads).transpose(1, 2)
        bias = windows.bias(self.bias_table, shift, count // windows.count).to(query.dtype)
        # What fused attention gives is a view when exported, which the ONNX exporter rejects.
        if self.backend == "reference" or torch.compiler.is_exporting():
            weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1) + bias
            out = weights.softmax(-1) @ value
        else:
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        out = self.drop(self.proj(out.transpose(1, 2).reshape(count, length, dim)))
        return out + tokens if self.chained else out


class Branch(nn.Module):
    """One rung of the ladder: window attention at one shift, then a light feed-forward network of convolutions.

    Args:
        dim: width D of the branch.
        num_heads: heads.
        window_size: side of the windows.
        shift: how far the map is rolled down and right before it is cut; negative: up and left.
        chained: whether the output of the branch before is the value of this one.
        drop: dropout of the attention's output.
        drop_path: rate of dropped residual branches.
        backend: of the attention.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        shift: int,
        chained: bool,
        drop: float,
        drop_path: float,
        backend: str,
    ) -> None:
        super().__init__()
        self.shift = shift
        self.norm1, self.attn = nn.LayerNorm(dim), WindowAttention(dim, num_heads, window_size, chained, drop, backend)
        self.norm2, self.ffn = nn.LayerNorm(dim), Bottleneck(dim, dim, dim, bias=True)
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: Tensor, previous: Tensor | None, windows: Windows) -> Tensor:
        """(B, H, W, D), and the output of the branch before it, to (B, H, W, D)."""
        tokens = windows.cut(self.norm1(x), self.shift)
        values = windows.cut(previous, self.shift) if self.attn.chained and previous is not None else None
        x = x + self.drop_path(windows.join(self.attn(tokens, values, windows, self.shift), self.shift))
        mixed = self.ffn(self.norm2(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.drop_path(mixed)


class LadderBlock(nn.Module):
    """Ladder self-attention: branches in sequence, each on its share of the channels, then pixel-adaptive fusion.

    Input and output (B, H, W, ``dim``).

    Args:
        dim: channels C; a multiple of ``num_heads`` times the number of branches.
        num_heads: heads of each branch.
        window_size: side of the windows.
        shifts: one a branch: how far the map is rolled down and right before it is cut; None for 0, -s, +s with s half
            the window.
        chain_values: whether the output of a branch is the value of the next; else each projects its own.
        gate: whether each pixel weighs its channels before they are mixed.
        mix: whether a linear layer mixes the branches; else its place is taken by the identity.
        drop: dropout of the attention's output.
        drop_path: rate of dropped residual branches, drawn anew in each branch.
        backend: ``auto``, or ``reference`` to show every product to a FLOP counter.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int = 7,
        shifts: Sequence[int] | None = None,
        chain_values: bool = True,
        gate: bool = True,
        mix: bool = True,
        drop: float = 0.0,
        drop_path: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        shifts = progressive(window_size) if shifts is None else tuple(shifts)
        _check_ladder(dim, num_heads, window_size, shifts)
        self.dim, self.window_size, self.shifts = dim, window_size, shifts
        self.branches = nn.ModuleList(
            Branch(
                dim // len(shifts),
                num_heads,
                window_size,
                shift,
                chain_values and index > 0,
                drop,
                drop_path,
                backend,
            )
            for index, shift in enumerate(shifts)
        )
        self.gate = Gate(dim) if gate else None
        self.mix = nn.Linear(dim, dim) if mix else nn.Identity()

    def forward(self, x: Tensor, windows: Windows | None = None) -> Tensor:
        """(B, H, W, dim) to (B, H, W, dim); ``windows`` spares computing them again for a map of the same size."""
        if x.ndim != 4 or x.shape[-1] != self.dim:
            raise ValueError(f"x is {tuple(x.shape)}; it must be (B, H, W, {self.dim})")
        if windows is None:
            windows = Windows(x.shape[1], x.shape[2], self.window_size, self.shifts, x.device)
        outs: list[Tensor] = []
        for branch, part in zip(self.branches, x.chunk(len(self.branches), -1), strict=True):
            outs.append(branch(part, outs[-1] if outs else None, windows))
        fused = torch.cat(outs, -1)
        if self.gate is not None:
            fused = fused * self.gate(fused)
        return self.mix(fused) + fused


def progressive(window_size: int) -> tuple[int, ...]:
    """The published shifts of three branches: none, up and left, down and right, by half a window."""
    return (0, -(window_size // 2), window_size // 2)


def _check_ladder(dim: int, num_heads: int, window_size: int, shifts: Sequence[int]) -> None:
    if window_size < 1:
        raise ValueError(f"window_size is {window_size}; it must be at least 1")
    if not shifts or max(map(abs, shifts)) >= window_size:
        raise ValueError(f"shifts are {tuple(shifts)}; there must be some, all shorter than window_size {window_size}")
    if num_heads < 1:
        raise ValueError(f"num_heads is {num_heads}; it must be at least 1")
    whole = len(shifts) * num_heads
    if dim < 1 or dim % whole:
        least = max(dim // whole, 1) * whole
        raise ValueError(
            f"dim is {dim}; it must be a multiple of {len(shifts)} branches x {num_heads} heads; "
            f"{least} or {least + whole} would do"
        )


class PatchMerging(nn.Module):
    """Four neighbours side by side, normalised and reduced: (B, C, H, W) to (B, 2 C, H / 2, W / 2), rounded up.

    Maps with odd sides are padded with zeros, as the authors' code for detection means to (it refuses them first).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * dim), nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Neighbours in the order (0, 0), (1, 0), (0, 1), (1, 1) of row and column."""
        x = x.permute(0, 2, 3, 1)
        if x.shape[1] % 2 or x.shape[2] % 2:
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        x = torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], -1)
        return self.reduction(self.norm(x)).permute(0, 3, 1, 2)


class LadderStage(Stage):
    """A downsampler, then ladder blocks: (B, C, H, W) to (B, 2 C, H / 2, W / 2), rounded up."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[LadderBlock]) -> None:
        super().__init__(downsample, blocks)
        self.window_size = blocks[0].window_size
        self.shifts = sorted({shift for block in blocks for shift in block.shifts})

    def forward(self, x: Tensor) -> Tensor:
        """The stage's map; its windows are computed once for all blocks."""
        x = self.downsample(x).permute(0, 2, 3, 1).contiguous()
        windows = Windows(x.shape[1], x.shape[2], self.window_size, self.shifts, x.device)
        again = self.grad_checkpointing and self.training and torch.is_grad_enabled()
        for block in self.blocks:
            run = partial(block, windows=windows)
            x = recompute(block, x, run=run) if again else run(x)
        return x.permute(0, 3, 1, 2)


class PSLT(PyramidBackbone):
    """The pyramid backbone with its classifier.

    Stages are numbered through: those of ``conv_depths`` (strides 4, 8), then those of ``depths`` (16, 32).

    Args:
        num_classes: width of the classifier; 0 leaves pooled features.
        in_chans: channels of the images.
        embed_dim: width e of the stem; even. Stages are 2e, 4e, 8e and 16e wide.
        conv_depths: blocks of each convolutional stage.
        depths: blocks of each ladder stage.
        num_heads: heads of a branch in each ladder stage.
        window_size: side of the windows, for all ladder stages or for each.
        branches: branches of a ladder block, 1 to 3.
        shift: ``progressive`` (none, up and left, down and right, one a branch), ``alternating`` (every second block
            shifts all branches, as Swin does) or ``none``.
        chain_values: whether the output of a branch is the value of the next.
        gate: whether pixels weigh their channels before branches are mixed.
        mix: whether a linear layer mixes branches.
        drop: dropout after the stem and of the attentions' output.
        drop_path: rate of dropped residual branches, rising linearly from 0 over all ladder blocks.
        final_norm: whether the last map is normalised before it is pooled; the authors' detectors have no such layer.
        backend: ``auto``, or ``reference`` to show every product to a FLOP counter.

    Raises:
        ValueError: for settings of stages that differ in length, or that a layer cannot take.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        embed_dim: int = 36,
        conv_depths: Sequence[int] = (3, 3),
        depths: Sequence[int] = (10, 3),
        num_heads: Sequence[int] = (4, 8),
        window_size: int | Sequence[int] = 7,
        branches: int = 3,
        shift: str = "progressive",
        chain_values: bool = True,
        gate: bool = True,
        mix: bool = True,
        drop: float = 0.0,
        drop_path: float = 0.2,
        final_norm: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        windows = [window_size] * len(depths) if isinstance(window_size, int) else list(window_size)
        _check_stages(embed_dim, conv_depths, depths, num_heads, windows, branches, shift, backend)
        self.in_chans, self.preprocessing = in_chans, PREPROCESSING
        first = len(conv_depths)
        widths = [embed_dim * 2 ** (stage + 1) for stage in range(first + len(depths))]
        rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())

        def ladder(stage: int, index: int) -> LadderBlock:
            shifts = _shifts(shift, windows[stage], branches, index)
            return LadderBlock(
                widths[first + stage],
                num_heads[stage],
                windows[stage],
                shifts,
                chain_values,
                gate,
                mix,
                drop,
                next(rates),
                backend,
            )

        self.stem, self.drop = Stem(in_chans, embed_dim), nn.Dropout(drop)
        stages = [
            Stage(nn.Identity(), _bottlenecks(embed_dim * 2**stage, depth)) for stage, depth in enumerate(conv_depths)
        ]
        for stage, depth in enumerate(depths):
            width = widths[first + stage] // 2
            downsample = PatchMerging(width) if stage else InvertedBottleneck(width, 2 * width, 2)
            stages.append(LadderStage(downsample, [ladder(stage, index) for index in range(depth)]))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(widths[-1]) if final_norm else nn.Identity()
        self.finish(num_classes, widths, [4 * 2**stage for stage in range(len(widths))])
        self.apply(initialise_linear)

    def enter(self, x: Tensor) -> Tensor:
        """The stem's map (B, e, H / 2, W / 2), sizes rounded up."""
        if x.ndim != 4 or x.shape[1] != self.in_chans or not x.shape[-1] or not x.shape[-2]:
            raise ValueError(
                f"images are {tuple(x.shape)}; they must be (B, {self.in_chans}, H, W) with H and W at least 1"
            )
        if not x.is_cuda:  # convolutions on CPU are faster so, and ladder stages want channels last anyway
            x = x.contiguous(memory_format=torch.channels_last)
        return self.drop(self.stem(x))

    def last_map(self, x: Tensor) -> Tensor:
        """The last map, normalised: (B, num_features, H / 32, W / 32), sizes rounded up."""
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _bottlenecks(width: int, depth: int) -> list[nn.Module]:
    """Blocks of a convolutional stage, from ``width`` channels to twice as many, the first at stride 2."""
    return [InvertedBottleneck(2 * width if index else width, 2 * width, 1 if index else 2) for index in range(depth)]


def _shifts(shift: str, window_size: int, branches: int, index: int) -> tuple[int, ...]:
    """Shifts of the branches of block ``index`` of a stage."""
    if shift == "progressive":
        return progressive(window_size)[:branches]
    return (-(window_size // 2) if shift == "alternating" and index % 2 else 0,) * branches


def _check_stages(
    embed_dim: int,
    conv_depths: Sequence[int],
    depths: Sequence[int],
    num_heads: Sequence[int],
    windows: Sequence[int],
    branches: int,
    shift: str,
    backend: str,
) -> None:
    if embed_dim < 2 or embed_dim % 2:
        raise ValueError(f"embed_dim is {embed_dim}; it must be even and at least 2")
    if not depths or not len(depths) == len(num_heads) == len(windows):
        raise ValueError(
            f"depths, num_heads and window_size list {len(depths)}, {len(num_heads)} and {len(windows)} ladder stages; "
            "they must be as many, and at least one"
        )
    if min((*conv_depths, *depths)) < 1:
        raise ValueError(f"conv_depths are {tuple(conv_depths)} and depths {tuple(depths)}; all must be at least 1")
    if not 1 <= branches <= 3:
        raise ValueError(f"branches is {branches}; it must be 1, 2 or 3")
    if shift not in SHIFTS:
        raise ValueError(f"shift is {shift!r}; it must be one of {', '.join(SHIFTS)}")
    if backend not in ("auto", "reference"):
        raise ValueError(f"backend is {backend!r}; it must be 'auto' or 'reference'")


def pslt_tiny(num_classes: int = 1000, in_chans: int = 3, **settings: Any) -> PSLT:
    """PSLT-Tiny: 4.3 M parameters with 1000 classes. ``settings`` are those of :class:`PSLT`."""
    sizes: dict[str, Any] = {"embed_dim": 24}
    return PSLT(num_classes, in_chans, **sizes | settings)


def pslt(num_classes: int = 1000, in_chans: int = 3, **settings: Any) -> PSLT:
    """PSLT: 9.3 M parameters with 1000 classes. ``settings`` are those of :class:`PSLT`."""
    return PSLT(num_classes, in_chans, **settings)


def pslt_large(num_classes: int = 1000, in_chans: int = 3, **settings: Any) -> PSLT:
    """PSLT-Large: 16.1 M parameters with 1000 classes. ``settings`` are those of :class:`PSLT`."""
    sizes: dict[str, Any] = {"embed_dim": 48}
    return PSLT(num_classes, in_chans, **sizes | settings)


BACKBONES: dict[str, dict[str, Any]] = {  # for timm
    builder.__name__: {
        "feature_cfg": {"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        "first_conv": "stem.0",
        "classifier": "head",
    }
    for builder in (pslt_tiny, pslt, pslt_large)
}
