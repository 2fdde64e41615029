"""The routes for programs: OpenAI's transcriptions and translations, health, metrics; and a page about them for people.

What is unusual here: whatever this server can't do is an error that says so. No field is accepted and ignored, not even one that it has never
heard of.
"""

import asyncio
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from functools import cache
from typing import Annotated, ClassVar, Literal

import anyio
from fastapi import APIRouter, FastAPI, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from ..audio import MAX_DURATION
from ..errors import GlmAsrError
from ..pipeline import Options
from ..transcription.fallback import TEMPERATURES
from ..transcription.language import NAMES, join, spaced
from ..writers.formats import WRITERS, record
from . import manual
from .gate import ROUTES, SLACK, Gate
from .problems import Problem
from .request_queue import Desk, Finished, Refused
from .worker import Began, Heard

MOST_FIELDS = 50                # of a form
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]


# ---- what is asked for ----------------------------------------------------------------------------------------------------

class Translation(BaseModel):
    """The fields of OpenAI's translation that this server knows."""

    model_config = ConfigDict(extra="forbid")
    task: ClassVar[str] = "translate"

    file: UploadFile = Field(description="the recording: WAV, FLAC, OGG, MP3, AIFF, AU, CAF; with ffmpeg on the server also M4A, MP4, WEBM, ...")
    model: str = Field(description="as `/v1/models` names it")
    prompt: str = Field("", description="not supported: has to be empty")
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = Field("json", description="the last three with times")
    temperature: float = Field(0.0, ge=0, le=1, allow_inf_nan=False, description="0: the best text is searched; above: it is sampled")

    def options(self, desk: Desk, max_duration: float) -> Options:
        """Raises Problem for what isn't supported."""
        if self.task not in desk.facts.tasks:
            raise Problem(400, f"{self.model} doesn't translate: its vocabulary has no token for it; expected a Whisper of many languages, or a request to "
                          f"{ROUTES['transcribe']} for the text as it was spoken", "model", "unsupported_value")
        if self.prompt:
            raise Problem(400, "prompt is not supported: the model takes no text beside the sound; leave it out", "prompt", "unsupported_parameter")
        # As openai-whisper: from there on, what is tried while a text can't be right.
        temperatures = (self.temperature, *(value for value in TEMPERATURES if value > self.temperature))
        return Options(self.task, temperatures=temperatures, max_duration=max_duration,
                       timestamps=desk.facts.timestamps and self.response_format in ("srt", "vtt", "verbose_json") or None)


class Transcription(Translation):
    """The fields of OpenAI's transcription that this server knows."""

    task: ClassVar[str] = "transcribe"

    language: str = Field("auto", max_length=40, description="zh, yue, en, or what the model knows besides; by default it judges by itself")
    timestamp_granularities: list[str] = Field([], alias="timestamp_granularities[]", description="segment; of verbose_json only")
    track: str = Field("", pattern="^([1-9][0-9]{0,3}|[A-Za-z]{2,3})?$", description="not of OpenAI's API. Of a file with several tracks of "
                       "sound: a number, from 1, or a language such as eng; by default the file's default, else the first one")
    stream: bool = Field(False, description="events as soon as a stretch is recognised; of json only")

    def options(self, desk: Desk, max_duration: float) -> Options:
        granularities = set(self.timestamp_granularities)
        if "word" in granularities:
            raise Problem(400, "timestamp_granularities[] is 'word', but the model has no times of words; ask for 'segment'",
                          "timestamp_granularities[]", "unsupported_value")
        if unknown := granularities - {"segment"}:
            raise Problem(400, f"timestamp_granularities[] is {min(unknown)[:100]!r}, expected 'segment'", "timestamp_granularities[]", "invalid_value")
        if granularities and self.response_format != "verbose_json":
            raise Problem(400, f"timestamp_granularities[] goes with response_format verbose_json, not {self.response_format}",
                          "timestamp_granularities[]", "invalid_value")
        if self.stream and self.response_format != "json":
            raise Problem(400, f"stream goes with response_format json, not {self.response_format}; leave one of them out", "stream", "unsupported_value")
        track = int(self.track) if self.track.isdecimal() else self.track or None
        return replace(super().options(desk, max_duration), track=track)


class Failure(BaseModel):
    """What is answered where something went wrong, as OpenAI has it: `problems.Problem`."""

    class Error(BaseModel):
        message: str
        type: str
        param: str | None
        code: str | None

    error: Error


