"""The routes for programs: OpenAI's transcription API, health, metrics. And the gate that all requests pass first.

What is unusual here:
- The gate is ASGI, in front of everything, the web page included: the key, the size and the pace of an upload are looked at while it
  comes in, before anything is kept.
- Whatever this server can't do is an error that says so. No field is accepted and ignored, not even one that it has never heard of.
- Errors have OpenAI's shape, {"error": {"message", "type", "param", "code"}}, which its clients show to their users.
"""

import asyncio
import base64
import binascii
import errno
import hmac
import json
import logging
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Annotated, Literal

import anyio
from fastapi import FastAPI, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from . import writers
from .audio import MAX_DURATION
from .batching import Busy, Closing, Desk, Finished, Refused, TooLong
from .errors import AudioError, GlmAsrError, OptionError, ShortMemoryError
from .fallback import TEMPERATURES
from .language import join
from .pipeline import Options
from .worker import Began, Heard

ROUTE = "/v1/audio/transcriptions"
STALL = 20.0                    # seconds in which nothing of an upload comes before it is given up
UPLOAD = 600.0                  # seconds that an upload may take
LINGER = 5.0                    # seconds for which a refused upload is read on: a client that is still sending hears no answer
SLACK = 2 ** 16                 # bytes of a request beside the recording
REFUSED = {408, 413, 429, 503, 504, 507}        # an answer of these says: not now, or not this much
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
NAMES = {"zh": "chinese", "yue": "cantonese", "en": "english"}          # OpenAI names a language so in its answers
log = logging.getLogger("glmasr")


# ---- errors ---------------------------------------------------------------------------------------------------------------

