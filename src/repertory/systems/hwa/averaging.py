"""Hierarchical weight averaging (HWA) for a hand-written loop; torch only.

"Hierarchical Weight Averaging for Deep Neural Networks", IEEE TNNLS 2023, arXiv 2304.11519. A reading: no authors'
code is public. The abstract gives the two modules; the equations here are their plain form, and what it leaves open is
a setting whose default is our inference, said where it stands.

Online, K replicas of one network train on batches of their own and, every H optimiser steps, are replaced by their
mean, the outer weight. Offline, the network that is evaluated is the mean of the last I outer weights, which never
feeds back into training. All of it is training-only: what remains is one network.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from repertory.errors import NonFiniteError
from repertory.systems.hwa.window import SlidingWindow, has_batch_norm, recalibrate

OPTIMIZER_STATES = ("keep", "average", "reset")
BATCH_NORMS = ("recalibrate", "average")

Layout = tuple[tuple[str, tuple[int, ...], torch.dtype], ...]


@dataclass(frozen=True)
class _Tensors:
    """What one replica brings to a synchronisation, in one order for all replicas.

    ``weights`` are trainable parameters and floating buffers, ``states`` the optimiser's tensors shaped like their
    parameter (empty unless they are averaged), ``counters`` the integer buffers.
    """

    weights: dict[str, Tensor]
    states: dict[str, Tensor]
    counters: dict[str, Tensor]

    def averaged(self) -> dict[str, Tensor]:
        return {**self.weights, **self.states}

    def layout(self) -> Layout:
        everything = {**self.weights, **self.states, **self.counters}
        return tuple((name, tuple(t.shape), t.dtype) for name, t in everything.items())


class HierarchicalWeightAveraging:
    """Online averaging of K replicas every H steps, and the sliding-window mean of I outer weights.

    One process may hold all K replicas (``replicas`` lists them), or every process of a group one of them
    (``process_group``), or several each; K counts them all. Replicas must start from the same weights: make them by
    ``copy.deepcopy``, or call :meth:`align` before a fresh run. Then call :meth:`step` after each optimiser step, and
    :meth:`deploy` for the network to evaluate::

        averaging = HierarchicalWeightAveraging(replicas, period=200, window=20)
        ...                              # one optimiser step of every replica, each on a batch of its own
        averaging.step()
        network = averaging.deploy(images for images, labels in train_loader)

    Parameters are averaged in float32 (float64 where they are float64) and each tied one once; frozen ones are
    skipped, since their mean is themselves. Floating buffers are averaged, of integer ones the maximum is taken.

    Args:
        replicas: the network of this process, or its replicas.
        period: H, optimiser steps between synchronisations, at least 1; None leaves it to you to call
            :meth:`synchronize`, at the end of each epoch for instance.
        window: I, outer weights in the evaluated mean, at least 1; None for all of them (as SWA).
        optimizers: the optimisers that hold the replicas' parameters, one for all or one each; needed unless
            ``optimizer_state`` is "keep".
        optimizer_state: what happens to momenta at a synchronisation (inferred; it changes convergence): "keep", each
            replica its own; "average", the mean, a missing one counting as zero; "reset", all state dropped.
        batch_norm: running statistics of the evaluated mean (inferred): "recalibrate", one pass over training images;
            "average", the mean of the outer weights' own statistics, cheaper and approximate.
        window_device: where the window is kept, the host's memory by default.
        process_group: the group of processes that train replicas together; ``torch.distributed.group.WORLD`` for all;
            None where this process trains alone.

    Raises:
        ValueError: for no replica, H or I below 1, replicas whose names or shapes differ, nothing trainable, an unknown
            setting, or an optimiser policy without optimisers.
        TypeError: for complex parameters or buffers.

    With one replica there is nothing to synchronise: training is untouched, bit for bit, and only the window is kept.
    """

    def __init__(
        self,
        replicas: nn.Module | Sequence[nn.Module],
        *,
        period: int | None,
        window: int | None = 20,
        optimizers: Optimizer | Sequence[Optimizer] = (),
        optimizer_state: Literal["keep", "average", "reset"] = "keep",
        batch_norm: Literal["recalibrate", "average"] = "recalibrate",
        window_device: torch.device | str = "cpu",
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        listed = isinstance(replicas, nn.ModuleList) or not isinstance(replicas, nn.Module)
        self.replicas: list[nn.Module] = list(replicas) if listed else [replicas]  # type: ignore[arg-type, list-item]
        self.optimizers = [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)
        if not self.replicas:
            raise ValueError("replicas is empty; K must be at least 1")
        if period is not None and period < 1:
            raise ValueError(f"period is {period}; it must be at least 1 optimiser step")
        if optimizer_state not in OPTIMIZER_STATES:
            raise ValueError(f"optimizer_state is {optimizer_state!r}; it must be one of {', '.join(OPTIMIZER_STATES)}")
        if batch_norm not in BATCH_NORMS:
            raise ValueError(f"batch_norm is {batch_norm!r}; it must be one of {', '.join(BATCH_NORMS)}")
        if optimizer_state != "keep" and not self.optimizers:
            raise ValueError(f"optimizer_state is {optimizer_state!r}, which needs optimizers; none were given")
        self.period, self.optimizer_state, self.batch_norm = period, optimizer_state, batch_norm
        self.window = SlidingWindow(window, window_device)
        self.group = process_group
        self.world = dist.get_world_size(process_group) if process_group is not None else 1
        self.steps_done, self.cycle = 0, 0
        self._agreed: Layout | None = None
        self._warned = False
        self._check_layouts([self._tensors(replica) for replica in self.replicas])

    @property
    def count(self) -> int:
        """K, over all processes."""
        return len(self.replicas) * self.world

    @torch.no_grad()
    def align(self) -> None:
        """Give every replica the parameters and buffers of the first (of the group's first process): a common start.

        For a fresh run whose replicas were not made by copying; never after a resume, where replicas rightly differ.
        """
        first = _everything(self.replicas[0])
        if self.group is not None:
            for tensor in first:
                dist.broadcast(tensor, group=self.group, group_src=0)
        for replica in self.replicas[1:]:
            torch._foreach_copy_(_everything(replica), first)

    def step(self) -> bool:
        """Count one optimiser step; every H-th synchronises. Returns whether it did."""
        self.steps_done += 1
        if self.period is None or self.steps_done % self.period:
            return False
        self.synchronize()
        return True

    @torch.no_grad()
    def synchronize(self) -> None:
        """End the cycle: replace every replica by the mean of all, and take that outer weight into the window.

        Raises:
            NonFiniteError: names the replica and the tensor that is not finite; nothing is changed then.
            ValueError: where replicas no longer have the same names and shapes.
        """
        local = [self._tensors(replica) for replica in self.replicas]
        self._check_layouts(local)
        names = list(local[0].averaged())
        total = [_master(t) for t in local[0].averaged().values()]
        for replica in local[1:]:
            torch._foreach_add_(total, list(replica.averaged().values()))
        norms = torch._foreach_norm(total, ord=float("inf"))
        counters = _largest([replica.counters for replica in local])
        if self.world > 1:
            counters = self._reduce(total, norms, counters, local)
        else:
            self._refuse(_first_broken(local, names, norms))
            self._warn_if(self.count > 1 and _all_equal(local))
        if self.count > 1:
            torch._foreach_div_(total, self.count)
            for replica in local:
                torch._foreach_copy_(list(replica.averaged().values()), total)
                for name, value in counters.items():
                    replica.counters[name].copy_(value)
            if self.optimizer_state == "reset":
                for optimizer in self.optimizers:
                    optimizer.state.clear()
        self.window.push(dict(zip(local[0].weights, total)))
        self.cycle += 1

    @torch.no_grad()
    def deploy(self, images: Iterable[Tensor] | None = None, batches: int | None = None) -> nn.Module:
        """The evaluated network: a new one with the window's mean; the replicas and the window stay as they are.

        Before the first synchronisation it is the mean of this process's replicas.

        Args:
            images: batches (B, C, H, W) of training images to re-estimate batch norm from; needed where the network has
                one and ``batch_norm`` is "recalibrate".
            batches: how many of them to use; None for all.

        Returns:
            One network with the parameters of one replica, in the mode of the first replica.
        """
        network = copy.deepcopy(self.replicas[0])
        weights = self.window.mean() if len(self.window) else self._mean_of_replicas()
        own = _weights(network)
        for name, mean in weights.items():
            own[name].copy_(mean)
        if self.batch_norm == "recalibrate" and has_batch_norm(network):
            if images is None:
                raise ValueError(
                    "images is None, but the network has batch norm: give training images, or set batch_norm='average'"
                )
            recalibrate(network, images, batches)
        return network

    def state_dict(self) -> dict[str, Any]:
        """The window and the counters. Replicas and optimisers are saved by whoever owns them, all K of each."""
        return {"step": self.steps_done, "cycle": self.cycle, "count": self.count, "window": self.window.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved run; ``ValueError`` where it had another number of replicas or another window."""
        if state["count"] != self.count:
            raise ValueError(
                f"there are {self.count} replicas, but the saved run had {state['count']}: resume with as many"
            )
        self.window.load_state_dict(state["window"])
        self.steps_done, self.cycle = state["step"], state["cycle"]

    def _tensors(self, replica: nn.Module) -> _Tensors:
        """What ``replica`` brings to a synchronisation."""
        counters = {name: b for name, b in replica.named_buffers() if not b.is_floating_point()}
        states = self._momenta(replica) if self.optimizer_state == "average" else {}
        return _Tensors(_weights(replica), states, counters)

    def _momenta(self, replica: nn.Module) -> dict[str, Tensor]:
        """The optimiser's tensors shaped like their parameter; zeros where one has none of a kind that others have.

        Filling in keeps the order of tensors the same in every process, whatever parameters went without a gradient.
        """
        owners = {p: o for o in self.optimizers for group in o.param_groups for p in group["params"]}
        held = {
            name: {key: t for key, t in owners[p].state.get(p, {}).items() if key != "step" and _like(t, p)}
            for name, p in replica.named_parameters()
            if p.requires_grad and p in owners
        }
        states = ((p, key, t) for o in self.optimizers for p, entries in o.state.items() for key, t in entries.items())
        kinds = sorted({key for p, key, t in states if key != "step" and _like(t, p)})
        parameters = dict(replica.named_parameters())
        return {
            f"{key} of {name}": tensors[key] if key in tensors else torch.zeros_like(parameters[name])
            for name, tensors in held.items()
            for key in kinds
        }

    def _check_layouts(self, local: Sequence[_Tensors]) -> None:
        """Refuse replicas whose names, shapes or types differ; other processes are asked when ours changed."""
        first = local[0].layout()
        if not local[0].weights.keys() & {n for n, p in self.replicas[0].named_parameters()}:
            raise ValueError("replicas have no trainable parameter: there is nothing to average")
        for name, _, dtype in first:
            if dtype.is_complex:
                raise TypeError(f"{name} is {dtype}; complex tensors are not averaged, only floating and integer ones")
        for index, replica in enumerate(local):
            _same_layout(first, replica.layout(), index)
        if self.world > 1 and first != self._agreed:
            layouts: list[Any] = [None] * self.world
            dist.all_gather_object(layouts, (len(local), first), group=self.group)
            for rank, (held, layout) in enumerate(layouts):
                if held != layouts[0][0]:
                    raise ValueError(
                        f"process {rank} holds {held} replicas and process 0 {layouts[0][0]}; all must hold as many"
                    )
                _same_layout(layouts[0][1], layout, rank * held)
        self._agreed = first

    def _reduce(
        self, total: list[Tensor], norms: Sequence[Tensor], counters: dict[str, Tensor], local: Sequence[_Tensors]
    ) -> dict[str, Tensor]:
        """Sum ``total`` in place over all processes; return the largest ``counters``.

        One all-reduce of one flat buffer a dtype. What is no sum travels in the same buffer: each process has a row of
        its own there, zero elsewhere, which makes the sum a gather. A row holds a replica and a tensor that are not
        finite (-1 where all are), whether the local replicas are identical, a digest of the local weights, and the
        counters; each integer as four 16-bit pieces, which float32 holds exactly.
        """
        names = list(local[0].averaged())
        broken = _first_broken(local, names, norms)
        replica, tensor = (broken[0], names.index(broken[1])) if broken else (-1, -1)
        digest = torch.stack([n.double() for n in norms]).view(torch.int64).sum()
        device = total[0].device
        head = torch.tensor([replica, tensor, int(_all_equal(local)), int(digest)], dtype=torch.int64, device=device)
        flat_counters = [c.reshape(-1).to(device, torch.int64) for c in counters.values()]
        row = torch.cat([head, *flat_counters])
        rows = torch.zeros(self.world, row.numel(), 4, device=device, dtype=total[0].dtype)
        rows[dist.get_rank(self.group)] = _pieces(row).to(rows.dtype)

        for index, members in enumerate(_groups(total)):
            tail = [rows.reshape(-1)] if index == 0 else []
            flat = torch.cat([t.reshape(-1) for t in members] + tail)
            dist.all_reduce(flat, group=self.group)
            parts = flat.split([t.numel() for t in members] + [t.numel() for t in tail])
            torch._foreach_copy_(members, [part.view_as(t) for part, t in zip(parts, members)])
            if tail:
                rows = parts[-1].view_as(rows)

        gathered = _whole(rows)
        each = len(local)
        found = ((rank * each + int(r[0]), names[int(r[1])]) for rank, r in enumerate(gathered) if r[0] >= 0)
        self._refuse(next(found, None))
        self._warn_if(bool((gathered[:, 2] == 1).all() and (gathered[:, 3] == gathered[0, 3]).all()))
        largest = gathered[:, 4:].amax(0).split([c.numel() for c in counters.values()]) if counters else ()
        return {name: value.view(c.shape).to(c.dtype) for (name, c), value in zip(counters.items(), largest)}

    def _refuse(self, broken: tuple[int, str] | None) -> None:
        if broken is not None:
            replica, name = broken
            raise NonFiniteError(
                f"{name} of replica {replica} is not finite after {self.steps_done} steps; nothing was averaged"
            )

    def _warn_if(self, identical: bool) -> None:
        if identical and not self._warned:
            self._warned = True
            warnings.warn(
                f"all {self.count} replicas are identical, so averaging them does nothing: "
                "give each its own seed and data order",
                stacklevel=4,
            )

    def _mean_of_replicas(self) -> dict[str, Tensor]:
        """The mean of this process's replicas as they stand."""
        every = [_weights(replica) for replica in self.replicas]
        return {name: torch.stack([_master(w[name]) for w in every]).mean(0) for name in every[0]}


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters, each tied one once, and floating buffers."""
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return parameters | {name: b for name, b in model.named_buffers() if b.is_floating_point() or b.is_complex()}


def _everything(model: nn.Module) -> list[Tensor]:
    """Every parameter, frozen ones too, and every buffer."""
    return [p.detach() for p in model.parameters()] + list(model.buffers())


def _master(tensor: Tensor) -> Tensor:
    """A copy to add up in: float32, or float64 where ``tensor`` is."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32), copy=True)


def _like(value: Any, parameter: Tensor) -> bool:
    """Whether an entry of an optimiser's state is a floating tensor shaped as ``parameter``."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.shape == parameter.shape


def _same_layout(expected: Layout, found: Layout, replica: int) -> None:
    for (name, shape, dtype), (own_name, own_shape, own_dtype) in zip(expected, found):
        if (name, shape, dtype) != (own_name, own_shape, own_dtype):
            raise ValueError(
                f"replica {replica} has {own_name} {own_shape} {own_dtype} where replica 0 has {name} {shape} {dtype}; "
                "replicas must be copies of one network"
            )
    if len(expected) != len(found):
        extra = (expected if len(expected) > len(found) else found)[min(len(expected), len(found))][0]
        raise ValueError(
            f"{extra} is not in both replica 0 and replica {replica}; replicas must be copies of one network"
        )


def _first_broken(local: Sequence[_Tensors], names: Sequence[str], norms: Sequence[Tensor]) -> tuple[int, str] | None:
    """The replica and the name of a tensor that is not finite; None where every sum of replicas is finite.

    ``norms`` are the largest magnitudes of the sums: one small transfer for all of them in the ordinary case.
    """
    finite = torch.isfinite(torch.stack([n.double().cpu() for n in norms]))
    if finite.all():
        return None
    suspects = [name for name, good in zip(names, finite.tolist()) if not good]
    for index, replica in enumerate(local):
        for name in suspects:
            if not torch.isfinite(replica.averaged()[name]).all():
                return index, name
    return 0, suspects[0]  # each is finite, their sum overflows


def _all_equal(local: Sequence[_Tensors]) -> bool:
    """Whether the local replicas have equal weights; stops at the first tensor that differs."""
    first = local[0].weights
    return all(torch.equal(first[name], other.weights[name]) for other in local[1:] for name in first)


def _largest(counters: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The element-wise maximum of integer buffers over replicas."""
    largest = dict(counters[0])
    for other in counters[1:]:
        largest = {name: torch.maximum(value, other[name]) for name, value in largest.items()}
    return largest


def _groups(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """``tensors`` by dtype and device, in order: each group fits one flat buffer."""
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    return list(groups.values())


def _pieces(integers: Tensor) -> Tensor:
    """int64 (N,) as four 16-bit pieces each, (N, 4): what float32 holds and adds to zero exactly."""
    return torch.stack([(integers >> shift) & 0xFFFF for shift in (0, 16, 32, 48)], -1)


def _whole(pieces: Tensor) -> Tensor:
    """The int64 (..., N) of pieces (..., N, 4)."""
    low, second, third, high = pieces.to(torch.int64).unbind(-1)
    return low | second << 16 | third << 32 | high << 48
