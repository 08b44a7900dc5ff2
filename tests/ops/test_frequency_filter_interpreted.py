"""The Triton kernels of the frequency filter compute what the reference does, run by Triton's interpreter.

The interpreter is chosen when Triton is imported, hence a process of its own.
"""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

CODE = """
import torch
from repertory.ops.frequency_filter import frequency_filter
from repertory.ops.frequency_filter_triton import filtered, gradients

torch.manual_seed(0)
cases = [((2, 8, 3, 11), 4, {3: 2, 5: 6}, (1, 2, 3, 6)), ((1, 40, 1, 4), 2, {1: 40}, (2, 1))]
for (batch, channels, height, width), heads, windows, bins in cases:
    qkv = torch.randn(batch, 3 * channels, height, width).to(memory_format=torch.channels_last).requires_grad_()
    filters = [torch.randn(count, 1, side, side) for side, count in windows.items()]
    filters += [torch.randn(count) for count in windows.values()]
    leaves = [qkv, *(x.requires_grad_() for x in filters)]
    grad, half = torch.randn(batch, channels, height, width), len(filters) // 2
    expected = frequency_filter(qkv, filters[:half], filters[half:], heads, bins, backend="reference")
    wanted = torch.autograd.grad(expected, leaves, grad)
    with torch.no_grad():
        out, *kept = filtered(qkv, filters, (heads, bins))
        found = gradients(grad, qkv, filters, *kept, (heads, bins))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed here")
def test_the_kernels_are_the_reference():
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
