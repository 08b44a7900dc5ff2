"""Files that are whole or not there: written beside, synced, renamed."""

from __future__ import annotations

import os
from pathlib import Path


class Replacement:
    """``with Replacement(path) as partial``: ``path`` becomes what was written to ``partial``, or stays as it was.

    Folders above ``path`` are made. When the block ends, the content is on the disk before the name is, and nothing is
    left beside it whatever happened.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.partial = path, path.with_name(f"{path.name}.partial")

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.partial

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                _sync(self.partial)
                os.replace(self.partial, self.path)
                _sync(self.path.parent)  # makes the rename itself durable
        finally:
            self.partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
