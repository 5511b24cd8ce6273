"""Ray actors that draw: one for each GPU of a machine or a cluster, or several on CPUs; and how Ray is reached.

Where another server answers at an address, Ray itself would try for many minutes: it is asked first.
"""

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from janus_dola.batch.settings import RunSettings
from janus_dola.batch.worker import Batch, Compute, Drawn, Failed, Results, Worker, WorkersLostError
from janus_dola.pipeline import JanusDoLa

_SECONDS_TO_CONNECT = 5.0  # to connect, and until the answer is there
# Ray is built on gRPC, and that on HTTP/2: frames of a head (length, kind, flags, stream) and content.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEAD = 9
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_OF_STREAM, _END_OF_HEADERS = 1, 4
_EMPTY_MESSAGE = bytes(5)
_METHOD = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_METHOD_OF_CLIENTS = "/ray.rpc.RayletDriver/ClusterInfo"  # where addresses begin with ray://
_STATUS_200 = b"\x88"  # as HPACK has it
_UNIMPLEMENTED = b"\x0212"  # the text of a grpc-status behind its length


def connect(ray: Any, ray_address: str | None) -> bool:
    """Connects to a cluster, unless the process is already connected to one.

    Args:
        ray: the module, which is imported where it is needed.
        ray_address: "auto", HOST:PORT or ray://HOST:PORT; None begins a cluster on this machine.
    Returns:
        whether it did; else the caller's own connection is used.
    Raises:
        ConnectionError: no server of Ray answers there within seconds.
    """
    told = os.environ.get("RAY_ADDRESS", "") if ray_address == "auto" else ray_address or ""
    if ":" in told:
        knock(told)
    if ray.is_initialized():
        return False
    own: dict[str, Any] = {}
    if ray_address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of our own reports to nobody
        own = {"include_dashboard": False}
    ray.init(address=ray_address or "local", log_to_driver=False, logging_level="error", **own)
    return True


def knock(address: str) -> None:
    """Raises ConnectionError where no server of Ray answers within seconds."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    method = _METHOD_OF_CLIENTS if address.startswith("ray://") else _METHOD
    until = time.monotonic() + _SECONDS_TO_CONNECT
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS_TO_CONNECT) as connection:
            if os.environ.get("RAY_USE_TLS") == "1":  # it would not answer to anything else
                return
            connection.sendall(_GREETING + _frame(_SETTINGS) + _call(method, f"{host}:{port}"))
            if not _knows(connection, until):
                raise ValueError("what answers there is no server of Ray")
    except (OSError, ValueError, OverflowError) as error:
        raise ConnectionError(f"ray_address {address!r} must be of a running Ray cluster, but: {error}") from None


def _knows(connection: socket.socket, until: float) -> bool:
    """Whether the server has the method that was called, whatever it answers."""
    first = True
    while True:
        head = _read(connection, _HEAD, until)
        kind, stream = head[3:4], head[5:]
        if len(head) < _HEAD or (first and kind != bytes([_SETTINGS])):
            return False
        content, first = _read(connection, int.from_bytes(head[:3], "big"), until), False
        if stream == b"\0\0\0\1":
            answered = kind == bytes([_HEADERS]) and _STATUS_200 in content[:4]  # a size of the table may come before
            return answered and _UNIMPLEMENTED not in content


def _read(connection: socket.socket, count: int, until: float) -> bytes:
    """So many bytes, or all there are until the other side closes."""
    found = b""
    while len(found) < count:
        connection.settimeout(max(0.001, until - time.monotonic()))
        piece = connection.recv(count - len(found))
        if not piece:
            break
        found += piece
    return found


def _call(method: str, authority: str) -> bytes:
    """A call of a method without arguments."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": authority,
        "content-type": "application/grpc",
        "te": "trailers",
    }
    encoded = b"".join(b"\0" + _text(name) + _text(value) for name, value in headers.items())
    return _frame(_HEADERS, _END_OF_HEADERS, 1, encoded) + _frame(_DATA, _END_OF_STREAM, 1, _EMPTY_MESSAGE)


def _text(text: str) -> bytes:
    encoded = text.encode("ascii")
    if len(encoded) > 126:  # a longer one would need a length of several bytes
        raise ValueError("the address is too long")
    return bytes([len(encoded)]) + encoded


