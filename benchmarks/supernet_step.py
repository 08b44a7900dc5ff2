"""A training step of the supernet, forward and backward, against the sum of the steps of its sub-models.

``python -m benchmarks.supernet_step [--pairs 15] [--threads 2] [--batch 8] [--model base]``: the whole network, a
sub-model of middle size and the smallest, on one batch of 224-pixel images. The baseline trains a network of its own
for each; the plain step trains the whole network alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.baselines.supernet_step import separate_step
from benchmarks.timing import interleaved, peak_rise, write
from repertory.systems.scalable_transformers import Crop, distillation_loss
from repertory.systems.scalable_transformers import model as models

CLASSES, HEAD_WIDTH = 1000, 64
SIZES = {  # (heads, blocks, side): the whole, one of middle size, the smallest of the authors' space
    "base": ((12, 12, 224), (8, 10, 192), (3, 6, 128)),
    "small": ((6, 12, 224), (4, 10, 192), (2, 6, 128)),
    "tiny": ((3, 12, 224), (2, 10, 192), (1, 6, 128)),
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def call_of(variant: str, model: str, batch: int) -> Callable[[], None]:
    """The call to measure: ``separate`` networks, the ``supernet``, or the whole network alone (``plain``)."""
    torch.manual_seed(0)
    images, labels = torch.randn(batch, 3, 224, 224, device=DEVICE), torch.arange(batch, device=DEVICE)
    if variant == "separate":
        return separate_step(SIZES[model], images, labels, CLASSES, HEAD_WIDTH)
    supernet: Any = getattr(models, f"scalable_deit_{model}")(CLASSES, drop_path=0.0).to(DEVICE)
    crops = [Crop(*size) for size in SIZES[model][1:]] if variant == "supernet" else []

    def call() -> None:
        supernet.zero_grad()
        logits = supernet(images)
        loss = F.cross_entropy(logits, labels)
        for crop in crops:
            loss = loss + distillation_loss(supernet(images, crop), logits)
        loss.backward()

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--model", choices=tuple(SIZES), default="base")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    arguments = (options.model, options.batch)
    calls = {variant: call_of(variant, *arguments) for variant in ("supernet", "plain")}
    ratios = interleaved(call_of("separate", *arguments), calls, options.pairs, warmup=2)
    labels = {
        "separate": "a network for each size",
        "supernet": "supernet, all sizes",
        "plain": "the whole network alone",
    }
    rows = []
    for variant, label in labels.items():
        memory = f"{peak_rise(call_of, variant, *arguments) / 2**20:.0f} MiB"
        if variant == "separate":
            rows.append([label, "1", f"{1e3 * ratios['supernet'].baseline:.0f}", memory])
            continue
        ratio = ratios[variant]
        over = f"{1 / ratio.median:.2f} [{1 / ratio.upper:.2f}, {1 / ratio.lower:.2f}]"
        rows.append([label, over, f"{1e3 * ratio.candidate:.0f}", memory])
    sizes = ", ".join(f"{heads} heads x {depth} blocks at {side}" for heads, depth, side in SIZES[options.model])
    notes = [
        f"DeiT-{options.model.capitalize()} and its sub-models ({sizes}), batches of {options.batch}, float32, "
        f"forward and backward, {options.pairs} pairs"
    ]
    write("supernet_step", ["step", "time over the sum", "ms a step", "memory rise"], rows, notes)


if __name__ == "__main__":
    main()