class Problem(Exception):
    """An error to answer with. `param` is the field that caused it."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None, retry_after: int | None = None,
                 headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = dict(headers or {}) | ({} if retry_after is None else {"Retry-After": str(retry_after)})

    @classmethod
    def of(cls, error: BaseException) -> "Problem":
        if isinstance(error, Problem):
            return error
        if isinstance(error, Refused):
            status = 429 if isinstance(error, Busy) else 503 if isinstance(error, Closing) else 504 if isinstance(error, TooLong) else 500
            code = {429: "queue_full", 503: "shutting_down", 504: "time_limit", 500: "worker_died"}[status]
            return cls(status, str(error), None, code, error.retry_after)
        if isinstance(error, AudioError):
            return cls(400, str(error), "file", "invalid_audio")
        if isinstance(error, OptionError):
            field = re.match(r"language|temperature", str(error))
            return cls(400, str(error), field and field[0], "invalid_value")
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return cls(507, "the server has no room for the upload; try again later, or send a smaller file", None, "no_space", 30)
        if isinstance(error, ShortMemoryError):
            return cls(507, "the server's memory doesn't hold this; try again later, or with a temperature of 0", None, "no_memory", 30)
        # The message of any other error may quote a recording or its text: it is neither answered nor logged.
        log.error("%s at %s", type(error).__name__, "; ".join(_places(error)))
        return cls(500, "the server has a defect; its log says where", None, "internal_error")

    def content(self) -> dict:
        kind = ("authentication_error" if self.status == 401 else "rate_limit_error" if self.status == 429
                else "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.content(), self.status, self.headers)


def _places(error: BaseException) -> list[str]:
    places, trace = [], error.__traceback__
    while trace:
        places.append(f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return places[-5:]


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


# ---- the gate -------------------------------------------------------------------------------------------------------------

class Gate:
    """ASGI middleware: the key, the size of a request, its pace, and the queue, before anything is kept of it.

    key          "Authorization: Bearer KEY", or the password of "Basic", for which a browser asks its user; "" lets everybody in
    most_bytes   of a recording
    """

    def __init__(self, app, desk: Desk, key: str, most_bytes: int):
        self.app, self.desk, self.key, self.most_bytes = app, desk, key.encode(), most_bytes

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await (self.app(scope, receive, send) if scope["type"] == "lifespan" or self.knows(scope) else send({"type": "websocket.close", "code": 1008}))
            return
        headers = dict(scope["headers"])
        limit = self.most_bytes
        if headers.get(b"content-type", b"").startswith(b"application/json"):
            limit = limit * 4 // 3                      # base64
        limit += SLACK
        try:
            if scope["path"] != "/healthz" and not self.knows(scope):
                challenge = {"WWW-Authenticate": 'Bearer realm="glmasr", Basic realm="glmasr"'}
                raise Problem(401, "the API key is missing or wrong; send it as  Authorization: Bearer KEY", None, "invalid_api_key", headers=challenge)
            # TRAP: such a call is answered by the first thing that a function yields, which is no text yet.
            if scope["path"] in ("/gradio_api/run/transcribe", "/gradio_api/api/transcribe"):
                raise Problem(400, f"{scope['path']} is not supported; expected /gradio_api/call/transcribe or /gradio_api/queue/join", None, "unsupported_value")
            length = headers.get(b"content-length", b"0")
            if length.isdigit() and int(length) > limit:
                raise self.too_large()
            if scope["path"] == ROUTE and scope["method"] == "POST":
                self.desk.check()
        except (Problem, Refused) as error:
            problem = Problem.of(error)
            self.desk.figures.refused(problem.status)
            if b"100-continue" not in headers.get(b"expect", b""):      # such a client waits until it is asked to send
                await self.read_on(receive)
            await problem.response()(scope, receive, send)
            return
        begun = False

        async def noted(message):
            nonlocal begun
            begun = True
            if message.get("status") in REFUSED and scope["path"] != "/healthz":
                self.desk.figures.refused(message["status"])
            await send(message)

        try:
            await self.app(scope, self.watched(receive, limit), noted)
        except Exception as error:                      # TRAP: beyond this place its message would be logged
            response = Problem.of(error).response()
            if not begun:
                await response(scope, receive, send)

    def knows(self, scope) -> bool:
        if not self.key:
            return True
        kind, _, value = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        if kind.lower() == b"basic":
            try:
                value = base64.b64decode(value, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif kind.lower() != b"bearer":
            return False
        return hmac.compare_digest(value.strip(), self.key)

    def too_large(self) -> Problem:
        return Problem(413, f"the upload is larger than {self.most_bytes / 2 ** 20:g} MiB, which is the limit; compress it (FLAC, Opus), or cut it",
                       "file", "too_large")

    def watched(self, receive, limit: int):
        """The same `receive`, which raises where an upload is too large or too slow."""
        read, over, deadline = 0, False, time.monotonic() + UPLOAD

        async def inner():
            nonlocal read, over
            if over:                                    # what comes now is that the client has left, whenever that is
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0, min(STALL, deadline - time.monotonic())))
            except asyncio.TimeoutError:
                raise _http(Problem(408, f"nothing came for {STALL:g} s, or not all of it in {UPLOAD:g} s; send it again", None, "upload_timeout",
                                    headers={"Connection": "close"})) from None
            read += len(message.get("body", b""))
            over = not message.get("more_body")
            if read > limit:
                if message.get("more_body"):
                    await self.read_on(receive)
                raise _http(self.too_large())
            return message
        return inner

    async def read_on(self, receive) -> None:
        """TRAP: a connection that is closed while its client is sending is reset, and the client sees that instead of the answer."""
        with anyio.move_on_after(LINGER):
            while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                pass


def _http(problem: Problem) -> HTTPException:
    """FastAPI lets this one pass where it reads a form, and calls everything else a damaged body."""
    error = HTTPException(problem.status, str(problem), problem.headers)
    error.__cause__ = problem
    return error


# ---- what is asked for ----------------------------------------------------------------------------------------------------

class Transcription(BaseModel):
    """The fields of OpenAI's request that this server knows."""

    model_config = ConfigDict(extra="forbid")

    file: UploadFile = Field(description="the recording: WAV, FLAC, OGG, MP3, AIFF, AU, CAF; with ffmpeg on the server also M4A, MP4, WEBM, ...")
    model: str = Field(description="as `/v1/models` names it")
    language: str = Field("auto", max_length=40, description="zh, yue, en, or what the model knows besides; by default it judges by itself")
    prompt: str = Field("", description="not supported: has to be empty")
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    temperature: float = Field(0.0, ge=0, le=1, allow_inf_nan=False, description="0: the best text is searched; above: it is sampled")
    timestamp_granularities: list[str] = Field([], alias="timestamp_granularities[]", description="segment; of verbose_json only")
    stream: bool = Field(False, description="events as soon as a stretch is recognised; of json only")

    def options(self, desk: Desk, max_duration: float) -> Options:
        """Raises Problem for what isn't supported."""
        if self.prompt:
            raise Problem(400, "prompt is not supported: the model takes no text beside the sound; leave it out", "prompt", "unsupported_parameter")
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
        # As openai-whisper: from there on, what is tried while a text can't be right.
        temperatures = (self.temperature, *(value for value in TEMPERATURES if value > self.temperature))
        return Options(temperatures=temperatures, max_duration=max_duration,
                       timestamps=desk.facts.timestamps and self.response_format in ("srt", "vtt", "verbose_json"))


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
        os.unlink(path)


