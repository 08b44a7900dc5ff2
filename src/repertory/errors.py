"""Sentences for bad input, shared by every floor.

An error names the argument, the value and what is allowed; the command line prints it as ``repertory: …``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NonFiniteError(RuntimeError):
    """A loss, a weight or a replica stopped being finite; training cannot go on."""


class MissingExtraError(ImportError):
    """An optional package is not installed; the message gives the pip command."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}, which is not installed: pip install 'repertory[{extra}]'")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for a ``kind`` (model, …) called ``name`` that is not among ``known``; nearest names suggested."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names[:12]) or 'none'}"
    return ValueError(f"unknown {kind} {name!r}: {hint}")
