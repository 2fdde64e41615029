"""How a tokenizer spells a list of names, and so what the search favors.

The list is that of `hotwords`, the search's part `searching.automaton`.
"""

import threading
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import regex
import torch

from ..errors import OptionError, TokenizerError
from ..searching.automaton import Automaton, Borders, Spelling
from . import chinese_script
from .hotwords import Hotwords, parse, shown
from .language import AnyTokenizer

BONUS = 6.0  # nats that a phrase of weight 1 is favored by
OTHER_CASE = 0.75  # of the bonus for "kowloon tong" where "Kowloon Tong" is listed
# A short phrase is heard everywhere: it has less of the bonus, in proportion, and of a single letter there is none.
WHOLE_BONUS, WIDE = 6, 2  # letters of a phrase with all of its bonus; letters that a character of Chinese counts as
KEPT_LISTS = 4  # whose automata are kept
AT_ONCE = 500  # texts that go to the tokenizer together

# Letters, digits and marks of scripts with spaces between words: before and behind others a word may begin anywhere.
_JOINED = regex.compile(
    r"[[\p{L}\p{N}\p{M}]--[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]]", regex.V1
)
_HAN, _WORD_START = regex.compile(r"\p{Han}"), regex.compile(r"(?<![\w'’])\w")
_SPECIAL = regex.compile(r"<\|.{1,40}\|>")


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
                    f"hotwords: {shown(phrase)} is nothing that this model's vocabulary writes as text; leave it out"
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
