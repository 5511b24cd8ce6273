"""The thread that decodes pixels while drawing goes on: what is finished before what is on its way."""

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

_IN_ORDER = 8  # pictures that may wait in the order of their arrival

Image = TypeVar("Image", bound=Hashable)
Event = TypeVar("Event")


class PictureThread(Generic[Image, Event]):
    """Calls `tell(image, make_event)` for each picture in a thread of its own.

    While few wait they come in order. Else finished pictures go first, and each image has at most one partial picture that
    waits: its newest, and none once it is finished.
    """

    def __init__(self, tell: Callable[[Image, Callable[[], Event]], object]) -> None:
        self._tell = tell
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
            if len(self._waiting) >= _IN_ORDER:
                self._waiting = [each for each in self._waiting if each[0] or each[1] is not image]
            self._waiting.append((finished, image, make_event))
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                crowded = len(self._waiting) > _IN_ORDER
                k = next((k for k, each in enumerate(self._waiting) if each[0]), 0) if crowded else 0
                _, image, make_event = self._waiting.pop(k)
                if k:  # its partial pictures come no more
                    self._waiting = [each for each in self._waiting if each[1] is not image]
            self._tell(image, make_event)