# ---- what is answered -----------------------------------------------------------------------------------------------------

def as_json(found: Finished) -> dict:
    transcript = found.transcript
    return {"text": transcript.text, "usage": {"type": "duration", "seconds": math.ceil(transcript.seconds)},
            **({"warnings": transcript.warnings} if transcript.warnings else {})}


def as_verbose_json(found: Finished) -> dict:
    """With the segments that have a text."""
    record = writers.record(found.transcript)
    language = record["language"]
    segments = [{"id": number, "seek": round(100 * seek), "start": one["start"], "end": one["end"], "text": one["text"], "tokens": tokens,
                 "temperature": one["temperature"], "avg_logprob": one["mean_logprob"], "compression_ratio": one["compression_ratio"],
                 "no_speech_prob": one["no_speech"]}
                for number, (one, tokens, seek) in enumerate(zip(record["segments"], found.tokens, found.seeks, strict=True))]
    return {"task": "transcribe", "language": NAMES.get(language, language), "duration": record["seconds"], "text": record["text"],
            "segments": segments, **as_json(found)}


def answer(found: Finished, form: str) -> Response:
    if form == "json":
        return JSONResponse(as_json(found))
    if form == "verbose_json":
        return JSONResponse(as_verbose_json(found))
    text = f"{found.transcript.text}\n" if form == "text" else writers.WRITERS[form](found.transcript)
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


# ---- the application ------------------------------------------------------------------------------------------------------

