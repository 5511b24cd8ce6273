"""`janus-dola serve`: draws images over HTTP."""

import os
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from janus_dola.arguments import MAX_PARALLEL_SIZE, MINI, import_extra, integer
from janus_dola.cli import options
from janus_dola.cli.terminal import complain

if TYPE_CHECKING:
    from janus_dola.pipeline import JanusDoLa

_address_option = partial(typer.Option, rich_help_panel="Address and clients")
_KEY_VARIABLE = "JANUS_DOLA_API_KEY"
_replica_option = partial(typer.Option, rich_help_panel="More than one engine")


def serve(
    model: options.Model = MINI,
    revision: options.Revision = None,
    served_model_name: Annotated[
        list[str] | None,
        _address_option(
            metavar="NAME...",
            help="What clients call the model: any of these, the first is shown.",
            show_default="the model's, without the path of a folder",
        ),
    ] = None,
    host: Annotated[
        str, _address_option(help="Address to listen at; 0.0.0.0 is every address of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, _address_option(min=0, max=65535, help="0 takes any free port.")] = 8000,
    slots: Annotated[
        str, options.machine_option(help="Images drawn at once, at most; auto is as many as fit into memory.")
    ] = "auto",
    max_waiting: Annotated[
        int, _address_option(min=10, help="Images that may wait; requests for more are answered with 429.")
    ] = 512,
    max_connections: Annotated[
        int, _address_option(min=16, help="Connections that may be open; those without a whole request make room.")
    ] = 2048,
    grace: Annotated[int, _address_option(min=0, help="Seconds that requests have to finish in after SIGTERM.")] = 60,
    api_key: Annotated[
        list[str] | None,
        _address_option(
            help="Key that clients must send; several, given one by one, tell clients apart.",
            show_default="the lines of JANUS_DOLA_API_KEY, else none",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        _address_option(help="Another name that clients without a key may know this server by.", show_default="none"),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        _address_option(
            help="Another site whose pages may send requests, such as https://example.org.", show_default="none"
        ),
    ] = None,
    root_path: Annotated[
        str, _address_option(help="Where a proxy serves this server, such as /janus.", show_default="none")
    ] = "",
    forwarded_allow_ips: Annotated[
        str,
        _address_option(
            envvar="FORWARDED_ALLOW_IPS",
            help="Proxies whose X-Forwarded headers count: addresses or networks, separated by commas, or *.",
            show_default="none",
        ),
    ] = "",
    replicas: Annotated[
        int | None,
        _replica_option(
            min=1, help="Number of engines under Ray Serve, each with a GPU or a CPU core.", show_default="none: no Ray"
        ),
    ] = None,
    ray_address: Annotated[
        str | None,
        _replica_option(help="A Ray cluster: auto or HOST:PORT; starts one engine per GPU.", show_default="none"),
    ] = None,
    backend: options.Backend = "auto",
    launch: options.Launch = "auto",
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
) -> None:
    """Serve images over HTTP to clients of OpenAI's images API; one batch draws the images of all requests."""
    from janus_dola.pipeline import JanusDoLa

    for module in ("fastapi", "uvicorn", "prometheus_client"):
        import_extra(module, "serve", "janus-dola serve")
    from janus_dola.serve.access import is_loopback
    from janus_dola.serve.routing import PREFIX
    from janus_dola.serve.server import run_server
    from janus_dola.serve.service import ServerOptions

    limit = options.number_or_text(slots)
    most = None if limit == "auto" else integer("slots", limit, 1, MAX_PARALLEL_SIZE, '"auto" or ')
    if any(not name.strip() for name in served_model_name or ()):
        raise ValueError("served_model_name must not be empty")
    if not PREFIX.fullmatch(root_path.rstrip("/")):
        raise ValueError(f"root_path must be a path such as /janus, got {root_path!r}")
    keys = _keys(api_key)
    if not keys and not is_loopback(host):
        complain(f"warning: anybody who reaches {host} can draw; --api-key asks for a key")
    options.hint_at_mini(model)
    server_options = ServerOptions(
        model,
        host,
        port,
        grace,
        keys,
        tuple(allow_host or ()),
        tuple(allow_origin or ()),
        most,
        max_waiting,
        max_connections,
        backend,
        launch,
        names=tuple(dict.fromkeys(served_model_name or ())),
        root_path=root_path.rstrip("/"),
        forwarded_allow_ips=forwarded_allow_ips,
    )

    def load() -> "JanusDoLa":
        return JanusDoLa.from_pretrained(model, device, dtype, revision, quantize)

    if replicas is None and ray_address is None:
        run_server(server_options, load, complain)
        return
    import_extra("ray.serve", "replicas", "--replicas")
    from janus_dola.compute import Compute
    from janus_dola.serve.replicas import run_replicas

    if port == 0:
        raise ValueError("port must be 1 .. 65535 with --replicas, got 0")
    run_replicas(Compute(device, workers=replicas, ray_address=ray_address), server_options, load, complain)


def _keys(given: list[str] | None) -> tuple[bytes, ...]:
    """Returns digests of the keys given, else of those in the environment, which Ray's processes must not inherit."""
    from janus_dola.serve.access import digest

    variable = os.environ.pop(_KEY_VARIABLE, None)
    name, keys = "api_key", given or ()
    if not keys and variable is not None:
        name, keys = _KEY_VARIABLE, variable.strip("\n").split("\n")
    for key in keys:
        if not (key.isascii() and key.isprintable() and key.strip()):
            raise ValueError(f"{name} must be printable ASCII, and not empty")
    return tuple(digest(key.strip()) for key in keys)
