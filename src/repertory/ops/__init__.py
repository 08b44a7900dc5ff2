"""Functions on tensors, without parameters, importing torch only; each has a plain ``reference`` and fast paths."""

from repertory.ops.bilateral import joint_bilateral
from repertory.ops.dilated_attention import dilated_attention
from repertory.ops.gaussian import gaussian_blur
from repertory.ops.resize import imresize

__all__ = ["dilated_attention", "gaussian_blur", "imresize", "joint_bilateral"]
