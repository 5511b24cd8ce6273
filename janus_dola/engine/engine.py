"""The engine: takes images through slots, keeps decoders for calls like theirs, and knows how many images fit."""

import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import torch
from tqdm.auto import tqdm

from janus_dola.arguments import Window
from janus_dola.engine.capacity import bucket_of, images_that_fit, positions, window_of
from janus_dola.engine.decoder import Decoder, DecoderKey
from janus_dola.engine.decoder_cache import DecoderCache
from janus_dola.engine.devices import give_back_memory, has_graphs
from janus_dola.engine.jobs import Job, JobQueue, longest_of
from janus_dola.engine.plan import Plan
from janus_dola.engine.progress import Progress
from janus_dola.engine.slot_runner import SlotRunner
from janus_dola.engine.slots import Codes
from janus_dola.kernels.block import CANNOT_RUN
from janus_dola.kernels.types import SamplingParams
from janus_dola.models.contexts import undisturbed
from janus_dola.models.model import ImageModel
from janus_dola.models.weights import WeightReader


class Engine:
    """Draws images with one model, for as many threads as call it.

    It keeps decoders with their graphs for calls like theirs. Where a pass cannot be compiled or captured it warns once, and
    runs passes like it eagerly, until `release`; with such warnings as errors, every call that meets one raises.
    """

    def __init__(self, image_model: ImageModel) -> None:
        self.image_model = image_model
        self.weights = WeightReader(image_model)
        self._lock = threading.Lock()  # guards all below
        self._kept: DecoderCache | None = None  # nobody draws with it
        self._failed: set[tuple[Plan, torch.dtype]] = set()  # could not be compiled or captured
        self._limit: int | None = None  # images at once, since memory ran out; until `release`

    def draw(
        self,
        queue: JobQueue,
        plan: Plan,
        window: Window = "auto",
        max_images: int | None = None,
        bar: tqdm | None = None,
        generator: torch.Generator | None = None,
        slots: int = 1,
    ) -> Iterator[tuple[Job, Codes]]:
        """Draws images in `slots` slots or more, and yields each when it is done; its codes are on the device.

        An error in reading a job waits in the queue (`JobQueue.raise_error`); what `bar` raises ends drawing. The sampler
        "multinomial" draws all images together, by the generator; None is torch's global one.
        """
        together = plan.sampler == "multinomial"

        def limit(longest: int) -> int:
            return sys.maxsize if together else self.fit(longest, max_images, plan.rows)

        while (following := queue.peek()) is not None:
            first = queue.take_together(cache(limit))  # asks for free memory once, not for each image
            # torch.multinomial draws other numbers for a larger batch.
            exact = together or not has_graphs(self.image_model.device)
            count = max(len(first), slots)
            count = count if exact else bucket_of(count)
            with self.runner(plan, count, longest_of(first), following.params, window, bar, generator) as runner:
                yield from runner.run(first, queue)
            del runner  # its decoder's memory is free for the next one

    @contextmanager
    def runner(
        self,
        plan: Plan,
        slots: int,
        longest: int,
        params: SamplingParams,
        window: Window = "auto",
        bar: tqdm | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[SlotRunner]:
        """Yields a runner with free slots; then keeps its decoder for calls like it, if graphs make that worth while.

        `longest` is the longest prompt's number of tokens, `params` are any with the plan's kind, `window` takes the place
        of the plan's; "auto" is the fastest for so many slots.
        """
        with undisturbed(self.image_model.device):
            plan = replace(plan, window=window_of(plan.rows * slots, self.image_model) if window == "auto" else window)
            decoders, decoder = self._decoder(plan, slots, longest, params, generator)
        try:
            yield SlotRunner(decoder, Progress() if bar is None else bar)
        finally:
            decoder.rest()
            if has_graphs(self.image_model.device):
                with self._lock:
                    self._kept = decoders

    def _decoder(
        self, plan: Plan, slots: int, longest: int, params: SamplingParams, generator: torch.Generator | None
    ) -> tuple[DecoderCache, Decoder]:
        """Returns a decoder, and those that it shares memory with: the ones that are kept, if there is room for it."""
        with self._lock:
            tried = plan, self.image_model.dtype
            if tried in self._failed:
                plan = plan.simplest
            key = DecoderKey(plan, slots, positions(self.image_model, longest, plan.window), generator)
            decoders, self._kept = self._kept, None
            weights = self.weights.read()
            if decoders is None or not decoders.has_room(weights, key):
                decoders = None  # their memory is free for the new ones
                decoders = DecoderCache(self.image_model, weights, key)
            try:
                return decoders, decoders.get(key, params)
            except CANNOT_RUN as error:
                if plan.launch == "eager" or isinstance(error, torch.OutOfMemoryError):
                    raise
                message = f"launch {plan.launch!r} failed, and passes run eagerly on tensors instead: {error}"
                warnings.warn(message, stacklevel=2)
                self._failed.add(tried)
            return decoders, decoders.get(replace(key, plan=plan.simplest), params)

    def fit(self, longest: int, max_images: int | None = None, rows: int = 2) -> int:
        """Returns how many images to draw at once, None being as many as fit into memory; fewer since memory ran out."""
        most = max_images or images_that_fit(self.image_model, longest, rows, self.kept_bytes)
        return most if self._limit is None else min(most, self._limit)

    def halve(self, images: int, all_together: bool = False) -> None:
        """Releases memory after it ran out with so many images at once: until `release`, at most half as many fit.

        Where fewer are not possible, as with `all_together`, an OutOfMemoryError says in one line what to do.
        """
        with self._lock:
            self._kept = None
        give_back_memory(self.image_model.device)
        if images == 1 or all_together:
            fewer = "draw fewer at once (a smaller parallel_size), or " if images > 1 else ""
            raise torch.OutOfMemoryError(
                f"out of memory with {images} image(s) at once: {fewer}free memory that others use, take a smaller model "
                'or dtype, or quantize="int8"'
            )
        half = (images + 1) // 2
        with self._lock:
            self._limit = half if self._limit is None else min(self._limit, half)

    def release(self) -> None:
        """Gives back the memory that is kept for later calls, and forgets that memory ran out or a capture failed before."""
        with self._lock:
            self._kept, self._limit = None, None
            self._failed.clear()

    @property
    def kept_bytes(self) -> int:
        """Returns the bytes kept for keys and values, which later calls use, or get back where they need more."""
        kept = self._kept
        return 0 if kept is None else kept.nbytes
