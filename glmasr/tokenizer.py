"""Text <-> token ids: byte-level byte-pair encoding (BPE) from a `tokenizer.json`, or SentencePiece from a `tokenizer.model`; and
ids -> text alone from a `vocabulary.json` or `vocabulary.txt`.

`read_tokenizer(directory)` reads the one that a model has. First byte-level BPE; how text becomes ids:
    text -> split out added tokens -> normalize -> pre-tokenize (regex) -> UTF-8 bytes -> merge pairs of neighbours -> ids
BPE (Gage 1994; for text: Sennrich et al. 2016, arXiv:1508.07909) starts from single bytes. The file lists pairs, the most useful first:
as long as two neighbours form a listed pair, the pair that is listed EARLIEST is replaced by its joint token. With the pairs
`l o`, `lo w`, `e r` the word `lower` goes  l o w e r -> lo w e r -> low e r -> low er.  Pre-tokens (roughly: words) never merge.

Unusual:
- Every token is bytes, not characters: one Chinese character is 3 bytes and may be spread over up to three tokens, so an id alone can be half
  a character. `decode` joins bytes first and reads UTF-8 afterwards; `decoder()` does it one id at a time and holds half characters back.
- The file cannot hold raw bytes in JSON, so GPT-2 (openai/gpt-2 `encoder.py`) gave each byte a printable stand-in: printable
  Latin-1 stands for itself, the 68 others are U+0100, U+0101, ... in order. A space is `Ġ`, a newline `Ċ`, 大 is `å¤§`.
- Merges are applied by rank, not left to right or longest first; only `ignore_merges` looks up the whole pre-token before it merges.
- The regular expressions are written for Oniguruma. `regex` agrees with it on the constructs in `_SAME`; any other is refused by name.
  Letters newer than the Unicode version of the installed `regex` package count as symbols; no published vocabulary has them.

Not applied, on purpose: `post_processor` (it adds special tokens around a text; a prompt here is put together from ids, and a template
applied twice is a classic defect), `truncation` and `padding` (settings of the batch that was encoded last when the file was saved;
Transformers resets them on each call), `trim_offsets` (no offsets here).

Anything else in the file that would change the ids and is not implemented is a `TokenizerError` that names it.

SentencePiece (Kudo and Richardson 2018, arXiv:1808.06226) splits text by its own library, `sentencepiece`; what is added here are the
special tokens, from an `added_tokens.json` beside the model, and output piece by piece. Unusual:
- A space is `▁` (U+2581) and part of the piece after it. Most models put one in front of a text, so that a word is the same piece
  wherever it stands, and drop it again when they decode.
- A model with byte fallback spells unknown characters in bytes, `<0xE5>`; one without gives them the id of `<unk>`, which decodes to " ⁇ ".
"""

import codecs
import heapq
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import process_time as _now  # as the timeout of `regex`

import regex

from .checkpoint.json_file import LARGEST_CONFIG, parse_json, read_file
from .config import TIME_STEP
from .errors import TokenizerError

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
HIGHEST_ID = 2**24              # an id above is damage: tables here are as long as the highest id
CACHED_PIECES = 2**16           # pre-tokens remembered with their ids; words repeat, so most are found here
LARGEST_FILE = 36_000_000       # bytes of a tokenizer.json; that of Gemma 3 has 33
LARGEST_MODEL = 6_000_000       # bytes of a tokenizer.model; that of Gemma 3 has 4.7
MOST_VALUES = 180_000_000       # bytes of memory that a tokenizer.json takes: those of 300,000 tokens and 600,000 merges
MOST_ADDED = 100_000            # tokens beside the vocabulary
LONGEST_ADDED = 1000            # characters of one of them
MOST_STEPS = 20                 # of a pre-tokenizer, as of a normalizer
LONGEST_PATTERN = 5000          # characters of a regular expression; published ones have up to 500
MOST_EXPANDED = 200_000         # characters, all its {n} written out, as `regex` does: all of them multiplied with its length
MATCHING = 1.0                  # seconds for a text, and as much for each 100,000 characters; a hostile expression takes years for a line


# --- The byte alphabet -------------------------------------------------------------------------------------------------

