"""A pipe -> the sound in it, before it ends.

    a thread: pipe -> temporary file, within the limits of `spool`
    what is there of the file -> samples, as far as its format can be read from its beginning on
    the pipe ends -> the file is decoded as any other, and what was given already is left out

Unusual: so a pipe gives the samples, the warnings and the errors that its file would give, only sooner. One that ends
at once is read as a file is.
"""

import math
import os
import select
import shutil
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import AudioError, Cancelled, GlmAsrError
from . import sound_files
from .ffmpeg import Ffmpeg
from .formats import why_no_sound
from .limits import HIGHEST_RATE, LOWEST_RATE, MOST_CHANNELS, IsCancelled, Warn
from .pcm import Incoming, samples, wav_header
from .spool import copied, temporary
from .tracks import choose

AT_ONCE = 0.5  # seconds, after which a pipe that has not ended is read while it comes
LOOKS = (2**14, 2**16, 2**18, 2**20)  # bytes after which ffmpeg is asked whether it knows what it is


def piped(source: Any) -> Any:
    """Standard input, where that is a pipe, and a named pipe -> a `Pipe`; anything else as it is."""
    try:
        if os.name != "posix" or not isinstance(source, str | os.PathLike):
            return source
        if source == "-":
            file = sys.stdin.buffer.raw  # type: ignore[union-attr]
            mode = os.fstat(file.fileno()).st_mode
            return Pipe(file, "standard input") if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else source
        return Pipe(source, os.fsdecode(source)) if Path(source).is_fifo() else source
    except (AttributeError, OSError, ValueError):  # something else in place of standard input
        return source


class Pipe:
    """A pipe, or the path of a named one, which can be read once."""

    seconds = 1.0  # of a block of its sound

    def __init__(self, source: BinaryIO | str | os.PathLike[str], name: str):
        self.source, self.name = source, name
        self.changed = threading.Condition()
        self.size = self.taken = 0  # bytes that are in the file; that were read of it
        self.given = Fraction(0)  # seconds of sound
        self.ended = self.stopped = False
        self.error: BaseException | None = None

    @property
    def idle(self) -> bool:
        """Whether nearly all that has come was read, and more may come: what wasn't is less than a block."""
        with self.changed:
            return not self.ended and (self.size - self.taken) * self.given <= self.taken * self.seconds

    def parts(
        self, track: int | str | None, max_duration: float, stack: ExitStack, warn: Warn, cancelled: IsCancelled
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(sample rate, float32 array (samples, channels)). Arguments and errors are those of `sound_files.decode`."""
        self._begin(max_duration, stack, cancelled)
        for rate, part in self._ahead(track, stack):
            self.given += Fraction(len(part), rate)
            yield rate, part
        self._wait(lambda: self.ended)
        if self.error is not None:
            raise self.error
        left = self.given
        for rate, part in sound_files.decode(self.path, self.name, track, max_duration, stack, warn, cancelled):
            known = min(len(part), round(left * rate))
            left -= Fraction(known, rate)
            yield rate, part[known:]

    def read(self, count: int) -> bytes:
        """What is there, at most so many bytes, b"" at the end. From any thread."""
        self._wait(lambda: self.ended or self.taken < self.size)
        with self.changed:
            content = os.pread(self.file, min(count, self.size - self.taken), self.taken) if not self.stopped else b""
            self.taken += len(content)
        return content

    # ---- from the pipe to the file -----------------------------------------------------------------------------------

    def _begin(self, max_duration: float, stack: ExitStack, cancelled: IsCancelled) -> None:
        self.path, self.cancelled = temporary(self.name, stack), cancelled
        try:
            source: Any = self.source
            if isinstance(source, str | os.PathLike):
                source = stack.enter_context(open(source, "rb", buffering=0))
        except OSError as error:
            raise AudioError(f"{self.name}: cannot be opened ({error}); check the name and its permissions") from error
        self.file = os.open(self.path, os.O_RDONLY | os.O_CREAT, 0o600)
        stack.callback(os.close, self.file)
        thread = threading.Thread(target=self._copy, args=[source, max_duration], daemon=True)
        thread.start()
        stack.callback(self._stop, thread)

    def _copy(self, source: BinaryIO, max_duration: float) -> None:
        try:
            for size in copied(_Patient(self, source), self.path, self.name, max_duration, lambda: self.stopped):
                with self.changed:
                    self.size = size
                    self.changed.notify_all()
        except BaseException as error:  # for whoever wants the sound
            self.error = error
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def _stop(self, thread: threading.Thread) -> None:
        with self.changed:
            self.stopped = True
        thread.join()

    def _wait(self, condition: Callable[[], bool], seconds: float = math.inf) -> bool:
        """Until it is so; whether it is in time."""
        end = time.monotonic() + seconds
        with self.changed:
            while not (condition() or self.stopped):
                if self.cancelled():
                    raise Cancelled
                if time.monotonic() >= end:
                    return False
                self.changed.wait(0.1)
        return True

    # ---- from the file to the samples --------------------------------------------------------------------------------

    def _ahead(self, track: int | str | None, stack: ExitStack) -> Iterator[tuple[int, np.ndarray]]:
        """What can be decoded before the pipe ends; nothing where that can't be known yet. Warnings and errors come
        later, for the whole file."""
        if self._wait(lambda: self.ended, AT_ONCE):
            return
        incoming = Incoming(self.read)
        if (header := wav_header(incoming)) is not None:
            form, place, size = header
            if LOWEST_RATE <= form.rate <= HIGHEST_RATE and form.channels <= MOST_CHANNELS:
                incoming.skip(place)
                yield from ((form.rate, part) for part in samples(incoming, form, size))
            return
        for count in LOOKS:
            incoming.peek(count)
            if self.ended or why_no_sound(self.path) or shutil.which("ffmpeg") is None:
                return
            ffmpeg = Ffmpeg(self.path, self.name, "", self.cancelled)
            try:
                tracks, begin, _ = ffmpeg.look()
                if tracks:
                    chosen = tracks[choose(tracks, track, self.name)]
                    found = ffmpeg.decode(chosen, begin, math.inf, stack, incoming.read)
                    break
            except GlmAsrError:
                return
        else:
            return
        if found.rate in range(LOWEST_RATE, HIGHEST_RATE + 1):
            yield from ((int(found.rate), part) for part in found.parts())


class _Patient:
    """What a pipe gives, until nobody wants it any more."""

    def __init__(self, pipe: Pipe, source: BinaryIO):
        self.pipe, self.source = pipe, source

    def read(self, count: int) -> bytes:
        while not self.pipe.stopped:
            if select.select([self.source], [], [], 0.1)[0] and (content := self.source.read(count)) is not None:
                return content
        return b""
