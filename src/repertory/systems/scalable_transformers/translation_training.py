"""Three stages of training a translation model with its sub-models, resumable at any step.

Gao et al., arXiv 2106.02242, whose abstract names the stages: joint training of sampled widths, then with word-level
self-distillation from the widest, then with sequence-level self-distillation. A reading; what is inferred:

- the law of the widths (:func:`draw_widths`, an argument): uniform in stage one; then the widest, one at random and the
  narrowest, as in the authors' vision code;
- the losses (:func:`joint_loss`, :func:`distilled_loss`, an argument): weight and temperature 1, and cross-entropy for
  the sub-models beside the distillation;
- in stage three the widest model, too, goes on with the translations that it made itself;
- the recipe: Adam (0.9, 0.98), inverse square root of the step after a warm-up, label smoothing 0.1, as is standard.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from repertory.data.translation_vocabulary import BEGIN, PADDING, EncodedPairs, TokenLists
from repertory.errors import NonFiniteError
from repertory.systems.scalable_transformers.crops import Crop, CropSpace
from repertory.systems.scalable_transformers.losses import distillation_loss
from repertory.systems.scalable_transformers.translation_model import ScalableTransformer
from repertory.systems.scalable_transformers.translation_search import (
    beam_search,
    check_vocabulary,
    length_penalty,
    padded,
)
from repertory.training.checkpoint import load_checkpoint, save_checkpoint
from repertory.training.evaluation import evaluating, place
from repertory.training.randomness import generator, reseed
from repertory.training.records import MetricsFile
from repertory.training.reporting import Report, reporting

WordBatch = tuple[Tensor, Tensor, Tensor]  # source (B, S), target before each word (B, T), target (B, T)


@dataclass(frozen=True)
class TranslationSettings:
    """How a translation model is trained; defaults that the abstract does not give are inferred.

    Args:
        steps: optimiser steps of stage one, two and three; a stage of 0 is left out.
        max_tokens: most tokens of a batch, padding counted, on the longer of both sides.
        lr: learning rate at the end of the warm-up.
        warmup: steps over which it rises linearly; afterwards it falls with the root of the step.
        label_smoothing: share of the target spread evenly over the vocabulary.
        weight: factor of the distillation beside each sub-model's cross-entropy.
        temperature: divides the logits of teacher and sub-model.
        heads: heads of the sub-models; None is the model's own choice.
        depths: layers of the sub-models; None is all.
        clip_grad: largest norm of the gradient; 0 leaves it alone.
        beam: hypotheses of the search that makes the targets of stage three.
        alpha: exponent of its length penalty.
        search_batch: sentences searched at a time.
        seed: seed of sample order, widths and dropout.
        checkpoint_steps: write a checkpoint after so many steps, or batches searched.
        log_steps: write a row of losses after so many steps, averaged over them.
    """

    steps: tuple[int, int, int] = (100_000, 50_000, 50_000)
    max_tokens: int = 4096
    lr: float = 7e-4
    warmup: int = 4000
    label_smoothing: float = 0.1
    weight: float = 1.0
    temperature: float = 1.0
    heads: tuple[int, ...] | None = None
    depths: tuple[int, ...] | None = None
    clip_grad: float = 0.0
    beam: int = 4
    alpha: float = 0.6
    search_batch: int = 64
    seed: int = 0
    checkpoint_steps: int = 500
    log_steps: int = 50

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        if len(self.steps) != 3 or min(self.steps) < 0 or not sum(self.steps):
            raise ValueError(f"steps is {self.steps}; it must be three numbers from 0, not all of them 0")
        for name in ("max_tokens", "warmup", "beam", "search_batch", "checkpoint_steps", "log_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("lr", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("weight", "alpha", "clip_grad"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it must be at least 0 and below 1")

    def stage_of(self, step: int) -> int:
        """The stage, from 0, that ``step`` belongs to."""
        return next(stage for stage, end in enumerate(np.cumsum(self.steps)) if step < end)

    def lr_at(self, step: int) -> float:
        """The learning rate of ``step``."""
        return self.lr * min((step + 1) / self.warmup, math.sqrt(self.warmup / (step + 1)))


FREE_ON_RESUME = ("steps", "search_batch", "checkpoint_steps", "log_steps")  # lengthen a run, or change no number


def draw_widths(space: CropSpace, stage: int, seed: int, step: int) -> dict[str, Crop]:
    """The sub-models of a step by name, the teacher first where there is one (inferred; see the module)."""
    sampled = space.sample(seed, step)
    if stage == 0:
        return {"sampled": sampled}
    return {"widest": Crop(), "random": sampled, "narrowest": space.smallest}


def joint_loss(
    model: ScalableTransformer, batch: WordBatch, crops: Mapping[str, Crop], settings: TranslationSettings
) -> dict[str, Tensor]:
    """Stage one: the cross-entropy of each sub-model, padding ignored."""
    source, before, target = batch
    return {name: _cross_entropy(model(source, before, crop), target, settings) for name, crop in crops.items()}


def distilled_loss(
    model: ScalableTransformer, batch: WordBatch, crops: Mapping[str, Crop], settings: TranslationSettings
) -> dict[str, Tensor]:
    """Stages two and three: cross-entropy of all, and for all but the first the distance to its word distribution.

    The teacher's logits are those of its own cross-entropy, detached; padding counts for nothing.
    """
    source, before, target = batch
    losses: dict[str, Tensor] = {}
    teacher: Tensor | None = None
    for name, crop in crops.items():
        logits = model(source, before, crop)
        losses[name] = _cross_entropy(logits, target, settings)
        if teacher is None:
            teacher = logits.detach()
        elif settings.weight:
            distance = distillation_loss(logits, teacher, settings.temperature, target != PADDING)
            losses[f"{name}_distillation"] = settings.weight * distance
    return losses


def _cross_entropy(logits: Tensor, target: Tensor, settings: TranslationSettings) -> Tensor:
    return F.cross_entropy(
        logits.flatten(0, 1), target.flatten(), ignore_index=PADDING, label_smoothing=settings.label_smoothing
    )


Draw = Callable[[CropSpace, int, int, int], dict[str, Crop]]
StageLoss = Callable[[ScalableTransformer, WordBatch, Mapping[str, Crop], TranslationSettings], Mapping[str, Tensor]]


def token_batches(pairs: EncodedPairs, max_tokens: int, *counters: int) -> list[np.ndarray]:
    """An epoch's batches of indices: sentences of like length together, the batches in random order.

    A function of the ``counters`` (seed, stage, epoch) alone. A batch holds at most ``max_tokens`` tokens of its longer
    side, padding counted.

    Raises:
        ValueError: where one sentence alone has more.
    """
    longer = np.maximum(pairs.source.lengths, pairs.target.lengths)
    if longer.max() > max_tokens:
        raise ValueError(f"max_tokens is {max_tokens}, but a sentence has {longer.max()} tokens; it must hold one")
    draws = generator("sentences", *counters)
    order = torch.randperm(len(pairs), generator=draws).numpy()
    order = order[np.argsort(longer[order], kind="stable")]
    batches, first = [], 0
    for place_ in range(1, len(order) + 1):
        if place_ == len(order) or (place_ - first + 1) * longer[order[place_]] > max_tokens:
            batches.append(order[first:place_])
            first = place_
    return [batches[index] for index in torch.randperm(len(batches), generator=draws).tolist()]


def padded_batch(pairs: EncodedPairs, indices: Sequence[int] | np.ndarray) -> WordBatch:
    """Source, target moved by one place behind the beginning mark, and target: (B, S), (B, T), (B, T)."""
    source = padded([pairs.source[int(index)] for index in indices], PADDING)
    target = padded([pairs.target[int(index)] for index in indices], PADDING)
    before = torch.cat([torch.full((len(target), 1), BEGIN), target[:, :-1]], 1)
    return source, before, target


def word_batches(pairs: EncodedPairs, size: int = 64, device: torch.device | None = None) -> Iterator[WordBatch]:
    """All pairs in their order, ``size`` at a time: what accuracy is measured on."""
    for first in range(0, len(pairs), size):
        batch = padded_batch(pairs, range(first, min(len(pairs), first + size)))
        yield batch[0].to(device), batch[1].to(device), batch[2].to(device)


@dataclass
class TranslationRun:
    """What a run gave: the trained ``model`` in evaluation mode, ``curves`` (name -> [(pairs seen, value)]), optimiser
    ``steps``, ``pairs`` and ``seconds``, counted over resumed parts, and the number of the signal that ended it early.
    """

    model: ScalableTransformer
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    steps: int = 0
    pairs: int = 0
    seconds: float = 0.0
    interrupted: int | None = None


@dataclass
class _State:
    """All that the rest of a run depends on, beside weights and optimiser."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    pairs: int = 0
    seconds: float = 0.0


