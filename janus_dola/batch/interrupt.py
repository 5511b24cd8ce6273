"""Ctrl-C once: the batch in hand is finished. Twice: the program stops at once."""

import signal
import sys
import threading
from contextlib import AbstractContextManager
from types import FrameType

from tqdm.auto import tqdm


class Interrupt(AbstractContextManager["Interrupt"]):
    """Notes the first Ctrl-C in `requested`; the second raises KeyboardInterrupt. Does nothing outside the main thread."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "Interrupt":
        self._before = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._noted)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _noted(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        tqdm.write("finishing the batch in hand; Ctrl-C again stops at once", file=sys.stderr)
