"""Recording -> Transcript: what the command line, and everything else that serves people, calls.

    recogniser = load("demo")
    transcript = recogniser.transcribe("talk.wav", language="zh")

    GlmAsrRecogniser            all windows of a recording go into ONE prompt, up to the model's limit, as the published
                                model was used
    EncoderDecoderRecogniser    each window is decoded for itself; language tokens, times, and another try with sampling
                                where a text can't be right (openai/whisper, transcribe.py)
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from . import audio as sound
from . import decode, weights
from .config import TIME_STEP, EncoderDecoderConfig, GlmAsrConfig
from .errors import CheckpointError, OptionError
from .fallback import TEMPERATURES, Limits, fallback
from .language import LANGUAGES, forbidden_ids, join, name_language
from .model import EncoderDecoder, GlmAsr
from .tokenizer import read_tokenizer

# A recording may answer with this many tokens if the caller sets no limit. Fast speech is about 8 tokens a second.
TOKENS_A_SECOND, TOKENS_AT_LEAST = 16, 32
# Shorter recordings make no row that the decoder could hear; they are padded with silence up to here.
SHORTEST = 961
BATCH = 8                       # windows of the encoder-decoder that are decoded together
MOST_BEAMS = 64                 # memory and time grow with them; nobody has seen a gain beyond ten
SAMPLES = 5                     # drawn for a window at temperatures above 0; the likeliest counts
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

    language: as it was asked for; for "auto" the one that the model hears, or where it has no tokens for languages, the one that
        the text is written in: "zh", "yue", "en", or "" where that says nothing.
    seconds: length of the recording.      warnings: sentences for the user, such as that the text is incomplete.
    """

    text: str
    language: str
    segments: list[Segment]
    seconds: float
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Options:
    """How to recognise: see `Recogniser.transcribe`."""

    task: str = "transcribe"
    timestamps: bool = False
    beams: int = 1
    length_penalty: float = 1.0
    max_new_tokens: int | None = None
    temperatures: tuple[float, ...] = TEMPERATURES

    def check(self, positions: int) -> None:
        """Raises OptionError for a value out of range."""
        for name, value in (("beams", self.beams), ("max_new_tokens", self.max_new_tokens)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise OptionError(f"{name} is {value!r}, expected a positive integer")
        if self.max_new_tokens is not None and self.max_new_tokens > positions:     # memory for all of them is taken at once
            raise OptionError(f"max_new_tokens is {self.max_new_tokens}, expected at most {positions}, the positions that the model knows")
        if not isinstance(self.length_penalty, (int, float)) or not abs(self.length_penalty) <= 100:
            raise OptionError(f"length_penalty is {self.length_penalty!r}, expected a number from -100 to 100")
        if self.beams > MOST_BEAMS:
            raise OptionError(f"beams is {self.beams}, expected at most {MOST_BEAMS}")
        if not self.temperatures or not all(isinstance(value, (int, float)) and 0 <= value <= 10 for value in self.temperatures):
            raise OptionError(f"temperatures is {self.temperatures!r}, expected numbers from 0 to 10, at least one")


def load(name_or_path="glm-asr-nano-2512", *, device="auto", dtype="auto") -> "Recogniser":
    """A recogniser from a checkpoint directory, or by name: "glm-asr-nano-2512", "demo", "demo-article". Raises CheckpointError,
    OptionError.

    device  "auto" (a GPU where there is one), "cpu", "cuda"
    dtype   "auto" (bfloat16 where the machine is fast at it, else float32), "bfloat16", "float32"
    """
    directory = weights.find(name_or_path)
    model = weights.load(directory, device=device, dtype=dtype)
    tokenizer = read_tokenizer(directory)
    recogniser = make_recogniser(model, tokenizer)
    try:
        recogniser.check_tokenizer()
    except CheckpointError as error:
        name = "tokenizer.json" if (directory / "tokenizer.json").is_file() else "tokenizer.model"
        raise CheckpointError(f"{directory / name}: {error}") from None
    return recogniser


def make_recogniser(model: GlmAsr | EncoderDecoder, tokenizer) -> "Recogniser":
    return (GlmAsrRecogniser if isinstance(model, GlmAsr) else EncoderDecoderRecogniser)(model, tokenizer)


class Recogniser:
    """A model with its tokenizer. `transcribe` is what it is for; `.model`, `.tokenizer` and `.config` are there to look at."""

    def __init__(self, model: GlmAsr | EncoderDecoder, tokenizer):
        self.model = model
        self.tokenizer = tokenizer
        self._rules: dict[object, list[decode.Rule]] = {}

    @property
    def config(self) -> GlmAsrConfig | EncoderDecoderConfig:
        return self.model.config

    def transcribe(self, audio, language: str = "auto", *, sample_rate: int | None = None, task: str = "transcribe",
                   timestamps: bool = False, beams: int | None = None, length_penalty: float = 1.0,
                   max_new_tokens: int | None = None, temperatures: tuple[float, ...] = TEMPERATURES) -> Transcript:
        """Recognises one recording.

        audio           path, "-" (standard input), bytes, binary file, or a float array (S,) or (S, channels), about -1..1,
                        with its `sample_rate` in Hz
        language        "auto", "zh", "yue", "en". The encoder-decoder is told it by a token, or judges it by itself; of GLM-ASR,
                        which has no such tokens, letters that the language is not written in are forbidden
        task            "transcribe"; of an encoder-decoder whose vocabulary has it, also "translate" (into English)
        timestamps      times from the model's own time tokens, to 20 ms: encoder-decoder only
        beams           width of the search, 1 is greedy; by default what the model was meant for: 5 for the encoder-decoder, else 1
        length_penalty  of a search with beams: the higher, the more it favours long answers
        max_new_tokens  limit for the answer (encoder-decoder: for that of a window); by default it follows from the length
        temperatures    encoder-decoder only: what is tried, one after the other, while a text can't be right; above 0 it is sampled

        Raises AudioError for a recording that can't be used, OptionError for an argument out of range.
        """
        options = Options(task, timestamps, self.config.beams if beams is None else beams, length_penalty, max_new_tokens, tuple(temperatures))
        options.check(self.config.decoder.positions)
        self.rules(language, options)           # what can't be had is said before anything is read
        warnings: list[str] = []
        samples, seconds = self._read(audio, sample_rate, warnings)
        transcript = self.recognise([samples], [language], options)[0]
        return replace(transcript, seconds=seconds, warnings=warnings + transcript.warnings)

    def _read(self, audio, sample_rate: int | None, warnings: list[str]) -> tuple[Tensor, float]:
        """The samples that the model can take, and the length of the whole recording in seconds."""
        kept, length, most = [], 0, self.longest
        for block in sound.blocks(audio, sample_rate, warn=warnings.append):
            kept.append(block[:max(0, most - length)])      # what is beyond is counted and not kept
            length += len(block)
        if length > most:
            warnings.append(f"the model takes {most / sound.SAMPLE_RATE:.0f} s at most, {most // self.config.window} whole windows: "
                            f"the last {(length - most) / sound.SAMPLE_RATE:.1f} s of the recording are left out")
        return torch.cat(kept), length / sound.SAMPLE_RATE

    def _budget(self, samples: int, options: Options, most: int) -> int:
        """Tokens that an answer may have."""
        return min(options.max_new_tokens or TOKENS_AT_LEAST + round(TOKENS_A_SECOND * samples / sound.SAMPLE_RATE), most)


class GlmAsrRecogniser(Recogniser):

    @property
    def longest(self) -> int:
        """Samples that the model takes at most."""
        return self.config.longest_windows * self.config.window

    def check_tokenizer(self) -> None:
        """TRAP: with the tokenizer of another model the prompt has ids that mean something else, or nothing."""
        for name in MARKERS:
            self.tokenizer.id(name)
        prompt = self.model.prompt(self.tokenizer, 1)
        if max(prompt) >= self.config.decoder.vocabulary or prompt.count(self.config.audio_token) > 1:
            raise CheckpointError(f"its ids don't fit config.json (a vocabulary of {self.config.decoder.vocabulary}, audio token "
                                  f"{self.config.audio_token}); it is that of another model")

    def rules(self, language: str, options: Options = Options()) -> list[decode.Rule]:
        """The decoding rules of a language option. The checkpoint has no language tokens: see `glmasr.language`."""
        if not isinstance(language, str) or language not in LANGUAGES:
            raise OptionError(f"language is {language!r}, expected one of {', '.join(LANGUAGES)}")
        if options.task != "transcribe":
            raise OptionError(f"task is {options.task!r}; this model knows 'transcribe' only")
        if options.timestamps:
            raise OptionError("this model has no time tokens; models of the encoder-decoder family have (--model demo-article, or Whisper)")
        if language not in self._rules:
            size = self.config.decoder.vocabulary
            ids = forbidden_ids(self.tokenizer, language, size)
            self._rules[language] = [decode.Forbid(ids, size, self.model.device)] if ids else []
        return self._rules[language]

    @torch.inference_mode()
    def hear(self, samples: Tensor) -> Tensor:
        """Samples (S,) at 16 kHz -> the rows (N, D) that the decoder hears, those of all windows one after the other."""
        samples = F.pad(samples, (0, max(0, SHORTEST - len(samples))))
        window = self.config.window
        counts = [min(window, len(samples) - start) for start in range(0, len(samples), window)]
        heard = []
        # One window after the other: the encoder's memory then doesn't grow with the recording.
        for part, count in zip(sound.windows(samples, window), counts, strict=True):
            mel = sound.log_mel(part.to(self.model.device), self.config.encoder.bands)
            heard += self.model.encode(mel, [count])
        return torch.cat(heard)

    def recognise(self, recordings: list[Tensor], languages: list[str], options: Options = Options()) -> list[Transcript]:
        """Samples (S,) at 16 kHz of some recordings -> their transcripts. The recordings of a language are decoded as a batch."""
        found: dict[int, Transcript] = {}
        for language in dict.fromkeys(languages):
            members = [index for index, other in enumerate(languages) if other == language]
            found |= zip(members, self._recognise([recordings[index] for index in members], language, options), strict=True)
        return [found[index] for index in range(len(recordings))]

    def _recognise(self, recordings: list[Tensor], language: str, options: Options) -> Iterator[Transcript]:
        heard = [self.hear(samples) for samples in recordings]
        prompts = [self.model.prompt(self.tokenizer, len(rows)) for rows in heard]
        # TRAP: nothing caps this budget at the model's positions, as in Transformers: rotary positions go on beyond.
        budget = self._budget(max(map(len, recordings)), options, 2 ** 31)
        best = search(self.model, heard, prompts, self.config.stop, budget, options, self.rules(language, options))
        for samples, hypothesis in zip(recordings, best, strict=True):
            text, seconds = self.tokenizer.decode(hypothesis.ids).strip(), len(samples) / sound.SAMPLE_RATE
            yield Transcript(text, name_language(text) if language == "auto" else language,
                             [Segment(0.0, seconds, text)] if text else [], seconds,
                             [] if hypothesis.stopped else [incomplete(budget, options)])


@dataclass(frozen=True)
class Window:
    """A window of a recording: which one, its first sample, its samples (S,) without padding."""

    recording: int
    start: int
    samples: Tensor


class EncoderDecoderRecogniser(Recogniser):
    longest = 2 ** 62           # samples: each window is decoded for itself, so any number of them

    def check_tokenizer(self) -> None:
        """TRAP: with the tokenizer of another model the prompt has ids that mean something else, or nothing."""
        config = self.config
        expected = {"<|startoftranscript|>": config.start} | {f"<|{name}|>": number for name, number in (config.languages | config.tasks).items()}
        if config.no_timestamps is not None:
            expected["<|notimestamps|>"] = config.no_timestamps
        for name, number in expected.items():
            if self.tokenizer.id(name) != number:
                raise CheckpointError(f"{name} is {self.tokenizer.id(name)}, but {number} in generation_config.json; it is that of another model")

    def rules(self, language: str, options: Options = Options()) -> list[decode.Rule]:
        """The decoding rules; they are the same for all languages. Raises OptionError for what the model has no tokens for."""
        known = ["auto", *self.config.languages]
        if not isinstance(language, str) or language not in known:
            raise OptionError(f"language is {language!r}; this model has tokens for {', '.join(known[1:]) or 'none'} only, and 'auto'")
        self.model.prompt(next(iter(self.config.languages), None), options.task, options.timestamps)
        if options.timestamps not in self._rules:
            self._rules[options.timestamps] = self.model.rules(options.timestamps)
        return self._rules[options.timestamps]

    def recognise(self, recordings: list[Tensor], languages: list[str], options: Options = Options()) -> list[Transcript]:
        """Samples (S,) at 16 kHz of some recordings -> their transcripts. Their windows are decoded in batches."""
        length = self.config.window
        windows = [Window(index, start, samples[start:start + length]) for index, samples in enumerate(recordings)
                   for start in range(0, max(1, len(samples)), length)]
        heard = list(languages)
        first_language: dict[int, str] = {}     # of recordings without speech
        segments: list[list[Segment]] = [[] for _ in recordings]
        warnings: list[list[str]] = [[] for _ in recordings]
        for first in range(0, len(windows), BATCH):
            part = windows[first:first + BATCH]
            for window, (language, found, warning) in zip(part, self._decode(part, heard, options), strict=True):
                first_language.setdefault(window.recording, language)
                segments[window.recording] += found
                warnings[window.recording] += warning
        transcripts = []
        for index, samples in enumerate(recordings):
            text = join([segment.text for segment in segments[index]])
            language = heard[index] if heard[index] != "auto" else first_language[index]
            if language == "auto":              # a model without language tokens
                language = name_language(text)
            transcripts.append(Transcript(text, language, segments[index], len(samples) / sound.SAMPLE_RATE, warnings[index]))
        return transcripts

    def encode(self, windows: list[Tensor]) -> Tensor:
        """Samples (S,) of windows, no longer than one -> encoder states (A, T, D)."""
        length = self.config.window
        padded = torch.stack([F.pad(samples, (0, length - len(samples))) for samples in windows])
        return self.model.encode(self.model.features(padded.to(self.model.device)))

    @torch.inference_mode()
    def _decode(self, windows: list[Window], heard: list[str], options: Options) -> list[tuple[str, list[Segment], list[str]]]:
        """Language, segments and warnings of each window. `heard` has the language of each recording; one that is "auto" becomes that of
        its first window with speech. Windows before it are each taken for what they sound like."""
        config, limits = self.config, Limits()
        states = self.encode([window.samples for window in windows])
        likely, no_speech = self.model.judge(states)
        names = list(config.languages)
        judged = [names[index] for index in likely.argmax(-1).tolist()] if names else ["auto"] * len(windows)
        no_speech = no_speech.tolist()
        chosen = []
        for window, name, silence in zip(windows, judged, no_speech, strict=True):
            if heard[window.recording] == "auto" and silence <= limits.no_speech:
                heard[window.recording] = name
            chosen.append(name if heard[window.recording] == "auto" else heard[window.recording])
        prompts = [self.model.prompt(language, options.task, options.timestamps) for language in chosen]
        budget = self._budget(config.window, options, config.decoder.positions - len(prompts[0]))

        def attempt(left: list[int], temperature: float) -> list[decode.Hypothesis]:
            return search(self.model, states[left], [prompts[index] for index in left], config.stop, budget, options,
                          self.rules("auto", options), temperature)

        def good(index: int, hypothesis: decode.Hypothesis) -> bool:
            return limits.good(hypothesis, self._text(hypothesis.ids), no_speech[index])

        tried = fallback(attempt, len(windows), good, options.temperatures)
        results = []
        for index, (window, (hypothesis, _)) in enumerate(zip(windows, tried, strict=True)):
            segments = [] if limits.silent(hypothesis, no_speech[index]) else self._segments(window, hypothesis.ids)
            results.append((chosen[index], segments, [] if hypothesis.stopped or not segments else [incomplete(budget, options)]))
        return results

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode([id for id in ids if self.config.no_timestamps is None or id < self.config.times]).strip()

    def _segments(self, window: Window, ids: list[int]) -> list[Segment]:
        """Cuts an answer at its times. Without any it is one segment."""
        config, rate = self.config, sound.SAMPLE_RATE
        begin, length = window.start / rate, len(window.samples) / rate
        pieces, words, since = [], [], 0.0
        for id in [*ids, None]:
            is_time = id is not None and config.no_timestamps is not None and id >= config.times
            if not is_time and id is not None:
                words.append(id)
                continue
            time = min((id - config.times) * TIME_STEP, length) if is_time else length
            if words:
                pieces.append((since, max(since, time), words))
                words = []
            since = time
        texts = [(start, end, self._text(words)) for start, end, words in pieces]
        return [Segment(round(begin + start, 3), round(begin + end, 3), text) for start, end, text in texts if text]


def search(model, audio, prompts: list[list[int]], stop, budget: int, options: Options, rules, temperature: float = 0.0) -> list[decode.Hypothesis]:
    """The best hypothesis for each prompt, by the search that the options ask for. Above temperature 0 it is drawn, not searched."""
    how = {"stop": stop, "max_new": budget, "rules": rules}
    try:
        if temperature > 0:
            return decode.sample(model, audio, prompts, temperature=temperature, seed=0, best_of=SAMPLES, **how)
        if options.beams == 1:
            return decode.greedy(model, audio, prompts, **how)
        return [found[0] for found in decode.beam(model, audio, prompts, width=options.beams, length_penalty=options.length_penalty, **how)]
    except ValueError as error:         # the arguments were checked, so what is left is numbers that are not finite
        raise CheckpointError(f"the model gives no usable answer: {error}") from error


def incomplete(budget: int, options: Options) -> str:
    return (f"the limit of {budget} tokens was reached, so the text is incomplete or repeats itself"
            + ("; --max-new-tokens raises it" if options.max_new_tokens else ""))
