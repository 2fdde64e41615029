"""Items -> pieces of at most half an hour -> batches of about the same seconds, of like length, the longest first.

Unusual: nobody tells a worker where its piece begins. Around each planned border it reads 15 s on both sides, and cuts
at the quietest place there, which its neighbor finds, too: they look at the same samples. So pieces can be recognized
anywhere, in any order, and one worker makes of them what many do.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ..audio_files.address import scheme
from ..audio_files.limits import MAX_DURATION
from ..audio_files.sound_files import stated_duration
from .items import Item

AROUND = 15.0  # seconds on both sides of a planned border, in which a piece is cut
UNKNOWN = 30.0  # seconds that a recording counts as whose length nobody knows
MOST = MAX_DURATION  # seconds: a header or a manifest that says more is wrong, or the recording is refused
AT_ONCE = 16  # files whose headers are read at a time


@dataclass(frozen=True)
class Piece:
    """Of an item, the part with this number of so many; `start` and `end` are the planned borders, in seconds from its
    beginning; None: it ends with the item."""

    item: Item
    number: int = 0
    count: int = 1
    start: float = 0.0
    end: float | None = None
    seconds: float = UNKNOWN


def pieces(items: Iterable[Item], most: float) -> list[Piece]:
    """The pieces of some items, each of about `most` seconds at most."""
    some = list(items)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        lengths = list(pool.map(_length, some))
    found = []
    for item, length in zip(some, lengths, strict=True):
        count = 1 if length is None else max(1, round(length / most))
        if length is None or count == 1:
            found.append(Piece(item, seconds=UNKNOWN if length is None else length))
            continue
        borders: list[float | None] = [length * number / count for number in range(count)]
        for number, (start, end) in enumerate(zip(borders, [*borders[1:], None], strict=True)):
            found.append(Piece(item, number, count, start or 0.0, end, length / count))
    return found


def _length(item: Item) -> float | None:
    """As the manifest or the header says, as far as it can be."""
    if item.duration is not None:
        return min(item.duration, MOST)
    if scheme(item.path) or item.where:
        return None
    stated = stated_duration(item.path)
    return None if stated is None else min(max(0.0, stated - item.offset), MOST)


def batches(some: Iterable[Piece], seconds: float) -> list[list[Piece]]:
    """Pieces of like length, together about so many seconds, and at least one; the longest first, so that at the end no
    worker waits long for another one."""
    found: list[list[Piece]] = []
    room = 0.0
    for piece in sorted(some, key=lambda piece: (-piece.seconds, piece.item.id, piece.number)):
        if piece.seconds > room or not found:
            found.append([])
            room = seconds
        found[-1].append(piece)
        room -= piece.seconds
    return found
