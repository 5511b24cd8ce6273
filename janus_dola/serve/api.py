"""Answers HTTP requests: OpenAI's images API, health, metrics and the page."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import torch
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from janus_dola.images.outputs import NonFiniteError
from janus_dola.serve.access import BodyLimit, KeyCheck, SiteCheck
from janus_dola.serve.engine_thread import EngineThread, Event, FailedImage, FinishedImage, PartialImage
from janus_dola.serve.errors import error_body, error_response, validation_response
from janus_dola.serve.form_page import HEADERS, form_page
from janus_dola.serve.metrics import RequestCounter
from janus_dola.serve.queue import FullError
from janus_dola.serve.requests import ImagesRequest, InvalidError, ParsedRequest
from janus_dola.serve.responses import ResponseWriter, event
from janus_dola.serve.service import Service

GENERATIONS = "/v1/images/generations"
_RETRY_AFTER = 5  # seconds, while the model loads


class ClientGoneError(Exception):
    """The client closed its connection."""


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
    html = form_page(options.model, bool(options.keys))

    @app.get("/", include_in_schema=False)
    async def form() -> HTMLResponse:
        return HTMLResponse(html, headers=HEADERS)

    _add_errors(app, service)
    app.add_middleware(BodyLimit)
    if options.keys:
        app.add_middleware(KeyCheck, keys=options.keys)
    else:
        app.add_middleware(SiteCheck, hosts=options.known_hosts(), origins=options.allow_origin)
    if options.allow_origin:
        origins = list(options.allow_origin)
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(RequestCounter, path=GENERATIONS, metrics=service.metrics)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    started = int(time.time())

    @app.post(GENERATIONS)
    async def generations(request: Request, body: ImagesRequest) -> Response:
        """Draws images."""
        ready = service.ready()
        if ready is None:
            headers = {"Retry-After": str(_RETRY_AFTER)}
            return error_response(503, "the model is being loaded", code="loading", headers=headers)
        if body.response_format == "url" and not service.options.urls:
            raise InvalidError("response_format", 'response_format must be "b64_json" with replicas, got "url"')
        reader, engine = ready
        events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        parsed = reader.read(body, lambda event: loop.call_soon_threadsafe(events.put_nowait, event))
        engine.ask(parsed.images)
        writer = ResponseWriter(parsed, reader.size, reader.image_model.image_tokens)
        pictures = _until_done(request, engine, parsed, events)
        if body.stream:
            return StreamingResponse(_streamed(pictures, writer), media_type="text/event-stream")
        keep = None
        if body.response_format == "url":

            def keep(content: bytes, ending: str) -> str:
                return str(request.url_for("image_file", name=service.image_urls.add(content, ending)))

        entries = {}
        try:
            async with aclosing(pictures):
                async for picture in pictures:
                    if isinstance(picture, FinishedImage):
                        entries[picture.k] = await asyncio.to_thread(writer.entry, picture, keep)
        except ClientGoneError:
            return Response(status_code=499)
        return JSONResponse(writer.answer([entries[k] for k in sorted(entries)]))

    @app.get("/v1/models")
    async def models() -> JSONResponse:
        """Lists the model that this server draws with."""
        model = {"id": service.options.model, "object": "model", "created": started, "owned_by": "janus-dola"}
        return JSONResponse({"object": "list", "data": [model]})

    @app.get("/images/{name}", include_in_schema=False)
    async def image_file(name: str) -> Response:
        path = service.image_urls.find(name)
        if path is None:
            return error_response(404, f"there is no image {name!r}, or no more", "name", "not_found")
        return FileResponse(path)

    @app.get("/health")
    async def health() -> JSONResponse:
        """Tells whether the model is loaded: 200 or 503."""
        loading = service.ready() is None
        return JSONResponse({"status": "loading" if loading else "ready"}, 503 if loading else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Returns counts for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _add_errors(app: FastAPI, service: Service) -> None:
    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: RequestValidationError) -> JSONResponse:
        return validation_response(error)

    @app.exception_handler(InvalidError)
    async def not_possible(request: Request, error: InvalidError) -> JSONResponse:
        return error_response(error.status, str(error), error.field, error.code)

    @app.exception_handler(FullError)
    async def full(request: Request, error: FullError) -> JSONResponse:
        ready = service.ready()
        seconds = ready[1].seconds_to_wait() if ready else _RETRY_AFTER
        return error_response(429, str(error), code="rate_limit_exceeded", headers={"Retry-After": str(seconds)})

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        return error_response(error.status_code, str(error.detail), headers=dict(error.headers or {}))

    @app.exception_handler(Exception)  # the server's own faults are logged, too
    @app.exception_handler(NonFiniteError)
    @app.exception_handler(torch.OutOfMemoryError)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return error_response(500, str(error), code="drawing_failed")


async def _until_done(
    request: Request, engine: EngineThread, parsed: ParsedRequest, events: "asyncio.Queue[Event]"
) -> AsyncGenerator[PartialImage | FinishedImage, None]:
    """Yields pictures until all images are drawn, or raises ClientGoneError; what is not drawn in the end is given up."""
    gone = asyncio.ensure_future(_gone(request))
    missing = len(parsed.images)
    try:
        while missing:
            following = asyncio.ensure_future(events.get())
            await asyncio.wait({following, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                following.cancel()
                raise ClientGoneError
            event = following.result()
            if isinstance(event, FailedImage):
                raise event.error
            missing -= isinstance(event, FinishedImage)
            yield event
    finally:
        gone.cancel()
        engine.give_up(parsed.images)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _streamed(
    pictures: AsyncGenerator[PartialImage | FinishedImage, None], writer: ResponseWriter
) -> AsyncIterator[str]:
    try:
        async with aclosing(pictures):
            async for picture in pictures:
                write = writer.partial if isinstance(picture, PartialImage) else writer.completed
                yield await asyncio.to_thread(write, picture)  # type: ignore[arg-type]
    except ClientGoneError:
        return
    except Exception as error:  # the status is already sent, so the error becomes an event
        yield event("error", error_body(str(error), "server_error", code="drawing_failed"))
