"""A file -> the recordings in it: their sample rates, and float32 samples (samples, channels), block by block.

What is unusual here:
- libsndfile gets those formats only whose decoders are widely used and fuzzed; all others are left to ffmpeg
  (`ffmpeg.py`).
- A file may hold several recordings, one after the other, as `cat a.wav b.wav` makes it. Decoders read the first one
  and say nothing.
- What a header claims is believed as far as the size of the file confirms it. What can't be read is said, by `warn`.
"""

import ctypes
import io
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import soundfile

from ..errors import AudioError
from ..observing import stage
from . import ffmpeg
from .ffmpeg import LEAST_LOST, damage, least
from .formats import (
    AHEAD,
    FORMATS,
    PCM,
    end_of_recording,
    mpeg_frames,
    next_recording,
    read_at,
    times_as_long,
    why_foreign,
)
from .limits import VALUES, IsCancelled, Warn, checked_rate, too_long, until
from .tracks import only_track

MOST_RECORDINGS = 1000  # in one file, one after the other
RESYNC = 1000  # bytes that are no sound; libmpg123 gives up after 1024
BEYOND = 2**14  # samples of each channel that are asked for where a header says that there are no more


@stage("read")
def decode(
    path: str,
    name: str,
    track: int | str | None,
    max_duration: float,
    stack: ExitStack,
    warn: Warn,
    cancelled: IsCancelled,
) -> Iterator[tuple[int, np.ndarray]]:
    """(sample rate, float32 array (samples, channels)) until the end of the last recording in a file, called `name` in
    messages.

    Everything that is opened is closed with `stack`. Raises AudioError, here for what the header shows and later for
    what is inside.
    """
    (trouble, begin), length = why_foreign(path), 0.0
    if not trouble:
        end = end_of_recording(path, begin)
        part = (begin, end) if end is None or end < os.path.getsize(path) else None
        try:
            file = stack.enter_context(_sound_file(path, part))
        except soundfile.LibsndfileError as error:
            trouble = error.error_string.rstrip(".")
            if "SF_INFO" in trouble:
                trouble = "its header states no usable sample rate or number of channels"  # what it means
        except TypeError:  # TRAP: a file named .raw, for which soundfile wants to be told the rate
            trouble = "a .raw file has no header"
        else:
            trouble = _unknown(file)
            known = not trouble
            if known:
                trouble, length = _cut_short(file, path, cancelled)
            if known and not (trouble and shutil.which("ffmpeg")):
                if trouble:
                    warn(
                        f"{name}: {trouble}; what follows is lost: install ffmpeg, which reads on, or convert it to WAV"
                    )
                    warn = _nothing  # of this recording that is all that there is to say
                # PCM has a byte a sample or more: a length that the size confirms is no forgery, so nothing is read in
                # vain.
                longest = max_duration * checked_rate(file.samplerate, name)
                if longest < file.frames <= os.path.getsize(path) // file.channels:
                    raise too_long(name, max_duration)
                only_track(track, name)
                return _recordings(file, path, begin, end, name, length, warn, cancelled)
    times = times_as_long(path, begin)
    rate, parts = ffmpeg.decode(path, name, trouble, length, times, track, stack, warn, cancelled)
    checked = checked_rate(rate, name)
    return ((checked, part) for part in parts)


def stated_duration(source: Any) -> float | None:
    """Seconds that the header of a file states, to show progress; None where it says nothing. It may be wrong."""
    try:
        if source == "-" or not os.path.isfile(source) or why_foreign(os.fspath(source))[0]:
            return None
        with _sound_file(source) as file:
            return file.frames / file.samplerate if 0 < file.frames < 2**62 else None
    except (OSError, TypeError, ValueError, ZeroDivisionError, soundfile.LibsndfileError):
        return None


# ---- by libsndfile ---------------------------------------------------------------------------------------------------


