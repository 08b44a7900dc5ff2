"""Stage two's module: a small linear layer that mixes the chosen channels of a block among themselves.

Form and place are those of the same first author's related method (showlab/SCT), by which this part is checked; that
the paper's own module equals it is inferred, and so is the start at zero, by which stage two begins as exactly the
function that stage one ended with::

    x[..., idx] <- x[..., idx] + s (W x[..., idx] + b)          W: (K, K), b: (K,), after the attention's residual sum

It stays at inference: it acts on the residual stream, which no single linear layer could take it from.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repertory.nn.recompute import recompute as run_again
from repertory.systems.petl_two_stage.layer_norm import heads, layer_norms, train_only

Place = Literal["attention", "mlp"]
Init = Literal["zero", "normal"]


def transformer_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The pre-norm blocks of ``model`` by name, in their order: those of timm's ViTs and Swins, and others like them.

    A block has a norm, ``attn``, ``norm2`` and ``mlp``; a ``norm2`` that stands behind ``mlp`` normalises its output,
    and such post-norm blocks (Swin V2) are not meant.

    Raises:
        ValueError: where there is none.
    """
    found = {name: module for name, module in model.named_modules() if _is_pre_norm(module)}
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no pre-norm transformer block (attn, norm2 and mlp in this order); "
            "channels are tuned in those of ViT and Swin"
        )
    return found


def widths(model: nn.Module) -> list[int]:
    """Channels of each block of ``model``; they differ from stage to stage of a Swin."""
    return [block.norm2.normalized_shape[0] for block in transformer_blocks(model).values()]  # type: ignore[union-attr,index,misc]


def _is_pre_norm(module: nn.Module) -> bool:
    names = [name for name, _ in module.named_children() if name in ("attn", "norm2", "mlp")]
    return names == ["attn", "norm2", "mlp"] and hasattr(module.norm2, "normalized_shape")


class ChannelAdapter(nn.Module):
    """``x`` (..., D) with its channels ``index`` mixed: ``x[..., index] + scale * (W x[..., index] + b)``.

    Args:
        width: D, channels of ``x``.
        index: (K,) the channels, ascending, each once, 0 to D - 1; kept as a buffer.
        scale: s, a fixed factor of what is added (the related code has 0.1 to 1 by task, and does not use it).
        init: of W; ``zero``, or ``normal`` (truncated, deviation 0.02) as in the related code. b begins at zero.

    Raises:
        ValueError: for channels that do not fit, or an unknown ``init``.
    """

    index: Tensor

    def __init__(self, width: int, index: Tensor, scale: float = 1.0, init: Init = "zero") -> None:
        super().__init__()
        if init not in get_args(Init):
            raise ValueError(f"init is {init!r}; it must be one of {', '.join(get_args(Init))}")
        self.width, self.scale = width, float(scale)
        count = len(check_index(index, width))
        self.weight = nn.Parameter(torch.zeros(count, count))
        self.bias = nn.Parameter(torch.zeros(count))
        self.register_buffer("index", index.detach().clone().long())
        if init == "normal":
            nn.init.trunc_normal_(self.weight, std=0.02)
        self.place: Place = "attention"
        self._added: Tensor | None = None

    def added(self, x: Tensor) -> Tensor:
        """What ``x`` (..., D) is given, (..., K)."""
        return self.scale * F.linear(x.index_select(-1, self.index), self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (..., D) with its chosen channels changed, and the others as they are; out of place."""
        return x.index_add(-1, self.index, self.added(x).to(x.dtype))

    def extra_repr(self) -> str:
        """Its sizes."""
        return f"width={self.width}, channels={len(self.index)}, scale={self.scale:g}"

    # A block computes y = x + mlp(norm2(x)) of its residual stream x. With x' = x + d in place of x that is
    # (x + mlp(norm2(x'))) + d: the norm is given x', and d is added once more to what the block returns.
    def _enter(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *others = inputs
        self._added = self.added(x).to(x.dtype)
        return (x.index_add(-1, self.index, self._added), *others)

    def _leave(self, block: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        assert self._added is not None, "the block's norm runs before the block ends"
        added, self._added = self._added, None
        return output.index_add(-1, self.index, added.reshape(*output.shape[:-1], -1))

    def _after(self, block: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        adapted: Tensor = self(output)
        return adapted


def check_index(index: Tensor, width: int) -> Tensor:
    """``index`` (K,) itself; ValueError unless it holds ascending channels of ``width``, each once."""
    if index.ndim != 1 or not 1 <= len(index) <= width:
        raise ValueError(f"index has shape {tuple(index.shape)}; it must name 1 to {width} channels")
    if int(index.min()) < 0 or int(index.max()) >= width or bool((index.diff() <= 0).any()):
        raise ValueError(f"index is {index.tolist()}; it must hold ascending channels, 0 to {width - 1}, each once")
    return index


def adapters(model: nn.Module) -> dict[str, ChannelAdapter]:
    """The channel adapters of ``model`` by name, in their order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ChannelAdapter)}


