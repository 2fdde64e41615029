"""What a live session prints: on a terminal a text that grows, what isn't certain of it faint; elsewhere a line for
each segment.

Unusual: the text of a segment may take several rows, and all of them are drawn anew whenever it changes, until the
segment is complete; then it is one long line, which the terminal may break as it likes.
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import regex

from ..transcription.results import Segment, Transcript
from ..writers.formats import record
from ..writers.line_breaks import width
from .console import as_line, clock, writable

FAINT, NORMAL = "\x1b[2m", "\x1b[0m"
# Where a row may end: after a space, or after a character that is as wide as a Chinese one. What follows a sign stays.
PIECE = regex.compile(r"\s*(?:[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]\p{P}*|[^\s\p{Han}\p{Hiragana}\p{Katakana}]+)")


def rows(text: str, columns: int) -> list[str]:
    """The text, cut into rows of at most so many columns; joined they are the text, but for spaces between them.

    >>> rows("one two three", 8), rows("一二三四五", 5)
    (['one two', 'three'], ['一二', '三四', '五'])
    """
    found = [""]
    for piece in PIECE.findall(text):
        if width(found[-1] + piece) > columns and found[-1]:
            found.append("")
            piece = piece.lstrip()
        while width(piece) > columns:  # a word that is longer than a row
            most = next(count for count in range(len(piece), 0, -1) if count == 1 or width(piece[:count]) <= columns)
            found[-1:] = [piece[:most], ""]
            piece = piece[most:]
        found[-1] += piece
    return found


class Screen:
    """Standard output, if there is one. Of a segment that isn't complete, `draw` shows what `commit` and `guess` have
    been told."""

    def __init__(self, json: bool, timestamps: bool, words: bool):
        self.json, self.timestamps, self.words = json, timestamps, words
        self.grows = not json and sys.stdout is not None and sys.stdout.isatty()
        self.certain = self.tentative = ""
        self.drawn = 0  # rows

    def commit(self, text: str) -> None:
        """More that is certain."""
        self.certain += text

    def guess(self, text: str) -> None:
        """What may follow it."""
        self.tentative = text

    def end(self, segment: Segment) -> None:
        """The segment is complete."""
        self.certain = self.tentative = ""
        if sys.stdout is None or not segment.text:
            self.draw()
            return
        if self.json:
            segment = segment if self.words else replace(segment, words=())
            line = as_line(record(Transcript(segment.text, segment.language, [segment], segment.end))["segments"][0])
        else:
            times = f"[{clock(segment.start)} --> {clock(segment.end)}] " if self.timestamps else ""
            line = times + writable(segment.text)
        self._write(f"{line}\n", 0)

    @contextmanager
    def cleared(self) -> Iterator[None]:
        """While this runs, others may write lines on the terminal."""
        self._write("", 0)
        yield
        self.draw()

    def draw(self) -> None:
        """Shows what is known of the segment."""
        if not self.grows:
            return
        certain, text = writable(self.certain), writable(self.certain + self.tentative)
        size = shutil.get_terminal_size()
        left, shown = len(certain.replace(" ", "")), []
        for row in rows(text, max(2, size.columns - 1)):  # TRAP: after the last column terminals differ
            place = 0  # up to which the row is certain
            while place < len(row) and (left > 0 or row[place] == " "):
                left -= row[place] != " "
                place += 1
            shown.append(row[:place] + (f"{FAINT}{row[place:]}{NORMAL}" if row[place:] else ""))
        shown = shown[-max(1, size.lines - 1) :]
        self._write("\n".join(shown), len(shown))

    def _write(self, text: str, drawn: int) -> None:
        """The text in place of the rows that are drawn; then `drawn` rows are."""
        if sys.stdout is None:
            return
        up = f"\x1b[{self.drawn - 1}A" if self.drawn > 1 else ""
        sys.stdout.write((f"{up}\r\x1b[J" if self.drawn else "") + text)
        sys.stdout.flush()
        self.drawn = drawn