def _byte_alphabet() -> list[str]:
    """256 characters; the one at index b stands for byte b.

    >>> alphabet = _byte_alphabet()
    >>> alphabet[ord("a")], alphabet[ord(" ")], "".join(alphabet[b] for b in "大".encode())
    ('a', 'Ġ', 'å¤§')
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = iter(range(0x100, 0x200))
    return [chr(b if b in printable else next(stand_ins)) for b in range(256)]


ALPHABET = _byte_alphabet()
_BYTE = {character: byte for byte, character in enumerate(ALPHABET)}
_TO_ALPHABET = dict(enumerate(ALPHABET))


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(f"the text has the lone surrogate U+{ord(text[error.start]):04X}, which UTF-8 cannot hold") from error


def _to_alphabet(text: str) -> str:
    return _utf8(text).decode("latin-1").translate(_TO_ALPHABET)


def _to_bytes(token: str) -> bytes:
    # TRAP: an added token such as "<|大|>" is not written in the alphabet; then the whole token stands for its own UTF-8.
    try:
        return bytes([_BYTE[character] for character in token])
    except KeyError:
        return _utf8(token)


# --- Steps built from the file: each is a function of a text ---------------------------------------------------------------

_SAME = regex.compile(r"""
    \(\?i: (?: '? (?: s | t | re | ve | m | ll | d | \[sdmt\] ) (?: \| (?!\)) | (?=\)) ) )+ \)      # English contractions only: case folding differs
  | \(\?(?: [:=!>] | <[=!] ) | \((?!\?) | [)|.]                                                          # groups, alternatives
  | [*+?][+?]? | \{\d+(?:,\d*)?\} (?![+?*{])                                                        # quantifiers
  | \[ \^? (?: (?P<escape> \\[pP]\{\^?(?: Han | Hiragana | Katakana | Hangul | [LMNPSZC] | L[ultmo] | M[nce] | N[dlo] | P[cdseifo] | S[mcko] | Z[slp] | Cc )\}
                         | \\[sSdDrntf] | \\x[0-9A-Fa-f]{2} | \\u[0-9A-Fa-f]{4} | \\[^\p{L}\p{N}\s] )
             | (?!&&) [^\\\[\]] )+ \]                                                               # classes
  | (?&escape) | [^\\\[\]{}()|*+?.^$]""", regex.VERBOSE)


def _compile(pattern: str) -> regex.Pattern:
    """An Oniguruma expression for `regex`, if it consists of constructs that mean the same in both; else TokenizerError.

    Differences that are refused rather than guessed: `\\w` and `\\b` (Oniguruma counts ² as a word character), `\\h` (a hexadecimal digit there),
    `x{2}+` (not possessive there), `^` and `$` (each line there), `(?i:` around anything but
    English contractions (ß folds to ss there), nested classes and `&&`.
    """
    if len(pattern) > LONGEST_PATTERN:
        raise TokenizerError(f"the regular expression {pattern!r:.60} has {len(pattern)} characters; expected at most {LONGEST_PATTERN}")
    end, expanded = 0, len(pattern)
    while end < len(pattern):
        token = _SAME.match(pattern, end)
        if token is None:
            raise TokenizerError(f"the regular expression {pattern!r:.200} uses {pattern[end:end + 8]!r} at character {end}, which this tokenizer does not "
                                 "implement; use the tokenizer.json of the published model")
        end = token.end()
        if token[0][0] == "{":
            expanded *= max(1, *(int(number[:9]) for number in regex.findall(r"\d+", token[0])))
        if expanded > MOST_EXPANDED:
            raise TokenizerError(f"the regular expression {pattern!r:.60} has {expanded} characters or more when its repeats are written out; "
                                 f"expected at most {MOST_EXPANDED}")
    try:
        return regex.compile(pattern)
    except (regex.error, RecursionError) as error:
        raise TokenizerError(f"the regular expression {pattern!r:.60} is damaged: {error}") from error


def _pattern(part: dict, where: str) -> regex.Pattern:
    pattern = _get(part, "pattern", dict, where)
    if len(pattern) == 1 and isinstance(pattern.get("Regex"), str) and pattern["Regex"]:
        return _compile(pattern["Regex"])
    if len(pattern) == 1 and isinstance(pattern.get("String"), str) and 0 < len(pattern["String"]) <= LONGEST_PATTERN:
        return regex.compile(regex.escape(pattern["String"], special_only=True))
    raise TokenizerError(f'{where}.pattern is {pattern!r:.200}; expected {{"Regex": ...}} or {{"String": ...}} of at most {LONGEST_PATTERN} characters')


def _split(text: str, until: float, pattern: regex.Pattern, behavior: str, invert: bool) -> list[str]:
    """The pieces of a text around the matches of a pattern; `behavior` says where a match goes. `until` is a time as `_now` tells it."""
    spans, end = [], 0                                          # (start, end, is a delimiter)
    try:
        for match in pattern.finditer(text, timeout=max(0.0, until - _now())):
            if match.start() > end:
                spans.append((end, match.start(), invert))
            spans.append((match.start(), match.end(), not invert))
            end = match.end()
    except TimeoutError:
        raise TokenizerError(f"the regular expression {pattern.pattern!r:.60} takes more than {MATCHING:g} s for a text; use the "
                             "tokenizer.json of the published model") from None
    if end < len(text):
        spans.append((end, len(text), invert))
    if behavior == "Isolated":
        return [text[start:end] for start, end, _ in spans]
    if behavior == "Removed":
        return [text[start:end] for start, end, delimiter in spans if not delimiter]
    backward = behavior == "MergedWithNext"                     # the same rule, read from the end
    pieces, before = [], False
    for start, end, delimiter in reversed(spans) if backward else spans:
        join = delimiter == before if behavior == "Contiguous" else delimiter and not before
        if join and pieces:
            pieces[-1] = (start, pieces[-1][1]) if backward else (pieces[-1][0], end)
        else:
            pieces.append((start, end))
        before = delimiter
    return [text[start:end] for start, end in (reversed(pieces) if backward else pieces)]


def _byte_level(text: str, until: float, pattern: "regex.Pattern | None", prefix_space: bool) -> list[str]:
    if prefix_space and not text.startswith(" "):
        text = " " + text
    pieces = _split(text, until, pattern, "Isolated", False) if pattern else [text]
    return [_to_alphabet(piece) for piece in pieces]


def _pre_tokenizers(part: "dict | None", where: str = "pre_tokenizer") -> list:
    """The functions (text, until) -> [text] that a pre_tokenizer stands for, in order; `until` as of `_split`."""
    if part is None:
        return []
    kind = _get(part, "type", str, where)
    if kind == "Sequence":
        parts = _steps(part, "pretokenizers", where)
        return [step for number, inner in enumerate(parts) for step in _pre_tokenizers(inner, f"{where}.pretokenizers[{number}]")]
    if kind == "ByteLevel":
        pattern = regex.compile(GPT2_PATTERN) if _get(part, "use_regex", bool, where, True) else None
        return [partial(_byte_level, pattern=pattern, prefix_space=_get(part, "add_prefix_space", bool, where, True))]
    if kind == "Digits":
        behavior = "Isolated" if _get(part, "individual_digits", bool, where, False) else "Contiguous"
        return [partial(_split, pattern=regex.compile(r"\p{N}"), behavior=behavior, invert=False)]
    if kind == "Split":
        behavior = _get(part, "behavior", str, where)
        if behavior not in ("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
            raise TokenizerError(f"{where}.behavior is {behavior!r}, which this tokenizer does not know")
        return [partial(_split, pattern=_pattern(part, where), behavior=behavior, invert=_get(part, "invert", bool, where, False))]
    raise TokenizerError(f"{where} {kind!r} is not implemented; this tokenizer knows ByteLevel, Split, Digits and Sequence")


def _normalizers(part: "dict | None", where: str = "normalizer") -> list:
    """The functions text -> text that a normalizer stands for, in order."""
    if part is None:
        return []
    kind = _get(part, "type", str, where)
    if kind in ("NFC", "NFD", "NFKC", "NFKD"):
        return [partial(unicodedata.normalize, kind)]
    if kind == "Sequence":
        parts = _steps(part, "normalizers", where)
        return [step for number, inner in enumerate(parts) for step in _normalizers(inner, f"{where}.normalizers[{number}]")]
    raise TokenizerError(f"{where} {kind!r} is not implemented; this tokenizer knows NFC, NFD, NFKC, NFKD and Sequence")


def _steps(part: dict, key: str, where: str) -> list:
    steps = _get(part, key, list, where)
    if len(steps) > MOST_STEPS:
        raise TokenizerError(f"{where}.{key} are {len(steps)} steps; expected at most {MOST_STEPS}")
    return steps


def _check_decoder(part: "dict | None", where: str = "decoder") -> None:
    kind = _get(part, "type", str, where) if part else None
    inner = _get(part, "decoders", list, where) if kind == "Sequence" else []
    if kind == "Sequence" and len(inner) == 1:
        _check_decoder(inner[0], f"{where}.decoders[0]")
    elif kind != "ByteLevel":
        raise TokenizerError(f"{where} is {kind or part!r}; expected ByteLevel, since this tokenizer is for byte-level vocabularies")


# --- Added tokens: found in the text before anything else ---------------------------------------------------------------------

_SPACES_BEFORE = regex.compile(r"(?r)\s*")                      # (?r) searches backwards
_SPACES_AFTER = regex.compile(r"\s*")
_WORD = regex.compile(r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]")


class _AddedTokens:
    """Finds added tokens in a text: the leftmost, and of those the longest."""

    def __init__(self, tokens: dict[str, dict]):
        self.tokens = tokens
        self.lengths: dict[str, list[int]] = {}                 # first character -> lengths of the tokens, longest first
        for content in sorted(tokens, key=len, reverse=True):
            lengths = self.lengths.setdefault(content[0], [])
            if len(content) not in lengths:
                lengths.append(len(content))
        self.first = regex.compile(f"[{''.join(map(regex.escape, self.lengths))}]") if tokens else None

    def split(self, text: str) -> list:
        """Text -> its stretches without added tokens (str) and the added tokens (int ids) between them."""
        parts, done, at = [], 0, 0
        while self.first is not None and (found := self.first.search(text, at)):
            at = found.start()
            content = next((text[at:at + n] for n in self.lengths[text[at]] if text[at:at + n] in self.tokens), None)
            if content is None:
                at += 1
                continue
            token, start, end = self.tokens[content], at, at + len(content)
            at = end                                            # also after a match that single_word refuses
            if token["single_word"] and (start > 0 and _WORD.match(text[start - 1]) or _WORD.match(text, end)):
                continue
            if token["lstrip"]:
                start = max(_SPACES_BEFORE.match(text, 0, start).start(), done)
            if token["rstrip"]:
                end = _SPACES_AFTER.match(text, end).end()
            if done < start:
                parts.append(text[done:start])
            if start < end:         # else the token before took it in with its white space: the library drops it too
                parts.append(token["id"])
            done = end
        if done < len(text):
            parts.append(text[done:])
        return parts


# --- Reading the file: every value is checked, since a wrong one means wrong ids without a word -------------------------------------

_REQUIRED = object()


def _get(part: dict, key: str, kind: type, where: str, default=_REQUIRED):
    if not isinstance(part, dict):
        raise TokenizerError(f"{where} is {type(part).__name__}; expected an object")
    value = part.get(key, default)
    if value is _REQUIRED:
        raise TokenizerError(f"{where} has no {key!r}; the tokenizer file is damaged or of another kind")
    if not isinstance(value, kind):
        raise TokenizerError(f"{where}.{key} is {value!r:.60}; expected {kind.__name__}")
    return value


def _check_id(number, token) -> int:
    if type(number) is not int or not 0 <= number <= HIGHEST_ID:
        raise TokenizerError(f"the token {token!r:.60} has the id {number!r:.40}; expected an integer from 0 to {HIGHEST_ID}")
    return number


def _read(path: Path, largest: int) -> bytes:
    try:
        return read_file(path, largest)
    except OSError as error:
        raise TokenizerError(f"cannot read the tokenizer file {str(path)!r}: {error.strerror or error}") from error


def _read_json(path: Path, largest: int):
    try:
        return parse_json(_read(path, largest), MOST_VALUES)
    except (ValueError, RecursionError) as error:               # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise TokenizerError(f"{str(path)!r} is not valid JSON: {error}; download it again") from error


# --- What both kinds have in common -----------------------------------------------------------------------------------------------

class _Vocabulary:
    """Text -> sections between added tokens -> ids; ids -> bytes -> text. A subclass fills the tables and encodes a section."""

    special: dict[str, int]                 # content of a special token -> its id
    size: int                               # 1 + the highest id
    _ids: dict[str, int]                    # a token as the file writes it -> id
    _bytes: dict[int, bytes]                # id -> what it spells; a special token spells its name
    _special_ids: "set[int]" = set()
    _added_raw: _AddedTokens                # looked for in the text as it is
    _added_normalized = _AddedTokens({})    # looked for in the normalized text
    _normalizers: list = []

    def _normalize(self, text: str) -> str:
        for step in self._normalizers:
            text = step(text)
        return text

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Added tokens in it, special ones included, become their ids; nothing is added around it (see the module)."""
        ids: list[int] = []
        for part in self._added_raw.split(text):
            for section in [part] if isinstance(part, int) else self._added_normalized.split(self._normalize(part)):
                if isinstance(section, int):
                    ids.append(section)
                else:
                    self._encode_section(section, ids)
        return ids

    def token_bytes(self, id: int) -> bytes:
        """The bytes that an id stands for; b"" for special tokens and for ids that the file does not define."""
        if id < 0:
            raise TokenizerError(f"{id} is not a token id; expected 0 or more")
        return b"" if id in self._special_ids else self._bytes.get(id, b"")

    def _speller(self, skip_special: bool = True) -> Callable[[int], bytes]:
        """A function id -> bytes, to be called with the ids of one text in their order."""
        return self.token_bytes if skip_special else lambda id: self._bytes.get(id, b"")

    def decode(self, ids, skip_special: bool = True) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD. Ids that the file does not define give nothing."""
        return b"".join(map(self._speller(skip_special), ids)).decode("utf-8", errors="replace")

    def decoder(self) -> "IncrementalDecoder":
        """For partial output: `feed(id)` gives the text that is certain by now, `finish()` the rest."""
        return IncrementalDecoder(self._speller())

    def id(self, token: str) -> int:
        """The id of a token as the file writes it: an added token's content, a base token in the byte alphabet ("Ġyou"), a piece ("▁you")."""
        if token not in self._ids:
            raise TokenizerError(f"the vocabulary has no token {token!r}; is this the tokenizer of the model that is loaded?")
        return self._ids[token]


class IncrementalDecoder:
    """Joins all results of `feed` and of the one `finish` to what `decode` gives; never emits half a character."""

    def __init__(self, spell: Callable[[int], bytes]):
        self._spell = spell
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, id: int) -> str:
        return self._utf8.decode(self._spell(id))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


# --- Byte-level BPE -----------------------------------------------------------------------------------------------------------------

class Tokenizer(_Vocabulary):
    """Byte-level BPE. `special` maps the content of each added special token to its id; `size` is 1 + the highest id.

    Equal to the tokenizers library but for one case: a special token that a normalizer rewrites is not skipped by `decode` there, and is here.
    """

    @classmethod
    def read(cls, path: "str | Path") -> "Tokenizer":
        """From a `tokenizer.json`. Raises TokenizerError where the file is missing, damaged or asks for something unknown."""
        data = _read_json(Path(path), LARGEST_FILE)
        try:
            return cls(data)
        except TokenizerError as error:
            raise TokenizerError(f"{path}: {error}") from error

    def __init__(self, data: dict):
        model = _get(data, "model", dict, "tokenizer.json")
        if model.get("type", "BPE") != "BPE":
            raise TokenizerError(f"model.type is {model['type']!r}; expected BPE")
        self._vocab = _get(model, "vocab", dict, "model")       # base token in the alphabet -> id
        self._tokens = {_check_id(number, token): token for token, number in self._vocab.items()}
        if len(self._tokens) < len(self._vocab):
            token, number = next((t, n) for t, n in self._vocab.items() if self._tokens[n] != t)
            raise TokenizerError(f"the tokens {token!r} and {self._tokens[number]!r} share the id {number}; the vocabulary is damaged")
        self._read_options(model)
        self._read_merges(_get(model, "merges", list, "model"))
        self._normalizers = _normalizers(data.get("normalizer"))
        self._pre_tokenizers = _pre_tokenizers(data.get("pre_tokenizer"))
        if sum(step.func is _byte_level for step in self._pre_tokenizers) != 1:
            raise TokenizerError("pre_tokenizer must have exactly one ByteLevel step; this tokenizer is for byte-level vocabularies")
        _check_decoder(data.get("decoder"))
        added = data.get("added_tokens")
        self._read_added(_get(data, "added_tokens", list, "tokenizer.json") if added is not None else [])
        if not self._tokens:
            raise TokenizerError("the vocabulary is empty; the tokenizer file is damaged")
        self.size = 1 + max(self._tokens)
        self._bytes = {number: _to_bytes(token) for number, token in self._tokens.items()}
        self._special_ids = set(self.special.values())
        self._cache: dict[str, list[int]] = {}

    def _read_options(self, model: dict) -> None:
        for option in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "dropout"):
            if model.get(option):
                raise TokenizerError(f"model.{option} is {model[option]!r}, which this tokenizer does not implement; expected none")
        missing = [byte for byte, character in enumerate(ALPHABET) if character not in self._vocab]
        if model.get("unk_token") and missing:                  # with all 256 bytes nothing is ever unknown, nor fused (fuse_unk)
            raise TokenizerError(f"model.unk_token is {model['unk_token']!r} and byte 0x{missing[0]:02X} has no token; expected all 256 bytes")
        self._ignore_merges = _get(model, "ignore_merges", bool, "model", False)

    def _read_merges(self, merges: list) -> None:
        # TRAP: without merges every text becomes single bytes, and a model that gets its instruction so ignores it without a word.
        if not merges and any(len(token) > 1 and all(character in _BYTE for character in token) for token in self._vocab):
            raise TokenizerError("model.merges is empty though the vocabulary has longer tokens; the tokenizer file is damaged, download it again")
        self._rank: dict[tuple[int, int], int] = {}             # (left id, right id) -> rank
        self._merged: list[int] = []                            # rank -> id of the joint token
        for rank, merge in enumerate(merges):
            pair = merge.split(" ") if isinstance(merge, str) else merge
            if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(token, str) for token in pair):
                raise TokenizerError(f'merge {rank} is {merge!r:.60}; expected "left right" or ["left", "right"]')
            for token in (*pair, pair[0] + pair[1]):
                if token not in self._vocab:
                    raise TokenizerError(f"merge {rank}, {merge!r:.60}, needs the token {token!r:.60}, which the vocabulary lacks")
            self._rank[self._vocab[pair[0]], self._vocab[pair[1]]] = rank
            self._merged.append(self._vocab[pair[0] + pair[1]])

    def _read_added(self, added: list) -> None:
        if len(added) > MOST_ADDED:
            raise TokenizerError(f"{len(added)} added_tokens; expected at most {MOST_ADDED}")
        self.special: dict[str, int] = {}
        self._ids = dict(self._vocab)                           # base and added tokens; `_encode_piece` must not see the latter
        taken = dict(self._tokens)                              # id -> token as the file writes it
        found = {False: {}, True: {}}                           # normalized -> text to look for -> token
        for position, token in enumerate(added):
            where = f"added_tokens[{position}]"
            content = _get(token, "content", str, where)
            if len(content) > LONGEST_ADDED:
                raise TokenizerError(f"{where} has {len(content)} characters; expected at most {LONGEST_ADDED}")
            number = _check_id(_get(token, "id", object, where), content)
            flags = {flag: _get(token, flag, bool, where, False) for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")}
            # A base token may be named again as an added one, with the same id: Whisper's <|endoftext|>.
            if number in taken and taken[number] != content or self._ids.get(content, number) != number:
                raise TokenizerError(f"{where} {content!r} has the id {number}, but the file already pairs one of the two otherwise: "
                                     f"{taken.get(number)!r} has the id {number}, {content!r} has {self._ids.get(content)}")
            taken[number] = content
            wanted = self._normalize(content) if flags["normalized"] else content
            if not wanted or wanted in found[flags["normalized"]]:
                raise TokenizerError(f"{where} {content!r} is empty or appears twice after normalization")
            found[flags["normalized"]][wanted] = {"id": number, **flags}
            self._tokens[number] = wanted                       # decodes to the text that it is found by, as in the library
            self._ids[content] = number
            if flags["special"]:
                self.special[content] = number
        self._added_raw, self._added_normalized = _AddedTokens(found[False]), _AddedTokens(found[True])

    def _encode_section(self, section: str, ids: list[int]) -> None:
        pieces, until = [section], _now() + MATCHING * (1 + len(section) / 100_000)
        for step in self._pre_tokenizers:
            pieces = [part for piece in pieces for part in step(piece, until) if part]
        for piece in pieces:
            known = self._cache.get(piece)
            if known is None:
                known = self._encode_piece(piece)
                if len(self._cache) >= CACHED_PIECES:
                    self._cache.clear()
                if len(piece) <= 64:
                    self._cache[piece] = known
            ids += known

    def _encode_piece(self, piece: str) -> list[int]:
        """A pre-token in the byte alphabet -> ids, in O(n log n): a linked list of symbols and a heap of (rank, position).

        Vocabularies without a splitting pre-tokenizer have the whole text as one piece; scanning all pairs for each merge would be quadratic.
        """
        if self._ignore_merges and piece in self._vocab:
            return [self._vocab[piece]]
        try:
            symbols: list = [self._vocab[character] for character in piece]
        except KeyError as error:
            # The tokenizers library drops such bytes from the text. An error is better than a changed instruction.
            raise TokenizerError(f"the vocabulary has no token for the byte that {error.args[0]!r} stands for; expected all 256 bytes") from None
        n, rank, merged = len(symbols), self._rank, self._merged
        if n == 1:
            return symbols
        before, after = list(range(-1, n - 1)), list(range(1, n + 1))
        heap = [r * n + i for i, pair in enumerate(zip(symbols, symbols[1:])) if (r := rank.get(pair)) is not None]
        heapq.heapify(heap)                                     # one integer an entry: rank first, then position
        while heap:
            r, i = divmod(heapq.heappop(heap), n)
            j = after[i]
            if symbols[i] is None or j == n:
                continue
            now = rank.get((symbols[i], symbols[j]))
            if now is None or merged[now] != merged[r]:         # an older entry: one of its two symbols has merged since
                continue
            symbols[i], symbols[j] = merged[r], None
            k = after[i] = after[j]
            if k < n:
                before[k] = i
                if (new := rank.get((symbols[i], symbols[k]))) is not None:
                    heapq.heappush(heap, new * n + i)
            h = before[i]
            if h >= 0 and (new := rank.get((symbols[h], symbols[i]))) is not None:
                heapq.heappush(heap, new * n + h)
        return [symbol for symbol in symbols if symbol is not None]


# --- A list of tokens -----------------------------------------------------------------------------------------------------------------

class TokenList(_Vocabulary):
    """Byte-level tokens in the order of their ids, as CTranslate2 keeps them beside a model. Special are those like `<|en|>`, times too.

    It decodes. It can't encode: the ids of a text follow from the merges, which the list doesn't have.
    """

    _added_raw = _AddedTokens({})

    @classmethod
    def read(cls, path: "str | Path") -> "TokenList":
        """From a `vocabulary.json`, a list, or a `vocabulary.txt`, a token a line. Raises TokenizerError."""
        path = Path(path)
        if path.suffix == ".json":
            return cls(_read_json(path, LARGEST_FILE), path)
        try:
            lines = _read(path, LARGEST_FILE).decode("utf-8").removesuffix("\n").split("\n")     # TRAP: `splitlines` knows other ends of lines
        except UnicodeDecodeError as error:
            raise TokenizerError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); download it again") from None
        return cls(lines, path)

    def __init__(self, tokens: list[str], path: "str | Path"):
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens) or not len(tokens) <= HIGHEST_ID:
            raise TokenizerError(f"{path}: expected a list of at most {HIGHEST_ID} tokens")
        self._path, self.size = path, len(tokens)
        self._ids = {token: id for id, token in reversed(list(enumerate(tokens)))}      # the first, where one is there twice
        self._bytes = {id: _to_bytes(token) for id, token in enumerate(tokens)}
        self.special = {token: id for token, id in self._ids.items() if regex.fullmatch(r"<\|.{1,40}\|>", token)}
        self._special_ids = set(self.special.values())

    def encode(self, text: str) -> list[int]:
        raise TokenizerError(f"{self._path}: a list of tokens can't say which of them make up a text; expected a tokenizer.json beside it")


