"""The three stages of training a translation model: losses, order, resumption, and what is refused."""

import dataclasses
import os
import signal

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from translation_cases import LIMIT, WORDS, model, reversals

from repertory.data.translation_vocabulary import EncodedPairs, TokenLists
from repertory.errors import NonFiniteError
from repertory.systems.scalable_transformers.crops import Crop, CropSpace
from repertory.systems.scalable_transformers.losses import distillation_loss
from repertory.systems.scalable_transformers.translation_scores import token_accuracy
from repertory.systems.scalable_transformers.translation_search import beam_search, length_penalty, padded
from repertory.systems.scalable_transformers.translation_training import (
    TranslationSettings,
    distilled_loss,
    draw_widths,
    fit_translation,
    joint_loss,
    padded_batch,
    token_batches,
    word_batches,
)

SETTINGS = TranslationSettings(steps=(4, 3, 3), max_tokens=60, lr=3e-3, warmup=4, beam=2, search_batch=16, log_steps=2)


def test_stage_one_samples_a_width_and_later_stages_the_widest_one_and_the_narrowest():
    space = CropSpace((3, 2, 1), (2,))
    assert draw_widths(space, 0, 0, 5) == {"sampled": space.sample(0, 5)}
    for stage in (1, 2):
        drawn = draw_widths(space, stage, 0, 5)
        assert list(drawn.values()) == [Crop(), space.sample(0, 5), Crop(1, 2, None)]


def test_sub_models_learn_words_and_the_widests_distribution_and_the_widest_words_alone():
    whole, batch = model(), padded_batch(reversals(), [0, 1, 2])
    settings = dataclasses.replace(SETTINGS, weight=0.5, temperature=2.0)
    losses = distilled_loss(whole, batch, {"widest": Crop(), "narrowest": Crop(1)}, settings)
    source, before, target = batch
    teacher, student = whole(source, before), whole(source, before, Crop(1))
    flat = target.flatten()
    for name, logits in (("widest", teacher), ("narrowest", student)):
        logs = logits.flatten(0, 1)
        expected = F.cross_entropy(logs[flat > 0], flat[flat > 0], label_smoothing=0.1)
        torch.testing.assert_close(losses[name], expected)
    distance = 0.5 * distillation_loss(student, teacher, 2.0, target > 0)
    torch.testing.assert_close(losses["narrowest_distillation"], distance)
    assert set(losses) == {"widest", "narrowest", "narrowest_distillation"}
    assert set(joint_loss(whole, batch, {"sampled": Crop(2)}, SETTINGS)) == {"sampled"}


def test_padding_counts_in_no_loss():
    whole, pairs = model(), reversals()
    lengths = pairs.target.lengths
    short, long = int(lengths.argmin()), int(lengths.argmax())
    crops = {"widest": Crop(), "narrowest": Crop(1)}
    together = distilled_loss(whole, padded_batch(pairs, [short, long]), crops, SETTINGS)
    apart = [distilled_loss(whole, padded_batch(pairs, [one]), crops, SETTINGS) for one in (short, long)]
    shares = np.array([lengths[short], lengths[long]]) / (lengths[short] + lengths[long])
    for name, value in together.items():
        expected = sum(share * one[name].item() for share, one in zip(shares, apart, strict=True))
        assert value.item() == pytest.approx(expected, rel=1e-4)


def test_the_teacher_gets_no_gradient_from_distillation():
    whole, batch = model(), padded_batch(reversals(), [0, 1])
    losses = distilled_loss(whole, batch, {"widest": Crop(), "narrowest": Crop(1)}, SETTINGS)
    losses["narrowest_distillation"].backward()
    assert not whole.embedding.weight.grad[:, 8:].any()


def test_batches_hold_every_pair_once_and_no_more_tokens_than_allowed():
    pairs = reversals()
    batches = token_batches(pairs, 30, 0, 0, 1)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(pairs)))
    longer = np.maximum(pairs.source.lengths, pairs.target.lengths)
    assert all(len(batch) * longer[batch].max() <= 30 for batch in batches)
    assert len(batches) < len(pairs) / 2
    again, other = token_batches(pairs, 30, 0, 0, 1), token_batches(pairs, 30, 0, 0, 2)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))
    assert [batch.tolist() for batch in other] != [batch.tolist() for batch in batches]
    with pytest.raises(ValueError, match="max_tokens is 3, but a sentence has"):
        token_batches(pairs, 3, 0)


def test_a_model_learns_to_translate_and_so_do_its_narrow_parts(tmp_path):
    pairs, ended = reversals(), []
    settings = TranslationSettings(steps=(30, 12, 4), max_tokens=400, lr=1e-2, warmup=5, beam=1)
    run = fit_translation(
        model(depth=1), pairs, out=tmp_path, settings=settings, after_stage=lambda stage, _: ended.append(stage)
    )
    assert ended == [1, 2, 3]
    assert (run.steps, run.interrupted) == (46, None)
    for crop in (Crop(), Crop(1)):
        before = token_accuracy(model(depth=1), word_batches(pairs), crop)
        assert token_accuracy(run.model, word_batches(pairs), crop) > before + 0.2
    assert {"train_sampled", "train_widest", "train_narrowest_distillation"} <= set(run.curves)


