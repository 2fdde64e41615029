"""Recording -> Transcript: what the command line, and everything else that serves people, calls.

    recogniser = load("demo")
    transcript = recogniser.transcribe("talk.wav", language="zh")
    for part in recogniser.stream("meeting.mp3"): ...           # as soon as a stretch is recognised

A recording longer than a window is cut where it is quiet; its windows are decoded in batches (`Options.long` has other ways).
An answer that can't be right is tried again by sampling, then in two halves; whatever is left of doubt stands in the flags of
a segment and in the warnings, and no text is lost without a word.

    GlmAsrRecogniser            the sound goes into the prompt
    EncoderDecoderRecogniser    language tokens and time tokens
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from . import audio as sound
from . import decode, weights
from .audio_files import ffmpeg, sound_files
from .checkpoint import hub as hubs
from .config import STRIDE, TIME_STEP, EncoderDecoderConfig, GlmAsrConfig, check_steering
from .errors import CheckpointError, GlmAsrError, OptionError, ShortMemoryError, out_of_memory
from .kernels import devices, int8, prepare
from .model import EncoderDecoder, GlmAsr
from .observing import stage
from .rules import Forbid, Rule, StopLoops, loops
from .tokenizer import read_tokenizer, tokenizer_file
from .transcription import chinese_script, chunking, coverage, vad
from .transcription.chunking import Window
from .transcription.fallback import TEMPERATURES, Limits, compression_ratio, fallback
from .transcription.language import LANGUAGES, alike, canonical, forbidden_ids, join, name_language, written_in

# A window may answer with this many tokens if the caller sets no limit. Fast speech is about 8 tokens a second.
TOKENS_A_SECOND, TOKENS_AT_LEAST = 16, 32
# Shorter recordings make no row that the decoder could hear; they are padded with silence up to here.
SHORTEST = 961
AFTER_SPEECH = 1.0              # seconds that are heard behind the last sound, where a window is not heard to its end
LENGTHS = 0.8                   # seconds, about; windows are heard to a multiple of it, so that there are batches of equal length
MOST_BEAMS = 64                 # memory and time grow with them; nobody has seen a gain beyond ten
SAMPLES = 5                     # drawn for a window at temperatures above 0; the likeliest counts
SPLIT_SECONDS = 2.0             # a shorter window is not split for another try
LONG_PAUSE = 10.0               # seconds, behind which somebody else may speak, in another language
SURE = 0.8                      # probability with which a window changes the language of a recording
# A window may begin in one language and end in another. It is listened to in slices, so long and so far apart, in seconds; a language
# counts that so many slices next to each other are so sure of, among all languages of the model. Of 2 s even a small model is; of one
# slice in fifty it is wrong.
SLICE, APART, IN_A_ROW, CERTAIN = 2.0, 1.0, 2, 0.9
UNSURE = -0.4                   # mean log-probability; below it a text in a language that isn't sure is compared with that in the next likely one
TWO_WAYS = 6.0                  # seconds of voice without text that are decoded as they are, and in halves: a decoder that jumped once may jump again
SHORTER = 0.5                   # seconds by which a stretch has to be shorter than its window to be decoded by itself
MOST_ROWS = 32                  # windows in a batch, if the caller sets no number and memory allows more
MOST_BATCH = 4096
MOST_HEARD = {"cpu": 1, "cuda": 16}     # windows that go through the encoder at a time; a CPU has enough to do with one
FIRST_ROWS = 4                  # windows in the first batch, so that the first text is soon there
# The special tokens of GLM-ASR's prompt.
MARKERS = ("<|user|>", "<|begin_of_audio|>", "<|end_of_audio|>", "<|assistant|>")
FLAGS = {                       # of a segment -> what the warning says
    "repeats": "the text repeats itself",
    "doubtful": "the model is not sure of the text",
    "tones": "this sounds like tones more than like a voice, and the model is not sure of the text",
    "incomplete": "the limit of tokens was reached, so the text is incomplete",
    "sampled": "the first answer couldn't be right; this one was sampled",
    "split": "no answer could be right; the halves were recognised separately",
    "dropped": "no answer could be right, and in its halves nobody seems to speak; there is no text",
    "uncovered": "somebody speaks here, and there is no text, or too little",
}


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording, and what was said there.

    start, end          seconds from the start of the recording
    mean_logprob        of its window's tokens: 0 is certainty, below -1 is a guess
    compression_ratio   of its window's text: above 2.4 it repeats itself
    no_speech           the probability that nobody speaks in its window
    temperature         0: searched, above: sampled
    language            which was spoken: as asked for, heard, or what the text is written in
    flags               names of FLAGS: what is doubtful
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


@dataclass(frozen=True)
class Part:
    """What was recognised of a stretch of a recording, `start` to `end` in seconds. Stretches follow each other; what is
    between them is silent."""

    start: float
    end: float
    language: str
    segments: list[Segment]
    warnings: list[str]
    failed: bool = False        # the text can't be right, whatever was tried
    resume: float = 0.0         # seconds: where the last sentence that is complete ends, or `end`; for `--long seek`
    last: bool = False          # the recording ends here
    uncovered: tuple[tuple[float, float], ...] = ()     # seconds: somebody speaks there, and there is no text
    hearing: "Hearing | None" = None    # as it was behind this part; None where others of its batch follow. With it, `streams` can go on here


@dataclass(frozen=True)
class Transcript:
    """What was recognised.

    language    as it was asked for; for "auto" the one that the model hears most of, of those that it has tokens for, or where it has none,
                the one that the text is written in: "zh", "yue", "en". "" where that says nothing
    seconds     length of the recording; of an incomplete transcript, up to where it was recognised
    heard       seconds of it that the model heard, at most `seconds`
    silent      seconds of it that were skipped as silent; what is neither heard nor silent is named in the warnings
    wordless    seconds that were heard, and in which nobody speaks
    failed      stretches whose text can't be right, whatever was tried
    uncovered   from where to where, in seconds, somebody speaks and there is no text, or too little of it
    how         what it was computed on: device, type of the numbers, kind of linears and of steps, and what the encoder heard (`pad_to`)
    warnings    sentences for the user, such as that the text is incomplete
    incomplete  the recording goes on behind `seconds`: an error or Ctrl-C came before its end
    """

    text: str
    language: str
    segments: list[Segment]
    seconds: float
    warnings: list[str] = field(default_factory=list)
    heard: float = 0.0
    silent: float = 0.0
    failed: int = 0
    wordless: float = 0.0
    how: dict[str, str] = field(default_factory=dict)
    uncovered: list[tuple[float, float]] = field(default_factory=list)
    incomplete: bool = False

    @classmethod
    def of(cls, parts: list[Part], how: dict[str, str] = {}) -> "Transcript":
        """All parts of a stream, joined. The last one reaches from what was listened to up to the end of the recording."""
        segments = [segment for part in parts for segment in part.segments]
        text = join([segment.text for segment in segments])
        spoken: dict[str, float] = {}
        for segment in filter(lambda segment: segment.language, segments):
            spoken[segment.language] = spoken.get(segment.language, 0.0) + segment.end - segment.start
        language = max(spoken, key=spoken.get) if spoken else next((part.language for part in reversed(parts) if part.language), name_language(text))
        seconds, heard = parts[-1].end, sum((part.end - part.start for part in parts[:-1]), 0.0)
        wordless = sum((part.end - part.start for part in parts[:-1] if not part.segments), 0.0)
        heard, silent, wordless = (min(round(value, 3), seconds) for value in (heard, max(0.0, parts[-1].start - heard), wordless))
        return cls(text, language, segments, seconds, [warning for part in parts for warning in part.warnings], heard, silent,
                   sum(part.failed for part in parts), wordless, dict(how), [stretch for part in parts for stretch in part.uncovered])

    @classmethod
    def stopped(cls, parts: list[Part], how: dict[str, str] = {}) -> "Transcript":
        """The parts, at least one, of a stream that was stopped before its end."""
        end = parts[-1].end
        rest = Part(end, end, "", [], [f"it was stopped at {end:.1f} s, so the text is incomplete"], last=True)
        return replace(cls.of([*parts, rest], how), incomplete=True)


@dataclass(frozen=True)
class Options:
    """How to recognise.

    task            "transcribe"; of an encoder-decoder whose vocabulary has it, also "translate" (into English)
    timestamps      times from the model's own time tokens, to 20 ms: encoder-decoder only. None: it writes them, for that way it loses
                    less, and they aren't shown; False: it writes none
    beams           width of the search, 1 is greedy; by default what the model was meant for: 5 for the encoder-decoder, else 1
    length_penalty  of a search with beams: the higher, the more it favours long answers
    max_new_tokens  limit for the answer of a window; by default it follows from the window's length
    temperatures    what is tried, one after the other, while a text can't be right; above 0 it is sampled
    long            of recordings longer than a window: "cut" where it is quiet; "whole": all windows in one prompt, up to the
                    model's limit, as the published model was used; "seek": an encoder-decoder with `timestamps` goes on where
                    its last sentence ended
    batch_size      windows that are decoded together; by default what memory allows
    guards          False: every answer is taken as it comes
    pad_to          what the encoder hears of a window: "window", with silence up to its full length, as published, or "speech",
                    up to a second behind the last sound, which is several times cheaper for short recordings, and another result
    vad             "auto": where the extra [vad] is installed, only what it takes for speech is decoded; "off": all that isn't silent
    languages       what `language` "auto" may choose among; empty: all languages of the model
    script          "simplified" or "traditional": all Chinese characters are written so; needs the package OpenCC
    max_duration    seconds that a recording may have at most
    track           of a file with several tracks of sound: a number, from 1, or a language ("eng"); by default the one that the file
                    calls its default, else the first one
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
    max_duration: float = sound.MAX_DURATION
    track: int | str | None = None
    languages: tuple[str, ...] = ()
    vad: str = "auto"

    @property
    def tried(self) -> tuple[float, ...]:
        """The temperatures of a window that no text can be right for."""
        return self.temperatures if self.guards else self.temperatures[:1]

    def check(self, positions: int) -> None:
        """Raises OptionError for a value out of range."""
        for name, value in (("beams", self.beams), ("max_new_tokens", self.max_new_tokens), ("batch_size", self.batch_size)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise OptionError(f"{name} is {value!r}, expected a positive integer")
        if not isinstance(self.guards, bool):
            raise OptionError(f"guards is {self.guards!r}, expected True or False")
        if self.timestamps is not None and not isinstance(self.timestamps, bool):
            raise OptionError(f"timestamps is {self.timestamps!r}, expected True, False or None")
        if self.batch_size is not None and self.batch_size > MOST_BATCH:
            raise OptionError(f"batch_size is {self.batch_size}, expected at most {MOST_BATCH}")
        if self.max_new_tokens is not None and self.max_new_tokens > positions:     # memory for all of them is taken at once
            raise OptionError(f"max_new_tokens is {self.max_new_tokens}, expected at most {positions}, the positions that the model knows")
        if not isinstance(self.length_penalty, (int, float)) or not abs(self.length_penalty) <= 100:
            raise OptionError(f"length_penalty is {self.length_penalty!r}, expected a number from -100 to 100")
        if self.beams is not None and self.beams > MOST_BEAMS:
            raise OptionError(f"beams is {self.beams}, expected at most {MOST_BEAMS}")
        if not (isinstance(self.temperatures, (tuple, list)) and self.temperatures
                and all(isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 10 for value in self.temperatures)):
            raise OptionError(f"temperatures is {self.temperatures!r}, expected numbers from 0 to 10, at least one")
        chinese_script.converter(self.script)
        ffmpeg.check_track(self.track)
        if self.long not in ("cut", "whole", "seek"):
            raise OptionError(f"long is {self.long!r}, expected 'cut', 'whole' or 'seek'")
        if self.vad not in ("auto", "off"):
            raise OptionError(f"vad is {self.vad!r}, expected 'auto' or 'off'")
        if self.pad_to not in ("window", "speech"):
            raise OptionError(f"pad_to is {self.pad_to!r}, expected 'window' or 'speech'")


def load(name_or_path=hubs.DEFAULT, *, device="auto", dtype="auto", plain: bool = False, revision: str | None = None,
         hub: str | None = None, progress: bool = True) -> "Recogniser":
    """A recogniser from a checkpoint directory, or by name: "glm-asr-nano-2512", "demo", "demo-article", or "owner/name" of a model
    of the hub, which is fetched if it isn't on this machine. Raises CheckpointError, OptionError.

    device    "auto" (a GPU where there is one), "cpu", "cuda"
    dtype     "auto" (bfloat16 where the machine is fast at it, else float32), "bfloat16", "float32"; "int8": weights of 8 bits, on the CPU
    plain     the modules as they are to be read, without the faster ones of `fast` and `graphs`. `recogniser.how()` says what was taken
    revision  commit, branch or tag of a model of the hub (None: see `hub.find`)
    hub       "huggingface" or "modelscope" (None: what GLMASR_HUB says, or "huggingface")
    progress  show a bar on standard error while weights are fetched
    """
    devices.choose_device(device)                               # before gigabytes are fetched
    if dtype not in ("auto", "int8"):
        dtype = devices.choose_dtype(dtype)
    directory = hubs.find(name_or_path, revision, hub=hub, progress=progress)
    model = weights.load(directory, device=device, dtype=dtype, plain=plain)
    tokenizer = read_tokenizer(directory)
    if isinstance(model.config, EncoderDecoderConfig):
        try:
            check_steering(model.config)
        except CheckpointError as error:
            raise CheckpointError(f"{directory}: {error}") from None
    recogniser = make_recogniser(model, tokenizer)
    try:
        recogniser.check_tokenizer()
    except CheckpointError as error:
        raise CheckpointError(f"{tokenizer_file(directory)}: {error}") from None
    return recogniser


def make_recogniser(model: GlmAsr | EncoderDecoder, tokenizer) -> "Recogniser":
    return (GlmAsrRecogniser if isinstance(model, GlmAsr) else EncoderDecoderRecogniser)(model, tokenizer)


@dataclass
class Hearing:
    """A recording while it is heard: the language that was asked for; with "auto", the one that was heard last, and up to which second."""

    language: str
    heard: str = ""
    until: float = 0.0

    def __post_init__(self):
        self.language = canonical(self.language)

    def choose(self, probabilities: dict[str, float], begin: float, speech: bool) -> str:
        """The language of a window that begins at this second: what was heard before, unless this is speech, and something else is sure or
        the other was long ago."""
        likely = max(probabilities, key=probabilities.get)
        before = begin < self.until + LONG_PAUSE and probabilities[likely] < SURE
        return self.heard if self.heard in probabilities and (before or not speech) else likely


@dataclass(frozen=True)
class Job:
    """A window to decode."""

    window: Window
    hearing: Hearing
    again: int = 0              # how often its sound was decoded without any text
    goes_on: bool = False       # what no text covers at its end is heard with what follows


@dataclass
class Heard:
    """What the model heard of some windows, ready for the search: `audio` as `model.prefill` takes it."""

    audio: list[Tensor] | list[tuple[Tensor, Tensor]]
    prompts: list[list[int]]
    languages: list[str]
    no_speech: list[float] | None = None    # None: the search knows
    others: list[str] | None = None         # where the language isn't sure, the next likely one; else ""
    pieces: list[list[tuple[Window, str]]] | None = None        # of a window in several languages; else []

    def pick(self, chosen: list[int]):
        """(audio, prompts) of some of the windows."""
        audio = self.audio
        if len(chosen) < len(self.prompts):
            keys = isinstance(audio[0], tuple)      # those of a layer for all windows; else the rows of a window
            audio = [(key[chosen], value[chosen]) for key, value in audio] if keys else [audio[index] for index in chosen]
        return audio, [self.prompts[index] for index in chosen]

    def of(self, chosen: list[int]) -> "Heard":
        """The same of some of the windows."""
        others = [values and [values[index] for index in chosen] for values in (self.languages, self.no_speech, self.others)]
        return Heard(*self.pick(chosen), *others)


class Recogniser:
    """A model with its tokenizer. `transcribe` is what it is for; `.model`, `.tokenizer` and `.config` are there to look at."""

    def __init__(self, model: GlmAsr | EncoderDecoder, tokenizer):
        self.model = model
        self.tokenizer = tokenizer
        self._rules: dict[object, list[Rule]] = {}

    @property
    def config(self) -> GlmAsrConfig | EncoderDecoderConfig:
        return self.model.config

    def how(self, options: Options = Options()) -> dict[str, str]:
        """What `Transcript.how` says: "linears" are "plain", "packed", "wide", "joined" or "int8" (`fast`), "attention" of the encoder "plain" or
        "by heads" (`fast`), "steps" "plain", "static" or "captured" (`graphs`). With int8 also "levels", of what weights are multiplied with."""
        model = self.model
        by_heads = model.linears not in ("plain", "wide") and model.dtype == torch.bfloat16 and model.device.type == "cpu"
        found = {"device": str(model.device), "dtype": str(model.dtype).removeprefix("torch."), "linears": model.linears,
                 "attention": "by heads" if by_heads else "plain", "steps": model.steps, "pad_to": options.pad_to}
        return found | ({"levels": str(int8.levels())} if model.linears == "int8" else {})

    @stage("everything else")
    def transcribe(self, audio, language: str = "auto", *, sample_rate: int | None = None, task: str = "transcribe",
                   timestamps: bool | None = None, beams: int | None = None, length_penalty: float = 1.0, max_new_tokens: int | None = None,
                   temperatures: tuple[float, ...] = TEMPERATURES, long: str = "cut", batch_size: int | None = None, guards: bool = True,
                   pad_to: str = "window", script: str | None = None, max_duration: float = sound.MAX_DURATION,
                   track: int | str | None = None, languages: tuple[str, ...] = (), vad: str = "auto") -> Transcript:
        """Recognises one recording.

        audio       path, "-" (standard input), bytes, binary file, or a float array (S,) or (S, channels), about -1..1, with its
                    `sample_rate` in Hz
        language    "auto", "zh", "yue", "en", or another name of one, such as "zh-CN" or "Cantonese". The encoder-decoder is told it by
                    a token, or judges it by itself; of GLM-ASR, which has no such tokens, letters that the language is not written in
                    are forbidden
        task, ...   what `Options` says

        Raises AudioError for a recording that can't be used, OptionError for an argument out of range.
        """
        options = Options(task, timestamps, beams, length_penalty, max_new_tokens, temperatures, long, batch_size, guards, pad_to, script,
                          max_duration, track, tuple(languages or ()), vad)
        return Transcript.of(list(self.stream(audio, language, options, sample_rate=sample_rate)), self.how(options))

    def stream(self, audio, language: str = "auto", options: Options = Options(), *, sample_rate: int | None = None,
               done: list[Part] = []) -> Iterator[Part]:
        """The same, part by part as they are recognised; the last part is empty and says where the recording ends. Memory
        doesn't grow with the recording. Options are checked before the first part.

        done    parts of the same recording from a stream that was stopped, with the same options, up to one that has its `hearing`: what
                comes behind them is given, as if it had not been stopped. The sound before is read, and not recognised again.
        """
        for _, part in self.streams([audio], language, options, sample_rate=sample_rate, done={0: done}):
            if isinstance(part, GlmAsrError):
                raise part
            yield part

    def streams(self, recordings: Iterable, language: str = "auto", options: Options = Options(), *,
                sample_rate: int | None = None, done: dict[int, list[Part]] = {}) -> "Iterator[tuple[int, Part | GlmAsrError]]":
        """The same for several recordings, whose windows are decoded in common batches: the number of a recording, from 0, and a
        part of it. A recording that can't be used, or not to its end, ends with its error in place of the last part."""
        if open_ended := [index for index, parts in done.items() if parts and parts[-1].hearing is None]:
            raise OptionError(f"done: the last part of recording {open_ended[0]} has no `hearing`; expected the parts up to one that has it")
        options = self.check(language, options)
        warnings: dict[int, list[str]] = {}
        failed: set[int] = set()
        # What is read again says the same again.
        told = {index: {warning for part in parts for warning in part.warnings} for index, parts in done.items()}

        def work() -> Iterator[tuple[int, Job | Part | GlmAsrError | None]]:
            for index, audio in enumerate(recordings):
                said = warnings[index] = []
                if sound_files.may_wait(audio):
                    yield index, None               # what came before must not wait with it
                try:
                    blocks = sound.blocks(audio, sample_rate, track=options.track, max_duration=options.max_duration, warn=said.append)
                    reader = Reader(blocks, self.config.window)
                    before = done.get(index, [])
                    hearing = replace(before[-1].hearing) if before else Hearing(language)      # a copy: it changes
                    for item in self._work(reader, hearing, options, said, before):
                        yield index, item
                        if index in failed:             # the rest of it would be in vain
                            break
                    yield index, Part(reader.seconds - reader.left_out, reader.seconds, "", [], [], last=True)
                except GlmAsrError as error:
                    yield index, error

        for index, part in self._decode_all(work(), options):
            if index in failed:
                continue
            if isinstance(part, GlmAsrError):
                failed.add(index)
                yield index, part
                continue
            said, warnings[index][:] = [warning for warning in warnings[index] if warning not in told.get(index, ())], []
            yield index, replace(part, warnings=said + part.warnings)

    def recognise(self, recordings: list[Tensor], languages: list[str], options: Options = Options()) -> list[Transcript]:
        """Samples (S,) at 16 kHz of some recordings -> their transcripts. Their windows are decoded in common batches."""
        work, options = [], self.check(options=options)
        for index in sorted(range(len(recordings)), key=lambda index: len(recordings[index])):      # alike lengths, little padding
            self.check(languages[index], options)
            work += [(index, job) for job in self.jobs(Reader([recordings[index]], self.config.window), Hearing(languages[index]), options)]
        parts: list[list[Part]] = [[] for _ in recordings]
        for index, part in self._decode_all(work, options, soon=False):
            if isinstance(part, GlmAsrError):
                raise part
            parts[index].append(part)
        ends = [len(samples) / sound.SAMPLE_RATE for samples in recordings]
        return [Transcript.of([*some, Part(end, end, "", [], [])], self.how(options)) for some, end in zip(parts, ends, strict=True)]

    def check(self, language: str = "auto", options: Options = Options()) -> Options:
        """The options with this model's defaults. Raises OptionError for what it can't do."""
        options.check(self.config.decoder.positions)
        if options.languages and canonical(language) != "auto":
            raise OptionError(f"languages is {options.languages!r}, which says what language 'auto' may choose among; language is {language!r}")
        if "auto" in map(canonical, options.languages):
            raise OptionError(f"languages is {options.languages!r}, expected names of languages, such as ('zh', 'yue', 'en')")
        # Of Mandarin, Cantonese and English those that the model knows: most Whispers have no token for Cantonese.
        named, known = tuple(map(canonical, options.languages)), getattr(self.config, "languages", LANGUAGES) or ("en",)
        languages = tuple(name for name in named if name in known or name not in LANGUAGES) or named
        for name in languages:
            self.rules(name, replace(options, languages=()))
        self.rules(language, options)
        if options.long not in self.ways:
            raise OptionError(f"long is {options.long!r}; this model knows {' and '.join(map(repr, self.ways))}")
        if options.long == "seek" and not self.timed(options):
            raise OptionError("long is 'seek', which goes by the model's time tokens; it needs them (timestamps not False, and a model that has them)")
        return replace(options, beams=options.beams or self.config.beams, languages=languages)

    def jobs(self, reader: "Reader", hearing: Hearing, options: Options = Options(), done: int = 0) -> Iterator[Job]:
        """The windows of a recording, cut where nobody speaks or it is quiet, without the first `done`."""
        detector = vad.VoiceActivity() if options.vad == "auto" and vad.available() else None
        # Where to cut depends on nothing but the sound, so to skip windows they are cut again.
        for window in islice(chunking.cut(reader, self.config.window, detector), done, None):
            yield Job(window, hearing)

    def decode_together(self, jobs: list[Job], options: Options) -> "list[Part | GlmAsrError]":
        """The parts of some windows, of one recording or of several, decoded together; `options` as `check` gives them. What the model
        can't answer is an error in place of its part."""
        convert = chinese_script.converter(options.script)
        parts = self._decode_apart(jobs, options)
        for index, (job, part) in enumerate(zip(jobs, parts, strict=True)):
            if not isinstance(part, GlmAsrError):
                segments = part.segments if options.timestamps or not self.timed(options) else whole(job.window, part.segments)
                parts[index] = replace(part, segments=[replace(segment, text=convert(segment.text)) for segment in segments])
        return parts

    def timed(self, options: Options) -> bool:
        """Whether the model writes times."""
        return False

    def batch_size(self, options: Options) -> int:
        """Windows that are decoded together, at most; `options` as `check` gives them."""
        return options.batch_size or self._batch_size(options)

    def _work(self, reader: "Reader", hearing: Hearing, options: Options, warnings: list[str], done: list[Part]) -> "Iterator[Job | Part]":
        """What is to be decoded of a recording behind the parts that are `done`, or was decoded already, because what follows depends on it."""
        yield from self.jobs(reader, hearing, options, len(done))

    # -- decoding ------------------------------------------------------------------------------------------------------

    def _decode_all(self, work: "Iterable[tuple[int, Job | Part | GlmAsrError | None]]", options: Options, soon: bool = True) -> "Iterator[tuple[int, Part | GlmAsrError]]":
        """The same with parts in place of jobs, in order: as many jobs at a time as memory allows, or those before a None. `soon`:
        fewer at first, for somebody waits for the text.

        Jobs stay in the order in which they come: to sort them by length, all would have to be read before the first text. Nor is there
        much to gain: windows that are cut have about one length, and what is padded to speech is decoded with its equals.
        """
        most = self.batch_size(options)
        size, batch, jobs = options.batch_size or (min(FIRST_ROWS, most) if soon else most), [], []

        def decoded() -> "Iterator[tuple[int, Part | GlmAsrError]]":
            parts = iter(self.decode_together(jobs, options))
            last = {index: item for index, item in batch if isinstance(item, Job)}
            for index, item in batch:
                part = next(parts) if isinstance(item, Job) else item
                if item is last.get(index) and isinstance(part, Part):
                    part = replace(part, hearing=replace(item.hearing))
                yield index, part
            batch.clear()
            jobs.clear()

        for index, item in work:
            if item is not None:
                batch.append((index, item))
            if isinstance(item, Job):
                jobs.append(item)
            # What is decoded already is told at once; the end of a recording, or its error, can wait for the others of a batch.
            if len(jobs) == size or not jobs or item is None or isinstance(item, Part) and not item.last:
                size = min(2 * size, most) if len(jobs) == size else size
                yield from decoded()
        yield from decoded()

    def _decode_apart(self, jobs: list[Job], options: Options) -> "list[Part | GlmAsrError]":
        """The parts of some jobs. What the model can't answer is an error, and nobody else's; so is what memory doesn't hold."""
        known = [replace(job.hearing) for job in jobs]
        try:
            return self._decode(jobs, options)
        except (CheckpointError, ShortMemoryError) as error:
            refused = type(error)(str(error))           # without the frames, which hold what the batch took
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            refused = ShortMemoryError(f"the memory of the device {str(self.model.device)!r} doesn't hold one window with these options: "
                                       f"{str(error).partition(chr(10))[0] or 'MemoryError'}; expected fewer beams, a smaller max_new_tokens, or more memory")
        if len(jobs) == 1:
            return [refused]
        for job, before in zip(jobs, known):            # as it was before this try
            vars(job.hearing).update(vars(before))
        return [part for job in jobs for part in self._decode_apart([job], options)]

    def _decode(self, jobs: list[Job], options: Options, halves: bool = False) -> list[Part]:
        """The parts of some jobs. What has other rules, or is heard to another length, is decoded apart.

        TRAP: where the first window with speech says the language of those behind it, one of another length has to wait its turn.
        """
        groups: dict[tuple, list[int]] = {}
        turns: dict[int, tuple[int, int]] = {}          # of each recording: which turn it is, and the length of its windows
        for index, job in enumerate(jobs):
            rules, length = self.rules(job.hearing.language, options), self._length(job.window, options)
            turn, before = turns.get(id(job.hearing), (0, length))
            turn += length != before and self.judges and job.hearing.language == "auto"
            turns[id(job.hearing)] = turn, length
            groups.setdefault((turn, id(rules), length), []).append(index)
        found: dict[int, Part] = {}
        for (_, _, length), members in sorted(groups.items(), key=lambda group: group[0][0]):
            rules = self.rules(jobs[members[0]].hearing.language, options)
            found |= zip(members, self._decode_alike([jobs[index] for index in members], length, rules, options, halves), strict=True)
        return [found[index] for index in range(len(jobs))]

    def _length(self, window: Window, options: Options) -> int:
        """The samples that the encoder hears of a window, padding counted."""
        if options.pad_to == "window":
            return self.config.window
        _, end = window.sounding()
        unit = round(LENGTHS * sound.SAMPLE_RATE / self.unit) * self.unit
        samples = round((end - window.begin + AFTER_SPEECH) * sound.SAMPLE_RATE)
        return min(self.config.window, -(-samples // unit) * unit)

    @torch.inference_mode()
    def _decode_alike(self, jobs: list[Job], length: int, rules: list[Rule], options: Options, halves: bool) -> list[Part]:
        """One batch. `halves`: see `_answer`."""
        heard = self._hear(jobs, length, options)
        whole = [index for index in range(len(jobs)) if not (heard.pieces and heard.pieces[index])]
        if len(whole) == len(jobs):
            return self._answer(jobs, heard, rules, options, halves)
        answers = iter(self._answer([jobs[index] for index in whole], heard.of(whole), rules, options, halves) if whole else ())
        return [next(answers) if index in whole else self._by_language(job, heard.pieces[index], options, halves) for index, job in enumerate(jobs)]

    def _by_language(self, job: Job, pieces: list[tuple[Window, str]], options: Options, halves: bool) -> Part:
        """A window in several languages, piece by piece."""
        jobs = [replace(job, window=window, hearing=Hearing(language), goes_on=job.goes_on and window is pieces[-1][0]) for window, language in pieces]
        parts = self._decode(jobs, options, halves)
        return Part(job.window.begin, job.window.begin + job.window.seconds, parts[0].language, [segment for part in parts for segment in part.segments],
                    [warning for part in parts for warning in part.warnings], any(part.failed for part in parts), parts[-1].resume,
                    uncovered=tuple(place for part in parts for place in part.uncovered))

    def _answer(self, jobs: list[Job], heard: Heard, rules: list[Rule], options: Options, halves: bool) -> list[Part]:
        """Searches what was heard, tries again what can't be right, and looks for what is missing. `halves`: these are halves of a window,
        which are not split again."""
        limits, stop = Limits(), self.config.stop
        budgets = [self._budget(job.window, len(prompt), options) for job, prompt in zip(jobs, heard.prompts)]

        def attempt(chosen: list[int], temperature: float) -> list[decode.Hypothesis]:
            limited = [budgets[index] for index in chosen]
            guards = [StopLoops(stop[0])] if options.guards else []
            return search(self.model, *heard.pick(chosen), stop, limited, options, [*rules, *guards], temperature)

        def flags(index: int, hypothesis: decode.Hypothesis) -> tuple[str, ...]:
            """Why the answer can't be right."""
            silence = no_speech(index, hypothesis)
            if not options.guards or limits.silent(hypothesis, silence):
                return ()
            found = limits.doubts(hypothesis, self._text(hypothesis.ids), silence)
            return found if "repeats" in found or not loops(hypothesis.ids) else ("repeats", *found)

        def no_speech(index: int, hypothesis: decode.Hypothesis) -> float:
            return heard.no_speech[index] if heard.no_speech is not None else hypothesis.empty

        def repeated(index: int, hypothesis: decode.Hypothesis) -> bool:
            """Whether the text repeats itself and may be right: somebody can say a sentence five times. To draw others is no help; halves tell."""
            return (flags(index, hypothesis) == ("repeats",) and not loops(hypothesis.ids)
                    and coverage.fits(self._text(hypothesis.ids), float(jobs[index].window.voiced().sum()) * coverage.FRAME))

        tried = fallback(attempt, len(jobs), lambda index, hypothesis: not flags(index, hypothesis) or repeated(index, hypothesis), options.tried)
        self._compare(jobs, heard, tried, attempt, lambda index, hypothesis: not flags(index, hypothesis) and bool(self._text(hypothesis.ids)), options)
        parts, whole = [], []                       # the numbers of those that weren't split
        for index, (job, (hypothesis, temperature)) in enumerate(zip(jobs, tried, strict=True)):
            doubts, silence, text = flags(index, hypothesis), no_speech(index, hypothesis), self._text(hypothesis.ids)
            if doubts and not halves and job.window.seconds >= SPLIT_SECONDS:
                # What this window was taken for; by now later ones may have said more of the recording.
                split = self._split(replace(job, hearing=Hearing(heard.languages[index] or "auto")), options)
                confirmed = coverage.same(text, join([segment.text for segment in split.segments]))
                if not repeated(index, hypothesis) or not (confirmed or split.failed or split.uncovered):
                    parts.append(split)
                    continue
                doubts = () if confirmed else doubts
            tonal = options.guards and text and hypothesis.mean_logprob < limits.tones and job.window.tonal()
            found = {"tones": tonal, "incomplete": not hypothesis.stopped, "sampled": temperature > options.tried[0]}
            names = (*doubts, *(name for name, holds in found.items() if holds))
            seen = {"mean_logprob": round(hypothesis.mean_logprob, 4), "compression_ratio": round(compression_ratio(text), 3),
                    "no_speech": round(silence, 4), "temperature": float(temperature), "flags": names}
            nobody = options.guards and limits.silent(hypothesis, silence)
            language = heard.languages[index]
            segments = [] if nobody else [Segment(*said, **seen, language=self._language(said[-1], language, job.hearing, options))
                                          for said in self._segments(job.window, hypothesis.ids)]
            part = self._part(job.window, language, segments, bool(doubts), options, () if nobody else names)
            parts.append(replace(part, resume=part.end if nobody else self._resume(job.window, hypothesis.ids)))
            whole.append(index)
        return self._cover(jobs, parts, whole, options, halves) if options.guards else parts

    def _language(self, text: str, heard: str, hearing: Hearing, options: Options) -> str:
        """Of a segment: a window can begin in one language and end in another."""
        if hearing.language != "auto" or options.task != "transcribe":
            return heard
        written = written_in(text, heard)
        return written if not heard or written in (options.languages or (written,)) else heard

    def _compare(self, jobs: list[Job], heard: Heard, tried: list, attempt, good, options: Options) -> None:
        """Where it isn't sure which language is spoken, nor the text: the text of the next likely one, if that is surer."""
        unsure = [index for index, other in enumerate(heard.others or []) if other and tried[index][0].mean_logprob < UNSURE]
        if not unsure:
            return
        before = {index: heard.prompts[index] for index in unsure}
        for index in unsure:
            heard.prompts[index] = self.model.prompt(heard.others[index], options.task, self.timed(options))
        for index, hypothesis in zip(unsure, attempt(unsure, 0.0), strict=True):
            if hypothesis.mean_logprob > tried[index][0].mean_logprob and good(index, hypothesis):
                tried[index], heard.languages[index] = (hypothesis, 0.0), heard.others[index]
            else:
                heard.prompts[index] = before[index]

    def _cover(self, jobs: list[Job], parts: list[Part], chosen: list[int], options: Options, halves: bool) -> list[Part]:
        """The parts, with text where somebody speaks and there was none, or too little of it: such stretches are decoded by themselves.
        What stays without text is told."""
        lost: list[tuple[int, coverage.Stretch, Window, int, bool]] = []        # number of the part, stretch, its window, how many jobs, in two ways
        again: list[Job] = []
        for index in chosen:
            job, window, part = jobs[index], jobs[index].window, parts[index]
            voiced = window.voiced()
            covered = [(segment.start - window.begin, segment.end - window.begin, segment.text) for segment in part.segments]
            fruitless = job.again + (not covered)
            for stretch in coverage.stretches(voiced, covered):
                if job.goes_on and part.start < part.resume < part.end and window.begin + stretch.first * coverage.FRAME > part.resume - coverage.FRAME:
                    continue            # it is heard again with what follows
                piece = window.part(stretch.first * sound.HOP, min(stretch.last * sound.HOP, len(window.samples)))
                if job.goes_on and stretch.covering is None and 0 < stretch.first and stretch.last == len(voiced):
                    parts[index] = replace(parts[index], resume=piece.begin)
                    continue
                two_ways = False
                # Each try is shorter than the one before it, so there is an end to them.
                if stretch.pauses:
                    places = [*((cut - stretch.first) * sound.HOP for cut in (stretch.first, *stretch.pauses)), len(piece.samples)]
                    pieces = [piece.part(first, last) for first, last in pairwise(places)]
                elif piece.seconds <= window.seconds - SHORTER:
                    # Within what is decoded again it would double the work at each step.
                    two_ways = not halves and stretch.covering is None and stretch.voice >= TWO_WAYS
                    pieces = [piece, *halves_of(piece)] if two_ways else [piece]
                elif fruitless <= 1 and piece.seconds >= SPLIT_SECONDS:
                    pieces = halves_of(piece)
                else:
                    pieces = []
                lost.append((index, stretch, piece, len(pieces), two_ways))
                again += [Job(one, replace(job.hearing, heard=part.language, until=window.begin), fruitless) for one in pieces]
        size = self.batch_size(options) if again else 1         # it looks at the free memory
        decoded = (part for start in range(0, len(again), size) for part in self._decode(again[start:start + size], options, halves=True))
        found: dict[int, list] = {}
        for index, stretch, piece, count, two_ways in lost:
            tries = [next(decoded) for _ in range(count)]
            found.setdefault(index, []).append((stretch, piece, fuller(tries, stretch.voice) if two_ways else tries))
        return [patched(part, found[index]) if index in found else part for index, part in enumerate(parts)]

    def _split(self, job: Job, options: Options) -> Part:
        """The window once more, in two halves."""
        job, window = replace(job, goes_on=False), job.window
        parts = self._decode([replace(job, window=half) for half in halves_of(window)], options, halves=True)
        segments = [replace(segment, flags=(*segment.flags, "split")) for part in parts for segment in part.segments]
        failed = any(part.failed for part in parts) or not segments     # there was a text, and now there is none
        uncovered = tuple(place for part in parts for place in part.uncovered)
        part = self._part(window, parts[0].language, segments, failed, options, ("split",) if segments else ("dropped",))
        return replace(part, uncovered=uncovered, warnings=[*part.warnings, *map(lacking, uncovered)])

    def _part(self, window: Window, language: str, segments: list[Segment], failed: bool, options: Options, names: tuple[str, ...]) -> Part:
        """`names`: flags of the window, which are told even if there is no segment to carry them. Where text is missing is told by `lacking`."""
        end = window.begin + window.seconds
        names = dict.fromkeys([*(name for segment in segments for name in segment.flags if name != "uncovered"), *names])
        warnings = [f"{window.begin:.1f} s to {end:.1f} s: {FLAGS[name]}"
                    + ("; --max-new-tokens raises it" if name == "incomplete" and options.max_new_tokens else "") for name in names]
        return Part(window.begin, end, language, segments, warnings, failed, resume=end)

    def _resume(self, window: Window, ids: list[int]) -> float:
        """Seconds: where the last complete sentence ends. Without time tokens nobody knows, so it is the end of the window."""
        return window.begin + window.seconds

    def _budget(self, window: Window, prompt: int, options: Options) -> int:
        """Tokens that an answer may have."""
        budget = options.max_new_tokens or TOKENS_AT_LEAST + round(TOKENS_A_SECOND * window.seconds)
        return max(1, min(budget, self._room(prompt)))

    def _batch_size(self, options: Options) -> int:
        """Jobs that a quarter of the free memory holds, each with the longest window, prompt and answer that the options allow, and
        sampled where that may come. A cache is copied where rows fork or leave, and not everything is counted here."""
        config, size, crossing = self.config, self.model.dtype.itemsize, isinstance(self.model, EncoderDecoder)
        encoder, decoder = config.encoder, config.decoder
        windows = config.longest_windows if options.long == "whole" else 1
        rows = max(options.beams, SAMPLES if max(options.tried) > 0 else 1)
        prompt = 4 if crossing else windows * config.window // self.unit + 32
        answer = options.max_new_tokens or TOKENS_AT_LEAST + TOKENS_A_SECOND * config.window_seconds * windows
        tokens = prompt + min(answer, self._room(prompt))
        key_heads = getattr(decoder, "key_heads", decoder.heads)
        cache = 2 * decoder.layers * key_heads * decoder.head_size * tokens * size * rows
        frames = config.window // sound.HOP
        hearing = frames * (encoder.hidden + 4 * encoder.width) * size + 4 * windows * config.window
        reading = prompt * (2 * decoder.hidden + 8 * decoder.width) * size + prompt ** 2 * (1 + decoder.heads // key_heads * (1 + size))
        logits = 4 * decoder.vocabulary * 4 * rows
        cross = 2 * decoder.layers * decoder.width * frames * size if crossing else 0
        free = devices.free_memory(self.model.device) - prepare.to_come(self.model)
        if self.model.device.type == "cuda":            # what PyTorch holds and doesn't use is free too
            free += torch.cuda.memory_reserved(self.model.device) - torch.cuda.memory_allocated(self.model.device)
        return max(1, min(MOST_ROWS, int(free / 4 / (cache + hearing + reading + logits + cross))))


class GlmAsrRecogniser(Recogniser):
    ways = ("cut", "whole")
    judges = False              # whether it hears which language is spoken

    @property
    def unit(self) -> int:
        """Samples of which the decoder hears one row."""
        return sound.HOP * STRIDE * self.config.merge

    def check_tokenizer(self) -> None:
        """TRAP: with the tokenizer of another model the prompt has ids that mean something else, or nothing."""
        for name in MARKERS:
            self.tokenizer.id(name)
        prompt = self.model.prompt(self.tokenizer, 1)
        if max(prompt) >= self.config.decoder.vocabulary or prompt.count(self.config.audio_token) > 1:
            raise CheckpointError(f"its ids don't fit config.json (a vocabulary of {self.config.decoder.vocabulary}, audio token "
                                  f"{self.config.audio_token}); it is that of another model")

    def rules(self, language: str, options: Options = Options()) -> list[Rule]:
        """The decoding rules of a language option. The checkpoint has no language tokens: see `glmasr.language`."""
        said, language = language, canonical(language)
        if not isinstance(language, str) or language not in LANGUAGES:
            raise OptionError(f"language is {said!r}, expected one of {', '.join(LANGUAGES)}{alike(said, LANGUAGES)}")
        if options.task != "transcribe":
            raise OptionError(f"task is {options.task!r}; this model knows 'transcribe' only")
        if options.timestamps:
            raise OptionError("this model has no time tokens; models of the encoder-decoder family have (--model demo-article, or Whisper)")
        among = options.languages if language == "auto" and options.languages else (language,)
        if among not in self._rules:
            size = self.config.decoder.vocabulary
            # Of several languages, letters that none of them is written in.
            ids = sorted(set.intersection(*(set(forbidden_ids(self.tokenizer, name, size)) for name in among)))
            self._rules[among] = [Forbid(ids, size, self.model.device)] if ids else []
        return self._rules[among]

    @torch.inference_mode()
    def hear(self, samples: Tensor, window: int | None = None) -> Tensor:
        """Samples (S,) at 16 kHz -> the rows (N, D) that the decoder hears, those of all windows one after the other. Windows are
        padded up to `window` samples; by default as published."""
        return self._hear_all([samples], window or self.config.window)[0]

    def _hear_all(self, recordings: list[Tensor], window: int) -> list[Tensor]:
        """`hear` for several recordings, so many windows at a time as the machine has a use for: memory doesn't grow with them."""
        parts, counts = [], []
        for samples in recordings:
            samples = F.pad(samples, (0, max(0, SHORTEST - len(samples))))
            parts += sound.windows(samples, window)
            counts.append([min(window, len(samples) - start) for start in range(0, len(samples), window)])
        lengths, heard = [count for some in counts for count in some], []
        while len(heard) < len(parts):
            # Powers of two: few shapes, each of which may be a graph.
            rows = min(MOST_HEARD.get(self.model.device.type, 1), 1 << (len(parts) - len(heard)).bit_length() - 1)
            some = slice(len(heard), len(heard) + rows)
            mel = sound.log_mel(torch.stack(parts[some]).to(self.model.device), self.config.encoder.bands)
            heard += self.model.encode(mel, lengths[some])
        rows = iter(heard)
        return [torch.cat([next(rows) for _ in some]) for some in counts]

    def _work(self, reader: "Reader", hearing: Hearing, options: Options, warnings: list[str], done: list[Part]) -> Iterator[Job | Part]:
        if options.long != "whole" or reader.fits:
            yield from super()._work(reader, hearing, options, warnings, done)
            return
        most = self.config.longest_windows * self.config.window
        samples = reader.take(most)
        if reader.left_out:
            warnings.append(f"the model takes {most / sound.SAMPLE_RATE:.0f} s at most, {self.config.longest_windows} whole windows: "
                            f"the last {reader.left_out:.1f} s of the recording are left out")
        if not done:
            yield Job(Window(0, samples), hearing)

    def _length(self, window: Window, options: Options) -> int:
        return self.config.window if len(window.samples) > self.config.window else super()._length(window, options)

    def _hear(self, jobs: list[Job], length: int, options: Options) -> Heard:
        heard = [job.window.samples if len(job.window.samples) > self.config.window else job.window.samples[:length] for job in jobs]
        audio = self._hear_all(heard, length)
        prompts = [self.model.prompt(self.tokenizer, len(rows)) for rows in audio]
        return Heard(audio, prompts, ["" if job.hearing.language == "auto" else job.hearing.language for job in jobs])

    def _room(self, prompt: int) -> int:
        # TRAP: the positions of the model are no limit, as in Transformers: rotary positions go on beyond.
        return 2 ** 31

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids).strip()

    def _segments(self, window: Window, ids: list[int]) -> list[tuple[float, float, str]]:
        text, (start, end) = self._text(ids), window.sounding()
        return [(round(start, 3), round(end, 3), text)] if text else []


class EncoderDecoderRecogniser(Recogniser):
    ways = ("cut", "seek")

    @property
    def judges(self) -> bool:
        return bool(self.config.languages)

    @property
    def unit(self) -> int:
        """Samples of which the decoder hears one state."""
        return self.config.encoder.stride

    def check_tokenizer(self) -> None:
        """TRAP: with the tokenizer of another model the prompt has ids that mean something else, or nothing."""
        config = self.config
        if self.tokenizer.size > config.decoder.vocabulary:
            raise CheckpointError(f"it has {self.tokenizer.size:,} ids, and the model {config.decoder.vocabulary:,}; it is that of another model")
        expected = {"<|startoftranscript|>": config.start} | {f"<|{name}|>": number for name, number in (config.languages | config.tasks).items()}
        if config.no_timestamps is not None:
            expected["<|notimestamps|>"] = config.no_timestamps
        for name, number in expected.items():
            if self.tokenizer.id(name) != number:
                raise CheckpointError(f"{name} is {self.tokenizer.id(name)}, but {number} in generation_config.json; it is that of another model")

    def timed(self, options: Options) -> bool:
        return bool(options.timestamps) or options.timestamps is None and self.config.no_timestamps is not None

    def rules(self, language: str, options: Options = Options()) -> list[Rule]:
        """The decoding rules; they are the same for all languages. Raises OptionError for what the model has no tokens for."""
        known, said = self.config.languages, language
        language = canonical(said)
        if not isinstance(language, str) or language not in (*known, "auto", *([] if known else ["en"])):
            ours = [name for name in LANGUAGES if name in known]
            others = sorted(name for name in known if name not in ours)
            some = ", ".join([*ours, *others[:8], *["..."] * (len(others) > 8)])
            way = "; for Cantonese take zh" if language == "yue" and "zh" in known else alike(said, known)
            raise OptionError(f"language is {said!r}; " + (f"this model has tokens for {some}, and 'auto' lets it judge{way}" if known else
                              "this model knows one language only and has no tokens for others; expected 'auto' or 'en'"))
        timed = self.timed(options)
        self.model.prompt(next(iter(self.config.languages), None), options.task, timed)
        if timed not in self._rules:
            self._rules[timed] = self.model.rules(timed)
        return self._rules[timed]

    def encode(self, windows: list[Tensor], length: int | None = None) -> Tensor:
        """Samples (S,) of windows -> encoder states (A, T, D). They are padded, or cut, to `length` samples; by default as published."""
        length = length or self.config.window
        padded = torch.stack([F.pad(samples[:length], (0, max(0, length - len(samples)))) for samples in windows])
        return self.model.encode(self.model.features(padded.to(self.model.device)))

    def _work(self, reader: "Reader", hearing: Hearing, options: Options, warnings: list[str], done: list[Part]) -> Iterator[Job | Part]:
        if options.long != "seek" or reader.fits:
            yield from super()._work(reader, hearing, options, warnings, done)
            return
        place, length, before = 0, self.config.window, iter(done)
        while len(samples := reader.peek(length)):
            known = next(before, None)
            [part] = [known] if known else self.decode_together([Job(Window(place, samples), hearing, goes_on=reader.more(length))], replace(options, timestamps=True))
            if isinstance(part, GlmAsrError):
                raise part
            if not known and reader.more(length) and part.start < part.resume < part.end:
                # What comes behind the last complete sentence is heard again, from there.
                part = replace(part, end=part.resume, segments=[segment for segment in part.segments if segment.end <= part.resume + TIME_STEP / 2])
            count = min(len(samples), max(sound.HOP, round((part.end - part.start) * sound.SAMPLE_RATE)))
            if not known:
                segments = part.segments if options.timestamps else whole(Window(place, samples[:count]), part.segments)
                yield replace(part, segments=segments, hearing=replace(hearing))
            reader.skip(count)
            place += count

    def _hear(self, jobs: list[Job], length: int, options: Options) -> Heard:
        """Each window of a recording whose language is "auto" is judged, and `Hearing.choose` says what counts. What isn't speech, or sounds
        like tones, says nothing about the windows behind it."""
        heard = self.model.decoder.hear(self.encode([job.window.samples for job in jobs], length))     # once, for all that follows
        likely, no_speech = self.model.judge(heard)
        names, among = list(self.config.languages), options.languages or self.config.languages
        languages, others, pieces = [], [], []
        for job, row, silence in zip(jobs, likely.tolist(), no_speech.tolist(), strict=True):
            window, hearing = job.window, job.hearing
            pieces.append([])
            chosen, other = hearing.language if hearing.language != "auto" else "" if names else "en", ""        # a Whisper of one language knows English
            if names and hearing.language == "auto":
                total = sum(value for name, value in zip(names, row) if name in among)
                probabilities = {name: value / total for name, value in zip(names, row) if name in among}
                speech = silence <= Limits().no_speech and not window.tonal()
                chosen = hearing.choose(probabilities, window.begin, speech)
                if speech and probabilities[chosen] < SURE:
                    other = max((name for name in probabilities if name != chosen), key=probabilities.get, default="")
                if speech and options.guards:
                    pieces[-1] = self._turns(window, [(key[len(languages)], value[len(languages)]) for key, value in heard], among)
                if speech:
                    hearing.heard, hearing.until = pieces[-1][-1][1] if pieces[-1] else chosen, window.begin + window.seconds
            languages.append(chosen)
            others.append(other)
        prompts = [self.model.prompt(language, options.task, self.timed(options)) for language in languages]
        return Heard(heard, prompts, languages, no_speech.tolist(), others, pieces)

    def _turns(self, window: Window, heard: list[tuple[Tensor, Tensor]], among: Iterable[str]) -> list[tuple[Window, str]]:
        """A window cut where its language changes, each piece with its own; [] if it doesn't. `heard`: keys and values (H, T, D) of each layer.

        The decoder judges parts of what was heard as it judges the whole, so nothing is encoded again.
        """
        size, step = (round(seconds * sound.SAMPLE_RATE / self.unit) for seconds in (SLICE, APART))
        states = min(len(window.samples) // self.unit, heard[0][0].shape[-2])
        if states < size + step or len(names := [name for name in self.config.languages if name in among]) < 2:
            return []
        slices = [tuple(each[:, :states].unfold(-2, size, step).permute(1, 0, 3, 2) for each in pair) for pair in heard]
        likely, numbers = self.model.judge(slices)[0][:, [list(self.config.languages).index(name) for name in names]].max(-1)
        sure = [(place, names[number]) for place, (value, number) in enumerate(zip(likely.tolist(), numbers.tolist())) if value >= CERTAIN]
        if len({name for _, name in sure}) < 2:
            return []
        spoken = window.voiced().float().unfold(0, round(SLICE / coverage.FRAME), round(APART / coverage.FRAME)).mean(-1).tolist()
        found = turns([(place, name) for place, name in sure if spoken[min(place, len(spoken) - 1)] >= 0.5])
        if len(found) < 2:
            return []
        levels, cuts = chunking.loudness(window.samples), [0]
        for (_, _, last), (_, first, _) in pairwise(found):     # between the middles of the two slices, where it is quietest
            begin, end = (round((place * APART + SLICE / 2) / coverage.FRAME) for place in (last, first))
            cuts.append((begin + chunking.quietest(levels[begin:end])) * sound.HOP)
        return [(window.part(begin, end), name) for (begin, end), (name, _, _) in zip(pairwise([*cuts, len(window.samples)]), found, strict=True)]

    def _room(self, prompt: int) -> int:
        return self.config.decoder.positions - prompt

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode([id for id in ids if self.config.no_timestamps is None or id < self.config.times]).strip()

    def _segments(self, window: Window, ids: list[int]) -> list[tuple[float, float, str]]:
        """Cuts an answer at its times. Without any it is one segment."""
        config, begin, length = self.config, window.begin, window.seconds
        if config.no_timestamps is None or not any(id >= config.times for id in ids):
            text, (start, end) = self._text(ids), window.sounding()
            return [(round(start, 3), round(end, 3), text)] if text else []
        pieces, words, since = [], [], 0.0
        for id in [*ids, None]:
            if id is not None and id < config.times:
                words.append(id)
                continue
            time = length if id is None else min((id - config.times) * TIME_STEP, length)
            if words:
                pieces.append((since, max(since, time), words))
                words = []
            since = max(since, time)
        if window.speech:       # TRAP: a model's first time is often 0, whatever the silence before the first word
            first = window.speech[0][0] / sound.SAMPLE_RATE
            pieces = [(max(start, first), max(end, first), words) for start, end, words in pieces]
        texts = [(start, end, self._text(words)) for start, end, words in pieces]
        return [(round(begin + start, 3), round(begin + end, 3), text) for start, end, text in texts if text]

    def _resume(self, window: Window, ids: list[int]) -> float:
        """As openai/whisper, transcribe.py: behind `<|2.40|><|2.40|>`, a sentence ended there and another began. If the last time
        stands alone, at the end, the rest of the window says nothing."""
        config, end = self.config, window.begin + window.seconds
        if config.no_timestamps is None:
            return end
        times = [id >= config.times for id in ids]
        pairs = [index for index in range(len(ids) - 1) if times[index] and times[index + 1]]
        if not pairs or times[-2:] == [False, True]:
            return end
        return min(end, window.begin + (ids[pairs[-1]] - config.times) * TIME_STEP)


def whole(window: Window, segments: list[Segment]) -> list[Segment]:
    """The segments of a window as one for each language, without times of their own."""
    found: list[Segment] = []
    start, end = window.sounding() if segments else (0.0, 0.0)
    for segment in segments:
        if found and found[-1].language == segment.language:
            before = found[-1]
            found[-1] = replace(before, end=max(before.end, segment.end), text=join([before.text, segment.text]), flags=tuple(dict.fromkeys(before.flags + segment.flags)),
                                mean_logprob=min(before.mean_logprob, segment.mean_logprob), no_speech=max(before.no_speech, segment.no_speech),
                                compression_ratio=max(before.compression_ratio, segment.compression_ratio), temperature=max(before.temperature, segment.temperature))
        else:
            found.append(segment)
    if found:
        found[0] = replace(found[0], start=round(min(start, found[0].end), 3))
        found[-1] = replace(found[-1], end=round(max(end, found[-1].start), 3))
    return found


def turns(sure: list[tuple[int, str]]) -> list[tuple[str, int, int]]:
    """(number, language) of the slices that are sure of one -> (language, first and last slice) of each stretch of a language. A language
    that too few slices in a row are sure of is left out."""
    runs: list[list[tuple[int, str]]] = []
    for place, name in sure:
        if runs and runs[-1][-1][1] == name and place - runs[-1][-1][0] <= SLICE / APART:
            runs[-1].append((place, name))
        else:
            runs.append([(place, name)])
    found: list[tuple[str, int, int]] = []
    for run in runs:
        if len(run) >= IN_A_ROW:
            (first, name), (last, _) = run[0], run[-1]
            if found and found[-1][0] == name:
                _, first, _ = found.pop()
            found.append((name, first, last))
    return found


def halves_of(window: Window) -> list[Window]:
    half = window.cut_point()
    return [window.part(0, half), window.part(half, len(window.samples))]


def fuller(tries: list[Part], voice: float) -> list[Part]:
    """Of a stretch as it is, and of its halves: the halves where both have text that can be right, and it has none, or says less."""
    [whole], halves = tries[:1], tries[1:]
    texts = [join([segment.text for part in parts for segment in part.segments]) for parts in ([whole], halves)]
    more = whole.failed or not coverage.fits(texts[0], voice) or coverage.spoken(texts[1]) > coverage.spoken(texts[0]) + coverage.SLOW * coverage.AGAIN
    return halves if more and coverage.fits(texts[1], voice) and all(part.segments and not part.failed for part in halves) else [whole]


def lacking(place: tuple[float, float]) -> str:
    """The warning of a place without text, from `start` to `end` in seconds."""
    return f"{place[0]:.1f} s to {place[1]:.1f} s: {FLAGS['uncovered']}"


def without_text(window: Window, segments: list[Segment]) -> Iterator[tuple[float, float]]:
    """The places of a window, in seconds of the recording, where somebody speaks long enough to be told of and none of these segments is."""
    covered = sorted((segment.start - window.begin, segment.end - window.begin, segment.text) for segment in segments)
    for stretch in coverage.stretches(window.voiced(), covered, coverage.TOLD):
        if stretch.covering is None:
            first, last = (window.begin + min(frame * coverage.FRAME, window.seconds) for frame in (stretch.first, stretch.last))
            yield round(first, 3), round(last, 3)


def patched(part: Part, found: list[tuple[coverage.Stretch, Window, list[Part]]]) -> Part:
    """A part with what was found in stretches of it, each with its window and the parts that came of it."""
    kept, added, uncovered, warnings = dict(enumerate(part.segments)), [], list(part.uncovered), list(part.warnings)
    for stretch, window, tries in found:
        if stretch.pauses and not all(one.segments and not one.failed for one in tries):
            continue            # the text wasn't doubted, and what is between pauses may be in it
        if stretch.covering is not None or not coverage.fits(join([segment.text for one in tries for segment in one.segments]), stretch.voice):
            tries = [one for one in tries if not one.failed]            # a doubtful text is better than none, and its flags tell
        new = [segment for one in tries for segment in one.segments]
        old = kept.get(stretch.covering)
        more = sum(coverage.spoken(segment.text) for segment in new) - (coverage.spoken(old.text) if old else 0)
        if more > (coverage.SLOW * coverage.AGAIN if stretch.pauses else 0):
            kept.pop(stretch.covering, None)
            added += new
            uncovered += [place for one in tries for place in one.uncovered]
            warnings += [warning for one in tries for warning in one.warnings]
            for place in without_text(window, new):         # a half that failed, or a gap on both sides of a cut
                if not any(place[0] < end and start < place[1] for start, end in uncovered):
                    uncovered.append(place)
                    warnings.append(lacking(place))
        elif stretch.voice >= coverage.TOLD and not stretch.pauses:
            if old:
                kept[stretch.covering] = replace(old, flags=(*old.flags, "uncovered"))
            uncovered.append((round(window.begin, 3), round(window.begin + window.seconds, 3)))
            warnings.append(lacking(uncovered[-1]))
    return replace(part, segments=sorted([*kept.values(), *added], key=lambda segment: (segment.start, segment.end)), uncovered=tuple(sorted(uncovered)), warnings=warnings)


class Reader:
    """A stream of blocks (any,), from which the first `window` samples were read, to know whether there are more. Iterated, it
    gives all samples. `seconds` is what was read so far, `left_out` what of it nobody heard."""

    def __init__(self, blocks: Iterable[Tensor], window: int):
        self._blocks, self._buffer, self._read, self.left_out = iter(blocks), torch.zeros(0), 0, 0.0
        self.fits = not self.more(window)
        self.first = self._buffer[:window]

    @property
    def seconds(self) -> float:
        return self._read / sound.SAMPLE_RATE

    def _fill(self, count: int) -> None:
        while len(self._buffer) < count and (block := next(self._blocks, None)) is not None:
            self._buffer = torch.cat((self._buffer, block))
            self._read += len(block)

    def more(self, count: int) -> bool:
        """Whether more than `count` samples follow."""
        self._fill(count + 1)
        return len(self._buffer) > count

    def peek(self, count: int) -> Tensor:
        """The next samples, at most `count`."""
        self._fill(count)
        return self._buffer[:count]

    def skip(self, count: int) -> None:
        self._buffer = self._buffer[count:]

    def take(self, most: int) -> Tensor:
        """The next samples, at most `most`; the others are read and left out."""
        samples = self.peek(most)
        self.skip(most)
        self.left_out = sum(map(len, self)) / sound.SAMPLE_RATE
        return samples

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            block, self._buffer = self._buffer, torch.zeros(0)
            if len(block):
                yield block
            self._fill(1)
            if not len(self._buffer):
                return


def search(model, audio, prompts: list[list[int]], stop, budgets: list[int], options: Options, rules, temperature: float = 0.0) -> list[decode.Hypothesis]:
    """The best hypothesis for each prompt, by the search that the options ask for. Above temperature 0 it is drawn, not searched."""
    how = {"stop": stop, "max_new": budgets, "rules": rules}
    try:
        if temperature > 0:
            return decode.sample(model, audio, prompts, temperature=temperature, seed=0, best_of=SAMPLES, **how)
        if options.beams == 1:
            return decode.greedy(model, audio, prompts, **how)
        return [found[0] for found in decode.beam(model, audio, prompts, width=options.beams, length_penalty=options.length_penalty, **how)]
    except ValueError as error:         # the arguments were checked, so what is left is numbers that are not finite
        raise CheckpointError(f"the model gives no usable answer: {error}") from error
