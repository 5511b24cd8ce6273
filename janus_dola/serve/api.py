"""Answers HTTP requests: OpenAI's images API, health, metrics and the page."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from contextlib import ExitStack, aclosing, asynccontextmanager
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from janus_dola.arguments import shown
from janus_dola.images.outputs import NonFiniteError
from janus_dola.serve.access import BodyLimit, KeyCheck, SiteCheck, client_of
from janus_dola.serve.engine_thread import FailedImage, FinishedImage, PartialImage
from janus_dola.serve.errors import error_body, error_response, validation_response
from janus_dola.serve.form_page import HEADERS, form_page
from janus_dola.serve.metrics import RequestCounter
from janus_dola.serve.outbox import Outbox
from janus_dola.serve.queue import FullError
from janus_dola.serve.requests import ImagesRequest, InvalidError
from janus_dola.serve.responses import HEARTBEAT, ResponseWriter, event
from janus_dola.serve.routing import Entrance, no_such_route, public_url
from janus_dola.serve.service import Service

GENERATIONS = "/v1/images/generations"
_SECONDS_TO_REFUSE = 1.0  # so that clients that ask again at once leave time for others
_RETRY_AFTER = 5  # seconds, while the model loads or the server stops
_HEARTBEAT = 15.0  # seconds between signs of life in a stream, less than proxies wait
_PIECE = 64 * 1024  # bytes; with more to send uvicorn waits for the client
_EVENT_STREAM = {  # which no proxy keeps or holds back
    "Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no",
}  # fmt: skip
_STOPPING = "the server stops, and its time for requests is over: ask again later"
_SAID = (NonFiniteError, torch.OutOfMemoryError)  # faults that clients are told of; others are for the log
_logger = logging.getLogger("uvicorn.error")


class ClientGoneError(Exception):
    """The client closed its connection."""


def _checking_route(service: Service) -> type[APIRoute]:
    class Checking(APIRoute):
        """A route that reads the body, if it takes one, only where there is room for the client's images.

        The body must say that it is JSON: other types browsers send to any server unasked.
        """

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            """Returns the handler of FastAPI, after these checks."""
            handle = super().get_route_handler()

            async def checked(request: Request) -> Response:
                if request.method == "POST":
                    given, ready = request.headers.get("content-type", ""), service.ready()
                    if given.partition(";")[0].strip().lower() != "application/json":
                        message = f"the request must have Content-Type: application/json, got {shown(given)}"
                        raise HTTPException(415, message)
                    if ready is not None:
                        ready[1].queue.check(client_of(request.scope, service.options.keys), 1)
                return await handle(request)

            return checked

    return Checking


class _Stopped:
    """Answers requests that are cancelled, since the server stops, with 503."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through; a client that has read a part of its answer gets no more."""
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except asyncio.CancelledError:
            if scope["type"] != "http":
                raise
            if not begun:
                headers = {"Retry-After": str(_RETRY_AFTER)}
                await error_response(503, _STOPPING, code="stopping", headers=headers)(scope, receive, send)


