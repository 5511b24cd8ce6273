"""Serves images by URL for an hour."""

import secrets
import tempfile
import threading
import time
from pathlib import Path

from starlette.responses import Response

SECONDS = 3600
MAX_BYTES = 512 * 2**20  # of all files
_MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private"}


class ImageUrls:
    """Keeps files in a temporary folder under names that nobody can guess, for many threads.

    A file is removed when its time is over, or when newer ones need its room. A folder that something else removes, as
    cleaners of temporary files do, is made anew.
    """

    def __init__(self, seconds: float = SECONDS, most_bytes: int = MAX_BYTES) -> None:
        self._seconds, self._most_bytes, self._bytes = seconds, most_bytes, 0
        self._lock = threading.Lock()  # guards all below
        self._kept: dict[str, tuple[float, int]] = {}  # end of its time and bytes by name, the oldest first
        self._make_folder()

    def _make_folder(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="janus-dola-", ignore_cleanup_errors=True)

    def add(self, content: bytes, ending: str) -> str:
        """Keeps a file, and returns its name; a file that cannot be written whole is an OSError and leaves nothing."""
        name = f"{secrets.token_urlsafe(18)}.{ending}"
        with self._lock:
            self._remove_old(self._most_bytes - len(content))
            if not Path(self._folder.name).is_dir():
                self._folder.cleanup()
                self._kept, self._bytes = {}, 0
                self._make_folder()
            path = Path(self._folder.name) / name
            try:
                path.write_bytes(content)
            except OSError:
                path.unlink(missing_ok=True)
                raise
            self._kept[name] = (time.monotonic() + self._seconds, len(content))
            self._bytes += len(content)
        return name

    def answer(self, name: str) -> Response | None:
        """Returns an answer with a file, or None if there is no such file or its time is over."""
        with self._lock:
            self._remove_old(self._most_bytes)
            if name not in self._kept:
                return None
            try:
                content = (Path(self._folder.name) / name).read_bytes()
            except FileNotFoundError:
                return None
        return Response(content, headers=_HEADERS, media_type=_MEDIA_TYPES[name.rpartition(".")[2]])

    def close(self) -> None:
        """Removes all files."""
        self._folder.cleanup()

    def _remove_old(self, most_bytes: int) -> None:
        """Removes files whose time is over, and the oldest while all have more than `most_bytes`."""
        while self._kept:
            name, (end, size) = next(iter(self._kept.items()))
            if end >= time.monotonic() and self._bytes <= most_bytes:
                return
            del self._kept[name]
            self._bytes -= size
            (Path(self._folder.name) / name).unlink(missing_ok=True)
