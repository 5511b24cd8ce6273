"""Serves images by URL for an hour."""

import secrets
import tempfile
import time
from collections import deque
from pathlib import Path

SECONDS = 3600


class ImageUrls:
    """Keeps files in a temporary folder under names that nobody can guess, and removes them when their time is over."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._folder = tempfile.TemporaryDirectory(prefix="janus-dola-")
        self._kept: deque[tuple[float, str]] = deque()  # end of its time and name, the oldest first

    def add(self, content: bytes, ending: str) -> str:
        """Keeps a file, and returns its name."""
        self._remove_old()
        name = f"{secrets.token_urlsafe(18)}.{ending}"
        (Path(self._folder.name) / name).write_bytes(content)
        self._kept.append((time.monotonic() + self._seconds, name))
        return name

    def find(self, name: str) -> Path | None:
        """Returns the path of a file, or None if there is no such file or its time is over."""
        self._remove_old()
        known = any(kept == name for _, kept in self._kept)
        return Path(self._folder.name) / name if known else None

    def close(self) -> None:
        """Removes all files."""
        self._folder.cleanup()

    def _remove_old(self) -> None:
        while self._kept and self._kept[0][0] < time.monotonic():
            (Path(self._folder.name) / self._kept.popleft()[1]).unlink(missing_ok=True)
