"""Limits who may send requests, and how large they may be."""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Collection, Hashable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from janus_dola.arguments import shown
from janus_dola.serve.errors import error_response

MAX_BODY = 64 * 1024  # bytes


class BodyLimit:
    """Refuses bodies of more than `MAX_BODY` bytes, whatever their header says."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through, and counts the bytes that the application reads."""
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MAX_BODY:
                raise HTTPException(413, f"the body must have at most {MAX_BODY} bytes")
            return message

        await self._app(scope, counted, send)


def digest(key: str) -> bytes:
    """Returns what a server keeps of a key: it cannot be read back from there, nor from Ray, which hands it to replicas."""
    return hashlib.sha256(key.encode("latin-1")).digest()


class KeyCheck:
    """Asks clients for one of the server's keys, `Authorization: Bearer KEY`, on every path but `OPEN`."""

    OPEN = re.compile("/|/health|/openapi.json|/images/[^/]*")  # who knows the name of an image may see it

    def __init__(self, app: ASGIApp, keys: tuple[bytes, ...]) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through, or answers it with 401."""
        answer = self._app
        if scope["type"] == "http" and not self.OPEN.fullmatch(scope["path"]):
            given = _digest_of_key(scope)
            if given is None or not any(hmac.compare_digest(given, each) for each in self._keys):
                message = "this server asks for its API key: Authorization: Bearer KEY"
                answer = error_response(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        await answer(scope, receive, send)


def _digest_of_key(scope: Scope) -> bytes | None:
    scheme, _, key = Headers(scope=scope).get("authorization", "").strip().partition(" ")
    return digest(key.strip()) if scheme.lower() == "bearer" else None


def client_of(scope: Scope, keys: tuple[bytes, ...]) -> Hashable:
    """Returns who asks, for shares: the key where there are several, else the address; of IPv6 the network, a /64."""
    if len(keys) > 1:
        return _digest_of_key(scope)
    address = scope["client"][0] if scope.get("client") else ""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return address if parsed.version == 4 else ipaddress.ip_network((address.partition("%")[0], 64), strict=False)


def is_loopback(host: str) -> bool:
    """Returns whether a host is this machine to itself: localhost, 127.0.0.1, ::1 or [::1]."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class SiteCheck:
    """Refuses what pages of other sites send to a server that asks for no key.

    A page whose name was made to mean this machine shows in `Host`: only loopback names and those of `hosts` are
    answered; no `hosts` are all names. Any other page shows in `Origin` or `Sec-Fetch-Site`: it may read, as far as its
    browser lets it, but send only if it is one of `origins`.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], origins: Collection[str]) -> None:
        self._app, self._origins = app, origins
        self._hosts = {host.lower().strip("[]") for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through, or answers it with 403."""
        answer = self._app
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            hosts, origin = headers.getlist("host"), headers.get("origin")
            if self._hosts and not all(map(self._is_ours, hosts)):
                message = f"this server is not known as {shown(hosts[0])}: start it with --allow-host for that name"
                answer = error_response(403, message, code="host_not_allowed")
            elif scope["method"] not in ("GET", "HEAD", "OPTIONS") and self._is_foreign(headers):
                message = (
                    f"pages of {shown(origin)} may send nothing here: start the server with --allow-origin for them"
                )
                answer = error_response(403, message, code="origin_not_allowed")
        await answer(scope, receive, send)

    def _is_ours(self, host: str) -> bool:
        name = re.fullmatch(r"(\[[^]]*]|[^:]*)(:\d*)?", host.lower())
        return name is not None and (is_loopback(name[1]) or name[1].strip("[]") in self._hosts)

    def _is_foreign(self, headers: Headers) -> bool:
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin in self._origins or "*" in self._origins:
            return False
        if site is not None:  # the browser's own word, whatever a proxy made of the Host
            return site not in ("same-origin", "none")
        return origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
