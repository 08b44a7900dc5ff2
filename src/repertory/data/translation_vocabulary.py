"""Byte pairs shared by two languages, and sentences as the numbers of such tokens."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repertory.data.translation import SentencePairs
from repertory.errors import MissingExtraError
from repertory.files import Replacement

PADDING, BEGIN, END = 0, 1, 2
SPECIAL = ("<pad>", "<s>", "</s>")
_log = logging.getLogger(__name__)


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise MissingExtraError("tokenizers", "text", "byte-pair encoding") from None
    return tokenizers


class BytePairs:
    """A byte-level byte-pair encoding by the ``tokenizers`` library: every text has one, and decoding gives it back.

    Tokens 0, 1 and 2 are padding, the beginning and the end of a sentence.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        tokenizer.encode_special_tokens = True  # marks written in a sentence are encoded as its text

    @classmethod
    def train(cls, sentences: Iterable[str], size: int) -> BytePairs:
        """Learn at most ``size`` tokens from ``sentences`` of both languages together.

        Raises:
            MissingExtraError: where ``tokenizers`` is not installed.
            ValueError: where ``size`` has no room for the 256 bytes and the three special tokens.
        """
        library = _tokenizers()
        least = 256 + len(SPECIAL)
        if size < least:
            raise ValueError(f"size is {size}; it must be at least {least}, for the bytes and {len(SPECIAL)} marks")
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(SPECIAL),
            initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(sentences, trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, path: Path) -> BytePairs:
        """The encoding that :meth:`save` wrote.

        Raises:
            FileNotFoundError, ValueError: where there is no such file, or it is of something else.
        """
        library = _tokenizers()
        if not path.is_file():
            raise FileNotFoundError(f"no vocabulary at {path}")
        try:
            tokenizer = library.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare exceptions
            raise ValueError(f"{path} is no vocabulary: {str(error).splitlines()[0]}") from None
        if [tokenizer.id_to_token(index) for index in range(len(SPECIAL))] != list(SPECIAL):
            raise ValueError(f"{path} is another vocabulary than ours: its first tokens must be {', '.join(SPECIAL)}")
        return cls(tokenizer)

    def save(self, path: Path) -> None:
        """Write the encoding to the JSON file ``path``, whole or not at all."""
        with Replacement(path) as partial:
            partial.write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        """All of it as text: equal texts, equal encodings."""
        return self.tokenizer.to_str()

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        """Tokens of each sentence, the end mark last; marks written inside a sentence are text like any other."""
        encoded = self.tokenizer.encode_batch_fast(list(sentences))
        return [[*one.ids, END] for one in encoded]

    def decode(self, tokens: Iterable[Sequence[int]]) -> list[str]:
        """The sentence of each list of tokens, up to its end mark."""
        whole = [list(row) for row in tokens]
        cut = [row[: row.index(END)] if END in row else row for row in whole]
        return self.tokenizer.decode_batch(cut, skip_special_tokens=True)


class TokenLists(Sequence[np.ndarray]):
    """Many short lists of tokens in two arrays: ``values`` (int32) and ``ends`` (int64)."""

    def __init__(self, values: np.ndarray, ends: np.ndarray) -> None:
        self.values, self.ends = values, ends

    @classmethod
    def of(cls, lists: Iterable[Sequence[int]]) -> TokenLists:
        """From plain lists."""
        arrays = [np.asarray(one, np.int32) for one in lists]
        ends = np.cumsum([len(array) for array in arrays], dtype=np.int64)
        return cls(np.concatenate(arrays) if arrays else np.zeros(0, np.int32), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.values[self.ends[index - 1] if index else 0 : self.ends[index]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each list."""
        return np.diff(self.ends, prepend=0)


@dataclass(frozen=True)
class EncodedPairs:
    """Pairs as tokens, each list with its end mark; ``vocabulary`` is the number of tokens there are."""

    source: TokenLists
    target: TokenLists
    vocabulary: int

    def __len__(self) -> int:
        return len(self.source)


def encode_pairs(
    pairs: SentencePairs, vocabulary: BytePairs, limit: int, too_long: str = "error", chunk: int = 4096
) -> EncodedPairs:
    """``pairs`` as tokens. Pairs of which one side is empty are left out.

    Args:
        pairs: sentences.
        vocabulary: of both languages.
        limit: most tokens of a sentence, its end mark among them.
        too_long: ``error`` refuses a longer one; ``skip`` leaves its pair out and logs how many there were.
        chunk: pairs encoded at a time.

    Raises:
        ValueError: naming the sentence over the limit; where no pair is left; for another ``too_long``.
    """
    if too_long not in ("error", "skip"):
        raise ValueError(f"too_long is {too_long!r}; it must be error or skip")
    kept: list[tuple[list[int], list[int]]] = []
    left_out = 0
    for first, sides in _chunks(pairs, vocabulary, chunk):
        for place, pair in enumerate(zip(*sides), first):
            longest = max(len(side) for side in pair)
            if longest > limit and too_long == "error":
                raise ValueError(f"pair {place} has a sentence of {longest} tokens; the limit is {limit}")
            left_out += longest > limit
            if longest <= limit and min(len(side) for side in pair) > 1:
                kept.append(pair)
    if left_out:
        _log.warning("%d of %d pairs are left out: a sentence has more than %d tokens", left_out, len(pairs), limit)
    if not kept:
        raise ValueError(f"pairs has no pair of at most {limit} tokens with words on both sides; one is needed")
    source, target = zip(*kept)
    return EncodedPairs(TokenLists.of(source), TokenLists.of(target), len(vocabulary))


def _chunks(
    pairs: SentencePairs, vocabulary: BytePairs, chunk: int
) -> Iterator[tuple[int, tuple[list[list[int]], list[list[int]]]]]:
    for first in range(0, len(pairs), chunk):
        sides = (pairs.source[first : first + chunk], pairs.target[first : first + chunk])
        yield first, (vocabulary.encode(sides[0]), vocabulary.encode(sides[1]))
