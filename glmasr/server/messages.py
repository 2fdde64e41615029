"""What the server and the worker process say to each other: plain data, which the pipe pickles."""

from dataclasses import dataclass, field
from typing import Any

from ..errors import GlmAsrError
from ..transcription.live_events import Event
from ..transcription.options import Options
from ..transcription.results import Part

# ---- to the worker ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recording:
    """Recognize this file. `number` names it in all that follows; `adapter`: "" for the model alone."""

    number: int
    path: str
    language: str
    options: Options
    adapter: str = ""


@dataclass(frozen=True)
class Cancel:
    """The client of this recording, or of this live session, has left."""

    number: int


@dataclass(frozen=True)
class LiveSettings:
    """What a live session is begun with, as of `Recognizer.live`.

    rate      of its sound, in Hz
    options   further ones, such as hotwords
    adapter   its name; "": the model alone
    """

    language: str = "auto"
    rate: int = 24_000
    pause: float | None = 0.5
    options: dict[str, Any] = field(default_factory=dict)
    adapter: str = ""


@dataclass(frozen=True)
class Listen:
    """Begin a live session; or end the segment here, and go on with these settings. Answered with Heard or Refused, as
    all that a live session is sent."""

    number: int
    settings: LiveSettings


@dataclass(frozen=True)
class Sound:
    """Sound of a live session: samples of one channel, int16 in this machine's byte order."""

    number: int
    samples: bytes


@dataclass(frozen=True)
class Commit:
    """End the segment here."""

    number: int


@dataclass(frozen=True)
class Clear:
    """Forget the segment so far."""

    number: int


@dataclass(frozen=True)
class Finish:
    """Nothing else comes."""

    number: int


# ---- from the worker -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ready:
    """The model is loaded.

    languages    what may be asked for
    timestamps   whether it has time tokens
    tasks        "transcribe", and "translate" where the vocabulary has it
    runtime      device, dtype and the like: `Recognizer.how`
    """

    languages: list[str]
    timestamps: bool
    tasks: list[str]
    runtime: dict[str, str]


@dataclass(frozen=True)
class Broken:
    """The model can't be loaded, and why."""

    reason: str


@dataclass(frozen=True)
class Began:
    """Reading has begun. `seconds` is what the header states, None where it says nothing."""

    number: int
    seconds: float | None


@dataclass(frozen=True)
class PartReady:
    """Part of the recording was recognized."""

    number: int
    part: Part


@dataclass(frozen=True)
class Done:
    """All was recognized.

    part      the last one, as `Recognizer.stream` ends with
    runtime   as of Ready, and the options with the model's defaults
    peaks     the loudest sample of each stretch of equal length, 0 to 1
    tokens    the ids of each segment's text, as `language.spaced` returns it
    """

    number: int
    part: Part
    runtime: dict[str, str]
    peaks: list[float]
    tokens: list[list[int]]


@dataclass(frozen=True)
class Failed:
    """It can't be recognized: a user's error, or no room for a temporary file."""

    number: int
    error: GlmAsrError | OSError


@dataclass(frozen=True)
class Refused:
    """The settings of a live session can't be taken; it goes on with those before, if there are any."""

    number: int
    error: GlmAsrError


@dataclass(frozen=True)
class Heard:
    """What a live session made of a message, or of several with sound.

    events    the last one may be an error; the session goes on
    asked     the kind of message
    count     how many messages
    seconds   of sound that is in them
    since     seconds of sound from which the times of the events count
    """

    number: int
    events: list[Event | GlmAsrError]
    asked: "type[ToLive]"
    count: int = 1
    seconds: float = 0.0
    since: float = 0.0


@dataclass(frozen=True)
class Batch:
    """So many windows of so many recordings were decoded together."""

    windows: int
    recordings: int


ToLive = Listen | Sound | Commit | Clear | Finish
ToWorker = Recording | Cancel | ToLive
FromLive = Refused | Heard
FromWorker = Ready | Broken | Began | PartReady | Done | Failed | Batch | FromLive
