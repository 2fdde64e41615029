"""The encoder-decoder as a family, the article's and Whisper: language tokens and time tokens."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..alignment.reading import Reading, all_heads, read_cross
from ..audio import SAMPLE_RATE
from ..config import TIME_STEP, EncoderDecoderConfig
from ..decoder import CrossDecoder
from ..errors import CheckpointError, OptionError
from ..model import EncoderDecoder
from ..rules import Rule
from .chunking import Window
from .code_switching import language_turns
from .fallback import Limits
from .families import SURE, EncodedBatch, Job, Piece, States, after_speech, padded_to_speech, readable, whole_text
from .language import LANGUAGES, AnyTokenizer, alike, canonical
from .options import Options
from .prompts import check_previous, previous

PAD_STEP = 12_800  # samples, 0.8 s, to about a multiple of which a window is padded


class EncoderDecoderFamily:
    """The `Family` of an `EncoderDecoder`: windows of samples -> encoder states, a prompt for each, ids -> segments."""

    long_form: tuple[str, ...] = ("cut", "seek")

    def __init__(self, model: EncoderDecoder, tokenizer: AnyTokenizer):
        self.model = model
        self.tokenizer = tokenizer
        self.read_also: CrossDecoder | None = None  # an assistant's decoder: see `assistant`
        self._rules: dict[bool, list[Rule]] = {}

    @property
    def config(self) -> EncoderDecoderConfig:
        """The model's configuration."""
        return self.model.config

    @property
    def detects_language(self) -> bool:
        """Whether there are language tokens; English-only Whispers have none."""
        return bool(self.config.languages)

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages with a token; English for a model without language tokens."""
        return tuple(self.config.languages) or ("en",)  # a Whisper of one language is English-only

    @property
    def samples_per_state(self) -> int:
        """Samples per encoder state: cross-attention reads every one of them."""
        return self.config.encoder.stride

    def check_tokenizer(self) -> None:
        """TRAP: with the tokenizer of another model the prompt has ids that mean something else, or nothing."""
        config = self.config
        if self.tokenizer.size > config.decoder.vocabulary:
            raise CheckpointError(
                f"it has {self.tokenizer.size:,} ids, and the model {config.decoder.vocabulary:,}; "
                "it is that of another model"
            )
        expected = {"<|startoftranscript|>": config.start}
        expected |= {f"<|{name}|>": number for name, number in (config.languages | config.tasks).items()}
        if config.no_timestamps is not None:
            expected["<|notimestamps|>"] = config.no_timestamps
        for name, number in expected.items():
            if self.tokenizer.id(name) != number:
                raise CheckpointError(
                    f"{name} is {self.tokenizer.id(name)}, but {number} in generation_config.json; "
                    "it is that of another model"
                )

    def timed(self, options: Options) -> bool:
        """What the options say; by default, whether the model has time tokens."""
        return bool(options.timestamps) or options.timestamps is None and self.config.no_timestamps is not None

    def rules(self, language: str, options: Options) -> list[Rule]:
        """They are the same for all languages. Raises OptionError for what the model has no tokens for."""
        known, asked = self.config.languages, language
        language = canonical(asked)
        if not isinstance(language, str) or language not in (*self.languages, "auto"):
            ours = [name for name in LANGUAGES if name in known]
            others = sorted(name for name in known if name not in ours)
            some = ", ".join([*ours, *others[:8], *["..."] * (len(others) > 8)])
            way = "; for Cantonese take zh" if language == "yue" and "zh" in known else alike(asked, known)
            several = f"this model has tokens for {some}, and 'auto' lets it judge{way}"
            one = "this model supports one language only and has no tokens for others; expected 'auto' or 'en'"
            raise OptionError(f"language is {asked!r}; {several if known else one}")
        timed = self.timed(options)
        if options.context:
            check_previous(self.tokenizer, "context")
        self.prompt(next(iter(known), ""), options)
        if timed not in self._rules:
            self._rules[timed] = self.model.rules(timed)
        return self._rules[timed]

    def padded_length(self, window: Window, options: Options) -> int:
        """A full window, as in training; with `pad_to` "speech", about a multiple of PAD_STEP."""
        full = self.config.window
        return (
            full
            if options.pad_to == "window"
            else padded_to_speech(window, full, round(PAD_STEP / self.samples_per_state) * self.samples_per_state)
        )

    def encode_windows(self, windows: list[Tensor], length: int | None = None) -> Tensor:
        """Samples (S,) of windows -> encoder states (A, T, D). They are padded, or cut, to `length` samples; by default
        as published."""
        length = length or self.config.window
        padded = torch.stack([F.pad(samples[:length], (0, max(0, length - len(samples)))) for samples in windows])
        return self.model.encode(self.model.features(padded.to(self.model.device)))

    def encode(self, jobs: list[Job], length: int, options: Options, states: States) -> EncodedBatch:
        """In a recording whose language is "auto" each window's is detected, and `LanguageState.choose` says what
        counts. What isn't speech, or sounds like tones, says nothing about the windows after it."""
        encoded = self.encode_windows([job.window.samples for job in jobs], length)
        cross = self.model.decoder.cross_kv(encoded)  # once, for all that follows
        if self.read_also is not None and len(jobs) == 1:
            cross += self.read_also.cross_kv(encoded)  # behind the model's layers, which don't look at it
        likely, no_speech = self.model.detect_language(cross)
        known, among = list(self.config.languages), options.languages or tuple(self.config.languages)
        languages, runners_up, pieces, states = [], [], [], dict(states)
        for row, (job, silence) in enumerate(zip(jobs, no_speech.tolist(), strict=True)):
            window, state = job.window, states[job.recording]
            turns: list[tuple[Window, str]] = []
            chosen, other = ("" if known else "en") if state.auto else state.requested, ""
            if known and state.auto:
                found = {name: value for name, value in zip(known, likely[row].tolist(), strict=True) if name in among}
                total = sum(found.values())
                probabilities = {name: value / total for name, value in found.items()}
                speech = silence <= Limits().no_speech and not window.tonal()
                chosen = state.choose(probabilities, window.begin, speech)
                if speech:
                    if probabilities[chosen] < SURE:
                        left = [name for name in probabilities if name != chosen]
                        other = max(left, key=lambda name: probabilities[name], default="")
                    if options.guards:
                        turns = self._turns(window, [(key[row], value[row]) for key, value in cross], among)
                    states[job.recording] = after_speech(state, turns[-1][1] if turns else chosen, window)
            languages.append(chosen)
            runners_up.append(other)
            pieces.append(turns)
        before = [states[job.recording].context for job in jobs]
        prompts = [self.prompt(language, options, text) for language, text in zip(languages, before, strict=True)]
        return EncodedBatch(cross, prompts, languages, no_speech.tolist(), runners_up, pieces, states)

    def _turns(
        self, window: Window, cross: list[tuple[Tensor, Tensor]], among: tuple[str, ...]
    ) -> list[tuple[Window, str]]:
        names = [name for name in self.config.languages if name in among]
        columns = [list(self.config.languages).index(name) for name in names]

        def detect(slices: list[tuple[Tensor, Tensor]]) -> Tensor:
            return self.model.detect_language(slices)[0][:, columns]

        return language_turns(window, cross, self.samples_per_state, names, detect)

    def prompt(self, language: str, options: Options, context: str = "") -> list[int]:
        """Special tokens for language, task and times, so a window can be decoded again in another language; before
        them what was said before, if the options or `context` have any."""
        if options.instruction:
            raise OptionError("instruction is given, which GLM-ASR reads; this model reads none, but a prompt")
        timed = self.timed(options)
        first_time = self.config.times if timed else None
        before = previous(self.tokenizer, options.prompt, context, self.config.decoder.positions, first_time)
        return [*before, *self.model.prompt(language or None, options.task, timed)]

    def token_limit(self, prompt: int) -> int:
        """Learned positions that the prompt leaves free."""
        return self.config.decoder.positions - prompt

    def text(self, ids: list[int]) -> str:
        """The decoded text without time tokens."""
        return readable(self.tokenizer.decode([id_ for id_ in ids if not self._is_time(id_)]))

    def segments(self, window: Window, ids: list[int]) -> list[Piece]:
        """Cuts an answer at its times. Without any it is one segment."""
        if not any(map(self._is_time, ids)):
            return whole_text(window, self.text(ids), ids)
        pieces: list[tuple[float, float, list[int]]] = []
        words: list[int] = []
        since = 0.0
        for id_ in [*ids, None]:
            if id_ is not None and not self._is_time(id_):
                words.append(id_)
                continue
            time = window.seconds if id_ is None else min(self._time(id_), window.seconds)
            if words:
                pieces.append((since, max(since, time), words))
                words = []
            since = max(since, time)
        if window.speech:  # TRAP: a model's first time is often 0, whatever the silence before the first word
            first = window.speech[0][0] / SAMPLE_RATE
            pieces = [(max(start, first), max(end, first), words) for start, end, words in pieces]
        return [
            Piece(round(window.begin + start, 3), round(window.begin + end, 3), text, words)
            for start, end, words in pieces
            if (text := self.text(words))
        ]

    @torch.inference_mode()
    def read_again(
        self,
        window: Window,
        audio: list[tuple[Tensor, Tensor]],
        prompt: list[int],
        ids: list[int],
        every_head: bool = False,
    ) -> Reading:
        """After a prompt that asks for no times, as the text has none."""
        config = self.config
        if config.no_timestamps is not None and prompt[-1] != config.no_timestamps:
            prompt = [*prompt, config.no_timestamps]
        ids = ids[: config.decoder.positions - len(prompt) - 1]
        heads = all_heads(config.decoder.layers, config.decoder.heads) if every_head else config.alignment_heads
        reading = read_cross(self.model.decoder, prompt, ids, config.end, audio, heads)
        # TRAP: frames of padding have to go before the softmax, which would give them a share.
        frames = -(-len(window.samples) // self.samples_per_state)
        return replace(reading, scores=reading.scores[..., :frames])

    def resume(self, window: Window, ids: list[int]) -> float:
        """As openai/whisper, transcribe.py: after `<|2.40|><|2.40|>`, a sentence ended there and another began. If the
        last time stands alone, at the end, the rest of the window says nothing."""
        end = window.begin + window.seconds
        times = list(map(self._is_time, ids))
        pairs = [index for index in range(len(ids) - 1) if times[index] and times[index + 1]]
        if not pairs or times[-2:] == [False, True]:
            return end
        return min(end, window.begin + self._time(ids[pairs[-1]]))

    def _is_time(self, id_: int) -> bool:
        return self.config.no_timestamps is not None and id_ >= self.config.times

    def _time(self, id_: int) -> float:
        """Seconds that a time token says."""
        return (id_ - self.config.times) * TIME_STEP
