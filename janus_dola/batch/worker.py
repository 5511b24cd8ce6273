"""Draws a run's images in this process: which of them together, a batch at a time. `ray_pool` has the same for Ray.

Which images are drawn together depends on the prompts and the size of a batch alone, so that an interrupted run draws the
same batches again, and so does any number of workers. A fault of one image stays with that image.
"""

import io
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

from janus_dola.arguments import integer
from janus_dola.batch.settings import RunSettings, Task
from janus_dola.engine.capacity import images_that_fit
from janus_dola.images.layer_map import counts_of, small_map
from janus_dola.images.recipe import encode_image
from janus_dola.outputs import DrawnImage, NonFiniteError
from janus_dola.pipeline import JanusDoLa, check_before_loading
from janus_dola.settings import DrawSettings

Batch = list[Task]
_WAITING = 8  # batches' worth of images that may wait for others of their settings


def batches(tasks: Iterable[Task], size: int) -> Iterator[Batch]:
    """Tasks of the same settings together, `size` at a time.

    Where settings alternate several batches fill up side by side; the one begun first goes when too many wait.
    """
    filling: dict[DrawSettings, Batch] = {}
    waiting = 0
    for task in tasks:
        batch = filling.setdefault(task.drawing, [])
        batch.append(task)
        waiting += 1
        if len(batch) == size or waiting == _WAITING * size:
            goes = task.drawing if len(batch) == size else next(iter(filling))
            waiting -= len(filling[goes])
            yield filling.pop(goes)
    yield from filling.values()


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
        backend: of the head stage.
        launch: how a pass is run.
    Raises:
        ValueError: the model cannot draw with these settings.
    """

    def __init__(self, pipe: JanusDoLa, settings: RunSettings, backend: str = "auto", launch: str = "auto") -> None:
        self._pipe, self._backend, self._launch = pipe, backend, launch
        self.dtype = pipe.image_model.stored_as
        self.settings = settings.with_dtype(self.dtype)
        # Checks the settings; without a prompt there is nothing to draw.
        pipe.stream((), settings=settings.drawing, backend=backend, launch=launch)
        self._limit: int | None = None  # images at once, once memory ran out

    @property
    def batch_size(self) -> int:
        """How many images to draw at once: what fits into memory."""
        return images_that_fit(self._pipe.image_model, _USUAL_PROMPT)

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
            launch=self._launch,
            window=self.settings.window,
        )

    def _encoded(self, task: Task, image: DrawnImage, seconds: float) -> Drawn | Failed:
        try:
            recipe = image.recipe if self.settings.metadata else None
            content = encode_image(image.image, self.settings.image_format, recipe)
        except ValueError as error:
            return Failed(str(error))
        png = None
        if task.drawing.dola is not None:
            picture = io.BytesIO()
            small_map(image.premature_layers, image.jsd).save(picture, format="png")
            png = picture.getvalue()
        mean, top = round(image.jsd.mean().item(), 4), round(image.jsd.max().item(), 4)
        return Drawn(content, png, mean, top, counts_of(image.premature_layers), round(seconds, 4))


_ADDRESS = re.compile(r"auto|(ray://)?[^\s/]+:[0-9]{1,5}")


class WorkersLostError(RuntimeError):
    """Workers die again and again."""


Results = list[Drawn | Failed]


@dataclass(frozen=True)
class Compute:
    """What a run is drawn on; the images do not depend on it.

    Attributes:
        device: of the model; None is a GPU where there is one.
        backend: of the head stage: "auto", "reference", "torch" or "triton".
        launch: how a pass is run: "auto", "graph", "compile" or "eager".
        workers: Ray actors; None is this process alone or, with `ray_address`, one for each GPU there.
        ray_address: of a Ray cluster: "auto", "host:6379" or "ray://host:10001". None with `workers` starts one on this
            machine. A Ray that this process already is connected to is used as it is.
        batch_size: images drawn at once; None is what fits into memory when a folder is begun.
    Raises:
        ValueError: a value is out of range.
    """

    device: str | None = None
    backend: str = "auto"
    launch: str = "auto"
    workers: int | None = None
    ray_address: str | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None:
            object.__setattr__(self, "workers", integer("workers", self.workers, 1, 2**16))
        if self.batch_size is not None:
            object.__setattr__(self, "batch_size", integer("batch_size", self.batch_size, 1, 2**16))
        if self.ray_address is not None and not _ADDRESS.fullmatch(self.ray_address):
            raise ValueError(f'ray_address must be "auto", HOST:PORT or ray://HOST:PORT, got {self.ray_address!r}')
        if self.uses_ray and self.device not in (None, "cpu", "cuda"):
            raise ValueError(f'device must be "cpu" or "cuda" with workers, which have a GPU each, got {self.device!r}')

    @property
    def uses_ray(self) -> bool:
        """Whether Ray hands out the batches."""
        return self.workers is not None or self.ray_address is not None


class Pool(AbstractContextManager["Pool"], Protocol):
    """Models that are loaded, and draw."""

    dtype: str
    batch_size: int  # images that fit into memory

    def run(self, batches: Iterator[Batch]) -> Iterator[tuple[Batch, Results]]:
        """Draws the batches, which are read as they are needed; yields each with its images once it is done."""
        ...


class InProcess(AbstractContextManager["InProcess"]):
    """Draws in this process, one batch after the other.

    Raises:
        FileNotFoundError, ValueError: the model cannot be loaded, or cannot draw with these settings.
    """

    def __init__(self, settings: RunSettings, compute: Compute, pipe: JanusDoLa | None = None) -> None:
        if pipe is None:
            place = (settings.model, compute.device, settings.dtype, settings.revision, settings.quantize)
            check_before_loading(*place, settings=settings.drawing, backend=compute.backend, launch=compute.launch)
            pipe = JanusDoLa.from_pretrained(*place)
        self._worker = Worker(pipe, settings, compute.backend, compute.launch)
        self.dtype = self._worker.dtype
        self.batch_size = self._worker.batch_size

    def __exit__(self, *exception: object) -> None:
        pass

    def run(self, batches: Iterator[Batch]) -> Iterator[tuple[Batch, Results]]:
        """See `Pool`."""
        for batch in batches:
            yield batch, self._worker.draw(batch)
