"""The same application as replicas of a Ray Serve deployment, each with an engine of its own.

Ray sends a request to a replica that has few of them in hand.
"""

import logging
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import ray
from ray import serve

from janus_dola.batch.ray_pool import connect, plan_workers
from janus_dola.batch.worker import Compute
from janus_dola.cli.terminal import complain
from janus_dola.pipeline import JanusDoLa
from janus_dola.serve.service import Options, Service

_NAME = "janus-dola"


@dataclass(frozen=True)
class Replicas:
    """How many, and where.

    Attributes:
        count: None is one for each GPU of the cluster.
        ray_address: of a cluster, as Ray spells it; None is one of our own on this machine.
        device: of the model, as for `JanusDoLa.from_pretrained`.
    """

    count: int | None = None
    ray_address: str | None = None
    device: str | None = None


def run_replicas(
    replicas: Replicas,
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
        load: gives the model, on each replica.
        host, port, grace, api_key, allow_origin: as for `run_server`.
    Raises:
        ValueError: the cluster is too small, or the address is none.
        ConnectionError: no server of Ray answers there within seconds.
        RuntimeError: the replicas do not start; Ray says why.
    """
    options = replace(options, addresses=False)  # a replica does not have the files of the others
    ended = threading.Event()
    compute = Compute(replicas.device, workers=replicas.count, ray_address=replicas.ray_address)
    connect(ray, replicas.ray_address)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    # After Ray, which has a handler of its own that would abort the process.
    before = {each: signal.signal(each, lambda *_: ended.set()) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        resources, count = plan_workers(ray.cluster_resources(), compute)

        def build():
            from janus_dola.serve.app import make_app

            pipe = load()  # a replica is there when its model is
            return make_app(Service(options, lambda: pipe), api_key, allow_origin)

        serve.start(http_options={"host": host, "port": port})
        deployment = serve.deployment(
            serve.ingress(build)(type("Replica", (), {})),
            name="Replica",
            num_replicas=count,
            max_ongoing_requests=options.max_waiting,
            ray_actor_options=resources,
            graceful_shutdown_timeout_s=grace,
        )
        serve.run(deployment.bind(), name=_NAME, logging_config={"log_level": "ERROR", "enable_access_log": False})
        complain(f"http://{host}:{port} draws with {options.model}, {count} replicas")
        ended.wait()
        serve.delete(_NAME)  # waits for what is being drawn
        serve.shutdown()
    finally:
        ray.shutdown()
        for each, handler in before.items():
            signal.signal(each, handler)