def insert_adapters(
    model: nn.Module,
    indices: Sequence[Tensor],
    scale: float = 1.0,
    init: Init = "zero",
    place: Place = "attention",
) -> list[ChannelAdapter]:
    """Give every block of ``model`` a :class:`ChannelAdapter` as ``block.adapter``, and return these; all else stays.

    Args:
        model: with pre-norm blocks; changed in place, its own names kept.
        indices: the channels of each block, (K,) each, as :func:`~.channels.select_channels` gives them.
        scale, init: of :class:`ChannelAdapter`.
        place: ``attention``, after the attention's residual sum, or ``mlp``, after the block (the related code has
            both; which is the paper's is inferred).

    Raises:
        ValueError: where there are adapters already, no blocks, or indices that do not fit them.
    """
    if place not in get_args(Place):
        raise ValueError(f"place is {place!r}; it must be one of {', '.join(get_args(Place))}")
    if adapters(model):
        raise ValueError(f"{type(model).__name__} has channel adapters already; a block takes one")
    blocks = transformer_blocks(model)
    if len(indices) != len(blocks):
        raise ValueError(f"there are indices for {len(indices)} blocks; {type(model).__name__} has {len(blocks)}")
    made = [ChannelAdapter(width, index, scale, init) for width, index in zip(widths(model), indices, strict=True)]
    for block, adapter in zip(blocks.values(), made, strict=True):
        adapter.place = place
        block.adapter = adapter.to(next(block.parameters()))
        if place == "mlp":
            block.register_forward_hook(adapter._after)
        else:
            block.norm2.register_forward_pre_hook(adapter._enter)  # type: ignore[union-attr]
            block.register_forward_hook(adapter._leave)
    return made


def tune_channels(model: nn.Module, norms: bool = False, recompute: bool = True) -> list[nn.Parameter]:
    """Freeze all of ``model`` but its channel adapters and the head; return these, the adapters' first.

    Autograd then keeps no activation for the weights of frozen layers, and none at all before the first adapter.

    Args:
        model: with adapters, see :func:`insert_adapters`.
        norms: let the LayerNorms train on as in stage one (whether the paper does is not known).
        recompute: keep of each block's MLP its input alone, and compute the hidden layer again in the backward pass:
            of what frozen blocks keep it is the largest part, and costs the least time to have again.

    Raises:
        ValueError: where ``model`` has no adapter or no head.
    """
    found = adapters(model)
    if not found:
        raise ValueError(f"{type(model).__name__} has no channel adapter; insert_adapters gives it some")
    tuned = [parameter for adapter in found.values() for parameter in adapter.parameters()]
    tuned += [parameter for head in heads(model) for parameter in head.parameters()]
    if norms:
        tuned += [parameter for norm in layer_norms(model).values() for parameter in norm.parameters()]
    recompute_mlps(model, recompute)
    return train_only(model, tuned)


def recompute_mlps(model: nn.Module, recompute: bool = True) -> list[nn.Module]:
    """Let the MLPs of the blocks keep for the backward pass their input alone, or all it needs; those that changed."""
    mlps = [block.get_submodule("mlp") for block in transformer_blocks(model).values()]
    changed = [mlp for mlp in mlps if isinstance(vars(mlp).get("forward"), _Recomputed) != recompute]
    for mlp in changed:
        if recompute:
            mlp.forward = _Recomputed(mlp)
        else:
            del mlp.forward
    return changed


class _Recomputed:
    """The forward pass of ``mlp``, of which its input alone is kept; an object, since it is copied with its module."""

    def __init__(self, mlp: nn.Module) -> None:
        self.mlp = mlp

    def __call__(self, *inputs: Tensor) -> Any:
        forward = partial(type(self.mlp).forward, self.mlp)
        if not torch.is_grad_enabled() or torch.compiler.is_exporting():
            return forward(*inputs)
        return run_again(self.mlp, *inputs, run=forward)


def placed(model: nn.Module) -> Place | None:
    """Where the adapters of ``model`` act; None where it has none."""
    found = list(adapters(model).values())
    return found[0].place if found else None
