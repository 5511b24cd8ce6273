"""What a server serves with: a model that is loaded beside it, its worker, and the files it keeps."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from janus_dola.pipeline import JanusDoLa
from janus_dola.serve.files import Files
from janus_dola.serve.metrics import Metrics
from janus_dola.serve.requests import Reader
from janus_dola.serve.worker import Worker


@dataclass(frozen=True)
class Options:
    """How a server draws.

    Attributes:
        model: its name, as `JanusDoLa.from_pretrained` takes it.
        slots: images drawn at once, at most; None is as many as fit.
        max_waiting: images that may wait.
        backend, launch: as for `JanusDoLa.generate`.
        addresses: whether images can be asked for by `url`.
    """

    model: str
    slots: int | None = None
    max_waiting: int = 256
    backend: str = "auto"
    launch: str = "auto"
    addresses: bool = True


class Service:
    """Loads a model in a thread, and has a reader and a worker for it then.

    Args:
        load: gives the model.
        on_failure: is called, in that thread, where it cannot be had; `failure` says why.
    """

    def __init__(
        self, options: Options, load: Callable[[], JanusDoLa], on_failure: Callable[[], object] = lambda: None
    ) -> None:
        self.options, self.metrics, self.files = options, Metrics(), Files()
        self.failure: Exception | None = None
        self._ready: tuple[Reader, Worker] | None = None
        self._load, self._on_failure = load, on_failure
        self._lock, self._closed = threading.Lock(), False  # guards that nothing becomes ready any more once closed
        self._thread = threading.Thread(target=self._get_ready, name="loading", daemon=True)

    def start(self) -> None:
        """Begins to load."""
        self._thread.start()

    def ready(self) -> tuple[Reader, Worker] | None:
        """What reads requests and what draws; None while the model is being loaded."""
        return self._ready

    def close(self) -> None:
        """Ends drawing, and removes the files; a model that is still being loaded is not waited for."""
        with self._lock:
            self._closed = True
        if self._ready is not None:
            self._ready[1].close()
        self.files.close()

    def _get_ready(self) -> None:
        options = self.options
        try:
            reader = Reader(self._load(), options.model)
            with self._lock:
                if self._closed:
                    return
                worker = Worker(
                    reader.image_model, options.slots, reader.longest, options.max_waiting, self.metrics,
                    options.backend, options.launch,
                )  # fmt: skip
                self._ready = reader, worker
        except Exception as error:  # whatever it is, the one who started the server is told
            self.failure = error
            self._on_failure()
