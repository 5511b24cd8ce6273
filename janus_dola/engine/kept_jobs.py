"""Images that are to be drawn, kept until they are."""

from collections import deque
from collections.abc import Iterable, Iterator

from janus_dola.engine.jobs import Job


class KeptJobs:
    """Jobs, kept until their images are out, so that they can be drawn again; `drawn` counts those."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._jobs, self._taken = iter(jobs), deque[Job]()
        self._error: ValueError | None = None  # that reading the next one raised
        self._let_go = self.drawn = 0

    def begun(self) -> list[Job]:
        """The jobs taken whose images are not out yet."""
        while self._let_go < self.drawn:
            self._taken.popleft()
            self._let_go += 1
        return list(self._taken)

    def to_draw(self) -> Iterator[Job]:
        """The jobs from the first whose image is not out yet."""
        yield from self.begun()
        while self._error is None:
            try:
                job = next(self._jobs)
            except StopIteration:
                return
            except ValueError as error:
                self._error = error
                break
            self.begun()
            self._taken.append(job)
            yield job
        assert self._error is not None
        raise self._error