def _unknown(file: soundfile.SoundFile) -> str:
    """Why an open SoundFile is left to ffmpeg; "" if it isn't."""
    known = file.subtype in FORMATS.get(file.format, ())
    return "" if known else f"{file.subtype} in {file.format} is not among the formats read directly"


@contextmanager
def _sound_file(path: str, part: tuple[int, int | None] | None = None) -> Iterator[soundfile.SoundFile]:
    """A file, or of its bytes only the part (begin, end): of that `name.tell()` is how far it was read."""
    with ExitStack() as stack:
        # TRAP: on Linux a name need not be UTF-8, and soundfile encodes text as UTF-8; bytes it takes as they are.
        source = stack.enter_context(_Slice(path, *part)) if part else path if os.name == "nt" else os.fsencode(path)
        with _HUSH:  # an MP3, if anything
            file = soundfile.SoundFile(source)
        yield stack.enter_context(file)


class _Slice(io.RawIOBase):
    """Bytes of a file, as a file; `end` None: up to its end."""

    def __init__(self, path: str, begin: int, end: int | None):
        self.file, self.begin, self.place = open(path, "rb"), begin, 0
        self.size = (os.path.getsize(path) if end is None else end) - begin

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.place = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.size}[whence])
        return self.place

    def tell(self) -> int:
        return self.place

    def readinto(self, buffer: Any) -> int:  # anything that can be written into
        content = read_at(self.file, self.begin + self.place, max(0, min(len(buffer), self.size - self.place)))
        buffer[: len(content)] = content
        self.place += len(content)
        return len(content)

    def close(self) -> None:
        self.file.close()
        super().close()


def _decoded(file: soundfile.SoundFile, name: str, length: float, times: float, warn: Warn) -> Iterator[np.ndarray]:
    """An open SoundFile -> float32 arrays (samples, channels). `length`: the seconds that an MP3 should give; `times`:
    see `times_as_long`."""
    step, read, trouble = max(1, VALUES // file.channels), 0, ""
    while not trouble:
        room = min(step, max(file.frames - read, BEYOND))  # memory that is only made costs more than a second of sound
        part = np.full((room, file.channels), np.nan, dtype=np.float32)
        try:
            with _HUSH if file.format == "MP3" else nullcontext():
                part = file.read(out=part)
        except soundfile.LibsndfileError as error:
            # TRAP: what was decoded before the error lies in `part` already. A FLAC without a stated length ends like
            # this.
            part, trouble = part[~np.isnan(part).all(axis=1)], error.error_string.rstrip(".")
        if len(part) == 0:
            break
        read += len(part)
        yield part
    if read == 0 and trouble:
        raise AudioError(f"{name}: cannot be decoded ({trouble}); the file is damaged: record or download it again")
    seconds = read / file.samplerate
    if file.format == "MP3":  # whose header may only estimate the length
        if seconds < least(length):
            trouble = f"{length:.1f} s expected"
        if not trouble:
            return
    elif 0 < read < file.frames < 2**62:  # 2^62 and more stand for a length that is not stated
        trouble = f"{file.frames / file.samplerate:.1f} s announced"
    elif (times - 1) * seconds >= LEAST_LOST:  # TRAP: libsndfile has made `file.frames` of what is there
        trouble = f"{times * seconds:.1f} s announced"
    elif "lost sync" not in trouble or read == file.frames:  # what comes after a FLAC is none of it
        return
    warn(damage(name, seconds, trouble))


def _nothing(warning: str) -> None:
    pass


class _Hush:
    """libmpg123, a part of libsndfile, writes remarks on an MP3 to C's `stderr`: millions of them, if the file wants
    it. While one is opened or read, that variable names a stream that leads nowhere; file descriptor 2, `sys.stderr`
    and other processes are left as they are.

    Only with the GNU C library, whose manual allows it ("Standard Streams"). TRAP: elsewhere the variable may be in
    memory that is read only.
    """

    def __init__(self) -> None:
        self.lock, self.users = threading.Lock(), 0
        self.variable: ctypes.c_void_p | None = None  # C's `stderr`
        self.loud: int | None = None  # the stream that it named
        self.nowhere: int | None = None  # and the one that leads nowhere

    def __enter__(self) -> None:
        with self.lock:
            if self.users == 0:
                self.find()
                if self.variable and self.nowhere:  # else there is no /dev/null
                    self.loud, self.variable.value = self.variable.value, self.nowhere
            self.users += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0 and self.variable and self.loud:
                self.variable.value, self.loud = self.loud, None

    def find(self) -> None:
        if self.nowhere is None and "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", ()):
            library = ctypes.CDLL(None)
            library.fopen.restype = ctypes.c_void_p
            self.variable, self.nowhere = ctypes.c_void_p.in_dll(library, "stderr"), library.fopen(b"/dev/null", b"we")


