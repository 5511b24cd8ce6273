"""The engine's thread: draws the images that wait, and reports to those who asked for them."""

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

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
from janus_dola.serve.metrics import Metrics
from janus_dola.serve.queue import FairQueue
from janus_dola.settings import DrawSettings

_GREY = (128, 128, 128)


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
    picture: Image.Image
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
    partials: int  # how many partial pictures to send
    tell: Callable[[Event], object]  # gets each event in another thread; the last is no `PartialImage`
    given_up: bool = False  # the image is no longer needed; may be set at any time
    partials_sent: int = 0
    arrived_at: float = field(default_factory=time.monotonic)

    @property
    def kind(self) -> Hashable:
        """Returns a key that images which can share passes have in common."""
        return self.layers, self.job.params.kind


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
        self._metrics = metrics
        self._plan = make_plan(self.image_model, DrawSettings(contrast=None), backend=backend, launch=launch)
        self._slots = slots or engine.fit(longest)
        self._busy, self._drawn = 0.0, 0  # seconds spent drawing, and images drawn
        self._pictures = ThreadPoolExecutor(1, "pictures")  # decodes pixels while drawing goes on
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def most(self) -> int:
        """Returns how many images are drawn at once, at most: fewer since memory ran out."""
        return self.engine.fit(self.longest, self._slots)

    def ask(self, images: list[ImageRequest]) -> None:
        """Puts images into the queue: all, or none and a FullError if too many wait."""
        self.queue.put(images)
        self._metrics.waiting.set(len(self.queue))

    def give_up(self, images: list[ImageRequest]) -> None:
        """Cancels images: their slots are free at the next pass, and nothing more is reported about them."""
        for image in images:
            image.given_up = True
        self.queue.discard(images)
        self._metrics.waiting.set(len(self.queue))

    def seconds_to_wait(self) -> int:
        """Estimates how long the queue takes to become empty, in seconds, at least 1."""
        return max(1, round(len(self.queue) * self._busy / max(1, self._drawn)))

    def close(self) -> None:
        """Ends after the pass that runs, and cancels the images that are not drawn."""
        self._closing = True
        self.give_up(self.queue.close())
        self._thread.join()
        self._pictures.shutdown()

    def _run(self) -> None:
        while ready := self.queue.begin_turn():
            began = time.monotonic()
            live: dict[Job, ImageRequest] = {}
            out_of_memory = False
            try:
                self._turn(ready, live)
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
            self._busy += time.monotonic() - began

    def _turn(self, ready: int, live: dict[Job, ImageRequest]) -> None:
        first = self.queue.take()
        if first is None:  # given up meanwhile
            return
        live[first.job] = first
        slots, params = self._size(ready), first.job.params
        plan = replace(self._plan, layers=first.layers, kind=params.kind)
        try:
            with self.engine.runner(plan, slots, self.longest, params) as runner:
                runner.admit([first.job])
                self._fill(runner, live)
                while live and not self._closing:
                    self._metrics.slots.set(len(live))
                    for job, codes in runner.advance():
                        self._drawn += 1
                        self._pictures.submit(self._tell, live.pop(job), self._finished, codes)
                    self._metrics.passes.inc()
                    for job in runner.jobs:
                        if live[job].given_up:
                            runner.cancel(job)
                            del live[job]
                        else:
                            self._show(live[job], runner)
                    # Unless it goes on so, the turn ends soon, and the next has more slots, or far fewer.
                    if live and slots / 4 < self._size(len(live) + self.queue.ready()) <= slots:
                        self._fill(runner, live)
        finally:
            self._metrics.slots.set(0)

    def _size(self, images: int) -> int:
        """Returns how many slots images get: on a CPU empty slots cost time, on a GPU another number means new graphs."""
        return self.most if self.image_model.device.type == "cuda" else min(self.most, bucket_of(images))

    def _fill(self, runner: SlotRunner, live: dict[Job, ImageRequest]) -> None:
        """Begins images that wait in the free slots."""
        for _ in runner.free:
            image = self.queue.take()
            if image is not None:
                live[image.job] = image
                runner.admit([image.job])
        self._metrics.waiting.set(len(self.queue))

    def _finished(self, image: ImageRequest, codes: Codes) -> FinishedImage:
        picture, on_cpu = start_pixels(self.image_model, codes.tokens)(), codes.cpu()
        if picture is None or not on_cpu.finite:
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
            self._pictures.submit(self._tell, image, self._partial, number, tokens, decided)

    def _partial(self, image: ImageRequest, number: int, tokens: Tensor, decided: int) -> PartialImage:
        picture = start_pixels(self.image_model, tokens)()
        if picture is None:
            raise NonFiniteError([image.job.k])
        raster = self.image_model.raster
        size, (row, column) = picture.width // raster.columns, divmod(decided, raster.stride)
        picture.paste(_GREY, (column * size, row * size, picture.width, (row + 1) * size))
        picture.paste(_GREY, (0, min((row + 1) * size, picture.height), picture.width, picture.height))
        return PartialImage(image.job.k, number, picture)

    def _tell(self, image: ImageRequest, event_of: Callable[..., Event], *args: Any) -> None:
        if image.given_up:
            return
        try:
            event = event_of(image, *args)
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
