"""What of Gradio can be reached: a few of its routes, and calls that are made anew of checked values.

    POST /gradio_api/queue/join   {"data": ["data:audio/wav;base64,...", "auto"], "fn_index": 0, "session_hash": "..."}
    GET  /gradio_api/queue/data?session_hash=...     server-sent events; the text is in "process_completed"

What is unusual here:
- Gradio has some eighty routes. ROUTES are those that the page and `gradio_client` need; any other one is a 404 before Gradio sees it.
- Gradio takes objects that name files, streams and addresses anywhere in a call. It never gets one: a recording becomes the path of a file
  that was uploaded for it, everything else has to be a text, a number or a truth value, and what isn't known is refused by name.
- A data URI goes into a file while it comes in. The rest of a call has at most SLACK bytes. So no call takes time or memory to parse.
- What Gradio makes anew for each request, page and descriptions, it makes for one at a time; and it sees no header by which a client could say
  what this server is called, for it would tell that to others.
- Files are stored and given out here, not by Gradio: see `uploads.py`.
"""

import asyncio
import base64
import json
import mimetypes
import os
import re
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import anyio
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import FileResponse, Response, StreamingResponse
from starlette.datastructures import UploadFile

from ..transcription.language import canonical
from .api import FormRoute
from .gate import SLACK
from .problems import Problem
from .uploads import Uploads

PULSE = 15.0                    # seconds between two signs of life on the connection of an open page
PIECE = 2 ** 16                 # bytes that are looked at in one go
BUFFER = 2 ** 20                # bytes that are written in one go
HEAD = 420                      # bytes in which a data URI has to name its type


class Route(NamedTuple):
    """Of Gradio. `queries`: what may stand behind the `?`; the rest is not handed on."""

    method: str
    path: str                   # a pattern for all of it
    queries: tuple[str, ...]
    reason: str


NAME = r"[\w.-]{1,64}"
FILES = r"(?:[\w-][\w.-]*/)*[\w-][\w.-]*"              # names without a leading dot: nothing leads upwards
HEADERS = {b"host", b"content-type", b"accept", b"accept-language", b"user-agent", b"origin", b"range", b"x-forwarded-proto", b"authorization"}
ROUTES = (
    Route("GET", "/", ("view", "__theme", "__lang"), "the page"),
    Route("GET", rf"/assets/{FILES}", (), "its programs and styles"),
    Route("GET", rf"/static/(?:js|img|fonts|css)/{FILES}", (), "its pictures"),
    Route("GET", "/theme.css", ("v",), "its colors"),
    Route("GET", "/manifest.json", (), "its name, for a browser that keeps it as an app"),
    Route("GET", "/favicon.ico", (), "its icon"),
    Route("GET", "/config", (), "what gradio_client asks first"),
    Route("GET", "/gradio_api/info", ("serialize", "all_endpoints"), "what can be called, for gradio_client and the page's \"Use via API\""),
    Route("POST", "/gradio_api/queue/join", (), "hands a recording in"),
    Route("GET", "/gradio_api/queue/data", ("session_hash",), "the events of a session"),
    Route("POST", "/gradio_api/call/transcribe", (), "the same for curl: hands a recording in"),
    Route("GET", rf"/gradio_api/call/transcribe/{NAME}", (), "the events of that call"),
    Route("POST", "/gradio_api/cancel", (), "the page's Stop"),
)
MADE = {"/", "/config", "/gradio_api/info", "/theme.css"}               # anew for each request
UNREAD = 8                      # calls of a session whose events nobody has asked for
MOST_BEAMS = 10                 # of the page


def is_truth(value: Any) -> bool:
    return isinstance(value, bool)


