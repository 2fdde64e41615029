"""Text of a user's that goes into the decoder's prompt: its ids, and nothing but text."""

from ..errors import OptionError, TokenizerError
from .language import AnyTokenizer

PREVIOUS = "<|startofprev|>"  # of Whisper: what was said before follows, up to <|startoftranscript|>


def plain_ids(tokenizer: AnyTokenizer, text: str, name: str) -> list[int]:
    """The ids of a text; `name` is that of the option. Raises OptionError for special tokens in it, which say something
    else than their letters, and where the vocabulary can only be decoded."""
    try:
        ids = tokenizer.encode(text)
    except TokenizerError as error:
        raise OptionError(f"{name} needs a tokenizer that encodes: {error}") from None
    special = {number: token for token, number in tokenizer.special.items()}
    if found := [special[number] for number in ids if number in special]:
        raise OptionError(f"{name} has the special token {found[0]!r}, expected plain text; leave it out")
    return ids


def previous(tokenizer: AnyTokenizer, text: str, positions: int, name: str = "prompt") -> list[int]:
    """What goes before the prompt of a window, as of openai/whisper, decoding.py: <|startofprev|> and the last tokens
    of a text that fit into half of the positions. [] for none. Raises OptionError."""
    text = " ".join(text.split())
    if not text:
        return []
    if PREVIOUS not in tokenizer.special:
        raise OptionError(
            f"{name} is given, but this model's vocabulary has no {PREVIOUS}, behind which Whisper reads what was said "
            "before; expected a Whisper, or hotwords for names"
        )
    ids = plain_ids(tokenizer, f" {text}", name)
    return [tokenizer.special[PREVIOUS], *ids[-(positions // 2 - 1) :]]
