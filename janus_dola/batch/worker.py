"""Draws a run's images in this process, a batch at a time. `ray_pool` does the same with Ray.

Which images are drawn together depends on the prompts and the batch size alone, so that an interrupted run draws the same
batches again, and so does any number of workers. A fault of one image stays with that image.
"""

import io
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from janus_dola.batch.prompts import ImageTask
from janus_dola.batch.run_settings import RunSettings
from janus_dola.compute import Compute
from janus_dola.images.layer_map import counts_of, small_map
from janus_dola.images.outputs import DrawnImage, NonFiniteError
from janus_dola.pipeline import JanusDoLa
from janus_dola.settings import DrawSettings

_WAITING = 8  # batches' worth of images that may wait for others of their settings
_USUAL_PROMPT = 128  # tokens, for the number of images that fit; a batch of longer ones may have to be halved


@dataclass(frozen=True)
class EncodedImage:
    """An image as it goes to disk, and what its line in the manifest says about the drawing."""

    content: bytes  # the file's
    layer_map: bytes | None  # a PNG; None without a contrast
    facts: dict[
        str, Any
    ]  # JSDs in nats, over the codes; codes per layer; seconds, the image's share of its batch's time


Batch = list[ImageTask]
Results = list[EncodedImage | str]  # a string says why an image could not be drawn


class WorkersLostError(RuntimeError):
    """Workers die again and again."""


def batches(tasks: Iterable[ImageTask], size: int) -> Iterator[Batch]:
    """Puts tasks with the same settings together, `size` at a time.

    Where settings alternate, several batches fill up side by side; the one begun first goes when too many wait.
    """
    filling: dict[DrawSettings, Batch] = {}
    waiting = 0
    for task in tasks:
        batch = filling.setdefault(task.drawing, [])
        batch.append(task)
        waiting += 1
        if len(batch) == size or waiting == _WAITING * size:
            full = task.drawing if len(batch) == size else next(iter(filling))
            waiting -= len(filling[full])
            yield filling.pop(full)
    yield from filling.values()


class BatchWorker:
    """A model in this process, and the batches it draws with `compute`'s backend and launch.

    A ValueError says that the model cannot draw with these settings.
    """

    def __init__(self, pipe: JanusDoLa, settings: RunSettings, compute: Compute) -> None:
        self._pipe, self._compute, self._settings = pipe, compute, settings
        self.dtype = pipe.image_model.stored_as
        if settings.pictures_for is not None:
            pipe.image_model.check_paints(settings.pictures_for)
        # Checks the settings; without a prompt there is nothing to draw.
        pipe.stream((), settings=settings.drawing, backend=compute.backend, launch=compute.launch)
        self.batch_size = pipe.engine.fit(_USUAL_PROMPT)  # images that fit into memory

    @classmethod
    def load(cls, settings: RunSettings, compute: Compute) -> "BatchWorker":
        """Loads the model; one that is not there is a FileNotFoundError, one that cannot draw this a ValueError."""
        place = (settings.model, compute.device, settings.dtype, settings.revision, settings.quantize)
        run_by = {"backend": compute.backend, "launch": compute.launch}
        JanusDoLa.check(*place, settings=settings.drawing, pictures_for=settings.pictures_for, **run_by)
        return cls(JanusDoLa.from_pretrained(*place), settings, compute)

    def run(self, batches: Iterator[Batch]) -> Iterator[tuple[Batch, Results]]:
        """Draws the batches, which are read as they are needed; yields each with its images once it is done."""
        yield from ((batch, self.draw(batch)) for batch in batches)

    def draw(self, batch: Batch) -> Results:
        """Draws a batch of images with the same settings; what cannot be drawn fails alone."""
        started = time.perf_counter()
        images = dict[int, DrawnImage | str]()
        for task in batch:
            try:
                self._pipe.check_prompt(task.prompt)
            except ValueError as error:
                images[task.number] = str(error)
        good = [task for task in batch if task.number not in images]
        images.update(zip((task.number for task in good), self._draw(good), strict=True))
        seconds = (time.perf_counter() - started) / len(batch)
        return [self._encoded(task, images[task.number], seconds) for task in batch]

    def _draw(self, tasks: list[ImageTask]) -> list[DrawnImage | str]:
        if not tasks:
            return []
        try:
            output = self._pipe.generate(
                [task.prompt for task in tasks],
                1,
                tasks[0].drawing,
                seed=[task.seed for task in tasks],
                backend=self._compute.backend,
                launch=self._compute.launch,
                window=self._settings.window,
                max_images=len(tasks),  # whatever memory is free, so that an interrupted run draws the same bits again
            )
            return [image for (image,) in output.drawn]
        except ValueError as error:  # the settings are wrong, and the same for all of them
            return [str(error)] * len(tasks)
        except NonFiniteError as error:
            good = iter(error.drawn)
            numbered = enumerate(task.number for task in tasks)
            return [str(NonFiniteError([n])) if i in error.images else next(good) for i, n in numbered]
        except torch.OutOfMemoryError as error:  # at least one image does not fit, even alone
            reason = str(error)
        if len(tasks) == 1:
            return [reason]
        return [image for task in tasks for image in self._draw([task])]

    def _encoded(self, task: ImageTask, image: DrawnImage | str, seconds: float) -> EncodedImage | str:
        if isinstance(image, str):
            return image
        try:
            content = image.encoded(self._settings.image_format, self._settings.metadata)
        except ValueError as error:
            return str(error)
        png = None
        if task.drawing.contrast is not None:
            buffer = io.BytesIO()
            small_map(image.premature_layers, image.jsd).save(buffer, format="png")
            png = buffer.getvalue()
        numbers = {"log_prob": image.log_probs.sum(), "mean_jsd": image.jsd.mean(), "max_jsd": image.jsd.max()}
        rounded: dict[str, Any] = {name: round(number.item(), 4) for name, number in numbers.items()}
        layers = {str(layer): count for layer, count in counts_of(image.premature_layers).items()}
        return EncodedImage(content, png, rounded | {"layers": layers, "seconds": round(seconds, 4)})
