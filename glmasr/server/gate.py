"""The gate that every request passes first: who asks, from where, how much, and how fast.

What is unusual here: it is ASGI, in front of everything, the web page included. Host, origin, key, size and pace are looked at before and
while a request comes in, and before anything of it is kept or parsed.
"""

import base64
import binascii
import hmac
import re
import time

import anyio
from starlette.exceptions import HTTPException

from .problems import Problem
from .request_queue import Desk, Refused

ROUTES = {"transcribe": "/v1/audio/transcriptions", "translate": "/v1/audio/translations"}          # task -> where recordings are sent for it
STALL = 20.0                    # seconds in which nothing of an upload comes, or nothing of an answer is taken, before a connection is given up
UPLOAD = 600.0                  # seconds that an upload may take
LINGER = 5.0                    # seconds for which a refused upload is read on: a client that is still sending hears no answer
UNFINISHED = 10                 # recordings of the largest size that may be under way: unfinished uploads lie on the disk
SLACK = 2 ** 16                 # bytes of a request beside the recording: all other fields together
LONGEST_TYPE = 500              # characters of a content type; the boundary of a form has at most 70
REFUSED = {408, 413, 429, 503, 504, 507}        # an answer of these says: not now, or not this much
HARMLESS = {"GET", "HEAD", "OPTIONS"}           # methods that change nothing, so a page of another origin may use them blindly


