"""Draws one batch of images and encodes them. A fault of one image stays with that image."""

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from janus_dola.batch.settings import Settings, Task
from janus_dola.engine.schedule import images_that_fit
from janus_dola.image_files import encode_image
from janus_dola.layer_map import counts_of, small_map
from janus_dola.outputs import DrawnImage, NonFiniteError
from janus_dola.pipeline import JanusDoLa
from janus_dola.settings import DrawSettings

_USUAL_PROMPT = 128  # tokens, for the number of images that fit; a batch of longer ones may have to be halved


@dataclass(frozen=True)
class Drawn:
    """An image as it goes to disk, and what DoLa did in it."""

    content: bytes  # of its file
    layer_map: bytes | None  # a PNG; None without DoLa
    mean_jsd: float  # nats, over the image's codes
    max_jsd: float
    layers: dict[int, int]  # how many codes were contrasted with each layer
    seconds: float  # its share of the time that its batch took


@dataclass(frozen=True)
class Failed:
    """Why an image could not be drawn."""

    error: str


class Worker:
    """A model and the batches it draws.

    Args:
        settings: of the run.
        backend: of the early-exit stage.
        engine: how a step is run.
    Raises:
        ValueError: the model cannot draw with these settings.
    """

    def __init__(self, pipe: JanusDoLa, settings: Settings, backend: str = "auto", engine: str = "auto") -> None:
        self._pipe, self._backend, self._engine = pipe, backend, engine
        self.dtype = str(pipe.parts.stored_dtype).removeprefix("torch.")
        self.settings = settings.with_dtype(self.dtype)
        # Checks the settings; without a prompt there is nothing to draw.
        pipe.stream((), settings=settings.drawing, backend=backend, engine=engine)
        self._limit: int | None = None  # images at once, once memory ran out

    @property
    def batch_size(self) -> int:
        """How many images to draw at once: what fits into memory."""
        return images_that_fit(self._pipe.parts, _USUAL_PROMPT)

    def draw(self, batch: Sequence[Task]) -> list[Drawn | Failed]:
        """Draws a batch of images of the same settings; what cannot be drawn fails alone."""
        started = time.perf_counter()
        errors = {task.number: error for task in batch if (error := self._error_of_prompt(task))}
        sound = iter(self._draw([task for task in batch if task.number not in errors]))
        drawn = [Failed(errors[task.number]) if task.number in errors else next(sound) for task in batch]
        seconds = (time.perf_counter() - started) / len(batch)
        return [
            image if isinstance(image, Failed) else self._encoded(task, image, seconds)
            for task, image in zip(batch, drawn, strict=True)
        ]

    def _error_of_prompt(self, task: Task) -> str | None:
        try:
            self._pipe.check_prompt(task.prompt)
        except ValueError as error:
            return str(error)
        return None

    def _draw(self, tasks: list[Task]) -> list[DrawnImage | Failed]:
        if self._limit is not None and len(tasks) > self._limit:
            slices = [tasks[i : i + self._limit] for i in range(0, len(tasks), self._limit)]
            return [image for part in slices for image in self._draw(part)]
        if not tasks:
            return []
        try:
            return list(self._draw_at_once(tasks, tasks[0].drawing))
        except ValueError as error:  # of the settings, which are the same for all of them
            return [Failed(str(error))] * len(tasks)
        except NonFiniteError as error:
            good = iter(error.drawn)
            return [
                Failed(str(NonFiniteError([task.number]))) if i in error.images else next(good)
                for i, task in enumerate(tasks)
            ]
        except torch.OutOfMemoryError:
            pass
        # Out of the except clause nothing holds on to the batch's memory.
        torch.cuda.empty_cache()
        if len(tasks) == 1:
            return [Failed("out of GPU memory with this image alone")]
        self._limit = (len(tasks) + 1) // 2
        return self._draw(tasks)

    def _draw_at_once(self, tasks: Sequence[Task], drawing: DrawSettings) -> list[DrawnImage]:
        return self._pipe.draw(
            [task.prompt for task in tasks],
            [task.seed for task in tasks],
            settings=drawing,
            backend=self._backend,
            engine=self._engine,
            window=self.settings.window,
        )

    def _encoded(self, task: Task, image: DrawnImage, seconds: float) -> Drawn | Failed:
        try:
            content = encode_image(image.image, self.settings.image_format, task.recipe(self.settings))
        except ValueError as error:
            return Failed(str(error))
        png = None
        if task.drawing.dola is not None:
            picture = io.BytesIO()
            small_map(image.premature_layers, image.jsd).save(picture, format="png")
            png = picture.getvalue()
        mean, top = round(image.jsd.mean().item(), 4), round(image.jsd.max().item(), 4)
        return Drawn(content, png, mean, top, counts_of(image.premature_layers), round(seconds, 4))
