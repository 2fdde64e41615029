"""What a realtime client may set: OpenAI's transcription session, checked; and the same in its older shape.

    {"type": "transcription", "audio": {"input": {"format": {...}, "transcription": {...}, "turn_detection": {...}}}}

What is unusual here: whatever this server can't do is an error that says so, as in `forms.py`. An update changes the
fields that it has; all others stay.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import OptionError
from ..transcription.hotwords import parse
from ..transcription.live_checks import PADDINGS, PAUSES
from ..transcription.options import THRESHOLD
from .g711 import RATES
from .messages import LiveSettings
from .problems import InvalidValue, Problem, UnsupportedParameter, UnsupportedValue


class Strict(BaseModel):
    """Without fields that aren't known."""

    model_config = ConfigDict(extra="forbid")


class Pcm(Strict):
    """16 bits, one channel."""

    type: Literal["audio/pcm"]
    rate: Literal[24_000] = 24_000


class G711(Strict):
    """Of telephony: 8 kHz."""

    type: Literal["audio/pcmu", "audio/pcma"]


class Transcription(Strict):
    """What is asked of the model."""

    model: str
    language: str | None = Field(default=None, max_length=40)
    prompt: str | None = None
    keywords: list[str] | None = None


class ServerVad(Strict):
    """Segments end by themselves."""

    type: Literal["server_vad"]
    threshold: float = Field(default=THRESHOLD, gt=0, lt=1, allow_inf_nan=False, strict=True)
    prefix_padding_ms: int = Field(default=300, strict=True, ge=round(1000 * PADDINGS[0]), le=round(1000 * PADDINGS[1]))
    silence_duration_ms: int = Field(default=500, strict=True, ge=round(1000 * PAUSES[0]), le=round(1000 * PAUSES[1]))
    create_response: Literal[False] | None = None
    interrupt_response: Literal[False] | None = None
    idle_timeout_ms: None = None


class Input(Strict):
    """Of the sound."""

    format: Annotated[Pcm | G711, Field(discriminator="type")] = Pcm(type="audio/pcm")
    transcription: Transcription
    turn_detection: ServerVad | None = ServerVad(type="server_vad")
    noise_reduction: None = None


class Audio(Strict):
    """As OpenAI nests it."""

    input: Input


class Session(Strict):
    """A transcription session."""

    type: Literal["transcription"]
    audio: Audio
    include: list[None] | None = None

    def shown(self) -> dict[str, Any]:
        """As an event shows it."""
        content = self.model_dump()
        detection = content["audio"]["input"]["turn_detection"]
        for name in ("create_response", "interrupt_response", "idle_timeout_ms"):
            if detection and detection[name] is None:
                del detection[name]
        return content

    def live(self) -> LiveSettings:
        """What the worker is told. Raises OptionError."""
        sound = self.audio.input
        asked, detection = sound.transcription, sound.turn_detection
        options: dict[str, Any] = {"prompt": asked.prompt or "", "hotwords": parse(asked.keywords or [])}
        if detection:
            options |= {"threshold": detection.threshold, "padding": detection.prefix_padding_ms / 1000}
        pause = detection.silence_duration_ms / 1000 if detection else None
        return LiveSettings(asked.language or "auto", RATES[sound.format.type], pause, options)


# By the names in errors: what this server doesn't do, and what to send instead.
INSTEAD = {
    "session.type": "this server has transcription sessions only; expected transcription",
    "session.include": "this server has no log-probabilities of tokens; expected [], or leave it out",
    "session.audio.output": "this server doesn't speak; leave it out",
    "session.audio.input.noise_reduction": "this server doesn't reduce noise; expected null, or leave it out",
    "session.audio.input.transcription": "this server does nothing but transcribe; expected an object with model",
    "session.audio.input.turn_detection": "expected server_vad, or null for input_audio_buffer.commit",
    "session.audio.input.turn_detection.create_response": "a transcription has no responses; expected false",
    "session.audio.input.turn_detection.interrupt_response": "a transcription has no responses; expected false",
    "session.audio.input.turn_detection.idle_timeout_ms": "a transcription has no responses; leave it out",
    "session.audio.input.format.rate": "expected 24000, or a format of 8 kHz, audio/pcmu or audio/pcma",
    "session.audio.input.format": "expected audio/pcm, audio/pcmu or audio/pcma",
}
KINDS = ("audio/pcm", "audio/pcmu", "audio/pcma", "server_vad")  # which pydantic puts into the place of an error


