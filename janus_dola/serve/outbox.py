"""What was drawn for a request and was not sent yet."""

import asyncio
from collections import deque

from janus_dola.serve.engine_thread import Event, PartialImage


class Outbox(asyncio.Queue[Event | None]):
    """A queue of events that keeps one partial picture of each image, its newest, however slowly its client reads."""

    _queue: deque[Event | None]

    def _put(self, item: Event | None) -> None:
        if isinstance(item, PartialImage):
            self._queue = deque(
                each for each in self._queue if not (isinstance(each, PartialImage) and each.k == item.k)
            )
        self._queue.append(item)
