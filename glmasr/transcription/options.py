"""How to recognize: one frozen dataclass, whose values are checked before anything is read."""

from dataclasses import dataclass

from ..audio_files.limits import MAX_DURATION
from ..audio_files.tracks import check_track
from ..config import is_integer, is_number
from ..errors import OptionError
from . import chinese_script, clips, hotwords
from .fallback import TEMPERATURES

MOST_BEAMS = 64  # memory and time grow with them; no gain is known beyond ten
MOST_BATCH = 4096
ZH_WORDS = ("character", "dictionary")
# Silero proposes 0.5 and 0.35. In as much street or pink noise as speech (3 and 0 dB) that misses 6 % and 16 % of the
# speech of 40 recordings, these miss 3 % and 6 %, and find nothing more in noise and music, but 0.2 s in ten minutes of
# dialed tones.
THRESHOLD, UNTIL = 0.25, 0.1  # probabilities at which speech begins and below which it ends
LONGEST_PROMPT = 10_000  # characters; of a prompt the last few hundred are read
PROMPT = f"a text of at most {LONGEST_PROMPT:,} characters"


@dataclass(frozen=True)
class Options:
    """How to recognize.

    task            "transcribe"; of an encoder-decoder whose vocabulary has it, also "translate" (into English)
    timestamps      times from the model's own time tokens, to 20 ms: encoder-decoder only. None: it writes them, for
                    that way it loses less, and they aren't shown; False: it writes none
    beams           width of the search, 1 is greedy; by default what the model was meant for: 5 for the
                    encoder-decoder, else 1
    length_penalty  of a search with beams: the higher, the more it favors long answers
    max_new_tokens  limit for the answer of a window; by default it follows from the window's length
    temperatures    to try, in order, while an answer fails the checks; above 0 it is sampled
    long            of recordings longer than a window: "cut" where it is quiet; "whole": all windows in one prompt, up
                    to the model's limit, as the published model was used; "seek": an encoder-decoder with `timestamps`
                    goes on where its last sentence ended
    batch_size      windows that are decoded together; by default what memory allows
    guards          False: every answer is taken as it comes
    pad_to          what a window is padded to before it is encoded: "window", with silence up to its full length, as
                    published, or "speech", up to a second after the last sound, which is several times cheaper for
                    short recordings, and another result
    vad             "auto": where the extra [vad] is installed, only what it takes for speech is decoded; "off": all
                    that isn't silent
    languages       what `language` "auto" may choose among, also as a text, "zh,yue,en"; empty: all languages of the
                    model
    words           times of each word, by aligning the text with the sound; segments then begin and end with a word
    zh_words        what a word of Chinese is: a "character", or what a "dictionary" has; that needs the package rjieba
    clips           pairs of seconds, (60, 120), the last one perhaps (300, None): what of a recording is recognized;
                    empty: all of it
    hotwords        names to be spelled right: phrases, "Kowloon Tong:2" with a weight, or pairs (phrase, weight); what
                    they change is in docs/HOTWORDS.md
    prompt          of a Whisper: text that it takes for what was said before every window, such as names, or a style
    context         of a Whisper: what was said before is the prompt of the next window, after `prompt`. The windows of
                    a recording are then decoded one by one
    instruction     of GLM-ASR, an experiment: what replaces the instruction that it was trained with
    script          "simplified" or "traditional": all Chinese characters are written so; needs the package OpenCC
    max_duration    seconds that a recording may have at most
    track           of a file with several tracks of sound: a number, from 1, or a language ("eng"); by default the one
                    that the file calls its default, else the first one
    """

    task: str = "transcribe"
    timestamps: bool | None = None
    beams: int | None = None
    length_penalty: float = 1.0
    max_new_tokens: int | None = None
    temperatures: tuple[float, ...] = TEMPERATURES
    long: str = "cut"
    batch_size: int | None = None
    guards: bool = True
    pad_to: str = "window"
    script: str | None = None
    max_duration: float = MAX_DURATION
    track: int | str | None = None
    languages: tuple[str, ...] = ()
    vad: str = "auto"
    words: bool = False
    zh_words: str = "character"
    clips: tuple[tuple[float, float | None], ...] = ()
    hotwords: tuple[str | tuple[str, float], ...] = ()
    prompt: str = ""
    context: bool = False
    instruction: str = ""

    @property
    def temperature_schedule(self) -> tuple[float, ...]:
        """Temperatures to try, in order."""
        return self.temperatures if self.guards else self.temperatures[:1]

    def check(self, positions: int) -> None:
        """Raises OptionError for a value out of range; `positions` is how many the model has."""
        for name in ("beams", "max_new_tokens", "batch_size"):
            value = getattr(self, name)
            _require(value is None or is_integer(value) and value > 0, name, value, "a positive integer")
        for name in ("guards", "context", "words"):
            _require(isinstance(getattr(self, name), bool), name, getattr(self, name), "True or False")
        good = self.timestamps is None or isinstance(self.timestamps, bool)
        _require(good, "timestamps", self.timestamps, "True, False or None")
        _require((self.batch_size or 0) <= MOST_BATCH, "batch_size", self.batch_size, f"at most {MOST_BATCH}")
        _require(  # memory for all of them is taken at once
            (self.max_new_tokens or 0) <= positions,
            "max_new_tokens",
            self.max_new_tokens,
            f"at most {positions}, the positions that the model has",
        )
        penalty = self.length_penalty
        good = isinstance(penalty, (int, float)) and abs(penalty) <= 100
        _require(good, "length_penalty", penalty, "a number from -100 to 100")
        _require((self.beams or 0) <= MOST_BEAMS, "beams", self.beams, f"at most {MOST_BEAMS}")
        good = isinstance(self.temperatures, (tuple, list)) and bool(self.temperatures)
        good = good and all(is_number(value) and 0 <= value <= 10 for value in self.temperatures)
        _require(good, "temperatures", self.temperatures, "numbers from 0 to 10, at least one")
        chinese_script.converter(self.script)
        _require(self.zh_words in ZH_WORDS, "zh_words", self.zh_words, " or ".join(map(repr, ZH_WORDS)))
        check_track(self.track)
        clips.check(self.clips)
        hotwords.parse(self.hotwords)
        for name in ("prompt", "instruction"):
            text = getattr(self, name)
            good = isinstance(text, str) and len(text) <= LONGEST_PROMPT
            _require(good, name, f"{text[:40]}..." if isinstance(text, str) else text, PROMPT)
        _require(self.long in ("cut", "whole", "seek"), "long", self.long, "'cut', 'whole' or 'seek'")
        _require(self.vad in ("auto", "off"), "vad", self.vad, "'auto' or 'off'")
        _require(self.pad_to in ("window", "speech"), "pad_to", self.pad_to, "'window' or 'speech'")


def _require(good: bool, name: str, value: object, expected: str) -> None:
    if not good:
        raise OptionError(f"{name} is {value!r}, expected {expected}")
