"""Names that should be spelled right: a list of phrases, read and checked; and how a tokenizer spells them.

    hotwords=["GLM-ASR", "张小明", "Kowloon Tong:2", ("Re:Zero", 1.5)]

The number behind the last colon, or the second of a pair, is the weight; 1 is what was measured (docs/HOTWORDS.md).
"""

import threading
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import regex
import torch

from ..config import is_number
from ..errors import OptionError, TokenizerError
from ..searching.automaton import Automaton, Borders, Spelling
from . import chinese_script
from .language import AnyTokenizer

MOST_PHRASES = 10_000
LONGEST_PHRASE = 100  # characters
WEIGHTS = (0.1, 10.0)
BONUS = 6.0  # nats that a phrase of weight 1 is favored by
OTHER_CASE = 0.75  # of the bonus for "kowloon tong" where "Kowloon Tong" is listed
# A short phrase is heard everywhere: it has less of the bonus, in proportion, and of a single letter there is none.
WHOLE_BONUS, WIDE = 6, 2  # letters of a phrase with all of its bonus; letters that a character of Chinese counts as
ENDINGS = (".txt", ".csv", ".tsv", ".list")  # of an argument that is meant to be a file
KEPT_LISTS = 4  # whose automata are kept
AT_ONCE = 500  # texts that go to the tokenizer together
LARGEST_LIST = 4 * 2**20  # bytes of a file

Hotwords = tuple[tuple[str, float], ...]  # phrase, weight

# Letters, digits and marks of scripts with spaces between words: before and behind others a word may begin anywhere.
_JOINED = regex.compile(
    r"[[\p{L}\p{N}\p{M}]--[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]]", regex.V1
)
_HAN, _WORD_START = regex.compile(r"\p{Han}"), regex.compile(r"(?<![\w'’])\w")
_SPECIAL = regex.compile(r"<\|.{1,40}\|>")
# What is copied along with a name and isn't seen, with which it would never be found: controls, byte order marks,
# spaces of no width, hyphens of a line's end, directions.
_UNSEEN = regex.compile(r"(?!\s)\p{Cc}|[\u00AD\u200B\u200E\u200F\u202A-\u202E\u2060-\u2069\uFEFF]")


# ---- reading ---------------------------------------------------------------------------------------------------------


