"""Limits who may send requests, and how large they may be."""

import hmac

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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


class KeyCheck:
    """Asks clients for the server's key, `Authorization: Bearer KEY`, on every path under /v1 and on /metrics."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._header = app, f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through, or answers it with 401."""
        answer = self._app
        if scope["type"] == "http" and (scope["path"].startswith("/v1") or scope["path"] == "/metrics"):
            given = Headers(scope=scope).get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(given, self._header):
                message = "this server asks for its API key: Authorization: Bearer KEY"
                answer = error_response(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        await answer(scope, receive, send)