_HUSH = _Hush()


# ---- several recordings in one file ----------------------------------------------------------------------------------


def _recordings(
    file: soundfile.SoundFile,
    path: str,
    begin: int,
    end: int | None,
    name: str,
    length: float,
    warn: Warn,
    cancelled: IsCancelled,
) -> Iterator[tuple[int, np.ndarray]]:
    """(sample rate, float32 array (samples, channels)) of an open SoundFile, from `begin` to `end` in its file, and of
    all after that.
    """
    for part in _decoded(file, name, length, times_as_long(path, begin), warn):
        yield file.samplerate, part
    if end is None:  # it was read up to there, and some more
        end = begin + max(4, file.name.tell() - AHEAD)
    number = 1
    while (start := next_recording(path, end, cancelled)) is not None:
        number, stop = number + 1, end_of_recording(path, start)
        if stop is None:  # TRAP: up to the end of the file it would be read again for each that is forged
            stop = next_recording(path, start + 4, cancelled)
        end = max(start + 4, os.path.getsize(path) if stop is None else stop)
        if number > MOST_RECORDINGS:
            warn(
                f"{name}: holds more than {MOST_RECORDINGS} recordings, one after the other; what follows those, from "
                f"byte {start} on, is lost: cut the file in two there"
            )
            return
        try:
            with _sound_file(path, (start, end)) as file:
                if trouble := _unknown(file):
                    raise AudioError(trouble)
                rate = checked_rate(file.samplerate, name)
                for part in _decoded(file, name, 0.0, times_as_long(path, start), warn):
                    yield rate, part
        except (AudioError, soundfile.LibsndfileError) as error:
            reason = getattr(error, "error_string", str(error)).rstrip(".")
            warn(
                f"{name}: recording {number} in this file, which begins at byte {start}, is lost ({reason}): cut the "
                "file in two there"
            )


# ---- MP3 files that libsndfile wouldn't read to the end --------------------------------------------------------------


def _cut_short(file: soundfile.SoundFile, path: str, cancelled: IsCancelled) -> tuple[str, float]:
    """Why libsndfile would stop before the end of a file, "" if it wouldn't; and the seconds that an MP3 should give,
    else 0.
    """
    stated, length, junk, counted = file.frames / max(1, file.samplerate), 0.0, 0, False
    if file.format == "MP3":
        for seconds, before, start in until(cancelled, mpeg_frames(path)):
            if length:
                junk = max(junk, before)
            else:  # a header in the first frame may count them all, which goes for one that was cut off as well
                counted = b"Xing" in start or b"Info" in start
            length += seconds
        # TRAP: without a Xing header libsndfile goes by the bit rate of the first frame, and stops where that says the
        # end is.
        if length > 1.01 * stated + 0.5:
            return f"its header makes it {stated:.1f} s long, but its frames are {length:.1f} s", length
        length = max(length, stated if counted else 0)
        if junk > RESYNC:
            return f"{junk} bytes between its frames are no sound, where libsndfile stops", length
    if FORMATS[file.format] is PCM and file.frames == 0 and os.path.getsize(path) > 1000:
        return "its header says that it holds no samples, as after a crash of the recorder", length
    return "", length
