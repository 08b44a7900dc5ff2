"""Dilated attention, forward and backward, against the authors' unfold and matrix products.

``python -m benchmarks.dilated_attention [--pairs 15] [--threads 2]``: one call of three rates at (8, 72, 56, 56)
against three calls of the baseline on 24 channels each.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.baselines.dilated_attention import unfold_attention
from benchmarks.timing import paired, peak_rise, write
from repertory.ops import dilated_attention

SHAPE, KERNEL, RATES = (8, 72, 56, 56), 3, (1, 2, 3)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def forward(backend: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    if backend != "baseline":
        return dilated_attention(query, key, value, KERNEL, RATES, len(RATES), backend=backend)
    groups = zip(*(x.chunk(len(RATES), 1) for x in (query, key, value)), RATES, strict=True)
    head_dim = SHAPE[1] // len(RATES)
    return torch.cat([unfold_attention(q, k, v, KERNEL, rate, head_dim) for q, k, v, rate in groups], -1)


def call_of(backend: str, warm: bool = False) -> Callable[[], tuple[Tensor, ...]]:
    """The call to measure: output and gradients by query, key and value; ``warm`` where memory is asked for."""
    generator = torch.Generator().manual_seed(0)
    query, key, value, grad = (torch.randn(SHAPE, generator=generator).to(DEVICE) for _ in range(4))
    tensors = [x.requires_grad_() for x in (query, key, value)]
    grad = grad.permute(0, 2, 3, 1).contiguous()

    def call() -> tuple[Tensor, ...]:
        out = forward(backend, *tensors)
        return out.detach(), *torch.autograd.grad(out, tensors, grad)

    if warm and backend == "compiled":  # the compiler's own memory, which no later call needs, is not the operator's
        call()
    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    baseline = call_of("baseline")
    expected = baseline()
    base_memory = peak_rise(call_of, "baseline", True)
    rows = [["unfold + matmul", "1", "", "", "", f"{base_memory / 2**20:.0f} MiB", ""]]
    for backend in ("eager", "compiled", *(("triton",) if DEVICE == "cuda" else ())):
        candidate = call_of(backend)
        start = time.perf_counter()
        error = max(float((a - b).abs().max()) for a, b in zip(candidate(), expected, strict=True))
        first = time.perf_counter() - start
        ratio = paired(baseline, candidate, options.pairs)
        memory = (
            "" if backend == "compiled" and DEVICE == "cpu" else f"{peak_rise(call_of, backend, True) / 2**20:.0f} MiB"
        )
        seconds = (f"{1e3 * ratio.baseline:.1f}", f"{1e3 * ratio.candidate:.1f}", f"{first:.1f}")
        rows.append([backend, str(ratio), *seconds, memory, f"{error:.1e}"])
        if backend == "triton":
            moved = 4 * 4 * torch.Size(SHAPE).numel() + 7 * 4 * torch.Size(SHAPE).numel()
            notes_bandwidth = f"{moved / ratio.candidate / 1e9:.0f} GB/s of tensors read and written once"
    notes = [f"{SHAPE}, float32, forward and backward, {options.pairs} pairs; first call includes compiling"]
    if DEVICE == "cuda":
        notes.append(notes_bandwidth)
    else:
        notes.append("memory of the compiled path cannot be told from the compiler's by the process's peak")
    columns = ["path", "speed", "baseline ms", "path ms", "first call s", "memory rise", "worst difference"]
    write("dilated_attention", columns, rows, notes)


if __name__ == "__main__":
    main()
