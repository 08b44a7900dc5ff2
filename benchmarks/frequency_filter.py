"""AFFormer's frequency filter, forward and backward, against the authors' formulation.

``python -m benchmarks.frequency_filter [--pairs 15] [--threads 2]``: one call on a batch of the maps that the stages of
AFFormer-base filter in images of 512 x 512, eight heads that look through windows of 3, 5 and 7.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.baselines.frequency_filter import authors_filter
from benchmarks.timing import Ratio, paired, peak_rise, write
from repertory.ops.frequency_filter import frequency_filter

SHAPES = ((4, 96, 64, 64), (4, 176, 32, 32), (4, 216, 16, 16))  # batch, channels, height, width of stages 2 to 4
HEADS, WINDOWS = 8, {3: 2, 5: 3, 7: 3}  # side -> heads
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def call_of(backend: str, shape: tuple[int, int, int, int], warm: bool = False) -> Callable[[], tuple[Tensor, ...]]:
    """The call to measure: output and gradients by projected tokens, kernels and biases."""
    batch, channels, height, width = shape
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(sizes, generator=generator)).to(DEVICE)

    qkv, grad = normal(batch, height * width, 3 * channels), normal(batch, height * width, channels)
    counts = {side: heads * (channels // HEADS) for side, heads in WINDOWS.items()}
    weights = [normal(count, 1, side, side, scale=1 / side) for side, count in counts.items()]
    biases = [normal(count) for count in counts.values()]
    leaves = [x.requires_grad_() for x in (qkv, *weights, *biases)]

    def call() -> tuple[Tensor, ...]:
        if backend == "baseline":
            out = authors_filter(qkv, weights, biases, (height, width), HEADS)
        else:
            image = qkv.unflatten(1, (height, width)).permute(0, 3, 1, 2)
            out = frequency_filter(image, weights, biases, HEADS, backend=backend).permute(0, 2, 3, 1).flatten(1, 2)
        return out.detach(), *torch.autograd.grad(out, leaves, grad)

    if warm and backend == "compiled":  # the compiler's own memory, which no later call needs, is not the operator's
        call()
    return call


def row(backend: str, shape: tuple[int, int, int, int], ratio: Ratio, first: float, error: float) -> list[str]:
    """One line of the table; memory of the compiled path on CPU cannot be told from the compiler's."""
    hidden = backend == "compiled" and DEVICE == "cpu"
    memory = "" if hidden else f"{peak_rise(call_of, backend, shape, True) / 2**20:.0f} MiB"
    seconds = (f"{1e3 * ratio.baseline:.1f}", f"{1e3 * ratio.candidate:.1f}", f"{first:.1f}")
    return [str(shape), backend, str(ratio), *seconds, memory, f"{error:.1e}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for shape in SHAPES:
        baseline = call_of("baseline", shape)
        expected = baseline()
        memory = f"{peak_rise(call_of, 'baseline', shape, True) / 2**20:.0f} MiB"
        rows.append([str(shape), "heads, tokens and images in turn", "1", "", "", "", memory, ""])
        for backend in ("eager", "compiled", *(("triton",) if DEVICE == "cuda" else ())):
            candidate = call_of(backend, shape)
            start = time.perf_counter()
            found = candidate()
            first = time.perf_counter() - start
            pairs = zip(found, expected, strict=True)
            error = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
            rows.append(row(backend, shape, paired(baseline, candidate, options.pairs), first, error))
    notes = [f"float32, forward and backward, {options.pairs} pairs; first call includes compiling; gradients included"]
    if DEVICE == "cpu":
        notes.append("memory of the compiled path cannot be told from the compiler's by the process's peak")
    columns = ["map", "path", "speed", "baseline ms", "path ms", "first call s", "memory rise", "worst difference"]
    write("frequency_filter", columns, rows, notes)


if __name__ == "__main__":
    main()
