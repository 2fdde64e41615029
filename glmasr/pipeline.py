"""Recording -> Transcript: what the command line, and everything else that serves people, calls.

    recogniser = load("demo")
    transcript = recogniser.transcribe("talk.wav", language="zh")

All windows of a recording go into ONE prompt, up to the model's limit, as the published model was used.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import audio as sound
from . import decode, weights
from .config import GlmAsrConfig
from .errors import CheckpointError, OptionError
from .language import LANGUAGES, forbidden_ids, name_language
from .model import GlmAsr
from .tokenizer import Tokenizer

# A recording may answer with this many tokens if the caller sets no limit. Fast speech is about 8 tokens a second.
TOKENS_A_SECOND, TOKENS_AT_LEAST = 16, 32
# Shorter recordings make no row that the decoder could hear; they are padded with silence up to here.
SHORTEST = 961
MOST_BEAMS = 64                 # memory and time grow with them; nobody has seen a gain beyond ten
# The special tokens of the prompt.
MARKERS = ("<|user|>", "<|begin_of_audio|>", "<|end_of_audio|>", "<|assistant|>")


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording, in seconds from its start, and what was said there."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Transcript:
    """What was recognised.

    language: as it was asked for; for "auto" it is named from the text: "zh", "yue", "en", or "" where that says nothing.
    seconds: length of the recording.      warnings: sentences for the user, such as that the text is incomplete.
    """

    text: str
    language: str
    segments: list[Segment]
    seconds: float
    warnings: list[str] = field(default_factory=list)


def load(name_or_path="glm-asr-nano-2512", *, device="auto", dtype="auto") -> "Recogniser":
    """A recogniser from a checkpoint directory, or by name: "glm-asr-nano-2512", "demo". Raises CheckpointError, OptionError.

    device  "auto" (a GPU where there is one), "cpu", "cuda"
    dtype   "auto" (bfloat16 where the machine is fast at it, else float32), "bfloat16", "float32"
    """
    directory = weights.find(name_or_path)
    model = weights.load(directory, device=device, dtype=dtype)
    tokenizer = Tokenizer.read(directory / "tokenizer.json")
    # TRAP: with the tokenizer of another model the prompt has ids that mean something else, or nothing.
    for name in MARKERS:
        tokenizer.id(name)
    prompt = model.prompt(tokenizer, 1)
    if max(prompt) >= model.config.decoder.vocabulary or prompt.count(model.config.audio_token) > 1:
        raise CheckpointError(f"{directory / 'tokenizer.json'}: its ids don't fit config.json (a vocabulary of "
                              f"{model.config.decoder.vocabulary}, audio token {model.config.audio_token}); it is that of another model")
    return Recogniser(model, tokenizer)


class Recogniser:
    """A model with its tokenizer. `transcribe` is what it is for; `.model`, `.tokenizer` and `.config` are there to look at."""

    def __init__(self, model: GlmAsr, tokenizer: Tokenizer):
        self.model = model
        self.tokenizer = tokenizer
        self._rules: dict[str, list[decode.Rule]] = {}

    @property
    def config(self) -> GlmAsrConfig:
        return self.model.config

    def transcribe(self, audio, language: str = "auto", *, sample_rate: int | None = None, beams: int = 1,
                   length_penalty: float = 1.0, max_new_tokens: int | None = None) -> Transcript:
        """Recognises one recording.

        audio           path, "-" (standard input), bytes, binary file, or a float array (S,) or (S, channels), about -1..1,
                        with its `sample_rate` in Hz
        language        "zh", "yue", "en": letters that the language is not written in are forbidden; "auto": nothing is
        beams           width of the search; 1 is greedy
        length_penalty  of a search with beams: the higher, the more it favours long answers
        max_new_tokens  limit for the answer; by default it follows from the length of the recording

        Raises AudioError for a recording that can't be used, OptionError for an argument out of range.
        """
        rules = self.rules(language)
        for name, value in (("beams", beams), ("max_new_tokens", max_new_tokens)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise OptionError(f"{name} is {value!r}, expected a positive integer")
        positions = self.config.decoder.positions
        if max_new_tokens is not None and max_new_tokens > positions:       # memory for all of them is taken at once
            raise OptionError(f"max_new_tokens is {max_new_tokens}, expected at most {positions}, the positions that the model knows")
        if not isinstance(length_penalty, (int, float)) or not abs(length_penalty) <= 100:
            raise OptionError(f"length_penalty is {length_penalty!r}, expected a number from -100 to 100")
        if beams > MOST_BEAMS:
            raise OptionError(f"beams is {beams}, expected at most {MOST_BEAMS}")
        warnings: list[str] = []
        samples, seconds = self._read(audio, sample_rate, warnings)
        ids = self._recognise(samples, rules, beams, length_penalty, max_new_tokens, warnings)
        text = self.tokenizer.decode(ids).strip()
        segments = [Segment(0.0, len(samples) / sound.SAMPLE_RATE, text)] if text else []
        return Transcript(text, name_language(text) if language == "auto" else language, segments, seconds, warnings)

    def rules(self, language: str) -> list[decode.Rule]:
        """The decoding rules of a language option. The checkpoint has no language tokens: see `glmasr.language`."""
        if not isinstance(language, str) or language not in LANGUAGES:
            raise OptionError(f"language is {language!r}, expected one of {', '.join(LANGUAGES)}")
        if language not in self._rules:
            size = self.config.decoder.vocabulary
            ids = forbidden_ids(self.tokenizer, language, size)
            self._rules[language] = [decode.Forbid(ids, size, self.model.device)] if ids else []
        return self._rules[language]

    @torch.inference_mode()
    def hear(self, samples: Tensor) -> Tensor:
        """Samples (S,) at 16 kHz -> the rows (N, D) that the decoder hears, those of all windows one after the other."""
        window = self.config.window
        counts = [min(window, len(samples) - start) for start in range(0, len(samples), window)]
        heard = []
        # One window after the other: the encoder's memory then doesn't grow with the recording.
        for part, count in zip(sound.windows(samples, window), counts, strict=True):
            mel = sound.log_mel(part.to(self.model.device), self.config.encoder.bands)
            heard += self.model.encode(mel, [count])
        return torch.cat(heard)

    def _recognise(self, samples: Tensor, rules, beams: int, length_penalty: float, limit: int | None, warnings: list[str]) -> list[int]:
        heard = self.hear(torch.nn.functional.pad(samples, (0, max(0, SHORTEST - len(samples)))))
        prompt = self.model.prompt(self.tokenizer, len(heard))
        budget = limit or TOKENS_AT_LEAST + round(TOKENS_A_SECOND * len(samples) / sound.SAMPLE_RATE)
        search = {"stop": self.config.stop, "max_new": budget, "rules": rules}
        try:
            if beams == 1:
                best = decode.greedy(self.model, [heard], [prompt], **search)[0]
            else:
                best = decode.beam(self.model, [heard], [prompt], width=beams, length_penalty=length_penalty, **search)[0][0]
        except ValueError as error:         # the arguments were checked, so what is left is numbers that are not finite
            raise CheckpointError(f"the model gives no usable answer: {error}") from error
        if not best.stopped:
            warnings.append(f"the limit of {budget} tokens was reached, so the text is incomplete or repeats itself"
                            + ("; --max-new-tokens raises it" if limit else ""))
        return best.ids

    def _read(self, audio, sample_rate: int | None, warnings: list[str]) -> tuple[Tensor, float]:
        """The samples that the model can take, and the length of the whole recording in seconds."""
        most, kept, length = self.config.longest_windows * self.config.window, [], 0
        for block in sound.blocks(audio, sample_rate, warn=warnings.append):
            kept.append(block[:max(0, most - length)])      # what is beyond is counted and not kept
            length += len(block)
        if length > most:
            warnings.append(f"the model takes {most / sound.SAMPLE_RATE:.0f} s at most, {self.config.longest_windows} whole windows: "
                            f"the last {(length - most) / sound.SAMPLE_RATE:.1f} s of the recording are left out")
        return torch.cat(kept), length / sound.SAMPLE_RATE
