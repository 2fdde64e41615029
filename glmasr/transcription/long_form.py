"""A recording -> what is to be decoded of it, in the three ways of `Options.long`.

cut     windows that are cut where there is no speech or it is quiet; they don't depend on each other
whole   one job with all windows, as the published GLM-ASR was used
seek    as openai/whisper, transcribe.py: each window begins where the last complete sentence of the one before ended
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..audio import HOP, SAMPLE_RATE
from ..config import TIME_STEP, EncoderDecoderConfig, GlmAsrConfig
from ..errors import GlmAsrError
from . import clips, vad
from .batcher import Item
from .chunking import Window, cut
from .families import Job, RecordingState
from .language import join
from .options import Options
from .prompts import remembered
from .results import Part, Segment
from .word_times import timed_by_words

NONE: Iterator[Part] = iter(())


@dataclass
class Reading:
    """A recording while it is read: warnings that no part has carried yet, those that parts of an earlier run have
    carried (what is read again says the same again), and whether it has failed."""

    warnings: list[str] = field(default_factory=list)
    reported: set[str] = field(default_factory=set)
    failed: bool = False


class Reader:
    """A stream of blocks (any,), from which the first `window` samples were read, to see whether more follow.
    Iterating yields all samples. `start` samples of the recording come before it. `seconds` is what was read so far,
    `left_out` what of it was not decoded."""

    def __init__(self, blocks: Iterable[Tensor], window: int, start: int = 0):
        self._blocks, self._buffer, self._read, self.left_out = iter(blocks), torch.zeros(0), 0, 0.0
        self.start = start
        self.fits = not self.more(window)
        self.first = self._buffer[:window]

    @property
    def seconds(self) -> float:
        """Length of what was read so far, the buffer included."""
        return self._read / SAMPLE_RATE

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
        """Drops the next `count` samples, which `peek` has read."""
        self._buffer = self._buffer[count:]

    def take(self, most: int) -> Tensor:
        """The next samples, at most `most`; the others are read and left out."""
        samples = self.peek(most)
        self.skip(most)
        self.left_out = sum(map(len, self)) / SAMPLE_RATE
        return samples

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            block, self._buffer = self._buffer, torch.zeros(0)
            if len(block):
                yield block
            self._fill(1)
            if not len(self._buffer):
                return


def items(
    blocks: Callable[[], Iterable[Tensor]],
    config: GlmAsrConfig | EncoderDecoderConfig,
    recording: RecordingState,
    options: Options,
    warnings: list[str],
    done: list[Part],
    decode: Callable[..., list[Part | GlmAsrError]],
) -> Iterator[Item]:
    """What is to be decoded of a recording after the parts that are `done`, or was decoded already, because what
    follows depends on it; then its end, or its error. `decode`: `Recognizer.decode_together`."""
    window, before, end, left_out = config.window, iter(done), 0.0, 0.0
    try:
        for start, stretch in clips.clipped(blocks(), options.clips, warnings.append):
            reader = Reader(stretch, window, start)
            if options.long == "seek" and not reader.fits:
                yield from seek(
                    reader, window, recording, options, before, lambda job, how: decode([job], how, False)[0]
                )
            elif options.long == "whole" and not reader.fits and isinstance(config, GlmAsrConfig):
                job = whole_job(reader, window, config.longest_windows, recording, warnings, clip=bool(options.clips))
                yield from [] if next(before, None) else [job]
            else:
                yield from cut_jobs(reader, window, recording, options, before)
            end, left_out = start / SAMPLE_RATE + reader.seconds, left_out + reader.left_out
        yield Part(end - left_out, end, "", [], [], last=True)
    except GlmAsrError as error:
        yield error


def cut_jobs(
    reader: Reader, window: int, recording: RecordingState, options: Options, before: Iterator[Part] = NONE
) -> Iterator[Job]:
    """The windows of a recording, without those of which the part comes from `before`."""
    detector = vad.VoiceActivity() if options.vad == "auto" and vad.available() else None
    # Where to cut depends on nothing but the sound, so to skip windows they are cut again.
    for each in cut(reader, window, detector):
        if not next(before, None):
            yield Job(replace(each, start=reader.start + each.start), recording)


def whole_job(
    reader: Reader, window: int, most: int, recording: RecordingState, warnings: list[str], clip: bool = False
) -> Job:
    """The first `most` windows of a recording, or of a clip, as one job."""
    samples = reader.take(most * window)
    if reader.left_out:
        last = f"the last {reader.left_out:.1f} s of the {'clip' if clip else 'recording'} are left out"
        warnings.append(f"the model takes {most * window / SAMPLE_RATE:.0f} s at most, {most} whole windows: {last}")
    return Job(Window(reader.start, samples), recording)


def seek(
    reader: Reader,
    window: int,
    recording: RecordingState,
    options: Options,
    before: Iterator[Part],
    decode: Callable[[Job, Options], Part | GlmAsrError],
) -> Iterator[Part]:
    """The parts, without those that come from `before`. Raises what the model has no answer to."""
    place = reader.start
    while len(samples := reader.peek(window)):
        known = next(before, None)
        more = reader.more(window)
        part: Part | GlmAsrError
        if known:
            part = known
        else:
            context = recording.language.context
            part = decode(Job(Window(place, samples), recording, continues=more), replace(options, timestamps=True))
        if isinstance(part, GlmAsrError):
            raise part
        if not known and more and part.start < part.resume < part.end:
            # What comes after the last complete sentence is decoded again, from there.
            complete = [segment for segment in part.segments if segment.end <= part.resume + TIME_STEP / 2]
            part = replace(part, end=part.resume, segments=complete)
            if options.context:  # of what is kept only
                recording.language = replace(recording.language, context=remembered(context, part))
        count = min(len(samples), max(HOP, round((part.end - part.start) * SAMPLE_RATE)))
        if not known:
            segments = part.segments
            if not options.timestamps:
                segments = untimed(Window(place, samples[:count]), segments)
            segments = timed_by_words(segments, part.start, part.end)
            yield replace(part, segments=segments, language_state=recording.language)
        reader.skip(count)
        place += count


def untimed(window: Window, segments: list[Segment]) -> list[Segment]:
    """The segments of a window as one for each language, without times of their own; but those with other flags stay
    apart: what is doubtful of one sentence isn't of its neighbor."""
    if not segments:
        return []
    found: list[Segment] = []
    start, end = window.sound_span()
    for segment in segments:
        if not found or (found[-1].language, set(found[-1].flags)) != (segment.language, set(segment.flags)):
            found.append(segment)
            continue
        before = found[-1]
        found[-1] = replace(
            before,
            end=max(before.end, segment.end),
            text=join([before.text, segment.text]),
            mean_logprob=min(before.mean_logprob, segment.mean_logprob),
            no_speech=max(before.no_speech, segment.no_speech),
            words=before.words + segment.words,
            compression_ratio=max(before.compression_ratio, segment.compression_ratio),
            temperature=max(before.temperature, segment.temperature),
        )
    found[0] = replace(found[0], start=round(min(start, found[0].end), 3))
    found[-1] = replace(found[-1], end=round(max(end, found[-1].start), 3))
    return found
