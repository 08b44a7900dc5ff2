"""The two stages as training methods, each a run of its own: first the norms, then, from its weights, the channels.

Zhao et al., "Revisit Parameter-Efficient Transfer Learning: A Two-Stage Paradigm", arXiv 2303.07910. The second run
begins with the weights of the first, its head included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from repertory.systems.petl_two_stage.adapter import Init, Place, adapters, insert_adapters, tune_channels, widths
from repertory.systems.petl_two_stage.channels import (
    Variant,
    norm_scores,
    random_scores,
    select_channels,
    taylor_scores,
)
from repertory.systems.petl_two_stage.layer_norm import norm_parameters, tune_layer_norms
from repertory.training.method import Method, Progress

if TYPE_CHECKING:
    from torch.optim import Optimizer

Score = Literal["taylor", "norm", "random"]
# Which parameters train is decided by one method alone.
_CLAIMS = frozenset({"trainable parameters"})


class LayerNormTuning(Method):
    """Stage one: only the LayerNorms' scales and shifts and the head are trained, on any model that has LayerNorms.

    Args:
        norm_weight_decay: weight decay of the scales and shifts; 0 unless given, since decay pulls the scales away from
            what the network was trained with.
    """

    name: ClassVar[str] = "petl_layer_norm"
    claims: ClassVar[frozenset[str]] = _CLAIMS

    def __init__(self, norm_weight_decay: float = 0.0) -> None:
        self.norm_weight_decay = _at_least_zero(norm_weight_decay)

    def prepare_model(self, model: nn.Module) -> nn.Module:
        """``model`` with all else frozen; ``ValueError`` where it has no LayerNorm or no head."""
        tune_layer_norms(model)
        return model

    def build_optimizer(self, model: nn.Module, default: Optimizer) -> Optimizer:
        """``default`` with a group of their own for the norms."""
        return _apart(default, norm_parameters(model), self.norm_weight_decay)


class ChannelTuning(Method):
    """Stage two: small adapters of each block's most important channels, and the head; start it from stage one.

    Before its first step it scores the channels on the whole training set, as it is stored, in one pass; in a run of
    several processes each does so for itself. The formula of the score, the adapters' place and the defaults are
    inferred.

    Args:
        channels: K, channels of each block; an eighth of its width unless given.
        score: by which channels are chosen: taylor, or, to compare with, norm or random.
        variant: of the Taylor score: per_sample, abs_of_sum or squared.
        class_token: let the class token and other prefix tokens count in the Taylor score.
        class_mean: average the Taylor score over classes rather than samples.
        place: of score and adapter: attention (after its residual sum) or mlp (after the block).
        scale: s, a fixed factor of what the adapters add.
        init: of the adapters' weights: zero (training begins as stage one ended), or normal (deviation 0.02).
        tune_norms: let the LayerNorms train on.
        norm_weight_decay: their weight decay then.
        recompute: compute hidden layers of frozen MLPs again in the backward pass rather than keep them.
        seed: of the random score.

    Raises:
        ValueError: for an unknown choice, K below 1, or a negative decay.
    """

    name: ClassVar[str] = "petl_channels"
    claims: ClassVar[frozenset[str]] = _CLAIMS | {"blocks"}

    def __init__(
        self,
        channels: int | None = None,
        score: Score = "taylor",
        variant: Variant = "per_sample",
        class_token: bool = True,
        class_mean: bool = False,
        place: Place = "attention",
        scale: float = 1.0,
        init: Init = "zero",
        tune_norms: bool = False,
        norm_weight_decay: float = 0.0,
        recompute: bool = True,
        seed: int = 0,
    ) -> None:
        if channels is not None and channels < 1:
            raise ValueError(f"channels is {channels}; it must be at least 1")
        for argument, chosen, known in (
            ("score", score, Score),
            ("variant", variant, Variant),
            ("place", place, Place),
            ("init", init, Init),
        ):
            if chosen not in get_args(known):
                raise ValueError(f"{argument} is {chosen!r}; it must be one of {', '.join(get_args(known))}")
        self.channels, self.score, self.variant = channels, score, variant
        self.class_token, self.class_mean, self.place = class_token, class_mean, place
        self.scale, self.init, self.tune_norms = scale, init, tune_norms
        self.recompute, self.seed = recompute, seed
        self.norm_weight_decay = _at_least_zero(norm_weight_decay)
        self._dataset: Any = None
        self._batch_size = 1
        self._chosen = False

    def prepare_model(self, model: nn.Module) -> nn.Module:
        """``model`` with adapters of channels yet to be chosen, all but these and the head frozen."""
        first = select_channels([torch.zeros(width) for width in widths(model)], self.channels)
        insert_adapters(model, first, self.scale, self.init, self.place)
        tune_channels(model, self.tune_norms, self.recompute)
        return model

    def build_optimizer(self, model: nn.Module, default: Optimizer) -> Optimizer:
        """``default`` with a group of their own for norms that train on."""
        return _apart(default, norm_parameters(model), self.norm_weight_decay)

    def batch_sampler(self, dataset: Any, batch_size: int, seed: int, rank: int, world: int) -> None:
        """None, the ordinary one; ``dataset`` is what the channels are scored on."""
        self._dataset, self._batch_size = dataset, batch_size

    def before_step(self, model: nn.Module, progress: Progress) -> None:
        """Before the first step, choose the channels; of replicas, which are equal then, by the first."""
        if self._chosen:
            return
        replicas = list(model) if isinstance(model, nn.ModuleList) else [model]
        chosen = select_channels(self._scores(replicas[0]), self.channels)
        for replica in replicas:
            for adapter, index in zip(adapters(replica).values(), chosen, strict=True):
                adapter.index.copy_(index)
        self._chosen = True

    def state_dict(self) -> dict[str, Any]:
        """Whether the channels are chosen; which, the model's buffers say."""
        return {"chosen": self._chosen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Choose no second time."""
        self._chosen = bool(state["chosen"])

    def _scores(self, model: nn.Module) -> list[Tensor]:
        if self.score == "random":
            return random_scores(model, self.seed)
        if self._dataset is None:
            raise ValueError("petl_channels has no data to score channels on: batch_sampler(dataset, …) comes first")
        batches = _batches(self._dataset, self._batch_size)
        if self.score == "norm":
            return norm_scores(model, batches, self.place)
        return taylor_scores(model, batches, self.variant, self.class_token, self.class_mean, self.place)


def _apart(optimizer: Optimizer, norms: list[nn.Parameter], weight_decay: float) -> Optimizer:
    """Give the ``norms`` in ``optimizer`` groups of their own with ``weight_decay``."""
    known = set(map(id, norms))
    for group in list(optimizer.param_groups):
        moved = [parameter for parameter in group["params"] if id(parameter) in known]
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in known]
        if moved:
            optimizer.add_param_group({**group, "params": moved, "weight_decay": weight_decay})
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    return optimizer


def _batches(dataset: Any, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels of ``dataset`` (items: image, label, index), in its order, each once."""
    for first in range(0, len(dataset), size):
        samples = [dataset[index] for index in range(first, min(first + size, len(dataset)))]
        yield torch.stack([sample[0] for sample in samples]), torch.as_tensor([sample[1] for sample in samples])


def _at_least_zero(norm_weight_decay: float) -> float:
    if not norm_weight_decay >= 0:
        raise ValueError(f"norm_weight_decay is {norm_weight_decay}; it must be at least 0")
    return norm_weight_decay