class FormRoute(APIRoute):
    """A route that takes a form with one file, and at most SLACK bytes beside it. TRAP: left to itself FastAPI takes a thousand fields of a
    megabyte each into memory."""

    def get_route_handler(self):
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            try:
                form = await request.form(max_files=1, max_fields=MOST_FIELDS, max_part_size=SLACK)         # stays with the request
            except HTTPException as error:
                raise (too_many_bytes() if "maximum size" in str(error.detail) else error) from error.__cause__
            if sum(len(name) + len(value) for name, value in form.multi_items() if isinstance(value, str)) > SLACK:
                raise too_many_bytes()
            return await handle(request)
        return bounded


def too_many_bytes() -> Problem:
    return Problem(413, f"the fields beside the file have more than {SLACK // 1024} KiB together, which is the limit", None, "too_large")


@asynccontextmanager
async def kept(upload: UploadFile, folder: str) -> AsyncIterator[str]:
    """The path of an upload, in a file of its own that is gone afterwards. Its ending stays: some decoders go by it."""
    ending = re.fullmatch(r"\.[a-z0-9]{1,5}", os.path.splitext(upload.filename or "")[1].lower())
    handle, path = tempfile.mkstemp(ending[0] if ending else "", "upload-", folder)
    try:
        with open(handle, "wb") as file:
            await anyio.to_thread.run_sync(shutil.copyfileobj, upload.file, file, 2 ** 20)
        yield path
    finally:
        with anyio.CancelScope(shield=True):            # of a client that left too
            await anyio.to_thread.run_sync(os.unlink, path)


# ---- what is answered -----------------------------------------------------------------------------------------------------

def as_json(found: Finished) -> dict:
    transcript = found.transcript
    return {"text": transcript.text, "usage": {"type": "duration", "seconds": math.ceil(transcript.seconds)},
            **({"warnings": transcript.warnings} if transcript.warnings else {})}


def as_verbose_json(found: Finished, task: str) -> dict:
    """With the segments that have a text. As OpenAI's, these begin with the space that stands before them, and the language of a translation is
    that of the text."""
    known = record(found.transcript)
    language = "en" if task == "translate" else known["language"]
    texts = spaced([one["text"] for one in known["segments"]])
    segments = [{"id": number, "seek": round(100 * seek), "start": one["start"], "end": one["end"], "text": text, "tokens": tokens,
                 "temperature": one["temperature"], "avg_logprob": one["mean_logprob"], "compression_ratio": one["compression_ratio"],
                 "no_speech_prob": one["no_speech"]}
                for number, (one, text, tokens, seek) in enumerate(zip(known["segments"], texts, found.tokens, found.seeks, strict=True))]
    return {"task": task, "language": NAMES.get(language, language), "duration": known["seconds"], "text": known["text"],
            "segments": segments, **as_json(found)}


def answer(found: Finished, task: str, form: str) -> Response:
    if form == "json":
        return JSONResponse(as_json(found))
    if form == "verbose_json":
        return JSONResponse(as_verbose_json(found, task))
    text = f"{found.transcript.text}\n" if form == "text" else WRITERS[form](found.transcript)
    return PlainTextResponse(text)


def _event(content: dict, name: str = "") -> str:
    # TRAP: a text may hold a line break that JSON leaves alone and an event stream does not; ASCII has none.
    return (f"event: {name}\n" if name else "") + f"data: {json.dumps(content)}\n\n"


async def as_events(events: AsyncIterator, first) -> AsyncIterator[str]:
    """OpenAI's events: `transcript.text.delta` for each stretch, `transcript.text.done`. An error is the last event."""
    said = ""
    try:
        while True:
            if isinstance(first, Heard):
                text = join([said, *(segment.text for segment in first.part.segments)])
                if text != said:
                    yield _event({"type": "transcript.text.delta", "delta": text[len(said):]})
                said = text
            elif isinstance(first, Finished):
                yield _event({"type": "transcript.text.done", **as_json(first)})
                return
            first = await anext(events)
    except Exception as error:                          # the status has been sent
        yield _event(Problem.of(error).content(), "error")


class EventStream(StreamingResponse):
    """Closes `stack` when it was sent, or can't be sent any more."""

    def __init__(self, events: AsyncIterator[str], stack: AsyncExitStack):
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self.stack = stack

    async def __call__(self, scope, receive, send) -> None:
        async with self.stack:
            await super().__call__(scope, receive, send)


