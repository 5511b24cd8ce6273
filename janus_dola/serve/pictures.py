"""The thread that decodes pixels while drawing goes on: what is finished before what is on its way."""

import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

_IN_ORDER = 8  # pictures of a client that is alone that may wait in the order of their arrival

Image = TypeVar("Image", bound=Hashable)
Event = TypeVar("Event")


class PictureThread(Generic[Image, Event]):
    """Calls `tell(image, make_event)` for each picture in a thread of its own.

    While few wait they come in order. Where many do, or clients share the thread, finished pictures go first, each image has
    at most one partial picture that waits, its newest, and none once it is finished; and partial ones take half of the
    thread's time at most. `shared` tells whether clients share it.
    """

    def __init__(
        self, tell: Callable[[Image, Callable[[], Event]], object], shared: Callable[[], bool] = lambda: False
    ) -> None:
        self._tell, self._shared = tell, shared
        self._changed = threading.Condition()  # guards all below
        # Whether it is finished, the image, its picture
        self._waiting: list[tuple[bool, Image, Callable[[], Event]]] = []
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="pictures", daemon=True)
        self._thread.start()

    def finish(self, image: Image, make_event: Callable[[], Event]) -> None:
        """Hands in the picture of an image that is finished."""
        self._put(True, image, make_event)

    def show(self, image: Image, make_event: Callable[[], Event]) -> None:
        """Hands in a partial picture."""
        self._put(False, image, make_event)

    def close(self) -> None:
        """Ends when all pictures are made."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _put(self, finished: bool, image: Image, make_event: Callable[[], Event]) -> None:
        with self._changed:
            if self._crowded():
                self._waiting = [each for each in self._waiting if each[0] or each[1] is not image]
            self._waiting.append((finished, image, make_event))
            self._changed.notify()

    def _crowded(self) -> bool:
        return len(self._waiting) >= _IN_ORDER or self._shared()

    def _run(self) -> None:
        began, ended = 0.0, 0.0  # of the last partial picture
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                crowded, rest = self._crowded(), 2 * ended - began - time.monotonic()
                k = next((k for k, each in enumerate(self._waiting) if each[0]), 0) if crowded else 0
                if crowded and rest > 0 and not self._waiting[k][0]:
                    self._changed.wait(rest)
                    continue
                finished, image, make_event = self._waiting.pop(k)
                if k:  # its partial pictures come no more
                    self._waiting = [each for each in self._waiting if each[1] is not image]
            now = time.monotonic()
            self._tell(image, make_event)
            if not finished:
                began, ended = now, time.monotonic()
