"""Transcript -> cues on a grid of whole milliseconds.

Times become whole milliseconds once, in `_rows`, and are put in order there. Everything after it computes in integers,
so no rounding can make cues overlap or run beyond the recording.

Without words the cues are those of the segments. Where segments have words, their cues are made of these, whatever the
segments are (`cue_words`).
"""

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from operator import itemgetter
from typing import NamedTuple, Protocol

import regex

from .cue_words import GAP, TimedWord, joined, readable
from .line_breaks import DEFAULT, UNSPACED, Layout, cut, width


class Word(Protocol):
    """What a writer asks of a word: seconds from the start of the recording, and the word with its punctuation."""

    @property
    def start(self) -> float:
        """Seconds from the start of the recording."""

    @property
    def end(self) -> float:
        """Seconds from the start of the recording, not before `start`."""

    @property
    def text(self) -> str:
        """What was said, in any whitespace: `clean` puts it on one line."""


class Segment(Word, Protocol):
    """What a writer asks of a segment: the same, and its words, where they have times."""

    @property
    def words(self) -> Sequence[Word]:
        """Those of the text, in order; none where they have no times."""


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


class Row(NamedTuple):
    """A segment that has a text, in milliseconds, the text on one line; and its words, where they have times."""

    start: int
    end: int
    text: str
    words: Sequence[TimedWord] = ()


def timed(transcript: Transcript) -> list[tuple[int, int, str]]:
    """The segments that have a text, as (start, end, text): in milliseconds, the text on one line.

    0 <= start < end <= the next start, and the last end is not beyond the recording, whatever the segments say. Where
    two overlap, the first ends when the second starts. A time that is not finite is taken from its neighbor.
    """
    return [row[:3] for row in _rows(transcript)]


def timed_words(transcript: Transcript) -> Iterator[tuple[int, int, str]]:
    """The same of words, and of segments without words."""
    for row in _rows(transcript):
        yield from ((word.start, word.end, word.text) for word in row.words or (row,))


def _rows(transcript: Transcript) -> list[Row]:
    found: list[tuple[int, int, str, Sequence[Word]]] = []
    last = 0
    for segment in transcript.segments:
        start = milliseconds(segment.start, last)
        last = end = milliseconds(segment.end, start)
        if text := clean(segment.text):
            found.append((start, end if end > start else start + UNTIMED, text, segment.words))
    found.sort(key=itemgetter(0))
    limit = length(transcript)
    if len(found) > limit:  # not even a millisecond for each: one for all
        start, end, _, words = found[0]
        found = [(start, end, " ".join(text for _, _, text, _ in found), words[:0])][:limit]
    starts = _apart([start for start, *_ in found], limit)
    rows, before = [], ""
    for start, following, (_, end, text, words) in zip(starts, [*starts, limit][1:], found, strict=True):
        end = min(max(end, start + 1), following)
        rows.append(Row(start, end, text, tuple(_words(words, text, start, end, before))))
        before = text
    return rows


def _words(words: Sequence[Word], text: str, start: int, end: int, before: str) -> list[TimedWord]:
    """The words of a text that is said from `start` to `end`, in the order of the text, all of which they share; none
    where there are fewer milliseconds than words. `before`: the text that comes before."""
    places, found, place = [], [], 0
    for word in words:
        if (name := clean(word.text)) and (at := text.find(name, place)) >= 0:
            place = at + len(name)
            places.append(at)
            found.append(word)
    if not found or len(found) > end - start:
        return []
    begins, ends, last = [], [], start
    for word in found:
        begins.append(max(start, milliseconds(word.start, last)))
        last = milliseconds(word.end, begins[-1])
        ends.append(last)
    begins = _apart(begins, end)
    ends = [min(max(own, begin + 1), after) for begin, own, after in zip(begins, ends, [*begins[1:], end], strict=True)]
    stretches = [text[first:last] for first, last in zip([0, *places[1:]], [*places[1:], len(text)], strict=False)]
    spaces = [bool(before) and not (UNSPACED.match(before[-1]) or UNSPACED.match(text[0]))]
    spaces += [stretch.endswith(" ") for stretch in stretches]
    return [TimedWord(*each) for each in zip(begins, ends, map(str.strip, stretches), spaces, strict=False)]


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
    """What is shown at a time: from `start` to `end`, in milliseconds; and its words, where they have times."""

    start: int
    end: int
    lines: list[str]
    words: Sequence[TimedWord] = ()


def cues(transcript: Transcript, layout: Layout = DEFAULT) -> Iterator[Cue]:
    """The subtitles of a recording: those of words as `cue_words` makes them; those of a segment without words share
    its time, as in `timed`, in proportion to their width."""
    for start, end, text, words in _shown(_rows(transcript), layout, length(transcript)):
        blocks = cut(text, layout)
        if len(blocks) > end - start:  # not even a millisecond for each: one for all
            blocks = [sum(blocks, [])]
        before = [0, *accumulate(sum(map(width, lines)) for lines in blocks)]
        starts = _apart([start + (end - start) * columns // max(1, before[-1]) for columns in before[:-1]], end)
        for begin, stop, lines in zip(starts, [*starts, end][1:], blocks, strict=True):
            yield Cue(begin, stop, lines, words if len(blocks) == 1 else ())


def _shown(rows: list[Row], layout: Layout, limit: int) -> list[Row]:
    """The rows; of those with words, which may follow each other, the cues that are made of all their words."""
    found: list[Row] = []
    starts = [*(row.start for row in rows), limit]
    place = 0
    for with_words, some in groupby(rows, lambda row: bool(row.words)):
        run = list(some)
        place += len(run)
        if not with_words:
            found += run
            continue
        words = [word for row in run for word in row.words]
        groups = readable(words, layout, found[-1].end if found else 0, starts[place])
        found += [Row(start, end, joined(words), words) for start, end, words in groups]
    return _closed(found)


def _closed(rows: list[Row]) -> list[Row]:
    """Beside what is made of words no gap is too short to be seen as one."""
    closed = list(rows)
    for number in range(len(closed) - 1):
        left, right = closed[number : number + 2]
        if right.start - left.end < GAP:
            if left.words:
                closed[number] = left._replace(end=right.start)
            elif right.words:
                closed[number + 1] = right._replace(start=left.end)
    return closed


def tagged(cue: Cue) -> Iterator[tuple[int | None, str]]:
    """The text of a cue, with its ends of lines, as (start of a word, the word and what stands between it and the
    next); without words as one, without a start."""
    text = "\n".join(cue.lines)
    if not cue.words:
        yield None, text
        return
    letters = [place for place, character in enumerate(text) if character not in " \n"]
    before = accumulate((len(word.text.replace(" ", "")) for word in cue.words), initial=0)
    places = [*(letters[count] for count, _ in zip(before, cue.words, strict=False)), len(text)]
    for word, first, last in zip(cue.words, places, places[1:], strict=False):
        yield word.start, text[first:last]


_DROPPED = regex.compile(r"(?!\s)[\p{Cc}\p{Cs}\ufeff]")  # controls, halves of UTF-16 characters, byte order marks


def clean(text: str) -> str:
    """The text on one line, without what no format can hold."""
    return " ".join(_DROPPED.sub("", text).split())
