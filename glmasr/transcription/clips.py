"""Parts of a recording, as `Options.clips` names them: which they are, and the samples in them.

    ((60, 120), (300, None))   from 1:00 to 2:00, and from 5:00 to the end

All times are seconds from the start of the recording; so are those of what is recognized. What is in no clip is read,
as far as the last one needs it, and dropped: it counts neither as decoded nor as skipped.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..config import SAMPLE_RATE, is_number
from ..errors import AudioError, OptionError

if TYPE_CHECKING:  # the command line checks its clips before it imports PyTorch
    from torch import Tensor

Clip = tuple[float, float | None]  # from when to when, in seconds; None: to the end of the recording


def as_clips(clips: Any) -> Any:
    """The clips as a tuple; what holds none stays as it is, so that `check` can name it."""
    return clips if isinstance(clips, (str, bytes)) or not isinstance(clips, Iterable) else tuple(clips)


def check(clips: object) -> None:
    """Raises OptionError for what are no clips in order, none overlapping."""
    expected = "expected pairs of seconds, such as (60, 120), the last of which may be (300, None)"
    if not isinstance(clips, (tuple, list)):
        raise OptionError(f"clips is {clips!r}, {expected}")
    before: float | None = 0.0
    for clip in clips:
        if not (isinstance(clip, (tuple, list)) and len(clip) == 2):
            raise OptionError(f"a clip is {clip!r}, {expected}")
        start, end = clip
        if not all(is_number(value) and 0 <= value < math.inf for value in (start, 0 if end is None else end)):
            raise OptionError(f"clip {name(clip)} has a time that is no number of seconds from 0 on; {expected}")
        if end is not None and not round(start * SAMPLE_RATE) < round(end * SAMPLE_RATE):
            raise OptionError(
                f"clip {name(clip)} begins at {start:.10g} s and ends at {end:.10g} s, so there is nothing in it; "
                "expected an end after its start, or none, to go on to the end of the recording"
            )
        if before is None or start < before:
            raise OptionError(
                f"clip {name(clip)} begins before the end of the one before it; expected them in order, none "
                "overlapping another"
            )
        before = end


def name(clip: Sequence[object]) -> str:
    """
    >>> name((60, 120.5)), name((300, None))
    ('60-120.5', '300-')
    """
    return "-".join("" if value is None else f"{value:.10g}" if is_number(value) else repr(value) for value in clip)


def within(clips: Sequence[Clip], seconds: float) -> float:
    """How much of the first `seconds` of a recording is in the clips; all of it where there are none.

    >>> within([(60, 120), (300, None)], 310), within([], 310)
    (70, 310)
    """
    if not clips:
        return seconds
    return sum(max(0, (seconds if end is None else min(seconds, end)) - start) for start, end in clips)


def clipped(
    blocks: Iterable["Tensor"], clips: Sequence[Clip], warn: Callable[[str], None]
) -> Iterator[tuple[int, Iterable["Tensor"]]]:
    """The clips of a stream of blocks (any,): the first sample of each, and its blocks, which have to be taken before
    the next one. Without clips that is all of it. What comes after the last one isn't read.

    Raises AudioError where no clip lies in the recording; `warn` is told of those that don't, or not to their end.
    """
    if not clips:
        yield 0, blocks
        return
    stream = _Stream(blocks)
    for number, clip in enumerate(clips):
        start, end = clip
        first = round(start * SAMPLE_RATE)
        deque(stream.until(first), maxlen=0)
        if stream.ended():
            length = f"the recording is {stream.place / SAMPLE_RATE:.1f} s long"
            if number == 0:
                raise AudioError(f"clip {name(clip)} begins beyond its end: {length}; name a part that is in it")
            warn(f"clip {name(clip)} begins beyond its end, and is left out: {length}")
            return
        yield first, stream.until(None if end is None else round(end * SAMPLE_RATE))
        if end is not None and stream.place < round(end * SAMPLE_RATE):
            warn(f"clip {name(clip)} goes beyond its end: the recording is {stream.place / SAMPLE_RATE:.1f} s long")


class _Stream:
    """Blocks (any,), of which the first `place` samples are taken."""

    def __init__(self, blocks: Iterable["Tensor"]):
        self.blocks, self.place = iter(blocks), 0
        self.next: Tensor | None = None

    def ended(self) -> bool:
        while self.next is None or not len(self.next):
            self.next = next(self.blocks, None)
            if self.next is None:
                return True
        return False

    def until(self, last: int | None) -> Iterator["Tensor"]:
        """The samples up to the one numbered `last`."""
        while (last is None or self.place < last) and not self.ended():
            block = self.next
            assert block is not None
            count = len(block) if last is None else min(len(block), last - self.place)
            self.next, self.place = block[count:], self.place + count
            yield block[:count]
