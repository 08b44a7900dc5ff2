"""Parity vectors: the numbers an implementation of a published model must reproduce, and the runner that compares."""

from repertory.parity.case import Bound, Case, Driver, check_conversion
from repertory.parity.compare import Mismatch, compare, summarise
from repertory.parity.runner import OutputReport, VectorReport, run_vector
from repertory.parity.vector import draw, feed, load, make_input, reference_state

__all__ = [
    "Bound",
    "Case",
    "Driver",
    "Mismatch",
    "OutputReport",
    "VectorReport",
    "check_conversion",
    "compare",
    "draw",
    "feed",
    "load",
    "make_input",
    "reference_state",
    "run_vector",
    "summarise",
]
