"""Words of Chinese as a dictionary has them: characters that are one word there become one, with the time of all.

Where a word ends isn't written in Chinese, so it is a question of the dictionary. This one is that of the package
rjieba, which knows Simplified characters; a text in Traditional ones is cut as its Simplified twin is.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from statistics import fmean

import regex

from ..errors import OptionError
from . import chinese_script
from .results import Segment, Word

CHINESE = ("", "zh", "yue")  # languages of a segment; Japanese has the same characters, but other words
_ONE = regex.compile(r"\p{P}*\p{Script=Han}\p{P}*")


def joiner(kind: str) -> Callable[[Segment], Segment]:
    """A function that joins the words of a segment, "dictionary", or leaves them as they are, "character". Raises
    OptionError.
    """
    if kind == "character":
        return lambda segment: segment
    try:
        import rjieba
    except ImportError:
        raise OptionError(
            f"zh_words {kind!r} needs the package rjieba, which is not installed; get it with the extra [zh]:  "
            "pip install -c constraints.txt '.[zh]'"
        ) from None
    simplify = chinese_script.converter("simplified")

    def cut(text: str) -> list[str]:
        simple = simplify(text)
        return list(rjieba.cut(simple if len(simple) == len(text) else text, hmm=False))  # hmm: words of no dictionary

    return lambda segment: joined(segment, cut)


def joined(segment: Segment, cut: Callable[[str], list[str]]) -> Segment:
    """The segment, of whose words those of one Chinese character are joined where `cut`, which divides a text, doesn't
    divide it. Whatever stands between two characters, a space or punctuation, keeps them apart."""
    if segment.language not in CHINESE:
        return segment
    borders, place = set(accumulate(map(len, cut(segment.text)))), 0
    found: list[list[Word]] = []
    for word in segment.words:
        at = segment.text.find(word.text, place)
        goes_on = found and at == place and at not in borders
        place = at + len(word.text) if at >= 0 else place
        if goes_on and all(map(_ONE.fullmatch, (found[-1][-1].text, word.text))):
            found[-1].append(word)
        else:
            found.append([word])
    return replace(segment, words=tuple(_one(words) for words in found))


def _one(words: list[Word]) -> Word:
    if len(words) == 1:
        return words[0]
    text, probability = "".join(word.text for word in words), fmean(word.probability for word in words)
    return Word(text, words[0].start, words[-1].end, round(probability, 4))
