"""Normalizers and pre-tokenizers: the steps that a `tokenizer.json` asks for before the merging, each a function of a
text.

Unusual: the regular expressions are written for Oniguruma. `regex` agrees with it on the constructs in `_SAME`; any
other is refused by name. Letters newer than the Unicode version of the installed `regex` package count as symbols; no
published vocabulary has them.
"""

import unicodedata
from collections.abc import Callable
from functools import partial
from time import process_time as _now  # as the timeout of `regex`
from typing import Any

import regex

from ..errors import TokenizerError
from .json_file import Json
from .vocabulary import get, to_alphabet

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
MOST_STEPS = 20  # of a pre-tokenizer, as of a normalizer
LONGEST_PATTERN = 5000  # characters of a regular expression; published ones have up to 500
MOST_EXPANDED = 200_000  # characters, all its {n} written out, as `regex` does: all multiplied with its length
MATCHING = (
    1.0  # seconds for a text, and as much for each 100,000 characters; a hostile expression takes years for a line
)

Normalizer = Callable[[str], str]
PreTokenizer = Callable[[str, float], list[str]]  # (text, time until which it may match) -> pieces


def pre_tokenize(steps: list[PreTokenizer], text: str) -> list[str]:
    """A text -> its pieces, in the byte alphabet. Raises TokenizerError where the expressions take too long."""
    pieces, until = [text], _now() + MATCHING * (1 + len(text) / 100_000)
    for step in steps:
        pieces = [part for piece in pieces for part in step(piece, until) if part]
    return pieces


_NORMAL_FORMS: dict[str, Normalizer] = {
    "NFC": partial(unicodedata.normalize, "NFC"),
    "NFD": partial(unicodedata.normalize, "NFD"),
    "NFKC": partial(unicodedata.normalize, "NFKC"),
    "NFKD": partial(unicodedata.normalize, "NFKD"),
}


# -- Steps -------------------------------------------------------------------------------------------------------------


def split(text: str, until: float, pattern: regex.Pattern, behavior: str, invert: bool) -> list[str]:
    """The pieces of a text around the matches of a pattern; `behavior` says where a match goes.

    `until` is a time as `_now` tells it.
    """
    spans, end = [], 0  # (start, end, is a delimiter)
    try:
        for match in pattern.finditer(text, timeout=max(0.0, until - _now())):
            begin, stop = match.span()
            if begin > end:
                spans.append((end, begin, invert))
            spans.append((begin, stop, not invert))
            end = stop
    except TimeoutError:
        raise TokenizerError(
            f"the regular expression {pattern.pattern!r:.60} takes more than {MATCHING:g} s for a text; use the "
            "tokenizer.json of the published model"
        ) from None
    if end < len(text):
        spans.append((end, len(text), invert))
    if behavior == "Isolated":
        return [text[start:end] for start, end, _ in spans]
    if behavior == "Removed":
        return [text[start:end] for start, end, delimiter in spans if not delimiter]
    backward = behavior == "MergedWithNext"  # the same rule, read from the end
    pieces: list[tuple[int, int]] = []
    before = False
    for start, end, delimiter in reversed(spans) if backward else spans:
        join = delimiter == before if behavior == "Contiguous" else delimiter and not before
        if join and pieces:
            pieces[-1] = (start, pieces[-1][1]) if backward else (pieces[-1][0], end)
        else:
            pieces.append((start, end))
        before = delimiter
    return [text[start:end] for start, end in (reversed(pieces) if backward else pieces)]


def byte_level(text: str, until: float, pattern: regex.Pattern | None, prefix_space: bool) -> list[str]:
    """The pieces of a text in the byte alphabet."""
    if prefix_space and not text.startswith(" "):
        text = " " + text
    pieces = split(text, until, pattern, "Isolated", False) if pattern else [text]
    return [to_alphabet(piece) for piece in pieces]


# -- Reading -----------------------------------------------------------------------------------------------------------


def read_pre_tokenizers(part: Any) -> list[PreTokenizer]:
    """The steps that a `pre_tokenizer` stands for, in order. Raises TokenizerError."""
    steps = _pre_tokenizers(part, "pre_tokenizer")
    if sum(step.func is byte_level for step in steps) != 1:
        raise TokenizerError(
            "pre_tokenizer must have exactly one ByteLevel step; this tokenizer is for byte-level vocabularies"
        )
    return list(steps)


