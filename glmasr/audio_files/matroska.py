"""What ffmpeg makes of a track, as Matroska -> float32 samples (samples, channels), on the file's own clock.

Unusual: a time in the recording is one of the file's own clock, as players show it: `Decoded` puts silence where the
clock runs on without sound. ffmpeg's filter for that, aresample=async=1, isn't used: it drops sound where a clock goes
back, as in two WebM files one after the other, and it can't make up a gap of half an hour, as of a speaker who was
muted.
"""

import io
import struct
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np

from .child_process import Child
from .limits import VALUES

GAP = 0.1  # seconds without packets that are made up with silence; clocks of packets tremble by less
LONGEST_GAP = 3600.0  # seconds; beyond that a clock has jumped, and no sound is missing


class Decoded:
    """What ffmpeg makes of a track: its `rate`, and `parts`, with silence where the clock of the file runs on without
    sound, whose first second is `begin` (None: that of the first sound) and whose last one is `length` later. No sound
    is dropped: where the clock goes back, the sound goes on. `soon`: the parts are as short as they come.
    """

    # Elements of Matroska (RFC 9559): those that hold others, and those that count here. All others are skipped.
    # The holders: segment, cluster, tracks, track, audio, block group.
    HOLDERS = {0x18538067, 0x1F43B675, 0x1654AE6B, 0xAE, 0xE1, 0xA0}
    RATE, CHANNELS, TIME, BLOCKS = 0xB5, 0x9F, 0xE7, (0xA3, 0xA1)

    def __init__(self, child: Child, begin: float | None, length: float, soon: bool = False):
        self.child, self.length, self.least = child, length, 1 if soon else 4 * VALUES
        self.rate, self.channels, self.read = 0.0, 0, 0  # `read`: samples so far
        self.stream = io.BufferedReader(_Output(child), 4 * VALUES)
        blocks = self._blocks()
        first = next(blocks, None)  # what comes before it says rate and channels
        self.begin = begin if begin is not None else (first and first[0]) or 0.0
        self.blocks = chain([first] if first else [], blocks)

    def _number(self, marked: bool = False) -> int | None:
        """The next number of variable length; `marked`: with the bit that marks the length, as the kinds of elements.
        None: the end.
        """
        first = self.stream.read(1)
        if not first or not first[0]:
            return None
        length = 9 - first[0].bit_length()
        rest = self.stream.read(length - 1)
        number = int.from_bytes(first + rest, "big")
        return None if len(rest) < length - 1 else number if marked else number & (1 << 7 * length) - 1

    def _blocks(self) -> Iterator[tuple[float | None, bytes]]:
        """Of each block the second at which it is played, and its bytes; of a large one several pieces, all but the
        first without a time.
        """
        cluster = 0
        while (kind := self._number(marked=True)) is not None and (size := self._number()) is not None:
            if kind in self.HOLDERS:
                continue
            second = None
            if kind in self.BLOCKS:
                head = self.stream.read(4)  # the track, in a byte; milliseconds, in two; flags
                second, size = (cluster + int.from_bytes(head[1:3], "big", signed=True)) / 1000, size - len(head)
            while size > 0 and (piece := self.stream.read(min(size, 4 * VALUES))):
                size -= len(piece)
                if kind in self.BLOCKS:
                    yield second, piece
                    second = None
                elif kind == self.RATE and len(piece) in (4, 8):
                    self.rate = struct.unpack(">f" if len(piece) == 4 else ">d", piece)[0]
                elif kind == self.CHANNELS:
                    self.channels = int.from_bytes(piece, "big")
                elif kind == self.TIME:
                    cluster = int.from_bytes(piece, "big")

    def parts(self) -> Iterator[np.ndarray]:
        """float32 arrays (samples, channels)."""
        width = 4 * self.channels  # bytes of a sample in all channels
        held = bytearray()
        shift = self.begin  # the file's clock - ours

        def taken() -> np.ndarray:
            count = len(held) // width
            part = np.frombuffer(bytes(held[: count * width]), "<f4").reshape(count, self.channels)
            del held[: count * width]
            self.read += count
            return part

        for second, piece in self.blocks:
            if second is not None:
                reached = (self.read + len(held) // width) / self.rate
                missing = second - shift - reached
                if missing < -1 or missing > min(LONGEST_GAP, max(GAP, self.length - reached)):
                    shift += missing  # another clock, or a damaged one
                elif missing > GAP:
                    if held:
                        yield taken()
                    yield from self._silence(round(missing * self.rate))
            held += piece
            if len(held) >= max(self.least, width):
                yield taken()
        if held:
            yield taken()

    def _silence(self, count: int) -> Iterator[np.ndarray]:
        while count > 0:
            part = np.zeros((min(count, max(1, VALUES // self.channels)), self.channels), np.float32)
            count, self.read = count - len(part), self.read + len(part)
            yield part


class _Output(io.RawIOBase):
    """What a `Child` writes, as a file."""

    def __init__(self, child: Child):
        self.child = child

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # anything that can be written into
        content = self.child.read_some(len(buffer))
        buffer[: len(content)] = content
        return len(content)
