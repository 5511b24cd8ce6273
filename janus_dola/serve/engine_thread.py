"""The engine's thread: draws the images that wait, and reports to those who asked for them."""

import math
import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from janus_dola.engine.capacity import bucket_of
from janus_dola.engine.engine import Engine
from janus_dola.engine.jobs import Job
from janus_dola.engine.pixels import start_pixels
from janus_dola.engine.plan import make_plan
from janus_dola.engine.slot_runner import SlotRunner
from janus_dola.engine.slots import Codes
from janus_dola.images.outputs import NonFiniteError
from janus_dola.kernels.lens_map import Lens
from janus_dola.serve.metrics import Metrics
from janus_dola.serve.pictures import PictureThread
from janus_dola.serve.queue import FairQueue
from janus_dola.settings import DrawSettings

_GREY = (128, 128, 128)
_ROOM_ON_CPU = 4  # images drawn at once where several clients are present: with more each takes longer
_MOST_ON_CPU = 32  # more are not faster, and whoever comes next waits for them
_SLOTS_ON_GPU = (1, 4, 16, 64)  # few numbers, for each has graphs of its own
_SECONDS_AT_FIRST = 5  # before an image is drawn, an answer to how long it takes


@dataclass(frozen=True)
class PartialImage:
    """An image being drawn; what is not drawn yet is grey."""

    k: int  # which of the request's images
    number: int  # counts the image's partial pictures, from 0
    picture: Image.Image


@dataclass(frozen=True)
class FinishedImage:
    """An image that is drawn. T image tokens; tensors are on the CPU."""

    k: int
    picture: Image.Image | None  # None where another model paints the codes
    codes: Codes  # [T]


@dataclass(frozen=True)
class FailedImage:
    """An image that could not be drawn."""

    k: int
    error: Exception


Event = PartialImage | FinishedImage | FailedImage


@dataclass(eq=False)
class ImageRequest:
    """An image that a client asks for."""

    job: Job  # `k` counts the images of the client's request
    layers: tuple[int, ...]  # read by the passes that draw it
    lens: Lens | None  # that they are read through
    partials: int  # how many partial pictures to send
    tell: Callable[[Event], object]  # gets each event in another thread; the last is no `PartialImage`
    client: Hashable = None  # who asks: clients have equal shares
    given_up: bool = False  # the image is no longer needed; may be set at any time
    partials_sent: int = 0
    arrived_at: float = field(default_factory=time.monotonic)
    begun_at: float = 0.0

    @property
    def kind(self) -> Hashable:
        """Returns a key that images which can share passes have in common."""
        return self.layers, self.lens, self.job.params.kind


