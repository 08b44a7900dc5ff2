"""Pyramid texture filtering of a photograph of one megapixel, against the numpy float64 loop over window offsets.

``python -m benchmarks.bilateral [--pairs 15] [--side 1024]``; two threads. The first call, which may compile,
is timed apart.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable

import numpy as np
import torch
from skimage import data, transform

from benchmarks.baselines import bilateral as baseline
from benchmarks.timing import interleaved, peak_rise, write
from repertory.systems.pyramid_texture_filtering.filter import pyramid_texture_filter

THREADS = 2


def photograph(side: int) -> np.ndarray:
    """scikit-image's astronaut, (side, side, 3) float64 in [0, 1]."""
    return transform.resize(data.astronaut() / 255.0, (side, side), order=3).clip(0, 1)


def as_batch(picture: np.ndarray, device: str = "cpu") -> torch.Tensor:
    return torch.from_numpy(picture.transpose(2, 0, 1)[None]).float().to(device)


def call_of(side: int, backend: str) -> Callable[[], object]:
    """The call whose memory is measured; what compiles has compiled."""
    torch.set_num_threads(THREADS)
    picture = photograph(side)
    if backend == "numpy":
        return lambda: baseline.pyramid_texture_filter(picture)
    batch = as_batch(picture)
    pyramid_texture_filter(batch[..., :64, :64], backend=backend)
    return lambda: pyramid_texture_filter(batch, backend=backend)


def profile(side: int) -> list[str]:
    """Where the time of a compiled call goes, by operation."""
    batch = as_batch(photograph(side))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        pyramid_texture_filter(batch, backend="compiled")
    events = sorted(seen.key_averages(), key=lambda event: -event.self_cpu_time_total)[:4]
    return [f"profile: {event.key} {event.self_cpu_time_total / 1e6:.2f} s" for event in events]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--side", type=int, default=1024)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    picture = photograph(options.side)
    expected = baseline.pyramid_texture_filter(picture)
    calls: dict[str, Callable[[], object]] = {}
    facts: dict[str, tuple[float, float]] = {}
    for backend in ["eager", "compiled", *(["triton"] if torch.cuda.is_available() else [])]:
        batch = as_batch(picture, "cuda" if backend == "triton" else "cpu")
        start = time.perf_counter()
        result = pyramid_texture_filter(batch, backend=backend)
        first = time.perf_counter() - start
        error = np.abs(result[0].cpu().numpy().transpose(1, 2, 0) - expected).max()
        facts[backend] = first, float(error)
        calls[backend] = functools.partial(pyramid_texture_filter, batch, backend=backend)
    # A call of the baseline takes half a minute: each round pairs one with every path.
    ratios = interleaved(lambda: baseline.pyramid_texture_filter(picture), calls, options.pairs, warmup=0)
    rows = []
    for backend, ratio in ratios.items():
        memory = f"{peak_rise(call_of, options.side, backend) / 2**20:.0f} MiB" if backend != "triton" else ""
        first, error = facts[backend]
        cells = (f"{ratio.baseline:.2f}", f"{ratio.candidate:.2f}", f"{first:.1f}", memory, f"{error:.1e}")
        rows.append([backend, str(ratio), *cells])
    notes = []
    notes.append(f"{options.side}x{options.side} pixels, float32, {options.pairs} pairs; first call includes compiling")
    notes += profile(options.side)
    columns = ["path", "speed", "numpy s", "path s", "first call s", "memory rise", "worst difference"]
    write("bilateral", columns, rows, notes)


if __name__ == "__main__":
    main()
