"""What the server and the worker process say to each other: plain data, which the pipe pickles."""

from dataclasses import dataclass

from ..errors import GlmAsrError
from ..pipeline import Options, Part

# ---- to the worker ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recording:
    """Recognize this file. `number` names it in all that follows."""

    number: int
    path: str
    language: str
    options: Options


@dataclass(frozen=True)
class Cancel:
    """The client of this recording has left."""

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
class Batch:
    """So many windows of so many recordings were decoded together."""

    windows: int
    recordings: int


ToWorker = Recording | Cancel
FromWorker = Ready | Broken | Began | PartReady | Done | Failed | Batch
