"""A server in this process, for tests."""

import threading
import time
from contextlib import contextmanager

import uvicorn

from janus_dola.serve.server import configured


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come true"
        time.sleep(0.02)


@contextmanager
def running(service):
    """A server in a thread of this process."""
    with serving(configured(service)) as (_, url):
        yield url


@contextmanager
def serving(config):
    """The same for a configuration: uvicorn's server, and its address."""
    config.port = 0
    made = uvicorn.Server(config)
    thread = threading.Thread(target=made.run)
    thread.start()
    until(lambda: made.started)
    (listening,) = made.servers[0].sockets
    try:
        yield made, f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        made.should_exit = True
        thread.join()
