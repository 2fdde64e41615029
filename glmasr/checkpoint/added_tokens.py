"""Added tokens, such as <|user|>: found in a text before anything else."""

from collections.abc import Iterable
from dataclasses import dataclass

import regex

_SPACES_BEFORE = regex.compile(r"(?r)\s*")  # (?r) searches backwards
_SPACES_AFTER = regex.compile(r"\s*")
_WORD = regex.compile(r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]")


@dataclass(frozen=True)
class AddedToken:
    """A token that is looked for in a text before anything else."""

    number: int  # its id
    content: str  # as the file writes it
    wanted: str  # as it is looked for: normalized, if the text that it is looked for in is
    normalized: bool = False  # it is looked for in the normalized text
    special: bool = False
    single_word: bool = False  # letters and digits beside it make it something else
    lstrip: bool = False  # it takes in the white space before it
    rstrip: bool = False  # it takes in the white space after it


class AddedTokens:
    """Finds added tokens in a text: the leftmost, and of those the longest."""

    def __init__(self, tokens: Iterable[AddedToken]):
        self.tokens = {token.wanted: token for token in tokens}
        self.lengths: dict[str, list[int]] = {}  # first character -> lengths of the tokens, longest first
        for wanted in sorted(self.tokens, key=len, reverse=True):
            lengths = self.lengths.setdefault(wanted[0], [])
            if len(wanted) not in lengths:
                lengths.append(len(wanted))
        self.first = regex.compile(f"[{''.join(map(regex.escape, self.lengths))}]") if self.tokens else None

    def split(self, text: str) -> list[str | int]:
        """Text -> its stretches without added tokens (str) and the added tokens (int ids) between them."""
        parts: list[str | int] = []
        done, at = 0, 0
        while self.first is not None and (found := self.first.search(text, at)):
            at = found.start()
            wanted = next((text[at : at + n] for n in self.lengths[text[at]] if text[at : at + n] in self.tokens), None)
            if wanted is None:
                at += 1
                continue
            token, start, end = self.tokens[wanted], at, at + len(wanted)
            at = end  # also after a match that single_word refuses
            if token.single_word and (start > 0 and _WORD.match(text[start - 1]) or _WORD.match(text, end)):
                continue
            if token.lstrip:
                start = max(_SPACES_BEFORE.match(text, 0, start).start(), done)
            if token.rstrip:
                end = _SPACES_AFTER.match(text, end).end()
            if done < start:
                parts.append(text[done:start])
            if start < end:  # else the token before took it in with its white space: the library drops it too
                parts.append(token.number)
            done = end
        if done < len(text):
            parts.append(text[done:])
        return parts
