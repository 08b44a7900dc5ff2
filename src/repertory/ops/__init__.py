"""Functions on tensors, without parameters, importing torch only; each has a plain ``reference`` and fast paths."""

from repertory.ops.bilateral import joint_bilateral
from repertory.ops.binary_conv import binary_conv2d
from repertory.ops.criss_cross import criss_cross_attention
from repertory.ops.dilated_attention import dilated_attention
from repertory.ops.frequency_filter import frequency_filter
from repertory.ops.gaussian import gaussian_blur
from repertory.ops.resize import imresize
from repertory.ops.sliding_window import sliding_window_sum

__all__ = [
    "binary_conv2d",
    "criss_cross_attention",
    "dilated_attention",
    "frequency_filter",
    "gaussian_blur",
    "imresize",
    "joint_bilateral",
    "sliding_window_sum",
]
