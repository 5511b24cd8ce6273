"""The HTTP side: OpenAI's images API, health, metrics and the page."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

import torch
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from janus_dola.outputs import NonFiniteError
from janus_dola.serve.access import Key, Limits
from janus_dola.serve.answers import Answers, event
from janus_dola.serve.errors import error_body, error_response, of_validation
from janus_dola.serve.metrics import Counted
from janus_dola.serve.page import HEADERS, page
from janus_dola.serve.queue import FullError
from janus_dola.serve.requests import ImagesRequest, InvalidError, Wanted
from janus_dola.serve.service import Service
from janus_dola.serve.worker import Event, Failed, Finished, Partial, Worker

GENERATIONS = "/v1/images/generations"
_SECONDS_OF_LOADING = 5  # after which a client may ask again


class GoneError(Exception):
    """The client went away."""


def make_app(service: Service, api_key: str | None = None, allow_origin: Sequence[str] = ()) -> FastAPI:
    """The application, which starts and closes its service.

    Args:
        api_key: that clients must send; None asks for none.
        allow_origin: of pages elsewhere that may ask, for CORS.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(title="janus-dola", lifespan=lifespan, docs_url=None, redoc_url=None)
    _add_routes(app, service)
    shown = page(service.options.model, api_key is not None)

    @app.get("/", include_in_schema=False)
    async def form() -> HTMLResponse:
        return HTMLResponse(shown, headers=HEADERS)

    _add_errors(app, service)
    app.add_middleware(Limits)
    if api_key is not None:
        app.add_middleware(Key, key=api_key)
    if allow_origin:
        app.add_middleware(CORSMiddleware, allow_origins=list(allow_origin), allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Counted, path=GENERATIONS, metrics=service.metrics)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    started = int(time.time())

    @app.post(GENERATIONS)
    async def generations(request: Request, body: ImagesRequest) -> Response:
        """Draws images."""
        ready = service.ready()
        if ready is None:
            headers = {"Retry-After": str(_SECONDS_OF_LOADING)}
            return error_response(503, "the model is being loaded", code="loading", headers=headers)
        if body.response_format == "url" and not service.options.addresses:
            raise InvalidError("response_format", 'response_format must be "b64_json" with replicas, got "url"')
        reader, worker = ready
        events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        wanted = reader.read(body, lambda event: loop.call_soon_threadsafe(events.put_nowait, event))
        worker.ask(wanted.images)
        answers = Answers(wanted, reader.size, reader.image_model.image_tokens, int(time.time()))
        happening = _until_done(request, worker, wanted, events)
        if body.stream:
            return StreamingResponse(_streamed(happening, answers), media_type="text/event-stream")
        keep = None
        if body.response_format == "url":

            def keep(content: bytes, ending: str) -> str:
                return str(request.url_for("image_file", name=service.files.add(content, ending)))

        entries = {}
        try:
            async with aclosing(happening):
                async for found in happening:
                    if isinstance(found, Finished):
                        entries[found.k] = await asyncio.to_thread(answers.image, found, keep)
        except GoneError:
            return Response(status_code=499)
        return JSONResponse(answers.all([entries[k] for k in sorted(entries)]))

    @app.get("/v1/models")
    async def models() -> JSONResponse:
        """The model that this server draws with."""
        model = {"id": service.options.model, "object": "model", "created": started, "owned_by": "janus-dola"}
        return JSONResponse({"object": "list", "data": [model]})

    @app.get("/images/{name}", include_in_schema=False)
    async def image_file(name: str) -> Response:
        path = service.files.find(name)
        if path is None:
            return error_response(404, f"there is no image {name!r}, or no more", "name", "not_found")
        return FileResponse(path)

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether the model is loaded: 200 or 503."""
        loading = service.ready() is None
        return JSONResponse({"status": "loading" if loading else "ready"}, 503 if loading else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counts for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _add_errors(app: FastAPI, service: Service) -> None:
    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: RequestValidationError) -> JSONResponse:
        return of_validation(error)

    @app.exception_handler(InvalidError)
    async def not_possible(request: Request, error: InvalidError) -> JSONResponse:
        return error_response(error.status, str(error), error.field, error.code)

    @app.exception_handler(FullError)
    async def full(request: Request, error: FullError) -> JSONResponse:
        ready = service.ready()
        seconds = ready[1].seconds_to_wait() if ready else _SECONDS_OF_LOADING
        return error_response(429, str(error), code="rate_limit_exceeded", headers={"Retry-After": str(seconds)})

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        return error_response(error.status_code, str(error.detail), headers=dict(error.headers or {}))

    @app.exception_handler(Exception)  # and what the server itself did wrong is logged
    @app.exception_handler(NonFiniteError)
    @app.exception_handler(torch.OutOfMemoryError)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return error_response(500, str(error), code="drawing_failed")


async def _until_done(
    request: Request, worker: Worker, wanted: Wanted, events: "asyncio.Queue[Event]"
) -> AsyncGenerator[Partial | Finished, None]:
    """What happens, till all images are drawn. However it ends, what is not drawn is given up.

    Raises:
        GoneError: the client went away.
    """
    gone = asyncio.ensure_future(_gone(request))
    missing = len(wanted.images)
    try:
        while missing:
            following = asyncio.ensure_future(events.get())
            await asyncio.wait({following, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                following.cancel()
                raise GoneError
            found = following.result()
            if isinstance(found, Failed):
                raise found.error
            missing -= isinstance(found, Finished)
            yield found
    finally:
        gone.cancel()
        worker.give_up(wanted.images)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _streamed(happening: AsyncGenerator[Partial | Finished, None], answers: Answers) -> AsyncIterator[str]:
    try:
        async with aclosing(happening):
            async for found in happening:
                if isinstance(found, Partial):
                    yield await asyncio.to_thread(answers.partial, found)
                else:
                    yield await asyncio.to_thread(answers.completed, found)
    except GoneError:
        return
    except Exception as error:  # the status was sent before: the error is an event
        yield event("error", error_body(str(error), "server_error", code="drawing_failed"))
