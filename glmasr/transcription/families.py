"""What the two families of models have in common for whoever recognizes with them, and what passes between the steps.

    Job -> Family.encode -> EncodedBatch -> search -> ids -> Family.segments

`glm_asr` and `encoder_decoder` have the two adapters.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ..alignment.reading import Reading
from ..alignment.words import NO_CHARACTER
from ..audio import SAMPLE_RATE
from ..config import EncoderDecoderConfig, GlmAsrConfig
from ..errors import OptionError
from ..rules import Rule
from .chunking import Window
from .language import LANGUAGES, AnyTokenizer, canonical
from .options import Options

AFTER_SPEECH = 1.0  # seconds that are encoded after the last sound, where a window is not encoded to its end
LONG_PAUSE = 10.0  # seconds, after which another speaker, in another language, is likely
SURE = 0.8  # probability with which a window changes the language of a recording


@dataclass(frozen=True)
class LanguageState:
    """The language of a recording so far: the one asked for; with "auto", the one detected last, and up to which
    second. With `Options.context` also what was said."""

    requested: str
    detected: str = ""
    until: float = 0.0
    context: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "requested", canonical(self.requested))

    @property
    def auto(self) -> bool:
        """Whether the language is to be detected."""
        return self.requested == "auto"

    def choose(self, probabilities: dict[str, float], begin: float, speech: bool) -> str:
        """The language of a window that begins at this second: the one before, unless this is speech, and something
        else is sure or the one before was long ago."""
        likely = max(probabilities, key=lambda name: probabilities[name])
        stays = begin < self.until + LONG_PAUSE and probabilities[likely] < SURE
        return self.detected if self.detected in probabilities and (stays or not speech) else likely


@dataclass(eq=False)
class RecordingState:
    """What a recording's windows share. Decoding returns a new language; it is stored here once a batch has
    succeeded."""

    language: LanguageState

    @classmethod
    def of(cls, language: str, detected: str = "", until: float = 0.0) -> "RecordingState":
        """`language`: as requested, or "auto"; `detected` up to second `until`: what an interrupted run had found."""
        return cls(LanguageState(language, detected, until))


States = dict[RecordingState, LanguageState]


@dataclass(frozen=True)
class Job:
    """A window to decode."""

    window: Window
    recording: RecordingState
    attempts: int = 0  # how often its sound was decoded without any text
    continues: bool = False  # what no text covers at its end is decoded with what follows

    @property
    def requested(self) -> str:
        """The language asked for."""
        return self.recording.language.requested


@dataclass
class EncodedBatch:
    """Encoded windows, ready for the search: `audio` as `model.prefill` takes it.

    audio       for GLM-ASR the audio embeddings (N, D) of each window; else cross keys and values (A, H, T, D) of each
                layer
    prompts     ids of each window's prompt
    languages   of each window; "" where nothing says so
    no_speech   probability of no speech; None: the search finds out
    runners_up  where the language isn't sure, the next likely one; else ""
    pieces      of a window in several languages, each with its own; else []
    states      the languages of the recordings after these windows
    """

    audio: list[Any]
    prompts: list[list[int]]
    languages: list[str]
    no_speech: list[float] | None = None
    runners_up: list[str] | None = None
    pieces: list[list[tuple[Window, str]]] | None = None
    states: States = field(default_factory=dict)

    def rows(self, chosen: Sequence[int]) -> tuple[list[Any], list[list[int]]]:
        """(audio, prompts) of some of the windows."""
        audio = self.audio
        if len(chosen) < len(self.prompts):
            by_layer = isinstance(audio[0], tuple)
            index = list(chosen)
            audio = [(key[index], value[index]) for key, value in audio] if by_layer else [audio[i] for i in chosen]
        return audio, [self.prompts[i] for i in chosen]

    def select(self, chosen: Sequence[int]) -> "EncodedBatch":
        """The same of some of the windows."""
        audio, prompts = self.rows(chosen)
        return EncodedBatch(
            audio,
            prompts,
            [self.languages[i] for i in chosen],
            None if self.no_speech is None else [self.no_speech[i] for i in chosen],
            None if self.runners_up is None else [self.runners_up[i] for i in chosen],
        )


@dataclass(frozen=True)
class Piece:
    """What an answer says between two of its times, or all of it: seconds of the recording, text and its ids."""

    start: float
    end: float
    text: str
    ids: list[int]


class Family(Protocol):
    """What differs between GLM-ASR and the encoder-decoder."""

    long_form: tuple[str, ...]  # values of `Options.long` that it supports
    tokenizer: AnyTokenizer

    @property
    def config(self) -> GlmAsrConfig | EncoderDecoderConfig:
        """The model's configuration."""

    @property
    def detects_language(self) -> bool:
        """Whether the model gives a probability for each language; else the language is inferred from the text."""

    @property
    def samples_per_state(self) -> int:
        """Samples that one state or embedding stands for, as the decoder attends to it."""

    @property
    def languages(self) -> tuple[str, ...]:
        """Those that can be asked for, "auto" not among them."""
        ...

    def check_tokenizer(self) -> None:
        """Raises CheckpointError for the tokenizer of another model."""
        ...

    def timed(self, options: Options) -> bool:
        """Whether the model writes time tokens."""
        ...

    def rules(self, language: str, options: Options) -> list[Rule]:
        """The decoding rules. Raises OptionError for what the model can't do."""
        ...

    def padded_length(self, window: Window, options: Options) -> int:
        """Samples that a window is padded to before it is encoded."""
        ...

    def encode(self, jobs: list[Job], length: int, options: Options, states: States) -> EncodedBatch:
        """Encodes the windows of some jobs, padded to `length` samples. `states`: the languages so far; not changed."""

    def prompt(self, language: str, options: Options) -> list[int]:
        """The prompt of a window in this language; only asked for where `EncodedBatch.runners_up` has one."""
        ...

    def token_limit(self, prompt: int) -> int:
        """Tokens that an answer to a prompt of this length may have."""
        ...

    def text(self, ids: list[int]) -> str:
        """The text of an answer, stripped, without special tokens."""

    def segments(self, window: Window, ids: list[int]) -> list[Piece]:
        """An answer, cut at its times; no piece is without a text."""
        ...

    def read_again(
        self, window: Window, audio: Any, prompt: list[int], ids: list[int], every_head: bool = False
    ) -> Reading:
        """A text's ids, without times, read once more in one pass, with the alignment heads, or the steadiest where
        none are known; `audio` as `EncodedBatch.rows` gives it of one window."""
        ...

    def resume(self, window: Window, ids: list[int]) -> float:
        """Seconds: where the last complete sentence ends; the end of the window where nothing says so."""
        ...


