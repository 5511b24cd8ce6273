"""Runs the same application as replicas in a Ray Serve deployment, each with an engine of its own.

Ray sends a request to a replica that has few requests in hand.
"""

import logging
import signal
import threading
from collections.abc import Callable
from dataclasses import replace

import ray
from ray import serve

from janus_dola.compute import Compute, connected, plan_workers
from janus_dola.pipeline import JanusDoLa
from janus_dola.serve.service import ServerOptions, Service
from janus_dola.serve.signals import STOPS, on_signals

_NAME = "janus-dola"


def run_replicas(
    compute: Compute, options: ServerOptions, load: Callable[[], JanusDoLa], announce: Callable[[str], object]
) -> None:
    """Serves as `run_server` does, by as many replicas as `compute` has workers; each loads the model.

    Raises:
        ValueError: the cluster is too small, or the address is not valid.
        ConnectionError: no Ray cluster answers there within seconds.
        RuntimeError: the replicas do not start; Ray says why.
    """
    options = replace(options, urls=False)  # a replica does not have the files that others keep
    ended = threading.Event()
    with connected(ray, compute.ray_address), on_signals((*STOPS, signal.SIGINT), ended.set):
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        resources, count = plan_workers(ray.cluster_resources(), compute)

        def build():
            from janus_dola.serve.api import make_app

            _listen_at_loopback()
            pipe = load()  # a replica is ready when its model is
            return make_app(Service(options, lambda: pipe))

        serve.start(http_options={"host": options.host, "port": options.port})
        deployment = serve.deployment(
            serve.ingress(build)(type("Replica", (), {})),
            name="Replica",
            num_replicas=count,
            max_ongoing_requests=options.max_waiting,
            ray_actor_options=resources,
            graceful_shutdown_wait_loop_s=0.5,
            graceful_shutdown_timeout_s=options.grace,
        )
        serve.run(deployment.bind(), name=_NAME, logging_config={"log_level": "ERROR", "enable_access_log": False})
        announce(f"http://{options.host}:{options.port} draws with {options.served_names[0]}, {count} replicas")
        ended.wait()
        serve.delete(_NAME)  # waits for images that are being drawn
        serve.shutdown()


def _listen_at_loopback() -> None:
    """Lets a replica take calls of Ray's proxy at 127.0.0.1 alone where its Ray does so, for Ray takes all addresses."""
    if ray.util.get_node_ip_address() == "127.0.0.1":
        from grpc.aio._server import Server

        add_port = Server.add_insecure_port
        Server.add_insecure_port = lambda self, address: add_port(self, address.replace("[::]:", "127.0.0.1:"))
