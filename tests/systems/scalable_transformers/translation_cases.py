"""Small sentences, models and vocabularies that the tests of translation share."""

import numpy as np
import torch

from repertory.data.translation_vocabulary import EncodedPairs, TokenLists
from repertory.systems.scalable_transformers.translation_model import ScalableTransformer

WORDS, LIMIT = 12, 10


def model(**settings):
    torch.manual_seed(0)
    sizes = {"embed_dim": 24, "depth": 2, "num_heads": 3, "drop": 0.0, "max_length": LIMIT}
    return ScalableTransformer(WORDS, **sizes | settings).eval()


def reversals(count=60, seed=0):
    """Sentences and the same words in reverse order, each with its end mark."""
    draws = np.random.default_rng(seed)
    rows = [draws.integers(3, WORDS, draws.integers(2, 6)).tolist() for _ in range(count)]
    source, target = ([[*row, 2] for row in rows], [[*row[::-1], 2] for row in rows])
    return EncodedPairs(TokenLists.of(source), TokenLists.of(target), WORDS)
