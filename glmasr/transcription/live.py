"""Live: sound as it comes -> what is said, word by word, while somebody speaks.

    session = recognizer.live("en", step=1.0)
    for event in session.feed(samples): ...         # again and again
    for event in session.finish(): ...

    samples -> frames of 32 ms -> speech begins -> every `step` seconds: decode what isn't committed -> Tentative
        -> what two decodings agree on -> Committed -> speech stops -> decode all of it, as offline -> Segment

What is committed is never revised: it is the prefix of the next decoding. The last word of a text is often a guess, for
the sound ends in its middle; so what ends in the last 0.4 s isn't committed.

A session has no thread and no clock: its events depend on the sound alone, however it is cut into pieces. Whoever feeds
it says how much sound waits (`behind`): where a machine is too slow, steps get longer. docs/LIVE.md has a picture.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..alignment.times import in_order
from ..audio import HOP, Resampler
from ..audio_files import reader
from ..audio_files.channels import mono
from ..audio_files.limits import checked_rate
from ..config import SAMPLE_RATE
from ..errors import AudioError, GlmAsrError
from . import chinese_script, chinese_words, vad
from .chunking import AROUND_SPEECH, Window, last_cut_frame, loudness
from .families import RecordingState
from .live_checks import check
from .live_decoder import Course, Heard, Recognizer, Request, raised, run_together
from .live_events import Committed, Event, Notice, SpeechStarted, SpeechStopped, Tentative
from .live_words import Said, remaining
from .options import THRESHOLD, UNTIL, Options
from .results import Part, Segment, Word
from .vad import CHUNK, GAP, SHORTEST

UNCERTAIN = 0.4  # seconds at the end of the sound, in which no word is committed
# Probability of a word; a less likely one waits for more sound, and with it those after it, for PATIENCE steps at most.
# It grows with the step, up to SUREST: who takes long steps would rather wait than read what is wrong.
SURE, SURER, SUREST = 0.3, 0.2, 0.7  # at a step of 0; more for each second; at most
PATIENCE = 2
OVERLAP = 2.0  # seconds of committed words that are decoded again with what follows, as its prefix
HUM = 8  # frames, 0.25 s, after which what is only just likely to be speech is none: the detector takes time in noise


class Live:
    """A session.

    language     as of `Recognizer.transcribe`
    step         seconds of speech after which it is decoded anew
    pause        seconds without speech that end a segment; None: `commit` does
    padding      seconds of sound before its speech that are decoded as well, as far as no segment has them: a detector
                 misses soft beginnings
    sample_rate  of what is fed, in Hz
    threshold    probability at which speech begins
    options      those of `Options` that concern no file, such as hotwords

    Raises OptionError, AudioError for a rate that can't be.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        language: str = "auto",
        *,
        step: float = 1.0,
        pause: float | None = 0.5,
        padding: float = 0.3,
        sample_rate: int = SAMPLE_RATE,
        threshold: float = THRESHOLD,
        **options: Any,
    ):
        check(Options(**options), step, pause, padding, threshold)
        self.recognizer = recognizer
        chosen = recognizer.check(language, Options(**options))
        self._join = chinese_words.joiner(chosen.zh_words)  # only of whole segments: half a word may be committed
        self._options = replace(chosen, words=True, zh_words="character")
        self._convert = chinese_script.converter(self._options.script)
        self._recording = RecordingState.of(language)
        self._resampler = Resampler(checked_rate(sample_rate, "live"))
        self.step = self._widest = step
        self._sure = min(SUREST, SURE + SURER * step)
        self._pause = None if pause is None else max(GAP, round(pause * SAMPLE_RATE / CHUNK))
        self._padding = ceil(padding * SAMPLE_RATE / CHUNK)
        self._threshold, self._until = threshold, threshold * UNTIL / THRESHOLD
        self._detector = vad.detector(self._options.vad if pause is not None else "none")
        self._samples, self._kept = torch.zeros(0), 0  # those that may be needed, and how many came before them
        self._waiting: deque[float] = deque()  # probabilities of speech of frames that are there and weren't looked at
        self._frame = 0  # frames that were looked at
        self._ended = 0  # the frame after the speech of the last segment
        self._finished = False
        self._reset()

    def _reset(self) -> None:
        """Nobody speaks."""
        self._first: int | None = None  # the frame with which speech may begin
        self._last = self._likely = 0  # the frame after the last one that may be speech; that probably is
        self._begin: int | None = None  # the frame with which the segment begins
        self._levels: list[float] = []  # probabilities of its frames
        self._due = 0  # the frame at which to decode
        self._committed: list[Said] = []
        self._told = 0  # how many of these the segment before has
        self._text = ""  # of the others, as it was told
        self._before: list[Said] = []  # what the last decoding said after them
        self._language = ""
        self._shown = ""

    @property
    def seconds(self) -> float:
        """How much sound was looked at."""
        return self._frame * CHUNK / SAMPLE_RATE

    def feed(self, samples: Any, behind: float = 0.0) -> list[Event]:
        """What the next samples (S,) make known: a tensor or an array, of floats from -1 to 1 or of int16.

        behind    seconds of sound that wait at the caller, because decoding takes longer than speaking; while that is
                  more than a step, only whole segments are decoded: so steps get longer, and a `Notice` says so

        Raises AudioError for what is no sound, GlmAsrError for what the model can't answer; the session goes on.
        """
        [found] = feed_together([(self, samples, behind)])
        return raised(found)

    def commit(self) -> list[Event]:
        """Ends the segment here, pause or not."""
        [found] = run_together(self.recognizer, [self._end()])
        return raised(found)

    def finish(self) -> list[Event]:
        """The rest. Nothing can be fed afterwards."""
        [found] = run_together(self.recognizer, [self.finishing()])
        return raised(found)

    # -- the course of a session, as generators: they yield events, and requests, for which they are sent the answers --

    def hearing(self, samples: Any, behind: float = 0.0) -> Course:
        """What `feed` does, for `run_together`. Raises AudioError, at once."""
        if self._finished:
            raise AudioError("the session is finished; expected no more samples: begin another one")
        return self._hear(self._resampler.feed(_checked(samples)), behind)

    def finishing(self) -> Course:
        """What `finish` does, for `run_together`."""
        if not self._finished:
            self._finished = True
            yield from self._hear(self._resampler.finish(), 0.0, last=True)
            yield from self._end()

    def _hear(self, samples: Tensor, behind: float, last: bool = False) -> Course:
        self._samples = torch.cat((self._samples, samples))
        self._waiting += self._detector(samples, last=last).tolist()
        while self._waiting:
            yield from self._look(self._waiting.popleft(), behind)
        if self._begin is None:
            first = self._frame if self._first is None else self._first
            self._keep_from((first - self._padding) * CHUNK)

    def _keep_from(self, sample: int) -> None:
        gone = max(0, sample - self._kept)
        self._samples, self._kept = self._samples[gone:].clone(), self._kept + gone

    def _look(self, likely: float, behind: float) -> Course:
        """The next frame, with its probability of speech."""
        self._frame += 1
        frame = self._frame
        if likely >= self._threshold:
            self._first = frame - 1 if self._first is None else self._first
            self._likely = self._last = frame
        elif self._first is not None and likely >= self._until and frame - self._likely <= HUM:
            self._last = frame
        if self._begin is None:
            if self._first is None:
                return
            if self._last - self._first >= (SHORTEST if self._pause else GAP):
                yield from self._start(self._first)
            elif frame - self._last >= GAP:
                self._first = None
            return
        self._levels.append(likely)
        pausing = frame - self._likely == GAP  # if that is the end, there is time until it is certain
        if self._pause and frame - self._last >= self._pause:
            yield SpeechStopped(self._last * CHUNK / SAMPLE_RATE)
            try:
                yield from self._close(min(self._last + AROUND_SPEECH, frame))
            finally:
                self._ended = self._last
                self._reset()
        elif (frame - self._begin + 1) * CHUNK > self.recognizer.family.config.window:
            yield from self._cut()
        elif (frame >= self._due or pausing) and behind <= self.step:  # else what was decoded now would soon be old
            yield from self._widened((frame - self._due) * CHUNK / SAMPLE_RATE + self.step)
            self._due = frame + max(1, round(self.step * SAMPLE_RATE / CHUNK))
            if pausing or frame - self._last < GAP:  # else nothing was said since
                yield from self._decode()

    def _widened(self, step: float) -> Course:
        """Says so where a step is twice as long as it was said to be."""
        if step > 2 * self._widest:
            self._widest = step
            yield Notice(f"this machine is too slow for a step of {self.step:g} s: text comes every {step:.1f} s")

    def _start(self, first: int) -> Course:
        self._begin = max(first - self._padding, self._ended, -(-self._kept // CHUNK))
        self._levels = [0.0] * (first - self._begin) + [1.0] * (self._frame - first)
        self._due = first + round(self.step * SAMPLE_RATE / CHUNK)
        yield SpeechStarted(first * CHUNK / SAMPLE_RATE)

    def _sound(self, first: int, last: int) -> Tensor:
        """The samples of frames."""
        return self._samples[first * CHUNK - self._kept : last * CHUNK - self._kept]

    def _decode(self) -> Course:
        """What isn't committed of the segment so far, after some words that are."""
        assert self._begin is not None
        prefix: list[Said] = []
        begin = self._begin
        for said in reversed(self._committed):
            if self._committed[-1].words[-1].end - said.words[0].start > OVERLAP and prefix:
                begin = max(begin, int(prefix[0].words[0].start * SAMPLE_RATE / CHUNK) - 3)
                break
            prefix.insert(0, said)
        start = begin * CHUNK
        spoken = max(0, (self._first or 0) - begin), max(1, self._last - begin)
        window = Window(start, self._sound(begin, self._frame), ((spoken[0] * CHUNK, spoken[1] * CHUNK),))
        ids = tuple(number for said in prefix for number in said.ids)
        recording = RecordingState.of(self._language) if self._committed and self._language else self._recording
        new = window.begin + window.seconds - (self._committed[-1].words[-1].end if prefix else window.begin)
        draft = tuple(number for said in self._before for number in said.ids)
        heard = yield Request(window, recording, self._options, ids, new, draft)
        if isinstance(heard, GlmAsrError):
            raise heard
        assert isinstance(heard, Heard)
        yield from self._agree(heard, self._frame * CHUNK / SAMPLE_RATE)

    def _agree(self, heard: Heard, now: float) -> Course:
        """Commits what two decodings agree on, and shows the rest."""
        count = 0
        for before, said in zip(self._before, heard.said, strict=False):
            age = now - said.words[-1].end
            if (
                before.key != said.key
                or age < UNCERTAIN
                or (said.probability < self._sure and age < PATIENCE * self.step)
            ):
                break
            count += 1
        new, self._before = list(heard.said[:count]), list(heard.said[count:])
        if new:
            self._language = heard.language
            yield self._commit(new)
        text = self._convert("".join(said.text for said in self._before))
        text = text if self._text else text.lstrip()
        if text != self._shown:
            self._shown = text
            yield Tentative(text)

    def _commit(self, new: list[Said]) -> Committed:
        """These are certain from now on, with times after those before."""
        since = self._committed[-1].words[-1].end if self._committed else 0.0
        spans = in_order([(word.start, word.end) for said in new for word in said.words], since, float("inf"))
        times = iter(spans)
        for said in new:
            words = tuple(
                replace(word, text=self._convert(word.text), start=round(start, 3), end=round(end, 3))
                for word, (start, end) in zip(said.words, times, strict=False)
            )
            self._committed.append(replace(said, words=words))
        words = tuple(word for said in self._committed[-len(new) :] for word in said.words)
        return self._tell(self._convert("".join(said.text for said in new)), words)

    def _tell(self, text: str, words: tuple[Word, ...]) -> Committed:
        """More of the segment."""
        text = text if self._text else text.lstrip()
        self._text += text
        return Committed(text, words)

    def _close(self, end: int, later: bool = False) -> Course:
        """The segment up to this frame is decoded as a recording is; what that says after what is committed is
        certain, unless words `later` than that are committed."""
        assert self._begin is not None
        first, samples = self._begin, self._sound(self._begin, end)
        spans = vad.spans(torch.tensor(self._levels[: end - first]), self._threshold, self._until, inside=True)
        places = tuple((begin * CHUNK, min(last * CHUNK, len(samples))) for begin, last in spans)
        window = Window(first * CHUNK, samples, places if self._pause and places else None)
        committed, self._before, self._shown = self._committed, [], ""
        part = yield Request(window, self._recording, self._options, final=True)
        if isinstance(part, GlmAsrError):  # what is committed stays
            yield self._segment(window, [], Part(0.0, 0.0, self._language, [], []))
            raise part
        assert isinstance(part, Part)
        for warning in part.warnings:
            yield Notice(warning)
        rest, text = ([], "") if later else remaining(committed, part)
        begin = committed[-1].words[-1].end if committed else window.begin
        spans_ = in_order([(word.start, word.end) for word in rest], begin, max(begin, window.begin + window.seconds))
        rest = [
            replace(word, start=round(start, 3), end=round(end, 3))
            for word, (start, end) in zip(rest, spans_, strict=True)
        ]
        if rest:
            yield self._tell(text, tuple(rest))
        yield self._segment(window, rest, part)

    def _segment(self, window: Window, rest: list[Word], part: Part) -> Segment:
        """The committed words, then the rest."""
        words = (*(word for one in self._committed[self._told :] for word in one.words), *rest)
        begin = self._committed[-1].words[-1].end if self._committed else 0.0
        found = part.segments[0] if part.segments else Segment(0.0, 0.0, "", language=part.language)
        found = replace(
            found,
            start=words[0].start if words else round(max(begin, window.begin), 3),
            end=words[-1].end if words else round(max(begin, window.begin + window.seconds), 3),
            text=self._text,
            words=words,
            flags=tuple(dict.fromkeys(name for segment in part.segments for name in segment.flags)),
        )
        return self._join(found)

    def _cut(self) -> Course:
        """Speech fills a window: it ends where it is quietest, and the next one goes on from there. Words that are
        committed beyond that were told before: they stay in this segment, and the next one only goes on from them."""
        assert self._begin is not None
        place = last_cut_frame(loudness(self._sound(self._begin, self._frame))) * HOP // CHUNK
        cut = self._begin + max(1, place)
        border = cut * CHUNK / SAMPLE_RATE
        later = [said for said in self._committed if said.words[0].start + said.words[-1].end > 2 * border]
        try:
            yield from self._close(cut, bool(later))
        finally:
            self._levels = self._levels[cut - self._begin :]
            self._begin, self._committed, self._told, self._text = cut, later, len(later), ""
            self._first = max(cut, self._first or 0)
            self._keep_from(cut * CHUNK)

    def _end(self) -> Course:
        try:
            if self._begin is not None and self._frame - self._begin >= GAP:  # there is no word in less
                yield SpeechStopped(self._last * CHUNK / SAMPLE_RATE)
                yield from self._close(min(self._last + AROUND_SPEECH, self._frame) if self._pause else self._frame)
        finally:
            self._reset()
            self._keep_from(self._frame * CHUNK)


def feed_together(fed: Sequence[tuple[Live, Any, float]]) -> list[list[Event | GlmAsrError]]:
    """(session, samples, behind) of sessions of one recognizer, each at most once -> their events; what they want
    decoded goes through the model in common batches. A session that fails ends with its error."""
    found: list[list[Event | GlmAsrError]] = [[] for _ in fed]
    courses: dict[int, Course] = {}
    for index, (session, samples, behind) in enumerate(fed):
        try:
            courses[index] = session.hearing(samples, behind)
        except GlmAsrError as error:
            found[index].append(error)
    if courses:
        events = run_together(fed[0][0].recognizer, list(courses.values()))
        for index, some in zip(courses, events, strict=True):
            found[index] += some
    return found


def _checked(samples: Any) -> Tensor:
    """Samples (S,) as floats. Raises AudioError."""
    if not isinstance(samples, np.ndarray | Tensor):
        raise AudioError(
            f"samples are a {type(samples).__name__}; expected a tensor or an array, such as np.array(...)"
        )
    if samples.ndim != 1:
        raise AudioError(
            f"samples have the shape {tuple(samples.shape)}; expected (S,), one channel: take the mean of several"
        )
    name, parts = reader.read_array(samples, SAMPLE_RATE, _ignore)
    return torch.cat([torch.zeros(0), *mono((part for _, part in parts), name, SAMPLE_RATE, _ignore)])


def _ignore(warning: str) -> None:
    """What `reader` warns of concerns whole recordings."""