def is_beams(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= MOST_BEAMS


def is_script(value: Any) -> bool:
    return value in ("", "simplified", "traditional")


# What each function takes behind the recording, by its number. What isn't checked here is one of the choices that a model leaves; the task is
# none of them where it does not translate, and isn't sent then.
CALLS = {0: ("language", "task"), 1: ("language", "timestamps", "beams", "fast", "script", "task")}
CHECKS: dict[str, Callable[[Any], bool]] = {"timestamps": is_truth, "beams": is_beams, "fast": is_truth, "script": is_script}


class Fence:
    """ASGI, around Gradio's application. `choices`: name of a field -> what may be asked for, its default first."""

    def __init__(self, app, uploads: Uploads, choices: dict[str, list[str]]):
        self.app, self.uploads, self.choices = app, uploads, choices
        self.turn = asyncio.Lock()

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        route = allowed(scope)
        if route is None:
            raise Problem(404, f"{scope['path'][:100]} is not known; this server has the page at /, the API at /v1, and what is said of it at /docs", code="unknown_url")
        queries = [part for part in scope["query_string"].split(b"&") if part.partition(b"=")[0].decode("latin-1") in route.queries]
        scope = scope | {"query_string": b"&".join(queries), "headers": [(name, value) for name, value in scope["headers"] if name in HEADERS]}
        if scope["path"] in MADE:
            async with self.turn:
                messages = await self.rendered(scope, receive)
            for message in messages:                    # to a client that may be slow
                await send(message)
            return
        if route.method == "GET":
            await self.app(scope, receive, send)
            return
        body, taken = CallBody(self.uploads), False

        async def noted(message):
            nonlocal taken
            taken = taken or message.get("status") == 200
            await send(message)

        try:
            content = await self.made_anew(scope, body, receive)
            await self.app(*with_body(scope, receive, content), noted)
        finally:
            if body.path and not taken:                 # nobody will ask for it
                self.uploads.drop(body.path)

    async def rendered(self, scope, receive) -> list[dict[str, Any]]:
        """The messages of an answer. TRAP: of the description Gradio keeps the first one, with the address that its client used."""
        self.app.api_info = None
        messages: list[dict[str, Any]] = []

        async def collect(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"cache-control", b"no-store"), (b"content-security-policy", b"frame-ancestors 'self'")]
            messages.append(message)
        await self.app(scope, receive, collect)
        return messages

    async def made_anew(self, scope, body: "CallBody", receive) -> bytes:
        """The body of a call as Gradio gets it. Raises Problem."""
        types = [value.partition(b";")[0].strip().lower() for name, value in scope["headers"] if name == b"content-type"]
        if types != [b"application/json"]:
            raise Problem(415, "the content type isn't application/json, which this route takes", None, "unsupported_type")
        call = await body.read(receive)
        if scope["path"].endswith("/cancel"):
            checked = checked_fields(call, ("session_hash", "event_id", "fn_index"))
            if len(checked) < 3:
                raise wrong("a cancellation needs session_hash, event_id and fn_index")
        else:
            checked = checked_call(call, scope["path"].endswith("/join"), body, self.uploads, self.choices)
            if len(self.app.get_blocks()._queue.pending_event_ids_session.get(checked.get("session_hash"), ())) >= UNREAD:
                raise Problem(429, f"{UNREAD} calls of this session have events that nobody has asked for; ask for them first", "session_hash", "queue_full", 1)
        return json.dumps(checked).encode()


def with_body(scope, receive, content: bytes):
    """The scope and `receive` of the same request with another body."""
    headers = [(name, value) for name, value in scope["headers"] if name not in (b"content-length", b"transfer-encoding")]
    parts = [{"type": "http.request", "body": content, "more_body": False}]

    async def inner():
        return parts.pop() if parts else await receive()        # later on, that the client has left
    return scope | {"headers": [*headers, (b"content-length", str(len(content)).encode())]}, inner


def allowed(scope) -> Route | None:
    if scope["type"] != "http" or b"deep_link" in scope["query_string"]:        # which would show what a file of Gradio's says
        return None
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    return next((route for route in ROUTES if route.method == method and re.fullmatch(route.path, scope["path"], re.ASCII)), None)


# ---- the body of a call ---------------------------------------------------------------------------------------------------

# A quote in it is escaped, and an escape is one of two things, so there is one way to match and no way back.
DATA_URI = re.compile(rb'"(data:(?:[^,"\\]|\\.){0,200};base64,)', re.IGNORECASE | re.DOTALL)


class CallBody:
    """JSON that is read as it comes. The first data URI in it goes into a file, `path` ("" without one), and `token` takes its place."""

    def __init__(self, uploads: Uploads):
        self.uploads, self.path, self.token = uploads, "", secrets.token_hex(16)

    async def read(self, receive) -> dict[str, Any]:
        """Raises Problem."""
        kept, recording = bytearray(), None
        async for piece in pieces(receive):
            if recording is None:
                kept += piece
                start = max(0, len(kept) - len(piece) - HEAD)           # what came before was searched already
                if not self.path and (found := DATA_URI.search(kept, start)):
                    self.path = self.uploads.new(f"recording.{ending(found[1])}", once=True)
                    recording, piece = Payload(self.uploads, self.path), bytes(kept[found.end():])
                    del kept[found.start() + 1:]
            if recording is not None:
                part, quote, rest = piece.partition(b'"')
                await recording.add(part)
                if quote:
                    await recording.close()
                    recording = None
                    kept += self.token.encode() + quote + rest
            if len(kept) > SLACK:
                raise Problem(413, f"the call has more than {SLACK // 1024} KiB beside its one recording, which is the limit", None, "too_large")
        try:
            call = json.loads(bytes(kept), parse_constant=_no_number)
        except (ValueError, RecursionError):
            call = None
        if not isinstance(call, dict):
            raise wrong('the call isn\'t readable as JSON; expected {"data": [...], "fn_index": 0, "session_hash": "..."}')
        return call


