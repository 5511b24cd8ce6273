"""What reading anything, however odd, may take."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS, BYTES = 5, 2**30
_UNIT = 1 if sys.platform == "darwin" else 1024


@contextmanager
def bounded() -> Iterator[None]:
    """Fails where more than 5 seconds pass, or the process grows to more than 1 GB above what it ever had."""
    begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.perf_counter() - begin < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * _UNIT < BYTES
