"""A stream of bytes -> a temporary file that decoders can seek in.

What is unusual here: a stream may never end, so it is judged by its first bytes, while it comes in, and it takes
neither more room than `max_duration` seconds need nor all of the disk.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from ..errors import AudioError, Cancelled
from .ffmpeg import Ffmpeg
from .formats import why_foreign, why_no_sound
from .limits import MOST_BYTES, VALUES, IsCancelled

A_SECOND = 8 * 4 * 192_000  # bytes that a second may have: 8 channels of 32 bits at 192 kHz, or 49 megabits of video
BESIDE = 2**28  # and those beside it: tags, covers, what a container has for all of it
RESERVE, SHARE = 2**28, 20  # bytes of the disk that stay free, but of a small one not more than a twentieth of it


def spooled(
    stream: Any, name: str, max_duration: float, stack: ExitStack, cancelled: IsCancelled, stated: int | None = None
) -> tuple[str, str]:
    """Writes the rest of a binary stream into a temporary file that lives as long as `stack` -> its path, `name`.
    `stated`: how many bytes will come, where that is known. Raises AudioError, Cancelled.
    """
    path = temporary(name, stack)
    for _ in copied(stream, path, name, max_duration, cancelled, stated):
        pass
    return path, name


def temporary(name: str, stack: ExitStack) -> str:
    """The path of a file that can be made, and lives as long as `stack`. Raises AudioError."""
    try:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="glmasr-"))
    except OSError as error:
        raise AudioError(
            f"{name}: no room for a temporary copy ({error}); make room, or name another folder in TMPDIR"
        ) from error
    return os.path.join(folder, "recording")


def copied(
    stream: Any, path: str, name: str, max_duration: float, cancelled: IsCancelled, stated: int | None = None
) -> Iterator[int]:
    """Writes the rest of a binary stream into the file, and gives how many bytes are in it, again and again, as soon as
    they are. Arguments and errors are those of `spooled`."""
    folder, size = os.path.dirname(path), 0
    try:
        with open(path, "wb") as file:
            _check_size(name, stated or 0, max_duration)
            _check_room(name, stated or 1, folder)
            looked, second = 0, A_SECOND
            while part := stream.read(VALUES):
                if cancelled():
                    raise Cancelled
                size += file.write(part)
                _check_size(name, size, max_duration, second)
                file.flush()  # here, and not where the file is closed, a full disk has a name
                if size >= looked + VALUES:
                    _check_room(name, VALUES, folder)
                    if not looked:
                        _judge(path, name, cancelled)
                        second = _bytes_a_second(path)
                    looked = size
                yield size
    except (TypeError, UnicodeDecodeError) as error:
        raise AudioError(f"{name}: gives text; expected bytes: open it in binary mode, 'rb'") from error
    except (OSError, ValueError) as error:  # a closed file, a full disk, also where the file is closed after an error
        raise AudioError(
            f"{name}: cannot be read ({error}); open it again, or make room for a temporary copy"
        ) from error
    if not size:
        raise AudioError(f"{name}: is empty (0 bytes); expected the bytes of an audio file")


def _bytes_a_second(path: str) -> int:
    """What a second of a WAV has, as its header says; of others, the most that it may have."""
    with open(path, "rb") as file:
        head = file.read(4096)
    place = head.find(b"fmt ")
    stated = int.from_bytes(head[place + 16 : place + 20], "little") if place >= 0 else 0
    return stated if head[8:12] == b"WAVE" and 0 < stated < A_SECOND else A_SECOND


def _check_size(name: str, size: int, max_duration: float, second: int = A_SECOND) -> None:
    allowed = BESIDE + second * max_duration
    if size > MOST_BYTES:
        raise AudioError(f"{name}: more than {MOST_BYTES / 2**30:.0f} GiB; expected a recording, which has an end")
    if size > allowed:
        raise AudioError(
            f"{name}: more than {allowed / 2**20:.0f} MiB, and {max_duration:g} s (max_duration) have less; expected a "
            "recording, which has an end: cut it, or raise the limit with --max-duration"
        )


def _check_room(name: str, count: int, folder: str) -> None:
    """Raises AudioError where `count` more bytes would leave too little of the disk."""
    disk = shutil.disk_usage(folder)
    if disk.free - count < min(RESERVE, disk.total // SHARE):
        raise AudioError(
            f"{name}: its temporary copy would fill the disk of {folder}, where {disk.free / 2**20:.0f} MiB are free; "
            "make room, or name another folder in TMPDIR"
        )


def _judge(path: str, name: str, cancelled: IsCancelled) -> None:
    """Raises AudioError where the beginning of a stream, of which more follows, says that it is no recording, or none
    that can be read here."""
    if trouble := why_no_sound(path):
        raise AudioError(f"{name}: not a recording ({trouble}); expected audio: check where it comes from")
    trouble, begin = why_foreign(path)
    if trouble and begin < os.path.getsize(path):  # else all of it so far is a tag
        Ffmpeg(path, name, trouble, cancelled)  # raises it where there is none
