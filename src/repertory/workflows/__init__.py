"""The Python API: what the command line does, as functions.

Nothing heavy is imported until it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repertory.workflows.bench import bench_attention
    from repertory.workflows.filtering import filter_path
    from repertory.workflows.reproduce import reproduce
    from repertory.workflows.run import Run
    from repertory.workflows.training import train
    from repertory.workflows.verify import verify

__all__ = ["Run", "bench_attention", "filter_path", "reproduce", "train", "verify"]

_HOMES = {
    "Run": "run",
    "bench_attention": "bench",
    "filter_path": "filtering",
    "reproduce": "reproduce",
    "train": "training",
    "verify": "verify",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        found = getattr(import_module(f"repertory.workflows.{_HOMES[name]}"), name)
        globals()[name] = found  # `verify` and `reproduce` are functions here, though modules bear their names
        return found
    raise AttributeError(f"module 'repertory.workflows' has no attribute {name!r}")
