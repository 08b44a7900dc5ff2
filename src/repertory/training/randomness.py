"""Counter-based randomness: every draw of a run is a function of the seed and of where the draw stands.

Nothing has to be remembered from draw to draw, so a resumed run makes the draws the cut one would have made.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def derive_seed(purpose: str, *counters: int) -> int:
    """A seed below 2**63 for ``purpose`` at ``counters`` (seed, epoch, index, …): equal arguments, equal seed."""
    text = ":".join([purpose, *(str(int(c)) for c in counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(purpose: str, *counters: int) -> torch.Generator:
    """A CPU generator at :func:`derive_seed` of the same arguments."""
    return torch.Generator().manual_seed(derive_seed(purpose, *counters))


def replica_seed(seed: int, replica: int) -> int:
    """The seed of one of K replicas; the first keeps ``seed``, so that one replica is a run like any other."""
    return seed if replica == 0 else derive_seed("replica", seed, replica)


def reseed(seed: int, step: int, rank: int) -> None:
    """Put torch, numpy and Python at the draws of ``step`` on ``rank`` (dropout, stochastic depth, mixing)."""
    state = derive_seed("step", seed, step, rank)
    torch.manual_seed(state)
    np.random.seed(state % 2**32)
    random.seed(state)