class EngineThread:
    """Draws the images that are put into its queue, until it is closed.

    Args:
        slots: images drawn at once, at most; None is as many as fit.
        longest: tokens of a prompt, at most.
        max_waiting: images that may wait.
    """

    def __init__(
        self,
        engine: Engine,
        slots: int | None,
        longest: int,
        max_waiting: int,
        metrics: Metrics,
        backend: str = "auto",
        launch: str = "auto",
    ) -> None:
        self.engine, self.image_model, self.longest = engine, engine.image_model, longest
        self.queue: FairQueue[ImageRequest] = FairQueue(max_waiting)
        self._metrics, self._on_gpu = metrics, self.image_model.device.type == "cuda"
        self._plan = make_plan(self.image_model, DrawSettings(contrast=None), backend=backend, launch=launch)
        self._slots = slots or engine.fit(longest)
        if slots is None and not self._on_gpu:
            self._slots = min(self._slots, _MOST_ON_CPU)
        self._seconds: deque[float] = deque(maxlen=32)  # that the last images took from their first pass to their last
        self._pictures = PictureThread(self._tell, self.queue.is_shared)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def most(self) -> int:
        """Returns how many images are drawn at once, at most: fewer since memory ran out."""
        return self.engine.fit(self.longest, self._slots)

    def ask(self, images: list[ImageRequest], client: Hashable = None) -> None:
        """Puts a client's images into the queue: all, or none and a FullError if too many wait."""
        for image in images:
            image.client = client
        self.queue.put(images)
        self._metrics.waiting.set(len(self.queue))

    def release(self, images: list[ImageRequest]) -> None:
        """Ends a client's request: slots of images not drawn are free at the next pass, and nothing is reported any more.

        Must be called once for all that was asked for; until then the images count as in hand.
        """
        for image in images:
            image.given_up = True
        self.queue.release(images)
        self._metrics.waiting.set(len(self.queue))

    def seconds_to_wait(self) -> int:
        """Estimates how long the queue takes to become empty, in seconds, at least 1."""
        if not self._seconds:
            return _SECONDS_AT_FIRST
        waiting = len(self.queue)
        turns = math.ceil(waiting / max(1, self._size(waiting)))
        return max(1, round(turns * statistics.fmean(self._seconds)))

    def close(self) -> None:
        """Ends after the pass that runs, and cancels the images that are not drawn."""
        self._closing = True
        for image in self.queue.close():
            image.given_up = True
        self._thread.join()
        self._pictures.close()

    def _run(self) -> None:
        while self.queue.begin_turn():
            live: dict[Job, ImageRequest] = {}
            out_of_memory = False
            try:
                self._turn(live)
            except torch.OutOfMemoryError:
                out_of_memory = True
            except Exception as error:  # whatever it is, the turn's images are told, and the next turn begins
                self._fail_all(live, error)
            if out_of_memory:  # outside the except clause nothing holds on to the images' memory
                try:
                    self.engine.halve(self.most)
                    self.queue.put_back(list(live.values()))
                except torch.OutOfMemoryError as error:
                    self._fail_all(live, error)

    def _turn(self, live: dict[Job, ImageRequest]) -> None:
        slots = self._size(self._at_once(live))
        first = self._take(live)
        if first is None:  # given up meanwhile
            return
        params = first.job.params
        plan = replace(self._plan, layers=first.layers, lens=first.lens, kind=params.kind)
        try:
            with self.engine.runner(plan, slots, self.longest, params) as runner:
                runner.admit([first.job])
                self._fill(runner, live)
                while live and not self._closing:
                    self._metrics.slots.set(len(live))
                    for job, codes in runner.advance():
                        image = live.pop(job)
                        self._seconds.append(time.monotonic() - image.begun_at)
                        self._pictures.finish(image, partial(self._finished, image, codes))
                    self._metrics.passes.inc()
                    for job in runner.jobs:
                        if live[job].given_up:
                            runner.cancel(job)
                            del live[job]
                        else:
                            self._show(live[job], runner)
                    self._make_way(runner, live, slots)
                    # Unless it goes on so, the turn ends soon, and the next has more slots, or far fewer.
                    if live and slots / 4 < self._size(self._at_once(live)) <= slots:
                        self._fill(runner, live)
        finally:
            self._metrics.slots.set(0)

    def _make_way(self, runner: SlotRunner, live: dict[Job, ImageRequest], slots: int) -> None:
        """Puts images back into the queue where a client waits while others have more than their share.

        These are the ones begun last; or all, where that ends a turn of more slots than there is room for.
        """
        over = self.queue.over_share(_by_client(live), self._room)
        if not over or (slots <= self._room and runner.free):
            return
        leaving = []
        for image in reversed(live.values()):
            if slots > self._room or over.get(image.client, 0) > 0:
                leaving.append(image)
                over[image.client] = over.get(image.client, 0) - 1
        for image in leaving:
            runner.cancel(image.job)
            del live[image.job]
        self.queue.put_back(leaving[::-1], first=False)

    def _size(self, images: int) -> int:
        """Returns how many slots images get: empty ones cost time."""
        slots = min((each for each in _SLOTS_ON_GPU if images <= each), default=images) if self._on_gpu else images
        return min(self.most, bucket_of(slots))

    def _fill(self, runner: SlotRunner, live: dict[Job, ImageRequest]) -> None:
        """Begins images that wait in the free slots."""
        for _ in runner.free:
            image = self._take(live)
            if image is not None:
                runner.admit([image.job])
        self._metrics.waiting.set(len(self.queue))

    def _take(self, live: dict[Job, ImageRequest]) -> ImageRequest | None:
        """Takes the next image from the queue, and counts it among those that are drawn."""
        image = self.queue.take(_by_client(live), self._room)
        if image is not None:
            live[image.job] = image
            image.begun_at = time.monotonic()
        return image

    def _at_once(self, live: dict[Job, ImageRequest]) -> int:
        return self.queue.at_once(_by_client(live), self._room)

    @property
    def _room(self) -> int:
        """Returns for how many images clients have shares where several are present."""
        return self.most if self._on_gpu else min(self.most, _ROOM_ON_CPU)

    def _finished(self, image: ImageRequest, codes: Codes) -> FinishedImage:
        paints = self.image_model.paints
        picture, on_cpu = start_pixels(self.image_model, codes.tokens)() if paints else None, codes.cpu()
        if (paints and picture is None) or not on_cpu.finite:
            raise NonFiniteError([image.job.k])
        self._metrics.images.inc()
        self._metrics.codes.inc(self.image_model.image_tokens)
        self._metrics.seconds.observe(time.monotonic() - image.arrived_at)
        return FinishedImage(image.job.k, picture, on_cpu)

    def _show(self, image: ImageRequest, runner: SlotRunner) -> None:
        """Sends a partial picture when it is time for the next."""
        total, decided, parts = self.image_model.raster.length, runner.decided(image.job), image.partials + 1
        if image.partials_sent < image.partials and decided * parts >= total * (image.partials_sent + 1):
            # A pass may decide enough for several: only the last is sent.
            number = min(image.partials, decided * parts // total) - 1
            image.partials_sent = number + 1
            tokens = runner.codes(image.job).tokens
            self._pictures.show(image, partial(self._partial, image, number, tokens, decided))

    def _partial(self, image: ImageRequest, number: int, tokens: Tensor, decided: int) -> PartialImage:
        picture = start_pixels(self.image_model, tokens)()
        if picture is None:
            raise NonFiniteError([image.job.k])
        raster = self.image_model.raster
        size, (row, column) = picture.width // raster.columns, divmod(decided, raster.stride)
        picture.paste(_GREY, (column * size, row * size, picture.width, (row + 1) * size))
        picture.paste(_GREY, (0, min((row + 1) * size, picture.height), picture.width, picture.height))
        return PartialImage(image.job.k, number, picture)

    def _tell(self, image: ImageRequest, make_event: Callable[[], Event]) -> None:
        if image.given_up:
            return
        try:
            event = make_event()
        except Exception as error:
            self._fail(image, error)
        else:
            image.tell(event)

    def _fail_all(self, live: dict[Job, ImageRequest], error: Exception) -> None:
        for image in live.values():
            self._fail(image, error)

    def _fail(self, image: ImageRequest, error: Exception) -> None:
        if not image.given_up:
            image.given_up = True
            self._metrics.failures.inc()
            image.tell(FailedImage(image.job.k, error))


def _by_client(live: dict[Job, ImageRequest]) -> Counter[Hashable]:
    return Counter(image.client for image in live.values())
