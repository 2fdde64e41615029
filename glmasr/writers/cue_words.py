"""Words with times -> cues that are pleasant to read, as the cheapest way to cut them.

    words -> groups, each of which becomes a cue (`grouped`) -> from when to when it is shown (`shown`)

The segments of a recognizer end where a window does, or where a model wrote a time. With the times of words that no
longer matters: all that is said is one text, whose cues end with a sentence or a clause, or where the speaker pauses,
and last long enough to be read. As with lines (`line_breaks`), the borders are found together: the cheapest way through
all words, where each cue costs what a reader would dislike about it.

What can't be had everywhere, such as a second for an answer of one word amid fast speech, costs a lot and is not
forbidden. What is forbidden: more than a layout holds, more than SPOKEN from the first word to the last, and a pause of
APART or longer within a cue.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import regex

from .line_breaks import Layout, ends_clause, ends_sentence, reading_time, width

# Milliseconds.
LEAST, MOST = 1000, 7000  # that a cue is shown
GAP = 100  # shorter ones between cues flicker, and are closed
SPOKEN = MOST - 2 * GAP  # so that closing them makes no cue too long
APART = 2000  # a pause that no cue goes on across
LEAD = 500  # that a cue may come before its first word
TAIL = 1000  # of a last word that counts for SPOKEN: times of words before a pause may reach far into it

# The price of a cue, by itself; for ending it after a word that binds, between words, before one that binds, and after
# a clause (a pause makes all that cheaper); for one that is too short; too fast to read, at all and for each time that
# it lacks; or a single word of a sentence; of a second of pause within it, squared; and of the end of a sentence within
# it. Set by eye, and by what benchmarks/subtitles.py counts.
CUE, BOUND, WORD, PHRASE, CLAUSE = 1.0, 9.0, 6.0, 4.0, 1.0
SHORT, HURRY, FAST, ORPHAN, PAUSE, PERIOD = 20.0, 2.0, 20.0, 12.0, 2.0, 1.5
LONG_PAUSE = 800  # ms, from which on a border costs nothing


# English words that begin a phrase: a cue had better end before them than after.
_BINDING = regex.compile(
    r"(a|an|the|of|to|in|on|at|by|for|with|from|into|and|or|but|that|which|who|if|when|because|as|than)$", regex.I
)


class TimedWord(NamedTuple):
    """A word with its punctuation, from `start` to `end` in milliseconds; `space`: one stands before it."""

    start: int
    end: int
    text: str
    space: bool


class Group(NamedTuple):
    """The words of a cue, which is shown from `start` to `end`, in milliseconds."""

    start: int
    end: int
    words: Sequence[TimedWord]


def joined(words: Sequence[TimedWord]) -> str:
    """The text of some words."""
    return "".join(f"{' ' * (word.space and number > 0)}{word.text}" for number, word in enumerate(words))


def readable(words: Sequence[TimedWord], layout: Layout, before: int, after: int) -> list[Group]:
    """Words in order, none overlapping -> cues that don't overlap either, between `before` and `after`."""
    if layout.words_per_cue is not None:
        return [Group(some[0].start, some[-1].end, some) for some in counted(words, layout, layout.words_per_cue)]
    leads = _leads(words, before)
    return shown(grouped(words, layout, leads, after), leads, after)


def counted(words: Sequence[TimedWord], layout: Layout, count: int) -> list[list[TimedWord]]:
    """`count` words each; fewer before a long pause, and where the layout holds no more."""
    groups: list[list[TimedWord]] = []
    for word in words:
        group = groups[-1] if groups else []
        near = group and word.start - group[-1].end < APART
        if near and len(group) < count and _lines([*group, word], layout.max_line_width) <= layout.max_line_count:
            group.append(word)
        else:
            groups.append([word])
    return groups


def _lines(words: Sequence[TimedWord], most: int) -> int:
    """How many lines of `most` columns it takes, at least."""
    lines, used = 1, 0
    for word in words:
        columns = width(word.text)
        used += columns + word.space if used else columns
        if used > most:
            lines, used = lines + 1, columns
    return lines


