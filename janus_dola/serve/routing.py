"""Says where the server stands for its clients: behind a proxy's prefix, at paths that exist, and at those that do not."""

import re

from starlette.datastructures import URL, Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from janus_dola.serve.errors import error_response

PREFIX = re.compile(r"(/[\w.~%+-]+)*", re.ASCII)  # of a path
_HOST = re.compile(r"[\w.-]+(:\d+)?|\[[0-9a-f:.]+\](:\d+)?", re.ASCII | re.IGNORECASE)
# What a client asks for whose base URL has no /v1, has it twice, or has something else before it.
_WRONG_BASE = re.compile(r".*(/images/generations|/models(/.*)?)")


class Entrance:
    """Brings each request to the path that the routes know.

    A proxy's prefix becomes `root_path`, for URLs in answers: `root_path` of the server, or `X-Forwarded-Prefix` from a
    trusted proxy. A slash at the end says nothing. HEAD is answered as GET, without the body.
    """

    def __init__(self, app: ASGIApp, root_path: str, trusted: str) -> None:
        self._app, self._root_path = app, root_path
        self._proxy = ProxyHeadersMiddleware(self._enter, trusted)  # type: ignore[arg-type]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, with what a trusted proxy says of the client's side."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        prefix, host = self._root_path, ""
        client = scope.get("client")
        if (client[0] if client else None) in self._proxy.trusted_hosts:
            headers = Headers(scope=scope)
            given = "".join(part.strip().rstrip("/") for part in headers.get("x-forwarded-prefix", "").split(","))
            prefix = given if given and PREFIX.fullmatch(given) else prefix
            host = headers.get("x-forwarded-host", "").partition(",")[0].strip()
        path = scope["path"]
        while prefix and f"{path}/".startswith(f"{prefix}/"):  # the proxy did not take it away
            path = path[len(prefix) :]
        state = {**scope.get("state", {}), "public_host": host if _HOST.fullmatch(host) else ""}
        changed = {**scope, "path": path.rstrip("/") or "/", "root_path": prefix, "state": state}
        await self._proxy(changed, receive, send)  # type: ignore[arg-type]

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        head = scope["method"] == "HEAD"
        await self._app({**scope, "method": "GET"} if head else scope, receive, without_body if head else send)


def public_url(request: Request, route: str, /, **path_params: str) -> str:
    """Returns a route's URL as the client reaches it."""
    url: URL = request.url_for(route, **path_params)
    return str(url.replace(netloc=request.state.public_host) if request.state.public_host else url)


def no_such_route(request: Request) -> JSONResponse:
    """Answers a request that no route takes: 404, or 405 where its path takes other methods; says what there is."""
    path = request.scope["path"]
    routes = [route for route in request.app.routes if isinstance(route, Route) and route.methods]
    allowed = {
        each for route in routes if route.matches(request.scope)[0] is Match.PARTIAL for each in route.methods or ()
    }
    here = f"there is no {request.method:.20} {path:.80} here"
    if (known := _WRONG_BASE.fullmatch(path)) and path != f"/v1{known[1]}":
        message = f"{here}, but /v1{known[1]:.80}: the client's base URL must be this server's address and /v1"
        return error_response(404, message, code="not_found")
    there = ", ".join(
        f"{' '.join(route.methods or ())} {route.path_format}" for route in routes if route.include_in_schema
    )
    message = f"{here}: this server only draws images from text, and has {there}"
    if not allowed:
        return error_response(404, message, code="not_found")
    headers = {"Allow": ", ".join(sorted(allowed | ({"HEAD"} if "GET" in allowed else set())))}
    return error_response(405, message, code="method_not_allowed", headers=headers)
