"""A bar on a terminal, for the recording that is being recognized."""

import os
import sys
import time
from collections.abc import Mapping, Sequence

from tqdm import tqdm

from ..audio_files import sound_files
from ..audio_files.address import shown
from ..errors import printable
from ..transcription.clips import Clip, within


class Progress:
    """A bar for one recording after the other; `next` goes on to the next. Without a terminal nothing is drawn."""

    def __init__(self, names: list[str], quiet: bool, begun: Mapping[str, float], clips: Sequence[Clip] = ()):
        """`begun`: up to which second recordings are recognized already. What is in none of the `clips` isn't
        counted."""
        self.names, self.begun, self.clips, self.number = names, begun, clips, -1
        self.bar: tqdm | None = None
        self.start = 0.0
        self.hidden = quiet or sys.stderr is None or not sys.stderr.isatty()
        self.next()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the bar, if any, from the terminal."""
        if self.bar is not None:
            self.bar.close()

    def next(self) -> None:
        """Starts the bar of the next recording; without a percentage if the file doesn't state its length."""
        self.close()
        self.bar, self.number, self.start = None, self.number + 1, time.perf_counter()
        if self.hidden or self.number == len(self.names):
            return
        name = self.names[self.number]
        if (length := sound_files.stated_duration(name)) is not None:
            length = within(self.clips, length)
        known = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f} of {total:.0f} s, {remaining} left{postfix}"
        self.bar = tqdm(
            total=length,
            initial=within(self.clips, self.begun.get(name, 0)),
            desc=f"{self.number + 1}/{len(self.names)} {printable(os.path.basename(shown(name)))}",
            leave=False,
            bar_format=known if length else "{desc}: {n:.0f} s{postfix}",
        )

    def reach(self, seconds: float) -> None:
        """So much of the recording is recognized."""
        bar, seconds = self.bar, within(self.clips, seconds)
        if bar is None:
            return
        if bar.total:  # TRAP: beyond the end tqdm forgets the total, and the bar can't be made
            bar.total = max(bar.total, seconds)  # it was only what the header states
        bar.update(seconds - bar.n)
        new = seconds - bar.initial
        speed = new / (time.perf_counter() - self.start)
        bar.set_postfix_str(f"{speed:.1f} times as fast as sound", refresh=False)
