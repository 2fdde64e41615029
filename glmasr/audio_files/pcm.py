"""Bytes that come bit by bit -> float32 samples (samples, channels), as soon as they are there: WAV, and samples
without a header.

Unusual: libsndfile isn't used, for it waits until it has all that it asks for. A program that writes into a pipe
doesn't know how much will come, so the sizes in its header may be made up (`formats.is_stated`).
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .formats import is_stated
from .limits import VALUES

LONGEST_HEADER = 2**20  # bytes; of a WAV that has more before its samples, such as a cover, the file has to be there
# (tag, bits) of WAVE_FORMAT_PCM and WAVE_FORMAT_IEEE_FLOAT -> type of a sample, what stands for 0, what for 1
KINDS = {
    (1, 8): ("u1", 2**7, 2**7),
    (1, 16): ("<i2", 0, 2**15),
    (1, 24): ("<i3", 0, 2**23),
    (1, 32): ("<i4", 0, 2**31),
    (3, 32): ("<f4", 0, 1),
    (3, 64): ("<f8", 0, 1),
}
EXTENSIBLE = 0xFFFE  # the tag of a WAV whose true tag comes later


class Incoming:
    """Bytes as they come: `read` is of a source, and gives what is there, at most so many, b"" at the end."""

    def __init__(self, read: Callable[[int], bytes]):
        self._read, self._held = read, b""

    def peek(self, count: int) -> bytes:
        """The next bytes, so many, fewer at the end. They stay."""
        while len(self._held) < count and (content := self._read(count - len(self._held))):
            self._held += content
        return self._held[:count]

    def read(self, count: int) -> bytes:
        """What is there of the next bytes, at most so many, b"" at the end."""
        if not self._held:
            return self._read(count)
        content, self._held = self._held[:count], self._held[count:]
        return content

    def skip(self, count: int) -> None:
        """Drops so many bytes."""
        while count > 0 and (content := self.read(min(count, VALUES))):
            count -= len(content)


@dataclass(frozen=True)
class Pcm:
    """Samples as they lie in a file: `kind` is a key of KINDS."""

    rate: int
    channels: int = 1
    kind: tuple[int, int] = (1, 16)

    @property
    def width(self) -> int:
        """Bytes of a sample in all channels."""
        return self.channels * self.kind[1] // 8

    def decoded(self, content: bytes) -> np.ndarray:
        """Bytes, a multiple of `width` -> float32 (samples, channels) in -1..1."""
        name, zero, full = KINDS[self.kind]
        if name == "<i3":  # numpy has none
            padded = np.zeros((len(content) // 3, 4), np.uint8)
            padded[:, 1:] = np.frombuffer(content, np.uint8).reshape(-1, 3)
            values, full = padded.view("<i4")[:, 0], 2**31
        else:
            values = np.frombuffer(content, name)
        # As libsndfile does it: a float32 first.
        return ((values.astype(np.float32) - zero) / np.float32(full)).reshape(-1, self.channels)


def wav_header(source: Incoming) -> tuple[Pcm, int, int] | None:
    """What the header of the WAV says with which the source begins: how its samples are, at which byte they begin, and
    how many bytes they have, 0 where it doesn't know. None: it is no WAV, or one of another kind."""
    head = source.peek(12)
    if head[:4] not in (b"RIFF", b"RF64") or head[8:] != b"WAVE":
        return None
    place, form, long = 12, None, 0
    while place < LONGEST_HEADER and len(chunk := source.peek(place + 8)[place:]) == 8:
        size, place = int.from_bytes(chunk[4:], "little"), place + 8
        if chunk[:4] == b"data":
            size = long if long and size == 2**32 - 1 else size
            return (form, place, size if is_stated(size) else 0) if form else None
        if chunk[:4] == b"ds64":  # a WAV of 64 bits has its sizes here
            long = int.from_bytes(source.peek(place + 16)[place + 8 :], "little")
        if chunk[:4] == b"fmt ":
            form = _format(source.peek(place + min(size, 40))[place:])
        place += size + size % 2
    return None


def _format(fields: bytes) -> Pcm | None:
    if len(fields) < 16:
        return None
    tag, channels, rate, _, width, bits = struct.unpack("<HHIIHH", fields[:16])
    if tag == EXTENSIBLE and len(fields) >= 26:
        tag = int.from_bytes(fields[24:26], "little")
    form = Pcm(rate, channels, (tag, bits))
    return form if form.kind in KINDS and channels and width == form.width else None


def samples(source: Incoming, form: Pcm, size: int = 0) -> Iterator[np.ndarray]:
    """The float32 arrays (samples, channels) in the next `size` bytes, 0: in all that come. Less than a sample at the
    end is dropped."""
    held, left = b"", size or None
    while left != 0 and (content := source.read(min(VALUES, left or VALUES))):
        left = None if left is None else left - len(content)
        held += content
        if whole := len(held) // form.width * form.width:
            yield form.decoded(held[:whole])
            held = held[whole:]
