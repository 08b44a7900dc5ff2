"""Beam search over translations, with keys and values kept from word to word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from repertory.data.translation_vocabulary import BEGIN, END, PADDING
from repertory.systems.scalable_transformers.crops import Crop
from repertory.training.evaluation import evaluating, place

Penalty = Callable[[int], float]


def length_penalty(alpha: float = 0.6) -> Penalty:
    """What the log-probability of a hypothesis of n words, its end mark among them, is divided by.

    It is ((5 + n) / 6) ** alpha. Inferred: the rule and the exponent are the standard ones of the Transformer's papers.
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
) -> list[list[int]]:
    """The best hypothesis found for each row of ``source`` (B, S), as tokens with the end mark last.

    The end mark takes part like any word: where it is among the ``beam`` best continuations, a hypothesis is finished.
    A sentence leaves the batch when so many are, when nothing open can beat the best of them, or at its limit, where
    open hypotheses are ended by force. What else is in the batch does not matter.

    Args:
        model: a :class:`ScalableTransformer`, which should be in evaluation mode.
        source: sentences, padded at the end.
        crop: the sub-model.
        beam: hypotheses kept open for each sentence; 1 is greedy search.
        penalty: divisor of log-probabilities by length, which must not fall with it; None is ``length_penalty()``.
        extra: words that a translation may have more than its source, within the model's ``max_length``.

    Raises:
        ValueError: for a beam below 1, or what the model refuses.
    """
    if beam < 1:
        raise ValueError(f"beam is {beam}; it must be at least 1")
    penalty = penalty or length_penalty()
    context, mask = model.encode(source, crop)
    limits = (mask.flatten(1).sum(1) + extra).clamp(max=model.max_length)
    hopes = [penalty(int(limit)) for limit in limits]
    count, device = len(source), source.device
    rows = torch.arange(count, device=device)  # the sentences that are still searched
    scores = torch.full((count, beam), float("-inf"), device=device, dtype=context[0][0].dtype)
    scores[:, 0] = 0  # all hypotheses begin alike: one is enough
    words = torch.full((count, beam, 1), BEGIN, device=device)
    never = torch.tensor([PADDING, BEGIN], device=device)
    past = None
    best: list[tuple[float, list[int]]] = [(float("-inf"), []) for _ in range(count)]
    finished = torch.zeros(count, dtype=torch.int64, device=device)
    for length in range(1, int(limits.max()) + 1):
        logits, past = model.step(words[..., -1], length - 1, past, context, mask)
        gains = logits.log_softmax(-1)
        gains[..., never] = float("-inf")
        ending = gains[..., END].clone()
        gains[length >= limits[rows]] = float("-inf")
        gains[..., END] = ending
        # Each hypothesis has one end, so twice as many continuations hold at least ``beam`` that go on.
        values, places = (scores[..., None] + gains).flatten(1).topk(2 * beam)
        parents, tokens = places // model.vocabulary, places % model.vocabulary
        ended = (tokens == END) & (values > float("-inf"))
        for row, place_ in ended[:, :beam].nonzero().tolist():
            value = float(values[row, place_]) / penalty(length)
            sentence = int(rows[row])
            finished[sentence] += 1
            if value > best[sentence][0]:
                best[sentence] = (value, [*words[row, parents[row, place_], 1:].tolist(), END])
        scores, going = values.masked_fill(tokens == END, float("-inf")).topk(beam)
        parents, tokens = parents.gather(1, going), tokens.gather(1, going)
        words = torch.cat([words.gather(1, parents[..., None].expand(-1, -1, length)), tokens[..., None]], 2)
        open_ = [
            index
            for index, (sentence, score) in enumerate(zip(rows.tolist(), scores[:, 0].tolist()))
            if finished[sentence] < beam and score / hopes[sentence] > best[sentence][0]
        ]
        if not open_:
            break
        kept = torch.tensor(open_, device=device)
        flat = (kept[:, None] * beam + parents[kept]).flatten()
        past = [(keys[flat], contents[flat]) for keys, contents in past]
        if len(open_) < len(rows):
            context = [(keys[kept], contents[kept]) for keys, contents in context]
            rows, scores, words, mask = rows[kept], scores[kept], words[kept], mask[kept]
    return [tokens for _, tokens in best]


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
            source = padded([encoded[i] for i in members], PADDING).to(device)
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
