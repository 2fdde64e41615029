"""Transcript -> cues on a grid of whole milliseconds.

Times become whole milliseconds once, in `timed`, and are put in order there. Everything after it computes in integers,
so no rounding can make cues overlap or run beyond the recording.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import itemgetter
from typing import NamedTuple, Protocol

import regex

from .line_breaks import DEFAULT, Layout, cut, width


class Segment(Protocol):
    """What a writer asks of a segment: seconds from the start of the recording, and what was said there."""

    @property
    def start(self) -> float:
        """Seconds from the start of the recording."""

    @property
    def end(self) -> float:
        """Seconds from the start of the recording, not before `start`."""

    @property
    def text(self) -> str:
        """What was said, in any whitespace: `clean` puts it on one line."""


class Transcript(Protocol):
    """What a writer asks of a transcript."""

    @property
    def segments(self) -> Sequence[Segment]:
        """The segments in order of time."""

    @property
    def seconds(self) -> float:
        """Length of the recording, or of what was recognized of it."""

    @property
    def incomplete(self) -> bool:
        """Whether the recording goes on after `seconds`."""


UNTIMED = 1000  # ms that a segment whose end is not after its start is shown, if there is room


def timed(transcript: Transcript) -> list[tuple[int, int, str]]:
    """The segments that have a text, as (start, end, text): in milliseconds, the text on one line.

    0 <= start < end <= the next start, and the last end is not beyond the recording, whatever the segments say. Where
    two overlap, the first ends when the second starts. A time that is not finite is taken from its neighbor.
    """
    found, last = [], 0
    for segment in transcript.segments:
        start = milliseconds(segment.start, last)
        last = end = milliseconds(segment.end, start)
        if text := clean(segment.text):
            found.append((start, end if end > start else start + UNTIMED, text))
    found.sort(key=itemgetter(0))
    limit = length(transcript)
    if len(found) > limit:  # not even a millisecond for each: one for all
        found = [(*found[0][:2], " ".join(text for _, _, text in found))][:limit]
    starts = _apart([start for start, _, _ in found], limit)
    return [
        (start, min(max(end, start + 1), following), text)
        for start, following, (_, end, text) in zip(starts, [*starts, limit][1:], found, strict=True)
    ]


def length(transcript: Transcript) -> int:
    """Milliseconds of the recording, rounded down; without a finite length, those up to the end of the last segment."""
    known = milliseconds(transcript.seconds, -1)
    if known < 0:
        return max((milliseconds(segment.end, 0) for segment in transcript.segments), default=0)
    return max(0, known - (known / 1000 > transcript.seconds))


def milliseconds(seconds: float, unknown: int) -> int:
    """Rounded, and none below 0; `unknown` for what is not finite."""
    return max(0, round(1000 * seconds)) if math.isfinite(1000 * seconds) else unknown


def _apart(times: list[int], end: int) -> list[int]:
    """The times, in order, moved so that each is a millisecond or more after the one before, the last before `end`."""
    rising = accumulate(times, lambda before, time: max(before + 1, time))
    return [min(time, end - len(times) + index) for index, time in enumerate(rising)]


class Cue(NamedTuple):
    """What is shown at a time: from `start` to `end`, in milliseconds."""

    start: int
    end: int
    lines: list[str]


def cues(transcript: Transcript, layout: Layout = DEFAULT) -> Iterator[Cue]:
    """The subtitles of a recording: those of a segment share its time in proportion to their width. Times as in
    `timed`."""
    for start, end, text in timed(transcript):
        blocks = cut(text, layout)
        if len(blocks) > end - start:  # not even a millisecond for each: one for all
            blocks = [sum(blocks, [])]
        before = [0, *accumulate(sum(map(width, lines)) for lines in blocks)]
        starts = _apart([start + (end - start) * columns // max(1, before[-1]) for columns in before[:-1]], end)
        yield from map(Cue, starts, [*starts, end][1:], blocks)


_DROPPED = regex.compile(r"(?!\s)[\p{Cc}\p{Cs}\ufeff]")  # controls, halves of UTF-16 characters, byte order marks


def clean(text: str) -> str:
    """The text on one line, without what no format can hold."""
    return " ".join(_DROPPED.sub("", text).split())
