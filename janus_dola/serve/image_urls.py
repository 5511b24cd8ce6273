"""Serves images by URL for an hour."""

import secrets
import threading
import time

from starlette.responses import Response

SECONDS = 3600
MAX_BYTES = 512 * 2**20  # of all images
_MEDIA_TYPES = {
    "png": "image/png", "jpg": "image/jpeg", "webp": "image/webp", "safetensors": "application/octet-stream",
}  # fmt: skip
_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private"}


class ImageUrls:
    """Keeps contents of files in memory under names that nobody can guess, for many threads.

    An image is dropped when its time is over, or when newer ones need its room.
    """

    def __init__(self, seconds: float = SECONDS, most_bytes: int = MAX_BYTES) -> None:
        self._seconds, self._most_bytes, self._bytes = seconds, most_bytes, 0
        self._lock = threading.Lock()  # guards all below
        self._kept: dict[str, tuple[float, bytes]] = {}  # end of its time and content by name, the oldest first

    def add(self, content: bytes, ending: str) -> str:
        """Keeps an image, and returns its name."""
        name = f"{secrets.token_urlsafe(18)}.{ending}"
        with self._lock:
            self._kept[name] = (time.monotonic() + self._seconds, content)
            self._bytes += len(content)
            self._drop_old()
        return name

    def answer(self, name: str) -> Response | None:
        """Returns an answer with an image, or None if there is no such image or its time is over."""
        with self._lock:
            self._drop_old()
            if name not in self._kept:
                return None
            _, content = self._kept[name]
        return Response(content, headers=_HEADERS, media_type=_MEDIA_TYPES[name.rpartition(".")[2]])

    def _drop_old(self) -> None:
        """Drops images whose time is over, and the oldest while all have too many bytes."""
        while self._kept:
            name, (end, content) = next(iter(self._kept.items()))
            if end >= time.monotonic() and self._bytes <= self._most_bytes:
                return
            del self._kept[name]
            self._bytes -= len(content)
