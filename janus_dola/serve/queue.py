"""The queue in which images wait: clients in rounds, and the images in a turn can share passes."""

import bisect
import threading
import time
from collections import Counter
from collections.abc import Hashable, Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

_SECONDS_PRESENT = 15.0  # that a client counts as present after its last request


class Queued(Protocol):
    """An item that can wait; items of equal `kind` can share a turn."""

    @property
    def kind(self) -> Hashable:
        """Returns a key that items which can go together have in common."""

    @property
    def client(self) -> Hashable:
        """Returns who put it there."""


Item = TypeVar("Item", bound=Queued)


class FullError(RuntimeError):
    """The queue is full, or too full for one client."""


class _Entry(NamedTuple):
    """An item in the order in which items wait."""

    round: int
    number: int  # of its arrival; no two have the same, so kinds and items are never compared to order them
    kind: Hashable
    client: Hashable
    item: Any


class FairQueue(Generic[Item]):
    """Images in fair order, for many threads that put and one that takes.

    The order is that of rounds: in each, every client that waits has one image, and a client's images stay in the order of
    their arrival. A turn has the kind of the first image. It draws the images with this kind that waited when it began, and
    later ones only while no other kind waits; it ends early where a client that has no image in it waits before them.

    Args:
        most: images that may be in hand: put here, and not released. One client may have as many as there is room left
            beside them: half, if it is alone.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._changed = threading.Condition()  # guards all below
        self._waiting: list[_Entry] = []  # in their order
        self._in_hand: Counter[Hashable] = Counter()  # images by client
        self._arrived = self._last_round = 0  # images so far; the latest round that an image was taken of
        self._rounds: dict[Hashable, int] = {}  # the last round that a client has an image in
        self._seen: dict[Hashable, float] = {}  # when each client put an image there
        self._turn: tuple[Hashable, int] = (None, 0)  # its kind, and the number of arrivals before it began
        self._in_turn: set[Hashable] = set()  # clients that it has drawn for
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, items: list[Item]) -> None:
        """Adds all items of a client, or none: a FullError if there is no room for all."""
        with self._changed:
            self._forget()
            client = items[0].client
            self.check(client, len(items))
            self._seen[client] = time.monotonic()
            self._in_hand[client] += len(items)
            for item in items:
                self._rounds[client] = max(self._rounds.get(client, 0) + 1, self._round)
                self._insert(self._rounds[client], item)

    def check(self, client: Hashable, images: int) -> None:
        """Raises a FullError if there is no room for so many more images of a client."""
        with self._changed:
            in_hand, own = self._in_hand.total(), self._in_hand[client]
            if in_hand + images > self.most:
                raise FullError(f"{in_hand} images are in hand already, and at most {self.most} may be")
            if own and own + images > self.most - in_hand:
                limit = f"one client may have {(self.most - in_hand + own) // 2} while others have {in_hand - own}"
                raise FullError(f"{own} images of this client are in hand already, and {limit}")

    def release(self, items: list[Item]) -> None:
        """Counts a client's items no longer, and removes those that still wait."""
        with self._changed:
            client, gone = items[0].client, {id(item) for item in items}
            self._in_hand[client] -= len(items)
            if not self._in_hand[client]:
                del self._in_hand[client]
            self._waiting = [each for each in self._waiting if id(each.item) not in gone]

    def put_back(self, items: list[Item], first: bool = True) -> None:
        """Adds items that were taken, before all others or, if not `first`, from the next round on."""
        with self._changed:
            now = self._round
            for k, item in enumerate(items):
                self._seen.setdefault(item.client, time.monotonic())
                self._insert(now - 1 if first else now + 1 + k, item)

    @property
    def _round(self) -> int:
        """Returns the round that is served; images of later ones may have been taken, since they could share a turn."""
        return min([self._last_round, *(each.round for each in self._waiting[:1])])

    def _insert(self, round: int, item: Item) -> None:
        bisect.insort(self._waiting, _Entry(round, self._arrived, item.kind, item.client, item))
        self._arrived += 1
        self._changed.notify()

    def _forget(self) -> None:
        """Drops what is known of clients that are no longer there."""
        now = time.monotonic()
        late = [client for client, at in self._seen.items() if now - at > _SECONDS_PRESENT]
        waiting = {each.client for each in self._waiting} if late else set()
        for client in late:
            if client not in waiting:
                del self._seen[client]
                self._rounds.pop(client, None)

    def begin_turn(self) -> bool:
        """Waits for an image, and begins a turn of its kind; False once the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return False
            self._turn, self._in_turn = (self._waiting[0].kind, self._arrived), set()
            return True

    def take(self, drawing: Mapping[Hashable, int], room: int) -> Item | None:
        """Takes the next image of this turn that a client may have drawn now; None if there is none.

        `drawing` counts the images of each client that are being drawn, `room` is how many can be at once.
        """
        with self._changed:
            most = self._share(drawing, room)
            fitting = [each for each in self._of_turn() if drawing.get(each.client, 0) < most]
            if not fitting:
                return None
            first = fitting[0]
            place = self._waiting.index(first)
            before = {each.client for each in self._waiting[:place]} - {first.client}
            if self._in_turn and before - self._in_turn:
                return None
            del self._waiting[place]
            self._last_round = max(self._last_round, first.round)
            self._in_turn.add(first.client)
            return first.item

    def is_shared(self) -> bool:
        """Returns whether more than one client is present."""
        with self._changed:
            return len(self._present({})) > 1

    def over_share(self, drawing: Mapping[Hashable, int], room: int) -> dict[Hashable, int]:
        """Counts the images that clients have drawn beyond their share while another client waits and has none drawn."""
        with self._changed:
            if all(each.client in drawing for each in self._waiting):
                return {}
            most = self._share(drawing, room)
            return {client: number - most for client, number in drawing.items() if number > most}

    def at_once(self, drawing: Mapping[Hashable, int], room: int) -> int:
        """Counts the images that this turn would draw at once, with one for each client that is present."""
        with self._changed:
            most = self._share(drawing, room)
            waiting = Counter(each.client for each in self._of_turn())
            clients = self._present(drawing)
            least = int(len(clients) > 1)
            return sum(
                max(drawing.get(client, 0), min(most, drawing.get(client, 0) + waiting[client]), least)
                for client in clients
            )

    def _present(self, drawing: Mapping[Hashable, int]) -> set[Hashable]:
        self._forget()
        return self._seen.keys() | {client for client, number in drawing.items() if number}

    def _share(self, drawing: Mapping[Hashable, int], room: int) -> int:
        """Returns how many images of one client may be drawn at once."""
        clients = len(self._present(drawing))
        return max(1, room // clients) if clients > 1 else len(self._waiting) + sum(drawing.values())

    def _of_turn(self) -> list[_Entry]:
        kind, began = self._turn
        alone = all(each.kind == kind for each in self._waiting)
        return [each for each in self._waiting if each.kind == kind and (alone or each.number < began)]

    def close(self) -> list[Item]:
        """Ends waiting: returns the items that still wait, and no turn begins any more."""
        with self._changed:
            left, self._waiting, self._closed = [each.item for each in self._waiting], [], True
            self._changed.notify()
            return left
