"""The offline module: the mean of the last I outer weights, and the batch norm statistics that this mean needs."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class SlidingWindow:
    """The mean of the ``size`` most recent weights pushed: ``(1 / min(I, e)) * sum of the last min(I, e)``.

    The sum is kept in float64, where adding the newest and taking away the oldest does not drift as it would in
    float32. ``size=None`` averages everything ever pushed, as SWA does, and stores the sum alone; otherwise memory is
    ``size`` copies of the weights plus the sum, on ``device``.

    Args:
        size: I, the number of weights in the mean, at least 1; None for all.
        device: where the window lives; the host's memory by default, since I copies of a network are large.

    Raises:
        ValueError: for a size below 1.
    """

    def __init__(self, size: int | None, device: torch.device | str = "cpu") -> None:
        if size is not None and size < 1:
            raise ValueError(f"window is {size}; it must be at least 1, or None to average every cycle")
        self.size, self.device = size, torch.device(device)
        self._entries: deque[dict[str, Tensor]] = deque()
        self._sum: dict[str, Tensor] = {}
        self._count = 0

    def __len__(self) -> int:
        """How many weights the mean is over now."""
        return self._count

    @torch.no_grad()
    def push(self, weights: Mapping[str, Tensor]) -> None:
        """Take in ``weights`` (name -> floating tensor, not kept by reference); the oldest leave a full window.

        Where the names changed (a parameter was frozen or unfrozen) the old weights have no mean with the new: the
        window starts again, with a warning.
        """
        if self._count and weights.keys() != self._sum.keys():
            changed = sorted(weights.keys() ^ self._sum.keys())
            warnings.warn(
                f"the averaged parameters changed ({', '.join(changed[:3])}{', …' if len(changed) > 3 else ''}): "
                "the window of outer weights starts again",
                stacklevel=2,
            )
            self._entries.clear()
            self._sum, self._count = {}, 0
        if not self._count:
            shapes = {name: weight.shape for name, weight in weights.items()}
            self._sum = {n: torch.zeros(shape, dtype=torch.float64, device=self.device) for n, shape in shapes.items()}
        sums = list(self._sum.values())
        entry = self._copy(weights)
        torch._foreach_add_(sums, list(entry.values()))
        self._count += 1
        if self.size is None:
            return
        self._entries.append(entry)
        if self._count > self.size:
            torch._foreach_sub_(sums, list(self._entries.popleft().values()))
            self._count -= 1

    def mean(self) -> dict[str, Tensor]:
        """The mean of the weights held, in float64, on the window's device.

        Raises:
            ValueError: while nothing was pushed.
        """
        if not self._count:
            raise ValueError("the window is empty: nothing was averaged yet")
        return dict(zip(self._sum, torch._foreach_div(list(self._sum.values()), self._count)))

    def state_dict(self) -> dict[str, Any]:
        """The weights held, their sum and their number."""
        return {"size": self.size, "entries": list(self._entries), "sum": dict(self._sum), "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved window; ``ValueError`` where it was of another size."""
        if state["size"] != self.size:
            raise ValueError(f"window is {self.size}, but the saved one is {state['size']}: resume with the saved size")
        self._entries = deque(self._copy(entry) for entry in state["entries"])
        self._sum, self._count = self._copy(state["sum"]), state["count"]

    def _copy(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``weights``, copied to the window's device."""
        return {name: weight.detach().to(self.device, copy=True) for name, weight in weights.items()}


def has_batch_norm(model: nn.Module) -> bool:
    """Whether ``model`` has a batch norm that keeps running statistics."""
    return any(isinstance(m, _BatchNorm) and m.running_mean is not None for m in model.modules())


@torch.no_grad()
def recalibrate(model: nn.Module, images: Iterable[Tensor], batches: int | None = None) -> nn.Module:
    """Estimate the running statistics of every batch norm of ``model`` anew, in place, by one pass in train mode.

    Averaged weights give activations that no replica ever had, so no replica's statistics fit them. Statistics are the
    plain mean over batches (``momentum=None``), as for SWA. Unlike ``torch.optim.swa_utils.update_bn``, a batch norm
    that is kept in eval mode inside a network in train mode (a frozen one) is left as it is, and the random state that
    dropout draws from comes out untouched, so that evaluating does not change training.

    Args:
        model: the network with averaged weights.
        images: batches (B, C, H, W) of the training set, with the training augmentation.
        batches: how many of them to use; None for all.

    Returns:
        ``model``, in the mode it came in.

    Raises:
        ValueError: where a batch norm needs statistics and there is not one batch.
    """
    modes = {module: module.training for module in model.modules()}
    if not model.training:
        model.train()
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None and m.training]
    if not norms:
        _restore(modes)
        return model
    momenta = {norm: norm.momentum for norm in norms}
    device = next(model.parameters()).device
    seen = 0
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            for batch in islice(images, batches):
                model(batch.to(device, non_blocking=True))
                seen += 1
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        _restore(modes)
    if not seen:
        raise ValueError("batch norm cannot be re-estimated from an empty loader: give at least one batch of images")
    return model


def _restore(modes: Mapping[nn.Module, bool]) -> None:
    """Give every module the mode it had."""
    for module, training in modes.items():
        module.training = training
