"""The architecture knowledge pool: weights of trained blocks, from which every block of a new network begins.

That each block is initialised by the most similar stored one, and that one is always found, is the paper's; descriptor,
similarity, transfer and the rule of fairness are inferred. The similarity is an argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from repertory.systems.fnas.model import MobileNetwork
from repertory.systems.fnas.space import Architecture, Block

COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Site:
    """What describes the weights of one place in a network: ``block`` (None of stem and head) at ``position``.

    The stem is at position 0, blocks follow, the head with the classifier comes last. ``in_channels`` come in.
    """

    position: int
    in_channels: int
    block: Block | None = None


Similarity = Callable[[Block, int, Block, int], float]


@dataclass(frozen=True)
class DescriptorSimilarity:
    """1 for equal blocks of equal input, else exp(-d), d the weighted L1 distance of their descriptors (inferred).

    Operation, squeeze-and-excitation and skip count as differing or not; kernel, expansion, widths, depth and stride by
    the logarithm of their ratio, so that the reference block, to which ratios would be taken, cancels.
    """

    operation: float = 2.0
    expansion: float = 1.0
    kernel: float = 1.0
    squeeze: float = 0.5
    skip: float = 0.5
    channels: float = 1.0
    in_channels: float = 1.0
    layers: float = 0.5
    stride: float = 1.0

    def __call__(self, a: Block, a_in: int, b: Block, b_in: int) -> float:
        """Similarity in (0, 1] of block ``a`` on ``a_in`` channels and ``b`` on ``b_in``."""
        if (a, a_in) == (b, b_in):
            return 1.0
        differing = self.operation * (a.op != b.op) + self.skip * (a.skip != b.skip)
        differing += self.squeeze * (a.se_ratio != b.se_ratio) + self.in_channels * abs(math.log(a_in / b_in))
        for name in ("expansion", "kernel", "channels", "layers", "stride"):
            differing += getattr(self, name) * abs(math.log(getattr(a, name) / getattr(b, name)))
        return math.exp(-differing)


@dataclass(frozen=True)
class Entry:
    """Stored weights of a site: tensors by their name inside it, the ``quality`` (accuracy) of the network they come
    from, the ``budget`` of optimiser steps of its training, and the ``updates`` that they have seen in all.
    """

    site: Site
    state: Mapping[str, Tensor]
    quality: float
    budget: int
    updates: int


@dataclass(frozen=True)
class Inheritance:
    """What a network began with: its whole ``state``, and for each position the ``similarity`` of the block taken over
    (None for a miss) and the ``updates`` that its weights had seen.
    """

    state: dict[str, Tensor]
    similarity: tuple[float | None, ...]
    updates: tuple[int, ...]


class KnowledgePool:
    """Blocks of trained networks by position.

    Fairness (inferred): a network inherits once for each position and is trained for one budget like every other; only
    a copy trained for the same budget replaces one stored; and weights that have seen more than ``cap`` budgets are not
    stored, so that no block is better trained than others because it came up often.

    Args:
        similarity: of two blocks with their input widths; inferred, see :class:`DescriptorSimilarity`.
        capacity: entries kept for each position, the oldest leaves first.
        cap: budgets that stored weights may have seen.
    """

    def __init__(self, similarity: Similarity | None = None, capacity: int = 64, cap: int = 10) -> None:
        if capacity < 1 or cap < 1:
            raise ValueError(f"capacity and cap are {capacity} and {cap}; they must be at least 1")
        self.similarity: Similarity = similarity or DescriptorSimilarity()
        self.capacity, self.cap = capacity, cap
        self.entries: dict[int, list[Entry]] = {}
        self.hits = self.lookups = 0

    @property
    def hit_ratio(self) -> float | None:
        """Share of lookups that found a block at their position; None before the first."""
        return self.hits / self.lookups if self.lookups else None

    def find(self, site: Site) -> tuple[Entry, float] | None:
        """The most similar entry at the position of ``site``, the better one of equals, and its similarity."""
        entries = self.entries.get(site.position, [])
        if not entries:
            return None
        score, _, index = max((self._score(site, e.site), e.quality, i) for i, e in enumerate(entries))
        return entries[index], score

    def _score(self, wanted: Site, stored: Site) -> float:
        if wanted.block is None or stored.block is None:  # stem and head differ in their input alone
            return math.exp(-abs(math.log(wanted.in_channels / stored.in_channels)))
        return self.similarity(wanted.block, wanted.in_channels, stored.block, stored.in_channels)

    def inherit(self, model: MobileNetwork) -> Inheritance:
        """The state that ``model`` begins with: every block from the most similar one, else as it is initialised."""
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        scores: list[float | None] = []
        updates = []
        for site, prefixes in sites(model.architecture, _channels_in(model)):
            found = self.find(site)
            self.lookups += 1
            scores.append(None if found is None else found[1])
            updates.append(0 if found is None else found[0].updates)
            if found is not None:
                self.hits += 1
                state |= transfer(found[0].state, _inside(state, prefixes))
        return Inheritance(state, tuple(scores), tuple(updates))

    def deposit(
        self, model: MobileNetwork, state: Mapping[str, Tensor], quality: float, budget: int, inherited: Inheritance
    ) -> None:
        """Store the blocks of a network trained to ``state`` for ``budget`` steps from ``inherited``.

        ``model`` is a network of the same architecture, for its shape alone.
        """
        if budget < 1:
            raise ValueError(f"budget is {budget}; weights that were not trained are no knowledge")
        places = sites(model.architecture, _channels_in(model))
        for (site, prefixes), before in zip(places, inherited.updates, strict=True):
            if before + budget <= self.cap * budget:
                own = {name: tensor.detach().cpu().clone() for name, tensor in _inside(state, prefixes).items()}
                self._store(Entry(site, own, quality, budget, before + budget))

    def _store(self, entry: Entry) -> None:
        stored = self.entries.setdefault(entry.site.position, [])
        same = next((i for i, other in enumerate(stored) if other.site == entry.site), None)
        if same is None:
            self.entries[entry.site.position] = [*stored, entry][-self.capacity :]
        elif stored[same].budget == entry.budget:
            stored[same] = entry

    @property
    def configuration(self) -> dict[str, Any]:
        """Plain values by which a resumed search knows its pool again."""
        similarity: Any = self.similarity
        values = asdict(similarity) if hasattr(similarity, "__dataclass_fields__") else {}
        name = getattr(similarity, "__name__", type(similarity).__name__)
        return {"similarity": {"name": name, **values}, "capacity": self.capacity, "cap": self.cap}

    def state_dict(self) -> dict[str, Any]:
        """All entries, and the counts of hits."""
        entries = [
            {
                "position": e.site.position,
                "in_channels": e.site.in_channels,
                "block": None if e.site.block is None else asdict(e.site.block),
                "state": dict(e.state),
                "quality": e.quality,
                "budget": e.budget,
                "updates": e.updates,
            }
            for stored in self.entries.values()
            for e in stored
        ]
        return {"entries": entries, "hits": self.hits, "lookups": self.lookups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave, also that of an earlier search on another task."""
        self.entries, self.hits, self.lookups = {}, state["hits"], state["lookups"]
        for e in state["entries"]:
            block = None if e["block"] is None else Block(**e["block"])
            site = Site(e["position"], e["in_channels"], block)
            entry = Entry(site, e["state"], e["quality"], e["budget"], e["updates"])
            self.entries.setdefault(site.position, []).append(entry)


