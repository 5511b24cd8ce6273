"""Bounds how many connections are open, and how long each may take to bring a request and to read its answer."""

import asyncio
import logging
from typing import ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

SECONDS_TO_ASK = 15.0  # from the connection, or the last answer, to the end of a request's body
SECONDS_TO_READ = 60.0  # without a byte of an answer read
MAX_HEAD = 64 * 1024  # bytes of a request's line and headers
_SPARE_FILES = 256  # open files beside connections
_LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_logger = logging.getLogger("uvicorn.error")


def limited(most: int) -> type["Connection"]:
    """Returns the protocol of a server that keeps at most `most` connections open; files may be opened for so many.

    Half as many, and so on, where the system does not let this process open enough files.
    """
    if resource is not None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = 2 * most + _SPARE_FILES
        if soft != resource.RLIM_INFINITY and soft < needed:
            soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            while 2 * most + _SPARE_FILES > soft and most > 1:
                most //= 2
    return type("LimitedConnection", (Connection,), {"most": most, "asking": {}})


class Connection(H11Protocol):
    """A connection that is closed where its request, or the reading of its answer, takes too long.

    Where too many are open, the one that has been asking for longest makes room: a request that is whole never does.
    """

    most: ClassVar[int]
    asking: ClassVar[dict["Connection", float]]  # connections without a whole request, and since when: the oldest first

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes up a connection."""
        super().connection_made(transport)
        self._buffered, self._progress = 0, self.loop.time()
        self._timer = self.loop.call_later(SECONDS_TO_ASK / 4, self._look)
        self._note()
        if len(self.connections) > self.most and self.asking:
            self._close(next(iter(self.asking)), f"more than {self.most} are open")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets a connection."""
        self._timer.cancel()
        self.asking.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Reads what a client sends."""
        super().data_received(data)
        self._note()

    def on_response_complete(self) -> None:
        """Waits for the next request, whose time begins now."""
        self.asking.pop(self, None)
        super().on_response_complete()
        self._note()

    def resume_writing(self) -> None:
        """Goes on with an answer that is read again."""
        self._progress = self.loop.time()
        super().resume_writing()

    def shutdown(self) -> None:
        """Closes a connection of a server that ends, unless a whole request waits for its answer."""
        if self in self.asking:
            self.transport.close()
        else:
            super().shutdown()

    def _note(self) -> None:
        whole = self.cycle is not None and not (self.cycle.response_complete or self.cycle.more_body)
        if whole or self.transport.is_closing():
            self.asking.pop(self, None)
        else:
            self.asking.setdefault(self, self.loop.time())

    def _look(self) -> None:
        """Closes the connection when its time is over; else looks again."""
        now, buffered = self.loop.time(), self.transport.get_write_buffer_size()
        if not buffered or buffered < self._buffered:
            self._progress = now
        self._buffered = buffered
        if now - self._progress >= SECONDS_TO_READ:
            self.transport.abort()
        elif now - self.asking.get(self, now) >= SECONDS_TO_ASK:
            self._close(self, f"it brought no request within {SECONDS_TO_ASK:g} s")
        else:
            self._timer = self.loop.call_later(SECONDS_TO_ASK / 4, self._look)

    @classmethod
    def _close(cls, connection: "Connection", reason: str) -> None:
        cls.asking.pop(connection, None)
        if connection.cycle is not None and connection.cycle.more_body and not connection.cycle.response_started:
            connection.transport.write(_LATE)
        connection.transport.close()
        _logger.warning(f"a connection is closed: {reason}")
