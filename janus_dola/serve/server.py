"""A server process: listens, answers, and ends when it is told to."""

import signal
import socket
from collections.abc import Callable, Sequence

import uvicorn

from janus_dola.cli.terminal import complain
from janus_dola.pipeline import JanusDoLa
from janus_dola.serve.app import make_app
from janus_dola.serve.service import Options, Service


def run_server(
    options: Options,
    load: Callable[[], JanusDoLa],
    host: str,
    port: int,
    grace: int,
    api_key: str | None = None,
    allow_origin: Sequence[str] = (),
) -> None:
    """Serves until SIGTERM: then requests that were taken are finished, and no others are.

    Args:
        load: gives the model, while the server is already up.
        port: 0 is any that is free; the line that is printed says which.
        grace: seconds for what is being drawn.
        api_key, allow_origin: as for `make_app`.
    Raises:
        OSError: the address cannot be listened at.
        Exception: what `load` raised.
    """
    server: uvicorn.Server

    def stop() -> None:
        server.should_exit = True

    service = Service(options, load, on_failure=stop)
    app = make_app(service, api_key, allow_origin)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=grace))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=1024) as listening:
        shown = f"[{host}]" if ":" in host else host
        complain(f"http://{shown}:{listening.getsockname()[1]} draws with {options.model}")
        # The server takes the signal, and raises it once more when it has ended: that must not end the process by force.
        before = signal.signal(signal.SIGTERM, lambda *_: None)
        try:
            server.run(sockets=[listening])
        finally:
            signal.signal(signal.SIGTERM, before)
    if service.failure is not None:
        raise service.failure
