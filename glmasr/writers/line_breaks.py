"""Text -> lines and cues, as the cheapest way to cut it.

Lines and cues are found together, in the manner of Knuth and Plass ("Breaking paragraphs into lines", 1981): filling
line after line would leave a single word or character in the last one. A width is counted in columns: Chinese
characters take two. Chinese has no spaces, so a line may end after any of its characters, but punctuation is not torn
from the word that it belongs to.
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import regex

from ..errors import OptionError


@dataclass(frozen=True)
class Layout:
    """The shape of subtitles: at most `max_line_count` lines at a time, of at most `max_line_width` columns. A Chinese
    character takes two columns. Where words have times, `words_per_cue` makes a cue of so many of them; None: cues that
    are pleasant to read. Raises OptionError for a value out of range."""

    max_line_width: int = 42
    max_line_count: int = 2
    words_per_cue: int | None = None

    def __post_init__(self) -> None:
        # Two columns: a Chinese character.
        for name, least in (("max_line_width", 2), ("max_line_count", 1), ("words_per_cue", 1)):
            value = getattr(self, name)
            if name == "words_per_cue" and value is None:
                continue
            if not isinstance(value, int) or value < least:
                raise OptionError(f"{name} is {value!r}, expected an integer of at least {least}")


DEFAULT = Layout()


def width(text: str) -> int:
    """Columns that a text takes: 2 for wide East Asian characters and emoji, 0 for marks on top of others, else 1."""
    return sum(map(_columns, regex.findall(r"\X", text)))


@lru_cache(maxsize=10_000)
def _columns(cluster: str) -> int:
    """`width` of what a reader sees as one character, such as a letter with its accents."""
    wide = [
        unicodedata.east_asian_width(character) in "WF"
        for character in cluster
        if unicodedata.category(character) not in ("Mn", "Me", "Cf")
    ]
    return min(2, len(wide) + sum(wide))


def reading_time(text: str) -> float:
    """Milliseconds that it takes to read a text with ease."""
    columns = list(map(_columns, regex.findall(r"\X", text)))
    return 1000 * (columns.count(1) / SPEED + columns.count(2) / WIDE_SPEED)


def ends_sentence(text: str) -> bool:
    """Whether a sentence may end with this text."""
    return _last_mark(text) in _SENTENCE_MARKS


def ends_clause(text: str) -> bool:
    """Whether a clause or a sentence ends with this text."""
    return _last_mark(text) in _CLAUSE_MARKS | _SENTENCE_MARKS


def _last_mark(text: str) -> str:
    """The last character, that of what stands in quotation marks or brackets included."""
    for character in reversed(text):
        if not _ENDING.match(character):
            return character
    return ""


# The price of ending a line: after a sentence, after a clause, between words, and between two Chinese characters, which
# may be one word. Ending a cue costs twice as much, and CUE for the change of the picture. A line that leaves the share
# s of its width empty costs s * s. Set by eye, on subtitles of talks.
SENTENCE, CLAUSE, WORD, ANYWHERE = 0.0, 0.25, 0.5, 1.0
CUE = 1.0
# Only within what is longer than a line: before punctuation after a space, beside a mark, within a word, before
# punctuation.
BARE, MARK, LETTERS, TORN = 10.0, 20.0, 100.0, 1000.0

_SENTENCE_MARKS, _CLAUSE_MARKS = set("。｡．！？.!?"), set("，、､；：,;:…—–")
_OPENING = regex.compile(r"[\p{Ps}\p{Pi}]")
_ENDING = regex.compile(r"[\p{Pe}\p{Pf}\"'＂＇]")  # what may stand between a sentence's mark and its end
_CLOSING = regex.compile(r"[\p{Pe}\p{Pf}。｡．！？.!?，、､；：,;:…·・～％%‰℃]")
_QUOTE = regex.compile(r"[\"'＂＇]")  # opening or closing, it can't be known: stays with both neighbors
_WORD = regex.compile(r"[\p{Latin}\p{Nd}]")
UNSPACED = regex.compile(  # of scripts that are written without spaces
    r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}"
    r"\p{Block=CJK_Symbols_and_Punctuation}，。！？；：]"
)
SPEED, WIDE_SPEED = 17, 9  # characters a second that are easily read: of Latin letters, and of Chinese

_Step = tuple[int, int]
# At each break, by the number of lines of the cue so far: the cost, and the step before, which the first one lacks.
_Ways = dict[int, tuple[float, _Step | None]]


class Break(NamedTuple):
    """A place to cut: the line is clusters[:stop], the next one clusters[start:]; a space between them belongs to
    neither."""

    stop: int
    start: int
    price: float


@lru_cache(maxsize=20_000)  # a live session writes its files after each segment: those before are cut already
def cut(text: str, layout: Layout) -> list[list[str]]:
    """A clean text -> its cues, each a list of lines. What fits into one cue becomes one. Shared by all callers: do not
    change in place."""
    clusters = regex.findall(r"\X", text)
    before = [0, *accumulate(map(_columns, clusters))]  # columns of all clusters before this one
    if before[-1] <= layout.max_line_width:
        return [[text]]
    breaks = _breaks(clusters, before, layout.max_line_width)
    path = _cheapest(breaks, before, layout, several=False) or _cheapest(breaks, before, layout, several=True)
    blocks: list[list[str]] = []
    for (left, lines), (right, _) in pairwise(path):
        if lines == 0:
            blocks.append([])
        if left < right:
            blocks[-1].append("".join(clusters[breaks[left].start : breaks[right].stop]))
    return blocks


def _cheapest(breaks: list[Break], before: list[int], layout: Layout, several: bool) -> list[_Step]:
    """The cheapest way through the text: steps (index of a break, lines of the cue so far), where 0 lines begin a cue.
    [] if there is no way; but with `several` cues there is."""
    most, count = layout.max_line_width, layout.max_line_count
    if not several and before[-1] >= (most + 1) * count:  # with the spaces between the lines
        return []
    ways: list[_Ways] = [{0: (0.0, None)}]
    for right in range(1, len(breaks)):
        here: _Ways = {}
        end = before[breaks[right].stop]
        for left in reversed(range(right)):
            _, start, price = breaks[left]
            empty = 1 - (end - before[start]) / most
            if empty < 0:
                break
            for lines, (cost, _) in ways[left].items():
                if lines < count:
                    cost += empty * empty + (price if lines else 0)
                    if lines + 1 not in here or cost < here[lines + 1][0]:
                        here[lines + 1] = cost, (left, lines)
        if several and here:
            lines = _cheapest_lines(here)
            here[0] = here[lines][0] + 2 * breaks[right].price + CUE, (right, lines)
        ways.append(here)
    if not ways[-1]:
        return []
    step: _Step | None = (len(breaks) - 1, _cheapest_lines(ways[-1]))
    path = []
    while step is not None:
        path.append(step)
        step = ways[step[0]][step[1]][1]
    return path[::-1]


def _cheapest_lines(ways: _Ways) -> int:
    return min(ways, key=lambda lines: ways[lines][0])


def _breaks(clusters: list[str], before: list[int], most: int) -> list[Break]:
    """The places where the text may be cut, its start and its end among them. Those where it should not be are added
    where it must be: in a stretch that is wider than `most`."""
    breaks, spare = [Break(0, 0, 0.0)], []
    for place in [*_places(clusters), Break(len(clusters), len(clusters), 0.0)]:
        if place.price > ANYWHERE:
            spare.append(place)
            continue
        if before[place.stop] - before[breaks[-1].start] > most:
            breaks += spare
        breaks.append(place)
        spare = []
    return breaks


def _places(clusters: list[str]) -> Iterator[Break]:
    """All places between two characters, with their prices."""
    pause = None
    for start in range(1, len(clusters)):
        left, right = clusters[start - 1], clusters[start]
        if left in _SENTENCE_MARKS:
            pause = SENTENCE
        elif left in _CLAUSE_MARKS:
            pause = CLAUSE
        elif left != " " and not _ENDING.match(left):
            pause = None
        if right == " ":
            continue
        spaced = left == " "
        stop = start - 1 if spaced else start
        left = clusters[stop - 1]
        divisible = _divisible(left), _divisible(right)
        if _CLOSING.match(right) or _OPENING.match(left):
            price = BARE if spaced else TORN
        elif not spaced and (_QUOTE.match(left) or _QUOTE.match(right)):
            price = MARK
        elif not spaced and not any(divisible):
            price = LETTERS if left.isalnum() and right.isalnum() else MARK
        elif pause is not None:
            price = pause
        elif spaced:
            price = CLAUSE if all(divisible) else WORD  # a space in Chinese text is a pause
        else:
            price = ANYWHERE if all(divisible) else WORD
        yield Break(stop, start, price)


def _divisible(cluster: str) -> bool:
    """Of a script without spaces, so that a line may end before and after it. Wide forms of Latin letters are not."""
    return _columns(cluster) == 2 and not _WORD.match(cluster)