async def pieces(receive) -> AsyncIterator[bytes]:
    """The body of a request. Raises Problem where the client leaves before its end."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise wrong("the client left while it was sending")
        body, more = message.get("body", b""), message.get("more_body", False)
        for start in range(0, len(body), PIECE):
            yield body[start:start + PIECE]


class Payload:
    """The part of a data URI that is base64 within JSON -> a file."""

    def __init__(self, uploads: Uploads, path: str):
        self.uploads, self.path = uploads, path
        self.escape = b""               # the beginning of an escape of JSON
        self.digits = b""               # up to three of base64, which wait for a fourth
        self.padded = False
        self.data = bytearray()

    async def add(self, raw: bytes) -> None:
        raw = self.escape + raw
        cut = re.search(rb"\\(?:u[0-9a-fA-F]{0,3})?\Z", raw)
        raw, self.escape = (raw[:cut.start()], cut[0]) if cut else (raw, b"")
        try:
            text = json.loads(b'"' + raw + b'"').encode("ascii") if b"\\" in raw else raw
            digits = self.digits + text.translate(None, b" \t\r\n")
            count = len(digits) // 4 * 4
            if self.padded and digits:
                raise ValueError
            data, self.digits = base64.b64decode(digits[:count], validate=True), digits[count:]
        except ValueError:
            raise self.damaged() from None
        self.padded = digits[:count].endswith(b"=")
        self.uploads.grow(self.path, len(data))
        self.data += data
        if len(self.data) >= BUFFER:
            await self.flush()

    async def close(self) -> None:
        if self.escape or self.digits:
            raise self.damaged()
        await self.flush()

    async def flush(self) -> None:
        data, self.data = self.data, bytearray()

        def append() -> None:
            with open(self.path, "ab") as file:
                file.write(data)
        await anyio.to_thread.run_sync(append)

    @staticmethod
    def damaged() -> Problem:
        return wrong("the recording isn't base64 to its end; expected a data URI, data:audio/wav;base64,..., or an uploaded file")


def ending(head: bytes) -> str:
    """data:audio/x-wav;base64, -> wav"""
    found = re.match(rb"data:\w{1,20}\\?/(?:x-)?(\w{1,8})", head, re.IGNORECASE)
    return found[1].decode().lower() if found else "wav"


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# ---- what a call says -----------------------------------------------------------------------------------------------------

def wrong(message: str, param: str | None = None) -> Problem:
    return Problem(400, message, param, "invalid_value")


def checked_call(call: dict[str, Any], joins: bool, body: CallBody, uploads: Uploads, choices: dict[str, list[str]]) -> dict[str, Any]:
    """The call as Gradio gets it: what is known, and is what it should be. `joins`: it says which function and session. Raises Problem."""
    checked = checked_fields(call, ("data", "session_hash", *(("fn_index", "trigger_id") if joins else ())))
    number = checked.setdefault("fn_index", 0) if joins else 0
    if number not in CALLS:
        raise wrong(f"fn_index is {number}, expected 0, which recognizes a recording", "fn_index")
    if joins and "session_hash" not in checked:
        raise wrong("session_hash is missing; expected a random text of your own, by which the events are asked for", "session_hash")
    names = [name for name in CALLS[number] if name in CHECKS or name in choices]
    values, count = call.get("data"), 1 + len(names)
    if not isinstance(values, list) or len(values) != count and not (number == 0 and len(values) < count):
        raise wrong(f"data is no list of {count} values; expected the recording, {', '.join(names)}", "data")
    values = [*values, *[None, *(choices.get(name, [None])[0] for name in names)][len(values):]]
    for place, name in enumerate(names, 1):
        value = values[place] = canonical(values[place]) if name == "language" else values[place]
        if name in CHECKS:
            if not CHECKS[name](value):
                raise wrong(f"data[{place}] is {str(value)[:100]!r}, which the page doesn't send", "data")
        elif not isinstance(value, str) or value not in choices[name]:
            raise wrong(f"{name} is {str(value)[:40]!r}, expected one of {', '.join(choices[name])}", name)
    recording = checked_recording(values[0], body, uploads)
    if number == 1 and recording:
        uploads.show(recording, checked["session_hash"])
    return checked | {"data": [recording, *values[1:]]}


def checked_fields(call: dict[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
    """What is known of them, but for `data`. Gradio's clients send all their fields, and none and false say nothing."""
    checked = {}
    for name, value in call.items():
        if name == "data" or value is None or value is False:
            continue
        if name not in known:
            raise Problem(400, f"{name[:100]} is not supported by this server; leave it out", name[:100], "unsupported_parameter")
        right = type(value) is int and 0 <= value < 2 ** 31 if name in ("fn_index", "trigger_id") else isinstance(value, str) and re.fullmatch(NAME, value, re.ASCII)
        if not right:
            raise wrong(f"{name} is {str(value)[:100]!r}; expected a number of Gradio's, or a text of letters, digits, dashes and dots", name)
        checked[name] = value
    return checked


