"""The errors that a user can meet. Each message says the value found, what was expected, and the way out.

Everything that a user's input can cause is a `GlmAsrError`: the command line prints its message on one line, without a
traceback. Any other exception is a defect of this package.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

LONGEST = 1000  # characters of a message
# What PyTorch and oneDNN say.
NO_MEMORY = re.compile("ried to allocate|out of memory|annot allocate memory|could not create a memory")


def printable(text: str) -> str:
    """The text with what a terminal would obey escaped: control characters, breaks of lines, changes of direction."""
    return re.sub(r"[^\x20-\x7e\xa0-\U0010ffff]|[\u2028-\u202e\u2066-\u2069]", lambda found: repr(found[0])[1:-1], text)


def redacted(text: str) -> str:
    """The text without the users and passwords of the addresses in it.

    >>> redacted("https://me:secret@example.org/a.wav: no such thing")
    'https://***@example.org/a.wav: no such thing'
    >>> redacted("https://me:12/34@example.org/"), redacted("https://example.org/@me/a.wav")
    ('https://***@example.org/', 'https://example.org/@me/a.wav')
    """
    # A password may hold what ends a host, so after a colon all up to the last @ may be one.
    return re.sub(r"\b([A-Za-z][\w+.-]+)://(?:[^\s/?#]*@|[^\s@]*:\S*@)", r"\1://***@", text)


class GlmAsrError(Exception):
    """Base of all errors that the package raises on purpose.

    A message may quote a hostile file: control characters but line breaks are escaped, and the middle of an endless one
    is left out. So are the users and passwords of addresses.

    transcripts     where a list of recordings was transcribed: those of the others, None of those that failed
    """

    transcripts: Sequence[Any] = ()

    def __str__(self) -> str:
        text = redacted(super().__str__())
        if len(text) > LONGEST:
            text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
        return "\n".join(map(printable, text.split("\n")))


class AudioError(GlmAsrError):
    """A recording cannot be read or holds nothing that can be recognized."""


class CheckpointError(GlmAsrError):
    """A model directory, its configuration or its weights cannot be used."""


class TokenizerError(CheckpointError):
    """A tokenizer file is damaged or asks for something that this tokenizer does not implement."""


class OptionError(GlmAsrError):
    """An argument of the public interface or the command line is out of range or contradicts another one."""


class ShortMemoryError(GlmAsrError):
    """A device's memory doesn't hold the work, not even one window at a time."""


class OutputError(GlmAsrError):
    """A result cannot be written: a full disk, a folder without permission."""


class Cancelled(Exception):
    """The recording was canceled by whoever asked for it. Not an error, and nothing to report."""


@contextmanager
def about(file: object) -> Iterator[None]:
    """Within this context, a CheckpointError names the file."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is missing: on a CPU PyTorch has no type of its own for that."""
    return isinstance(error, MemoryError) or isinstance(error, RuntimeError) and bool(NO_MEMORY.search(str(error)))
