"""How far a run is: hours done, how fast, how long it will take, and what failed; a bar, or lines of a log."""

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

from .report import Report

LINE = 60.0  # seconds from one line to the next, where there is no terminal
CAUSES = 2  # that are named


class Progress:
    """Of a run of so many seconds of sound. `say`: where a line goes; `shown`: False for --quiet."""

    def __init__(self, seconds: float, report: Report, say: Callable[[str], None], shown: bool):
        self.total, self.report, self.say, self.shown = max(seconds, 1e-9), report, say, shown
        self.done, self.began = 0.0, time.monotonic()
        self._told = self.began
        self._bar = tqdm(
            total=self.total / 3600,
            bar_format="{percentage:3.0f}%|{bar}| {desc}",
            disable=not (shown and sys.stderr.isatty()),
        )

    def add(self, planned: float) -> None:
        """A piece more, which was planned to have so many seconds."""
        self.done = min(self.total, self.done + planned)
        self._bar.n = self.done / 3600
        self._bar.set_description_str(self.text())
        if self._bar.disable and self.shown and time.monotonic() - self._told >= LINE:
            self._told = time.monotonic()
            self.say(self.text())

    def text(self) -> str:
        """Such as "1.20 of 40.00 h, 35 x as fast as sound, 1:06:31 left, 3 failed (2 of them: is empty)"."""
        took = time.monotonic() - self.began
        left = (self.total - self.done) * took / self.done if self.done else 0.0
        text = (
            f"{self.done / 3600:.2f} of {self.total / 3600:.2f} h, {self.done / max(took, 1e-9):.3g} x as fast as sound"
        )
        text += f", {tqdm.format_interval(left)} left" if self.done else ""
        if self.report.failed:
            named = ", ".join(f"{count} {cause}" for cause, count in self.report.causes.most_common(CAUSES))
            text += f", {self.report.failed} failed ({named})"
        return text

    def close(self) -> None:
        """The bar stays."""
        self._bar.close()
