"""The gate that every request passes first: who asks, from where, how much, and how fast.

What is unusual here: it is ASGI, in front of everything, the web page included. Host, origin, key, size and pace are
checked before and while a request comes in, and before anything of it is kept or parsed.
"""

import base64
import binascii
import hmac
import re
import time

import anyio
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .problems import (
    ClientLeft,
    ForeignOrigin,
    InvalidKey,
    InvalidValue,
    NoSpace,
    Problem,
    TooLarge,
    UnknownHost,
    UnknownUrl,
    UnsupportedType,
    UploadTimeout,
    as_problem,
)
from .request_queue import RequestQueue

ROUTES = {"transcribe": "/v1/audio/transcriptions", "translate": "/v1/audio/translations"}  # task -> where to send it
REALTIME = "/v1/realtime"  # the only WebSocket
KEY_PROTOCOL = "openai-insecure-api-key."  # before the key, where a browser sends it: its WebSockets have no headers
STALL = 20.0  # seconds without a byte of an upload, or without a byte taken of an answer, until a connection is dropped
UPLOAD = 600.0  # seconds that an upload may take
LINGER = 5.0  # seconds for which a refused upload is read on: a client that is still sending doesn't read the answer
UNFINISHED = 10  # recordings of the largest size that may be under way: unfinished uploads lie on the disk
SLACK = 2**16  # bytes of a request beside the recording: all other fields together
LONGEST_TYPE = 500  # characters of a content type; the boundary of a form has at most 70
HARMLESS = {"GET", "HEAD", "OPTIONS"}  # methods that change nothing, so a page of another origin may use them blindly
HEALTH = "/healthz"  # asked without a key; its 503 is what it says, not a refusal


