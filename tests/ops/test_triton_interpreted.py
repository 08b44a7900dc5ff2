"""The Triton kernels compute what the reference does: run by Triton's interpreter, so that no GPU is needed.

The interpreter is chosen when Triton is imported, hence a process of its own.
"""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

ATTENTION = """
import torch
from repertory.ops import dilated_attention
from repertory.ops.dilated_attention_triton import attend, gradients

torch.manual_seed(0)
cases = [((2, 24, 7, 9), 3, (1,), 2), ((1, 72, 8, 10), 3, (1, 2, 3), 3), ((1, 24, 1, 5), 5, (1, 2), 4)]
for shape, side, rates, heads in cases:
    query, key, value, grad = (torch.randn(shape) for _ in range(4))
    leaves = [x.clone().requires_grad_() for x in (query, key, value)]
    expected = dilated_attention(*leaves, side, rates, heads, backend="reference").permute(0, 3, 1, 2)
    wanted = torch.autograd.grad(expected, leaves, grad)
    out, kept = attend(query, key, value, side, rates, heads)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    found = gradients(grad, query, key, value, out, kept, side, rates, heads)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
"""

BILATERAL = """
import torch
from repertory.ops.bilateral import _log_spatial, _reference
from repertory.ops.bilateral_triton import joint_bilateral_triton

torch.manual_seed(0)
for channels, guides in [(1, 1), (3, 3), (4, 2)]:
    image, guide = torch.rand(2, channels, 9, 13), torch.rand(2, guides, 9, 13)
    taps = _log_spatial(3, 1.5, image)
    expected = _reference(image, guide, 3, taps)
    torch.testing.assert_close(joint_bilateral_triton(image, guide, 3, taps), expected, rtol=1e-4, atol=1e-5)
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed here")
@pytest.mark.parametrize("code", [ATTENTION, BILATERAL], ids=["dilated_attention", "joint_bilateral"])
def test_a_kernel_is_the_reference(code):
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