def checked_recording(value: Any, body: CallBody, uploads: Uploads) -> str | None:
    """The path of what was uploaded: by this call as a data URI, or before it. Raises Problem, with the same words whether or not there is
    such a file on this machine."""
    if isinstance(value, dict) and "data" in value:             # as Gradio 3 sent it
        value = value["data"]
    if value is None:
        return None
    if body.path and value == body.token:
        return body.path
    if isinstance(value, dict) and isinstance(place := value.get("path"), str):
        if value.get("is_stream"):
            raise wrong("the recording is a stream, which this server doesn't take; expected an uploaded file or a data URI", "data")
        if found := uploads.find(place):
            return found
        if re.match(r"https?://", place[:10], re.IGNORECASE):
            raise wrong("the recording is an address, and this server fetches nothing; expected an uploaded file or a data URI", "data")
        raise wrong("the recording is no file that was uploaded here, or it is no longer kept; upload it, or send a data URI", "data")
    raise wrong(f"the recording is {str(value)[:20]!r}...; expected a data URI, data:audio/wav;base64,..., or an uploaded file", "data")


# ---- files, and open pages ------------------------------------------------------------------------------------------------

def add_routes(app: FastAPI, uploads: Uploads, ended: asyncio.Event) -> None:
    """Gradio's routes for files, made anew. `ended`: the server is about to end."""
    forms = APIRouter(route_class=FormRoute, include_in_schema=False)

    @forms.post("/gradio_api/upload")
    async def upload(request: Request) -> list[str]:
        """The paths of the files of a form, by which a call names them."""
        files = [value for _, value in (await request.form()).multi_items() if isinstance(value, UploadFile)]
        paths: list[str] = []
        try:
            for file in files:
                paths.append(uploads.new(file.filename or ""))
                with open(paths[-1], "wb") as target:
                    while part := await file.read(BUFFER):
                        uploads.grow(paths[-1], len(part))
                        await anyio.to_thread.run_sync(target.write, part)
        except BaseException:               # a client that leaves too
            for path in paths:
                uploads.drop(path)
            raise
        return paths

    app.include_router(forms)

    @app.get("/gradio_api/upload_progress", include_in_schema=False)
    async def progress() -> Response:
        """What the page asks beside an upload. (The browser knows by itself how much it has sent.)"""
        return Response('data: {"msg": "done"}\n\n', media_type="text/event-stream")

    @app.head("/gradio_api/file={path:path}", include_in_schema=False)
    @app.get("/gradio_api/file={path:path}", include_in_schema=False)
    async def file(path: str) -> Response:
        """A recording for the page's player, or a result to download."""
        found = uploads.find(path)
        if not found:
            raise Problem(404, "no such file was uploaded here or made here, or it is no longer kept", code="unknown_url")
        # TRAP: a page that somebody uploads would be one of this server's, and could do whatever its user may.
        kind = media_type(found)
        headers = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox; default-src 'none'", "Cache-Control": "private, no-store"}
        return FileResponse(found, media_type=kind, filename=os.path.basename(found), headers=headers,
                            content_disposition_type="inline" if kind.startswith(("audio/", "video/")) else "attachment")

    @app.get("/gradio_api/heartbeat/{session}", include_in_schema=False)
    async def heartbeat(session: str) -> Response:
        """A page holds this connection while it is open."""
        if not re.fullmatch(NAME, session, re.ASCII):
            raise wrong("the session is no text of letters, digits and dashes")

        async def pulse() -> AsyncIterator[str]:
            uploads.page_opened(session)
            try:
                while not ended.is_set():
                    yield "data: ALIVE\n\n"
                    with anyio.move_on_after(PULSE):
                        await ended.wait()
            finally:
                uploads.page_left(session)
        return StreamingResponse(pulse(), media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})


def media_type(path: str) -> str:
    kind = mimetypes.guess_type(path)[0] or ""
    return kind if kind.startswith(("audio/", "video/")) else "application/octet-stream"
