"""What images are drawn on, for batch and serve: a device, workers, a Ray cluster."""

import os
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from janus_dola.arguments import integer, takes_engine

_ADDRESS = re.compile(r"auto|(ray://)?[^\s/]+:[0-9]{1,5}")
_SECONDS_TO_CONNECT = 5.0
_SECONDS_TO_ANSWER = 20.0  # a second process imports Ray first
_HEALTH_CHECK = ("-m", "ray.scripts.scripts", "health-check", "--address")
_CONNECT = ("-c", "import sys, ray; ray.init(sys.argv[1], logging_level='error')")  # there is no check for ray://


@takes_engine
@dataclass(frozen=True)
class Compute:
    """What images are drawn on; the images do not depend on it.

    Attributes:
        device: the model's device; None is a GPU where there is one.
        backend: runs the head stage: "auto", "reference", "torch" or "triton".
        launch: how a pass is run: "auto", "graph", "compile" or "eager".
        workers: number of Ray actors; None is this process alone or, with `ray_address`, one per GPU of the cluster.
        ray_address: a Ray cluster: "auto", "host:6379" or "ray://host:10001". None with `workers` starts one on this
            machine. If this process is already connected to Ray, that connection is used.
        batch_size: images drawn at once; None is what fits into memory when a folder is begun.
    Raises:
        ValueError: a value is out of range.
    """

    device: str | None = None
    backend: str = "auto"
    launch: str = "auto"
    workers: int | None = None
    ray_address: str | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("workers", "batch_size"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, integer(name, getattr(self, name), 1, 2**16))
        if self.ray_address is not None and not _ADDRESS.fullmatch(self.ray_address):
            raise ValueError(f'ray_address must be "auto", HOST:PORT or ray://HOST:PORT, got {self.ray_address!r}')
        if self.uses_ray and self.device not in (None, "cpu", "cuda"):
            raise ValueError(f'device must be "cpu" or "cuda" with workers, which have a GPU each, got {self.device!r}')

    @property
    def uses_ray(self) -> bool:
        """Returns whether Ray actors draw."""
        return self.workers is not None or self.ray_address is not None


@contextmanager
def connected(ray: Any, ray_address: str | None) -> Iterator[None]:
    """Connects to a Ray cluster, or runs one on this machine where the address is None. `ray` is the module.

    Where this process is connected already, that connection is used and left. A cluster of our own listens on loopback and
    asks for a token. Where no cluster answers within seconds: a ConnectionError.
    """
    address = os.environ.get("RAY_ADDRESS", "") if ray_address == "auto" else ray_address or ""
    if ":" in address:
        check_address(address)
    if ray.is_initialized():
        yield
        return
    cluster: AbstractContextManager[dict[str, Any]] = _private_cluster(ray) if ray_address is None else nullcontext({})
    with cluster as own:
        try:
            ray.init(address=ray_address or "local", log_to_driver=False, logging_level="error", **own)
            yield
        finally:
            ray.shutdown()


@contextmanager
def _private_cluster(ray: Any) -> Iterator[dict[str, Any]]:
    """Sets up that Ray listens at 127.0.0.1 only and asks for a token of this run; yields arguments of `ray.init`.

    What the environment says goes first, but a cluster without tokens is a ValueError: whoever reaches its ports can run
    code. Ray may have been imported before, so what it has read of the environment is read again.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    if mode.lower() != "token":
        raise ValueError(f"RAY_AUTH_MODE must be token, or not set, where workers start a cluster here, got {mode!r}")
    settings = {
        "RAY_AUTH_MODE": "token",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # a cluster of one machine: no address but loopback, on Linux, too
        "RAY_USAGE_STATS_ENABLED": "0",  # a cluster of our own reports to nobody
    }
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        settings["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # else Ray writes one into a file that others may read
    settings = {name: value for name, value in settings.items() if name not in os.environ}
    constants, clustered = ray._private.ray_constants, ray._private.ray_constants.ENABLE_RAY_CLUSTER
    os.environ.update(settings)
    constants.ENABLE_RAY_CLUSTER = os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] not in ("0", "false", "False")
    try:
        _read_settings(ray)
        yield {"include_dashboard": False}
    finally:
        for name in settings:
            del os.environ[name]
        constants.ENABLE_RAY_CLUSTER = clustered
        _read_settings(ray)


def _read_settings(ray: Any) -> None:
    """Lets Ray read RAY_AUTH_MODE and its token again."""
    ray._raylet.Config.initialize("")
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()


def check_address(address: str) -> None:
    """Raises a ConnectionError unless a Ray server answers within seconds at HOST:PORT or ray://HOST:PORT.

    A second process asks: where another server listens, Ray would try for minutes.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    probe = _CONNECT if address.startswith("ray://") else _HEALTH_CHECK
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS_TO_CONNECT).close()
        ended = subprocess.run(
            [sys.executable, *probe, address], capture_output=True, text=True, check=False, timeout=_SECONDS_TO_ANSWER
        )
        reason = ended.stderr.strip().splitlines()[-1:] or ["it is not healthy"]
        failure = reason[0] if ended.returncode else None
    except subprocess.TimeoutExpired:
        failure = f"no Ray server answers there within {_SECONDS_TO_ANSWER:g} s"
    except (OSError, ValueError, OverflowError) as error:
        failure = str(error)
    if failure is not None:
        raise ConnectionError(f"ray_address {address!r} must be of a running Ray cluster, but: {failure}")


def plan_workers(resources: Mapping[str, float], compute: Compute) -> tuple[dict[str, int], int]:
    """Returns the resources that each worker takes, by Ray's names, and the number of workers: one per GPU by default.

    A cluster that is too small, or has no GPU where `compute` gives no number, is a ValueError.
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
