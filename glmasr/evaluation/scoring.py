"""Two texts -> what counts of them -> their alignment -> errors.

    Chinese     characters, after NFKC, digits as hanzi, in Simplified, without punctuation. A word of it is a Han
                character, or a run of other letters, so "打开 iPhone" has three words and eight characters
    English     words, after Whisper's English normalizer, and the characters of these words with the spaces between
    others      the same after Whisper's basic normalizer; ja, th, lo and my are split into characters, as Whisper does

Unusual: nothing is computed here. The normalizers are those of the package whisper-normalizer, the alignment is
jiwer's, both of the extra [eval]; so the numbers are those that others get.
"""

import importlib.util
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import regex

from ..errors import GlmAsrError, OptionError
from ..transcription.chinese_script import converter

CHINESE = ("zh", "yue")
SPLIT = ("ja", "th", "lo", "my")  # written without spaces between words
DIGITS = str.maketrans("0123456789", "零一二三四五六七八九")
MOST_WORK = 10**8  # opening brackets times characters of a text
PACKAGES = {"jiwer": "jiwer", "whisper_normalizer": "whisper-normalizer", "opencc": "OpenCC"}

_CHINESE_WORD = regex.compile(r"\p{Script=Han}|(?:(?!\p{Script=Han})[\p{L}\p{N}])+")
_OPENING = regex.compile(r"[<\[(]")

Pair = tuple[str | None, str | None]  # said, found: equal, or one for the other; None: left out, or put in


class ScoringError(GlmAsrError):
    """A text can't be scored."""


def check_extra() -> None:
    """Raises OptionError unless the packages of the extra [eval] are there."""
    for module, name in PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            raise OptionError(
                f"an evaluation needs the package {name}, which is not installed; get it with the extra [eval]:  "
                "pip install -c constraints.txt '.[eval]'"
            )


def by_characters(language: str) -> bool:
    """Whether the errors of a language are counted by characters; else by words."""
    return language in CHINESE + SPLIT


# ---- what counts of a text -------------------------------------------------------------------------------------------


def words(text: str, language: str) -> list[str]:
    """Raises ScoringError."""
    return _CHINESE_WORD.findall(_chinese(text)) if language in CHINESE else _normalized(text, language).split()


def characters(text: str, language: str) -> list[str]:
    """Raises ScoringError."""
    if language in CHINESE:
        return [character for character in _chinese(text) if unicodedata.category(character)[0] in "LN"]
    found = words(text, language)
    return found if language in SPLIT else list(" ".join(found))


def units(text: str, language: str) -> list[str]:
    """What is counted of a language: `characters`, or `words`. Raises ScoringError."""
    return characters(text, language) if by_characters(language) else words(text, language)


def _chinese(text: str) -> str:
    return converter("simplified")(unicodedata.normalize("NFKC", text).translate(DIGITS)).lower()


def _normalized(text: str, language: str) -> str:
    # TRAP: the normalizers look for the end of each bracket in all of the text: minutes where there are thousands.
    if len(_OPENING.findall(text)) * len(text) > MOST_WORK:
        raise ScoringError(f"the text {text!r:.40} has too many brackets to be normalized; expected words")
    try:
        return str(_normalizer(language)(text))
    except (ValueError, AssertionError, ArithmeticError):  # such as a number of 5,000 digits
        raise ScoringError(f"the text {text!r:.40} can't be normalized: Whisper's normalizer fails on it") from None


@cache
def _normalizer(language: str) -> Any:
    if language == "en":
        from whisper_normalizer.english import EnglishTextNormalizer

        return EnglishTextNormalizer()
    from whisper_normalizer.basic import BasicTextNormalizer

    return BasicTextNormalizer(split_letters=language in SPLIT)


# ---- alignment, errors -----------------------------------------------------------------------------------------------


def align(said: list[str], found: list[str]) -> list[Pair]:
    """The alignment with the fewest errors, as jiwer has it: each unit of both texts once, in order.

    >>> align(["the", "cat", "sat"], ["a", "cat", "sat", "down"])
    [('the', 'a'), ('cat', 'cat'), ('sat', 'sat'), (None, 'down')]
    """
    import jiwer

    # They are units already, spaces between words included, so jiwer has nothing to split.
    measured = jiwer.process_words(
        [""],
        [""],
        reference_transform=lambda _: [said],  # type: ignore[arg-type]
        hypothesis_transform=lambda _: [found],  # type: ignore[arg-type]
    )
    pairs: list[Pair] = []
    for chunk in measured.alignments[0]:
        here = said[chunk.ref_start_idx : chunk.ref_end_idx]
        there = found[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "delete":
            pairs += [(one, None) for one in here]
        elif chunk.type == "insert":
            pairs += [(None, other) for other in there]
        else:
            pairs += zip(here, there, strict=True)
    return pairs


@dataclass(frozen=True)
class Errors:
    """Of one recording, or the sum over some; `count` are the words (Chinese: characters) said."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    count: int = 0

    @classmethod
    def of(cls, found: str, said: str, language: str) -> "Errors":
        """Those of the `units` of two texts. Raises ScoringError."""
        return cls.among(align(units(said, language), units(found, language)))

    @classmethod
    def among(cls, pairs: Iterable[Pair]) -> "Errors":
        """Those of an alignment."""
        substitutions = deletions = insertions = count = 0
        for said, found in pairs:
            count += said is not None
            deletions += found is None
            insertions += said is None
            substitutions += said is not None and found is not None and said != found
        return cls(substitutions, deletions, insertions, count)

    def __add__(self, other: "Errors") -> "Errors":
        return Errors(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.count + other.count,
        )

    @property
    def wrong(self) -> int:
        """All of them."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float | None:
        """Errors for each unit that was said; None where nothing was, and so no rate is."""
        return self.wrong / self.count if self.count else None

    @property
    def percent(self) -> float:
        """The same in per cent. Raises ZeroDivisionError where nothing was said."""
        return 100 * self.wrong / self.count


@dataclass(frozen=True)
class Score:
    """Of a recording; `pairs` is the alignment of its `units`."""

    words: Errors
    characters: Errors
    pairs: tuple[Pair, ...]

    @classmethod
    def of(cls, found: str, said: str, language: str) -> "Score":
        """Raises ScoringError."""
        by_word = align(words(said, language), words(found, language))
        by_character = align(characters(said, language), characters(found, language))
        pairs = by_character if by_characters(language) else by_word
        return cls(Errors.among(by_word), Errors.among(by_character), tuple(pairs))
