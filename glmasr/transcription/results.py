"""What is recognized of a recording: segments, parts as they come, and the whole transcript."""

from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OptionError
from ..writers.formats import WRITERS, record
from ..writers.line_breaks import Layout
from ..writers.output import write_whole
from .language import join, name_language

if TYPE_CHECKING:
    from .families import LanguageState

FLAGS = {  # of a segment -> what the warning says
    "repeats": "the text repeats itself",
    "doubtful": "the model is not sure of the text",
    "tones": "this sounds like tones more than like a voice, and the model is not sure of the text",
    "incomplete": "the limit of tokens was reached, so the text is incomplete",
    "sampled": "the first answer failed the checks; this one was sampled",
    "split": "every attempt failed the checks; the halves were recognized separately",
    "dropped": "every attempt failed the checks, and there seems to be no speech in its halves; there is no text",
    "interpolated": "the words couldn't be found in the sound, so their times are estimates",
    "uncovered": "there is speech here, and no text, or too little",
}


@dataclass(frozen=True)
class Word:
    """A word of a segment, with its punctuation; of Chinese and other scripts without spaces, a character.

    start, end    seconds from the start of the recording; words of a recording never overlap, and none has no length
    probability   the mean of those of its tokens, given the sound and what was said before
    """

    text: str
    start: float
    end: float
    probability: float


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording, and what was said there.

    start, end          seconds from the start of the recording
    mean_logprob        of its window's tokens: 0 is certainty, below -1 is a guess
    compression_ratio   of its window's text: above 2.4 it repeats itself
    no_speech           the probability of no speech in its window
    temperature         0: searched, above: sampled
    language            as asked for, as detected, or what the text is written in
    flags               names of FLAGS: what is doubtful
    words               with times, where `Options.words` asks for them
    """

    start: float
    end: float
    text: str
    mean_logprob: float = 0.0
    compression_ratio: float = 0.0
    no_speech: float = 0.0
    temperature: float = 0.0
    flags: tuple[str, ...] = ()
    language: str = ""
    words: tuple[Word, ...] = ()


@dataclass(frozen=True)
class Part:
    """What was recognized of a stretch of a recording, `start` to `end` in seconds. Stretches follow each other; what
    is between them is silent."""

    start: float
    end: float
    language: str
    segments: list[Segment]
    warnings: list[str]
    failed: bool = False  # every attempt failed the checks
    resume: float = 0.0  # seconds: where the last complete sentence ends, or `end`; for `--long seek`
    last: bool = False  # the recording ends here
    uncovered: tuple[tuple[float, float], ...] = ()  # seconds: speech without text
    # After this part; None where others of its batch follow. With it, `Recognizer.streams` can go on here.
    language_state: "LanguageState | None" = None


@dataclass(frozen=True, repr=False)
class Transcript:
    """What was recognized.

    >>> said = Transcript("Good morning.", "en", [Segment(0.5, 1.7, "Good morning.")], 2.0)
    >>> said
    <Transcript en, 2.0 s, 1 segment: 'Good morning.'>
    >>> print(said.to_srt(), end="")
    1
    00:00:00,500 --> 00:00:01,700
    Good morning.

    language    as it was asked for; for "auto" the one that is detected in most of it, of those that the model has
                tokens for; where it has none, the one that the text is written in: "zh", "yue", "en". "" where that
                says nothing
    seconds     length of the recording; of an incomplete transcript, up to where it was recognized
    decoded_seconds    of it that were decoded, at most `seconds`
    skipped_seconds    of it that were skipped as silent; what is neither is named in the warnings
    no_speech_seconds  of it that were decoded and hold no speech
    failed      stretches whose every attempt failed the checks
    uncovered   from where to where, in seconds, there is speech and no text, or too little of it
    how         what it was computed on: device, type of the numbers, kind of linears and of steps, padding (`pad_to`)
    warnings    sentences for the user, such as that the text is incomplete
    incomplete  the recording goes on after `seconds`: an error or Ctrl-C came before its end
    """

    text: str
    language: str
    segments: list[Segment]
    seconds: float
    warnings: list[str] = field(default_factory=list)
    decoded_seconds: float = 0.0
    skipped_seconds: float = 0.0
    failed: int = 0
    no_speech_seconds: float = 0.0
    how: dict[str, str] = field(default_factory=dict)
    uncovered: list[tuple[float, float]] = field(default_factory=list)
    incomplete: bool = False

    @classmethod
    def of(cls, parts: list[Part], how: dict[str, str] | None = None) -> "Transcript":
        """All parts of a stream, joined. The last one reaches from what was read up to the end of the recording."""
        segments = [segment for part in parts for segment in part.segments]
        text = join([segment.text for segment in segments])
        spoken: dict[str, float] = {}
        for segment in segments:
            if segment.language:
                spoken[segment.language] = spoken.get(segment.language, 0.0) + segment.end - segment.start
        detected = next((part.language for part in reversed(parts) if part.language), "") or name_language(text)
        language = max(spoken, key=lambda name: spoken[name]) if spoken else detected
        seconds, decoded = parts[-1].end, sum((part.end - part.start for part in parts[:-1]), 0.0)
        no_speech = sum((part.end - part.start for part in parts[:-1] if not part.segments), 0.0)
        skipped = max(0.0, parts[-1].start - decoded)
        decoded, skipped, no_speech = (min(round(value, 3), seconds) for value in (decoded, skipped, no_speech))
        return cls(
            text,
            language,
            segments,
            seconds,
            [warning for part in parts for warning in part.warnings],
            decoded,
            skipped,
            sum(part.failed for part in parts),
            no_speech,
            dict(how or {}),
            [stretch for part in parts for stretch in part.uncovered],
        )

    @classmethod
    def stopped(cls, parts: list[Part], how: dict[str, str] | None = None) -> "Transcript":
        """The parts, at least one, of a stream that was stopped before its end."""
        end = parts[-1].end
        rest = Part(end, end, "", [], [f"it was stopped at {end:.1f} s, so the text is incomplete"], last=True)
        return replace(cls.of([*parts, rest], how), incomplete=True)

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 60 else f"{self.text[:57]}..."
        count = f"{len(self.segments)} segment{'' if len(self.segments) == 1 else 's'}"
        return f"<Transcript {self.language or 'without a language'}, {self.seconds:.1f} s, {count}: {text!r}>"

    def to_dict(self) -> dict[str, Any]:
        """What `.save("talk.json")` writes (docs/JSON.md): dictionaries, lists, strings, finite numbers."""
        return record(self)

    def to_srt(self, max_line_width: int = 42, max_line_count: int = 2) -> str:
        """SubRip subtitles; a Chinese character takes two columns of a line."""
        return WRITERS["srt"](self, Layout(max_line_width, max_line_count))

    def save(self, path: str | PathLike[str], max_line_width: int = 42, max_line_count: int = 2) -> None:
        """Writes a file, whole or not at all, in the format that its name ends in: .txt, .srt, .vtt, .tsv, .json, .lrc.
        Raises OptionError for another ending, OutputError where it can't be written."""
        form = Path(path).suffix[1:].lower()
        if form not in WRITERS:
            endings = ", ".join(f".{name}" for name in WRITERS)
            raise OptionError(f"path is {str(path)!r}, expected a name that ends in one of {endings}")
        write_whole(path, WRITERS[form](self, Layout(max_line_width, max_line_count), ""))