def _leads(words: Sequence[TimedWord], before: int) -> list[int]:
    """How much earlier than each word a cue may begin: half of the pause before it is left to the cue before."""
    ends = [before, *(word.end for word in words)]
    return [min(LEAD, (word.start - end) // 2) for word, end in zip(words, ends, strict=False)]


def grouped(words: Sequence[TimedWord], layout: Layout, leads: Sequence[int], after: int) -> list[Sequence[TimedWord]]:
    """The cheapest way to make cues of the words."""
    count = len(words)
    columns = [width(word.text) for word in words]
    times = [0.0, *accumulate(reading_time(word.text) + reading_time(" ") * word.space for word in words)]
    pauses = [0, *(max(0, right.start - left.end) for left, right in pairwise(words))]
    marks = [ends_sentence(word.text) for word in words]
    # Up to each word, what it costs to go on at it with the cue of the one before.
    costs = (
        PAUSE * (min(pause, APART) / 1000) ** 2 + PERIOD * end
        for pause, end in zip(pauses, [False, *marks[:-1]], strict=True)
    )
    going_on = [*accumulate(costs)]
    starts = [*(word.start for word in words), after]
    borders = [0.0, *map(_border, words, words[1:]), 0.0]
    single = [end and before for end, before in zip(marks, [True, *marks[:-1]], strict=True)]  # a sentence by itself
    ways = [(0.0, 0)]  # up to each word: the least price, and where the last cue of that way begins
    for last in range(1, count + 1):
        lines, used = 1, 0
        final = words[last - 1]
        spoken = final.start + min(TAIL, final.end - final.start)
        best = (float("inf"), last - 1)
        for first in range(last - 1, -1, -1):
            following = first + 1
            used += columns[first] + (words[following].space if following < last else 0)
            if used > layout.max_line_width:  # filled from the end, which takes no more lines than from the start
                lines, used = lines + 1, columns[first]
            if following < last and (
                lines > layout.max_line_count
                or used > layout.max_line_width
                or spoken - words[first].start > SPOKEN
                or pauses[following] >= APART
            ):
                break
            room = starts[last] - words[first].start + leads[first]
            need = times[last] - times[first]
            price = CUE + borders[last] + going_on[last - 1] - going_on[first]
            if room < LEAST:
                price += SHORT * (2 - room / LEAST)
            if need > room:
                price += HURRY + FAST * (need / max(1, room) - 1)
            if following == last:
                price += ORPHAN / (4 if single[first] else 1)
            if ways[first][0] + price < best[0]:
                best = ways[first][0] + price, first
        ways.append(best)
    groups: list[Sequence[TimedWord]] = []
    last = count
    while last:
        first = ways[last][1]
        groups.append(words[first:last])
        last = first
    return groups[::-1]


def _border(word: TimedWord, following: TimedWord) -> float:
    """The price of ending a cue between two words."""
    if ends_sentence(word.text):
        return 0.0
    price = CLAUSE
    if not ends_clause(word.text):
        price = BOUND if _BINDING.match(word.text) else PHRASE if _BINDING.match(following.text) else WORD
    return price * max(0.0, 1 - (following.start - word.end) / LONG_PAUSE)


def shown(groups: Sequence[Sequence[TimedWord]], leads: Sequence[int], after: int) -> list[Group]:
    """When each group is shown: from its first word to its last, longer where it can't be read in that time. It then
    stays into the pause that follows, and if that isn't enough, comes a little earlier, but leaves the cue before its
    second. From the last to the first, so that each takes of a pause before it only what the pause after it didn't
    give."""
    found: list[Group] = []
    number = len(leads)
    for words, before in zip(reversed(groups), [*reversed(groups[:-1]), []], strict=True):
        number -= len(words)
        start, end = words[0].start, min(words[-1].end, words[0].start + SPOKEN)
        need = min(SPOKEN, max(LEAST, round(reading_time(joined(words)))))
        end = max(end, min(start + need, after))
        room = max(0, start - max(before[-1].end, before[0].start + LEAST)) if before else start
        start -= min(max(0, need - (end - start)), leads[number], room)
        found.append(Group(start, end, words))
        after = start
    return found[::-1]
