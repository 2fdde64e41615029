"""What a realtime client sends, read: a message of the WebSocket -> an event of OpenAI's, or what is wrong with it.

What is unusual here: `read` touches nothing else, so it may run in a thread. A message may have 15 MiB, and Python lets
others work only between two calls; so base64 is decoded in slices.
"""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

from .problems import InvalidValue, Problem, UnsupportedParameter

FIELDS = {  # of what a client may send, beside type and event_id
    "session.update": ("session",),
    "transcription_session.update": ("session",),  # the older shape
    "input_audio_buffer.append": ("audio",),
    "input_audio_buffer.commit": (),
    "input_audio_buffer.clear": (),
}
SLICE = 2**18  # characters of base64, a multiple of 4


@dataclass
class Message:
    """An event of a client.

    kind      one of FIELDS; "" where there is a problem
    event_id  that its sender gave it
    session   what an update says
    sound     what an append holds
    problem   what is wrong
    """

    kind: str = ""
    event_id: str | None = None
    session: Any = None
    sound: bytes = b""
    problem: Problem | None = None


def read(text: str | bytes) -> Message:
    """Never raises for what a client can send."""
    message = Message()
    try:
        content = _parsed(text)
        event_id = content.get("event_id")
        if event_id is not None and not isinstance(event_id, str):
            raise InvalidValue("event_id is no text; expected one, or none", "event_id")
        message.event_id = event_id
        kind = content["type"]
        for name in content:
            if name not in ("type", "event_id", *FIELDS[kind]):
                raise UnsupportedParameter(f"{name[:100]} is no field of {kind}; leave it out", name[:100])
        if "audio" in FIELDS[kind]:
            message.sound = _sound(content.get("audio"))
        message.session, message.kind = content.get("session"), kind
    except Problem as problem:
        message.problem = problem
    return message


def _parsed(text: str | bytes) -> dict[str, Any]:
    """An object whose type is one of FIELDS. Raises InvalidValue."""
    if isinstance(text, bytes):
        raise InvalidValue(
            f"a binary message of {len(text)} bytes came, expected JSON as text; sound goes as base64 into "
            "input_audio_buffer.append"
        )
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidValue(
            f"a message isn't JSON, it begins with {text[:40]!r}; expected an object with type"
        ) from None
    kind = content.get("type") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(kind, str) or kind not in FIELDS:
        raise InvalidValue(f"type is {str(kind)[:100]!r}, but this server takes {', '.join(FIELDS)}", "type")
    return content


def _sound(text: Any) -> bytes:
    """The bytes of base64. Raises InvalidValue."""
    if not isinstance(text, str):
        raise InvalidValue("audio is missing, or is no text; expected sound in base64", "audio")
    try:
        if "=" in text[:-2]:
            raise ValueError
        slices = [base64.b64decode(text[start : start + SLICE], validate=True) for start in range(0, len(text), SLICE)]
    except (binascii.Error, ValueError):
        raise InvalidValue(
            f"audio isn't base64, it begins with {text[:20]!r}; expected the bytes of sound in base64", "audio"
        ) from None
    return b"".join(slices)