def fit_translation(
    model: ScalableTransformer,
    pairs: EncodedPairs,
    *,
    out: Path | str,
    settings: TranslationSettings | None = None,
    draw: Draw = draw_widths,
    losses: tuple[StageLoss, StageLoss, StageLoss] = (joint_loss, distilled_loss, distilled_loss),
    after_stage: Callable[[int, ScalableTransformer], None] | None = None,
    resume: bool = False,
    progress: Report | bool | None = None,
) -> TranslationRun:
    """Train a copy of ``model``, and all its sub-models, in three stages.

    Args:
        model: on the device to train on.
        pairs: as :func:`~repertory.data.translation_vocabulary.encode_pairs` makes them, of the model's vocabulary.
        out: folder of the run: ``metrics.csv`` (its column of images counts pairs) and ``last.ckpt``.
        settings: how to train.
        draw: the sub-models of a step, by name: (space, stage, seed, step) -> crops, the teacher first.
        losses: what each stage minimises, the sum of the terms by name.
        after_stage: called with the number of a stage, from 1, and the model when it ends.
        resume: go on from ``out/last.ckpt`` if it is there.
        progress: as of :func:`repertory.training.fit`, in steps.

    Raises:
        ValueError: for another vocabulary, a sentence over the model's limit, or another run's checkpoint.
        NonFiniteError: where a loss stops being finite; the message names the step.
        CheckpointError: where a checkpoint could not be written; the one before is intact.
    """
    settings = settings or TranslationSettings()
    check_vocabulary(model, pairs.vocabulary)
    for side, lists in (("source", pairs.source), ("target", pairs.target)):
        if lists.lengths.max() > model.max_length:
            raise ValueError(
                f"{side} sentence {lists.lengths.argmax()} has {lists.lengths.max()} tokens; "
                f"the limit of the model, max_length, is {model.max_length}"
            )
    with reporting(progress, "training", "steps") as report:
        run = _Run(copy.deepcopy(model).train(), pairs, Path(out), settings, draw, losses)
        if resume and run.last.exists():
            run.restore()
        else:
            run.begin()
        return run.train(after_stage, report)


