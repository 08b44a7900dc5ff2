"""Wall time and samples a second of drop-and-pick training at three quarters of the samples, against the full schedule.

``python -m benchmarks.dap [--pairs 15] [--threads 2]``: whole trainings of a small ConvNet, 8 epochs over 1,024 images
of 32 x 32, each normalised as it is loaded. Beside it the full schedule with the loss of as many samples masked, which
is what dropping saves where it does not reach the loader.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.baselines.dap import train_masked, train_on_all
from benchmarks.timing import interleaved, write
from repertory.nn import ConvNet
from repertory.systems.dap import Cycle, DropAndPick, DropAndPickBatches, LowestFraction, expected_cost

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SAMPLES, SIDE, CLASSES, BATCH, EPOCHS, WIDTH = 1024, 32, 10, 32, 8, 16
CYCLE, FRACTION = Cycle(warmup=1, period=3, final=1), 0.5
TARGET = 0.20  # of the wall time saved


class Pictures(Dataset):
    """Bytes in memory, normalised one by one, as (image, label, index)."""

    def __init__(self) -> None:
        draws = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (SAMPLES, 3, SIDE, SIDE), dtype=torch.uint8, generator=draws)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return (self.images[index].float() / 255 - 0.5) / 0.25, index % CLASSES, index


def network() -> ConvNet:
    torch.manual_seed(0)
    return ConvNet(CLASSES, in_chans=3, width=WIDTH).to(DEVICE)


def phases() -> list[float]:
    """Share of the samples that each epoch drops."""
    return [FRACTION if CYCLE.phase(epoch, EPOCHS) == "drop" else 0.0 for epoch in range(EPOCHS)]


def train_dropping(dataset: Dataset) -> int:
    """The loop of the docs; returns samples processed."""
    model, selection = network(), DropAndPick(SAMPLES, CYCLE, LowestFraction(FRACTION), epochs=EPOCHS)
    sampler, processed = DropAndPickBatches(selection, BATCH), 0
    loader = DataLoader(dataset, batch_sampler=sampler)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        for images, labels, indices in loader:
            losses = F.cross_entropy(model(images.to(DEVICE)), labels.to(DEVICE), reduction="none")
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
            selection.record(indices, losses)
            processed += len(images)
    return processed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data, processed = Pictures(), {}

    def timed(name: str, train: Callable[[], int]) -> Callable[[], None]:
        def call() -> None:
            processed[name] = train()

        return call

    full = timed("full", lambda: train_on_all(network(), data, BATCH, EPOCHS, DEVICE))
    candidates = {
        "dap": timed("dap", lambda: train_dropping(data)),
        "masked": timed("masked", lambda: train_masked(network(), data, BATCH, phases(), DEVICE)),
    }
    ratios = interleaved(full, candidates, options.pairs, warmup=1)
    seconds = {"full": ratios["dap"].baseline, **{name: ratio.candidate for name, ratio in ratios.items()}}
    labels = {"full": "full schedule", "dap": "drop and pick", "masked": "full schedule, easy losses masked"}
    rows = []
    for name, label in labels.items():
        saved = ""
        if name in ratios:
            low, middle, high = (1 - 1 / at for at in (ratios[name].lower, ratios[name].median, ratios[name].upper))
            saved = f"{middle:.0%} [{low:.0%}, {high:.0%}]"
        rate = processed[name] / seconds[name]
        rows.append([label, f"{processed[name]:,}", f"{seconds[name]:.2f}", f"{rate:,.0f}", saved])
    met = "met" if 1 - 1 / ratios["dap"].median >= TARGET else "missed"
    notes = [
        f"ConvNet of width {WIDTH}, {SAMPLES:,} images of {SIDE} x {SIDE}, batches of {BATCH}, {EPOCHS} epochs",
        f"float32, images loaded in the training process, {options.pairs} rounds",
        f"cost by the formula: {expected_cost(EPOCHS, CYCLE, FRACTION):.3f}; "
        f"realised: {processed['dap'] / processed['full']:.3f}",
        f"target: {TARGET:.0%} of the wall time saved at cost 0.75: {met}",
    ]
    write("dap", ["training", "samples processed", "seconds", "samples a second", "wall time saved"], rows, notes)


if __name__ == "__main__":
    main()
