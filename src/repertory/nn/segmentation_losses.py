"""Losses over pixels that two or more systems use."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def ohem_cross_entropy(
    logits: Tensor,
    target: Tensor,
    threshold: float,
    min_kept: int,
    ignore_index: int = 255,
    *,
    factor: int = 8,
) -> Tensor:
    """Cross-entropy of the hard pixels alone (online hard example mining), as CCNet's released code defines it.

    A pixel is hard where the probability of its true class is at most a limit. The limit is ``threshold``, raised until
    about ``min_kept`` pixels are kept: to the k-th smallest probability, k = ``min_kept`` / ``factor`` ** 2, on
    probabilities and labels reduced by ``factor`` (linearly and to the nearest, corner pixels on corner pixels). Where
    the reduced batch has no more than k labelled pixels, every pixel is kept.

    Args:
        logits: (B, classes, H, W).
        target: (B, H, W) class indices, int64.
        threshold: probability of the true class up to which a pixel counts as hard, in (0, 1].
        min_kept: pixels to keep at least, at full resolution and approximately; 0 keeps the hard ones alone.
        ignore_index: label of pixels that do not count.
        factor: by how much height and width are reduced to find the limit.

    Returns:
        The mean over the kept pixels, of the logits' type (float32 for half precision); 0 where none is kept.

    Raises:
        ValueError: for shapes that do not fit, a target that is not int64, or settings out of range.

    Source: the OHEM criterion of speedinghzl/CCNet, which reduces with ``scipy.ndimage.zoom``. At some sizes (768 among
    them) rounding puts the last reduced pixel outside for SciPy, which then takes 0 for it; here it is the last pixel.
    """
    _check(logits, target, threshold, min_kept, factor)
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    with torch.no_grad():
        probability = logits.softmax(1)
        limit = _limit(probability, target, threshold, min_kept, ignore_index, factor)
        labelled = target != ignore_index
        own = probability.gather(1, target.where(labelled, 0)[:, None])[:, 0]
        kept = labelled & (own <= limit)
    total = F.cross_entropy(logits, target.where(kept, ignore_index), ignore_index=ignore_index, reduction="sum")
    return total / kept.sum().clamp(min=1)


def _check(logits: Tensor, target: Tensor, threshold: float, min_kept: int, factor: int) -> None:
    if logits.ndim != 4 or target.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(
            f"logits and target are {tuple(logits.shape)} and {tuple(target.shape)}; "
            "they must be (B, classes, H, W) and (B, H, W)"
        )
    if target.dtype != torch.int64:
        raise ValueError(f"target is {target.dtype}; it must hold class indices as torch.int64")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; it must be a probability above 0 and at most 1")
    if min_kept < 0:
        raise ValueError(f"min_kept is {min_kept}; it must be a number of pixels, at least 0")
    if factor < 1:
        raise ValueError(f"factor is {factor}; it must be at least 1")


def _limit(
    probability: Tensor, target: Tensor, threshold: float, min_kept: int, ignore_index: int, factor: int
) -> Tensor:
    """The largest probability of the true class, a scalar tensor, with which a pixel is hard."""
    k = min_kept // factor**2
    reduced_target = _nearest(_nearest(target, 1, factor), 2, factor)
    labelled = reduced_target != ignore_index
    own = _linear(_linear(probability, 2, factor), 3, factor).to(probability.dtype)
    own = own.gather(1, reduced_target.where(labelled, 0)[:, None])[:, 0]
    limit = torch.full((), threshold, dtype=probability.dtype, device=probability.device)
    if 0 < k <= own.numel():
        smallest = own.where(labelled, float("inf")).flatten().kthvalue(k).values
        limit = torch.maximum(limit, smallest)
    return limit.where(labelled.sum() > k, 1.0)


def _places(size: int, factor: int, device: torch.device) -> Tensor:
    """Where the reduced pixels of one axis lie on the full one, float64, first on first and last on last."""
    reduced = max(round(size / factor), 1)
    step = (size - 1) / (reduced - 1) if reduced > 1 else 0.0
    return (torch.arange(reduced, dtype=torch.float64, device=device) * step).clamp(max=size - 1)


def _nearest(x: Tensor, dim: int, factor: int) -> Tensor:
    """``x`` reduced along ``dim``, halves rounded up."""
    return x.index_select(dim, (_places(x.shape[dim], factor, x.device) + 0.5).floor().long())


def _linear(x: Tensor, dim: int, factor: int) -> Tensor:
    """``x`` reduced along ``dim``, in float64: one pixel more or less under the limit is seen in the loss."""
    size = x.shape[dim]
    places = _places(size, factor, x.device)
    before = places.floor().long()
    after = (before + 1).clamp(max=size - 1)
    share = (places - before).view(-1, *[1] * (x.ndim - dim - 1))
    return x.index_select(dim, before).double() * (1 - share) + x.index_select(dim, after).double() * share
