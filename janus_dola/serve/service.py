"""Holds what a server serves with: options, a model loading in the background, the drawing thread, and images to serve."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from janus_dola.models.checkpoint.hub import public_name
from janus_dola.pipeline import JanusDoLa
from janus_dola.serve.access import is_loopback
from janus_dola.serve.engine_thread import EngineThread
from janus_dola.serve.image_urls import ImageUrls
from janus_dola.serve.metrics import Metrics
from janus_dola.serve.requests import Reader


@dataclass(frozen=True)
class ServerOptions:
    """How a server listens, whom it answers, and how it draws."""

    model: str  # as `JanusDoLa.from_pretrained` takes it
    host: str = "127.0.0.1"
    port: int = 8000  # 0 takes any free port
    grace: int = 60  # seconds that requests have to finish in after SIGTERM
    keys: tuple[bytes, ...] = ()  # digests of the keys that clients may send, see `access.digest`; none: anybody
    allow_host: Sequence[str] = ()  # names for this server that are answered without a key, beside loopback and `host`
    allow_origin: Sequence[str] = ()  # pages elsewhere that may send requests (CORS)
    slots: int | None = None  # images drawn at once, at most; None is as many as fit
    max_waiting: int = 512  # images
    max_connections: int = 2048  # open at once
    backend: str = "auto"
    launch: str = "auto"
    urls: bool = True  # whether clients may ask for images by URL
    names: Sequence[str] = ()  # what clients may call the model, see `served_names`
    root_path: str = ""  # where a proxy serves this server, such as "/janus"
    forwarded_allow_ips: str = ""  # proxies whose X-Forwarded headers count, as uvicorn reads them

    @property
    def served_names(self) -> Sequence[str]:
        """Returns what clients may call the model, first what they are shown: never the path of a folder."""
        return self.names or (public_name(self.model),)

    def known_hosts(self) -> Sequence[str]:
        """Returns the names that clients without a key must know the server by; empty is any."""
        return (self.host, *self.allow_host) if self.allow_host or is_loopback(self.host) else ()


class Service:
    """Loads a model in a thread, then reads requests and draws with it.

    If it cannot be loaded, `failure` says why, and `on_failure` is called in that thread.
    """

    def __init__(
        self, options: ServerOptions, load: Callable[[], JanusDoLa], on_failure: Callable[[], object] = lambda: None
    ) -> None:
        self.options, self.metrics, self.image_urls = options, Metrics(), ImageUrls()
        self.metrics.model.info({"name": options.served_names[0]})
        self.failure: Exception | None = None
        self._ready: tuple[Reader, EngineThread] | None = None
        self._load, self._on_failure = load, on_failure
        self._lock, self._closed = threading.Lock(), False  # the lock guards that nothing gets ready after closing
        self._thread = threading.Thread(target=self._get_ready, name="loading", daemon=True)

    def start(self) -> None:
        """Starts to load the model."""
        self._thread.start()

    def ready(self) -> tuple[Reader, EngineThread] | None:
        """Returns what reads requests and what draws them, or None while the model loads."""
        return self._ready

    def close(self) -> None:
        """Stops drawing; does not wait for a model that still loads."""
        with self._lock:
            self._closed = True
        if self._ready is not None:
            self._ready[1].close()

    def _get_ready(self) -> None:
        options = self.options
        try:
            reader = Reader(self._load(), options.served_names)
            with self._lock:
                if self._closed:
                    return
                engine = EngineThread(
                    reader.pipe.engine, options.slots, reader.longest, options.max_waiting, self.metrics,
                    options.backend, options.launch,
                )  # fmt: skip
                self._ready = reader, engine
        except Exception as error:  # any error goes to whoever started the server
            self.failure = error
            self._on_failure()