def test_stage_three_learns_the_translations_of_the_widest(tmp_path):
    pairs, seen = reversals(6), []

    def watch(whole, batch, crops, settings):
        seen.append((batch[0], batch[2]))
        return {"none": 0 * whole.embedding.weight.sum()}

    settings = dataclasses.replace(SETTINGS, steps=(0, 0, 3))
    start = model()
    with torch.no_grad():
        start.embedding.weight.mul_(3)
    run = fit_translation(start, pairs, out=tmp_path, settings=settings, losses=(joint_loss, distilled_loss, watch))
    assert run.steps == 3
    known = {tuple(pairs.source[i].tolist()): i for i in range(len(pairs))}
    for source, target in seen:
        for words, made in zip(source, target, strict=True):
            row = padded([pairs.source[known[tuple(words[words > 0].tolist())]]], 0)
            assert made[made > 0].tolist() == beam_search(start, row, beam=2, penalty=length_penalty())[0]


@pytest.mark.parametrize("cut", [2, 8])
def test_a_run_that_was_cut_goes_on_to_the_same_weights(tmp_path, cut):
    pairs, dropping = reversals(20), model(depth=1, drop=0.2)
    settings = dataclasses.replace(SETTINGS, checkpoint_steps=1)
    whole = fit_translation(dropping, pairs, out=tmp_path / "whole", settings=settings)

    def stop(done, total):
        if done == cut:
            os.kill(os.getpid(), signal.SIGTERM)

    first = fit_translation(dropping, pairs, out=tmp_path / "cut", settings=settings, progress=stop)
    assert (first.interrupted, first.steps) == (signal.SIGTERM, cut)
    second = fit_translation(dropping, pairs, out=tmp_path / "cut", settings=settings, resume=True)
    assert (second.steps, second.pairs) == (whole.steps, whole.pairs)
    assert second.curves == whole.curves
    torch.testing.assert_close(second.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)


def test_another_run_is_not_resumed(tmp_path):
    pairs = reversals(20)
    settings = dataclasses.replace(SETTINGS, steps=(2, 0, 0))
    fit_translation(model(), pairs, out=tmp_path, settings=settings)
    changed = dataclasses.replace(settings, lr=0.1)
    with pytest.raises(ValueError, match="lr is 0.1, but the run in .* was started with 0.003"):
        fit_translation(model(), pairs, out=tmp_path, settings=changed, resume=True)
    with pytest.raises(ValueError, match="the pairs or the model are not those"):
        fit_translation(model(depth=1), pairs, out=tmp_path, settings=settings, resume=True)
    longer = dataclasses.replace(settings, steps=(2, 1, 0))
    assert fit_translation(model(), pairs, out=tmp_path, settings=longer, resume=True).steps == 3
    back = dataclasses.replace(settings, steps=(4, 1, 0))
    with pytest.raises(ValueError, match="has passed stages of"):
        fit_translation(model(), pairs, out=tmp_path, settings=back, resume=True)


def test_bad_input_is_named_before_training(tmp_path):
    pairs = reversals(5)
    long = EncodedPairs(TokenLists.of([[3] * LIMIT + [2]]), TokenLists.of([[3, 2]]), WORDS)
    with pytest.raises(ValueError, match=f"source sentence 0 has {LIMIT + 1} tokens; the limit .* is {LIMIT}"):
        fit_translation(model(), long, out=tmp_path)
    with pytest.raises(ValueError, match=f"vocabulary has 99 tokens, but the model has {WORDS}"):
        fit_translation(model(), dataclasses.replace(pairs, vocabulary=99), out=tmp_path)
    for settings, words in (
        ({"steps": (0, 0, 0)}, "steps is"),
        ({"lr": 0.0}, "lr is 0.0; it must be above 0"),
        ({"beam": 0}, "beam is 0; it must be at least 1"),
        ({"weight": -1.0}, "weight is -1.0; it must be at least 0"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
    ):
        with pytest.raises(ValueError, match=words):
            TranslationSettings(**settings)
    broken = model()
    with torch.no_grad():
        broken.embedding.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="at step 0; lower the learning rate"):
        fit_translation(broken, pairs, out=tmp_path, settings=SETTINGS)


def test_the_learning_rate_rises_and_falls_with_the_root_of_the_step():
    settings = TranslationSettings(lr=1.0, warmup=4)
    assert [settings.lr_at(step) for step in (0, 3, 15)] == [0.25, 1.0, 0.5]
    assert [TranslationSettings(steps=(2, 0, 1)).stage_of(step) for step in range(3)] == [0, 0, 2]
