"""A SentencePiece `tokenizer.model` and the `added_tokens.json` beside it -> the tables of the tokenizer.

What the library does with a model is asked, not read: a `tokenizer.model` is a protobuf whose options change both ways.
"""

from dataclasses import dataclass
from typing import Any

from ..errors import TokenizerError
from .added_tokens import AddedToken
from .vocabulary import LONGEST_ADDED, MOST_ADDED, check_id

LARGEST_MODEL = 6_000_000  # bytes of a tokenizer.model; that of Gemma 3 has 4.7
SPACE = "\u2581"  # how a piece writes a space


@dataclass(frozen=True)
class Pieces:
    """A SentencePiece model, and what its pieces spell."""

    library: Any  # a SentencePieceProcessor
    ids: dict[str, int]  # piece -> id
    spelled: dict[int, bytes]  # id -> its bytes within a text
    at_start: dict[int, bytes]  # the same of the pieces that begin with a space, in front of a text
    dropped_once: int | None  # the piece of a space alone, if only one of them is dropped in front of a text


def read_pieces(model: bytes) -> Pieces:
    """Raises RuntimeError and ValueError for a damaged model: a piece, or the message about it, may not be UTF-8."""
    from sentencepiece import SentencePieceProcessor

    library = SentencePieceProcessor()
    library.LoadFromSerializedProto(model)
    pieces = [library.id_to_piece(number) for number in range(library.get_piece_size())]
    ids = {piece: number for number, piece in enumerate(pieces)}
    spelled = {number: _spelled(library, number, piece) for number, piece in enumerate(pieces)}
    # In front of a text the library drops one space (`add_dummy_prefix`), all of them (`remove_extra_whitespaces`), or
    # none.
    at_start = {number: library.decode([number]).encode() for piece, number in ids.items() if piece.startswith(SPACE)}
    space = ids.get(SPACE)
    dropped_once = space if space is not None and library.decode([space, space]) else None
    return Pieces(library, ids, spelled, at_start, dropped_once)


def _spelled(library: Any, number: int, piece: str) -> bytes:
    if library.is_byte(number):
        return bytes([int(piece[1:-1], 16)])  # <0xE5>
    if library.is_control(number):
        return b""
    if library.is_unknown(number):
        unknown: str = library.decode([number])
        return unknown.encode()
    return piece.replace(SPACE, " ").encode()


def parse_added(added: Any, pieces: dict[str, int]) -> list[AddedToken]:
    """The special tokens of an `added_tokens.json`, whose ids follow those of the pieces. Raises TokenizerError."""
    if not isinstance(added, dict):
        raise TokenizerError(f"added_tokens.json is {type(added).__name__}; expected an object: special token -> id")
    longest = max(map(len, added), default=0)
    if len(added) > MOST_ADDED or longest > LONGEST_ADDED:
        raise TokenizerError(
            f"added_tokens.json: {len(added)} tokens of up to {longest} characters; expected at most {MOST_ADDED} of "
            f"at most {LONGEST_ADDED}"
        )
    for token, number in added.items():
        if not token or token in pieces:
            raise TokenizerError(
                f"added_tokens.json: the token {token!r:.60} is empty or a piece of tokenizer.model as well; expected "
                "another name"
            )
        check_id(number, token)
    for expected, (token, number) in enumerate(sorted(added.items(), key=lambda item: item[1]), start=len(pieces)):
        if number != expected:
            raise TokenizerError(
                f"added_tokens.json: {token!r:.60} has the id {number}, expected {expected}: special tokens follow the "
                f"{len(pieces)} pieces of tokenizer.model, without a gap; is it the file of another model?"
            )
    return [AddedToken(number, token, token, special=True) for token, number in added.items()]
