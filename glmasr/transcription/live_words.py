"""Words of a text that grows: as decodings give them, and what the last one says after those that are committed."""

from collections.abc import Sequence
from dataclasses import dataclass

import regex

from .language import spaced
from .results import Part, Segment, Word

_SIGNS = regex.compile(r"[^\p{L}\p{N}\p{M}]")


@dataclass(frozen=True)
class Said:
    """A word of an answer, or several that share tokens: its text, with the space before it, and its ids."""

    text: str
    words: tuple[Word, ...]
    ids: tuple[int, ...]

    @property
    def key(self) -> str:
        """What two answers agree on: letters and digits."""
        return key(self.text)

    @property
    def probability(self) -> float:
        """Of the least likely word."""
        return min(word.probability for word in self.words)


def key(text: str) -> str:
    """A text as it is compared: its letters and digits, in lower case."""
    return str(_SIGNS.sub("", text)).casefold()


def remaining(committed: Sequence[Said], part: Part) -> tuple[list[Word], str]:
    """What a part says after the words that are committed, and its text: its beginning that is most like them is left
    out, the number of changes counts, and among equals the time."""
    texts = spaced([segment.text for segment in part.segments])
    pieces = [piece for segment, text in zip(part.segments, texts, strict=True) for piece in _pieces(segment, text)]
    mine = [key(word.text) for said in committed for word in said.words]
    if not mine:
        return [word for word, _ in pieces], "".join(text for _, text in pieces).lstrip()
    costs = list(range(len(pieces) + 1))  # of changing nothing into the first words of the part
    for row, wanted in enumerate(mine, 1):
        above, costs = costs, [row]
        for column, (word, _) in enumerate(pieces, 1):
            change = above[column - 1] + (key(word.text) != wanted)
            costs.append(min(change, above[column] + 1, costs[-1] + 1))
    end = committed[-1].words[-1].end
    ends = [word.end for word, _ in pieces]
    best = min(range(len(costs)), key=lambda count: (costs[count], abs((ends[count - 1] if count else 0.0) - end)))
    return [word for word, _ in pieces[best:]], "".join(text for _, text in pieces[best:])


def _pieces(segment: Segment, text: str) -> list[tuple[Word, str]]:
    """The words of a segment, each with its text and the space before it, as in `text`."""
    found, place = [], 0
    for word in segment.words:
        at = text.find(word.text, place)
        last = at + len(word.text) if at >= 0 else place
        found.append((word, text[place:last] if at >= 0 else f" {word.text}"))
        place = last
    return found