def _frame(kind: int, flags: int = 0, stream: int = 0, content: bytes = b"") -> bytes:
    return len(content).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + content


_SECONDS_BETWEEN_CALLS = 10.0  # for a sign of life
# How often a call may be found unanswered before its worker is given up. Looks are counted and no clock is read, so that
# a machine that was paused or is too busy to look is too busy to give up.
_PATIENCE = 12
_PATIENCE_WITH_LOADING = 90  # the same before its model is there
_AHEAD = 2  # batches an actor holds: the next one waits where the model is
_ATTEMPTS = 3  # times a batch is submitted out, when workers die over it
_RESTARTS = 10  # of workers in a row, without an image drawn in between


class _Actor:
    """Lives in a process of its own, maybe on another machine."""

    def load(self, settings: RunSettings, compute: Compute) -> tuple[str, int, str]:
        """Loads the model: its dtype, the images that fit, and where it is."""
        pipe = JanusDoLa.from_pretrained(
            settings.model, compute.device, settings.dtype, settings.revision, settings.quantize
        )
        self._worker = Worker(pipe, settings, compute.backend, compute.launch)
        return self._worker.dtype, self._worker.batch_size, f"pid {os.getpid()} on {socket.gethostname()}"

    def draw(self, batch: Batch) -> Results:
        """See `Worker.draw`."""
        return self._worker.draw(batch)

    def is_there(self) -> bool:
        """A sign of life; it is asked for while the model is loaded or draws, in a thread of its own."""
        return True


def plan_workers(resources: Mapping[str, float], compute: Compute) -> tuple[dict[str, int], int]:
    """What each worker needs of a cluster, and how many workers there are: one for each GPU, where there are any.

    Raises:
        ValueError: the cluster is too small, or nothing says how many.
    """
    gpus = int(resources.get("GPU", 0)) if compute.device != "cpu" else 0
    if compute.device == "cuda" and not gpus:
        raise ValueError('device must be "cpu" where the Ray cluster has no GPU, got "cuda"')
    if compute.workers is None and not gpus:
        raise ValueError("workers must be given where the Ray cluster has no GPU, got None")
    room, kind = (gpus, "GPUs") if gpus else (int(resources.get("CPU", 0)), "CPU cores")
    count = compute.workers or gpus
    if count > room:
        raise ValueError(f"workers must be at most the {room} {kind} of the Ray cluster, got {count}")
    return ({"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": 1}), count


@dataclass
class _Submitted:
    """A batch, and how often a worker died over it."""

    batch: Batch
    deaths: int = 0


@dataclass(eq=False)
class _Member:
    """An actor and what it was submitted, oldest first."""

    handle: Any
    loading: Any  # ObjectRef of load; None once it is ready
    where: str = "a new worker"
    queue: "deque[tuple[Any, _Submitted]]" = field(default_factory=deque)
    call: Any = None  # ObjectRef of is_there
    unanswered: int = 0  # how often the call was found without an answer