class Gate:
    """ASGI middleware.

    key          "Authorization: Bearer KEY", or the password of "Basic", for which a browser asks its user; "" lets everybody in
    most_bytes   of a recording
    hosts        what `Host` may name, in lower case and without a port; None: anything
    origins      whose pages may send what changes something (CORS); a server's own pages always may
    """

    def __init__(self, app, desk: Desk, key: str, most_bytes: int, hosts: frozenset[str] | None, origins: tuple[str, ...]):
        self.app, self.desk, self.key, self.most_bytes, self.hosts, self.origins = app, desk, key.encode(), most_bytes, hosts, origins
        self.unfinished = 0                             # bytes of all bodies that are under way

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":                   # no route of this server is a WebSocket
            await send({"type": "websocket.close", "code": 1008})
        else:
            try:
                self.check_sender(scope)
                kind = self.check_type(scope)
                recording = {"multipart/form-data": self.most_bytes, "application/json": self.most_bytes * 4 // 3}.get(kind, 0)     # base64
                self.check_size(scope, recording + SLACK)
                if scope["path"] in ROUTES.values() and scope["method"] == "POST":
                    self.desk.check()
            except (Problem, Refused) as error:
                await self.refuse(Problem.of(error), scope, receive, send)
            else:
                await self.let_in(scope, receive, send, recording + SLACK)

    # -- what is looked at before anything is read ------------------------------------------------------------------------

    def check_sender(self, scope) -> None:
        """TRAP: without these two a page of the web that a user visits could use the server on the user's own machine: by a name that leads
        here (DNS rebinding), or blindly, with a form."""
        host, origin = self.header(scope, b"host"), self.header(scope, b"origin")
        if self.hosts is not None and bare(host) not in self.hosts:
            raise Problem(403, f"this server isn't known as {host[:100]!r}; expected {', '.join(sorted(self.hosts))}; --allow-host of the "
                          "server adds a name", None, "unknown_host")
        if origin and scope["method"] not in HARMLESS and not ({origin, "*"} & set(self.origins) or own(origin, host)):
            raise Problem(403, f"pages of {origin[:100]!r} may not call this server; --cors of the server lets an origin in", None, "foreign_origin")
        if scope["path"] != "/healthz" and not self.knows(scope):
            raise Problem(401, "the API key is missing or wrong; send it as  Authorization: Bearer KEY", None, "invalid_api_key",
                          headers={"WWW-Authenticate": 'Bearer realm="glmasr", Basic realm="glmasr"'})

    def check_type(self, scope) -> str:
        """The content type, without its parameters. TRAP: Python knows charsets that take minutes for a megabyte."""
        text = self.header(scope, b"content-type")
        if len(text) > LONGEST_TYPE:
            raise Problem(415, f"the content type has {len(text)} characters, expected at most {LONGEST_TYPE}", None, "unsupported_type")
        # By their number, so that no way of quoting a name brings in another one behind the one that was looked at.
        if text.lower().count("charset") != len(re.findall(r';[ \t]*charset=(?:utf-?8|"utf-?8")[ \t]*(?=;|$)', text, re.IGNORECASE)):
            raise Problem(415, "the content type names a charset; expected UTF-8, or none", None, "unsupported_type")
        return text.partition(";")[0].strip().lower()

    def check_size(self, scope, limit: int) -> None:
        length = self.header(scope, b"content-length")
        if length.isdigit() and int(length[:20]) > limit:
            raise self.too_large(limit)

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

    @staticmethod
    def header(scope, name: bytes) -> str:
        """The value of a header; "" where there is none. TRAP: of two, whoever reads on might take the other one."""
        values = [value for key, value in scope["headers"] if key == name]
        if len(values) > 1:
            raise Problem(400, f"{name.decode()} comes {len(values)} times; send it once", None, "invalid_value")
        return values[0].decode("latin-1") if values else ""

    def too_large(self, limit: int) -> Problem:
        if limit <= SLACK:
            return Problem(413, f"a body of this content type may have {SLACK // 1024} KiB; a recording is sent as multipart/form-data", None, "too_large")
        return Problem(413, f"the upload is larger than {self.most_bytes / 2 ** 20:g} MiB, which is the limit; compress it (FLAC, Opus), or cut it",
                       "file", "too_large")

    # -- what happens then --------------------------------------------------------------------------------------------------

    async def refuse(self, problem: Problem, scope, receive, send) -> None:
        self.desk.figures.refused(problem.status)
        if not any(name == b"expect" for name, _ in scope["headers"]):          # such a client waits until it is asked to send
            await self.read_on(receive)
        await problem.response()(scope, receive, send)

    async def let_in(self, scope, receive, send, limit: int) -> None:
        begun, body = False, Body(self, receive, limit)

        async def noted(message):
            nonlocal begun
            begun = True
            if message.get("status") in REFUSED and scope["path"] != "/healthz":
                self.desk.figures.refused(message["status"])
            await send(message)

        try:
            await self.app(scope, body.receive, noted)
        except Exception as error:                      # TRAP: beyond this place its message would be logged
            response = Problem.of(error).response()
            if not begun:
                await response(scope, receive, send)
        finally:
            body.finish()

    async def read_on(self, receive) -> None:
        """TRAP: a connection that is closed while its client is sending is reset, and the client sees that instead of the answer."""
        with anyio.move_on_after(LINGER):
            while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                pass


class Body:
    """The body of a request while it comes in."""

    def __init__(self, gate: Gate, receive, limit: int):
        self.gate, self._receive, self.limit = gate, receive, limit
        self.read, self.over, self.deadline = 0, False, time.monotonic() + UPLOAD

    async def receive(self):
        """ASGI's `receive`, which raises where an upload is too large or too slow, or where too many are under way."""
        if self.over:                                   # what comes now is that the client has left, whenever that is
            return await self._receive()
        message = None
        with anyio.move_on_after(max(0, min(STALL, self.deadline - time.monotonic()))):
            message = await self._receive()
        if message is None:
            raise _http(Problem(408, f"nothing came for {STALL:g} s, or not all of it in {UPLOAD:g} s; send it again", None, "upload_timeout",
                                headers={"Connection": "close"}))
        count = len(message.get("body", b""))
        self.read, self.gate.unfinished = self.read + count, self.gate.unfinished + count
        problem = None
        if self.read > self.limit:
            problem = self.gate.too_large(self.limit)
        elif count and self.gate.unfinished > UNFINISHED * self.gate.most_bytes + SLACK:
            problem = Problem(507, "too many uploads are under way; try again later", None, "no_space", 30)
        more = message.get("more_body", False)
        if problem or not more:
            self.finish()
        if problem:
            if more:
                await self.gate.read_on(self._receive)
            raise _http(problem)
        return message

    def finish(self) -> None:
        """All of it is there, or nobody waits for the rest."""
        if not self.over:
            self.over, self.gate.unfinished = True, self.gate.unfinished - self.read


def bare(host: str) -> str:
    """Localhost:7860 -> localhost, [::1]:7860 -> [::1]"""
    found = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:]+?)\.?(?::\d{1,5})?", host.strip().lower())
    return found[1] if found else ""


def own(origin: str, host: str) -> bool:
    """Whether a page of this origin came from this server, as the client calls it."""
    scheme, _, place = origin.lower().partition("://")
    port = {"http": ":80", "https": ":443"}.get(scheme, "")
    return bool(place) and place.removesuffix(port) == host.strip().lower().removesuffix(port)


def _http(problem: Problem) -> HTTPException:
    """FastAPI lets this one pass where it reads a form, and calls everything else a damaged body."""
    error = HTTPException(problem.status, str(problem), problem.headers)
    error.__cause__ = problem
    return error
