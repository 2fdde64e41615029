"""What goes into the decoder's prompt before its own tokens: text of a user's, as nothing but text; and what was said
before, with its times."""

import math

import regex

from ..config import TIME_STEP
from ..errors import OptionError, TokenizerError
from .language import AnyTokenizer, spaced
from .results import Part

UNSURE, MOST_RANDOM = -0.5, 0.5  # mean log-probability, temperature of a text that isn't gone on with
KEPT = 2000  # characters of what was said before: more than fit
COPIED = 8  # characters of a text that was in what was said before, and is looked at
DOUBTED = -0.3  # mean log-probability; a less sure text is compared with that without what was said before
PREVIOUS = "<|startofprev|>"  # of Whisper: what was said before follows, up to <|startoftranscript|>
_TIME = regex.compile(r"<\|(\d+\.\d\d)\|>")  # in what was said before, as Whisper's vocabularies call it


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


def previous(
    tokenizer: AnyTokenizer, prompt: str, context: str, positions: int, first_time: int | None = None
) -> list[int]:
    """What goes before the prompt of a window, as of openai/whisper, decoding.py: <|startofprev|>, the user's prompt,
    and what was said before, as many of their last tokens as fit into half of the positions. [] for none. Raises
    OptionError.

    first_time: the id of <|0.00|>, if the window is to have times. TRAP: after a text without times a model soon writes
        none either; a window then ends in the middle of a sentence, and speech before its end is lost.
    """
    prompt, room = " ".join(prompt.split()), positions // 2 - 1
    if not prompt and not context:
        return []
    check_previous(tokenizer, "prompt" if prompt else "context")
    ids = plain_ids(tokenizer, f" {prompt}", "prompt")[-room:] if prompt else []
    said: list[int] = []
    if first_time is None:
        said = tokenizer.encode(_TIME.sub("", context))
    else:
        for place, piece in enumerate(_TIME.split(context)):  # text, time, text, ...
            said += [first_time + round(float(piece) / TIME_STEP)] if place % 2 else tokenizer.encode(piece)
    return [tokenizer.special[PREVIOUS], *ids, *said[max(0, len(said) + len(ids) - room) :]]


def remembered(context: str, part: Part) -> str:
    """What was said up to the end of a part, "<|0.00|> One.<|2.40|>", its times from the start of their window; nothing
    if the part isn't sure, as of transcribe.py of openai/whisper: a wrong text would be gone on with."""
    sure = not part.failed and all(
        segment.mean_logprob >= UNSURE and segment.temperature <= MOST_RANDOM for segment in part.segments
    )
    if not sure:
        return ""
    for segment, text in zip(part.segments, spaced([one.text for one in part.segments]), strict=True):
        # TRAP: text of a recording may spell a special token.
        start, end = (max(0.0, time - part.start) for time in (segment.start, segment.end))
        context += f"<|{start:.2f}|>{text.replace('<|', '')}<|{end:.2f}|>"
    return context[max(0, context.find("<|", len(context) - KEPT)) :]


def copied(context: str, part: Part) -> bool:
    """Whether a text may be a copy of what stands before it: the model then goes on writing that, whatever is said."""
    said = " ".join(segment.text for segment in part.segments)
    return len(said) >= COPIED and said in " ".join(_TIME.sub(" ", context).split())


def sureness(part: Part, context: str = "") -> float:
    """The mean log-probability of the least sure segment; less than all for no text, one that fails the checks, or a
    copy of `context`."""
    sure = [segment.mean_logprob for segment in part.segments]
    return min(sure) if sure and not part.failed and not copied(context, part) else -math.inf