class RayPool(AbstractContextManager["RayPool"]):
    """Actors of Ray, and batches submitted out to them one by one.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: no cluster answers at the address.
        FileNotFoundError, ValueError: the model cannot be loaded or cannot draw with these settings; or the cluster is too
            small.
    """

    def __init__(self, settings: RunSettings, compute: Compute, log: Callable[[str], None]) -> None:
        try:
            import ray
        except ImportError:
            raise ImportError("workers and ray_address need Ray: pip install 'janus-dola[ray]'") from None
        self._ray, self._settings, self._compute, self._log = ray, settings, compute, log
        self._members: list[_Member] = []
        self._retry: deque[_Submitted] = deque()
        self._restarts = 0
        self._called = time.monotonic()
        self._ours = connect(ray, compute.ray_address)  # else the caller's own cluster is used, and left as it is
        try:
            self._options, count = plan_workers(ray.cluster_resources(), compute)
            self._members = [self._member() for _ in range(count)]
            self.dtype, self.batch_size = "", 0
            self._await_one()
            self._settings = settings.with_dtype(self.dtype)
        except BaseException:
            self.__exit__()
            raise

    def _member(self) -> _Member:
        actor: Any = self._ray.remote(concurrency_groups={"life": 1})(_Actor).options(**self._options).remote()
        return _Member(actor, actor.load.remote(self._settings, self._compute))

    def _await_one(self) -> None:
        """Waits for the first worker whose model is loaded."""
        while not self.dtype:
            self._handle_ready()

    def __exit__(self, *exception: object) -> None:
        for member in self._members:
            self._ray.kill(member.handle)
        if self._ours:
            self._ray.shutdown()

    def run(self, batches: Iterator[Batch]) -> Iterator[tuple[Batch, Results]]:
        """See `Pool`. Batches come as they are done, not in order.

        Raises:
            WorkersLostError: workers die again and again.
        """
        while True:
            self._hand_out(batches)
            if not self._retry and not any(member.queue for member in self._members):
                return
            yield from self._handle_ready()

    def _hand_out(self, batches: Iterator[Batch]) -> None:
        for depth in range(_AHEAD):  # one for each worker before a second for any
            for member in self._members:
                if member.loading is not None or len(member.queue) > depth:
                    continue
                submitted = self._retry.popleft() if self._retry else None
                if submitted is None:
                    batch = next(batches, None)
                    if batch is None:
                        return
                    submitted = _Submitted(batch)
                member.queue.append((member.handle.draw.remote(submitted.batch), submitted))

    def _handle_ready(self) -> list[tuple[Batch, Results]]:
        """Waits until a worker has something, and takes it."""
        waiting = {member.loading or member.queue[0][0]: member for member in self._members if self._busy(member)}
        ready: list[Any] = []
        while not ready:
            ready, _ = self._ray.wait(list(waiting), num_returns=1, timeout=_SECONDS_BETWEEN_CALLS)
            silent = self._silent(waiting.values())
            if silent is not None:
                seconds = round(silent.unanswered * _SECONDS_BETWEEN_CALLS)
                return self._replace(silent, TimeoutError(f"no sign of life for {seconds} s"))
        member = waiting[ready[0]]
        try:
            found = self._ray.get(ready[0])
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ValueError | OSError):  # of the settings or the model, so for every worker
                raise error.cause from None
            return self._replace(member, error.cause)
        except self._ray.exceptions.RayError as error:
            return self._replace(member, error)
        if member.loading is not None:
            dtype, fits, member.where = found
            member.loading, member.unanswered = None, 0
            self.dtype = self.dtype or dtype
            self.batch_size = min(self.batch_size or fits, fits)
            self._log(f"worker ready: {member.where}")
            return []
        self._restarts = 0
        _, submitted = member.queue.popleft()
        return [(submitted.batch, found)]

    def _silent(self, members: Iterable[_Member]) -> _Member | None:
        """Calls all members now and then, and returns one that has left its call unanswered for too long."""
        now = time.monotonic()
        if now - self._called < _SECONDS_BETWEEN_CALLS:
            return None
        self._called = now
        for member in members:
            if member.call is None or self._ray.wait([member.call], timeout=0)[0]:
                member.call = member.handle.is_there.options(concurrency_group="life").remote()
                member.unanswered = 0
                continue
            member.unanswered += 1
            if member.unanswered >= (_PATIENCE if member.loading is None else _PATIENCE_WITH_LOADING):
                return member
        return None

    @staticmethod
    def _busy(member: _Member) -> bool:
        return member.loading is not None or bool(member.queue)

    def _replace(self, member: _Member, error: Exception) -> list[tuple[Batch, Results]]:
        """Puts a new worker in the place of a dead one, whose batches go to whoever is free."""
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        self._log(f"worker lost: {member.where}: {reason}")
        self._ray.kill(member.handle)  # where it was only out of reach
        self._restarts += 1
        if self._restarts > _RESTARTS:
            raise WorkersLostError(f"{_RESTARTS} workers in a row died without drawing an image; the last: {reason}")
        self._members[self._members.index(member)] = self._member()
        given_up: list[tuple[Batch, Results]] = []
        for place, (_, submitted) in enumerate(member.queue):
            submitted.deaths += place == 0  # the others were only waiting
            if submitted.deaths < _ATTEMPTS:
                self._retry.append(submitted)
            else:
                failed: Drawn | Failed = Failed(
                    f"{_ATTEMPTS} workers died over the batch with this image; the last: {reason}"
                )
                given_up.append((submitted.batch, [failed] * len(submitted.batch)))
        return given_up
