"""The errors that a user can meet. Each message says the value found, what was expected, and the way out.

Everything that a user's input can cause is a `GlmAsrError`: the command line prints its message on one line, without a
traceback. Any other exception is a defect of this package.
"""

import re

LONGEST = 1000                  # characters of a message


class GlmAsrError(Exception):
    """Base of all errors that the package raises on purpose.

    A message may quote a hostile file: control characters, which a terminal would obey, are escaped, and the middle of an
    endless one is left out.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) > LONGEST:
            text = f"{text[:LONGEST // 2]} ... {text[-LONGEST // 2:]}"
        return re.sub(r"[^\n\x20-\x7e\xa0-\U0010ffff]", lambda found: repr(found[0])[1:-1], text)


class AudioError(GlmAsrError):
    """A recording cannot be read or holds nothing that can be recognised."""


class CheckpointError(GlmAsrError):
    """A model directory, its configuration or its weights cannot be used."""


class TokenizerError(CheckpointError):
    """A tokenizer file is damaged or asks for something that this tokenizer does not implement."""


class OptionError(GlmAsrError):
    """An argument of the public interface or the command line is out of range or contradicts another one."""


class OutputError(GlmAsrError):
    """A result cannot be written: a full disk, a folder without permission."""
