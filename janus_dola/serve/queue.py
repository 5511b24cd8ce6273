"""The queue in which images wait: they are drawn in turns, and the images in a turn can share passes."""

import threading
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar


class Queued(Protocol):
    """An item that can wait; items of equal `kind` can share a turn."""

    @property
    def kind(self) -> Hashable:
        """Returns a key that items which can go together have in common."""


Item = TypeVar("Item", bound=Queued)


class FullError(RuntimeError):
    """The queue is full."""


class FairQueue(Generic[Item]):
    """Images in the order they arrived, for many threads that put and one that takes.

    A turn has the oldest image's kind. It draws the images with this kind that waited when it began, and later ones only
    while no other kind waits. So an image waits at most for images that were queued before it.

    Args:
        most: images that may wait.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._changed = threading.Condition()  # guards all below
        self._waiting: list[tuple[int, Item]] = []  # each with the number of its arrival
        self._arrived = 0
        self._turn: tuple[Hashable, int] = (None, 0)  # its kind, and the number of arrivals before it began
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, items: list[Item]) -> None:
        """Adds all items, or none: a FullError if there is no room for all."""
        with self._changed:
            if len(self._waiting) + len(items) > self.most:
                raise FullError(f"{len(self._waiting)} images wait already, and at most {self.most} may")
            self._append(items)

    def put_back(self, items: list[Item]) -> None:
        """Adds items that were taken, before all others."""
        with self._changed:
            later, self._waiting = self._waiting, []
            self._append(items)
            self._waiting += later

    def _append(self, items: list[Item]) -> None:
        for item in items:
            self._waiting.append((self._arrived, item))
            self._arrived += 1
        self._changed.notify()

    def begin_turn(self) -> int:
        """Waits for an image, begins a turn of its kind, and counts what it may draw so far; 0 once the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return 0
            self._turn = self._waiting[0][1].kind, self._arrived
            return len(self._of_turn())

    def take(self) -> Item | None:
        """Takes the next image of this turn; None if there is none."""
        with self._changed:
            arrivals = self._of_turn()
            if not arrivals:
                return None
            self._waiting.remove(arrivals[0])
            return arrivals[0][1]

    def ready(self) -> int:
        """Counts the images that this turn may draw now."""
        with self._changed:
            return len(self._of_turn())

    def _of_turn(self) -> list[tuple[int, Item]]:
        kind, began = self._turn
        alone = all(item.kind == kind for _, item in self._waiting)
        return [(number, item) for number, item in self._waiting if item.kind == kind and (alone or number < began)]

    def discard(self, items: list[Item]) -> None:
        """Removes the items that still wait."""
        with self._changed:
            gone = {id(item) for item in items}
            self._waiting = [(number, item) for number, item in self._waiting if id(item) not in gone]

    def close(self) -> list[Item]:
        """Ends waiting: returns the items that still wait, and no turn begins any more."""
        with self._changed:
            left, self._waiting, self._closed = [item for _, item in self._waiting], [], True
            self._changed.notify()
            return left
