"""Connects to Ray. Where another server answers at an address, Ray itself would try for many minutes: it is asked first."""

import os
import socket
import time
from typing import Any

_SECONDS = 5.0  # to connect, and until the answer is there
# Ray is built on gRPC, and that on HTTP/2: frames of a head (length, kind, flags, stream) and content.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEAD = 9
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_OF_STREAM, _END_OF_HEADERS = 1, 4
_EMPTY_MESSAGE = bytes(5)
_METHOD = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_METHOD_OF_CLIENTS = "/ray.rpc.RayletDriver/ClusterInfo"  # where addresses begin with ray://
_STATUS_200 = b"\x88"  # as HPACK has it
_UNIMPLEMENTED = b"\x0212"  # the text of a grpc-status behind its length


def connect(ray: Any, ray_address: str | None) -> bool:
    """Connects to a cluster, unless the process is already connected to one.

    Args:
        ray: the module, which is imported where it is needed.
        ray_address: "auto", HOST:PORT or ray://HOST:PORT; None begins a cluster on this machine.
    Returns:
        whether it did; else the caller's own connection is used.
    Raises:
        ConnectionError: no server of Ray answers there within seconds.
    """
    told = os.environ.get("RAY_ADDRESS", "") if ray_address == "auto" else ray_address or ""
    if ":" in told:
        knock(told)
    if ray.is_initialized():
        return False
    own: dict[str, Any] = {}
    if ray_address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of our own reports to nobody
        own = {"include_dashboard": False}
    ray.init(address=ray_address or "local", log_to_driver=False, logging_level="error", **own)
    return True


def knock(address: str) -> None:
    """Raises ConnectionError where no server of Ray answers within seconds."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    method = _METHOD_OF_CLIENTS if address.startswith("ray://") else _METHOD
    until = time.monotonic() + _SECONDS
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS") == "1":  # it would not answer to anything else
                return
            connection.sendall(_GREETING + _frame(_SETTINGS) + _call(method, f"{host}:{port}"))
            if not _knows(connection, until):
                raise ValueError("what answers there is no server of Ray")
    except (OSError, ValueError, OverflowError) as error:
        raise ConnectionError(f"ray_address {address!r} must be of a running Ray cluster, but: {error}") from None


def _knows(connection: socket.socket, until: float) -> bool:
    """Whether the server has the method that was called, whatever it answers."""
    first = True
    while True:
        head = _read(connection, _HEAD, until)
        kind, stream = head[3:4], head[5:]
        if len(head) < _HEAD or (first and kind != bytes([_SETTINGS])):
            return False
        content, first = _read(connection, int.from_bytes(head[:3], "big"), until), False
        if stream == b"\0\0\0\1":
            answered = kind == bytes([_HEADERS]) and _STATUS_200 in content[:4]  # a size of the table may come before
            return answered and _UNIMPLEMENTED not in content


def _read(connection: socket.socket, count: int, until: float) -> bytes:
    """So many bytes, or all there are until the other side closes."""
    found = b""
    while len(found) < count:
        connection.settimeout(max(0.001, until - time.monotonic()))
        piece = connection.recv(count - len(found))
        if not piece:
            break
        found += piece
    return found


def _call(method: str, authority: str) -> bytes:
    """A call of a method without arguments."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": authority,
        "content-type": "application/grpc",
        "te": "trailers",
    }
    encoded = b"".join(b"\0" + _text(name) + _text(value) for name, value in headers.items())
    return _frame(_HEADERS, _END_OF_HEADERS, 1, encoded) + _frame(_DATA, _END_OF_STREAM, 1, _EMPTY_MESSAGE)


def _text(text: str) -> bytes:
    encoded = text.encode("ascii")
    if len(encoded) > 126:  # a longer one would need a length of several bytes
        raise ValueError("the address is too long")
    return bytes([len(encoded)]) + encoded


def _frame(kind: int, flags: int = 0, stream: int = 0, content: bytes = b"") -> bytes:
    return len(content).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + content
