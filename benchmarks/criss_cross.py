"""Criss-cross attention, forward and backward, against the authors' copies and joined softmax, and full attention.

``python -m benchmarks.criss_cross [--pairs 15] [--threads 2]``: values (1, 512, 97, 97), queries and keys of 64
channels; then scaled_dot_product_attention over all positions of maps of side 97 and 129. On CPU a row tells how fast
the matrix products alone would be, of matrices that lie ready: what no path that leaves them to the library surpasses.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.baselines.criss_cross import joined_attention
from benchmarks.timing import interleaved, peak_rise, write
from repertory.ops.criss_cross import criss_cross_attention

CHANNELS, DEPTH, SIDE, LARGER = 512, 64, 97, 129
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PATHS = ("eager", "compiled", *(("triton",) if DEVICE == "cuda" else ()))
MEBIBYTE = 2**20


def full_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Every position attends to all: what criss-cross attention stands in for."""
    query, key, lines = (x.flatten(2).mT[:, None].contiguous() for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, lines, scale=1.0)[:, 0].mT.reshape(value.shape)


def forward(path: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    if path == "baseline":
        return joined_attention(query, key, value)
    if path == "full":
        return full_attention(query, key, value)
    return criss_cross_attention(query, key, value, backend=path)


def call_of(path: str, side: int = SIDE, warm: bool = False) -> Callable[[], tuple[Tensor, ...]]:
    """The call to measure: output and gradients by query, key and value; ``warm`` where memory is asked for."""
    generator = torch.Generator().manual_seed(0)
    widths = (DEPTH, DEPTH, CHANNELS, CHANNELS)
    query, key, value, grad = (torch.randn(1, width, side, side, generator=generator) for width in widths)
    query = query * DEPTH**-0.5  # the operator does not scale: logits as spread as those of trained layers
    tensors = [x.to(DEVICE).requires_grad_() for x in (query, key, value)]
    grad = grad.to(DEVICE)

    def call() -> tuple[Tensor, ...]:
        out = forward(path, *tensors)
        return out.detach(), *torch.autograd.grad(out, tensors, grad)

    if warm:  # the libraries' own memory, which comes with the first call of any size, is not the operator's
        call_of(path, 17)()
    return call


def products() -> Callable[[], Tensor]:
    """The call that makes the twelve batches of matrix products of one forward and backward pass, and nothing else."""
    query, key, narrow = (torch.randn(SIDE, SIDE, DEPTH, device=DEVICE) for _ in range(3))
    value, grad, wide = (torch.randn(SIDE, SIDE, CHANNELS, device=DEVICE) for _ in range(3))
    weights, square = torch.rand(2, SIDE, SIDE, SIDE, device=DEVICE)

    def call() -> Tensor:
        for turned in (False, True):  # along rows, along columns
            q, k, v, g, small, large = (
                x.transpose(0, 1) if turned else x for x in (query, key, value, grad, narrow, wide)
            )
            for left, right, out in (
                (q, k.mT, square),
                (weights, v, large),
                (g, v.mT, square),
                (weights.mT, g, large),
                (weights, k, small),
                (weights.mT, q, small),
            ):
                torch.bmm(left, right, out=out)
        return square

    return call


def spare_memory(path: str, side: int = SIDE) -> float:
    """MiB above inputs, output and their gradients at the peak of one call."""
    made = 4 * side**2 * (2 * CHANNELS + 2 * DEPTH)  # output, and gradients of query, key and value
    return max(peak_rise(call_of, path, side, True) - made, 0) / MEBIBYTE


def rows_of_paths(pairs: int) -> list[list[str]]:
    calls, first, error = {}, {}, {}
    baseline = call_of("baseline")
    expected = baseline()
    for path in PATHS:
        calls[path] = call_of(path)
        start = time.perf_counter()
        found = calls[path]()
        first[path] = time.perf_counter() - start
        error[path] = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    bound = "matrix products alone" if DEVICE == "cpu" else None
    ratios = interleaved(baseline, calls | ({bound: products()} if bound else {}), pairs)
    base = spare_memory("baseline")
    seconds = ratios[PATHS[0]].baseline
    rows = [["copies + joined softmax", "97", "1", f"{1e3 * seconds:.1f}", "", f"{base:.0f}", "1", ""]]
    for path, ratio in ratios.items():
        if path == bound:
            rows.append([path, "97", str(ratio), f"{1e3 * ratio.candidate:.1f}", "", "", "", ""])
            continue
        memory = share = ""
        if path != "compiled" or DEVICE == "cuda":
            spare = spare_memory(path)
            memory, share = f"{spare:.0f}", f"{spare / base:.2f}"
        times = (f"{1e3 * ratio.candidate:.1f}", f"{first[path]:.1f}")
        rows.append([path, "97", str(ratio), *times, memory, share, f"{error[path]:.1e}"])
        if path == "triton":
            moved = 4 * SIDE**2 * (5 * CHANNELS + 4 * DEPTH)  # v, q, k, out; grad; their gradients: each once
            rows[-1][0] += f" ({moved / ratio.candidate / 1e9:.0f} GB/s of tensors read and written once)"
    return rows


def rows_of_full(pairs: int) -> list[list[str]]:
    rows, best = [], PATHS[-1]
    for side in (SIDE, LARGER):
        full, ours = call_of("full", side), call_of(best, side)
        ratio = interleaved(full, {best: ours}, max(pairs // 3, 3), warmup=1)[best]
        memory = f"{spare_memory('full', side):.0f}"
        rows.append(["full attention (SDPA)", str(side), "", f"{1e3 * ratio.baseline:.1f}", "", memory, "", ""])
        label = f"{best}, speed against full attention"
        rows.append([label, str(side), str(ratio), f"{1e3 * ratio.candidate:.1f}", "", "", "", ""])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = rows_of_paths(options.pairs) + rows_of_full(options.pairs)
    notes = [
        f"values (1, {CHANNELS}, side, side), queries and keys of {DEPTH} channels, float32, forward and backward, "
        f"{options.pairs} pairs; first call includes compiling",
        "memory: MiB above inputs, output and their gradients at the peak of one call; share: of the baseline's",
        "full attention attends to all side x side positions, criss-cross attention to 2 side - 1 of them",
    ]
    if DEVICE == "cpu":
        notes.append("memory of the compiled path cannot be told from the compiler's by the process's peak")
    columns = ["path", "side", "speed", "ms", "first call s", "memory MiB", "share", "worst difference"]
    write("criss_cross", columns, rows, notes)


if __name__ == "__main__":
    main()
