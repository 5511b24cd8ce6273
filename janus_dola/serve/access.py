"""Who may ask, and how much at once."""

import hmac

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from janus_dola.serve.errors import error_response

MAX_BODY = 64 * 1024  # bytes


class Limits:
    """Refuses bodies that are too large, whatever their header says.

    Args:
        app: to guard.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or lets it through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MAX_BODY:
                raise HTTPException(413, f"the body must have at most {MAX_BODY} bytes")
            return message

        await self._app(scope, counted, send)


class Key:
    """Asks for a key where there is one: of everything under /v1 and of /metrics.

    Args:
        app: to guard.
        key: as clients send it, `Authorization: Bearer KEY`.
    """

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._wanted = app, f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or lets it through."""
        guarded = scope["type"] == "http" and (scope["path"].startswith("/v1") or scope["path"] == "/metrics")
        if guarded:
            given = Headers(scope=scope).get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(given, self._wanted):
                message = "this server asks for its API key: Authorization: Bearer KEY"
                answer = error_response(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)
