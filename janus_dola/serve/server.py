"""Runs a server process: it listens, answers, and ends on SIGTERM or SIGHUP."""

import gc
import logging
import socket
from collections.abc import Callable

import uvicorn

from janus_dola.pipeline import JanusDoLa
from janus_dola.serve.api import make_app
from janus_dola.serve.connections import MAX_HEAD, limited
from janus_dola.serve.log import SELDOM
from janus_dola.serve.service import ServerOptions, Service
from janus_dola.serve.signals import STOPS, on_signals


def run_server(options: ServerOptions, load: Callable[[], JanusDoLa], announce: Callable[[str], object]) -> None:
    """Serves until SIGTERM or SIGHUP, then finishes the requests it has and takes no others.

    Raises what `load` raised, or an OSError if it cannot listen at the address. `announce` gets the line that says where.
    """
    server: uvicorn.Server

    def stop() -> None:
        server.should_exit = True

    def load_and_freeze() -> JanusDoLa:
        pipe = load()
        gc.freeze()  # torch's and the model's objects stay: each look at all of them would stop every answer for long
        return pipe

    service = Service(options, load_and_freeze, on_failure=stop)
    server = uvicorn.Server(configured(service))
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.create_server((options.host, options.port), family=family, backlog=1024) as listening:
        host = f"[{options.host}]" if ":" in options.host else options.host
        announce(f"http://{host}:{listening.getsockname()[1]} draws with {options.served_names[0]}")
        # uvicorn handles SIGTERM while it runs, and raises it once more when it has ended: that must not kill the process.
        with on_signals(STOPS, stop):
            try:
                server.run(sockets=[listening])
            finally:
                gc.unfreeze()
    if service.failure is not None:
        raise service.failure


def configured(service: Service) -> uvicorn.Config:
    """Returns how uvicorn serves a service: with bounds for connections, heads and the time to stop in."""
    connection = limited(service.options.max_connections)
    config = uvicorn.Config(
        make_app(service),
        http=connection,
        ws="none",
        log_level="warning",
        limit_concurrency=2 * connection.most,  # `connection` makes room before
        h11_max_incomplete_event_size=MAX_HEAD,
        timeout_graceful_shutdown=service.options.grace,
        proxy_headers=False,  # the application reads them
    )
    logging.getLogger("uvicorn.error").addFilter(SELDOM)
    return config
