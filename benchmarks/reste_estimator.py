"""ReSTE's estimator, forward and backward, against the authors' backward pass by masked indexing.

``python -m benchmarks.reste_estimator [--pairs 15] [--threads 1]``: 4.2 million float32 values, o = 3.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.baselines.reste_estimator import MaskedReSTE
from benchmarks.timing import interleaved, peak_rise, write
from repertory.systems.reste import RectifiedSTE, binary_sign

SHAPE = (64, 64, 32, 32)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def call_of(path: str, warm: bool = False) -> Callable[[], Tensor]:
    """The call to measure: the gradient of the signs; ``warm`` where memory is asked for."""
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(SHAPE, generator=generator).to(DEVICE) for _ in range(2))
    x.requires_grad_()
    estimator = RectifiedSTE(power=3.0)
    clip, power = torch.tensor(estimator.clip), torch.tensor(estimator.power)

    def call() -> Tensor:
        if path == "baseline":
            signs = MaskedReSTE.apply(x, clip.to(DEVICE), power.to(DEVICE), estimator.flat)
        else:
            signs = binary_sign(x, estimator, path)
        return torch.autograd.grad(signs, x, grad)[0]

    if warm:  # the compiler's own memory, which no later call needs, is not the operator's
        call()
    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    baseline = call_of("baseline")
    expected = baseline()
    candidates, first, errors = {}, {}, {}
    for path in ("eager", "compiled"):
        candidates[path] = call_of(path)
        start = time.perf_counter()
        found = candidates[path]()
        first[path] = time.perf_counter() - start
        errors[path] = float((found - expected).abs().max())
    ratios = interleaved(baseline, candidates, options.pairs)
    memory = peak_rise(call_of, "baseline") / 2**20
    rows = [["masked indexing", "1", "", "", "", f"{memory:.0f} MiB", ""]]
    for path, ratio in ratios.items():
        told = path == "eager" or DEVICE == "cuda"
        rise = f"{peak_rise(call_of, path, path == 'compiled') / 2**20:.0f} MiB" if told else ""
        seconds = (f"{1e3 * ratio.baseline:.1f}", f"{1e3 * ratio.candidate:.1f}", f"{first[path]:.1f}")
        rows.append([path, str(ratio), *seconds, rise, f"{errors[path]:.1e}"])
    columns = ["path", "speed", "baseline ms", "path ms", "first call s", "memory rise", "worst difference"]
    notes = [f"{SHAPE}, float32, o = 3, sign and its gradient, {options.pairs} rounds; the first call compiles"]
    if DEVICE == "cpu":
        notes.append("memory of the compiled path cannot be told from the compiler's by the process's peak")
    write("reste_estimator", columns, rows, notes)


if __name__ == "__main__":
    main()
