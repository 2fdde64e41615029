"""What the command line says: texts on standard output, all else on standard error, and the closing lines.

Nothing here needs PyTorch, so it is at hand before the arguments are known to be right.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from ..errors import printable, redacted
from ..transcription.clips import within

if TYPE_CHECKING:  # needs torch, which takes a second to import
    from ..pipeline import Transcript


def clock(seconds: float) -> str:
    """
    >>> clock(12.34), clock(3600)
    ('00:12.34', '1:00:00.00')
    """
    hundredths = round(100 * seconds)
    minutes, rest = divmod(hundredths, 6000)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}:" if hours else "") + f"{minutes:02d}:{rest / 100:05.2f}"


def writable(text: str) -> str:
    """One line. Letters that standard output can't hold are escaped, so no text is lost, and what a terminal would
    obey."""
    encoding = sys.stdout.encoding or "utf-8"
    return printable(text).encode(encoding, "backslashreplace").decode(encoding)


def as_line(record: Mapping[str, Any]) -> str:
    """JSON on one line, which stays JSON whatever standard output can hold."""
    text = json.dumps(record, ensure_ascii=False)
    return text if text == writable(text) else json.dumps(record)


def put(line: str) -> None:
    """A line on standard output, above the progress bar."""
    _write(line, sys.stdout)


def _write(line: str, file: TextIO) -> None:
    from tqdm import tqdm  # takes a third of the time of `--help`, which needs none

    tqdm.write(line, file=file)


class Messages:
    """What goes to standard error, above the progress bar; `quiet`: errors only."""

    def __init__(self, quiet: bool):
        self.quiet = quiet

    def say(self, text: str) -> None:
        """Prints a status line or a warning; nothing with `quiet`."""
        if not self.quiet and sys.stderr is not None:
            _write(printable(redacted(text)), sys.stderr)

    def complain(self, text: str) -> None:
        """Prints an error, with `quiet` as well; nothing if there is no standard error."""
        if sys.stderr is not None:
            _write(f"error: {printable(redacted(text))}", sys.stderr)


# -- the end -----------------------------------------------------------------------------------------------------------


@dataclass
class Summary:
    """What became of the recordings."""

    done: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)  # why, of each that failed
    seconds: float = 0.0
    silent: float = 0.0
    doubtful: int = 0  # stretches
    spent: float = 0.0

    def add(self, transcript: "Transcript", spent: float, before: float = 0.0) -> None:
        """`spent`: seconds since the first recording was begun. `before`: up to which one of this recording an
        earlier run has recognized it."""
        self.done += 1
        self.seconds += within(transcript.clips, transcript.seconds) - within(transcript.clips, before)
        self.silent += transcript.skipped_seconds
        self.doubtful += transcript.failed
        self.spent = spent

    def lines(self) -> list[str]:
        """The lines to print at the end: counts and failures for several recordings, then time, memory and warnings."""
        counts = []
        if self.done + self.skipped + len(self.failures) > 1:
            counts = [f"{self.done} done, {self.skipped} skipped, {len(self.failures)} failed"]
            counts += [f"  failed: {reason}" for reason in self.failures]
        elif self.skipped:
            counts = ["1 skipped: its files are all there"]
        factor = self.spent / self.seconds if self.seconds else 0
        last = f"{self.seconds:.1f} s of sound in {self.spent:.2f} s, real-time factor {factor:.3f}"
        last += f"; peak memory {peak_memory()}"
        last += f"; {self.silent:.1f} s were silent" if self.silent else ""
        last += f"; {self.doubtful} stretches are doubtful" if self.doubtful else ""
        return [*counts, last]


def peak_memory() -> str:
    """The most memory that this process held, and a GPU's share where one was used."""
    try:
        import resource
    except ImportError:  # Windows has no such count
        return "unknown"
    unit = 1 if sys.platform == "darwin" else 1024
    text = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20:.0f} MiB"
    torch = sys.modules.get("torch")  # without it no GPU was used
    if torch is not None and torch.cuda.is_available():
        most = sum(torch.cuda.max_memory_allocated(device) for device in range(torch.cuda.device_count()))
        text += f" and {most / 2**20:.0f} MiB on the GPU" if most else ""
    return text