async def finished(events: AsyncIterator) -> Finished:
    async with aclosing(events):
        async for event in events:
            pass
    return event


async def unless_gone(request: Request, task: asyncio.Task):
    """The task's result; None if the client leaves first, and then the task is cancelled."""
    async def gone():
        while (await request.receive())["type"] != "http.disconnect":
            pass

    leaving = asyncio.ensure_future(gone())
    try:
        await asyncio.wait([task, leaving], return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for one in (task, leaving):
            one.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


def _invalid(error: RequestValidationError) -> Problem:
    """What is wrong with a form, in words for its sender."""
    first = error.errors()[0]
    param = str(first["loc"][-1]) if len(first["loc"]) > 1 else None
    if param is None:
        return Problem(400, "the request has no form; expected multipart/form-data with file and model", None, "missing_required_parameter")
    if first["type"] == "missing":
        return Problem(400, f"{param} is missing", param, "missing_required_parameter")
    if first["type"] == "extra_forbidden":
        return Problem(400, f"{param} is not supported by this server; leave it out", param, "unsupported_parameter")
    if param == "file":
        return Problem(400, "file has to be a file of the form, with a filename", "file", "invalid_value")
    value = first.get("input")
    shown = f" is {value[:100]!r}" if isinstance(value, str) else ""
    return Problem(400, f"{param}{shown}: {first['msg']}", param, "invalid_value")


# ---- the application ------------------------------------------------------------------------------------------------------

def make_app(desk: Desk, folder: str, *, names: tuple[str, ...] = ("glmasr",), key: str = "", most_bytes: int = 100 * 2 ** 20,
             max_duration: float = MAX_DURATION, hosts: frozenset[str] | None = None, origins: tuple[str, ...] = ()) -> FastAPI:
    """The application, without the page (`page.add`).

    folder         where uploads are kept while they are needed
    names          of the model in requests; the first one is its name in answers
    key            that requests need; "": none
    most_bytes     of an upload
    max_duration   seconds of a recording
    hosts          names that requests may call this server by, without the port; None: any
    origins        from whose pages browsers may call this server (CORS)
    """
    app = FastAPI(title="glmasr", version="1", description="Speech recognition, as OpenAI's API has it.", docs_url=None, redoc_url=None)
    app.add_middleware(Gate, desk=desk, key=key, most_bytes=most_bytes, hosts=hosts, origins=origins)
    # The last one added is the first one asked: a browser sends no key when it asks whether it may send one.
    # TRAP: without this one, even for no origin, Gradio adds its own, which lets in the pages of everybody.
    app.add_middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"])
    forms = APIRouter(route_class=FormRoute)
    began = int(time.time())
    errors = {status: {"description": text, "model": Failure} for status, text in (
        (400, "a field that is missing, wrong or not supported, or a file that is no recording"), (401, "the API key is missing or wrong"),
        (403, "the request was made for another server, or by a page of another origin"), (404, "no such model"), (408, "the upload is too slow"),
        (413, "the upload is too large"), (415, "a charset other than UTF-8"), (429, "the queue is full; `Retry-After` says when to try again"),
        (500, "a defect of the server"), (503, "the server is about to end"), (504, "it took longer than the server's time limit"),
        (507, "no room on the disk or in memory; `Retry-After` says when to try again"))}
    errors[422] = errors[400]                           # or FastAPI promises its own ones; there are none: `openapi`

    @app.exception_handler(Problem)
    @app.exception_handler(Refused)
    @app.exception_handler(GlmAsrError)
    async def failed(request: Request, error: Exception):
        return Problem.of(error).response()

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException):
        if isinstance(error.__cause__, (Problem, OSError)):
            return Problem.of(error.__cause__).response()
        return Problem(error.status_code, str(error.detail), headers=error.headers).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError):
        return _invalid(error).response()

    async def recognised(request: Request, form: Translation, language: str = "auto", stream: bool = False) -> Response:
        for name in request.query_params:
            raise Problem(400, f"{name[:100]} stands in the address; send it as a field of the form", name[:100], "unsupported_parameter")
        fields = (await request.form()).multi_items()           # read by `FormRoute` already
        for name in {name for name, _ in fields if not name.endswith("[]")}:
            if sum(name == other for other, _ in fields) > 1:
                raise Problem(400, f"{name} comes several times; send it once", name, "invalid_value")
        if form.model not in names:
            raise Problem(404, f"model is {form.model[:100]!r}, but this server has {', '.join(names)}", "model", "model_not_found")
        options = form.options(desk, max_duration)
        if not stream:
            async with kept(form.file, folder) as path:
                found = await unless_gone(request, asyncio.ensure_future(finished(desk.recognise(path, language, options))))
            return Response(status_code=499) if found is None else await anyio.to_thread.run_sync(answer, found, form.task, form.response_format)

        async with AsyncExitStack() as stack:
            path = await stack.enter_async_context(kept(form.file, folder))
            events = await stack.enter_async_context(aclosing(desk.recognise(path, language, options)))
            first = await unless_gone(request, asyncio.ensure_future(anext(events)))
            if isinstance(first, Began):                # an error before the first text has a status of its own
                first = await unless_gone(request, asyncio.ensure_future(anext(events)))
            return Response(status_code=499) if first is None else EventStream(as_events(events, first), stack.pop_all())

    @forms.post(ROUTES["transcribe"], responses=errors | {200: {"content": {"text/plain": {}, "text/event-stream": {}}}}, tags=["recognition"])
    async def transcriptions(request: Request, form: Annotated[Transcription, Form(media_type="multipart/form-data")]):
        """The text of a recording."""
        return await recognised(request, form, form.language, form.stream)

    @forms.post(ROUTES["translate"], responses=errors | {200: {"content": {"text/plain": {}}}}, tags=["recognition"])
    async def translations(request: Request, form: Annotated[Translation, Form(media_type="multipart/form-data")]):
        """What is said in a recording, in English; where the model translates."""
        return await recognised(request, form)

    app.include_router(forms)

    def described(name: str) -> dict:
        return {"id": name, "object": "model", "created": began, "owned_by": "glmasr"}

    @app.head("/v1/models", include_in_schema=False)
    @app.get("/v1/models", tags=["recognition"])
    async def models() -> dict:
        """The names of the model."""
        return {"object": "list", "data": [described(name) for name in names]}

    @app.head("/v1/models/{name:path}", include_in_schema=False)
    @app.get("/v1/models/{name:path}", responses={404: errors[404], 422: errors[422]}, tags=["recognition"])
    async def model(name: str) -> dict:
        """One of them."""
        if name not in names:
            raise Problem(404, f"model is {name[:100]!r}, but this server has {', '.join(names)}", "model", "model_not_found")
        return described(name)

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", responses={503: {"description": "it can't work, or is about to end"}}, tags=["operation"])
    async def health() -> Response:
        """200 while the model is loaded and recordings are taken in."""
        status = "closing" if desk.closing else "ok" if desk.ready else "loading"
        return JSONResponse({"status": status, "waiting": len(desk.waiting), "running": len(desk.running)}, 200 if status == "ok" else 503)

    @app.head("/metrics", include_in_schema=False)
    @app.get("/metrics", response_class=PlainTextResponse, tags=["operation"])
    async def metrics() -> Response:
        """Counts and times, for Prometheus."""
        return Response(desk.figures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @cache
    def shown() -> str:
        known = desk.facts
        return manual.page(app.openapi(), model=names[0], key=bool(key), most_bytes=most_bytes, max_duration=max_duration,
                           languages=known.languages if known else [], translates=not known or "translate" in known.tasks)

    @app.head("/docs", include_in_schema=False)
    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        """All of this for people."""
        return HTMLResponse(shown(), headers=manual.HEADERS)

    described_by_fastapi = app.openapi

    def openapi() -> dict:
        schema = described_by_fastapi()
        for methods in schema["paths"].values():
            for call in methods.values():
                call["responses"].pop("422", None)
        return schema
    app.openapi = openapi

    @app.api_route("/v1", methods=METHODS, include_in_schema=False)
    @app.api_route("/v1/{path:path}", methods=METHODS, include_in_schema=False)
    async def unknown(request: Request):
        if request.url.path in ROUTES.values():
            raise Problem(405, f"{request.url.path} takes POST", headers={"Allow": "POST"})
        if request.url.path == "/v1/models" or request.url.path.startswith("/v1/models/"):
            raise Problem(405, "the models can only be looked at, with GET", headers={"Allow": "GET"})
        raise Problem(404, f"{request.url.path[:100]} is not known; this server has {', '.join(ROUTES.values())} and /v1/models", code="unknown_url")

    return app