def updated(session: Session, changes: Any) -> Session:
    """The session with what an update changes. Raises Problem."""
    if not isinstance(changes, dict):
        raise InvalidValue("session is missing, or is no object; expected one with type transcription", "session")
    try:
        return Session.model_validate(_merged(session.shown(), changes))
    except ValidationError as error:
        raise _problem(error) from None


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """An object of another type takes the place of the old one."""
    if new.get("type", old.get("type")) != old.get("type"):
        return new
    both = {
        name: _merged(old[name], value) if isinstance(value, dict) and isinstance(old.get(name), dict) else value
        for name, value in new.items()
    }
    return old | both


def _problem(error: ValidationError) -> Problem:
    """What is wrong, in words for the sender."""
    first = error.errors()[0]
    names = [str(name) for name in first["loc"] if name not in KINDS]
    place = ".".join(["session", *names])
    value = "" if isinstance(first["input"], dict) else f" is {str(first['input'])[:100]!r}"
    parent, _, last = place.rpartition(".")
    known = INSTEAD.get(parent if last == "type" or last.isdecimal() else place) or INSTEAD.get(place, "")
    if first["type"] == "extra_forbidden":
        return UnsupportedParameter(f"{place[:200]}: {known or 'this server has no such field; leave it out'}", place)
    if known:
        return UnsupportedValue(f"{place}{value}: {known}", place)
    return InvalidValue(f"{place}{value}: {first['msg'].replace('Input should', 'it should')}", place)


def of_options(error: OptionError) -> Problem:
    """What the model can't do, with the field of it."""
    message = str(error)
    for word, field in (("language", "language"), ("hotwords", "keywords"), ("prompt", "prompt")):
        if message.startswith((word, f"has no {word}")) or f" {word} " in message:
            return InvalidValue(message, f"session.audio.input.transcription.{field}")
    return InvalidValue(message, "session")


# ---- the older shape -------------------------------------------------------------------------------------------------

OLDER_FORMATS = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}
OLDER_NAMES = {  # theirs -> within audio.input
    "input_audio_transcription": "transcription",
    "turn_detection": "turn_detection",
    "input_audio_noise_reduction": "noise_reduction",
}


def of_older(session: Any) -> dict[str, Any]:
    """The changes of `transcription_session.update`. Raises Problem."""
    if not isinstance(session, dict):
        raise InvalidValue("session is missing, or is no object", "session")
    sound: dict[str, Any] = {}
    changes: dict[str, Any] = {"type": "transcription", "audio": {"input": sound}}
    for name, value in session.items():
        if name in OLDER_NAMES:
            sound[OLDER_NAMES[name]] = value
        elif name == "include":
            changes[name] = value
        elif name != "input_audio_format":
            raise UnsupportedParameter(f"session.{name[:100]}: this server has no such field; leave it out", name[:100])
        elif not isinstance(value, str) or value not in OLDER_FORMATS:
            raise InvalidValue(
                f"session.input_audio_format is {str(value)[:100]!r}, expected {', '.join(OLDER_FORMATS)}",
                "session.input_audio_format",
            )
        else:
            sound["format"] = {"type": OLDER_FORMATS[value]}
    return changes


def as_older(shown: dict[str, Any]) -> dict[str, Any]:
    """What `Session.shown` gives, in the older shape."""
    sound = shown["audio"]["input"]
    formats = {new: old for old, new in OLDER_FORMATS.items()}
    return {
        "input_audio_format": formats[sound["format"]["type"]],
        **{old: sound[new] for old, new in OLDER_NAMES.items()},
        "include": shown["include"],
    }