def parse(given: Any) -> Hotwords:
    """Phrases with their weights, each phrase once: of "Kowloon Tong:2", or of pairs (phrase, weight). Raises
    OptionError."""
    # Of a dictionary only the names would be read, and of bytes numbers.
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise OptionError(
            f"hotwords is {_shown(given)}, expected a list of phrases, such as ['GLM-ASR', 'Kowloon Tong:2'], or of "
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
            raise OptionError(f"hotwords: {_shown(entry)} is neither a phrase nor a pair (phrase, weight)")
        phrase, weight = entry
    low, high = WEIGHTS
    if not is_number(weight) or not low <= weight <= high:
        way_out = _colon_belongs(entry) if isinstance(entry, str) else ""
        raise OptionError(
            f"hotwords: the weight of {_shown(phrase)} is {_shown(weight)}, "
            f"expected a number from {low:g} to {high:g}{way_out}"
        )
    phrase = " ".join(_UNSEEN.sub("", unicodedata.normalize("NFC", phrase)).split())
    if not phrase:
        raise OptionError(f"hotwords: {_shown(entry)} is an empty phrase; leave it out")
    if len(phrase) > LONGEST_PHRASE:
        raise OptionError(
            f"hotwords: {_shown(phrase)} has {len(phrase)} characters, expected at most {LONGEST_PHRASE}; "
            "list the names in it"
        )
    if sum(map(str.isalnum, phrase)) < 2:
        raise OptionError(
            f"hotwords: {_shown(phrase)} is too short, it would be written everywhere; "
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
            f"hotwords: the weight of {_shown(phrase)} is {_shown(number)}, "
            f"expected a number, such as 2{_colon_belongs(text)}"
        ) from None


def _colon_belongs(text: str) -> str:
    return f"; where the colon belongs to the phrase, add a weight: {_shown(text + ':1')}"


def _shown(value: object) -> str:
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


# ---- spelling --------------------------------------------------------------------------------------------------------


def automaton(
    hotwords: Hotwords, tokenizer: AnyTokenizer, vocabulary: int, device: torch.device | str = "cpu"
) -> Automaton | None:
    """What favors these phrases; None for none. Raises OptionError for a phrase that the vocabulary can't write, and
    TokenizerError where it can only be decoded."""
    if not hotwords:
        return None
    edges = borders(tokenizer, vocabulary)
    texts: dict[str, float] = {}  # how a phrase may stand in a text, with and without a space before it -> its bonus
    for phrase, weight in hotwords:
        bonus = weight * BONUS * _share(phrase)
        for text, share in variants(phrase).items():
            for spaced in (text, f" {text}") if share == 1.0 else (f" {text}",):
                texts[spaced] = max(share * bonus, texts.get(spaced, 0.0))
    ids = _encode_all(list(texts), tokenizer, edges)
    if len(ids) < len(texts):
        for phrase, _ in hotwords:
            whole = [text for text, share in variants(phrase).items() if share == 1.0]
            if not any(text in ids or f" {text}" in ids for text in whole):
                raise OptionError(
                    f"hotwords: {_shown(phrase)} is nothing that this model's vocabulary writes as text; leave it out"
                )
    characters = cache(tokenizer.encode)
    spellings = []
    for text, number in ids.items():
        word = bool(_JOINED.match(text, len(text) - 1))
        if text[0] == " " and number[1:] == ids.get(text[1:]):
            continue  # the space is a token of its own, and behind it the other spelling is found
        spellings.append(Spelling(number, texts[text], word))
        if text[0] != " " and not _JOINED.search(text):  # characters that a model may write one by one
            apart = tuple(one for character in text for one in characters(character))
            spellings.append(Spelling(apart, texts[text], word))
    return Automaton(spellings, edges, device)


def _share(phrase: str) -> float:
    """How much of its bonus a phrase has: short ones have less."""
    if phrase.isascii():
        letters = sum(map(str.isalnum, phrase))
    else:
        letters = sum(1 if _JOINED.match(letter) else WIDE for letter in phrase if letter.isalnum())
    return min(1.0, letters / WHOLE_BONUS)


def _encode_all(texts: list[str], tokenizer: AnyTokenizer, edges: Borders) -> dict[str, tuple[int, ...]]:
    """The ids of some texts without line breaks; those that the vocabulary can't write are left out. Many go to the
    tokenizer at once, a line each, as ten thousand calls take seconds."""
    special = set(np.flatnonzero(edges.special).tolist())
    line_break = tokenizer.encode("\n")
    found: dict[str, tuple[int, ...]] = {}
    for start in range(0, len(texts), AT_ONCE):
        some = texts[start : start + AT_ONCE]
        joined = "\n".join(some)
        ids = tokenizer.encode(joined)
        breaks = np.flatnonzero(np.array(ids) == line_break[0]) if len(line_break) == 1 else ()
        ends = [-1, *map(int, breaks), len(ids)]
        sequences = [ids[before + 1 : end] for before, end in pairwise(ends)]
        # SentencePiece knows no line breaks, and some vocabularies have tokens that hold one and more.
        if len(sequences) != len(some) or tokenizer.decode(ids) != joined:
            sequences = [tokenizer.encode(text) for text in some]
            pairs = zip(some, sequences, strict=True)
            sequences = [ids if tokenizer.decode(ids).strip() == text.strip() else [] for text, ids in pairs]
        written = zip(some, sequences, strict=True)
        found |= ((text, tuple(ids)) for text, ids in written if ids and special.isdisjoint(ids))
    return found


def variants(phrase: str) -> dict[str, float]:
    """How a phrase may be written -> the share of its bonus: in other cases, and in the other Chinese script where
    OpenCC is installed."""
    found = {phrase: 1.0}
    if not phrase.isascii() and _HAN.search(phrase):
        for script in ("simplified", "traditional"):
            try:
                found.setdefault(chinese_script.converter(script)(phrase), 1.0)
            except OptionError:  # without OpenCC
                break
    lower = phrase.lower()
    if lower != phrase.upper():
        found.setdefault(lower, OTHER_CASE)
        found.setdefault(_WORD_START.sub(_upper, lower), OTHER_CASE)
        if len(phrase) < WHOLE_BONUS and " " not in phrase:  # an abbreviation
            found.setdefault(phrase.upper(), OTHER_CASE)
    return found


def _upper(match: "regex.Match[str]") -> str:
    first: str = match[0]
    return first.upper()


class Biases:
    """The automata of a model's last few lists, for searches on its device."""

    def __init__(self, tokenizer: AnyTokenizer, vocabulary: int, device: torch.device | str = "cpu"):
        self._tokenizer, self._vocabulary, self._device = tokenizer, vocabulary, device
        self._kept: dict[Hotwords, Automaton | None] = {}
        self._lock = threading.Lock()  # a server checks options in one thread and decodes in another

    def find(self, hotwords: Any) -> Automaton | None:
        """None without any. Raises OptionError for a phrase that the model can't write, or a vocabulary that can only
        be decoded."""
        if not hotwords:
            return None
        if not all(isinstance(entry, tuple) for entry in hotwords):  # else `parse` has seen them
            hotwords = parse(hotwords)
        with self._lock:
            if hotwords not in self._kept:
                try:
                    found = automaton(hotwords, self._tokenizer, self._vocabulary, self._device)
                except TokenizerError as error:
                    raise OptionError(f"hotwords need a tokenizer that encodes: {error}") from None
                while len(self._kept) >= KEPT_LISTS:
                    del self._kept[next(iter(self._kept))]
            else:
                found = self._kept.pop(hotwords)
            self._kept[hotwords] = found  # the last one that was asked for stays longest
        return found


@lru_cache(maxsize=4)
def borders(tokenizer: AnyTokenizer, vocabulary: int) -> Borders:
    """Where words may begin and end, of the ids below `vocabulary`."""
    begins, ends, special = (np.zeros(vocabulary, dtype=bool) for _ in range(3))
    joined = cache(_JOINED.match)  # of a character
    names = set(tokenizer.special.values())
    for number in range(vocabulary):
        code = tokenizer.token_bytes(number)
        text = code.decode("utf-8", errors="ignore")
        special[number] = not code or number in names or text[:2] == "<|" and bool(_SPECIAL.fullmatch(text))
        first, last = text[:1], text[-1:]
        # TRAP: a token may begin, or end, within a character. Bytes from C2 to DF begin letters of Latin, Greek and
        # Cyrillic; those that begin Chinese, or punctuation, are beyond.
        if code and 0x80 <= code[0] < 0xC0:
            begins[number] = False
        elif first and text.encode()[:1] == code[:1]:
            begins[number] = not joined(first)
        else:
            begins[number] = bool(code) and code[0] >= 0xE2
        whole = bool(last) and code.endswith(last.encode())
        ends[number] = not joined(last) if whole else not text and bool(code) and code[0] < 0xC0
    return Borders(begins, ends, special)
