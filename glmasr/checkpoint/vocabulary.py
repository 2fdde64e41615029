"""What the tokenizer files of all kinds share: the byte alphabet, values that are checked, and their bounds.

A file cannot hold raw bytes in JSON, so GPT-2 (openai/gpt-2 `encoder.py`) gave each byte a printable stand-in:
printable Latin-1 stands for itself, the 68 others are U+0100, U+0101, ... in order. A space is `Ġ`, a newline `Ċ`,
大 is `å¤§`.
"""

from pathlib import Path
from typing import Any, TypeVar

from ..errors import TokenizerError
from .json_file import parse_json, read_file

HIGHEST_ID = 2**24  # an id above is damage: tables here are as long as the highest id
LARGEST_FILE = 36_000_000  # bytes of a tokenizer.json; that of Gemma 3 has 33
MOST_VALUES = 180_000_000  # bytes of memory that a tokenizer.json takes: those of 300,000 tokens and 600,000 merges
MOST_ADDED = 100_000  # tokens beside the vocabulary
LONGEST_ADDED = 1000  # characters of one of them


# -- The byte alphabet -------------------------------------------------------------------------------------------------


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
BYTE = {character: byte for byte, character in enumerate(ALPHABET)}
_TO_ALPHABET = dict(enumerate(ALPHABET))


def utf8(text: str) -> bytes:
    """Raises TokenizerError for half of a surrogate pair."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        surrogate = ord(text[error.start])
        raise TokenizerError(f"the text has the lone surrogate U+{surrogate:04X}, which UTF-8 cannot hold") from error


def to_alphabet(text: str) -> str:
    """The UTF-8 bytes of a text, each as its character of the byte alphabet. Raises TokenizerError as `utf8`."""
    return utf8(text).decode("latin-1").translate(_TO_ALPHABET)


def to_bytes(token: str) -> bytes:
    """The bytes that a token in the byte alphabet stands for. Raises TokenizerError as `utf8`."""
    # TRAP: an added token such as "<|大|>" is not written in the alphabet; then the whole token is its own UTF-8.
    try:
        return bytes([BYTE[character] for character in token])
    except KeyError:
        return utf8(token)


# -- Checked values: a wrong one would mean wrong ids without a word ---------------------------------------------------

T = TypeVar("T")
_REQUIRED: Any = object()


def get(part: Any, key: str, kind: type[T], where: str, default: T = _REQUIRED) -> T:
    """The value of a key of an object, which has to be of a type. `where` names the object in a TokenizerError."""
    if not isinstance(part, dict):
        raise TokenizerError(f"{where} is {type(part).__name__}; expected an object")
    value = part.get(key, default)
    if value is _REQUIRED:
        raise TokenizerError(f"{where} has no {key!r}; the tokenizer file is damaged or of another kind")
    if not isinstance(value, kind):
        raise TokenizerError(f"{where}.{key} is {value!r:.60}; expected {kind.__name__}")
    return value


def check_id(number: Any, token: str) -> int:
    """The id of a token, which has to be an int from 0 to HIGHEST_ID. Raises TokenizerError."""
    if type(number) is not int or not 0 <= number <= HIGHEST_ID:
        raise TokenizerError(
            f"the token {token!r:.60} has the id {number!r:.40}; expected an integer from 0 to {HIGHEST_ID}"
        )
    return number


def read_bytes(path: Path, largest: int) -> bytes:
    """The content of a tokenizer file of at most `largest` bytes. Raises TokenizerError."""
    try:
        return read_file(path, largest)
    except OSError as error:
        raise TokenizerError(f"cannot read the tokenizer file {str(path)!r}: {error.strerror or error}") from error


def read_values(path: Path, largest: int) -> Any:
    """What a JSON file of at most `largest` bytes says. Raises TokenizerError."""
    try:
        return parse_json(read_bytes(path, largest), MOST_VALUES)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise TokenizerError(f"{str(path)!r} is not valid JSON: {error}; download it again") from error
