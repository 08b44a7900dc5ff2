"""Which channels matter for a task: their Taylor score on the downstream loss, streamed over the training set.

Removing channel c of a feature map X changes the loss by about the first-order term of its expansion, the sum of
X[..., c] G[..., c] with G = dLoss/dX. The abstract says that channels are ranked by a Taylor expansion; the formula,
its three variants and the place of X are inferred (standard first-order pruning scores), and any other score of the
channels can take their place: :func:`select_channels` takes numbers, wherever they come from.

One pass in evaluation mode, nothing is updated; what is kept is a number for each layer and channel, not the features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repertory.systems.petl_two_stage.adapter import Place, recompute_mlps, transformer_blocks, widths

Variant = Literal["abs_of_sum", "per_sample", "squared"]
Samples = Iterable[tuple[Tensor, Tensor]]
DEFAULT_SHARE = 8  # one channel of eight, as in the related code: 96 of ViT-B's 768


def taylor_scores(
    model: nn.Module,
    batches: Samples,
    variant: Variant = "per_sample",
    class_token: bool = True,
    class_mean: bool = False,
    place: Place = "attention",
) -> list[Tensor]:
    """Importance of every channel of every block for the cross entropy on ``batches``; inferred.

    For samples b, tokens n, with P = X G the product of a feature and the gradient of its sample's own loss:

    * ``abs_of_sum``: |mean over b of sum over n of P|, where samples of opposite sign cancel;
    * ``per_sample``: mean over b of |sum over n of P|;
    * ``squared``: mean over b of the sum over n of P squared, as in the pruning literature.

    Args:
        model: with pre-norm blocks, as stage one left it; comes out as it went in.
        batches: images (B, C, H, W) and labels (B,) of the training set, without augmentation.
        variant: which of the three.
        class_token: count the class token and other prefix tokens; without, only those of patches.
        class_mean: average the score over the samples of each class first, then over classes, for unbalanced labels.
        place: X is what enters ``norm2`` (``attention``), or what a block returns (``mlp``).

    Returns:
        One tensor (D,) a block, float64, on the CPU, at least 0.

    Raises:
        ValueError: for a model without such blocks, no sample, or an unknown variant or place.
    """
    if variant not in get_args(Variant):
        raise ValueError(f"variant is {variant!r}; it must be one of {', '.join(get_args(Variant))}")
    prefix = 0 if class_token else int(getattr(model, "num_prefix_tokens", 0))
    sums: list[Tensor] = [torch.zeros(0, width, dtype=torch.float64) for width in widths(model)]
    counts = torch.zeros(0, dtype=torch.float64)
    groups = torch.zeros(0, dtype=torch.long)

    def add(block: int, features: Tensor, gradients: Tensor) -> None:
        products = (features * gradients).flatten(1, -2)[:, prefix:]
        values = (products.square() if variant == "squared" else products).sum(1, dtype=torch.float32)
        values = values.abs() if variant == "per_sample" else values
        sums[block].index_add_(0, groups, values.cpu().double())

    def see(block: int, features: Tensor) -> None:
        if not features.requires_grad:  # nothing before the first block takes gradients: here the graph begins
            features.requires_grad_()
        features.register_hook(partial(add, block, features.detach()))  # not itself: it would never be freed

    with _watched(model, see, place), torch.enable_grad():
        for images, labels in _moved(batches, model):
            logits = model(images)
            groups = labels.cpu().long() if class_mean else torch.zeros(len(labels), dtype=torch.long)
            if not len(counts):
                buckets = logits.shape[1] if class_mean else 1
                sums = [total.new_zeros(buckets, total.shape[1]) for total in sums]
                counts = counts.new_zeros(buckets)
            counts.index_add_(0, groups, torch.ones(len(labels), dtype=torch.float64))
            F.cross_entropy(logits.float(), labels, reduction="sum").backward()
    met = counts > 0
    if not met.any():
        raise ValueError("batches hold no sample; channels are scored on the training set")
    means = [total[met] / counts[met, None] for total in sums]
    return [(mean.abs() if variant == "abs_of_sum" else mean).mean(0) for mean in means]


@torch.no_grad()
def norm_scores(model: nn.Module, batches: Samples, place: Place = "attention") -> list[Tensor]:
    """Root mean square of every channel of every block over all samples and tokens of ``batches``, (D,) a block.

    What a Taylor score is compared with: it knows no labels. Arguments as of :func:`taylor_scores`.
    """
    sums = [torch.zeros(width, dtype=torch.float64) for width in widths(model)]
    counts = [0] * len(sums)

    def see(block: int, features: Tensor) -> None:
        rows = features.flatten(0, -2)
        sums[block] += rows.square().sum(0, dtype=torch.float32).cpu().double()
        counts[block] += len(rows)

    with _watched(model, see, place):
        for images, _ in _moved(batches, model):
            model(images)
    if not counts[0]:
        raise ValueError("batches hold no sample; channels are scored on the training set")
    return [(total / count).sqrt() for total, count in zip(sums, counts, strict=True)]


def random_scores(model: nn.Module, seed: int = 0) -> list[Tensor]:
    """Uniform numbers drawn by ``seed``, (D,) a block: a random choice of channels, to compare with."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(width, generator=generator, dtype=torch.float64) for width in widths(model)]