def checked_languages(family: Family, language: str, options: Options) -> tuple[str, ...]:
    """`Options.languages` as codes that the model has. Raises OptionError for what a model of this family can't do."""
    if options.languages and canonical(language) != "auto":
        raise OptionError(
            f"languages is {options.languages!r}, which says what language 'auto' may choose among; "
            f"language is {language!r}"
        )
    if "auto" in map(canonical, options.languages):
        raise OptionError(
            f"languages is {options.languages!r}, expected names of languages, such as ('zh', 'yue', 'en')"
        )
    # Of Mandarin, Cantonese and English those that the model supports: most Whispers have no token for Cantonese.
    named = tuple(map(canonical, options.languages))
    languages = tuple(name for name in named if name in family.languages or name not in LANGUAGES) or named
    for name in languages:
        family.rules(name, replace(options, languages=()))
    family.rules(language, options)
    if options.long not in family.long_form:
        known = " and ".join(map(repr, family.long_form))
        raise OptionError(f"long is {options.long!r}; this model supports {known}")
    if options.long == "seek" and not family.timed(options):
        raise OptionError(
            "long is 'seek', which goes by the model's time tokens; it needs them "
            "(timestamps not False, and a model that has them)"
        )
    return languages


def padded_to_speech(window: Window, full: int, step: int) -> int:
    """Samples up to a second after the last sound, a multiple of `step`: few lengths, large batches. At most `full`."""
    _, end = window.sound_span()
    samples = round((end - window.begin + AFTER_SPEECH) * SAMPLE_RATE)
    return min(full, -(-samples // step) * step)


def readable(text: str) -> str:
    """A decoded text, stripped, without U+FFFD: a model can write half a character, whose bytes are no UTF-8."""
    return re.sub(f" {NO_CHARACTER}+(?= )|{NO_CHARACTER}", "", text).strip()


def whole_text(window: Window, text: str, ids: list[int]) -> list[Piece]:
    """One piece for all that a window's sound says; none without a text."""
    start, end = window.sound_span()
    return [Piece(round(start, 3), round(end, 3), text, ids)] if text else []


def after_speech(state: LanguageState, language: str, window: Window) -> LanguageState:
    """The language of a recording after a window with speech."""
    return replace(state, detected=language, until=window.begin + window.seconds)
