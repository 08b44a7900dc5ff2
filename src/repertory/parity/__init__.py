"""Parity vectors: the numbers an implementation of a published model must reproduce, and the runner that compares."""

from repertory.parity.case import Case, Driver
from repertory.parity.compare import Mismatch, compare, summarise
from repertory.parity.runner import OutputReport, VectorReport, run_vector
from repertory.parity.vector import draw, feed, load, make_input, reference_state

__all__ = [
    "Case",
    "Driver",
    "Mismatch",
    "OutputReport",
    "VectorReport",
    "compare",
    "draw",
    "feed",
    "load",
    "make_input",
    "reference_state",
    "run_vector",
    "summarise",
]
