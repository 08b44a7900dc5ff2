"""Training machinery that knows no particular system: the ``Method`` protocol and the Lightning tasks that drive it."""

from repertory.training.method import Batch, Method, Outputs, Progress

__all__ = ["Batch", "Method", "Outputs", "Progress"]
