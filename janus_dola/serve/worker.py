"""The engine's thread: draws the images that wait in slots, and tells those who asked what comes of them."""

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import torch
from PIL import Image
from torch import Tensor

from janus_dola.engine.capacity import bucket_of, images_that_fit, window_of
from janus_dola.engine.engine import Engine
from janus_dola.engine.images import out_of_memory
from janus_dola.engine.jobs import Job
from janus_dola.engine.pixels import start_pixels
from janus_dola.engine.plan import plan
from janus_dola.engine.progress import Progress
from janus_dola.engine.runner import SlotRunner
from janus_dola.engine.slots import Codes
from janus_dola.models.model import ImageModel
from janus_dola.outputs import NonFiniteError
from janus_dola.serve.metrics import Metrics
from janus_dola.serve.queue import FairQueue
from janus_dola.settings import DrawSettings

_GREY = (128, 128, 128)


@dataclass(frozen=True)
class Partial:
    """An image on its way: what is not drawn yet is grey."""

    k: int  # which of the request's images
    number: int  # of the image's partial pictures, from 0
    picture: Image.Image


@dataclass(frozen=True)
class Finished:
    """An image that is drawn. T image tokens; tensors are on the CPU."""

    k: int
    picture: Image.Image
    codes: Codes  # [T]


@dataclass(frozen=True)
class Failed:
    """An image that could not be drawn."""

    k: int
    error: Exception


Event = Partial | Finished | Failed


@dataclass(eq=False)
class Asked:
    """An image that someone asked for.

    Attributes:
        job: what to draw; `index` differs from that of all others, `k` counts the images of the request.
        layers: those that its passes read.
        partials: how many pictures are wanted on the way.
        tell: called from another thread with what happens; the last call has `Finished` or `Failed`.
        given_up: nobody wants it any more; it may be set at any time.
    """

    job: Job
    layers: tuple[int, ...]
    partials: int
    tell: Callable[[Event], object]
    given_up: bool = False
    partials_told: int = 0
    asked_at: float = field(default_factory=time.monotonic)

    @property
    def kind(self) -> Hashable:
        """Images of equal kinds can share passes."""
        return self.layers, self.job.params and self.job.params.kind


