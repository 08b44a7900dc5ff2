"""What a method adds to a training step, in time and memory, beside the plain step of the same network and batch.

``python -m benchmarks.method_step [--pairs 15] [--threads 2] [--side 32]``: ResNet-18, batches of 32, SGD, momentum.
What is timed is a cycle of ten steps, so that what a method does every few steps has its share.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timm
import torch
from torch.nn import functional as F

from benchmarks.timing import interleaved, peak_rise, write
from repertory.catalog import card, entry
from repertory.training.method import Batch, Method, Progress
from repertory.training.outputs import features_and_logits
from repertory.training.task import replicate

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH, CLASSES, CYCLE = 32, 100, 10
MEMORY_CYCLES = 6  # a window of five is full by then
VARIANTS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("bake", "M = 1, omega = 0.5", {}),
    ("hwa", "K = 1, H = 10, I = 5", {"replicas": 1, "period": CYCLE, "window": 5}),
    ("hwa", "K = 2, H = 10, I = 5", {"replicas": 2, "period": CYCLE, "window": 5}),
    ("reste", "1-bit weights and activations", {}),
    ("reste", "straight-through estimator", {"estimator": "ste"}),
    ("dap", "the store of scores alone", {"fraction": 0.0}),
    ("patch_erasing", "measuring alone", {"rate": 0.0, "patch_size": 8}),
    ("patch_erasing", "r = 0.3", {"rate": 0.3, "patch_size": 8}),
    ("patch_erasing", "r = 0.3, 0.3 more of the easy", {"rate": 0.3, "easy_rate": 0.3, "patch_size": 8}),
)


class Labels:
    """A data set of so many samples as far as a method looks at one before training."""

    targets: Sequence[int] = [index % CLASSES for index in range(50_000)]

    def __len__(self) -> int:
        return len(self.targets)


def methods_of(variant: int | None) -> list[Method]:
    """The method of ``VARIANTS[variant]`` by its name in the card; none for the plain step."""
    if variant is None:
        return []
    name, _, settings = VARIANTS[variant]
    return [entry(name, card(name).methods[name])(**settings)]


def cycle_of(variant: int | None, side: int, cycles: int = 1) -> Callable[[], None]:
    """The call to measure: ``cycles`` times ten steps, the slots of the method in their order."""
    torch.manual_seed(0)
    methods = methods_of(variant)
    model = timm.create_model("resnet18", num_classes=CLASSES).to(DEVICE)
    for method in methods:
        model = method.prepare_model(model)
    model = replicate(model, methods)
    replicas = list(model) if isinstance(model, torch.nn.ModuleList) else [model]
    for method in methods:
        method.batch_sampler(Labels(), BATCH, 0, 0, 1)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    for method in methods:
        optimizer = method.build_optimizer(model, optimizer)
    numbers = torch.arange(BATCH, device=DEVICE)
    batches = [Batch(torch.randn(BATCH, 3, side, side, device=DEVICE), numbers // 2, numbers) for _ in replicas]
    done = 0

    def step() -> None:
        nonlocal done
        progress = Progress(done, 0, 1_000_000)
        for method in methods:
            method.before_step(model, progress)
        loss = sum(loss_of(replica, batch, methods, progress) for replica, batch in zip(replicas, batches, strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        done += 1
        for method in methods:
            method.after_step(model, Progress(done, 0, 1_000_000))

    def call() -> None:
        for _ in range(cycles * CYCLE):
            step()

    return call


def loss_of(model: torch.nn.Module, batch: Batch, methods: list[Method], progress: Progress) -> torch.Tensor:
    """The loss of one replica, with what the methods add."""
    if not methods:
        return F.cross_entropy(model(batch.images), batch.labels)
    for method in methods:
        batch = method.transform_batch(batch, progress)
    outputs = features_and_logits(model, batch.images)
    loss = F.cross_entropy(outputs.logits, batch.labels)
    return loss + sum(term for method in methods for term in method.extra_loss(outputs, batch).values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    calls = {str(i): cycle_of(i, options.side) for i in range(len(VARIANTS))}
    ratios = interleaved(cycle_of(None, options.side), calls, options.pairs, warmup=1)
    plain = ratios["0"].baseline / CYCLE
    memory = peak_rise(cycle_of, None, options.side, MEMORY_CYCLES) / 2**20
    rows = [["plain", "", str(BATCH), f"{1e3 * plain:.1f}", "", f"{memory:.0f} MiB"]]
    for i, (name, settings, _) in enumerate(VARIANTS):
        ratio, images = ratios[str(i)], BATCH * max(method.replicas for method in methods_of(i))
        added = f"{1 / ratio.median:.2f}x [{1 / ratio.upper:.2f}, {1 / ratio.lower:.2f}]"
        memory = peak_rise(cycle_of, i, options.side, MEMORY_CYCLES) / 2**20
        milliseconds = f"{1e3 * ratio.candidate / CYCLE:.1f}"
        rows.append([name, settings, str(images), milliseconds, added, f"{memory:.0f} MiB"])
    columns = ["method", "settings", "images a step", "ms a step", "time over plain", "memory rise"]
    shape = f"{options.side} x {options.side}"
    write("method_step", columns, rows, [f"ResNet-18, {CLASSES} classes, {shape}, float32, {options.pairs} pairs"])


if __name__ == "__main__":
    main()
