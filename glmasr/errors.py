"""The errors that a user can meet. Each message says the value found, what was expected, and the way out.

Everything that a user's input can cause is a `GlmAsrError`: the command line prints its message on one line, without a
traceback. Any other exception is a defect of this package.
"""


class GlmAsrError(Exception):
    """Base of all errors that the package raises on purpose."""


class AudioError(GlmAsrError):
    """A recording cannot be read or holds nothing that can be recognised."""


class CheckpointError(GlmAsrError):
    """A model directory, its configuration or its weights cannot be used."""


class TokenizerError(CheckpointError):
    """A tokenizer file is damaged or asks for something that this tokenizer does not implement."""


class OptionError(GlmAsrError):
    """An argument of the public interface or the command line is out of range or contradicts another one."""