class Worker:
    """Draws what is put into its queue, till it is closed.

    Args:
        image_model: of the model.
        slots: images drawn at once, at most; None is as many as fit.
        longest: tokens of a prompt, at most.
        max_waiting: images that may wait.
        metrics: is kept up to date.
        backend, launch: as for `JanusDoLa.generate`.
    """

    def __init__(
        self,
        image_model: ImageModel,
        slots: int | None,
        longest: int,
        max_waiting: int,
        metrics: Metrics,
        backend: str = "auto",
        launch: str = "auto",
    ) -> None:
        self.image_model, self.longest = image_model, longest
        self.queue: FairQueue[Asked] = FairQueue(max_waiting)
        self._metrics = metrics
        self._plan = plan(image_model, DrawSettings(dola=None), backend=backend, launch=launch)
        self._engine = Engine(image_model)
        self.most = slots or images_that_fit(image_model, longest)
        # On a GPU empty slots cost next to nothing, and another number of slots means new graphs.
        self._least = self.most if image_model.device.type == "cuda" else 1
        self._busy, self._drawn = 0.0, 0  # seconds of drawing, and images
        self._pictures = ThreadPoolExecutor(1, "pictures")  # are decoded while drawing goes on
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def ask(self, images: list[Asked]) -> None:
        """Puts images into the queue: all, or none.

        Raises:
            FullError: too many wait.
        """
        self.queue.put(images)
        self._metrics.waiting.set(len(self.queue))

    def give_up(self, images: list[Asked]) -> None:
        """Nobody wants these any more: their slots are free at the next pass, and nothing more is told of them."""
        for image in images:
            image.given_up = True
        self.queue.discard(images)
        self._metrics.waiting.set(len(self.queue))

    def seconds_to_wait(self) -> int:
        """A guess at how long the queue takes to become empty, in seconds, at least 1."""
        return max(1, round(len(self.queue) * self._busy / max(1, self._drawn)))

    def close(self) -> None:
        """Ends after the pass that runs: what was not drawn is given up."""
        self._closing = True
        self.give_up(self.queue.close())
        self._thread.join()
        self._pictures.shutdown()

    def _run(self) -> None:
        while ready := self.queue.begin_turn():
            began = time.monotonic()
            live: dict[int, Asked] = {}
            try:
                self._turn(ready, live)
            except torch.OutOfMemoryError:
                self._with_fewer(live)
            except Exception as error:  # whatever it is, those of this turn are told, and the next one begins
                for image in live.values():
                    self._fail(image, error)
            self._busy += time.monotonic() - began

    def _with_fewer(self, live: dict[int, Asked]) -> None:
        """Half as many slots from now on; the images of a turn that ran out of memory begin anew."""
        self._engine.release()
        if self.image_model.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.most == 1:
            for image in live.values():
                self._fail(image, torch.OutOfMemoryError(out_of_memory(1)))
            return
        self.most = (self.most + 1) // 2
        self._least = min(self._least, self.most)
        self.queue.put_back(list(live.values()))

    def _turn(self, ready: int, live: dict[int, Asked]) -> None:
        first = self.queue.take()
        if first is None:  # given up meanwhile
            return
        live[first.job.index] = first
        slots = self._size(ready)
        planned = replace(
            self._plan,
            layers=first.layers,
            params=first.job.params or self._plan.params,
            window=window_of(slots, self.image_model),
        )
        decoder = self._engine.take(planned, slots, self.longest)
        try:
            drawing = SlotRunner(decoder, Progress())
            drawing.admit([0], [first.job])
            self._fill(drawing, live)
            while live and not self._closing:
                self._metrics.slots.set(len(live))
                done = drawing.advance()
                self._metrics.passes.inc()
                for slot, job in done:
                    self._finish(live.pop(job.index), decoder.slots.codes(slot))
                for slot, here in enumerate(drawing.jobs):
                    if here is None:
                        continue
                    image = live[here.index]
                    if image.given_up:
                        drawing.jobs[slot] = None
                        del live[here.index]
                    else:
                        self._show(image, drawing, slot)
                if live and self._is_right(slots, len(live) + self.queue.ready()):
                    self._fill(drawing, live)
        finally:
            self._metrics.slots.set(0)
            self._engine.give_back(decoder)

    def _size(self, images: int) -> int:
        """Slots for so many images: on a CPU no more than needed, for each costs time though it be empty."""
        return max(self._least, min(self.most, bucket_of(images)))

    def _is_right(self, slots: int, images: int) -> bool:
        """Whether a turn goes on with further images; else it ends soon, and the next has more slots, or far fewer."""
        return self._size(images) <= slots < 4 * self._size(images)

    def _fill(self, drawing: SlotRunner, live: dict[int, Asked]) -> None:
        """Images that wait begin in the free slots."""
        for slot, job in enumerate(drawing.jobs):
            image = self.queue.take() if job is None else None
            if image is not None:
                live[image.job.index] = image
                drawing.admit([slot], [image.job])
        self._metrics.waiting.set(len(self.queue))

    def _finish(self, image: Asked, codes: Codes) -> None:
        self._drawn += 1
        self._pictures.submit(self._told, image, lambda: self._finished(image, codes))

    def _finished(self, image: Asked, codes: Codes) -> Finished:
        picture, found = start_pixels(self.image_model, codes.tokens)(), codes.cpu()
        if picture is None or not found.finite:
            raise NonFiniteError([image.job.k])
        self._metrics.images.inc()
        self._metrics.codes.inc(self.image_model.image_tokens)
        self._metrics.seconds.observe(time.monotonic() - image.asked_at)
        return Finished(image.job.k, picture, found)

    def _show(self, image: Asked, drawing: SlotRunner, slot: int) -> None:
        """Sends a picture of an image on its way, where it is time for the next."""
        total, decided = self.image_model.raster.length, drawing.least[slot]
        if image.partials_told < image.partials and decided * (image.partials + 1) >= total * (image.partials_told + 1):
            # Several may have been passed at once: each is sent once, so that the last is the furthest.
            number = min(image.partials, decided * (image.partials + 1) // total) - 1
            image.partials_told = number + 1
            tokens = drawing.decoder.slots.codes(slot).tokens  # guesses behind those decided
            self._pictures.submit(self._told, image, lambda: self._partial(image, number, tokens, decided))

    def _partial(self, image: Asked, number: int, tokens: Tensor, decided: int) -> Partial:
        picture = start_pixels(self.image_model, tokens)()
        if picture is None:
            raise NonFiniteError([image.job.k])
        raster = self.image_model.raster
        size, (row, column) = picture.width // raster.columns, divmod(decided, raster.stride)
        picture.paste(_GREY, (column * size, row * size, picture.width, (row + 1) * size))
        picture.paste(_GREY, (0, min((row + 1) * size, picture.height), picture.width, picture.height))
        return Partial(image.job.k, number, picture)

    def _told(self, image: Asked, event_of: Callable[[], Event]) -> None:
        if image.given_up:
            return
        try:
            event = event_of()
        except Exception as error:
            self._fail(image, error)
        else:
            image.tell(event)

    def _fail(self, image: Asked, error: Exception) -> None:
        if not image.given_up:
            image.given_up = True
            self._metrics.failures.inc()
            image.tell(Failed(image.job.k, error))
