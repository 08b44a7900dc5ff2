"""Layers with parameters that two or more systems use."""

from repertory.nn.convnet import ConvNet

__all__ = ["ConvNet"]