# --- SentencePiece -------------------------------------------------------------------------------------------------------------------

SPACE = "\u2581"                # how a piece writes a space


class SentencePieceTokenizer(_Vocabulary):
    """SentencePiece, with special tokens behind the pieces. `special` maps each of them to its id; `size` is 1 + the highest id.

    A text without special tokens gets the ids that the sentencepiece library gives it, unknown characters the id of `<unk>` included. Special
    tokens in a text become their ids, and what stands between them is encoded as a text of its own. `decode` gives the library's text, " ⁇ "
    for `<unk>` included, but for one case: of half a character it makes one U+FFFD, the library as many as there are bytes.
    Control pieces (`<s>`, `</s>`) are never found in a text and spell nothing.
    """

    @classmethod
    def read(cls, path: "str | Path") -> "SentencePieceTokenizer":
        """From a `tokenizer.model` and the `added_tokens.json` beside it. Raises TokenizerError where one is missing or damaged."""
        path = Path(path)
        model, added = _read(path, LARGEST_MODEL), _read_json(path.with_name("added_tokens.json"), LARGEST_CONFIG)
        try:
            return cls(model, added)
        except TokenizerError as error:
            raise TokenizerError(f"{path.parent}: {error}") from error

    def __init__(self, model: bytes, added: dict[str, int]):
        try:
            self._read_pieces(model)
        except (RuntimeError, ValueError) as error:             # ValueError: a piece, or the message about it, is not UTF-8
            raise TokenizerError(f"tokenizer.model is damaged or no SentencePiece model: {error}; download it again") from error
        self._read_added(added)
        self.size = len(self._ids)

    def _read_pieces(self, model: bytes) -> None:
        from sentencepiece import SentencePieceProcessor
        self._model = SentencePieceProcessor()
        self._model.LoadFromSerializedProto(model)
        pieces = [self._model.id_to_piece(id) for id in range(self._model.get_piece_size())]
        self._ids = {piece: id for id, piece in enumerate(pieces)}
        self._bytes = {id: self._piece_bytes(id, piece) for id, piece in enumerate(pieces)}
        # In front of a text the library drops one space (`add_dummy_prefix`), all of them (`remove_extra_whitespaces`), or none. What it does
        # with this model is asked, not read: what each piece spells there; and the piece of a space alone, if it is dropped only once.
        self._at_start = {id: self._model.decode([id]).encode() for id, piece in enumerate(pieces) if piece.startswith(SPACE)}
        space = self._ids.get(SPACE)
        self._dropped_once = space if space is not None and self._model.decode([space, space]) else None
        whole = [id for id in self._bytes if not self._model.is_byte(id)]
        if self.decode(whole) != self._model.decode(whole):
            raise TokenizerError("tokenizer.model decodes by rules that this tokenizer does not implement, such as a denormalizer; expected none")

    def _piece_bytes(self, id: int, piece: str) -> bytes:
        if self._model.is_byte(id):
            return bytes([int(piece[1:-1], 16)])                # <0xE5>
        if self._model.is_control(id):
            return b""
        return self._model.decode([id]).encode() if self._model.is_unknown(id) else piece.replace(SPACE, " ").encode()

    def _read_added(self, added: dict[str, int]) -> None:
        if not isinstance(added, dict):
            raise TokenizerError(f"added_tokens.json is {type(added).__name__}; expected an object: special token -> id")
        if len(added) > MOST_ADDED or max(map(len, added), default=0) > LONGEST_ADDED:
            raise TokenizerError(f"added_tokens.json: {len(added)} tokens of up to {max(map(len, added))} characters; expected at most "
                                 f"{MOST_ADDED} of at most {LONGEST_ADDED}")
        pieces = len(self._ids)
        for token, id in added.items():
            if not token or token in self._ids:
                raise TokenizerError(f"added_tokens.json: the token {token!r:.60} is empty or a piece of tokenizer.model as well; "
                                     "expected another name")
            self._bytes[_check_id(id, token)] = _utf8(token)
        for expected, (token, id) in enumerate(sorted(added.items(), key=lambda item: item[1]), start=pieces):
            if id != expected:
                raise TokenizerError(f"added_tokens.json: {token!r:.60} has the id {id}, expected {expected}: special tokens follow the "
                                     f"{pieces} pieces of tokenizer.model, without a gap; is it the file of another model?")
        self.special = dict(added)
        self._special_ids = set(added.values())
        self._ids.update(added)
        plain = {"single_word": False, "lstrip": False, "rstrip": False}
        self._added_raw = _AddedTokens({token: {"id": id, **plain} for token, id in added.items()})

    def _encode_section(self, section: str, ids: list[int]) -> None:
        ids += self._model.encode(_utf8(section))

    def _speller(self, skip_special: bool = True) -> Callable[[int], bytes]:
        at_start = True

        def spell(id: int) -> bytes:
            nonlocal at_start
            if not skip_special and id in self._special_ids:
                at_start = True                                 # as `encode` puts a space of its own in front of what follows
                return self._bytes[id]
            code = self.token_bytes(id)
            if at_start:
                code = self._at_start.get(id, code)
                at_start = not code and id != self._dropped_once
            return code
        return spell


