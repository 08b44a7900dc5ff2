"""Checkpoints that are whole or not there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from repertory.files import Replacement


class CheckpointError(OSError):
    """A file of the run could not be written; what stood there before is intact."""


def save_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write ``state`` (tensors and plain values) to ``path``, or leave ``path`` as it was and raise CheckpointError."""
    try:
        with Replacement(path) as partial, partial.open("wb") as file:
            torch.save(dict(state), file)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        kept = "the checkpoint that stood there is intact" if path.exists() else "nothing was left behind"
        raise CheckpointError(f"cannot write {path} ({_reason(error)}); {kept}") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours; tensors and plain values only. ValueError where the file is damaged or another's."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"no checkpoint at {path}") from None
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict) or "model" not in state:
        raise ValueError(f"{path} is not a checkpoint of a training run: it has no 'model'")
    return state


def _reason(error: Exception) -> str:
    cause: BaseException = error
    while not isinstance(cause, OSError) and cause.__context__ is not None:
        cause = cause.__context__
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(error).splitlines()[0]