def newest(a: Block, a_in: int, b: Block, b_in: int) -> float:
    """No similarity at all: with ``capacity=1`` each block begins from the last trained one at its position."""
    return 1.0


def sites(architecture: Architecture, in_chans: int) -> list[tuple[Site, tuple[str, ...]]]:
    """Every place of a network with the prefixes of its tensors' names."""
    wanted = architecture.canonical()
    last = len(wanted.blocks) + 1
    found: list[tuple[Site, tuple[str, ...]]] = [(Site(0, in_chans), ("stem.",))]
    for index, (block, width) in enumerate(zip(wanted.blocks, wanted.in_channels, strict=True)):
        found.append((Site(index + 1, width, block), (f"blocks.{index}.",)))
    found.append((Site(last, wanted.blocks[-1].channels), ("head.", "classifier.")))
    return found


def _channels_in(model: MobileNetwork) -> int:
    return model.stem[0].in_channels  # type: ignore[return-value]


def _inside(state: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name.startswith(prefixes)}


def transfer(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of ``target`` with what overlaps taken from ``source`` (inferred).

    Leading channels are copied, spatial kernels by their centre. A layer that ``source`` lacks begins from its last;
    tensors that ``source`` lacks (another operation's, squeeze-and-excitation) stay as they are. Both are of one
    position, so that names agree.
    """
    layers = [int(parts[2]) for name in source if (parts := name.split("."))[0] == "blocks"]
    result = {}
    for name, tensor in target.items():
        given = source.get(name)
        parts = name.split(".")
        if given is None and parts[0] == "blocks" and layers and int(parts[2]) > max(layers):
            given = source.get(".".join([*parts[:2], str(max(layers)), *parts[3:]]))
        usable = given is not None and given.ndim == tensor.ndim and not name.endswith(COUNTER)
        result[name] = overlapped(given, tensor) if usable and given is not None else tensor
    return result


def overlapped(source: Tensor, target: Tensor) -> Tensor:
    """``target`` with the leading part of every dimension from ``source``, and of 4-D tensors the centre of the kernel.

    Where the target's kernel is larger, what lies around that centre is zero: the layer computes what the source did.
    """
    result = target.clone()
    least = tuple(slice(0, min(a, b)) for a, b in zip(source.shape, target.shape, strict=True))
    if target.ndim < 4:
        result[least] = source[least].to(target)
        return result
    channels = least[:2]
    result[channels] = 0
    into, out_of = centred(source.shape[2:], target.shape[2:])
    result[(*channels, *into)] = source[(*channels, *out_of)].to(target)
    return result


def centred(source: torch.Size, target: torch.Size) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Slices of a target's and a source's kernel that hold their common centre."""
    into, out_of = [], []
    for theirs, ours in zip(source, target, strict=True):
        side = min(theirs, ours)
        into.append(slice((ours - side) // 2, (ours - side) // 2 + side))
        out_of.append(slice((theirs - side) // 2, (theirs - side) // 2 + side))
    return tuple(into), tuple(out_of)
