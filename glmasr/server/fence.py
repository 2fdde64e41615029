"""What of Gradio can be reached: a few of its routes, and calls that are made anew of checked values (`calls.py`).

    POST /gradio_api/queue/join   {"data": ["data:audio/wav;base64,...", "auto"], "fn_index": 0, "session_hash": "..."}
    GET  /gradio_api/queue/data?session_hash=...     server-sent events; the text is in "process_completed"

What is unusual here:
- Gradio has some eighty routes. ROUTES are those that the page and `gradio_client` need; any other one is a 404 before
  Gradio sees it.
- What Gradio makes anew for each request, page and descriptions, it makes for one at a time; and it sees no header by
  which a client could say what this server is called, for it would pass that on to others.
- Files are stored and given out here, not by Gradio: see `file_routes.py` and `uploads.py`.
"""

import asyncio
import json
import re
from typing import Any, NamedTuple

from starlette.types import Message, Receive, Scope, Send

from .call_body import CallBody
from .calls import NAME, checked_call, checked_fields
from .problems import Busy, InvalidValue, UnknownUrl, UnsupportedType
from .uploads import Uploads


class Route(NamedTuple):
    """Of Gradio. `queries`: what may stand after the `?`; the rest is not handed on."""

    method: str
    path: str  # a pattern for all of it
    queries: tuple[str, ...]
    reason: str


FILES = r"(?:[\w-][\w.-]*/)*[\w-][\w.-]*"  # names without a leading dot: nothing leads upwards
HEADERS = {
    *(b"host", b"content-type", b"accept", b"accept-language", b"user-agent", b"origin", b"range"),
    *(b"x-forwarded-proto", b"authorization"),
}
ROUTES = (
    Route("GET", "/", ("view", "__theme", "__lang"), "the page"),
    Route("GET", rf"/assets/{FILES}", (), "its programs and styles"),
    Route("GET", rf"/static/(?:js|img|fonts|css)/{FILES}", (), "its pictures"),
    Route("GET", "/theme.css", ("v",), "its colors"),
    Route("GET", "/manifest.json", (), "its name, for a browser that keeps it as an app"),
    Route("GET", "/favicon.ico", (), "its icon"),
    Route("GET", "/config", (), "what gradio_client asks first"),
    Route(
        "GET",
        "/gradio_api/info",
        ("serialize", "all_endpoints"),
        'what can be called, for gradio_client and the page\'s "Use via API"',
    ),
    Route("POST", "/gradio_api/queue/join", (), "hands a recording in"),
    Route("GET", "/gradio_api/queue/data", ("session_hash",), "the events of a session"),
    Route("POST", "/gradio_api/call/transcribe", (), "the same for curl: hands a recording in"),
    Route("GET", rf"/gradio_api/call/transcribe/{NAME}", (), "the events of that call"),
    Route("POST", "/gradio_api/cancel", (), "the page's Stop"),
)
MADE = {"/", "/config", "/gradio_api/info", "/theme.css"}  # anew for each request
UNREAD = 8  # calls of a session whose events were not asked for


def allowed(scope: Scope) -> Route | None:
    """The route of ROUTES that a request is for, or None. HEAD goes where GET goes."""
    if (
        scope["type"] != "http" or b"deep_link" in scope["query_string"]
    ):  # which would show what a file of Gradio's says
        return None
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    path = scope["path"]
    return next(
        (route for route in ROUTES if route.method == method and re.fullmatch(route.path, path, re.ASCII)), None
    )


class Fence:
    """ASGI, around Gradio's application. `choices`: name of a field -> what may be asked for, its default first."""

    def __init__(self, app: Any, uploads: Uploads, choices: dict[str, list[str]]):
        self.app, self.uploads, self.choices = app, uploads, choices
        self.turn = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on allowed requests, with known queries and headers only. Raises Problem, UnknownUrl for others."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        route = allowed(scope)
        if route is None:
            raise UnknownUrl(
                f"{scope['path'][:100]} is not known; this server has the page at /, the API at /v1, and what is said "
                "of it at /docs"
            )
        scope = narrowed(scope, route)
        if scope["path"] in MADE:
            async with self.turn:
                messages = await self.rendered(scope, receive)
            for message in messages:  # to a client that may be slow
                await send(message)
        elif route.method == "GET":
            await self.app(scope, receive, send)
        else:
            await self.call(scope, receive, send)

    async def rendered(self, scope: Scope, receive: Receive) -> list[Message]:
        """The messages of an answer. TRAP: of the description Gradio keeps the first one, with the address that its
        client used."""
        self.app.api_info = None
        messages: list[Message] = []
        more = [(b"cache-control", b"no-store"), (b"content-security-policy", b"frame-ancestors 'self'")]

        async def collect(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *more]
            messages.append(message)

        await self.app(scope, receive, collect)
        return messages

    async def call(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands a call on, made anew. Raises Problem."""
        body, taken = CallBody(self.uploads), False

        async def noted(message: Message) -> None:
            nonlocal taken
            taken = taken or message.get("status") == 200
            await send(message)

        try:
            content = await self.made_anew(scope, body, receive)
            await self.app(*with_body(scope, receive, content), noted)
        finally:
            if body.path and not taken:  # it will not be asked for
                self.uploads.drop(body.path)

    async def made_anew(self, scope: Scope, body: CallBody, receive: Receive) -> bytes:
        """The body of a call as Gradio gets it. Raises Problem."""
        headers = scope["headers"]
        types = [value.partition(b";")[0].strip().lower() for name, value in headers if name == b"content-type"]
        if types != [b"application/json"]:
            raise UnsupportedType("the content type isn't application/json, which this route takes")
        call = await body.read(receive)
        if scope["path"].endswith("/cancel"):
            checked = checked_fields(call, ("session_hash", "event_id", "fn_index"))
            if len(checked) < 3:
                raise InvalidValue("a cancellation needs session_hash, event_id and fn_index")
        else:
            checked = checked_call(call, scope["path"].endswith("/join"), body, self.uploads, self.choices)
            unread = self.app.get_blocks()._queue.pending_event_ids_session.get(checked.get("session_hash"), ())
            if len(unread) >= UNREAD:
                raise Busy(
                    f"{UNREAD} calls of this session have events that were not asked for; ask for them first",
                    "session_hash",
                    retry_after=1,
                )
        return json.dumps(checked).encode()


def narrowed(scope: Scope, route: Route) -> Scope:
    """With only those queries and headers that Gradio needs."""
    queries = [
        part for part in scope["query_string"].split(b"&") if part.partition(b"=")[0].decode("latin-1") in route.queries
    ]
    headers = [(name, value) for name, value in scope["headers"] if name in HEADERS]
    return {**scope, "query_string": b"&".join(queries), "headers": headers}


def with_body(scope: Scope, receive: Receive, content: bytes) -> tuple[Scope, Receive]:
    """The scope and `receive` of the same request with another body."""
    headers = [
        (name, value) for name, value in scope["headers"] if name not in (b"content-length", b"transfer-encoding")
    ]
    parts: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]

    async def inner() -> Message:
        return parts.pop() if parts else await receive()  # later on, that the client has left

    length = (b"content-length", str(len(content)).encode())
    return {**scope, "headers": [*headers, length]}, inner
