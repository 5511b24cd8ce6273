"""The loop that takes images through a decoder's slots."""

from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from janus_dola.engine.capacity import positions
from janus_dola.engine.decoder import Decoder, visible_length
from janus_dola.engine.devices import download, end_of_queue
from janus_dola.engine.jobs import Job, JobQueue, longest_of
from janus_dola.engine.slots import Codes
from janus_dola.models.contexts import undisturbed

_AHEAD = 2  # passes by which the host may be ahead: a pass takes far longer than launching it


class SlotRunner:
    """Takes images through one decoder's slots: admits them, runs passes, and hands out images that are done.

    The device knows how many positions are decided in each slot, and the host learns it up to two passes late. Meanwhile the
    host keeps two bounds per slot, `_decided_at_least` <= truth <= `_decided_at_most`: the lower one tells when an image
    is done, the upper one how far the next pass has to look. They are equal if each pass decides one code.
    """

    def __init__(self, decoder: Decoder, bar: tqdm) -> None:
        self.decoder, self._bar = decoder, bar
        self._window, self._length = decoder.plan.window, decoder.image_model.raster.length
        self._slot_of: dict[Job, int] = {}  # the images being drawn
        self._count = len(decoder.slots.seeds)
        self._decided_at_least, self._decided_at_most = [0] * self._count, [0] * self._count
        self._passes = 0
        # Progress on its way to the host, oldest first: passes, images, decided positions by slot (None if known), and when
        # they are there.
        self._arriving: deque[tuple[int, dict[Job, int], Tensor | None, torch.cuda.Event | None]] = deque()

    @property
    def jobs(self) -> list[Job]:
        """Returns the jobs whose images are being drawn."""
        return list(self._slot_of)

    @property
    def free(self) -> list[int]:
        """Returns the slots that images can begin in."""
        taken = set(self._slot_of.values())
        return [slot for slot in range(self._count) if slot not in taken]

    @property
    def visible(self) -> int:
        """Counts the positions that attention looks at in the next pass."""
        written = (longest_of([job]) + self._decided_at_most[slot] for job, slot in self._slot_of.items())
        return visible_length(max(written, default=1) - 1 + self._window)

    def decided(self, job: Job) -> int:
        """Counts the positions that are decided for certain in an image being drawn."""
        return self._decided_at_least[self._slot_of[job]]

    def codes(self, job: Job) -> Codes:
        """Returns the codes in an image being drawn; codes not yet decided are guesses."""
        return self.decoder.slots.codes(self._slot_of[job])

    def cancel(self, job: Job) -> None:
        """Gives up an image being drawn; its slot is free."""
        with undisturbed(self.decoder.image_model.device):
            self.decoder.slots.leave(self._slot_of.pop(job))

    def run(self, first: Sequence[Job], queue: JobQueue) -> Iterator[tuple[Job, Codes]]:
        """Draws the first jobs, then jobs from the queue while they fit into the decoder; yields each when done."""
        if self.decoder.plan.sampler == "multinomial":
            self.admit(first)  # together, as upstream loops draw
        else:
            for job in first:
                self.admit([job])
        while self._slot_of:
            for job, codes in self.advance():
                following = queue.take_if(self._fits)
                if following is not None:
                    self.admit([following])
                yield job, codes

    def _fits(self, job: Job) -> bool:
        decoder, needed = self.decoder, positions(self.decoder.image_model, longest_of([job]), self._window)
        return needed <= decoder.capacity and decoder.plan.sampler != "multinomial"

    def admit(self, jobs: Sequence[Job]) -> None:
        """Begins images, one per free slot; there must be enough free slots."""
        slots = self.free[: len(jobs)]
        with undisturbed(self.decoder.image_model.device):
            self.decoder.admit(slots, jobs)
        for slot, job in zip(slots, jobs, strict=True):
            self._slot_of[job] = slot
            self._decided_at_least[slot] = self._decided_at_most[slot] = 1
        self._bar.total += len(jobs) * self._length
        self._bar.update(len(jobs))

    def advance(self) -> list[tuple[Job, Codes]]:
        """Runs a pass over all slots, and returns the images known to be done; their slots are free."""
        device, known = self.decoder.image_model.device, []
        with undisturbed(device):
            self.decoder.run(self.visible)
            self._passes += 1
            self._decided_at_most = [min(most + self._window, self._length) for most in self._decided_at_most]
            now = self._passes, dict(self._slot_of)
            if self._window == 1:  # known without reading it back
                known.append((*now, self._decided_at_most))
            decided = None if self._window == 1 else download(self.decoder.slots.decided)
            self._arriving.append((*now, decided, end_of_queue(device)))
            known.extend(self._arrived())
        for progress in known:  # the caller's callback is called in the caller's contexts
            self._note_progress(*progress)
        done = [job for job in self._slot_of if self.decided(job) >= self._length]
        if not done:
            return []
        with undisturbed(device):
            codes = [self.codes(job) for job in done]
        for job in done:
            self.cancel(job)
        return list(zip(done, codes, strict=True))

    def _arrived(self) -> Iterator[tuple[int, dict[Job, int], list[int]]]:
        """Yields progress that has arrived; waits only if the host is too far ahead."""
        while self._arriving:
            passes, slot_of, decided, event = self._arriving[0]
            if event is not None and not event.query():
                if len(self._arriving) <= _AHEAD:
                    return
                event.synchronize()
            self._arriving.popleft()
            if decided is not None:
                yield passes, slot_of, decided.tolist()

    def _note_progress(self, passes: int, slot_of: dict[Job, int], decided: list[int]) -> None:
        """Corrects the bounds: in each slot so many positions were decided after so many passes."""
        passes_since = self._passes - passes
        for job, slot in slot_of.items():
            if job in self._slot_of:
                self._bar.update(decided[slot] - self._decided_at_least[slot])
                self._decided_at_least[slot] = decided[slot]
                self._decided_at_most[slot] = min(decided[slot] + passes_since * self._window, self._length)