def make_app(desk: Desk, folder: str, *, names: tuple[str, ...] = ("glmasr",), key: str = "", most_bytes: int = 100 * 2 ** 20,
             max_duration: float = MAX_DURATION, origins: tuple[str, ...] = ()) -> FastAPI:
    """The application, without the page (`page.add`).

    folder         where uploads are kept while they are needed
    names          of the model in requests; the first one is its name in answers
    key            that requests need; "": none
    most_bytes     of an upload
    max_duration   seconds of a recording
    origins        from whose pages browsers may call this server (CORS)
    """
    app = FastAPI(title="glmasr", version="1", description="Speech recognition, as OpenAI's API has it.", docs_url=None, redoc_url=None)
    app.add_middleware(Gate, desk=desk, key=key, most_bytes=most_bytes)
    # The last one added is the first one asked: a browser sends no key when it asks whether it may send one.
    # TRAP: without this one, even for no origin, Gradio adds its own, which lets in the pages of everybody.
    app.add_middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"])
    began = int(time.time())
    errors = {status: {"description": text, "content": {"application/json": {}}} for status, text in (
        (400, "not supported, or not a recording"), (401, "API key"), (404, "another model"), (408, "slow upload"), (413, "large upload"),
        (429, "queue full: Retry-After"), (500, "defect"), (503, "about to end"), (504, "time limit"), (507, "no room"))}
    errors[422] = errors[400]

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

    @app.post(ROUTE, responses=errors | {200: {"content": {"text/plain": {}, "text/event-stream": {}}}}, tags=["recognition"])
    async def transcriptions(request: Request, form: Annotated[Transcription, Form(media_type="multipart/form-data")]):
        """The text of a recording."""
        for name in request.query_params:
            raise Problem(400, f"{name[:100]} stands in the address; send it as a field of the form", name[:100], "unsupported_parameter")
        fields = (await request.form()).multi_items()
        for name in {name for name, _ in fields if not name.endswith("[]")}:
            if sum(name == other for other, _ in fields) > 1:
                raise Problem(400, f"{name} comes several times; send it once", name, "invalid_value")
        if form.model not in names:
            raise Problem(404, f"model is {form.model[:100]!r}, but this server has {', '.join(names)}", "model", "model_not_found")
        options = form.options(desk, max_duration)
        if not form.stream:
            async with kept(form.file, folder) as path:
                found = await unless_gone(request, asyncio.ensure_future(finished(desk.recognise(path, form.language, options))))
            return Response(status_code=499) if found is None else answer(found, form.response_format)

        async with AsyncExitStack() as stack:
            path = await stack.enter_async_context(kept(form.file, folder))
            events = await stack.enter_async_context(aclosing(desk.recognise(path, form.language, options)))
            first = await unless_gone(request, asyncio.ensure_future(anext(events)))
            if isinstance(first, Began):                # an error before the first text has a status of its own
                first = await unless_gone(request, asyncio.ensure_future(anext(events)))
            return Response(status_code=499) if first is None else EventStream(as_events(events, first), stack.pop_all())

    def described(name: str) -> dict:
        return {"id": name, "object": "model", "created": began, "owned_by": "glmasr"}

    @app.head("/v1/models", include_in_schema=False)
    @app.get("/v1/models", tags=["recognition"])
    async def models() -> dict:
        """The names of the model."""
        return {"object": "list", "data": [described(name) for name in names]}

    @app.head("/v1/models/{name:path}", include_in_schema=False)
    @app.get("/v1/models/{name:path}", responses={404: errors[404]}, tags=["recognition"])
    async def model(name: str) -> dict:
        """One of them."""
        if name not in names:
            raise Problem(404, f"model is {name[:100]!r}, but this server has {', '.join(names)}", "model", "model_not_found")
        return described(name)

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", responses={503: {"description": "not able to work"}}, tags=["operation"])
    async def health() -> Response:
        """200 while the model is loaded and recordings are taken in."""
        status = "closing" if desk.closing else "ok" if desk.ready else "loading"
        return JSONResponse({"status": status, "waiting": len(desk.waiting), "running": len(desk.running)}, 200 if status == "ok" else 503)

    @app.head("/metrics", include_in_schema=False)
    @app.get("/metrics", response_class=PlainTextResponse, tags=["operation"])
    async def metrics() -> Response:
        """Counts and times, for Prometheus."""
        return Response(desk.figures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.api_route("/v1", methods=METHODS, include_in_schema=False)
    @app.api_route("/v1/{path:path}", methods=METHODS, include_in_schema=False)
    async def unknown(request: Request):
        if request.url.path == ROUTE:
            raise Problem(405, f"{ROUTE} takes POST", headers={"Allow": "POST"})
        if request.url.path == "/v1/models" or request.url.path.startswith("/v1/models/"):
            raise Problem(405, "the models can only be looked at, with GET", headers={"Allow": "GET"})
        raise Problem(404, f"{request.url.path[:100]} is not known; this server has {ROUTE} and /v1/models", code="unknown_url")

    return app
