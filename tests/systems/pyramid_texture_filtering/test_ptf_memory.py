"""Memory grows with the pixels and not with the taps."""

import pytest
from benchmarks.bilateral import call_of
from benchmarks.timing import peak_rise


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager"])
def test_memory_is_linear_in_pixels(backend):
    small, large = (peak_rise(call_of, side, backend) for side in (768, 1024))
    # Of rises of 110 and 204 MiB, the 5 to 10 that a process may have free before are a small part.
    assert large / small == pytest.approx(1024**2 / 768**2, rel=0.15)
    assert large < 1024**2 * 3 * 4 * 40  # 40 copies of the picture; a plane a tap would be over 1,000
