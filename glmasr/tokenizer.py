"""Text <-> token ids: byte-level byte-pair encoding (BPE) from a `tokenizer.json`, or SentencePiece from a
`tokenizer.model`; and ids -> text alone from a `vocabulary.json` or `vocabulary.txt`.

`read_tokenizer(directory)` reads the one that a model has. First byte-level BPE; how text becomes ids:
    text -> split out added tokens -> normalize -> pre-tokenize (regex) -> UTF-8 bytes -> merge neighbors -> ids
BPE (Gage 1994; for text: Sennrich et al. 2016, arXiv:1508.07909) starts from single bytes. The file lists pairs, the
most useful first: as long as two neighbors form a listed pair, the pair that is listed EARLIEST is replaced by its
joint token. With the pairs `l o`, `lo w`, `e r` the word `lower` goes  l o w e r -> lo w e r -> low e r -> low er.
Pre-tokens (roughly: words) never merge.

Unusual:
- Every token is bytes, not characters: one Chinese character is 3 bytes and may be spread over up to three tokens, so
  an id alone can be half a character. `decode` joins bytes first and reads UTF-8 afterwards; `decoder()` does it one id
  at a time and holds half characters back.
- Merges are applied by rank, not left to right or longest first; only `ignore_merges` looks up the whole pre-token
  before it merges.

How the file writes bytes is in checkpoint/vocabulary.py, its regular expressions are in checkpoint/pre_tokenizers.py,
and what of it is not applied is in checkpoint/tokenizer_json.py.

SentencePiece (Kudo and Richardson 2018, arXiv:1808.06226) splits text by its own library, `sentencepiece`; what is
added here are the special tokens, from an `added_tokens.json` beside the model, and output piece by piece. Unusual:
- A space is `▁` (U+2581) and part of the piece after it. Most models put one in front of a text, so that a word is the
  same piece wherever it stands, and drop it again when they decode.
- A model with byte fallback spells unknown characters in bytes, `<0xE5>`; one without gives them the id of `<unk>`,
  which decodes to " ⁇ ".
"""

import codecs
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush
from itertools import pairwise
from pathlib import Path
from typing import Any

import regex

from .checkpoint.added_tokens import AddedTokens
from .checkpoint.json_file import LARGEST_CONFIG
from .checkpoint.pre_tokenizers import Normalizer, pre_tokenize
from .checkpoint.sentencepiece_model import LARGEST_MODEL, parse_added, read_pieces
from .checkpoint.tokenizer_json import parse_tokenizer, special_tokens
from .checkpoint.vocabulary import HIGHEST_ID, LARGEST_FILE, read_bytes, read_values, to_bytes, utf8
from .config import TIME_STEP
from .errors import TokenizerError

CACHED_PIECES = 2**16  # pre-tokens remembered with their ids; words repeat, so most are found here
GONE = -1  # in place of a symbol that has become a part of the one before it


class Merges:
    """The listed pairs. In short, quadratic in the length of a pre-token, `apply` is

        while pairs := [(rank[pair], place) for place, pair in enumerate(pairwise(ids)) if pair in rank]:
            earliest, place = min(pairs)
            ids[place : place + 2] = [joint[earliest]]

    It takes O(n log n), since some vocabularies have the whole text as one pre-token: there the three lines take a
    minute for a page.
    """

    def __init__(self, rank: dict[tuple[int, int], int], joint: list[int]):
        self.rank = rank  # (left id, right id) -> place in the list
        self.joint = joint  # place in the list -> id of the joint token

    def apply(self, ids: list[int]) -> list[int]:
        """The ids of single bytes -> those of the tokens that they merge to."""
        count = len(ids)
        waiting = [(self.rank[pair], place) for place, pair in enumerate(pairwise(ids)) if pair in self.rank]
        heapify(waiting)
        # The symbols are a ring of places, closed by one that belongs to no pair: so each has two neighbors.
        ids = [*ids, GONE]
        before, after = [count, *range(count)], [*range(1, count + 1), 0]
        while waiting:
            rank, left = heappop(waiting)
            right = after[left]
            if self.rank.get((ids[left], ids[right])) != rank:  # one of the two has merged since
                continue
            ids[left], ids[right] = self.joint[rank], GONE
            after[left] = after[right]
            before[after[right]] = left
            for place in (before[left], left):  # the joint token and its neighbors may be listed pairs
                new = self.rank.get((ids[place], ids[after[place]]))
                if new is not None:
                    heappush(waiting, (new, place))
        return [number for number in ids if number != GONE]


