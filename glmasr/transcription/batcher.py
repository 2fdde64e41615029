"""Windows of several recordings -> their parts, in order, decoded in common batches."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from ..errors import GlmAsrError
from .families import Job
from .results import Part

FIRST_BATCH = 4  # windows in the first batch, so that the first text is soon there

Item = (
    Job | Part | GlmAsrError
)  # to decode; decoded already, because what follows depended on it; the end of a recording


class Batcher:
    """Takes what is to be decoded by `add` and yields parts in the order in which it came: as many windows at a time as
    `most`.

    `soon`: fewer at first, and each time twice as many: the first text comes soon.

    Jobs stay in the order in which they come: to sort them by length, all would have to be read before the first text.
    Nor is there much to gain: windows that are cut have about one length, and what is padded to speech is decoded with
    its equals.
    """

    def __init__(self, decode: Callable[[list[Job]], list[Part | GlmAsrError]], most: int, soon: bool):
        self.decode, self.most = decode, most
        self.size = min(FIRST_BATCH, most) if soon else most
        self.items: list[tuple[int, Item]] = []

    def add(self, index: int, item: Item, now: bool = False) -> Iterator[tuple[int, Part | GlmAsrError]]:
        """`index` is the number of the recording; `now`: nothing may follow for a while. Gives what is decoded by
        it."""
        self.items.append((index, item))
        waiting = sum(isinstance(item, Job) for _, item in self.items)
        # What is decoded already is given at once; the end of a recording, or its error, can wait for the others of a
        # batch.
        if now or waiting == self.size or not waiting or isinstance(item, Part) and not item.last:
            if waiting == self.size:
                self.size = min(2 * self.size, self.most)
            yield from self.flush()

    def flush(self) -> Iterator[tuple[int, Part | GlmAsrError]]:
        """Decodes what is there."""
        items, self.items = self.items, []
        jobs = [item for _, item in items if isinstance(item, Job)]
        parts = iter(self.decode(jobs)) if jobs else iter(())
        last = {index: item for index, item in items if isinstance(item, Job)}
        for index, item in items:
            if not isinstance(item, Job):
                yield index, item
                continue
            part = next(parts)
            if item is last[index] and isinstance(part, Part):
                part = replace(part, language_state=item.recording.language)
            yield index, part
