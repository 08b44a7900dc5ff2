"""The packed binary 3 x 3 convolution on a CPU against float32, and a whole binary network against itself in float32.

``python -m benchmarks.binary_conv [--pairs 15] [--threads 1]``: the shapes of ResNet-18's stages at 224 pixels, packing
of the input included; then ResNet-18 deployed, its speed and the size of its file.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from safetensors.torch import save
from torch import Tensor, nn

from benchmarks.baselines.binary_conv import float_convolution
from benchmarks.timing import Ratio, paired, write
from repertory.ops.binary_conv import binary_conv2d, pack_signs
from repertory.systems.reste import deploy
from repertory.systems.reste.model import resnet18, resnet18_real

LAYERS = ((64, 56), (128, 28), (256, 14), (512, 7))  # channels, side
Call = Callable[[], Tensor]


def layer_calls(batch: int, channels: int, side: int) -> tuple[Call, Call, Tensor]:
    """The float convolution, the packed one, and what the latter must give: signs convolved in float."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, side, side, generator=generator)
    weight = torch.randn(channels, channels, 3, 3, generator=generator)
    words = pack_signs(weight)
    packed = lambda: binary_conv2d(x, words, (3, 3), padding=(1, 1), backend="compiled")  # noqa: E731
    return lambda: float_convolution(x, weight, 1), packed, float_convolution(x.sign(), weight.sign(), 1)


def row(name: str, batch: int, ratio: Ratio, first: float, size: str, exact: str) -> list[str]:
    milliseconds = (f"{1e3 * ratio.baseline:.2f}", f"{1e3 * ratio.candidate:.2f}")
    return [name, str(batch), str(ratio), *milliseconds, f"{first:.1f}", size, exact]


def stored(model: nn.Module) -> float:
    """MB of the network's file."""
    return len(save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})) / 1e6


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for channels, side in LAYERS:
        for batch in (1, 8):
            baseline, packed, expected = layer_calls(batch, channels, side)
            start = time.perf_counter()
            exact = "yes" if torch.equal(packed(), expected) else "no"
            first = time.perf_counter() - start
            ratio = paired(baseline, packed, options.pairs)
            size = f"{4e-3 * 9 * channels**2:.0f} to {9e-3 * channels**2 / 8:.0f} kB"
            rows.append(row(f"3 x 3, {channels} channels at {side}", batch, ratio, first, size, exact))
    torch.manual_seed(0)
    simulated, real = resnet18().eval(), resnet18_real().eval()
    images, network = torch.randn(1, 3, 224, 224), deploy(simulated)
    start = time.perf_counter()
    difference = float((network(images) - simulated(images)).abs().max())
    first = time.perf_counter() - start
    size = f"{stored(real):.1f} to {stored(network):.1f} MB"
    for name, other in (("ResNet-18, over full precision", real), ("ResNet-18, over its simulation", simulated)):
        ratio = paired(lambda other=other: other(images), lambda: network(images), options.pairs)  # type: ignore[misc]
        rows.append(row(name, 1, ratio, first, size, f"within {difference:.0e}"))
    columns = [
        "what",
        "batch",
        "speed",
        "float32 ms",
        "packed ms",
        "first call s",
        "weights",
        "equal to signs in float",
    ]
    write(
        "binary_conv", columns, rows, [f"packing of the input included, {options.pairs} pairs; the first call compiles"]
    )


if __name__ == "__main__":
    main()