# -- What all kinds have in common -------------------------------------------------------------------------------------


class Vocabulary(ABC):
    """Text -> sections between added tokens -> ids; ids -> bytes -> text. A subclass fills the tables."""

    special: dict[str, int]  # content of a special token -> its id
    size: int  # 1 + the highest id
    _ids: dict[str, int]  # a token as the file writes it -> id
    _bytes: dict[int, bytes]  # id -> what it spells; a special token spells its name
    _special_ids: set[int]
    _added_raw = AddedTokens([])  # looked for in the text as it is
    _added_normalized = AddedTokens([])  # looked for in the normalized text
    _normalizers: list[Normalizer] = []

    @abstractmethod
    def _encode_section(self, section: str) -> list[int]:
        """The ids of a text without added tokens."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Added tokens in it, special ones included, become their ids; nothing is added around it:
        see checkpoint/tokenizer_json.py."""
        ids: list[int] = []
        for part in self._added_raw.split(text):
            for section in [part] if isinstance(part, int) else self._added_normalized.split(self._normalize(part)):
                ids += [section] if isinstance(section, int) else self._encode_section(section)
        return ids

    def _normalize(self, text: str) -> str:
        for step in self._normalizers:
            text = step(text)
        return text

    def token_bytes(self, number: int) -> bytes:
        """The bytes that an id stands for; b"" for special tokens and for ids that the file does not define."""
        if number < 0:
            raise TokenizerError(f"{number} is not a token id; expected 0 or more")
        return b"" if number in self._special_ids else self._bytes.get(number, b"")

    def _speller(self, skip_special: bool = True) -> Callable[[int], bytes]:
        """A function id -> bytes, to be called with the ids of one text in their order."""
        return self.token_bytes if skip_special else lambda number: self._bytes.get(number, b"")

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD. Ids that the file does not define are skipped."""
        return b"".join(map(self._speller(skip_special), ids)).decode("utf-8", errors="replace")

    def decoder(self) -> "IncrementalDecoder":
        """For partial output: `feed(id)` returns the text that is certain by now, `finish()` the rest."""
        return IncrementalDecoder(self._speller())

    def id(self, token: str) -> int:
        """The id of a token as the file writes it: an added token's content, a base token in the byte alphabet
        ("Ġyou"), a piece ("▁you")."""
        if token not in self._ids:
            raise TokenizerError(
                f"the vocabulary has no token {token!r}; is this the tokenizer of the model that is loaded?"
            )
        return self._ids[token]


class IncrementalDecoder:
    """The results of `feed` and of the one `finish` join to what `decode` returns; never emits half a character."""

    def __init__(self, spell: Callable[[int], bytes]):
        self._spell = spell
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, number: int) -> str:
        """The characters that the next id completes; "" if it ends within one."""
        return self._utf8.decode(self._spell(number))

    def finish(self) -> str:
        """The rest: U+FFFD for an incomplete character, else ""."""
        return self._utf8.decode(b"", final=True)


# -- Byte-level BPE ----------------------------------------------------------------------------------------------------


class Tokenizer(Vocabulary):
    """Byte-level BPE. `special` maps the content of each added special token to its id; `size` is 1 + the highest id.

    Equal to the tokenizers library but for one case: a special token that a normalizer rewrites is not skipped by
    `decode` there, and is here.
    """

    @classmethod
    def read(cls, path: str | Path) -> "Tokenizer":
        """From a `tokenizer.json`. Raises TokenizerError where the file is missing, damaged or asks for something
        unknown."""
        data = read_values(Path(path), LARGEST_FILE)
        try:
            return cls(data)
        except TokenizerError as error:
            raise TokenizerError(f"{path}: {error}") from error

    def __init__(self, data: Any):
        file = parse_tokenizer(data)
        self._vocabulary, self._merges = file.vocabulary, Merges(file.rank, file.joint)
        self._ignore_merges, self._pre_tokenizers = file.ignore_merges, file.pre_tokenizers
        self._normalizers = file.normalizers
        self._added_raw = AddedTokens(token for token in file.added if not token.normalized)
        self._added_normalized = AddedTokens(token for token in file.added if token.normalized)
        self.special = {token.content: token.number for token in file.added if token.special}
        self._special_ids = set(self.special.values())
        self._ids = file.vocabulary | {token.content: token.number for token in file.added}
        self._bytes = {number: to_bytes(token) for token, number in file.vocabulary.items()}
        # An added token decodes to the text that it is found by, as in the library.
        self._bytes |= {token.number: to_bytes(token.wanted) for token in file.added}
        self.size = 1 + max(self._bytes)
        self._cache: dict[str, list[int]] = {}

    def _encode_section(self, section: str) -> list[int]:
        ids: list[int] = []
        for piece in pre_tokenize(self._pre_tokenizers, section):
            known = self._cache.get(piece)
            if known is None:
                known = self._encode_piece(piece)
                if len(self._cache) >= CACHED_PIECES:
                    self._cache.clear()
                if len(piece) <= 64:
                    self._cache[piece] = known
            ids += known
        return ids

    def _encode_piece(self, piece: str) -> list[int]:
        """A pre-token in the byte alphabet -> ids."""
        if self._ignore_merges and piece in self._vocabulary:
            return [self._vocabulary[piece]]
        try:
            return self._merges.apply([self._vocabulary[character] for character in piece])
        except KeyError as error:
            # The tokenizers library drops such bytes from the text. An error is better than a changed instruction.
            raise TokenizerError(
                f"the vocabulary has no token for the byte that {error.args[0]!r} stands for; expected all 256 bytes"
            ) from None


# -- A list of tokens --------------------------------------------------------------------------------------------------


class TokenList(Vocabulary):
    """Byte-level tokens in the order of their ids, as CTranslate2 keeps them beside a model. Special are those like
    `<|en|>`, times too.

    It decodes. It can't encode: the ids of a text follow from the merges, which the list doesn't have.
    """

    @classmethod
    def read(cls, path: str | Path) -> "TokenList":
        """From a `vocabulary.json`, a list, or a `vocabulary.txt`, a token a line. Raises TokenizerError."""
        path = Path(path)
        if path.suffix == ".json":
            return cls(read_values(path, LARGEST_FILE), path)
        try:
            text = read_bytes(path, LARGEST_FILE).decode("utf-8")
        except UnicodeDecodeError as error:
            raise TokenizerError(
                f"{path}: not UTF-8 ({error.reason} at byte {error.start}); download it again"
            ) from None
        return cls(text.removesuffix("\n").split("\n"), path)  # TRAP: `splitlines` knows other ends of lines

    def __init__(self, tokens: Any, path: str | Path):
        is_list = isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)
        if not is_list or len(tokens) > HIGHEST_ID:
            raise TokenizerError(f"{path}: expected a list of at most {HIGHEST_ID} tokens")
        self._path, self.size = path, len(tokens)
        self._ids = {
            token: number for number, token in reversed(list(enumerate(tokens)))
        }  # the first of two equal ones
        self._bytes = {number: to_bytes(token) for number, token in enumerate(tokens)}
        self.special = {
            token: number for token, number in self._ids.items() if regex.fullmatch(r"<\|.{1,40}\|>", token)
        }
        self._special_ids = set(self.special.values())

    def _encode_section(self, section: str) -> list[int]:
        raise TokenizerError(
            f"{self._path}: a list of tokens can't say which of them make up a text; expected a tokenizer.json beside "
            "it"
        )


# -- SentencePiece -----------------------------------------------------------------------------------------------------


class SentencePieceTokenizer(Vocabulary):
    """SentencePiece, with special tokens after the pieces. `special` maps each of them to its id; `size` is 1 + the
    highest id.

    A text without special tokens gets the ids that the sentencepiece library gives it, unknown characters the id of
    `<unk>` included. Special tokens in a text become their ids, and what stands between them is encoded as a text of
    its own. `decode` gives the library's text, " ⁇ " for `<unk>` included, but for one case: of half a character it
    makes one U+FFFD, the library as many as there are bytes. Control pieces (`<s>`, `</s>`) are never found in a text
    and spell nothing.
    """

    @classmethod
    def read(cls, path: str | Path) -> "SentencePieceTokenizer":
        """From a `tokenizer.model` and the `added_tokens.json` beside it. Raises TokenizerError where one is missing or
        damaged."""
        path = Path(path)
        model = read_bytes(path, LARGEST_MODEL)
        added = read_values(path.with_name("added_tokens.json"), LARGEST_CONFIG)
        try:
            return cls(model, added)
        except TokenizerError as error:
            raise TokenizerError(f"{path.parent}: {error}") from error

    def __init__(self, model: bytes, added: Any):
        self.special, self._special_ids = {}, set()
        try:
            self._pieces = read_pieces(model)
            self._bytes = dict(self._pieces.spelled)
            self._check_decoding()
        except (RuntimeError, ValueError) as error:
            raise TokenizerError(
                f"tokenizer.model is damaged or no SentencePiece model: {error}; download it again"
            ) from error
        tokens = parse_added(added, self._pieces.ids)
        self.special = {token.content: token.number for token in tokens}
        self._special_ids = set(self.special.values())
        self._ids = self._pieces.ids | self.special
        self._bytes |= {token.number: utf8(token.content) for token in tokens}
        self._added_raw = AddedTokens(tokens)
        self.size = len(self._ids)

    def _check_decoding(self) -> None:
        library = self._pieces.library
        whole = [number for number in self._bytes if not library.is_byte(number)]
        if self.decode(whole) != library.decode(whole):
            raise TokenizerError(
                "tokenizer.model decodes by rules that this tokenizer does not implement, such as a denormalizer; "
                "expected none"
            )

    def _encode_section(self, section: str) -> list[int]:
        ids: list[int] = self._pieces.library.encode(utf8(section))
        return ids

    def _speller(self, skip_special: bool = True) -> Callable[[int], bytes]:
        at_start = True

        def spell(number: int) -> bytes:
            nonlocal at_start
            if not skip_special and number in self._special_ids:
                at_start = True  # as `encode` puts a space of its own in front of what follows
                return self._bytes[number]
            code = self.token_bytes(number)
            if at_start:
                code = self._pieces.at_start.get(number, code)
                at_start = not code and number != self._pieces.dropped_once
            return code

        return spell


# -- The tokenizer of a model ------------------------------------------------------------------------------------------

KINDS: dict[str, type[Tokenizer] | type[SentencePieceTokenizer] | type[TokenList]] = {
    "tokenizer.json": Tokenizer,
    "tokenizer.model": SentencePieceTokenizer,
    "vocabulary.json": TokenList,
    "vocabulary.txt": TokenList,
}


def tokenizer_file(directory: str | Path) -> Path | None:
    """The first of KINDS that is in a model directory.

    Where several are, `tokenizer.json` counts: Transformers reads that one too, so a model gets the ids here that it
    gets there.
    """
    return next((path for name in KINDS if (path := Path(directory) / name).is_file()), None)


def read_tokenizer(directory: str | Path) -> Tokenizer | SentencePieceTokenizer | TokenList:
    """The tokenizer of a model directory. Raises TokenizerError."""
    path = tokenizer_file(directory)
    if path:
        return KINDS[path.name].read(path)
    raise TokenizerError(
        f"{str(directory)!r} has neither tokenizer.json (byte-level BPE) nor tokenizer.model (SentencePiece); expected "
        "one of them, or for decoding alone a vocabulary.json or .txt, beside config.json: download the model again"
    )


def read_special(directory: str | Path) -> dict[str, int]:
    """The special tokens of a model directory and their ids; of a `tokenizer.json` without the second that all of it
    takes. Raises TokenizerError."""
    path = Path(directory) / "tokenizer.json"
    if not path.is_file():
        return read_tokenizer(directory).special
    return special_tokens(read_values(path, LARGEST_FILE), path.name)


def time_token(seconds: float) -> str:
    """The token of the step that is nearest to a time.

    >>> time_token(1.2345)
    '<|1.24|>'
    """
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{seconds} is not a time; expected 0 or more seconds")
    return f"<|{round(seconds / TIME_STEP) * TIME_STEP:.2f}|>"
