"""A night's run needs no more memory at its end than at its beginning."""

from pathlib import Path

import pytest

from bench.speed import batch_memory


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_stays_flat_over_many_prompts():
    actual = batch_memory.measure(prompts=160, batch_size=8)
    assert len(actual) >= 10
    settled = actual[len(actual) // 3][1]  # the first batches allocate buffers that stay
    assert actual[-1][1] - settled < 8, actual
