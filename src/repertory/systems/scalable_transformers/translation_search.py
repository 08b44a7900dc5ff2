"""Beam search over translations, with keys and values kept from word to word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from repertory.systems.scalable_transformers.crops import Crop
from repertory.training.evaluation import evaluating, place

Penalty = Callable[[int], float]


def length_penalty(alpha: float = 0.6) -> Penalty:
    """What the log-probability of a hypothesis of n words (its end mark among them) is divided by: ((5 + n) / 6) ** alpha.

    Inferred: the rule and the exponent are the standard ones of the Transformer's papers.
    """
    if not alpha >= 0:
        raise ValueError(f"alpha is {alpha}; it must be at least 0")
    return lambda words: ((5 + words) / 6) ** alpha


@torch.no_grad()
def beam_search(
    model: Any,
    source: Tensor,
    crop: Crop | None = None,
    *,
    beam: int = 4,
    penalty: Penalty | None = None,
    extra: int = 50,
    begin: int = 1,
    end: int = 2,
) -> list[list[int]]:
    """The best hypothesis found for each row of ``source`` (B, S), as tokens with the end mark last.

    A sentence leaves the batch as soon as nothing that is still open can beat its best finished hypothesis, and a
    hypothesis as long as is allowed is ended by force. The result does not depend on what else is in the batch.

    Args:
        model: a :class:`ScalableTransformer`, which should be in evaluation mode.
        source: sentences, padded at the end.
        crop: the sub-model.
        beam: hypotheses kept open for each sentence; 1 is greedy search.
        penalty: divisor of log-probabilities by length, which must not fall with it; None is ``length_penalty()``.
        extra: words that a translation may have more than its source, within the model's ``max_length``.
        begin: token fed before the first word.
        end: token that ends a sentence.

    Raises:
        ValueError: for a beam below 1 or as wide as the vocabulary, or what the model refuses.
    """
    if not 1 <= beam < model.vocabulary:
        raise ValueError(f"beam is {beam}; it must be from 1 to below the {model.vocabulary} tokens of the vocabulary")
    penalty = penalty or length_penalty()
    context, mask = model.encode(source, crop)
    limits = (mask.flatten(1).sum(1) + extra).clamp(max=model.max_length)
    device, count = source.device, len(source)
    rows = torch.arange(count, device=device)  # the sentences still searched
    scores = torch.full((count, beam), float("-inf"), device=device, dtype=context[0][0].dtype)
    scores[:, 0] = 0  # all hypotheses begin alike: one is enough
    words = torch.full((count, beam, 1), begin, device=device)
    past = None
    best: list[tuple[float, list[int]]] = [(float("-inf"), []) for _ in range(count)]
    never = torch.tensor([model.padding, begin], device=device)
    for step in range(1, int(limits.max()) + 1 if count else 0):
        logits, past = model.step(words[..., -1], step - 1, past, context, mask)
        gains = logits.log_softmax(-1)
        gains[..., never] = float("-inf")
        last = step >= limits[rows]
        ends = gains[..., end].clone()
        gains[last] = float("-inf")  # at the limit nothing goes on
        gains[..., end] = float("-inf")
        _keep_best(best, rows, words, scores + ends, penalty(step), end)
        scores, chosen = (scores[..., None] + gains).flatten(1).topk(beam)
        parents, tokens = chosen // model.vocabulary, chosen % model.vocabulary
        words = torch.cat([words.gather(1, parents[..., None].expand(-1, -1, step)), tokens[..., None]], 2)
        hope = scores[:, 0] / torch.tensor([penalty(int(limit)) for limit in limits[rows]], device=device)
        found = torch.tensor([best[row][0] for row in rows.tolist()], device=device)
        open_ = (hope > found).nonzero().flatten()
        if not len(open_):
            break
        flat = (open_[:, None] * beam + parents[open_]).flatten()
        past = [(keys[flat], values[flat]) for keys, values in past]
        if len(open_) < len(rows):
            context = [(keys[open_], values[open_]) for keys, values in context]
            rows, scores, words, mask = rows[open_], scores[open_], words[open_], mask[open_]
    return [tokens for _, tokens in best]


def _keep_best(
    best: list[tuple[float, list[int]]], rows: Tensor, words: Tensor, ended: Tensor, divisor: float, end: int
) -> None:
    """Take the best hypothesis that ends now, (sentences, beam) ``ended``, where it beats the best so far."""
    values, places = (ended / divisor).max(1)
    for index, (row, value, place_) in enumerate(zip(rows.tolist(), values.tolist(), places.tolist())):
        if value > best[row][0]:
            best[row] = (value, [*words[index, place_, 1:].tolist(), end])


def translate(
    model: Any,
    sentences: Sequence[str],
    vocabulary: Any,
    crop: Crop | None = None,
    *,
    batch_size: int = 64,
    **search: Any,
) -> list[str]:
    """The translation of each of ``sentences``.

    Args:
        model: a :class:`ScalableTransformer`; it gets its mode back.
        sentences: in the source language; an empty one is translated by an empty one.
        vocabulary: the :class:`~repertory.data.translation_vocabulary.BytePairs` that the model was trained with.
        crop: the sub-model.
        batch_size: sentences searched at a time, alike in length.
        search: settings of :func:`beam_search`.

    Raises:
        ValueError: for another vocabulary, or naming the sentence that is over the model's limit.
    """
    check_vocabulary(model, len(vocabulary))
    encoded = vocabulary.encode(sentences)
    for index, tokens in enumerate(encoded):
        if len(tokens) > model.max_length:
            raise ValueError(
                f"sentence {index} has {len(tokens)} tokens; the limit of the model, max_length, is {model.max_length}"
            )
    found: list[list[int]] = [[] for _ in sentences]
    order = sorted((i for i in range(len(encoded)) if len(encoded[i]) > 1), key=lambda i: -len(encoded[i]))
    device, _ = place(model)
    with evaluating(model):
        for first in range(0, len(order), batch_size):
            members = order[first : first + batch_size]
            source = padded([encoded[i] for i in members], model.padding).to(device)
            for index, tokens in zip(members, beam_search(model, source, crop, **search)):
                found[index] = tokens
    return vocabulary.decode(found)


def check_vocabulary(model: Any, size: int) -> None:
    """ValueError where ``model`` has another number of tokens than ``size``."""
    if model.vocabulary != size:
        raise ValueError(f"vocabulary has {size} tokens, but the model has {model.vocabulary}; they must be the same")


def padded(rows: Sequence[Sequence[int]], padding: int) -> Tensor:
    """Token lists as one tensor (B, T), padded at the end."""
    tensors = [torch.as_tensor(row, dtype=torch.int64) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=padding)
