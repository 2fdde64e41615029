"""The routes for programs: OpenAI's transcriptions and translations, health, metrics; and a page about them for people.

What they may ask for is in `forms.py`, what they get in `answers.py`.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, TypeVar

import anyio
from fastapi import APIRouter, FastAPI, Form, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from ..audio_files.limits import MAX_DURATION
from ..errors import GlmAsrError
from . import manual
from .addresses import adapted_names
from .answers import ERRORS, EventStream, answer, as_events
from .forms import FormRoute, Transcription, Translation, check_names, invalid, stored
from .gate import HEALTH, REALTIME, ROUTES, Gate
from .messages import Began
from .problems import (
    ClientLeft,
    MethodNotAllowed,
    ModelNotFound,
    Problem,
    UnknownUrl,
    UpgradeRequired,
    as_problem,
)
from .realtime import add_realtime
from .request_queue import Event, Finished, RequestQueue

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
Result = TypeVar("Result")


def make_app(
    queue: RequestQueue,
    folder: str,
    *,
    names: tuple[str, ...] = ("glmasr",),
    adapters: tuple[str, ...] = (),
    key: str = "",
    most_bytes: int = 100 * 2**20,
    max_duration: float = MAX_DURATION,
    hosts: frozenset[str] | None = None,
    origins: tuple[str, ...] = (),
) -> FastAPI:
    """The application, without the page (`page.add`).

    folder         where uploads are kept while they are needed
    names          of the model in requests; the first one is its name in answers
    adapters       what those of the queue's model are called: requests choose one as `model=NAME:ADAPTER`
    key            that requests need; "": none
    most_bytes     of an upload
    max_duration   seconds of a recording
    hosts          names that requests may call this server by, without the port; None: any
    origins        from whose pages browsers may call this server (CORS)
    """
    app = Application(
        title="glmasr",
        version="1",
        description="Speech recognition, as OpenAI's API has it.",
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(Gate, queue=queue, key=key, most_bytes=most_bytes, hosts=hosts, origins=origins)
    # The last one added is the first one asked: a browser sends no key when it asks whether it may send one.
    # TRAP: without this one, even for no origin, Gradio adds its own, which lets in the pages of everybody.
    app.add_middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"])
    adapted = adapted_names(names, adapters)
    names = (*names, *adapted)
    service = Service(queue, folder, names, max_duration, adapted)
    add_error_handlers(app)
    add_recognition(app, service)
    add_models(app, service)
    add_realtime(app, queue, names, max_duration, adapted)
    add_operation(app, queue)
    add_manual(app, service, has_key=bool(key), most_bytes=most_bytes)
    add_unknown(app)
    return app


class Application(FastAPI):
    """FastAPI, which promises a status 422 that `add_error_handlers` makes a 400."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document without status 422, which this server never returns."""
        schema = super().openapi()
        for methods in schema["paths"].values():
            for call in methods.values():
                call["responses"].pop("422", None)
        return schema


def add_error_handlers(app: FastAPI) -> None:
    """Makes Problems, and the errors of this package and of FastAPI, answers in OpenAI's shape."""

    @app.exception_handler(Problem)
    @app.exception_handler(GlmAsrError)
    @app.exception_handler(HTTPException)
    async def failed(request: Request, error: Exception) -> Response:
        return as_problem(error).response()

    @app.exception_handler(RequestValidationError)
    async def misread(request: Request, error: RequestValidationError) -> Response:
        return invalid(error).response()


# ---- recognition -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Service:
    """What the routes share: as of `make_app`."""

    queue: RequestQueue
    folder: str
    names: tuple[str, ...]
    max_duration: float
    adapted: dict[str, str]  # of the names those of the model with an adapter -> the adapter
    began: int = field(default_factory=lambda: int(time.time()))

    async def recognize(
        self, request: Request, form: Translation, language: str = "auto", stream: bool = False
    ) -> Response:
        """The answer to a form. Raises Problem, and as `RequestQueue.recognize`."""
        await check_names(request)
        self.check_model(form.model)
        assert self.queue.facts is not None, "requests are taken in when the model is loaded"
        options = form.options(self.queue.facts, self.max_duration)
        async with AsyncExitStack() as stack:
            path = await stack.enter_async_context(stored(form.file, self.folder))
            adapter = self.adapted.get(form.model, "")
            events = await stack.enter_async_context(aclosing(self.queue.recognize(path, language, options, adapter)))
            if not stream:
                finished = await unless_gone(request, asyncio.ensure_future(last(events)))
                return await anyio.to_thread.run_sync(
                    answer, finished, form.task, form.response_format, form.granularities
                )
            first = await unless_gone(request, asyncio.ensure_future(anext(events)))
            if isinstance(first, Began):  # an error before the first text has a status of its own
                first = await unless_gone(request, asyncio.ensure_future(anext(events)))
            return EventStream(as_events(events, first), stack.pop_all())

    def check_model(self, name: str) -> None:
        """Raises ModelNotFound unless the name is one of `names`."""
        if name not in self.names:
            raise ModelNotFound(f"model is {name[:100]!r}, but this server has {', '.join(self.names)}", "model")


