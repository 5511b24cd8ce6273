"""The loop that takes images through the slots of a decoder."""

from collections.abc import Iterator

from tqdm.auto import tqdm

from janus_dola.engine.capacity import positions
from janus_dola.engine.decoder import Decoder, visible_length
from janus_dola.engine.devices import undisturbed
from janus_dola.engine.jobs import Job, JobQueue, longest_of
from janus_dola.engine.readback import Readback
from janus_dola.engine.slots import Codes


class SlotRunner:
    """Images going through the slots of one decoder: `jobs` says what each slot draws; None in its place gives it up."""

    def __init__(self, decoder: Decoder, bar: tqdm) -> None:
        self.decoder, self._bar = decoder, bar
        self._window, self._length = decoder.plan.window, decoder.image_model.raster.length
        self.jobs: list[Job | None] = [None] * len(decoder.slots.seeds)
        # Of each slot: positions that are decided for certain, and at the most.
        self.least, self._most = [0] * len(self.jobs), [0] * len(self.jobs)
        self._passes = 0
        self._readback = Readback(decoder.image_model.device)

    def run(self, first: list[Job], queue: JobQueue) -> Iterator[tuple[Job, Codes]]:
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
        room = self.decoder.capacity >= positions(self.decoder.image_model, longest_of([job]), self._window)
        return room and self.decoder.plan.sampler != "multinomial"

    def admit(self, slots: list[int], jobs: list[Job]) -> None:
        """Images begin in these slots, which are free."""
        with undisturbed(self.decoder.image_model.device):
            sampling = [job.params or self.decoder.plan.params for job in jobs]
            self.decoder.admit(slots, [job.rows for job in jobs], [job.seed for job in jobs], sampling)
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
        with undisturbed(self.decoder.image_model.device):
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
