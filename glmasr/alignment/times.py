"""The frame of each token, and the pauses of the sound -> when each word begins and ends."""

from collections.abc import Sequence

from .words import Spelled

LEAST = 0.02  # seconds that a word has at least

Span = tuple[float, float]  # seconds


def at(starts: Sequence[float], place: float) -> float:
    """The second of a place among tokens, of which `starts` has the seconds: 2.5 is the middle of the third."""
    token = min(int(place), len(starts) - 1)
    following = starts[min(token + 1, len(starts) - 1)]
    return starts[token] + (following - starts[token]) * (place - int(place))


def word_spans(words: Sequence[Spelled], starts: Sequence[float]) -> list[Span]:
    """(begin, end) of each word; `starts`: the second at which each token begins, and at which the last ends."""
    return [(at(starts, word.begins), at(starts, word.ends)) for word in words]


def in_order(spans: Sequence[Span], first: float, last: float, least: float = LEAST) -> list[Span]:
    """The spans, moved as little as it takes so that each lasts `least` seconds, none begins before the one before has
    ended, and all lie between `first` and `last`. Where there is too little room for that, all share it."""
    least = min(least, max(0.0, last - first) / max(1, len(spans)))
    found, place = [], first
    for begin, end in spans:
        begin = max(begin, place)
        place = max(end, begin + least)
        found.append((begin, place))
    place = last
    for number in reversed(range(len(found))):  # what was pushed beyond the end goes back
        begin, end = found[number]
        end = min(end, place)
        place = begin = min(begin, end - least)
        found[number] = begin, end
    return found
