"""Draws images: makes a decoder ready, gives it images as slots get free, and hands out those that are done."""

import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from tqdm.auto import tqdm

from janus_dola.arguments import Window
from janus_dola.engine.capacity import bucket_of, positions, window_of
from janus_dola.engine.decoder import Decoder
from janus_dola.engine.devices import has_graphs, undisturbed
from janus_dola.engine.jobs import Job, JobQueue, longest_of
from janus_dola.engine.plan import Plan
from janus_dola.engine.runner import SlotRunner
from janus_dola.engine.slots import Codes
from janus_dola.kernels.block import CANNOT_RUN
from janus_dola.models.model import ImageModel
from janus_dola.models.weights import WeightReader


class Engine:
    """Draws images with one model, for any number of threads; keeps a decoder with its graphs for the next call like it."""

    def __init__(self, image_model: ImageModel) -> None:
        self._image_model = image_model
        self.weights = WeightReader(image_model)
        self._lock = threading.Lock()  # of all below
        self._kept: Decoder | None = None
        self._failed: set[str] = set()  # engines that could not be had

    def draw(
        self,
        jobs: Iterator[Job],
        plan: Plan,
        window: Window,
        limit: Callable[[int], int],
        bar: tqdm,
        generator: torch.Generator | None = None,
        strict: bool = False,
    ) -> Iterator[tuple[Job, Codes]]:
        """Draws images, and yields each when it is done; its codes are on the device.

        Args:
            jobs: read as they are needed; an error that reading one raises comes after the images before it.
            window: takes the place of the plan's.
            limit: how many images may go together when the longest prompt among them has so many tokens.
            bar: is told of codes as they are decided; what it raises ends drawing.
            generator: of the sampler "multinomial"; None is torch's global one.
            strict: a pass that cannot be compiled or captured is an error; otherwise it runs eagerly, after a warning.
        Raises:
            RuntimeError, TypeError, TritonError: with `strict`, the pass cannot be compiled or captured.
        """
        queue = JobQueue(jobs)
        while queue.peek() is not None:
            first = queue.take_together(limit)
            # torch.multinomial draws other numbers for a larger batch.
            exact = plan.sampler == "multinomial" or not has_graphs(self._image_model.device)
            slots = len(first) if exact else bucket_of(len(first))
            wide = replace(plan, window=window_of(slots, self._image_model) if window == "auto" else window)
            decoder = self.take(wide, slots, longest_of(first), generator, strict)
            try:
                yield from SlotRunner(decoder, bar).run(first, queue)
            finally:
                self.give_back(decoder)
        queue.raise_error()

    def take(
        self, plan: Plan, slots: int, longest: int, generator: torch.Generator | None = None, strict: bool = False
    ) -> Decoder:
        """A decoder for so many slots and prompts of so many tokens: the one that is kept, or a new one."""
        with self._lock, undisturbed(self._image_model.device):
            if plan.launch in self._failed and not strict:
                plan = plan.simplest
            kept, self._kept = self._kept, None
            needs = plan, slots, positions(self._image_model, longest, plan.window), generator
            weights = self.weights.read()
            if kept is not None and kept.serves(weights, *needs):
                kept.plan, kept.strict = plan, strict  # the plan may have other params
                return kept
            del kept  # its memory is free for the new one
            try:
                decoder = Decoder(self._image_model, weights, *needs)
                decoder.try_out()
                decoder.strict = strict
                return decoder
            except CANNOT_RUN as error:
                if strict or plan.launch == "eager" or isinstance(error, torch.OutOfMemoryError):
                    raise
                self._failed.add(plan.launch)
                told = f"launch {plan.launch!r} failed, and passes run eagerly on tensors instead: {error}"
                warnings.warn(told, stacklevel=2)
            return Decoder(self._image_model, weights, plan.simplest, *needs[1:])

    def give_back(self, decoder: Decoder) -> None:
        """Keeps a decoder for the next call, if graphs make that worth while."""
        decoder.prompts.clear()
        if has_graphs(self._image_model.device):
            with self._lock:
                self._kept = decoder

    def release(self) -> None:
        """Gives back the memory of what is kept for the next call."""
        with self._lock:
            self._kept = None

    @property
    def kept_bytes(self) -> int:
        """Memory that is kept for the next call, and given back when that is of another kind."""
        kept = self._kept
        return 0 if kept is None else kept.keys_values.nbytes
