"""Recording -> Transcript: what the command line, and everything else that serves people, calls.

    recognizer = load("demo")
    transcript = recognizer.transcribe("talk.wav", language="zh")
    for part in recognizer.stream("meeting.mp3"): ...           # as soon as a stretch is recognized

The way of a recording, and where its steps are:

    audio.blocks                    any file -> samples at 16 kHz, block by block
    transcription.long_form         -> windows, cut where there is no speech (chunking, vad)
    transcription.batcher           windows of several recordings -> batches
    transcription.window_decoder    a batch -> parts: encode, search, checks and retries, what no text covers
    transcription.results           parts -> Transcript

The two adapters, `transcription.glm_asr` and `.encoder_decoder`, have what differs. An answer that fails the checks is
retried; what remains doubtful is flagged and reported, and no text is dropped silently.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import audio as sound
from .audio_files.pipe import piped
from .audio_files.reader import may_wait
from .audio_files.sound_files import stated_duration
from .checkpoint import hub as hubs
from .checkpoint.whisper_json import check_steering
from .config import EncoderDecoderConfig, GlmAsrConfig
from .errors import GlmAsrError, OptionError, about
from .kernels import devices, prepare
from .kernels.cuda_graphs import GraphedModel
from .kernels.prepare import Runtime
from .model import EncoderDecoder, GlmAsr
from .observing import stage
from .tokenizer import read_tokenizer, tokenizer_file
from .transcription import assistant as assistants
from .transcription import chinese_script, chinese_words
from .transcription.batcher import Batcher
from .transcription.clips import Clip, as_clips, within
from .transcription.encoder_decoder import EncoderDecoderFamily
from .transcription.fallback import TEMPERATURES
from .transcription.families import Job, LanguageState, RecordingState, checked_languages
from .transcription.glm_asr import GlmAsrFamily
from .transcription.hotwords import parse as parse_hotwords
from .transcription.language import AnyTokenizer, listed
from .transcription.live import Live
from .transcription.long_form import Reader, Reading, cut_jobs, items, untimed
from .transcription.memory import batch_size
from .transcription.options import Options
from .transcription.results import FLAGS, Part, Segment, Transcript, Word
from .transcription.window_decoder import WindowDecoder
from .transcription.word_times import timed_by_words, with_text

__all__ = ["FLAGS", "Options", "Part", "Recognizer", "Segment", "Transcript", "Word", "load"]

DEFAULTS = Options()
Progress = Callable[[float, float | None], None]  # seconds that are done, and in all


def load(
    name_or_path: str | Path = hubs.DEFAULT,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    plain: bool = False,
    adapter: str | Path | None = None,
    assistant: str | Path | None = None,
    revision: str | None = None,
    hub: str | None = None,
    progress: bool = True,
) -> "Recognizer":
    """A recognizer from a checkpoint directory, or by name: "glm-asr-nano-2512", "demo", "demo-article", a Whisper's
    short name such as "large-v3", or "owner/name" of a model of the hub, which is fetched if it isn't on this machine.
    Raises CheckpointError, OptionError.

    device    "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1"
    dtype     "auto" (bfloat16 where it is fast, else float32), "bfloat16", "float32"; "int8": of 8 bits, on the CPU
    plain     the modules to be read, without the faster ones of `kernels`; `recognizer.how()` says what was taken
    adapter   the folder of a LoRA in PEFT's format, for this model: it is added to the weights
    assistant a student of this model, which drafts for greedy search: docs/SPEED.md; a directory or a name
    revision  commit, branch or tag of a model of the hub (None: see `hub.find`)
    hub       "huggingface" or "modelscope" (None: what GLMASR_HUB says, or "huggingface")
    progress  show a bar on standard error while weights are fetched
    """
    devices.choose_device(device)  # before gigabytes are fetched
    dtype = dtype if dtype in ("auto", "int8") else devices.choose_dtype(dtype)
    directory = hubs.find(name_or_path, revision, hub=hub, progress=progress)
    model, runtime = prepare.load(directory, device=device, dtype=dtype, plain=plain, adapter=adapter)
    tokenizer = read_tokenizer(directory)
    if isinstance(model.config, EncoderDecoderConfig):
        with about(directory):
            check_steering(model.config)
    recognizer = Recognizer(model, tokenizer, runtime)
    with about(tokenizer_file(directory)):
        recognizer.family.check_tokenizer()
    if assistant is not None:
        student = hubs.find(assistant, hub=hub, progress=progress)
        recognizer.windows.model = assistants.load(student, directory, recognizer.family, runtime, plain=plain)
        recognizer.runtime = replace(runtime, assistant=student)
    return recognizer


AnyModel = GlmAsr | EncoderDecoder | GraphedModel
PLAIN = Runtime()


class Recognizer:
    """A model with its tokenizer. `transcribe` is what it is for; `.model`, `.tokenizer` and `.config` are there to
    inspect."""

    def __init__(self, model: AnyModel, tokenizer: AnyTokenizer, runtime: Runtime = PLAIN):
        self.model = model
        self.runtime = runtime
        self.tokenizer = tokenizer
        self.family: GlmAsrFamily | EncoderDecoderFamily
        if isinstance(model, EncoderDecoder):
            self.family = EncoderDecoderFamily(model, tokenizer)
        else:  # a `GraphedModel` is one of GLM-ASR's
            self.family = GlmAsrFamily(model, tokenizer)
        self.windows = WindowDecoder(model, self.family, self.batch_size)

    def __repr__(self) -> str:
        kind, count = type(self.config).__name__.removesuffix("Config"), prepare.num_parameters(self.model) / 1e6
        how = self.how()
        return f"<Recognizer {kind}, {count:,.1f} M parameters, {how['dtype']} on {how['device']}, {how['linears']}>"

    @property
    def config(self) -> GlmAsrConfig | EncoderDecoderConfig:
        """The model's configuration; its class tells the two families apart."""
        return self.model.config

    def how(self, options: Options = DEFAULTS) -> dict[str, str]:
        """What `Transcript.how` says: device, dtype, what `prepare.Runtime` has, and `pad_to` of the options."""
        model, runtime = self.model, self.runtime
        return {
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "linears": runtime.linears,
            "attention": runtime.attention,
            "steps": runtime.steps,
            "pad_to": options.pad_to,
        } | runtime.also()

    @stage("everything else")
    def transcribe(
        self,
        audio: Any,
        language: str = "auto",
        *,
        sample_rate: int | None = None,
        task: str = "transcribe",
        timestamps: bool | None = None,
        beams: int | None = None,
        length_penalty: float = 1.0,
        max_new_tokens: int | None = None,
        temperatures: tuple[float, ...] = TEMPERATURES,
        long: str = "cut",
        batch_size: int | None = None,
        guards: bool = True,
        pad_to: str = "window",
        script: str | None = None,
        max_duration: float = DEFAULTS.max_duration,
        track: int | str | None = None,
        languages: str | Iterable[str] = (),
        vad: str = "auto",
        words: bool = False,
        zh_words: str = "character",
        clips: Sequence[Clip] = (),
        hotwords: Iterable[str | tuple[str, float]] = (),
        prompt: str = "",
        context: bool = False,
        instruction: str = "",
        progress: Progress | None = None,
    ) -> Any:
        """Recognizes one recording, or a list of them in common batches.

        audio       path, "-" (standard input), bytes, binary file, an array (S,) or (S, channels) with its
                    `sample_rate`, a pair (rate, array), or a dictionary of Hugging Face's datasets: see `audio.blocks`;
                    or a list of these
        language    "auto", "zh", "yue", "en", or another name of one, such as "zh-CN" or "Cantonese". The
                    encoder-decoder takes it as a token, or detects it; of GLM-ASR, which has no such tokens, letters
                    that the language is not written in are forbidden
        progress    called with the seconds that are done, and those that there are in all, or None where no file says
                    so
        task, ...   what `Options` says

        Raises AudioError for a recording that can't be used, OptionError for an argument out of range. Of a list all
        others are recognized before; the error of the first that failed has their transcripts in `transcripts`.
        """
        options = Options(
            task=task,
            timestamps=timestamps,
            beams=beams,
            length_penalty=length_penalty,
            max_new_tokens=max_new_tokens,
            temperatures=temperatures,
            long=long,
            batch_size=batch_size,
            guards=guards,
            pad_to=pad_to,
            script=script,
            max_duration=max_duration,
            track=track,
            languages=listed(languages),
            vad=vad,
            words=words,
            zh_words=zh_words,
            clips=as_clips(clips or ()),
            hotwords=parse_hotwords(hotwords),
            prompt=prompt,
            context=context,
            instruction=instruction,
        )
        recordings = audio if isinstance(audio, list) else [audio]
        transcripts = self._transcribe(recordings, language, options, sample_rate, progress)
        return transcripts if isinstance(audio, list) else transcripts[0]

    def _transcribe(
        self, recordings: list[Any], language: str, options: Options, sample_rate: int | None, progress: Progress | None
    ) -> list[Transcript]:
        parts: list[list[Part]] = [[] for _ in recordings]
        errors: dict[int, GlmAsrError] = {}
        files = [audio if progress and isinstance(audio, str | Path) else None for audio in recordings]
        lengths = [stated_duration(file) if file else None for file in files]
        total = None if None in lengths else sum(within(options.clips, length) for length in lengths if length)
        for index, part in self.streams(recordings, language, options, sample_rate=sample_rate):
            if isinstance(part, GlmAsrError):
                errors[index] = part
                continue
            parts[index].append(part)
            if progress is not None:
                progress(sum(within(options.clips, some[-1].end) for some in parts if some), total)
        how = self.how(options)
        done = [
            None if index in errors else Transcript.of(some, how, options.clips) for index, some in enumerate(parts)
        ]
        if errors:
            first = errors[min(errors)]
            first.transcripts = done
            raise first
        return [transcript for transcript in done if transcript is not None]

    def stream(
        self,
        audio: Any,
        language: str = "auto",
        options: Options = DEFAULTS,
        *,
        sample_rate: int | None = None,
        done: list[Part] | None = None,
    ) -> Iterator[Part]:
        """The same, part by part as they are recognized; the last part is empty and says where the recording ends.
        Memory doesn't grow with the recording. Options are checked before the first part.

        done    parts of the same recording from a stream that was stopped, with the same options, up to one that has
                its `language_state`: what comes after them is given, as if it had not been stopped. The sound before is
                read, and not recognized again.
        """
        for _, part in self.streams([audio], language, options, sample_rate=sample_rate, done={0: done or []}):
            if isinstance(part, GlmAsrError):
                raise part
            yield part

    def streams(
        self,
        recordings: Iterable[Any],
        language: str = "auto",
        options: Options = DEFAULTS,
        *,
        sample_rate: int | None = None,
        done: dict[int, list[Part]] | None = None,
    ) -> Iterator[tuple[int, Part | GlmAsrError]]:
        """The same for several recordings, whose windows are decoded in common batches: the number of a recording, from
        0, and a part of it. A recording that can't be used, or not to its end, ends with its error in place of the last
        part."""
        done = done or {}
        if unfinished := [index for index, parts in done.items() if parts and parts[-1].language_state is None]:
            raise OptionError(
                f"done: the last part of recording {unfinished[0]} has no `language_state`; "
                "expected the parts up to one that has it"
            )
        options = self.check(language, options)
        batcher = Batcher(
            lambda jobs: self.decode_together(jobs, options), self.batch_size(options), soon=not options.batch_size
        )
        readings: dict[int, Reading] = {}

        def reported(parts: Iterable[tuple[int, Part | GlmAsrError]]) -> Iterator[tuple[int, Part | GlmAsrError]]:
            """The parts with the warnings of reading; none of a recording that has failed."""
            for index, part in parts:
                reading = readings[index]
                if reading.failed:
                    continue
                if isinstance(part, GlmAsrError):
                    reading.failed = True
                    yield index, part
                    continue
                new = [warning for warning in reading.warnings if warning not in reading.reported]
                reading.warnings.clear()
                yield index, replace(part, warnings=new + part.warnings)

        for index, audio in enumerate(map(piped, recordings)):
            if may_wait(audio):
                yield from reported(batcher.flush())  # what came before must not wait with it
            before = done.get(index, [])
            reading = readings[index] = Reading(reported={warning for part in before for warning in part.warnings})
            state = before[-1].language_state if before else None
            recording = RecordingState(state or LanguageState(language))
            blocks = partial(
                sound.blocks,
                audio,
                sample_rate,
                track=options.track,
                max_duration=options.max_duration,
                warn=reading.warnings.append,
            )
            for item in items(blocks, self.config, recording, options, reading.warnings, before, self.decode_together):
                yield from reported(batcher.add(index, item, now=getattr(audio, "idle", False)))
                if reading.failed:  # the rest of it would be in vain
                    break
        yield from reported(batcher.flush())

    def live(self, language: str = "auto", **how: Any) -> Live:
        """A session that recognizes sound while it comes; see `Live`. Raises OptionError."""
        return Live(self, language, **how)

    def recognize(
        self, recordings: list[Tensor], languages: list[str], options: Options = DEFAULTS
    ) -> list[Transcript]:
        """Samples (S,) at 16 kHz of some recordings -> their transcripts. Their windows are decoded in common
        batches."""
        options = self.check(options=options)
        if options.clips:
            raise OptionError("clips are parts of a recording; expected the samples of each part as one of its own")
        batcher = Batcher(lambda jobs: self.decode_together(jobs, options), self.batch_size(options), soon=False)
        parts: list[list[Part]] = [[] for _ in recordings]

        def collect(found: Iterable[tuple[int, Part | GlmAsrError]]) -> None:
            for index, part in found:
                if isinstance(part, GlmAsrError):
                    raise part
                parts[index].append(part)

        order = sorted(range(len(recordings)), key=lambda index: len(recordings[index]))  # like lengths, little padding
        for index in order:
            self.check(languages[index], options)
            reader, state = Reader([recordings[index]], self.config.window), RecordingState.of(languages[index])
            for job in self.jobs(reader, state, options):
                collect(batcher.add(index, job))
        collect(batcher.flush())
        ends = [len(samples) / sound.SAMPLE_RATE for samples in recordings]
        return [
            Transcript.of([*some, Part(end, end, "", [], [])], self.how(options))
            for some, end in zip(parts, ends, strict=True)
        ]

    def check(self, language: str = "auto", options: Options = DEFAULTS) -> Options:
        """The options with this model's defaults. Raises OptionError for what it can't do."""
        options = replace(options, languages=listed(options.languages))
        options.check(self.config.decoder.positions)
        chinese_words.joiner(options.zh_words)
        languages = checked_languages(self.family, language, options)
        hotwords, beams = parse_hotwords(options.hotwords), options.beams or self.config.beams
        self.windows.check(beams, hotwords)
        return replace(options, beams=beams, languages=languages, hotwords=hotwords)

    def jobs(self, reader: Reader, recording: RecordingState, options: Options = DEFAULTS) -> Iterator[Job]:
        """The windows of a recording, cut where there is no speech or it is quiet."""
        return cut_jobs(reader, self.config.window, recording, options)

    def decode_together(self, jobs: list[Job], options: Options, final: bool = True) -> list[Part | GlmAsrError]:
        """The parts of some windows, of one recording or of several, decoded together; `options` are those of `check`.
        What the model can't answer is an error in place of its part. Unless `final`, segments keep the model's times:
        the caller cuts the parts by them, and then calls `timed_by_words`."""
        convert, join = chinese_script.converter(options.script), chinese_words.joiner(options.zh_words)
        parts = self.windows.decode(jobs, options)
        for index, (job, part) in enumerate(zip(jobs, parts, strict=True)):
            if isinstance(part, Part):
                segments = part.segments
                if not options.timestamps and self.family.timed(options):
                    segments = untimed(job.window, segments)
                if final:
                    segments = timed_by_words(segments, part.start, job.window.begin + job.window.seconds)
                segments = [join(with_text(segment, convert)) for segment in segments]
                parts[index] = replace(part, segments=segments)
        return parts

    def timed(self, options: Options) -> bool:
        """Whether the model writes times."""
        return self.family.timed(options)

    def batch_size(self, options: Options) -> int:
        """Windows that are decoded together, at most; `options` as `check` returns them."""
        return options.batch_size or batch_size(self.model, self.family, options)
