"""Images to draw, in a queue."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from janus_dola.kernels.types import SamplingParams
from janus_dola.models.model import PromptRows


@dataclass(frozen=True)
class Job:
    """One image to draw."""

    index: int  # over all prompts
    prompt: int  # index of its prompt
    k: int  # which of the prompt's images
    rows: PromptRows
    seed: int
    params: SamplingParams | None = None  # the plan's
    words: str = ""  # of the prompt, for its recipe


class JobQueue:
    """Jobs in order, read as they are needed. An error that reading one raises comes once the jobs before it are done."""

    def __init__(self, jobs: Iterator[Job]) -> None:
        self._jobs = jobs
        self._next: Job | None = None
        self._error: ValueError | None = None

    def peek(self) -> Job | None:
        """The next job; None where there is none, or only an error."""
        if self._next is None and self._error is None:
            try:
                self._next = next(self._jobs, None)
            except ValueError as error:
                self._error = error
        return self._next

    def take_if(self, fits: Callable[[Job], bool]) -> Job | None:
        """The next job, if there is one and it fits."""
        job = self.peek()
        if job is None or not fits(job):
            return None
        self._next = None
        return job

    def take_together(self, limit: Callable[[int], int]) -> list[Job]:
        """The next jobs, as many as may go together when the longest prompt among them has so many tokens; at least one."""
        jobs: list[Job] = []
        while job := self.take_if(lambda job: not jobs or len(jobs) < limit(longest_of((*jobs, job)))):
            jobs.append(job)
        return jobs

    def raise_error(self) -> None:
        """Raises what reading the next job raised, if it did."""
        if self._error is not None:
            raise self._error


def longest_of(jobs: Iterable[Job]) -> int:
    """Tokens of the longest row of a prompt."""
    return max(len(row) for job in jobs for row in job.rows)
