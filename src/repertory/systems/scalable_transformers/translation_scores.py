"""How good translations are: BLEU of sentences, and accuracy of the next word."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from repertory.data.translation_vocabulary import PADDING
from repertory.errors import MissingExtraError
from repertory.systems.scalable_transformers.crops import Crop


def bleu(hypotheses: Sequence[str], references: Sequence[str], tokenize: str = "13a") -> float:
    """Corpus BLEU, 0 to 100, by the ``sacrebleu`` library, one reference a sentence.

    Args:
        hypotheses: translations.
        references: what they should be.
        tokenize: sacrebleu's tokeniser of both.

    Raises:
        MissingExtraError: where ``sacrebleu`` is not installed.
        ValueError: where there are not equally many, or none.
    """
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise MissingExtraError("sacrebleu", "text", "BLEU") from None
    if len(hypotheses) != len(references) or not hypotheses:
        raise ValueError(
            f"hypotheses are {len(hypotheses)} and references {len(references)}; there must be as many, at least one"
        )
    return BLEU(tokenize=tokenize).corpus_score(list(hypotheses), [list(references)]).score


@torch.no_grad()
def token_accuracy(model: Any, batches: Iterable[tuple[Tensor, Tensor, Tensor]], crop: Crop | None = None) -> float:
    """Share, 0 to 1, of next words that are the most likely one, given the true words before them.

    ``batches`` are (source, target before, target) as :func:`padded_batch` makes them; padding does not count.
    ``model`` should be in evaluation mode.
    """
    right = count = 0
    for source, before, target in batches:
        real = target != PADDING
        right += int(((model(source, before, crop).argmax(-1) == target) & real).sum())
        count += int(real.sum())
    if not count:
        raise ValueError("batches hold no word; at least one is needed")
    return right / count