def add_recognition(app: FastAPI, service: Service) -> None:
    """Adds the routes that take recordings: transcriptions and translations."""
    forms = APIRouter(route_class=FormRoute)
    texts: dict[str, Any] = {"text/plain": {}}
    events: dict[str, Any] = {"text/event-stream": {}}

    @forms.post(ROUTES["transcribe"], responses=ERRORS | {200: {"content": texts | events}}, tags=["recognition"])
    async def transcriptions(
        request: Request, form: Annotated[Transcription, Form(media_type="multipart/form-data")]
    ) -> Response:
        """The text of a recording."""
        return await service.recognize(request, form, form.language, form.stream)

    @forms.post(ROUTES["translate"], responses=ERRORS | {200: {"content": texts}}, tags=["recognition"])
    async def translations(
        request: Request, form: Annotated[Translation, Form(media_type="multipart/form-data")]
    ) -> Response:
        """What is said in a recording, in English; where the model translates."""
        return await service.recognize(request, form)

    app.include_router(forms)


async def last(events: AsyncGenerator[Event, None]) -> Finished:
    """The Finished that the events of a recording end with; its parts are passed over."""
    async for event in events:
        if isinstance(event, Finished):
            return event
    raise AssertionError("a recording ends with Finished, or an exception")


async def unless_gone(request: Request, task: asyncio.Future[Result]) -> Result:
    """The task's result. Raises ClientLeft if the client leaves first, and then the task is cancelled."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    leaving = asyncio.ensure_future(gone())
    try:
        waiting: list[asyncio.Future[Any]] = [task, leaving]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientLeft("the client left before the answer")
    finally:
        task.cancel()
        leaving.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


# ---- everything else -------------------------------------------------------------------------------------------------


def add_models(app: FastAPI, service: Service) -> None:
    """Adds the routes that list the names of the model."""

    def described(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": service.began, "owned_by": "glmasr"}

    @app.head("/v1/models", include_in_schema=False)
    @app.get("/v1/models", tags=["recognition"])
    async def models() -> dict[str, Any]:
        """The names of the model."""
        return {"object": "list", "data": [described(name) for name in service.names]}

    @app.head("/v1/models/{name:path}", include_in_schema=False)
    @app.get("/v1/models/{name:path}", responses={404: ERRORS[404], 422: ERRORS[422]}, tags=["recognition"])
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        service.check_model(name)
        return described(name)


def add_operation(app: FastAPI, queue: RequestQueue) -> None:
    """Adds the routes for those who run the server: health and metrics."""
    closed: dict[int | str, dict[str, Any]] = {503: {"description": "it can't work, or is about to end"}}

    @app.head(HEALTH, include_in_schema=False)
    @app.get(HEALTH, responses=closed, tags=["operation"])
    async def health() -> Response:
        """200 while the model is loaded and recordings are taken in."""
        status = "closing" if queue.closing else "ok" if queue.ready else "loading"
        content = {"status": status, "waiting": len(queue.waiting), "running": len(queue.running)}
        return JSONResponse(content, 200 if status == "ok" else 503)

    @app.head("/metrics", include_in_schema=False)
    @app.get("/metrics", response_class=PlainTextResponse, tags=["operation"])
    async def metrics() -> Response:
        """Counts and times, for Prometheus."""
        return Response(queue.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def add_manual(app: FastAPI, service: Service, has_key: bool, most_bytes: int) -> None:
    """Adds /docs, the page that describes the API. It is made once, at the first request."""

    @cache
    def html() -> str:
        facts = service.queue.facts
        return manual.page(
            app.openapi(),
            model=service.names[0],
            key=has_key,
            most_bytes=most_bytes,
            max_duration=service.max_duration,
            languages=facts.languages if facts else [],
            translates=not facts or "translate" in facts.tasks,
        )

    @app.head("/docs", include_in_schema=False)
    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        """All of this for people."""
        return HTMLResponse(html(), headers=manual.HEADERS)


def add_unknown(app: FastAPI) -> None:
    """What else begins with /v1 isn't the page's. TRAP: this has to be added after all other routes."""

    @app.api_route("/v1", methods=METHODS, include_in_schema=False)
    @app.api_route("/v1/{path:path}", methods=METHODS, include_in_schema=False)
    async def unknown(request: Request) -> None:
        path = request.url.path
        if path in ROUTES.values():
            raise MethodNotAllowed(f"{path} takes POST", headers={"Allow": "POST"})
        if path == REALTIME:
            raise UpgradeRequired(
                f"{path} is a WebSocket; connect to it as ws:// or wss://", headers={"Upgrade": "websocket"}
            )
        if path == "/v1/models" or path.startswith("/v1/models/"):
            raise MethodNotAllowed("the models can only be looked at, with GET", headers={"Allow": "GET"})
        raise UnknownUrl(
            f"{path[:100]} is not known; this server has {', '.join([*ROUTES.values(), REALTIME])} and /v1/models"
        )
