"""What an architecture costs: multiply-adds, or seconds from a table of measured layers; and the cheapest of a space.

Every cost is a sum over stem, layers and head, so the least cost of a whole space is found exactly and at once.
"""

from __future__ import annotations

import json
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from repertory.files import Replacement
from repertory.systems.fnas.model import Layer, MobileNetwork
from repertory.systems.fnas.space import Architecture, Block, SearchSpace, Tokens
from repertory.training.reporting import Report, reporting

Side = tuple[int, int]


@dataclass(frozen=True)
class Part:
    """One summand: ``block`` (of one layer, its own stride) on maps (channels, height, width); or ``stem`` or ``head``.

    ``channels`` are those that come in, ``size`` the sides of the map that comes in.
    """

    kind: str
    channels: int
    size: Side
    block: Block | None = None
    out: int = 0
    stride: int = 1

    @property
    def name(self) -> str:
        """What a table knows the part by."""
        height, width = self.size
        what = self.block.describe() if self.block else f"{self.kind} {self.out} s{self.stride}"
        return f"{what} on {self.channels}x{height}x{width}"


def halved(size: Side, stride: int) -> Side:
    """Sides after a layer of ``stride``, rounded up."""
    return -(-size[0] // stride), -(-size[1] // stride)


def layers_of(block: Block, channels: int, size: Side) -> Iterator[Part]:
    """The layers of ``block``, one by one, each written as a block of one layer in its canonical form."""
    for index in range(block.layers):
        stride = block.stride if index == 0 else 1
        single = replace(block, layers=1, stride=stride).canonical(channels)
        yield Part("layer", channels, size, single)
        channels, size = block.channels, halved(size, stride)


def parts_of(architecture: Architecture, input_size: tuple[int, int, int]) -> Iterator[Part]:
    """Stem, layers and head in order."""
    channels, *sides = input_size
    size: Side = (sides[0], sides[1])
    yield Part("stem", channels, size, out=architecture.stem, stride=architecture.stem_stride)
    channels, size = architecture.stem, halved(size, architecture.stem_stride)
    for block in architecture.blocks:
        yield from layers_of(block, channels, size)
        channels, size = block.channels, halved(size, block.stride)
    yield Part("head", channels, size, out=architecture.head)


class Cost(ABC):
    """A cost of architectures that adds up over their parts; ``unit`` names it."""

    unit: str = ""

    def __init__(self, input_size: tuple[int, int, int], num_classes: int) -> None:
        self.input_size = (input_size[0], input_size[1], input_size[2])
        self.num_classes = num_classes

    @abstractmethod
    def part(self, part: Part) -> float:
        """The cost of one part."""

    def __call__(self, architecture: Architecture) -> float:
        """The cost of the whole network."""
        return sum(self.part(part) for part in parts_of(architecture, self.input_size))

    @property
    def configuration(self) -> dict[str, Any]:
        """Plain values by which a resumed search knows its cost again."""
        return {"name": type(self).__name__, "input_size": list(self.input_size), "num_classes": self.num_classes}


class MultiplyAdds(Cost):
    """Multiply-adds of one image's convolutions and its classifier; norms, activations and pooling count nothing.

    Half of what ``torch.utils.flop_counter.FlopCounterMode`` counts.
    """

    unit = "multiply-adds"

    def part(self, part: Part) -> float:
        """Products of one part."""
        return _multiply_adds(part, self.num_classes)


@lru_cache(maxsize=65536)
def _multiply_adds(part: Part, num_classes: int) -> int:
    if part.block is None:
        area = _area(halved(part.size, part.stride))
        kernel = 9 if part.kind == "stem" else 1
        classifier = part.out * num_classes if part.kind == "head" else 0
        return kernel * part.channels * part.out * area + classifier
    block, taken = part.block, part.channels
    area = _area(halved(part.size, block.stride))
    pooled = taken * block.channels * area if block.skip == "pool" and taken != block.channels else 0
    if block.op == "conv":
        return block.kernel**2 * taken * block.channels * area + pooled
    width = taken * block.expansion
    expand = taken * width * _area(part.size) if block.op == "mb" else 0
    squeezed = 2 * width * max(1, round(taken * block.se_ratio)) if block.se_ratio else 0
    return expand + block.kernel**2 * width * area + squeezed + width * block.channels * area + pooled


def _area(size: Side) -> int:
    return size[0] * size[1]


class LatencyTable(Cost):
    """Seconds of one forward pass on one device, as the sum of measured parts.

    Args:
        seconds: part's name -> seconds; made by :meth:`measure`, kept by :meth:`save`.
        device: what the seconds were measured on, in words.

    Raises:
        ValueError: for a time that is not above 0, or, when called, an architecture with a part that was not measured.
    """

    unit = "s"

    def __init__(
        self, seconds: Mapping[str, float], input_size: tuple[int, int, int], num_classes: int, device: str = ""
    ) -> None:
        super().__init__(input_size, num_classes)
        for name, value in seconds.items():
            if not 0 < value < float("inf"):
                raise ValueError(f"seconds of {name!r} is {value}; it must be above 0 and finite")
        self.seconds, self.device = dict(seconds), device

    def part(self, part: Part) -> float:
        """The measured seconds of one part."""
        if part.name not in self.seconds:
            raise ValueError(f"the latency table has no entry for {part.name!r}: measure it for this search space")
        return self.seconds[part.name]

    @property
    def configuration(self) -> dict[str, Any]:
        """Plain values by which a resumed search knows its cost again."""
        return {**super().configuration, "device": self.device, "seconds": dict(sorted(self.seconds.items()))}

    @classmethod
    def measure(
        cls,
        space: SearchSpace,
        *,
        architectures: list[Architecture] | None = None,
        device: str | torch.device = "cpu",
        rounds: int = 15,
        timer: Callable[[nn.Module, torch.Tensor, int], float] | None = None,
        progress: Report | bool | None = None,
    ) -> LatencyTable:
        """Time every part of ``space``, or of ``architectures`` alone, on one image: the median of ``rounds``.

        ``timer(module, image, rounds)`` gives seconds and replaces the stopwatch, for a device that is not torch's.
        """
        if rounds < 1:
            raise ValueError(f"rounds is {rounds}; it must be at least 1")
        if architectures is None:
            needed = {part.name: part for part in parts_in(space)}
        else:
            needed = {part.name: part for a in architectures for part in parts_of(a.canonical(), space.input_size)}
        seconds = {}
        with reporting(progress, "measuring layers", unit="layers") as report, torch.inference_mode():
            for index, (name, part) in enumerate(needed.items()):
                module = _module(part, space).to(device).eval()
                image = torch.zeros(1, part.channels, *part.size, device=device)
                seconds[name] = (timer or _stopwatch)(module, image, rounds)
                report(index + 1, len(needed))
        return cls(seconds, space.input_size, space.num_classes, str(device))

    def save(self, path: Path | str) -> None:
        """Write the table as JSON, whole or not at all."""
        values = {"input_size": self.input_size, "num_classes": self.num_classes, "device": self.device}
        with Replacement(Path(path)) as partial:
            partial.write_text(json.dumps({**values, "seconds": self.seconds}, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> LatencyTable:
        """Read what :meth:`save` wrote; ``FileNotFoundError`` or ``ValueError`` naming the file."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no latency table at {path}")
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(values["seconds"], tuple(values["input_size"]), values["num_classes"], values["device"])
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no latency table: {error}") from None


def _module(part: Part, space: SearchSpace) -> nn.Module:
    """The part as a module: a layer, or the stem or the head of a network of this space."""
    if part.block is not None:
        return Layer(part.block, part.channels, part.block.stride, space.act)
    if part.kind == "stem":
        around = Architecture((Block("sep", 3, part.out, 1),), part.out, part.stride, part.out, space.act)
        return MobileNetwork(around, 1, part.channels).stem
    around = Architecture((Block("sep", 3, part.channels, 1),), part.channels, 1, part.out, space.act)
    model = MobileNetwork(around, space.num_classes)
    return nn.Sequential(model.head, nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.classifier)


def _stopwatch(module: nn.Module, image: torch.Tensor, rounds: int) -> float:
    """Median seconds of a forward pass, after two that do not count."""
    times = []
    for attempt in range(rounds + 2):
        start = time.perf_counter()
        module(image)
        if image.is_cuda:
            torch.cuda.synchronize(image.device)
        if attempt > 1:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def parts_in(space: SearchSpace) -> Iterator[Part]:
    """Every part that a network of ``space`` can have, some more than once."""
    channels, *sides = space.input_size
    size: Side = (sides[0], sides[1])
    yield Part("stem", channels, size, out=space.stem, stride=space.stem_stride)
    widths, size = {space.stem}, halved(size, space.stem_stride)
    for stage in range(len(space.stages)):
        blocks = [space.block(stage, choice) for choice in space.choices()]
        for width in sorted(widths):
            for block in blocks:
                yield from layers_of(block.canonical(width), width, size)
        widths, size = {block.channels for block in blocks}, halved(size, space.stages[stage].stride)
    for width in sorted(widths):
        yield Part("head", width, size, out=space.head)


def cheapest(space: SearchSpace, cost: Cost) -> tuple[Tokens, float]:
    """The tokens of least ``cost`` in ``space``, and that cost: exact, block by block over the widths between them."""
    channels, *sides = space.input_size
    size: Side = (sides[0], sides[1])
    stem = Part("stem", channels, size, out=space.stem, stride=space.stem_stride)
    best: dict[int, tuple[float, Tokens]] = {space.stem: (cost.part(stem), ())}
    size = halved(size, space.stem_stride)
    choices = list(space.choices())
    for stage in range(len(space.stages)):
        blocks = [space.block(stage, choice) for choice in choices]
        further: dict[int, tuple[float, Tokens]] = {}
        for width, (spent, tokens) in best.items():
            for choice, block in zip(choices, blocks, strict=True):
                total = spent + sum(cost.part(part) for part in layers_of(block.canonical(width), width, size))
                if block.channels not in further or total < further[block.channels][0]:
                    further[block.channels] = (total, (*tokens, *choice))
        best, size = further, halved(size, space.stages[stage].stride)
    ends = [
        (spent + cost.part(Part("head", width, size, out=space.head)), tokens)
        for width, (spent, tokens) in best.items()
    ]
    total, tokens = min(ends)
    return tokens, total


def check_feasible(space: SearchSpace, cost: Cost, limit: float) -> None:
    """ValueError where no architecture of ``space`` costs ``limit`` or less."""
    if not limit > 0:
        raise ValueError(f"limit is {limit}; it must be above 0")
    _, least = cheapest(space, cost)
    if least > limit:
        raise ValueError(
            f"limit is {limit:g} {cost.unit}, but the cheapest architecture of this search space costs {least:g}: "
            "no architecture is feasible"
        )
