"""A `tokenizer.json` with byte-level BPE -> what the tokenizer needs of it, every value checked.

Not applied, on purpose: `post_processor` (it adds special tokens around a text; a prompt here is put together from ids,
and a template applied twice is a classic defect), `truncation` and `padding` (settings of the batch that was encoded
last when the file was saved; Transformers resets them on each call), `trim_offsets` (no offsets here).

Anything else in the file that would change the ids and is not implemented is a TokenizerError that names it.
"""

from dataclasses import dataclass
from functools import reduce
from typing import Any

from ..errors import TokenizerError
from .added_tokens import AddedToken
from .json_file import Json
from .pre_tokenizers import Normalizer, PreTokenizer, read_normalizers, read_pre_tokenizers
from .vocabulary import ALPHABET, BYTE, LONGEST_ADDED, MOST_ADDED, check_id, get


@dataclass(frozen=True)
class TokenizerJson:
    """What a `tokenizer.json` says."""

    vocabulary: dict[str, int]  # base token in the byte alphabet -> id
    rank: dict[tuple[int, int], int]  # (left id, right id) -> place of the pair in the list of merges
    joint: list[int]  # that place -> id of the joint token
    ignore_merges: bool
    normalizers: list[Normalizer]
    pre_tokenizers: list[PreTokenizer]
    added: list[AddedToken]


def parse_tokenizer(data: Any) -> TokenizerJson:
    """From the JSON object of the file, which is not changed. Raises TokenizerError."""
    model: Json = get(data, "model", dict, "tokenizer.json")
    if model.get("type", "BPE") != "BPE":
        raise TokenizerError(f"model.type is {model['type']!r}; expected BPE")
    vocabulary: dict[str, int] = get(model, "vocab", dict, "model")
    tokens = {check_id(number, token): token for token, number in vocabulary.items()}
    if len(tokens) < len(vocabulary):
        token, number = next((t, n) for t, n in vocabulary.items() if tokens[n] != t)
        raise TokenizerError(
            f"the tokens {token!r} and {tokens[number]!r} share the id {number}; the vocabulary is damaged"
        )
    _check_options(model, vocabulary)
    rank, joint = _merges(get(model, "merges", list, "model"), vocabulary)
    normalizers = read_normalizers(data.get("normalizer"))
    pre_tokenizers = read_pre_tokenizers(data.get("pre_tokenizer"))
    _check_decoder(data.get("decoder"), "decoder")
    added = get(data, "added_tokens", list, "tokenizer.json") if data.get("added_tokens") is not None else []
    added = _added_tokens(added, vocabulary, tokens, normalizers)
    if not tokens and not added:
        raise TokenizerError("the vocabulary is empty; the tokenizer file is damaged")
    ignore_merges = get(model, "ignore_merges", bool, "model", False)
    return TokenizerJson(vocabulary, rank, joint, ignore_merges, normalizers, pre_tokenizers, added)


def _check_options(model: Json, vocabulary: dict[str, int]) -> None:
    for option in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "dropout"):
        if model.get(option):
            raise TokenizerError(
                f"model.{option} is {model[option]!r}, which this tokenizer does not implement; expected none"
            )
    missing = [byte for byte, character in enumerate(ALPHABET) if character not in vocabulary]
    if model.get("unk_token") and missing:  # with all 256 bytes nothing is ever unknown, nor fused (fuse_unk)
        raise TokenizerError(
            f"model.unk_token is {model['unk_token']!r} and byte 0x{missing[0]:02X} has no token; expected all 256 "
            "bytes"
        )


def _merges(merges: list[Any], vocabulary: dict[str, int]) -> tuple[dict[tuple[int, int], int], list[int]]:
    # TRAP: without merges every text becomes single bytes, and a model that gets its instruction so ignores it without
    # a word.
    if not merges and any(len(token) > 1 and all(character in BYTE for character in token) for token in vocabulary):
        raise TokenizerError(
            "model.merges is empty though the vocabulary has longer tokens; the tokenizer file is damaged, download it "
            "again"
        )
    rank: dict[tuple[int, int], int] = {}
    joint: list[int] = []
    for place, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(token, str) for token in pair):
            raise TokenizerError(f'merge {place} is {merge!r:.60}; expected "left right" or ["left", "right"]')
        left, right = pair
        for token in (left, right, left + right):
            if token not in vocabulary:
                raise TokenizerError(
                    f"merge {place}, {merge!r:.60}, needs the token {token!r:.60}, which the vocabulary lacks"
                )
        rank[vocabulary[left], vocabulary[right]] = place
        joint.append(vocabulary[left + right])
    return rank, joint


def _check_decoder(part: Any, where: str) -> None:
    kind = get(part, "type", str, where) if part else None
    inner: list[Any] = get(part, "decoders", list, where) if kind == "Sequence" else []
    if kind == "Sequence" and len(inner) == 1:
        _check_decoder(inner[0], f"{where}.decoders[0]")
    elif kind != "ByteLevel":
        raise TokenizerError(
            f"{where} is {kind or part!r}; expected ByteLevel, since this tokenizer is for byte-level vocabularies"
        )


def _added_tokens(
    added: list[Any], vocabulary: dict[str, int], tokens: dict[int, str], normalizers: list[Normalizer]
) -> list[AddedToken]:
    if len(added) > MOST_ADDED:
        raise TokenizerError(f"{len(added)} added_tokens; expected at most {MOST_ADDED}")
    ids, taken = dict(vocabulary), dict(tokens)  # both ways, of base and added tokens as the file writes them
    result: dict[tuple[bool, str], AddedToken] = {}
    for position, entry in enumerate(added):
        where = f"added_tokens[{position}]"
        content = get(entry, "content", str, where)
        if len(content) > LONGEST_ADDED:
            raise TokenizerError(f"{where} has {len(content)} characters; expected at most {LONGEST_ADDED}")
        number = check_id(get(entry, "id", object, where), content)
        names = ("single_word", "lstrip", "rstrip", "normalized", "special")
        flags = {name: get(entry, name, bool, where, False) for name in names}
        # A base token may be named again as an added one, with the same id: Whisper's <|endoftext|>.
        if taken.get(number, content) != content or ids.get(content, number) != number:
            raise TokenizerError(
                f"{where} {content!r} has the id {number}, but the file already pairs one of the two otherwise: "
                f"{taken.get(number)!r} has the id {number}, {content!r} has {ids.get(content)}"
            )
        ids[content], taken[number] = number, content
        wanted = reduce(lambda text, step: step(text), normalizers, content) if flags["normalized"] else content
        if not wanted or (flags["normalized"], wanted) in result:
            raise TokenizerError(f"{where} {content!r} is empty or appears twice after normalization")
        result[flags["normalized"], wanted] = AddedToken(number, content, wanted, **flags)
    return list(result.values())


def special_tokens(data: Any, name: str) -> dict[str, int]:
    """The special tokens of a `tokenizer.json` and their ids, without the rest of it. `name`: of the file."""
    tokens: list[Any] = get(data, "added_tokens", list, name, [])
    special = [
        (get(token, "content", str, name), token) for token in tokens if get(token, "special", bool, name, False)
    ]
    return {content: check_id(get(token, "id", object, name), content) for content, token in special}
