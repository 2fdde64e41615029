"""Text of a user's that goes into the decoder's prompt: its ids, and nothing but text."""

from ..errors import OptionError, TokenizerError
from .language import AnyTokenizer
from .results import Part

UNSURE, MOST_RANDOM = -0.5, 0.5  # mean log-probability, temperature of a text that isn't gone on with
KEPT = 2000  # characters of what was said before: more than fit
COPIED = 8  # characters of a text that was in what was said before, and is looked at
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


def check_previous(tokenizer: AnyTokenizer, name: str) -> None:
    """Raises OptionError for a vocabulary that has no place for what was said before."""
    if PREVIOUS not in tokenizer.special:
        raise OptionError(
            f"{name} is given, but this model's vocabulary has no {PREVIOUS}, behind which Whisper reads what was said "
            "before; expected a Whisper, or hotwords for names"
        )


def previous(tokenizer: AnyTokenizer, prompt: str, context: str, positions: int) -> list[int]:
    """What goes before the prompt of a window, as of openai/whisper, decoding.py: <|startofprev|>, the user's prompt,
    and what was said before, as many of their last tokens as fit into half of the positions. [] for none. Raises
    OptionError."""
    prompt, room = " ".join(prompt.split()), positions // 2 - 1
    if not prompt and not context:
        return []
    check_previous(tokenizer, "prompt" if prompt else "context")
    ids = plain_ids(tokenizer, f" {prompt}", "prompt")[-room:] if prompt else []
    if context and len(ids) < room:
        ids += tokenizer.encode(f" {context}")[len(ids) - room :]
    return [tokenizer.special[PREVIOUS], *ids]


def remembered(context: str, part: Part) -> str:
    """What was said up to the end of a part; nothing if the part isn't sure, as of transcribe.py of openai/whisper: a
    wrong text would be gone on with."""
    sure = not part.failed and all(
        segment.mean_logprob >= UNSURE and segment.temperature <= MOST_RANDOM for segment in part.segments
    )
    said = " ".join([context, *(segment.text for segment in part.segments)]).strip()
    # TRAP: text of a recording may spell a special token.
    return said[-KEPT:].replace("<|", "") if sure else ""


def copied(context: str, part: Part) -> bool:
    """Whether a text may be a copy of what stands before it: the model then goes on writing that, whatever is said."""
    said = " ".join(segment.text for segment in part.segments)
    return len(said) >= COPIED and said in context
