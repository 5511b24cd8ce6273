"""Draws on Ray actors: one for each GPU of a machine or a cluster, or several on CPUs.

A dead, frozen or faulty worker is replaced in one way: a new actor takes its place, and its batch goes to whoever is free.
Ray's own restarts would bind the batch to the actor, which waits for ever when its machine is gone.
"""

import os
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Any

from janus_dola.batch.run_settings import RunSettings
from janus_dola.batch.worker import Batch, BatchWorker, Results, WorkersLostError
from janus_dola.compute import Compute, connected, plan_workers

_SECONDS_BETWEEN_CALLS = 10.0  # for a sign of life
# How often a call may be seen unanswered before its worker is given up. Looks are counted and no clock is read, so that a
# machine that was paused or is too busy to look is too busy to give up.
_PATIENCE = 12
_PATIENCE_WITH_LOADING = 90  # before the model is there
_ATTEMPTS = 3  # times a batch is tried when workers die over it
_LOSSES = 10  # workers lost in a row, without a batch drawn in between


class _Actor:
    """Lives in a process of its own, maybe on another machine."""

    def load(self, settings: RunSettings, compute: Compute) -> tuple[str, int, str]:
        """Loads the model; returns its dtype, how many images fit, and where it is."""
        self._worker = BatchWorker.load(settings, compute)
        return self._worker.dtype, self._worker.batch_size, f"pid {os.getpid()} on {socket.gethostname()}"

    def draw(self, batch: Batch) -> Results:
        """Draws a batch, see `BatchWorker.draw`."""
        return self._worker.draw(batch)

    def is_there(self) -> bool:
        """Gives a sign of life, in a thread of its own, while the model is loaded or draws."""
        return True


@dataclass(eq=False)
class _Member:
    """An actor and what it is at."""

    actor: Any
    task: Any  # ObjectRef of its load, then of its batch; None when it is free
    batch: Batch | None = None  # what it draws
    where: str = ""  # empty until its model is there
    call: Any = None  # ObjectRef of is_there
    unanswered: int = 0  # times that the call was seen without an answer


class RayPool(AbstractContextManager["RayPool"]):
    """Ray actors, each of which is given a batch when it is free; `log` is given a line when one is ready or lost.

    Without Ray it raises an ImportError, without an answer at the address a ConnectionError, for a cluster that is too small
    a ValueError; and the errors of `BatchWorker.load`.
    """

    def __init__(self, settings: RunSettings, compute: Compute, log: Callable[[str], None]) -> None:
        try:
            import ray
        except ImportError:
            raise ImportError("workers and ray_address need Ray: pip install 'janus-dola[ray]'") from None
        self._ray, self._settings, self._compute, self._log = ray, settings, compute, log
        self.dtype, self.batch_size = "", 0
        self._retry: deque[Batch] = deque()
        self._deaths: Counter[int] = Counter()  # of workers over a batch, by the number of its first image
        self._losses, self._called = 0, time.monotonic()
        self._members: list[_Member] = []
        self._connection = ExitStack()
        self._connection.enter_context(connected(ray, compute.ray_address))
        try:
            resources, count = plan_workers(ray.cluster_resources(), compute)
            self._actor = ray.remote(**resources, concurrency_groups={"life": 1})(_Actor)
            self._members = [self._member() for _ in range(count)]
            while not self.dtype:
                self._results()
            self._settings = replace(settings, dtype=self.dtype)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *exception: object) -> None:
        for member in self._members:
            self._ray.kill(member.actor)
        self._connection.close()

    def run(self, batches: Iterator[Batch]) -> Iterator[tuple[Batch, Results]]:
        """Draws the batches as `BatchWorker.run` does; they come as they are done, not in order."""
        done: list[tuple[Batch, Results]] = []
        while True:
            more = self._hand_out(batches)  # before the images are written, so that no worker waits for the disk
            yield from done
            if not more and not self._retry and all(member.batch is None for member in self._members):
                return
            done = self._results()

    def _member(self) -> _Member:
        actor = self._actor.remote()
        return _Member(actor, actor.load.remote(self._settings, self._compute))

    def _hand_out(self, batches: Iterator[Batch]) -> bool:
        """Gives every free member a batch; returns False once there is none."""
        for member in self._members:
            if member.task is None:
                member.batch = self._retry.popleft() if self._retry else next(batches, None)
                if member.batch is None:
                    return False
                member.task = member.actor.draw.remote(member.batch)
        return True

    def _results(self) -> list[tuple[Batch, Results]]:
        """Waits until a worker has loaded its model, drawn its batch or failed; returns the batches that are done."""
        busy = {member.task: member for member in self._members if member.task is not None}
        ready: list[Any] = []
        while not ready:
            ready, _ = self._ray.wait(list(busy), num_returns=1, timeout=_SECONDS_BETWEEN_CALLS)
            silent = self._silent(busy.values())
            if silent is not None:
                return self._replace(silent, f"no sign of life for {silent.unanswered * _SECONDS_BETWEEN_CALLS:.0f} s")
        member = busy[ready[0]]
        try:
            answer = self._ray.get(ready[0])
        except self._ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, ValueError | OSError):  # the settings or the model are at fault, so for every worker
                raise cause from None
            cause = cause or error
            return self._replace(member, str(cause).strip() or type(cause).__name__)
        member.task, batch, member.batch = None, member.batch, None
        if batch is None:
            dtype, fits, member.where = answer
            member.unanswered = 0
            self.dtype, self.batch_size = self.dtype or dtype, min(self.batch_size or fits, fits)
            self._log(f"worker ready: {member.where}")
            return []
        self._losses = 0
        return [(batch, answer)]

    def _silent(self, members: Iterable[_Member]) -> _Member | None:
        """Calls busy members now and then, and returns one that has left its call unanswered for too long."""
        now = time.monotonic()
        if now - self._called < _SECONDS_BETWEEN_CALLS:
            return None
        self._called = now
        for member in members:
            if member.call is None or self._ray.wait([member.call], timeout=0)[0]:
                member.call = member.actor.is_there.options(concurrency_group="life").remote()
                member.unanswered = 0
                continue
            member.unanswered += 1
            if member.unanswered >= (_PATIENCE if member.where else _PATIENCE_WITH_LOADING):
                return member
        return None

    def _replace(self, member: _Member, reason: str) -> list[tuple[Batch, Results]]:
        """Puts a new worker in a member's place; its batch goes to whoever is free, or fails after some attempts."""
        reason = reason.splitlines()[0]
        self._log(f"worker lost: {member.where or 'a new worker'}: {reason}")
        self._ray.kill(member.actor)  # it may live, out of reach
        self._losses += 1
        if self._losses > _LOSSES:
            raise WorkersLostError(f"{_LOSSES} workers in a row died without drawing an image; the last: {reason}")
        self._members[self._members.index(member)] = self._member()
        if (batch := member.batch) is not None:
            self._deaths[batch[0].number] += 1
            if self._deaths[batch[0].number] == _ATTEMPTS:
                failure = f"{_ATTEMPTS} workers died over the batch with this image; the last: {reason}"
                return [(batch, [failure] * len(batch))]
            self._retry.append(batch)
        return []
