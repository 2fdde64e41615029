"""Names that should be spelled right: a list of phrases, read and checked. `spelling` has what becomes of them.

    hotwords=["GLM-ASR", "张小明", "Kowloon Tong:2", ("Re:Zero", 1.5)]

The number behind the last colon, or the second of a pair, is the weight; 1 is what was measured (docs/HOTWORDS.md).
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import regex

from ..config import is_number
from ..errors import OptionError

MOST_PHRASES = 10_000
LONGEST_PHRASE = 100  # characters
WEIGHTS = (0.1, 10.0)
ENDINGS = (".txt", ".csv", ".tsv", ".list")  # of an argument that is meant to be a file
LARGEST_LIST = 4 * 2**20  # bytes of a file

Hotwords = tuple[tuple[str, float], ...]  # phrase, weight

# What is copied along with a name and isn't seen, with which it would never be found: controls, byte order marks,
# spaces of no width, hyphens of a line's end, directions.
_UNSEEN = regex.compile(r"(?!\s)\p{Cc}|[\u00AD\u200B\u200E\u200F\u202A-\u202E\u2060-\u2069\uFEFF]")


def parse(given: Any) -> Hotwords:
    """Phrases with their weights, each phrase once: of "Kowloon Tong:2", or of pairs (phrase, weight). Raises
    OptionError."""
    # Of a dictionary only the names would be read, and of bytes numbers.
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise OptionError(
            f"hotwords is {shown(given)}, expected a list of phrases, such as ['GLM-ASR', 'Kowloon Tong:2'], or of "
            "pairs, such as [('Kowloon Tong', 2)]"
        )
    found: dict[str, float] = {}
    for entry in given:
        phrase, weight = _entry(entry)
        found[phrase] = max(weight, found.get(phrase, 0.0))
        if len(found) > MOST_PHRASES:
            raise OptionError(
                f"hotwords has more than {MOST_PHRASES:,} phrases, expected fewer; leave common words out"
            )
    return tuple(found.items())


def _entry(entry: Any) -> tuple[str, float]:
    if isinstance(entry, str):
        phrase, weight = _split_weight(entry)
    else:
        pair = isinstance(entry, Sequence) and len(entry) == 2 and isinstance(entry[0], str)
        if not pair:
            raise OptionError(f"hotwords: {shown(entry)} is neither a phrase nor a pair (phrase, weight)")
        phrase, weight = entry
    low, high = WEIGHTS
    if not is_number(weight) or not low <= weight <= high:
        way_out = _colon_belongs(entry) if isinstance(entry, str) else ""
        raise OptionError(
            f"hotwords: the weight of {shown(phrase)} is {shown(weight)}, "
            f"expected a number from {low:g} to {high:g}{way_out}"
        )
    phrase = " ".join(_UNSEEN.sub("", unicodedata.normalize("NFC", phrase)).split())
    if not phrase:
        raise OptionError(f"hotwords: {shown(entry)} is an empty phrase; leave it out")
    if len(phrase) > LONGEST_PHRASE:
        raise OptionError(
            f"hotwords: {shown(phrase)} has {len(phrase)} characters, expected at most {LONGEST_PHRASE}; "
            "list the names in it"
        )
    if sum(map(str.isalnum, phrase)) < 2:
        raise OptionError(
            f"hotwords: {shown(phrase)} is too short, it would be written everywhere; "
            "expected two letters or characters at least, such as a whole name"
        )
    return phrase, float(weight)


def _split_weight(text: str) -> tuple[str, float]:
    phrase, colon, number = text.replace("：", ":").rpartition(":")
    if not colon:
        return text, 1.0
    try:
        return phrase, float(number)
    except ValueError:
        raise OptionError(
            f"hotwords: the weight of {shown(phrase)} is {shown(number)}, "
            f"expected a number, such as 2{_colon_belongs(text)}"
        ) from None


def _colon_belongs(text: str) -> str:
    return f"; where the colon belongs to the phrase, add a weight: {shown(text + ':1')}"


def shown(value: object) -> str:
    """What an error quotes of a phrase, or of what should be one."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def listed(text: str) -> list[str]:
    """The phrases of a text, between commas or a line each."""
    return [phrase for part in regex.split(r"[,，、\r\n]", text) if (phrase := part.strip())]


def read(argument: str) -> Hotwords:
    """Of the command line: a file with a phrase a line, `#` before a comment, or the phrases with commas between them.
    Raises OptionError."""
    path = Path(argument)
    try:
        is_file, is_folder = path.is_file(), bool(argument) and path.is_dir()
    except (OSError, ValueError):  # a list that is too long for a name
        is_file = is_folder = False
    if is_folder:
        raise OptionError(f"hotwords: {argument} is a folder, expected a file, or names with commas between them")
    if not is_file:
        if argument.lower().endswith(ENDINGS) and "," not in argument:
            raise OptionError(f"hotwords: there is no file {argument}; expected one, or names with commas between them")
        if not (phrases := parse(listed(argument))):
            raise OptionError(f"hotwords is {argument!r}, expected names with commas between them, or a file")
        return phrases
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_LIST + 1)
    except OSError as error:
        raise OptionError(f"hotwords: {argument} cannot be read ({error.strerror or error})") from None
    if len(content) > LARGEST_LIST:
        raise OptionError(f"hotwords: {argument} has more than {LARGEST_LIST // 2**20} MiB, expected a phrase a line")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise OptionError(
            f"hotwords: {argument} is not UTF-8 (line {line}: {error.reason}); save it as UTF-8"
        ) from None
    lines = [line.strip() for line in text.splitlines()]
    phrases = parse(line for line in lines if line and not line.startswith("#"))
    if not phrases:
        raise OptionError(f"hotwords: {argument} has no phrase, expected one a line")
    return phrases
