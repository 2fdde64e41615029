"""The body of a call of Gradio's, while it comes in: JSON, with the recording that it may hold written to a file.

What is unusual here: a data URI never is in memory as a whole, and the rest of a call has at most SLACK bytes. So no
call takes time or memory to parse.
"""

import base64
import json
import re
import secrets
from collections.abc import AsyncIterator
from typing import Any

import anyio
from starlette.types import Receive

from .gate import SLACK
from .problems import InvalidValue, Problem, TooLarge
from .uploads import Uploads

PIECE = 2**16  # bytes that are searched in one go
BUFFER = 2**20  # bytes that are written in one go
HEAD = 420  # bytes in which a data URI has to name its type
# A quote in it is escaped, and an escape is one of two things, so there is one way to match and no way back.
DATA_URI = re.compile(rb'"(data:(?:[^,"\\]|\\.){0,200};base64,)', re.IGNORECASE | re.DOTALL)


class CallBody:
    """JSON that is read as it comes. The first data URI in it goes into a file, `path` ("" without one), and `token`
    takes its place."""

    def __init__(self, uploads: Uploads):
        self.uploads, self.path, self.token = uploads, "", secrets.token_hex(16)

    async def read(self, receive: Receive) -> dict[str, Any]:
        """Raises Problem."""
        kept = bytearray()
        recording: Payload | None = None
        async for piece in pieces(receive):
            if recording is None:
                kept += piece
                start = max(0, len(kept) - len(piece) - HEAD)  # what came before was searched already
                if not self.path and (found := DATA_URI.search(kept, start)):
                    self.path = self.uploads.new(f"recording.{suffix(found[1])}", once=True)
                    recording, piece = Payload(self.uploads, self.path), bytes(kept[found.end() :])
                    del kept[found.start() + 1 :]
            if recording is not None:
                part, quote, rest = piece.partition(b'"')
                await recording.add(part)
                if quote:
                    await recording.close()
                    recording = None
                    kept += self.token.encode() + quote + rest
            if len(kept) > SLACK:
                raise TooLarge(
                    f"the call has more than {SLACK // 1024} KiB beside its one recording, which is the limit"
                )
        return parsed(bytes(kept))


async def pieces(receive: Receive) -> AsyncIterator[bytes]:
    """The body of a request. Raises Problem where the client leaves before its end."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise InvalidValue("the client left while it was sending")
        body, more = message.get("body", b""), message.get("more_body", False)
        for start in range(0, len(body), PIECE):
            yield body[start : start + PIECE]


def parsed(text: bytes) -> dict[str, Any]:
    """The JSON object that the body of a call is. Raises InvalidValue for anything else, NaN and Infinity included."""

    def no_number(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    try:
        call = json.loads(text, parse_constant=no_number)
    except (ValueError, RecursionError):
        call = None
    if not isinstance(call, dict):
        raise InvalidValue(
            'the call isn\'t readable as JSON; expected {"data": [...], "fn_index": 0, "session_hash": "..."}'
        )
    return call


class Payload:
    """The part of a data URI that is base64 within JSON -> a file."""

    def __init__(self, uploads: Uploads, path: str):
        self.uploads, self.path = uploads, path
        self.escape = b""  # the beginning of an escape of JSON
        self.digits = b""  # up to three of base64, which wait for a fourth
        self.padded = False
        self.data = bytearray()

    async def add(self, raw: bytes) -> None:
        """Decodes the next bytes of the JSON string, split anywhere; writes BUFFER bytes at a time. Raises Problem."""
        raw = self.escape + raw
        cut = re.search(rb"\\(?:u[0-9a-fA-F]{0,3})?\Z", raw)
        raw, self.escape = (raw[: cut.start()], cut[0]) if cut else (raw, b"")
        try:
            text = json.loads(b'"' + raw + b'"').encode("ascii") if b"\\" in raw else raw
            digits = self.digits + text.translate(None, b" \t\r\n")
            count = len(digits) // 4 * 4
            if self.padded and digits:
                raise ValueError
            data, self.digits = base64.b64decode(digits[:count], validate=True), digits[count:]
        except ValueError:
            raise damaged() from None
        self.padded = digits[:count].endswith(b"=")
        self.uploads.grow(self.path, len(data))
        self.data += data
        if len(self.data) >= BUFFER:
            await self.flush()

    async def close(self) -> None:
        """Writes the rest when the string has ended. Raises Problem for a truncated escape or base64 group."""
        if self.escape or self.digits:
            raise damaged()
        await self.flush()

    async def flush(self) -> None:
        """Appends the decoded bytes to the file, in a thread: a slow disk must not block the event loop."""
        data, self.data = self.data, bytearray()

        def append() -> None:
            with open(self.path, "ab") as file:
                file.write(data)

        await anyio.to_thread.run_sync(append)


def damaged() -> Problem:
    """The error of a data URI whose base64 is broken or cut off."""
    return InvalidValue(
        "the recording isn't base64 to its end; expected a data URI, data:audio/wav;base64,..., or an uploaded file"
    )


def suffix(head: bytes) -> str:
    """data:audio/x-wav;base64, -> wav"""
    found = re.match(rb"data:\w{1,20}\\?/(?:x-)?(\w{1,8})", head, re.IGNORECASE)
    return found[1].decode().lower() if found else "wav"
