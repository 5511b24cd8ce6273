"""Bounds how much clients can write into the log."""

import logging
import time

_MOST = 10  # lines of one kind
_SECONDS = 60.0  # in which there may be so many


class Seldom(logging.Filter):
    """Lets ten lines of a kind through each minute, a kind being the text before its values are put in."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[str, int] = {}  # lines of each kind since `_began`
        self._began = time.monotonic()

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether a line is written; the last of its kind says that others follow."""
        if time.monotonic() - self._began >= _SECONDS:
            self._counts, self._began = {}, time.monotonic()
        kind = str(record.msg)
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if self._counts[kind] == _MOST:
            record.msg = f"{kind.rstrip()} (others like this are left out for {_SECONDS:g} s)"
        return self._counts[kind] <= _MOST


SELDOM = Seldom()