def _pre_tokenizers(part: Any, where: str) -> "list[partial[list[str]]]":
    if part is None:
        return []
    kind = get(part, "type", str, where)
    if kind == "Sequence":
        parts = _steps(part, "pretokenizers", where)
        return [s for i, inner in enumerate(parts) for s in _pre_tokenizers(inner, f"{where}.pretokenizers[{i}]")]
    if kind == "ByteLevel":
        pattern = regex.compile(GPT2_PATTERN) if get(part, "use_regex", bool, where, True) else None
        prefix_space = get(part, "add_prefix_space", bool, where, True)
        return [partial(byte_level, pattern=pattern, prefix_space=prefix_space)]
    if kind == "Digits":
        behavior = "Isolated" if get(part, "individual_digits", bool, where, False) else "Contiguous"
        return [partial(split, pattern=regex.compile(r"\p{N}"), behavior=behavior, invert=False)]
    if kind == "Split":
        behavior = get(part, "behavior", str, where)
        if behavior not in ("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
            raise TokenizerError(f"{where}.behavior is {behavior!r}, which this tokenizer does not support")
        invert = get(part, "invert", bool, where, False)
        return [partial(split, pattern=_pattern(part, where), behavior=behavior, invert=invert)]
    raise TokenizerError(
        f"{where} {kind!r} is not implemented; this tokenizer supports ByteLevel, Split, Digits and Sequence"
    )


def read_normalizers(part: Any, where: str = "normalizer") -> list[Normalizer]:
    """The steps that a `normalizer` stands for, in order. Raises TokenizerError."""
    if part is None:
        return []
    kind = get(part, "type", str, where)
    if kind in _NORMAL_FORMS:
        return [_NORMAL_FORMS[kind]]
    if kind == "Sequence":
        parts = _steps(part, "normalizers", where)
        return [s for i, inner in enumerate(parts) for s in read_normalizers(inner, f"{where}.normalizers[{i}]")]
    raise TokenizerError(
        f"{where} {kind!r} is not implemented; this tokenizer supports NFC, NFD, NFKC, NFKD and Sequence"
    )


def _steps(part: Json, key: str, where: str) -> list[Any]:
    steps: list[Any] = get(part, key, list, where)
    if len(steps) > MOST_STEPS:
        raise TokenizerError(f"{where}.{key} are {len(steps)} steps; expected at most {MOST_STEPS}")
    return steps


def _pattern(part: Json, where: str) -> regex.Pattern:
    pattern: Json = get(part, "pattern", dict, where)
    expression, text = pattern.get("Regex"), pattern.get("String")
    if len(pattern) == 1 and isinstance(expression, str) and expression:
        return compile_pattern(expression)
    if len(pattern) == 1 and isinstance(text, str) and 0 < len(text) <= LONGEST_PATTERN:
        return regex.compile(regex.escape(text, special_only=True))
    raise TokenizerError(
        f'{where}.pattern is {pattern!r:.200}; expected {{"Regex": ...}} or {{"String": ...}} of at most '
        f"{LONGEST_PATTERN} characters"
    )


# -- Regular expressions -----------------------------------------------------------------------------------------------

_SAME = regex.compile(
    r"""
    # English contractions only: case folding differs
    \(\?i: (?: '? (?: s | t | re | ve | m | ll | d | \[sdmt\] ) (?: \| (?!\)) | (?=\)) ) )+ \)
    # groups, alternatives
  | \(\?(?: [:=!>] | <[=!] ) | \((?!\?) | [)|.]
    # quantifiers
  | [*+?][+?]? | \{\d+(?:,\d*)?\} (?![+?*{])
    # classes
  | \[ \^?
    (?: (?P<escape>
            \\[pP]\{\^?(?: Han | Hiragana | Katakana | Hangul | [LMNPSZC] | L[ultmo] | M[nce] | N[dlo]
                         | P[cdseifo] | S[mcko] | Z[slp] | Cc )\}
          | \\[sSdDrntf] | \\x[0-9A-Fa-f]{2} | \\u[0-9A-Fa-f]{4} | \\[^\p{L}\p{N}\s] )
      | (?!&&) [^\\\[\]]
    )+ \]
  | (?&escape) | [^\\\[\]{}()|*+?.^$]""",
    regex.VERBOSE,
)


def compile_pattern(pattern: str) -> regex.Pattern:
    """An Oniguruma expression for `regex`, if it consists of constructs that mean the same in both.

    Raises TokenizerError. Differences that are refused rather than guessed: `\\w` and `\\b` (Oniguruma counts ² as a
    word character), `\\h` (a hexadecimal digit there), `x{2}+` (not possessive there), `^` and `$` (each line there),
    `(?i:` around anything but English contractions (ß folds to ss there), nested classes and `&&`.
    """
    if len(pattern) > LONGEST_PATTERN:
        raise TokenizerError(
            f"the regular expression {pattern!r:.60} has {len(pattern)} characters; expected at most {LONGEST_PATTERN}"
        )
    end, expanded = 0, len(pattern)
    while end < len(pattern):
        token = _SAME.match(pattern, end)
        if token is None:
            raise TokenizerError(
                f"the regular expression {pattern!r:.200} uses {pattern[end : end + 8]!r} at character {end}, which "
                "this tokenizer does not implement; use the tokenizer.json of the published model"
            )
        end = token.end()
        if token[0][0] == "{":
            expanded *= max(1, *(int(number[:9]) for number in regex.findall(r"\d+", token[0])))
        if expanded > MOST_EXPANDED:
            raise TokenizerError(
                f"the regular expression {pattern!r:.60} has {expanded} characters or more when its repeats are "
                f"written out; expected at most {MOST_EXPANDED}"
            )
    try:
        return regex.compile(pattern)
    except (regex.error, RecursionError) as error:
        raise TokenizerError(f"the regular expression {pattern!r:.60} is damaged: {error}") from error