def select_channels(scores: Sequence[Tensor], channels: int | Sequence[int] | None = None) -> list[Tensor]:
    """The K channels with the largest of ``scores``, in ascending order, one tensor (K,) of integers a block.

    Among equal scores the first channels are taken, so that there are always exactly K.

    Args:
        scores: (D,) a block.
        channels: K, for all blocks or for each; none given, an eighth of each block's width.

    Raises:
        ValueError: for K below 1 or above the width, or a score that is not finite.
    """
    if channels is None:
        counts = [max(1, len(score) // DEFAULT_SHARE) for score in scores]
    else:
        counts = [channels] * len(scores) if isinstance(channels, int) else list(channels)
    if len(counts) != len(scores):
        raise ValueError(f"channels has {len(counts)} numbers; there are {len(scores)} blocks")
    return [_largest(score, count, block) for block, (score, count) in enumerate(zip(scores, counts, strict=True))]


def _largest(score: Tensor, count: int, block: int) -> Tensor:
    check_channels(count, len(score), block)
    if not bool(score.isfinite().all()):
        wrong = int((~score.isfinite()).nonzero()[0])
        raise ValueError(
            f"the score of channel {wrong} of block {block} is {float(score[wrong])}; scores must be finite"
        )
    return score.sort(descending=True, stable=True).indices[:count].sort().values


def check_channels(count: int, width: int, block: int) -> None:
    """ValueError unless ``count`` channels can be chosen of the ``width`` of a block."""
    if not 1 <= count <= width:
        raise ValueError(f"channels is {count}; it must be 1 to {width}, the width of block {block}")


@contextmanager
def _watched(model: nn.Module, see: Callable[[int, Tensor], None], place: Place) -> Iterator[None]:
    """Show ``see`` the number and the feature map of every block that runs inside; ``model`` is still and frozen.

    The hooks come before those of adapters: what is seen is the stream that an adapter takes, and the graph behind it
    has all ways to the loss.
    """
    if place not in get_args(Place):
        raise ValueError(f"place is {place!r}; it must be one of {', '.join(get_args(Place))}")
    handles: list[Any] = []
    for number, block in enumerate(transformer_blocks(model).values()):
        if place == "mlp":
            handles.append(block.register_forward_hook(partial(_show_output, see, number), prepend=True))
        else:
            hook = partial(_show_input, see, number)
            handles.append(block.norm2.register_forward_pre_hook(hook, prepend=True))  # type: ignore[union-attr]
    modes = [(module, module.training) for module in model.modules()]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    model.requires_grad_(False)
    recomputed = recompute_mlps(model)
    try:
        with torch.autocast(next(model.parameters()).device.type, enabled=False):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter in trained:
            parameter.requires_grad_(True)
        for mlp in recomputed:
            del mlp.forward
        for handle in handles:
            handle.remove()


def _show_input(see: Callable[[int, Tensor], None], number: int, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    see(number, inputs[0])


def _show_output(
    see: Callable[[int, Tensor], None], number: int, block: nn.Module, inputs: Any, output: Tensor
) -> None:
    see(number, output)


def _moved(batches: Samples, model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """``batches`` where ``model`` is, in its type of numbers."""
    like = next(model.parameters())
    for images, labels in batches:
        yield images.to(like), labels.to(like.device)
