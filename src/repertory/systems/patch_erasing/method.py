"""PatchErasing as a training method: patches erased, difficulty measured, and both adjusted to one another.

Zhou et al., "Effective Vision Transformer Training: A Data-Centric Perspective", arXiv 2209.15006. Training only: the
network, its loss and inference are those that were given, and images are never erased for evaluation. The paper's text
was not available: erasing, its extension to easy samples and the mixing policies are inferred, and none of the paper's
figures is claimed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from repertory.systems.patch_erasing.erasing import FILLS, erase_patches
from repertory.systems.patch_erasing.mixing import FollowPeriod, FollowProportion, MixingPolicy, mixup
from repertory.training.difficulty import DifficultyStore, label_entropy
from repertory.training.method import Batch, Method, Outputs, Progress

POLICIES: Mapping[str, MixingPolicy | None] = {
    "none": None,
    "proportion": FollowProportion(),
    "period": FollowPeriod(),
}


class PatchErasing(Method):
    """Erases patches of every training image; measures how many samples are easy, moderate and hard meanwhile.

    ``history`` has the figures of each whole epoch, see :class:`~repertory.systems.patch_erasing.DataProportion`, and
    ``plot_periods(history)`` draws them. It takes the place of random erasing; leave that off.

    Args:
        rate: share of the patches erased in every image, at least 0 and below 1 (0.3 for DeiT-S, 0.15 for Swin-T).
        patch_size: side of an erased patch in pixels; the network's own for a ViT, 32 is plausible for Swin.
        fill: what is put there, after normalisation: "mean" (zeros) or "noise" (normal draws).
        easy_rate: further share erased where the network found the sample easy in the last epoch.
        alpha: probability of the label above which a sample is easy.
        beta: probability of the label below which a sample is hard.
        mixing: MixUp whose strength follows difficulty: "none", "proportion" (the share of easy samples) or "period".
        mix_probability: share of the steps that mix.

    Raises:
        ValueError: naming a setting outside its range.
    """

    name: ClassVar[str] = "patch_erasing"

    def __init__(
        self,
        rate: float = 0.3,
        patch_size: int = 16,
        fill: Literal["mean", "noise"] = "mean",
        easy_rate: float = 0.0,
        alpha: float = 0.8,
        beta: float = 0.3,
        mixing: Literal["none", "proportion", "period"] = "none",
        mix_probability: float = 1.0,
    ) -> None:
        for argument, value in (("rate", rate), ("easy_rate", easy_rate), ("rate + easy_rate", rate + easy_rate)):
            if not 0 <= value < 1:
                raise ValueError(f"{argument} is {value}; it must be at least 0 and below 1")
        if patch_size < 1:
            raise ValueError(f"patch_size is {patch_size}; it must be at least 1")
        for argument, chosen, known in (("fill", fill, FILLS), ("mixing", mixing, POLICIES)):
            if chosen not in known:
                raise ValueError(f"{argument} is {chosen!r}; it must be one of {', '.join(known)}")
        if not 0 <= mix_probability <= 1:
            raise ValueError(f"mix_probability is {mix_probability}; it must be at least 0 and at most 1")
        self.rate, self.patch_size, self.fill, self.easy_rate = rate, patch_size, fill, easy_rate
        self.policy, self.mix_probability = POLICIES[mixing], mix_probability
        self.settings = {
            "rate": rate,
            "patch_size": patch_size,
            "fill": fill,
            "easy_rate": easy_rate,
            "alpha": alpha,
            "beta": beta,
            "mixing": mixing,
            "mix_probability": mix_probability,
        }
        from repertory.systems.patch_erasing.proportion import DataProportion  # torchmetrics takes long to import

        self.proportion = DataProportion(alpha, beta)
        self.history: list[dict[str, float]] = []
        self.store: DifficultyStore | None = None
        self._earlier: dict[str, Tensor] = {}  # counts of a cut epoch, of all processes, until they are taken up
        self._epoch, self._classes = 0, 0

    def follow(self, samples: int) -> None:
        """Remember how difficult each of ``samples`` was: what ``easy_rate`` needs."""
        if self.store is None or self.store.size != samples:
            self.store = DifficultyStore(samples)

    def batch_sampler(self, dataset: Any, batch_size: int, seed: int, rank: int, world: int) -> None:
        """No sampler of its own: it learns here how many samples there are to follow."""
        if self.easy_rate:
            self.follow(len(dataset))

    def before_step(self, model: nn.Module, progress: Progress) -> None:
        """Note the epoch that the step belongs to, and how many classes the network tells apart."""
        self._epoch = progress.epoch
        if self.policy is not None and not self._classes:
            self._classes = classes_of(model)

    def transform_batch(self, batch: Batch, progress: Progress) -> Batch:
        """Mix the images if asked for, then erase patches of them."""
        images, labels = batch.images, batch.labels
        rate: float | Tensor = self.rate
        if self.easy_rate:
            easy = self._followed.at(batch.indices) < -math.log(self.proportion.alpha)
            rate = self.rate + self.easy_rate * easy
        if self.policy is not None and float(torch.rand(())) < self.mix_probability:
            images, labels = mixup(images, labels, self.policy(self.history), self._classes)
        if self.rate or self.easy_rate:  # measuring alone draws nothing
            images = erase_patches(images, rate, self.patch_size, self.fill)
        return Batch(images, labels, batch.indices)

    def extra_loss(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        """No term: how difficult each sample was is noted."""
        scores = label_entropy(outputs.logits, batch.labels)
        if scores.ndim != 1:
            raise ValueError(
                f"patch_erasing follows classifiers; these logits have shape {tuple(outputs.logits.shape)}"
            )
        if self.proportion.device != scores.device:
            self.proportion.to(scores.device)
        self._take_up()
        self.proportion.count_scores(scores)
        if self.easy_rate:
            self._followed.record(batch.indices, scores)
        return {}

    def after_step(self, model: nn.Module, progress: Progress) -> None:
        """At the end of an epoch: what it was like goes into ``history`` and takes effect."""
        if progress.epoch > self._epoch:
            self.end_epoch()

    def end_epoch(self) -> None:
        """Close the figures of an epoch; with several processes all must call it together."""
        from repertory.systems.patch_erasing.proportion import shares_of

        self.history.append({name: float(value) for name, value in shares_of(**self._counts()).items()})
        self.proportion.reset()
        if self.easy_rate:
            self._followed.collect()

    def figures(self) -> Mapping[str, float]:
        """Shares, mean losses and probability of the epoch that has ended, and the parameter of mixing for the next."""
        if not self.history:
            return {}
        last = {name: value for name, value in self.history[-1].items() if math.isfinite(value)}
        return last if self.policy is None else {**last, "mixing": self.policy(self.history)}

    def state_dict(self) -> dict[str, Any]:
        """Settings, history, the counts of this epoch and, where samples are followed, their scores."""
        store = {} if self.store is None else {"store": self.store.state_dict()}
        return {"settings": self.settings, "history": self.history, "counts": self._counts(), **store}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where ``state`` left off; ValueError naming a setting that is another."""
        for name, value in self.settings.items():
            if state["settings"][name] != value:
                raise ValueError(
                    f"{name} of patch_erasing is {value!r}, but the run was started with {state['settings'][name]!r}"
                )
        self.history = [dict(epoch) for epoch in state["history"]]
        self.proportion.reset()
        self._earlier = dict(state["counts"])
        if "store" in state:
            self.follow(len(state["store"]["values"]))
            self._followed.load_state_dict(state["store"])

    def _counts(self) -> dict[str, Tensor]:
        """The counts of this epoch over all processes, on the CPU."""
        self._take_up()
        with self.proportion.sync_context():  # sums over the processes, if there are several
            state: dict[str, Any] = self.proportion.metric_state
            return {name: value.to("cpu", copy=True) for name, value in state.items()}

    def _take_up(self) -> None:
        """Go on from the counts of a cut epoch: of several processes the first does."""
        if self._earlier and not (dist.is_available() and dist.is_initialized() and dist.get_rank()):
            for name, value in self._earlier.items():
                setattr(self.proportion, name, value.to(self.proportion.device, copy=True))
        self._earlier = {}

    @property
    def _followed(self) -> DifficultyStore:
        if self.store is None:
            raise ValueError("easy_rate is above 0, but how many samples to follow is not known: call follow(samples)")
        return self.store


def classes_of(model: nn.Module) -> int:
    """How many classes ``model``, or the first of its replicas, tells apart.

    By its ``num_classes``, or else its last linear layer; ValueError where it has neither.
    """
    network = model[0] if isinstance(model, nn.ModuleList) else model
    linear = [module.out_features for module in network.modules() if isinstance(module, nn.Linear)]
    classes = getattr(network, "num_classes", linear[-1] if linear else None)
    if not isinstance(classes, int):
        raise ValueError(f"{type(network).__name__} has neither num_classes nor a linear layer to count classes by")
    return classes
