"""Weights shared by all networks of a space: the rival of the knowledge pool, trained one random path a step.

After Guo et al., "Single Path One-Shot Neural Architecture Search with Uniform Sampling", arXiv 1904.00420. Paths
of one operation share their leading channels, the centre of their kernels and their first layers.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from repertory.systems.fnas.model import MobileNetwork
from repertory.systems.fnas.policy import UniformPolicy
from repertory.systems.fnas.pool import centred
from repertory.systems.fnas.space import Architecture, SearchSpace
from repertory.training.loading import ShuffledBatches, collate
from repertory.training.optimization import default_optimizer, lr_factor, set_lr
from repertory.training.randomness import generator
from repertory.training.reporting import Report
from repertory.training.settings import FitSettings


class Supernet(nn.Module):
    """The largest tensor of every name, blocks apart by operation, and the networks that are parts of them.

    Batch norm's running statistics are no part of it: they are measured anew for each network that is judged.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        super().__init__()
        self.space = space
        random = generator("supernet", seed)
        self.shared = nn.ParameterDict(
            {name: nn.Parameter(_initial(name, shape, random)) for name, shape in _largest(space).items()}
        )

    def parameters_of(self, architecture: Architecture) -> dict[str, Tensor]:
        """The parameters of one network, views of the shared ones."""
        with torch.device("meta"):
            model = self._network(architecture)
        return {
            name: _part(self.shared[_shared_name(name, architecture)], parameter.shape)
            for name, parameter in model.named_parameters()
        }

    def network(self, architecture: Architecture) -> MobileNetwork:
        """One network with copies of its part of the weights."""
        model = self._network(architecture)
        state = {name: tensor.detach().clone() for name, tensor in self.parameters_of(architecture).items()}
        model.load_state_dict(state, strict=False)
        return model

    def _network(self, architecture: Architecture) -> MobileNetwork:
        return MobileNetwork(architecture, self.space.num_classes, self.space.input_size[0])

    def train_paths(self, data: Any, settings: FitSettings, report: Report) -> int:
        """Train on ``settings.max_images`` images of ``data.train``, a uniformly drawn network a step; those images."""
        optimizer = default_optimizer(self.parameters(), settings)
        sampler = ShuffledBatches(len(data.train), settings.batch_size, settings.seed)
        total = settings.max_images // settings.batch_size
        policy = UniformPolicy(self.space)
        for step in range(total):
            sampler.set_epoch(step // len(sampler))
            if step % len(sampler) == 0:
                batches = list(sampler)
            batch = collate([data.train[index] for index in batches[step % len(sampler)]])
            tokens = policy.sample(1, generator("path", settings.seed, step))[0].tolist()
            architecture = self.space.decode(tokens)
            model = self._network(architecture).train()
            logits = functional_call(model, self.parameters_of(architecture), batch.images)
            set_lr(optimizer, lr_factor(settings.schedule, step, total, 0))
            optimizer.zero_grad()
            F.cross_entropy(logits, batch.labels).backward()
            optimizer.step()
            report((step + 1) * settings.batch_size, settings.max_images)
        return total * settings.batch_size

    def judged(self, architecture: Architecture, data: Any, batch_size: int) -> MobileNetwork:
        """One network with its running statistics measured on ``data.train``."""
        model = self.network(architecture)
        indices = range(0, len(data.train), batch_size)
        update_bn((_images(data.train, first, batch_size) for first in indices), model)
        return model.eval()


def _images(dataset: Any, first: int, count: int) -> Tensor:
    return torch.stack([dataset[index][0] for index in range(first, min(first + count, len(dataset)))])


def _shared_name(name: str, architecture: Architecture) -> str:
    """Dots are not allowed in a ``ParameterDict``'s names; blocks are kept by operation."""
    parts = name.split(".")
    operation = architecture.blocks[int(parts[1])].op if parts[0] == "blocks" else "all"
    return f"{operation}/{name}".replace(".", "/")


def _largest(space: SearchSpace) -> dict[str, tuple[int, ...]]:
    """The largest shape of every tensor, by its shared name: each operation at its largest, after all widths."""
    largest: dict[str, tuple[int, ...]] = {}
    kernel, se, depth = (options.index(max(options)) for options in (space.kernels, space.se_ratios, space.depths))
    skip = space.skips.index("pool") if "pool" in space.skips else 0  # its projection is a tensor of its own
    widths = range(len(space.widths))
    for op, even, odd in itertools.product(range(len(space.operations)), widths, widths):
        blocks = [(op, kernel, se, skip, odd if stage % 2 else even, depth) for stage in range(len(space.stages))]
        architecture = space.decode([token for block in blocks for token in block])
        with torch.device("meta"):
            model = MobileNetwork(architecture, space.num_classes, space.input_size[0])
        for name, parameter in model.named_parameters():
            key = _shared_name(name, architecture)
            shape = largest.get(key, tuple(parameter.shape))
            largest[key] = tuple(max(a, b) for a, b in zip(shape, parameter.shape, strict=True))
    return largest


def _initial(name: str, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    """Convolutions normal by fan-out within a group, the classifier at 0.01, norms 1, biases 0, as the networks'."""
    if len(shape) == 1:
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    fan_out = math.prod(shape[2:]) * (1 if "depthwise" in name else shape[0])
    deviation = 0.01 if len(shape) == 2 else math.sqrt(2 / fan_out)
    return deviation * torch.randn(shape, generator=random)


def _part(shared: Tensor, shape: torch.Size) -> Tensor:
    """The part of ``shared`` that a tensor of ``shape`` is: leading channels, centre of the kernel."""
    leading = shared[tuple(slice(0, side) for side in shape[:2])]
    if len(shape) < 4:
        return leading
    into = centred(shape[2:], shared.shape[2:])[0]
    return leading[(slice(None), slice(None), *into)]