class _Delivery(StreamingResponse):
    """An answer that goes out no faster than its client reads; however that ends, `release` is called."""

    def __init__(self, texts: AsyncGenerator[str | bytes, None], release: Callable[[], object], **more: Any) -> None:
        super().__init__(self._pieces(), **more)
        self._texts, self._release = texts, release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer."""
        try:
            async with aclosing(self._texts):
                await super().__call__(scope, receive, send)
        finally:
            self._release()

    async def _pieces(self) -> AsyncIterator[str | bytes]:
        """Yields pieces of the size for which sending waits: beyond it nothing is kept but in `texts`."""
        async for text in self._texts:
            for start in range(0, len(text), _PIECE):
                yield text[start : start + _PIECE]


def make_app(service: Service) -> FastAPI:
    """Makes the application, which starts and closes its service."""
    options = service.options

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(title="janus-dola", lifespan=lifespan, docs_url=None, redoc_url=None)
    _add_routes(app, service)

    @app.get("/", include_in_schema=False)
    async def form(request: Request) -> HTMLResponse:
        root_path = request.scope["root_path"]
        return HTMLResponse(form_page(options.served_names[0], bool(options.keys), root_path), headers=HEADERS)

    _add_errors(app, service)
    app.add_middleware(BodyLimit)
    if options.keys:
        app.add_middleware(KeyCheck, keys=options.keys)
    else:
        app.add_middleware(SiteCheck, hosts=options.known_hosts(), origins=options.allow_origin)
    app.add_middleware(_Stopped)
    # What follows must see the answers to errors, too, which Starlette makes outside of the middleware it is given.
    stack = app.build_middleware_stack()
    if options.allow_origin:
        origins = list(options.allow_origin)
        stack = CORSMiddleware(stack, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    stack = RequestCounter(stack, path=GENERATIONS, metrics=service.metrics)
    app.middleware_stack = Entrance(stack, options.root_path, options.forwarded_allow_ips)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    about = {"object": "model", "created": int(time.time()), "owned_by": "janus-dola"}
    names = service.options.served_names
    app.router.route_class = _checking_route(service)

    @app.post(GENERATIONS)
    async def generations(request: Request, body: ImagesRequest) -> Response:
        """Draws images."""
        ready = service.ready()
        if ready is None:
            later = {"Retry-After": str(_RETRY_AFTER)}
            return error_response(503, "the model is being loaded", code="loading", headers=later)
        if body.response_format == "url" and not service.options.urls:
            raise InvalidError("response_format", 'response_format must be "b64_json" with replicas, got "url"')
        reader, engine = ready
        events = Outbox()
        loop = asyncio.get_running_loop()
        parsed = reader.read(body, lambda event: loop.call_soon_threadsafe(events.put_nowait, event))
        writer = ResponseWriter(parsed, names[0], reader.size, reader.image_model)
        keep = None
        dall_e = body.response_format is None and (body.model or "").startswith("dall-e-") and service.options.urls
        if body.response_format == "url" or dall_e:

            def keep(content: bytes, ending: str) -> str:
                return public_url(request, "image_file", name=service.image_urls.add(content, ending))

        texts: AsyncGenerator[str | bytes, None]
        headers: Mapping[str, str]
        with ExitStack() as in_hand:
            engine.ask(parsed.images, client_of(request.scope, service.options.keys))
            in_hand.callback(engine.release, parsed.images)
            pictures = _until_done(request, len(parsed.images), events)
            if body.stream:
                texts, headers = _streamed(pictures, writer), _EVENT_STREAM
            else:
                entries = {}
                try:
                    async with aclosing(pictures):
                        async for picture in pictures:
                            if isinstance(picture, FinishedImage):
                                entries[picture.k] = await asyncio.to_thread(writer.entry, picture, keep)
                except ClientGoneError:
                    return Response(status_code=499)
                answer = JSONResponse(writer.answer([entries[k] for k in sorted(entries)]))
                texts, headers = _whole(bytes(answer.body)), answer.headers
            return _Delivery(texts, in_hand.pop_all().close, headers=headers)

    @app.get("/v1/models")
    async def models() -> JSONResponse:
        """Lists the names of the model that this server draws with."""
        return JSONResponse({"object": "list", "data": [{"id": name, **about} for name in names]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> JSONResponse:
        """Describes the model, by one of its names."""
        if name not in names:
            message = f"there is no model {shown(name)} here, but {' and '.join(map(repr, names))}"
            return error_response(404, message, "model", "model_not_found")
        return JSONResponse({"id": name, **about})

    @app.get("/images/{name}", include_in_schema=False)
    async def image_file(name: str) -> Response:
        answer = service.image_urls.answer(name)
        return answer or error_response(404, f"there is no image {shown(name)}, or no more", "name", "not_found")

    @app.get("/health")
    async def health() -> JSONResponse:
        """Tells whether the model is loaded: 200 or 503."""
        loading = service.ready() is None
        return JSONResponse({"status": "loading" if loading else "ready"}, 503 if loading else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Returns counts for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def failure_text(error: Exception) -> str:
    """Returns what clients are told of a fault: nothing of the server's inside."""
    return str(error) if isinstance(error, _SAID) else "drawing failed; the server's log says why"


def _add_errors(app: FastAPI, service: Service) -> None:
    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: RequestValidationError) -> JSONResponse:
        return validation_response(error)

    @app.exception_handler(InvalidError)
    async def not_possible(request: Request, error: InvalidError) -> JSONResponse:
        return error_response(error.status, str(error), error.field, error.code)

    @app.exception_handler(FullError)
    async def full(request: Request, error: FullError) -> JSONResponse:
        await asyncio.sleep(_SECONDS_TO_REFUSE)
        ready = service.ready()
        seconds = ready[1].seconds_to_wait() if ready else _RETRY_AFTER
        return error_response(429, str(error), code="rate_limit_exceeded", headers={"Retry-After": str(seconds)})

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code in (404, 405):
            return no_such_route(request)
        return error_response(error.status_code, str(error.detail), headers=dict(error.headers or {}))

    @app.exception_handler(Exception)  # the server's own faults are logged, too
    @app.exception_handler(NonFiniteError)
    @app.exception_handler(torch.OutOfMemoryError)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return error_response(500, failure_text(error), code="drawing_failed")


async def _until_done(
    request: Request, missing: int, events: Outbox
) -> AsyncGenerator[PartialImage | FinishedImage | None, None]:
    """Yields pictures until the missing images are drawn, or raises ClientGoneError.

    None comes now and then where no picture does; in `events` it means that the client is gone.
    """
    gone = asyncio.ensure_future(_tell_gone(request, events))
    try:
        while missing:
            try:
                event = await asyncio.wait_for(events.get(), _HEARTBEAT)
            except asyncio.TimeoutError:
                yield None
                continue
            if event is None or gone.done():
                raise ClientGoneError
            if isinstance(event, FailedImage):
                raise event.error
            missing -= isinstance(event, FinishedImage)
            yield event
    finally:
        gone.cancel()


async def _tell_gone(request: Request, events: Outbox) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    events.put_nowait(None)


async def _whole(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


async def _streamed(
    pictures: AsyncGenerator[PartialImage | FinishedImage | None, None], writer: ResponseWriter
) -> AsyncGenerator[str, None]:
    try:
        async with aclosing(pictures):
            async for picture in pictures:
                if picture is None:
                    yield HEARTBEAT
                else:
                    write = writer.partial if isinstance(picture, PartialImage) else writer.completed
                    yield await asyncio.to_thread(write, picture)  # type: ignore[arg-type]
    except ClientGoneError:
        return
    except asyncio.CancelledError:
        yield event("error", error_body(_STOPPING, "server_error", code="stopping"))
    except Exception as error:  # the status is already sent, so the error becomes an event
        if not isinstance(error, _SAID):
            _logger.error("an image of a stream could not be drawn", exc_info=error)
        yield event("error", error_body(failure_text(error), "server_error", code="drawing_failed"))
