"""Draws images: makes a decoder ready, gives it images as slots get free, and hands out those that are done."""

import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from tqdm.auto import tqdm

from janus_dola.checks import Window
from janus_dola.devices import has_graphs, undisturbed
from janus_dola.engine.decode import Decoder, visible_length
from janus_dola.engine.plan import Plan
from janus_dola.engine.readback import Readback
from janus_dola.engine.schedule import Job, Queue, bucket_of, longest_of, positions, window_of
from janus_dola.engine.slots import Codes
from janus_dola.kernels.blocks import CANNOT_RUN
from janus_dola.models.parts import JanusParts
from janus_dola.models.weights import WeightReader


class Engine:
    """Draws images with one model, for any number of threads; keeps a decoder with its graphs for the next call like it."""

    def __init__(self, parts: JanusParts) -> None:
        self._parts = parts
        self.weights = WeightReader(parts)
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
        queue = Queue(jobs)
        while queue.peek() is not None:
            first = queue.take_together(limit)
            # torch.multinomial draws other numbers for a larger batch.
            exact = plan.sampler == "multinomial" or not has_graphs(self._parts.device)
            slots = len(first) if exact else bucket_of(len(first))
            wide = replace(plan, window=window_of(slots, self._parts) if window == "auto" else window)
            decoder = self.take(wide, slots, longest_of(first), generator, strict)
            try:
                yield from Drawing(decoder, bar).run(first, queue)
            finally:
                self.give_back(decoder)
        queue.raise_error()

    def take(
        self, plan: Plan, slots: int, longest: int, generator: torch.Generator | None = None, strict: bool = False
    ) -> Decoder:
        """A decoder for so many slots and prompts of so many tokens: the one that is kept, or a new one."""
        with self._lock, undisturbed(self._parts.device):
            if plan.engine in self._failed and not strict:
                plan = plan.simplest
            kept, self._kept = self._kept, None
            needs = plan, slots, positions(self._parts, longest, plan.window), generator
            weights = self.weights.read()
            if kept is not None and kept.serves(weights, *needs):
                kept.plan, kept.strict = plan, strict  # the plan may have another decoding
                return kept
            del kept  # its memory is free for the new one
            try:
                decoder = Decoder(self._parts, weights, *needs)
                decoder.try_out()
                decoder.strict = strict
                return decoder
            except CANNOT_RUN as error:
                if strict or plan.engine == "eager" or isinstance(error, torch.OutOfMemoryError):
                    raise
                self._failed.add(plan.engine)
                told = f"engine {plan.engine!r} failed, and passes run eagerly on tensors instead: {error}"
                warnings.warn(told, stacklevel=2)
            return Decoder(self._parts, weights, plan.simplest, *needs[1:])

    def give_back(self, decoder: Decoder) -> None:
        """Keeps a decoder for the next call, if graphs make that worth while."""
        decoder.prompts.clear()
        if has_graphs(self._parts.device):
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


class Drawing:
    """Images going through the slots of one decoder: `jobs` says what each slot draws; None in its place gives it up."""

    def __init__(self, decoder: Decoder, bar: tqdm) -> None:
        self.decoder, self._bar = decoder, bar
        self._window, self._length = decoder.plan.window, decoder.parts.raster.length
        self.jobs: list[Job | None] = [None] * len(decoder.slots.seeds)
        # Of each slot: positions that are decided for certain, and at the most.
        self.least, self._most = [0] * len(self.jobs), [0] * len(self.jobs)
        self._passes = 0
        self._readback = Readback(decoder.parts.device)

    def run(self, first: list[Job], queue: Queue) -> Iterator[tuple[Job, Codes]]:
        """Draws the first jobs, and all further ones that fit into the positions there are."""
        if self.decoder.plan.sampler == "multinomial":
            self.admit(list(range(len(first))), first)  # together, as upstream loops draw
        else:
            for slot, new in enumerate(first):
                self.admit([slot], [new])
        while any(self.jobs):
            for slot, job in self.advance():
                codes = self.decoder.slots.codes(slot)
                following = queue.take_if(self._fits)
                if following is not None:
                    self.admit([slot], [following])
                yield job, codes

    def _fits(self, job: Job) -> bool:
        room = self.decoder.capacity >= positions(self.decoder.parts, longest_of([job]), self._window)
        return room and self.decoder.plan.sampler != "multinomial"

    def admit(self, slots: list[int], jobs: list[Job]) -> None:
        """Images begin in these slots, which are free."""
        with undisturbed(self.decoder.parts.device):
            decodings = [job.decoding or self.decoder.plan.decoding for job in jobs]
            self.decoder.admit(slots, [job.rows for job in jobs], [job.seed for job in jobs], decodings)
        for slot, job in zip(slots, jobs, strict=True):
            self.jobs[slot], self.least[slot], self._most[slot] = job, 1, 1
        self._bar.total += len(jobs) * self._length
        self._bar.update(len(jobs))

    def advance(self) -> list[tuple[int, Job]]:
        """Runs a pass, and tells which slots are free after it: their images are done, and lie there till others begin."""
        self._pass()
        done = [(i, job) for i, job in enumerate(self.jobs) if job and self.least[i] >= self._length]
        for slot, _ in done:
            self.jobs[slot] = None
        return done

    def _pass(self) -> None:
        written = max(longest_of([job]) + most for job, most in zip(self.jobs, self._most, strict=True) if job)
        with undisturbed(self.decoder.parts.device):
            self.decoder.run(visible_length(written - 1 + self._window))
        self._passes += 1
        self._most = [min(most + self._window, self._length) for most in self._most]
        if self._window == 1:  # nothing to be told
            self._told(self._passes, self.jobs, self._most)
        else:
            self._readback.push((self._passes, list(self.jobs)), self.decoder.slots.decided)
            for (passes, jobs), decided in self._readback.arrived():
                self._told(passes, jobs, decided)

    def _told(self, passes: int, jobs: list[Job | None], decided: list[int]) -> None:
        """So many codes of these jobs were decided after so many passes."""
        later = (self._passes - passes) * self._window
        for slot, (job, count) in enumerate(zip(jobs, decided, strict=True)):
            if job is not None and job is self.jobs[slot]:
                self._bar.update(count - self.least[slot])
                self.least[slot], self._most[slot] = count, min(count + later, self._length)
