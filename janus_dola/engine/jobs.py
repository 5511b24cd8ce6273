"""Images to draw, in a queue that keeps each until it is out."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from janus_dola.kernels.types import SamplingParams
from janus_dola.models.model import PromptRows


@dataclass(frozen=True, eq=False)
class Job:
    """One image to draw."""

    index: int  # counts the images over all prompts; no two jobs of a decoder share it
    prompt: int  # index of its prompt
    k: int  # which of the prompt's images
    prompt_rows: PromptRows
    seed: int
    params: SamplingParams
    words: str = ""  # the prompt, for the recipe

    @property
    def rows(self) -> Sequence[list[int]]:
        """Returns the token ids of the rows that are fed: `SamplingParams.rows` of them, the conditional one first."""
        return self.prompt_rows[: self.params.rows]


class JobQueue:
    """Jobs in order, read as they are needed. An error in reading one is raised once the jobs before it are done.

    A job is kept until its image is out, so that it can be put back and drawn again.
    """

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._unread = iter(jobs)
        self._waiting = deque[Job]()
        self._begun = deque[Job]()  # their images are not out yet
        self._error: ValueError | None = None
        self.together = 0  # jobs that `take_together` took last
        self.out = 0  # images

    def peek(self) -> Job | None:
        """Returns the next job, or None if there is none, or only an error."""
        if not self._waiting and self._error is None:
            try:
                self._waiting.extend(itertools.islice(self._unread, 1))
            except ValueError as error:
                self._error = error
        return self._waiting[0] if self._waiting else None

    def take_if(self, fits: Callable[[Job], bool]) -> Job | None:
        """Takes the next job, if there is one and it fits."""
        job = self.peek()
        if job is None or not fits(job):
            return None
        self._begun.append(self._waiting.popleft())
        return job

    def take_together(self, limit: Callable[[int], int]) -> list[Job]:
        """Takes jobs while they fit together, at least one: `limit(n)` images fit if the longest prompt has n tokens."""
        jobs: list[Job] = []
        while job := self.take_if(lambda job: not jobs or len(jobs) < limit(longest_of((*jobs, job)))):
            jobs.append(job)
        self.together = len(jobs)
        return jobs

    def let_go(self) -> None:
        """Drops the oldest job that was taken: its image is out."""
        self._begun.popleft()
        self.out += 1

    def put_back(self) -> None:
        """Puts the jobs whose images are not out before those that wait."""
        self._waiting.extendleft(reversed(self._begun))
        self._begun.clear()

    def raise_error(self) -> None:
        """Raises the error that reading the next job raised, if it did."""
        if self._error is not None:
            raise self._error


def longest_of(jobs: Iterable[Job]) -> int:
    """Counts the tokens in the longest row that the jobs' prompts have."""
    return max(len(row) for job in jobs for row in job.rows)
