"""The mobile search space: token sequences, the architectures that they mean, and which of these are equal.

Tan et al., "MnasNet: Platform-Aware Neural Architecture Search for Mobile", arXiv 1807.11626, in which FNAS searches.
An architecture is seven blocks between a fixed stem and head; all layers of a block are alike but for stride and input
width. Six tokens choose a block: operation, kernel, squeeze-and-excitation, skip, width and depth.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from typing import Any, ClassVar

OPERATIONS = ("conv", "sep", "mb")
SKIPS = ("pool", "identity", "none")
ACTIVATIONS = ("relu", "relu6", "hswish")

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """``layers`` equal layers; only the first has the ``stride`` and takes another width.

    Args:
        op: ``conv`` (k x k convolution), ``sep`` (depth-wise, then 1 x 1) or ``mb`` (mobile inverted bottleneck).
        kernel: side of the spatial kernel, odd.
        channels: width of every layer's output.
        layers: at least 1.
        stride: of the first layer.
        expansion: width inside ``mb`` as a multiple of the layer's input; 1 for the other operations.
        se_ratio: width of squeeze-and-excitation as a share of the layer's input; 0 for none.
        skip: ``identity`` where a layer keeps its shape, ``pool`` (average pooling, projected where widths differ) or
            ``none``.
    """

    op: str
    kernel: int
    channels: int
    layers: int
    stride: int = 1
    expansion: int = 1
    se_ratio: float = 0.0
    skip: str = "none"

    def __post_init__(self) -> None:
        for name, allowed in (("op", OPERATIONS), ("skip", SKIPS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        for name in ("kernel", "channels", "layers", "stride", "expansion"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel is {self.kernel}; it must be odd")
        if not 0 <= self.se_ratio <= 1:
            raise ValueError(f"se_ratio is {self.se_ratio}; it must be 0 to 1")

    def canonical(self, in_channels: int) -> Block:
        """The same network in the one way of writing it: no option that changes nothing.

        A plain convolution has no squeeze-and-excitation, only ``mb`` expands, and an identity that no layer can have
        (one layer, strided or of another width than its input) is none.
        """
        single = self
        if self.op == "conv":
            single = replace(single, se_ratio=0.0)
        if self.op != "mb":
            single = replace(single, expansion=1)
        if self.skip == "identity" and self.layers == 1 and (self.stride != 1 or self.channels != in_channels):
            single = replace(single, skip="none")
        return single

    def describe(self) -> str:
        """A short name: ``mb6 k3 se0.25 identity 40 x3 s2``."""
        squeezed = f" se{self.se_ratio:g}" if self.se_ratio else ""
        expanded = f"{self.op}{self.expansion}" if self.op == "mb" else self.op
        return f"{expanded} k{self.kernel}{squeezed} {self.skip} {self.channels} x{self.layers} s{self.stride}"


@dataclass(frozen=True)
class Architecture:
    """Stem, blocks and head of a network; ``key`` is equal where, and only where, two networks are.

    Args:
        blocks: in order.
        stem: channels of the 3 x 3 convolution that comes first.
        stem_stride: its stride.
        head: channels of the 1 x 1 convolution before pooling.
        act: ``relu``, ``relu6`` or ``hswish``.
    """

    blocks: tuple[Block, ...]
    stem: int = 32
    stem_stride: int = 2
    head: int = 1280
    act: str = "relu"

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        if not self.blocks:
            raise ValueError("blocks is empty; an architecture has at least one block")
        if self.act not in ACTIVATIONS:
            raise ValueError(f"act is {self.act!r}; it must be one of {', '.join(ACTIVATIONS)}")
        for name in ("stem", "stem_stride", "head"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def in_channels(self) -> tuple[int, ...]:
        """The width that each block takes in."""
        return (self.stem, *(block.channels for block in self.blocks[:-1]))

    def canonical(self) -> Architecture:
        """The same network, every block in its one way of writing."""
        pairs = zip(self.blocks, self.in_channels, strict=True)
        return replace(self, blocks=tuple(block.canonical(width) for block, width in pairs))

    @property
    def key(self) -> str:
        """What to remember a network's training by."""
        blocks = " | ".join(block.describe() for block in self.canonical().blocks)
        return f"stem {self.stem} s{self.stem_stride} | {blocks} | head {self.head} {self.act}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "blocks": [asdict(block) for block in self.blocks]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Architecture:
        """The inverse of :meth:`to_dict`; ``ValueError`` for an entry that is unknown or missing."""
        try:
            return cls(**{**values, "blocks": tuple(Block(**block) for block in values["blocks"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no architecture: {error}") from None


@dataclass(frozen=True)
class Stage:
    """Reference of one block: ``channels`` and ``layers`` that the tokens scale and shift, and the fixed ``stride``."""

    channels: int
    layers: int
    stride: int


MOBILE_STAGES = (
    Stage(16, 1, 1),
    Stage(24, 2, 2),
    Stage(32, 3, 2),
    Stage(64, 4, 2),
    Stage(96, 3, 1),
    Stage(160, 3, 2),
    Stage(320, 1, 1),
)


def round_channels(target: float, divisor: int = 8) -> int:
    """The multiple of ``divisor`` nearest to ``target``, but never below 90% of it (MobileNet's rule)."""
    rounded = max(divisor, int(target + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * target else rounded


@dataclass(frozen=True)
class SearchSpace:
    """All token sequences, what each means, and what the networks are for.

    Six tokens a stage, in the order of :attr:`TOKENS`; each is an index into the options below. The defaults are the
    mobile search space, 432 choices for each of seven blocks; ``act="hswish"`` is as near to MobileNetV3's settings,
    in which FNAS also searched, as the paper's readable parts go.

    Args:
        stages: reference widths, depths and strides.
        operations: (op, expansion) pairs.
        kernels: sides of the spatial kernel.
        se_ratios: widths of squeeze-and-excitation, 0 for none.
        skips: kinds of skip connections.
        widths: factors of the reference width; the result is rounded by :func:`round_channels`.
        depths: what is added to the reference number of layers; below 1 layer there is 1, since a dropped block would
            drop its stride.
        stem: channels of the stem.
        stem_stride: stride of the stem.
        head: channels before pooling.
        act: activation of all networks.
        divisor: widths are multiples of it.
        input_size: (channels, height, width) of the images.
        num_classes: of the classifier.

    Raises:
        ValueError: for a space without stages, a token without options, or an option that no block can have.
    """

    TOKENS: ClassVar[tuple[str, ...]] = ("op", "kernel", "se", "skip", "width", "depth")

    stages: tuple[Stage, ...] = MOBILE_STAGES
    operations: tuple[tuple[str, int], ...] = (("conv", 1), ("sep", 1), ("mb", 3), ("mb", 6))
    kernels: tuple[int, ...] = (3, 5)
    se_ratios: tuple[float, ...] = (0.0, 0.25)
    skips: tuple[str, ...] = SKIPS
    widths: tuple[float, ...] = (0.75, 1.0, 1.25)
    depths: tuple[int, ...] = (-1, 0, 1)
    stem: int = 32
    stem_stride: int = 2
    head: int = 1280
    act: str = "relu"
    divisor: int = 8
    input_size: tuple[int, int, int] = (3, 224, 224)
    num_classes: int = 1000
    sizes: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        named = ("stages", "operations", "kernels", "se_ratios", "skips", "widths", "depths")
        for name in (*named, "input_size"):
            value = tuple(tuple(item) if isinstance(item, list) else item for item in getattr(self, name))
            object.__setattr__(self, name, value)
        for name in named:
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; a search space needs at least one of them")
            if len(set(getattr(self, name))) != len(getattr(self, name)) and name != "stages":
                raise ValueError(f"{name} is {getattr(self, name)}; an option stands there twice")
        if not min(self.widths) > 0:
            raise ValueError(f"widths is {self.widths}; every factor must be above 0")
        if len(self.input_size) != 3 or min(self.input_size) < 1:
            raise ValueError(f"input_size is {self.input_size}; it must be (channels, height, width), each at least 1")
        if self.num_classes < 1 or self.divisor < 1:
            raise ValueError(f"num_classes and divisor are {self.num_classes} and {self.divisor}; at least 1 each")
        object.__setattr__(self, "sizes", self.options * len(self.stages))
        object.__setattr__(self, "_hash", zlib.crc32(repr(self).encode()))
        for position in range(len(self.options)):  # every option is tried once: a wrong one is refused here
            for option in range(self.options[position]):
                one = tuple(option if i == position else 0 for i in range(len(self.options)))
                self.decode(one * len(self.stages))

    @property
    def options(self) -> tuple[int, ...]:
        """How many options each of a block's tokens has."""
        lists = (self.operations, self.kernels, self.se_ratios, self.skips, self.widths, self.depths)
        return tuple(len(options) for options in lists)

    def __hash__(self) -> int:  # kept: a space is looked up with every block
        return self._hash

    def __len__(self) -> int:
        """Tokens of a sequence."""
        return len(self.sizes)

    @property
    def count(self) -> int:
        """Token sequences; equal networks are counted as often as they can be written."""
        return math.prod(self.sizes)

    def check(self, tokens: Sequence[int]) -> Tokens:
        """``tokens`` as a tuple; ``ValueError`` naming what is wrong with them."""
        tokens = tuple(int(token) for token in tokens)
        if len(tokens) != len(self):
            raise ValueError(f"tokens has {len(tokens)} entries; this space takes {len(self)}")
        for index, (token, size) in enumerate(zip(tokens, self.sizes, strict=True)):
            if not 0 <= token < size:
                name = self.TOKENS[index % len(self.TOKENS)]
                raise ValueError(f"token {index} ({name}) is {token}; it must be 0 to {size - 1}")
        return tokens

    def block(self, stage: int, choice: Sequence[int]) -> Block:
        """The block that six tokens mean at ``stage``."""
        op, kernel, se, skip, width, depth = choice
        reference = self.stages[stage]
        operation, expansion = self.operations[op]
        return Block(
            operation,
            self.kernels[kernel],
            round_channels(reference.channels * self.widths[width], self.divisor),
            max(1, reference.layers + self.depths[depth]),
            reference.stride,
            expansion,
            self.se_ratios[se],
            self.skips[skip],
        )

    def decode(self, tokens: Sequence[int]) -> Architecture:
        """The architecture that ``tokens`` mean, in its canonical form."""
        blocks, width = [], self.stem
        for stage, choice in enumerate(self._split(tokens)):
            blocks.append(_canonical_block(self, stage, choice, width))
            width = blocks[-1].channels
        return Architecture(tuple(blocks), self.stem, self.stem_stride, self.head, self.act)

    def _split(self, tokens: Sequence[int]) -> list[Tokens]:
        """Six tokens for each stage."""
        checked, size = self.check(tokens), len(self.TOKENS)
        return [checked[i : i + size] for i in range(0, len(checked), size)]

    def encode(self, architecture: Architecture) -> Tokens:
        """The first tokens that mean ``architecture``; ``ValueError`` naming the block that the space does not hold."""
        wanted = architecture.canonical()
        macro = (self.stem, self.stem_stride, self.head, self.act)
        given = (wanted.stem, wanted.stem_stride, wanted.head, wanted.act)
        if given != macro or len(wanted.blocks) != len(self.stages):
            raise ValueError(
                f"the architecture has {len(wanted.blocks)} blocks and (stem, stride, head, act) {given}; "
                f"this space has {len(self.stages)} and {macro}"
            )
        tokens: list[int] = []
        for stage, (block, width) in enumerate(zip(wanted.blocks, wanted.in_channels, strict=True)):
            tokens += _first_choice(self, stage, block, width)
        return tuple(tokens)

    def _likely(self, stage: int, block: Block) -> list[list[int]]:
        """For each token of ``stage`` the options that can mean ``block``, in order."""
        reference = self.stages[stage]
        widths = [round_channels(reference.channels * factor, self.divisor) for factor in self.widths]
        depths = [max(1, reference.layers + shift) for shift in self.depths]
        wanted = (
            ([op for op, _ in self.operations], block.op),
            (self.kernels, block.kernel),
            (range(len(self.se_ratios)), None),
            (range(len(self.skips)), None),
            (widths, block.channels),
            (depths, block.layers),
        )
        return [[i for i, option in enumerate(options) if value in (None, option)] for options, value in wanted]

    def choices(self) -> Iterator[Tokens]:
        """All tokens of one block, 432 in the mobile space, in order."""
        return itertools.product(*map(range, self.options))

    def canonical(self, tokens: Sequence[int]) -> Tokens:
        """The one token sequence by which the network of ``tokens`` goes."""
        found: list[int] = []
        width = self.stem
        for stage, choice in enumerate(self._split(tokens)):
            block = _canonical_block(self, stage, choice, width)
            found += _first_choice(self, stage, block, width)
            width = block.channels
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: what a search is known by when it is resumed."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        return {**values, "stages": [asdict(stage) for stage in self.stages]}


@lru_cache(maxsize=65536)
def _canonical_block(space: SearchSpace, stage: int, choice: Tokens, width: int) -> Block:
    """The block that six tokens mean after ``width`` channels, in its canonical form."""
    return space.block(stage, choice).canonical(width)


@lru_cache(maxsize=65536)
def _first_choice(space: SearchSpace, stage: int, block: Block, width: int) -> Tokens:
    """The first six tokens that mean the canonical ``block`` after ``width`` channels."""
    for choice in itertools.product(*space._likely(stage, block)):
        if space.block(stage, choice).canonical(width) == block:
            return choice
    raise ValueError(f"block {stage + 1} ({block.describe()}) is not in this search space")


def miniature(input_size: tuple[int, int, int] = (1, 28, 28), num_classes: int = 10) -> SearchSpace:
    """Three narrow blocks with the mobile space's choices for each: 432 ** 3 sequences, trained in seconds on a CPU."""
    stages = (Stage(8, 1, 1), Stage(16, 2, 2), Stage(24, 2, 2))
    return SearchSpace(stages, stem=8, stem_stride=1, head=64, input_size=input_size, num_classes=num_classes)