class Gate:
    """ASGI middleware.

    key          "Authorization: Bearer KEY", or the password of "Basic", for which a browser asks its user; "" lets
                 everybody in
    most_bytes   of a recording
    hosts        what `Host` may name, in lower case and without a port; None: anything
    origins      whose pages may send what changes something (CORS); a server's own pages always may
    """

    def __init__(
        self,
        app: ASGIApp,
        queue: RequestQueue,
        key: str,
        most_bytes: int,
        hosts: frozenset[str] | None,
        origins: tuple[str, ...],
    ):
        self.app, self.queue, self.key, self.most_bytes = app, queue, key.encode(), most_bytes
        self.hosts, self.origins = hosts, origins
        self.unfinished = 0  # bytes of all bodies that are under way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Requests go to `answer`, WebSockets to `connect`, lifespan events pass."""
        if scope["type"] == "http":
            await self.answer(scope, receive, send)
        elif scope["type"] == "websocket":
            await self.connect(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Decides by path and headers, before any of the body is read."""
        try:
            limit = self.admit(scope)
        except Problem as problem:
            await self.refuse(problem, scope, receive, send)
        else:
            await self.let_in(scope, receive, send, limit)

    async def connect(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Decides before the handshake, so that a refusal is an HTTP answer."""
        accepted = False

        async def noted(message: Message) -> None:
            nonlocal accepted
            accepted = accepted or message["type"] == "websocket.accept"
            await send(message)

        try:
            self.check_host(scope)
            self.check_origin(scope)
            self.check_key(scope)
            if scope["path"] != REALTIME:
                raise UnknownUrl(f"{scope['path'][:100]} is no WebSocket; this server has {REALTIME}")
            self.queue.check_session()
            await self.app(scope, receive, noted)
        except Exception as error:  # TRAP: beyond this place its message would be logged
            problem = as_problem(error)
            if accepted:
                await send({"type": "websocket.close", "code": 1011})
            else:
                self.queue.metrics.refused(problem.status)
                await problem.response()(scope, receive, send)

    # ---- what is checked before anything is read ----

    def admit(self, scope: Scope) -> int:
        """Checks all that is known before the body comes. -> bytes that the body may have. Raises Problem."""
        self.check_host(scope)
        self.check_origin(scope)
        self.check_key(scope)
        limit = self.size_limit(self.content_type(scope))
        self.check_size(scope, limit)
        if scope["path"] in ROUTES.values() and scope["method"] == "POST":
            self.queue.check()
        return limit

    def check_host(self, scope: Scope) -> None:
        """TRAP: without this one and the next, a page of the web that a user visits could use the server on the user's
        own machine: by a name that leads here (DNS rebinding), or blindly, with a form."""
        host = self.header(scope, b"host")
        if self.hosts is not None and bare_host(host) not in self.hosts:
            raise UnknownHost(
                f"this server isn't known as {host[:100]!r}; expected {', '.join(sorted(self.hosts))}; --allow-host of "
                "the server adds a name"
            )

    def check_origin(self, scope: Scope) -> None:
        """Whether the page that sends this may: `check_host`."""
        origin = self.header(scope, b"origin")
        harmless = scope["type"] == "http" and scope["method"] in HARMLESS
        if not origin or harmless or {origin, "*"} & set(self.origins):
            return
        if not same_origin(origin, self.header(scope, b"host")):
            raise ForeignOrigin(
                f"pages of {origin[:100]!r} may not call this server; --cors of the server lets an origin in"
            )

    def check_key(self, scope: Scope) -> None:
        """Raises InvalidKey, a 401, if the key is missing or wrong; HEALTH needs none."""
        if scope["path"] != HEALTH and not self.has_key(scope):
            raise InvalidKey(
                "the API key is missing or wrong; send it as  Authorization: Bearer KEY",
                headers={"WWW-Authenticate": 'Bearer realm="glmasr", Basic realm="glmasr"'},
            )

    def has_key(self, scope: Scope) -> bool:
        """Whether the request has the key, or none is set. Constant-time, so that timing doesn't leak it."""
        if not self.key:
            return True
        for protocol in scope.get("subprotocols", ()):
            if protocol.startswith(KEY_PROTOCOL):
                return hmac.compare_digest(protocol.removeprefix(KEY_PROTOCOL).encode(), self.key)
        kind, _, value = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        if kind.lower() == b"basic":
            try:
                value = base64.b64decode(value, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif kind.lower() != b"bearer":
            return False
        return hmac.compare_digest(value.strip(), self.key)

    def content_type(self, scope: Scope) -> str:
        """The content type, without its parameters. TRAP: Python knows charsets that take minutes for a megabyte."""
        text = self.header(scope, b"content-type")
        if len(text) > LONGEST_TYPE:
            raise UnsupportedType(f"the content type has {len(text)} characters, expected at most {LONGEST_TYPE}")
        # By their number, so that no way of quoting a name brings in another one after the one that was checked.
        known = re.findall(r';[ \t]*charset=(?:utf-?8|"utf-?8")[ \t]*(?=;|$)', text, re.IGNORECASE)
        if text.lower().count("charset") != len(known):
            raise UnsupportedType("the content type names a charset; expected UTF-8, or none")
        return text.partition(";")[0].strip().lower()

    def size_limit(self, content_type: str) -> int:
        """Bytes that a body of this type may have."""
        if content_type == "multipart/form-data":
            return self.most_bytes + SLACK
        if content_type == "application/json":  # in base64
            return self.most_bytes * 4 // 3 + SLACK
        return SLACK

    def check_size(self, scope: Scope, limit: int) -> None:
        """Raises TooLarge if Content-Length is above `limit` bytes. `Body` counts what actually comes."""
        length = self.header(scope, b"content-length")
        if length.isdigit() and int(length[:20]) > limit:
            raise self.too_large(limit)

    def too_large(self, limit: int) -> Problem:
        """The error for a body above `limit` bytes; up to SLACK, the limit of a body without a recording."""
        if limit <= SLACK:
            return TooLarge(
                f"a body of this content type may have {SLACK // 1024} KiB; a recording is sent as multipart/form-data"
            )
        most = f"{self.most_bytes / 2**20:g} MiB"
        return TooLarge(
            f"the upload is larger than {most}, which is the limit; compress it (FLAC, Opus), or cut it", "file"
        )

    @staticmethod
    def header(scope: Scope, name: bytes) -> str:
        """The value of a header; "" where there is none. TRAP: of two, whoever reads on might take the other one."""
        values = [value for key, value in scope["headers"] if key == name]
        if len(values) > 1:
            raise InvalidValue(f"{name.decode()} comes {len(values)} times; send it once")
        return values[0].decode("latin-1") if values else ""

    # ---- what happens then ----

    async def refuse(self, problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
        """Counts and sends an error, after reading on for a moment what the client is still sending."""
        self.queue.metrics.refused(problem.status)
        if not any(name == b"expect" for name, _ in scope["headers"]):  # such a client waits until it is asked to send
            await self.read_on(receive)
        await problem.response()(scope, receive, send)

    async def let_in(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        """Runs the application, with a body of at most `limit` bytes. Exceptions become answers if none has begun."""
        body, begun = Body(self, receive, limit), False

        async def counting(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                status = message["status"]
                if status >= 400 and status != ClientLeft.status and scope["path"] != HEALTH:
                    self.queue.metrics.refused(status)
            await send(message)

        try:
            await self.app(scope, body.receive, counting)
        except Exception as error:  # TRAP: beyond this place its message would be logged
            response = as_problem(error).response()
            if not begun:
                await response(scope, receive, counting)
        finally:
            body.finish()

    async def read_on(self, receive: Receive) -> None:
        """TRAP: a connection that is closed while its client is sending is reset, and the client sees that instead of
        the answer."""
        with anyio.move_on_after(LINGER):
            while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                pass


class Body:
    """The body of a request while it comes in."""

    def __init__(self, gate: Gate, receive: Receive, limit: int):
        self.gate, self._receive, self.limit = gate, receive, limit
        self.size, self.over, self.deadline = 0, False, time.monotonic() + UPLOAD

    async def receive(self) -> Message:
        """ASGI's `receive`, which raises where an upload is too large or too slow, or where too many are under way."""
        if self.over:  # what comes now is that the client has left, whenever that is
            return await self._receive()
        message = await self.in_time()
        count, more = len(message.get("body", b"")), message.get("more_body", False)
        self.size, self.gate.unfinished = self.size + count, self.gate.unfinished + count
        problem = self.problem(count)
        if problem or not more:
            self.finish()
        if problem:
            if more:
                await self.gate.read_on(self._receive)
            raise as_http(problem)
        return message

    async def in_time(self) -> Message:
        """The next message. Raises UploadTimeout, as an HTTPException, after STALL seconds, or UPLOAD for all."""
        with anyio.move_on_after(max(0, min(STALL, self.deadline - time.monotonic()))):
            return await self._receive()
        raise as_http(
            UploadTimeout(
                f"nothing came for {STALL:g} s, or not all of it in {UPLOAD:g} s; send it again",
                headers={"Connection": "close"},
            )
        )

    def problem(self, count: int) -> Problem | None:
        """What is wrong now that `count` more bytes are here."""
        if self.size > self.limit:
            return self.gate.too_large(self.limit)
        if count and self.gate.unfinished > UNFINISHED * self.gate.most_bytes + SLACK:
            return NoSpace("too many uploads are under way; try again later", retry_after=30)
        return None

    def finish(self) -> None:
        """All of it is there, or the rest is no longer waited for."""
        if not self.over:
            self.over, self.gate.unfinished = True, self.gate.unfinished - self.size


def bare_host(host: str) -> str:
    """Localhost:7860 -> localhost, [::1]:7860 -> [::1]"""
    found = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:]+?)\.?(?::\d{1,5})?", host.strip().lower())
    return found[1] if found else ""


def same_origin(origin: str, host: str) -> bool:
    """Whether a page of this origin came from this server, as the client calls it."""
    scheme, _, place = origin.lower().partition("://")
    port = {"http": ":80", "https": ":443"}.get(scheme, "")
    return bool(place) and place.removesuffix(port) == host.strip().lower().removesuffix(port)


def as_http(problem: Problem) -> HTTPException:
    """FastAPI lets this one pass where it reads a form, and calls everything else a damaged body."""
    error = HTTPException(problem.status, str(problem), problem.headers)
    error.__cause__ = problem
    return error
