"""Activations computed again in the backward pass, with batch norms that count every batch once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recompute(block: nn.Module, *inputs: Any, run: Callable[..., Any] | None = None) -> Any:
    """``block(*inputs)`` without keeping its activations; they are computed again when gradients are.

    Plain checkpointing updates the running statistics of batch norms in both runs of a block, so that a network trained
    with it ends with other statistics than one trained without. Here the second run leaves them alone.

    Args:
        block: whose activations are not kept.
        inputs: what it takes.
        run: what is called in place of ``block``, such as one of its methods or a ``partial`` of it.
    """
    run = block if run is None else run
    norms = [layer for layer in block.modules() if isinstance(layer, _BatchNorm)]
    if not norms or torch.compiler.is_compiling():  # the compiler recomputes values, not updates of buffers
        return checkpoint(run, *inputs, use_reentrant=False)
    return checkpoint(
        run, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_untouched(norms))
    )


@contextmanager
def _statistics_untouched(norms: list[_BatchNorm]) -> Iterator[None]:
    """The same operations, but batches count for nothing in the running statistics."""
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
