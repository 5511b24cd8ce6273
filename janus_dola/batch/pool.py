"""Who draws the batches of a run: this process. `ray_pool` has the same for Ray."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from janus_dola.batch.batches import Batch
from janus_dola.batch.settings import Settings
from janus_dola.batch.worker import Drawn, Failed, Worker
from janus_dola.checks import integer
from janus_dola.pipeline import JanusDoLa
from janus_dola.preflight import check_before_loading

_ADDRESS = re.compile(r"auto|(ray://)?[^\s/]+:[0-9]{1,5}")


class WorkersLostError(RuntimeError):
    """Workers die again and again."""


Results = list[Drawn | Failed]


@dataclass(frozen=True)
class Compute:
    """What a run is drawn on; the images do not depend on it.

    Attributes:
        device: of the model; None is a GPU where there is one.
        backend: of the early-exit stage: "auto", "reference", "torch" or "triton".
        engine: how a step is run: "auto", "graph", "compile" or "eager".
        workers: Ray actors; None is this process alone or, with `ray_address`, one for each GPU there.
        ray_address: of a Ray cluster: "auto", "host:6379" or "ray://host:10001". None with `workers` starts one on this
            machine. A Ray that this process already is connected to is used as it is.
        batch_size: images drawn at once; None is what fits into memory when a folder is begun.
    Raises:
        ValueError: a value is out of range.
    """

    device: str | None = None
    backend: str = "auto"
    engine: str = "auto"
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

    def __init__(self, settings: Settings, compute: Compute, pipe: JanusDoLa | None = None) -> None:
        if pipe is None:
            place = (settings.model, compute.device, settings.dtype, settings.revision, settings.quantize)
            check_before_loading(*place, settings=settings.drawing, backend=compute.backend, engine=compute.engine)
            pipe = JanusDoLa.from_pretrained(*place)
        self._worker = Worker(pipe, settings, compute.backend, compute.engine)
        self.dtype = self._worker.dtype
        self.batch_size = self._worker.batch_size

    def __exit__(self, *exception: object) -> None:
        pass

    def run(self, batches: Iterator[Batch]) -> Iterator[tuple[Batch, Results]]:
        """See `Pool`."""
        for batch in batches:
            yield batch, self._worker.draw(batch)
