"""Counts what a server does, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)


class Metrics:
    """Counts for one server, apart from other servers in the process."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("janus_requests", "Requests for images, by status.", ["status"], registry=registry)
        self.model = Info("janus_model", "The model, by the name that clients are shown.", registry=registry)
        self.images = Counter("janus_images", "Images drawn.", registry=registry)
        self.failures = Counter("janus_failures", "Images that could not be drawn.", registry=registry)
        self.codes = Counter(
            "janus_codes", "Codes in the images drawn; divided by janus_passes: codes per pass.", registry=registry
        )
        self.passes = Counter("janus_passes", "Model passes.", registry=registry)
        self.waiting = Gauge("janus_queue_length", "Images that wait.", registry=registry)
        self.slots = Gauge("janus_slots_in_use", "Images that are being drawn.", registry=registry)
        self.seconds = Histogram(
            "janus_image_seconds", "Time from the request to the image.", buckets=_SECONDS, registry=registry
        )

    def text(self) -> bytes:
        """Returns the counts in Prometheus' format."""
        return generate_latest(self._registry)


class RequestCounter:
    """Counts the answers on one path by status; 499 is a client that went away before its answer."""

    def __init__(self, app: ASGIApp, path: str, metrics: Metrics) -> None:
        self._app, self._path, self._metrics = app, path, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through, and notes its status."""
        if scope["type"] != "http" or scope["path"] != self._path:
            await self._app(scope, receive, send)
            return
        status = 499

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            self._metrics.requests.labels(str(status)).inc()
