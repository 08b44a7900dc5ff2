"""Memory grows with the pixels and not with the taps."""

import pytest
from benchmarks.bilateral import call_of
from benchmarks.timing import peak_rise


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager"])
def test_memory_is_linear_in_pixels(backend):
    small, large = (peak_rise(call_of, side, backend) for side in (384, 768))
    # Four times the pixels; neither rise counts the few MB that the process had free, which matter to the small one.
    assert large < 6 * small
    assert large < 768**2 * 3 * 4 * 40  # 40 copies of the picture; a plane a tap would be over 1,000
