"""Ids of a text -> its words, and which tokens each is made of.

What a word is: letters and digits between spaces; of scripts that are written without spaces, such as Chinese, a
character. Punctuation goes with its word: an opening bracket or quotation mark with the one after it, everything else
with the one before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import regex

NO_CHARACTER = "\ufffd"  # what a decoder makes of bytes that are no UTF-8, such as half a character

_SIGNS = "ー" + "".join(
    rf"\p{{Script={name}}}" for name in ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar")
)
_SPOKEN = r"\p{L}\p{N}\p{M}"
# A character of a script without spaces, with its marks; or letters and digits, with what stands between them.
_WORD = rf"[{_SIGNS}][\p{{M}}ー々ゝゞ]*|(?![{_SIGNS}])[{_SPOKEN}](?:(?!\.\.)[^\s{_SIGNS}—–…])*(?<=[{_SPOKEN}])"
_UNITS = regex.compile(rf"(?P<word>{_WORD})|(?P<marks>[^\s{_SPOKEN}]+)")
_OPENING = regex.compile(r"[\p{Ps}\p{Pi}]*$")
_LETTER = regex.compile(f"[{_SPOKEN}]")


class Decoder(Protocol):
    """`tokenizer.IncrementalDecoder`."""

    def feed(self, number: int) -> str:
        """The text that is certain after this id."""

    def finish(self) -> str:
        """What is left."""


@dataclass(frozen=True)
class Spelled:
    """A word of a text: the characters `first` up to `last`, with its punctuation, and where in the text's tokens what
    is spoken of it begins and ends. A token that spells several characters has each at its share: 2.5 is the middle of
    the third token."""

    first: int
    last: int
    begins: float
    ends: float


def spans(text: str) -> list[tuple[int, int]]:
    """(first character, the one after the last) of each word, with its punctuation; what is between them is space."""
    found: list[tuple[int, int]] = []
    waiting: int | None = None  # where punctuation begins that goes with the next word
    for unit in _UNITS.finditer(text):
        first, last = unit.span()
        if unit["word"]:
            found.append((first if waiting is None else waiting, last))
            waiting = None
            continue
        follows = last < len(text) and not text[last].isspace()
        apart = first == 0 or text[first - 1].isspace()
        opening = _OPENING.search(text, first, last)
        goes_on = first if apart and follows or not found else (opening.start() if opening and follows else last)
        if goes_on > first:
            found[-1] = (found[-1][0], goes_on)
        if goes_on < last:
            waiting = goes_on if waiting is None else waiting
    if waiting is not None and found:
        found[-1] = (found[-1][0], len(text.rstrip()))
    return found


def characters(ids: Sequence[int], decoder: Decoder) -> tuple[str, list[float]]:
    """The text of ids, and for each of its characters, and its end, how many tokens come before: a token that spells
    several has each at its share; one character of several tokens begins with the first. U+FFFD is left out, as it is
    of the text of a segment."""
    text, places, start = "", [], 0
    for end, number in enumerate(ids, 1):
        piece = decoder.feed(number) + (decoder.finish() if end == len(ids) else "")
        if piece:  # else half a character
            before = [0, *accumulate(not sign.isspace() for sign in piece)]  # a space takes no time
            shares = [start + (end - start) * count / max(1, before[-1]) for count in before[:-1]]
            places += [share for sign, share in zip(piece, shares, strict=True) if sign != NO_CHARACTER]
            text, start = text + piece.replace(NO_CHARACTER, ""), end
    return text, [*places, float(len(ids))]


def spell(ids: Sequence[int], decoder: Decoder) -> tuple[str, list[Spelled]]:
    """The text of ids and its words."""
    text, places = characters(ids, decoder)
    found = []
    for first, last in spans(text):
        spoken = [place for place in range(first, last) if _LETTER.match(text[place])]
        found.append(Spelled(first, last, places[spoken[0]], places[spoken[-1] + 1]))
    return text, found
