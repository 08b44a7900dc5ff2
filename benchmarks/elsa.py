"""ELSA's sliding-window sum, forward and backward, against the authors' unfold, multiply and sum.

``python -m benchmarks.elsa [--pairs 15] [--threads 2] [--paths eager compiled]``: 7 x 7 filters of three heads and an
added static filter, as in the first stage of ELSA-Swin-T, at (1, 96, 56, 56).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.baselines.elsa import unfold_aggregation
from benchmarks.timing import interleaved, peak_rise, write
from repertory.ops.sliding_window import sliding_window_sum

SHAPE, HEADS, KERNEL = (1, 96, 56, 56), 3, 7
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def call_of(backend: str, warm: bool = False) -> Callable[[], tuple[Tensor, ...]]:
    """The call to measure: output and gradients of values, weights, static filter; ``warm`` where memory is asked."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE)

    weights = drawn(SHAPE[0], HEADS, KERNEL**2, *SHAPE[2:]).softmax(2)
    value, ghost, grad = drawn(*SHAPE), drawn(SHAPE[1], KERNEL, KERNEL), drawn(*SHAPE)
    tensors = [x.requires_grad_() for x in (value, weights, ghost)]

    def call() -> tuple[Tensor, ...]:
        if backend == "baseline":
            out = unfold_aggregation(value, weights, None, ghost.flatten(1), KERNEL)
        else:
            out = sliding_window_sum(value, weights, None, ghost, backend=backend)
        return out.detach(), *torch.autograd.grad(out, tensors, grad)

    if warm and backend == "compiled":  # the compiler's own memory, which no later call needs, is not the operator's
        call()
    return call


def kept() -> int:
    """Bytes of output and gradients, which every path must return: the rise of memory is told without them."""
    value, taps = torch.Size(SHAPE).numel(), KERNEL**2
    return 4 * (2 * value + SHAPE[0] * HEADS * taps * SHAPE[2] * SHAPE[3] + SHAPE[1] * taps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--paths", nargs="+", default=["eager", "compiled", *(("triton",) if DEVICE == "cuda" else ())])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    baseline = call_of("baseline")
    expected = baseline()
    base_memory = peak_rise(call_of, "baseline", True) - kept()
    candidates, first, errors = {}, {}, {}
    for backend in options.paths:
        candidates[backend] = call_of(backend)
        start = time.perf_counter()
        found = candidates[backend]()
        first[backend] = time.perf_counter() - start
        errors[backend] = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    ratios = interleaved(baseline, candidates, options.pairs)
    rows = [["unfold, multiply, sum", "1", "", "", "", f"{base_memory / 2**20:.0f} MiB", ""]]
    notes = [
        f"{SHAPE}, {KERNEL} x {KERNEL}, float32, forward and backward, {options.pairs} rounds; the first call compiles",
        "memory: the rise above inputs, output and gradients",
    ]
    for backend, ratio in ratios.items():
        told = backend != "compiled" or DEVICE == "cuda"
        memory = f"{max(0, peak_rise(call_of, backend, True) - kept()) / 2**20:.0f} MiB" if told else ""
        seconds = (f"{1e3 * ratio.baseline:.1f}", f"{1e3 * ratio.candidate:.1f}", f"{first[backend]:.1f}")
        rows.append([backend, str(ratio), *seconds, memory, f"{errors[backend]:.1e}"])
        if DEVICE == "cuda":
            moved = 2 * kept() + 4 * torch.Size(SHAPE).numel()
            notes.append(f"{backend}: {moved / ratio.candidate / 1e9:.0f} GB/s of tensors read and written once")
    if "compiled" in ratios and DEVICE == "cpu":
        notes.append("memory of the compiled path cannot be told from the compiler's by the process's peak")
    columns = ["path", "speed", "baseline ms", "path ms", "first call s", "memory rise", "worst difference"]
    write("elsa", columns, rows, notes)


if __name__ == "__main__":
    main()
