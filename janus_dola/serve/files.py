"""Images that are served by address, for an hour."""

import secrets
import tempfile
import time
from collections import deque
from pathlib import Path

SECONDS = 3600


class Files:
    """Files in a folder of their own, under names that nobody guesses; those that are too old are removed."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._folder = tempfile.TemporaryDirectory(prefix="janus-dola-")
        self._kept: deque[tuple[float, str]] = deque()

    def add(self, content: bytes, ending: str) -> str:
        """Keeps a file, and returns its name."""
        self._remove_old()
        name = f"{secrets.token_urlsafe(18)}.{ending}"
        (Path(self._folder.name) / name).write_bytes(content)
        self._kept.append((time.monotonic() + self._seconds, name))
        return name

    def find(self, name: str) -> Path | None:
        """Where a file lies; None where there is none, or no more."""
        self._remove_old()
        known = any(kept == name for _, kept in self._kept)
        return Path(self._folder.name) / name if known else None

    def close(self) -> None:
        """Removes all."""
        self._folder.cleanup()

    def _remove_old(self) -> None:
        while self._kept and self._kept[0][0] < time.monotonic():
            (Path(self._folder.name) / self._kept.popleft()[1]).unlink(missing_ok=True)