class _Run:
    def __init__(
        self,
        model: ScalableTransformer,
        pairs: EncodedPairs,
        out: Path,
        settings: TranslationSettings,
        draw: Draw,
        losses: tuple[StageLoss, StageLoss, StageLoss],
    ) -> None:
        self.model, self.pairs, self.out, self.settings = model, pairs, out, settings
        self.draw, self.losses = draw, losses
        self.last = out / "last.ckpt"
        self.space = model.crop_space(settings.heads, settings.depths)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, betas=(0.9, 0.98))
        self.state, self.records = _State(), MetricsFile(out / "metrics.csv")
        self.made: list[list[int]] = []  # translations by the widest, in the order they are searched in
        self.sums: dict[str, list[float]] = {}
        self.device, _ = place(model)
        self.batches: tuple[tuple[int, int], list[np.ndarray]] | None = None
        self.targets: EncodedPairs | None = None

    def begin(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        for stale in (self.last, self.records.path):
            stale.unlink(missing_ok=True)

    def restore(self) -> None:
        kept = load_checkpoint(self.last)
        for name, value in asdict(self.settings).items():
            if name not in FREE_ON_RESUME and kept["settings"][name] != value:
                began = kept["settings"][name]
                raise ValueError(f"{name} is {value!r}, but the run in {self.out} was started with {began!r}")
        if kept["size"] != len(self.pairs) or kept["sizes"] != self.model.settings:
            raise ValueError(f"the pairs or the model are not those that the run in {self.out} was started with")
        self.state = _State(**kept["state"])
        # A longer first or second stage would rewrite what came after it.
        done = np.cumsum(kept["settings"]["steps"])
        if any(self.state.step > end and end != now for end, now in zip(done[:2], np.cumsum(self.settings.steps))):
            raise ValueError(
                f"steps is {self.settings.steps}, but the run in {self.out} has passed stages of "
                f"{tuple(kept['settings']['steps'])}"
            )
        self.model.load_state_dict(kept["model"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.sums = kept["sums"]
        lists = TokenLists(kept["made"]["values"].numpy(), kept["made"]["ends"].numpy())
        self.made = [lists[index].tolist() for index in range(len(lists))]
        self.records.keep_until(self.state.step)

    def save(self) -> None:
        made = TokenLists.of(self.made)
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "state": asdict(self.state),
            "settings": asdict(self.settings),
            "sizes": self.model.settings,
            "size": len(self.pairs),
            "sums": self.sums,
            "made": {"values": torch.from_numpy(made.values), "ends": torch.from_numpy(made.ends)},
        }
        save_checkpoint(state, self.last)

    def train(self, after_stage: Callable[[int, ScalableTransformer], None] | None, report: Report) -> TranslationRun:
        from repertory.training.keeper import Interrupts

        interrupts, settings, state = Interrupts(), self.settings, self.state
        ends, total = np.cumsum(settings.steps).tolist(), sum(settings.steps)
        started = time.monotonic() - state.seconds
        with interrupts.installed():
            while state.step < total and not interrupts.received:
                stage = settings.stage_of(state.step)
                if stage == 2 and not self._search(interrupts):
                    break
                self._step(stage)
                state.seconds = time.monotonic() - started
                report(state.step, total)
                ended = stage + 1 if state.step == ends[stage] else 0
                if ended:
                    state.epoch = state.step_in_epoch = 0
                    self._record()
                    if after_stage:
                        with evaluating(self.model):
                            after_stage(ended, self.model)
                if ended or state.step % settings.checkpoint_steps == 0:
                    self.save()
            if interrupts.received:
                self.save()
        number = interrupts.received or None
        curves = self.records.curves()
        return TranslationRun(self.model.eval(), curves, state.step, state.pairs, state.seconds, number)

    def _step(self, stage: int) -> None:
        """One optimiser step: what it does depends on the seed and on where the run stands, and on nothing else."""
        state, settings = self.state, self.settings
        reseed(settings.seed, state.step, 0)
        pairs = self.targets if stage == 2 and self.targets is not None else self.pairs
        if self.batches is None or self.batches[0] != (stage, state.epoch):
            found = token_batches(pairs, settings.max_tokens, settings.seed, stage, state.epoch)
            self.batches = ((stage, state.epoch), found)
        indices = self.batches[1][state.step_in_epoch]
        source, before, target = (part.to(self.device) for part in padded_batch(pairs, indices))
        crops = self.draw(self.space, stage, settings.seed, state.step)
        terms = self.losses[stage](self.model, (source, before, target), crops, settings)
        loss = torch.stack(list(terms.values())).sum()
        if not bool(loss.isfinite()):
            raise NonFiniteError(f"the loss is {loss.item()} at step {state.step}; lower the learning rate")
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr_at(state.step)
        self.optimizer.zero_grad()
        loss.backward()
        if settings.clip_grad:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_grad)
        self.optimizer.step()
        for name, value in terms.items():
            mean = self.sums.setdefault(name, [0.0, 0])
            mean[0] += float(value.detach())
            mean[1] += 1
        state.step += 1
        state.step_in_epoch += 1
        state.pairs += len(indices)
        if state.step_in_epoch == len(self.batches[1]):
            state.epoch += 1
            state.step_in_epoch = 0
        if state.step % settings.log_steps == 0:
            self._record()

    def _record(self) -> None:
        """Write the means of the losses since the last row."""
        if self.sums:
            means = {f"train_{name}": total / count for name, (total, count) in self.sums.items()}
            state = self.state
            row = {"step": state.step, "epoch": state.epoch, "images": state.pairs, "seconds": state.seconds}
            self.records.append({**row, **means})
            self.sums = {}

    def _search(self, interrupts: Any) -> bool:
        """Translate the training sentences by the widest model, where that is not done; False where a signal came."""
        if self.targets is not None:
            return True
        order = np.argsort(-self.pairs.source.lengths, kind="stable")
        size, penalty, batches = self.settings.search_batch, length_penalty(self.settings.alpha), 0
        with evaluating(self.model):
            while len(self.made) < len(order):
                members = order[len(self.made) : len(self.made) + size]
                source = padded([self.pairs.source[int(i)] for i in members], PADDING).to(self.device)
                self.made += beam_search(self.model, source, beam=self.settings.beam, penalty=penalty)
                batches += 1
                if interrupts.received:
                    return False
                if batches % self.settings.checkpoint_steps == 0:
                    self.save()
        back = np.argsort(order)
        made = TokenLists.of(self.made[int(i)] for i in back)
        self.targets = EncodedPairs(self.pairs.source, made, self.pairs.vocabulary)
        return True
