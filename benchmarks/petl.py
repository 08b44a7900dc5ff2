"""What the two stages of parameter-efficient tuning save beside full fine-tuning, in memory and time of a step.

``python -m benchmarks.petl [--pairs 15] [--threads 2]``. The baseline is full fine-tuning of the same timm network on
the same batch, AdamW, float32. Memory is the rise of the peak in a fresh process over two whole steps (activations,
gradients, optimiser), the network's own weights, which all variants share, left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch.nn import functional as F

from benchmarks.timing import interleaved, peak_rise, write
from repertory.systems.petl_two_stage import (
    insert_adapters,
    parameter_groups,
    random_scores,
    select_channels,
    taylor_scores,
    tune_channels,
    tune_layer_norms,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLASSES = 10
VARIANTS = (
    "full fine-tuning",
    "stage one",
    "stage two",
    "stage two, nothing recomputed",
    "stage two, blocks recomputed",
    "scoring of channels",
)
# Network, images of a batch for time, images of a batch for memory.
NETWORKS = (
    ("vit_small_patch16_224", 8, 32),
    ("swin_tiny_patch4_window7_224", 8, 16),
    ("vit_base_patch16_224", 0, 16),
)


def prepare(model: Any, variant: str) -> None:
    """Freeze what the variant does not train, and give stage two its adapters."""
    if variant == "stage one":
        tune_layer_norms(model)
    elif variant.startswith("stage two"):
        insert_adapters(model, select_channels(random_scores(model)))
        tune_channels(model, recompute=variant == "stage two")
        model.set_grad_checkpointing(variant.endswith("blocks recomputed"))


def step_of(network: str, variant: str, images: int, steps: int = 1) -> Callable[[], None]:
    """The call to measure: ``steps`` training steps, or the scores of a batch."""
    torch.manual_seed(0)
    model = timm.create_model(network, num_classes=CLASSES).to(DEVICE).train()
    prepare(model, variant)
    batch = torch.randn(images, 3, 224, 224, device=DEVICE)
    labels = torch.arange(images, device=DEVICE) % CLASSES
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=1e-4), lr=1e-4)

    def step() -> None:
        loss = F.cross_entropy(model(batch), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def call() -> None:
        for _ in range(steps):
            if variant == "scoring of channels":
                taylor_scores(model, [(batch, labels)])
            else:
                step()

    return call


def trained(network: str, variant: str) -> str:
    """Parameters that the variant trains, the head's left out; nothing where it only scores."""
    if variant == "scoring of channels":
        return ""
    model = timm.create_model(network, num_classes=CLASSES)
    head = sum(p.numel() for p in model.get_classifier().parameters())
    prepare(model, variant)
    return f"{sum(p.numel() for p in model.parameters() if p.requires_grad) - head:,}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for network, timed, images in NETWORKS:
        times = {}
        if timed:
            calls = {variant: step_of(network, variant, timed) for variant in VARIANTS[1:]}
            times = interleaved(step_of(network, VARIANTS[0], timed), calls, options.pairs, warmup=1)
        memory = {variant: peak_rise(step_of, network, variant, images, 2) for variant in VARIANTS}
        for variant in VARIANTS:
            time = f"{1 / times[variant].median:.2f}x" if variant in times else ""
            share = "" if variant == VARIANTS[0] else f"{100 * memory[variant] / memory[VARIANTS[0]]:.0f}%"
            rows.append(
                [network, variant, trained(network, variant), f"{memory[variant] / 2**20:.0f} MiB", share, time]
            )
    columns = ["network", "step of", "trained (without head)", "memory rise", "of full", "time over full"]
    batches = ", ".join(f"{network} {images} ({timed or 'none'})" for network, timed, images in NETWORKS)
    notes = [f"images of a batch, for memory (and time): {batches}; 224 x 224, AdamW, float32, {options.pairs} pairs"]
    write("petl", columns, rows, notes)


if __name__ == "__main__":
    main()