KINDS = {"tokenizer.json": Tokenizer, "tokenizer.model": SentencePieceTokenizer, "vocabulary.json": TokenList, "vocabulary.txt": TokenList}


def tokenizer_file(directory: "str | Path") -> "Path | None":
    """The first of KINDS that is in a model directory.

    Where several are, `tokenizer.json` counts: Transformers reads that one too, so a model gets the ids here that it gets there.
    """
    return next((path for name in KINDS if (path := Path(directory) / name).is_file()), None)


def read_tokenizer(directory: "str | Path") -> "Tokenizer | SentencePieceTokenizer | TokenList":
    """The tokenizer of a model directory. Raises TokenizerError."""
    path = tokenizer_file(directory)
    if path:
        return KINDS[path.name].read(path)
    raise TokenizerError(f"{str(directory)!r} has neither tokenizer.json (byte-level BPE) nor tokenizer.model (SentencePiece); "
                         "expected one of them, or for decoding alone a vocabulary.json or .txt, beside config.json: download the model again")


def read_special(directory: "str | Path") -> dict[str, int]:
    """The special tokens of a model directory and their ids; of a `tokenizer.json` without the second that all of it takes. Raises TokenizerError."""
    path = Path(directory) / "tokenizer.json"
    if not path.is_file():
        return read_tokenizer(directory).special
    tokens = _get(_read_json(path, LARGEST_FILE), "added_tokens", list, path.name, [])
    found = [(_get(token, "content", str, path.name), token) for token in tokens if _get(token, "special", bool, path.name, False)]
    return {content: _check_id(_get(token, "id", object, path.name), content) for content, token in found}


# --- Time tokens --------------------------------------------------------------------------------------------------------------------

def time_token(seconds: float) -> str:
    """The token of the step that is nearest to a time.

    >>> time_token(1.2345)
    '<|1.24|>'
    """
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{seconds} is not a time; expected 0 or more seconds")
    return f"<|{round(seconds / TIME_STEP) * TIME_STEP:.2f}|>"


def seconds_of(token: str) -> "float | None":
    """The time that a token names, None for a token that is no time.

    >>> seconds_of("<|1.24|>"), seconds_of("<|1.25|>"), seconds_of("<|en|>")
    (1.24, None, None)
    """
    found = regex.fullmatch(r"<\|([0-9]{1,9}\.[0-9]{2})\|>", token)
    return float(found[1]) if found and time_token(float(found[1])) == token else None
