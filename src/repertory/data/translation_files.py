"""Text files, a sentence a line, of which a line is read when it is asked for."""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import overload

import numpy as np

_CHUNK = 1 << 24  # bytes searched for line ends at once


class TextLines(Sequence[str]):
    """The lines of the UTF-8 file ``path``, without white space at their ends; only their places are in memory.

    A line ends with a line feed and nothing else: other separators of Unicode occur inside sentences of web corpora,
    and files of two languages would no longer agree.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: naming the file that is empty, or when it is read the line that is not UTF-8.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise FileNotFoundError(f"no text at {path}")
        if not path.stat().st_size:
            raise ValueError(f"{path} is empty; it must have a sentence a line")
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        ends = _line_feeds(self._bytes)
        if not len(ends) or ends[-1] != len(self._bytes) - 1:
            ends = np.append(ends, len(self._bytes))  # the last line need not end with a line feed
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"line {index} of {self.path}, which has {len(self)}")
        index %= len(self)
        start = int(self._ends[index - 1]) + 1 if index else 0
        try:
            return self._bytes[start : int(self._ends[index])].decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"line {index + 1} of {self.path} is not UTF-8: {error.reason}") from None


def _line_feeds(content: mmap.mmap) -> np.ndarray:
    """Places of the line feeds, in order."""
    found = []
    for start in range(0, len(content), _CHUNK):
        chunk = np.frombuffer(content[start : start + _CHUNK], np.uint8)
        found.append(np.flatnonzero(chunk == ord("\n")).astype(np.int64) + start)
    return np.concatenate(found)


class JoinedLines(Sequence[str]):
    """The lines of several files, one file after another."""

    def __init__(self, parts: Sequence[TextLines]) -> None:
        self.parts, self._ends = parts, list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"line {index} of {len(self.parts)} files, which have {len(self)}")
        index %= len(self)
        part = bisect_right(self._ends, index)
        return self.parts[part][index - (self._ends[part - 1] if part else 0)]


def joined(parts: Sequence[TextLines]) -> Sequence[str]:
    """The lines of ``parts``, one after another."""
    return parts[0] if len(parts) == 1 else JoinedLines(parts)
