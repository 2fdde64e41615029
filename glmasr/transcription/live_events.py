"""What a live session tells."""

from dataclasses import dataclass

from .results import Segment, Word


@dataclass(frozen=True)
class SpeechStarted:
    """Somebody speaks, since this second."""

    seconds: float


@dataclass(frozen=True)
class Tentative:
    """What is probably said after what is committed; it replaces the last one. With the space before it."""

    text: str


@dataclass(frozen=True)
class Committed:
    """What is certain: words, and their text with the spaces before them, to be appended to what a segment has."""

    text: str
    words: tuple[Word, ...]


@dataclass(frozen=True)
class SpeechStopped:
    """There was a pause after this second; a `Segment` follows."""

    seconds: float


@dataclass(frozen=True)
class Notice:
    """What the user should know: a warning of the recognition, or that steps get longer."""

    text: str


Event = SpeechStarted | Tentative | Committed | SpeechStopped | Segment | Notice
