"""The bytes of sound files: how the formats begin, where a recording inside a file ends, how long the frames of an MP3
are.

What is unusual here:
- The decoders of libsndfile have had memory bugs in the code that opens a file, so a file's first bytes are looked at
  before.
- A file may hold several recordings, one after the other, as `cat a.wav b.wav` makes it; each says by its own header
  where it ends.
- What the header of an MP3 states is compared with its frames, walked one by one.
"""

import codecs
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO, Literal

from ..errors import Cancelled
from .limits import VALUES, IsCancelled

AHEAD = 2**16  # bytes that are searched at once; libFLAC reads an eighth of that beyond its end

# ---- how files begin -------------------------------------------------------------------------------------------------

# The decoders of libsndfile that are widely used and fuzzed; the others have open memory bugs and are left to ffmpeg.
PCM = {"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"}
FORMATS = {
    **dict.fromkeys(("WAV", "WAVEX", "RF64", "AIFF", "AU", "CAF"), PCM),
    "FLAC": {"PCM_S8", "PCM_16", "PCM_24"},
    "OGG": {"VORBIS", "OPUS"},
    "MP3": {"MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III"},
}
# How their files begin. TRAP: the memory bugs are in the code that opens a file, so it is looked at before libsndfile
# gets it.
BEGINNINGS = re.compile(
    rb"(RIFF|RIFX|RF64)....WAVE|FORM....AIF[FC]|fLaC|OggS|\.snd|dns\.|caff|\xff[\xe0-\xff]", re.DOTALL
)
# The same after the end of another recording, with as much as makes a chance find unlikely.
FURTHER = re.compile(
    rb"(RIFF|RIFX|RF64)....WAVE|FORM....AIF[FC]|fLaC\0\0\0\x22|OggS\0\x02|\.snd\0\0|caff\0\x01", re.DOTALL
)
# And those of others that have a name. (ffmpeg reads some of them.)
OTHERS = {
    b"riff": "W64",
    b"Creative Voice": "VOC",
    b"NIST_1A": "NIST",
    b"PVF1": "PVF",
    b" paf": "PAF",
    b"fap ": "PAF",
    b"2BIT": "AVR",
    b"MATLAB 5": "MAT5",
    b"ALawSoundFile": "WVE",
    b"Extended Instrument": "XI",
    b"\xf0\x7e": "SDS",
    b"\x64\xa3": "IRCAM",
    b"FORM": "IFF",
    b"MThd": "MIDI",
    b"#!AMR": "AMR",
    b"\x1aE\xdf\xa3": "Matroska",
    b"0&\xb2u": "ASF",
    b"wvpk": "WavPack",
    b"\x01\x04": "MPC2K",
    b"\0\0\x03\xe8": "MAT4",
    b"\0\0\0\0\1\0\0\0\1\0\0\0": "MAT4",
}


def why_foreign(path: str) -> tuple[str, int]:
    """Why a file is not for libsndfile, judged by its first bytes, "" if it may be; and the byte at which it begins,
    after tags.
    """
    with open(path, "rb") as file:
        start, place = file.read(20), 0
        for _ in range(9):
            if start[:3] == b"ID3":  # a tag in front of an MP3 or a FLAC
                place += _tag_length(start)
                start = read_at(file, place, 20)
        if path.lower().endswith(".mp3") and not any(start):  # libsndfile goes by the name then
            start = file.read(4096).lstrip(b"\0")
    if BEGINNINGS.match(start):
        return "", place
    kind = next((kind for beginning, kind in OTHERS.items() if start.startswith(beginning)), None)
    if kind is None:
        return "it begins like none of the formats read directly", place
    return f"{kind} is not among the formats read directly", place


# How others begin that are no recording at all.
NO_SOUND = {
    b"%PDF-": "a PDF",
    b"PK\3\4": "a ZIP archive",
    b"\x1f\x8b": "compressed by gzip",
    b"\x7fELF": "a program",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
}


def why_no_sound(path: str) -> str:
    """Why a file whose first VALUES bytes are there is no recording, whoever reads it; "" if it may be one."""
    with open(path, "rb") as file:
        start = file.read(VALUES)
    # ffmpeg looks no further either
    return no_sound(start) if any(start) else f"its first {VALUES:,} bytes are zeros"


def no_sound(start: bytes) -> str:
    """Why what begins so is no recording; "" if it may be one."""
    if kind := next((kind for beginning, kind in NO_SOUND.items() if start.startswith(beginning)), None):
        return f"it is {kind}"
    # TRAP: a character may be cut at the end. Some headers are text, but what follows them is not.
    with suppress(UnicodeDecodeError):
        if b"\0" not in start and codecs.getincrementaldecoder("utf-8")().decode(start):
            return "it is text, such as a page of the web"
    return ""


def _tag_length(head: bytes) -> int:
    """Bytes of the ID3 tag that begins so: 10, and what its last four say in 7 bits each."""
    return 10 + sum((byte & 0x7F) << 7 * digit for digit, byte in enumerate(reversed(head[6:10])))


def read_at(file: BinaryIO, place: int, count: int) -> bytes:
    """Up to `count` bytes of the file from byte `place` on: fewer at its end, none beyond."""
    if place >= 2**43:  # of a forged size; no file is as long, and systems refuse to go there
        return b""
    file.seek(place)
    return file.read(count)


# ---- several recordings in one file ----------------------------------------------------------------------------------


def next_recording(path: str, place: int, cancelled: IsCancelled) -> int | None:
    """The byte at which the first recording begins from `place` on; None: there is no further one."""
    with open(path, "rb") as file:
        while len(content := read_at(file, place, AHEAD)) > 16:
            if cancelled():
                raise Cancelled
            if found := FURTHER.search(content):
                return place + found.start()
            place += len(content) - 16
    return None


def end_of_recording(path: str, place: int) -> int | None:
    """The byte after the sound of the recording that begins at `place`, by its own header: the end of the file, where
    it doesn't say. None for a FLAC, which never does: it is known only once it is decoded.
    """
    end = os.path.getsize(path)
    with open(path, "rb", buffering=VALUES) as file:
        kind = read_at(file, place, 4)
        if kind == b"fLaC":
            return None
        if kind == b"OggS":
            return _end_of_ogg(file, place)
        sound = _stated_sound(file, place)
    return min(sound[1], end) if sound else end


def times_as_long(path: str, place: int) -> float:
    """How many times as long as what is there, up to the end of the file, the sound is by the header of the recording
    that begins at `place`: above 1 it was cut off. 1.0 where the header doesn't say."""
    with open(path, "rb", buffering=VALUES) as file:
        sound = _stated_sound(file, place)
    there = os.path.getsize(path) - sound[0] if sound else 0
    return max(1.0, (sound[1] - sound[0]) / there) if sound and there > 0 else 1.0


def _stated_sound(file: BinaryIO, place: int) -> tuple[int, int] | None:
    """The first byte of the sound, and the one after its last, as the header says at `place`, which may be beyond the
    end of the file. None where it doesn't say."""
    head = read_at(file, place, 36)
    if head[:4] in (b".snd", b"dns."):
        order: Literal["little", "big"] = "little" if head[:4] == b"dns." else "big"
        offset, size = (int.from_bytes(head[start : start + 4], order) for start in (4, 8))
        return (place + offset, place + offset + size) if is_stated(size) else None
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"FORM", b"caff", b"riff"):
        return _stated_chunk(file, place, head)
    return None


def is_stated(size: int) -> bool:
    """Whether a number of bytes is one. Who writes into a pipe can't know it: ffmpeg writes 2^32 - 1 or 0, SoX
    0x7f000000 or 0x7ffff000, others 2^31 or what is next to it, and in 64 bits -1 or 2^63 - 1."""
    return 0 < size < 2**62 and not (0x7F000000 <= size <= 2**31 + 2**16 or 0xFF000000 <= size < 2**32)


def _end_of_ogg(file: BinaryIO, place: int) -> int:
    """Where a page begins another stream than those that begin at `place`, or where there are no more pages."""
    sound = False
    while len(head := read_at(file, place, 27)) == 27 and head.startswith(b"OggS"):
        first = bool(head[5] & 2)
        if first and sound:
            break
        sound = sound or not first
        place += 27 + head[26] + sum(file.read(head[26]))
    return place


def _stated_chunk(file: BinaryIO, place: int, head: bytes) -> tuple[int, int] | None:
    """The chunk that holds the sound of a WAV, AIFF, CAF or W64 that begins so at `place`: see `_stated_sound`."""
    kind = head[:4]
    order: Literal["little", "big"] = "little" if kind in (b"RIFF", b"RF64", b"riff") else "big"
    # A WAV of 64 bits has its sizes in its first chunk.
    long = int.from_bytes(head[28:36], "little") if kind == b"RF64" and head[12:16] == b"ds64" else 0
    name, digits, first = {b"caff": (4, 8, 8), b"riff": (16, 8, 40)}.get(kind, (4, 4, 12))
    place += first
    while len(chunk := read_at(file, place, name + digits)) == name + digits:
        size = int.from_bytes(chunk[name:], order)
        if kind == b"riff":  # its names are GUIDs, and its sizes count the name and themselves
            size = max(0, size - name - digits)
        place += name + digits
        if chunk[:4] in (b"data", b"SSND"):
            size = long if long and size == 2**32 - 1 else size
            before = {b"FORM": 8, b"caff": 4}.get(kind, 0)  # bytes that are not sound yet
            return (place + before, place + size) if is_stated(size) else None
        place += size + (-size % 8 if kind == b"riff" else size % 2 if digits == 4 else 0)
    return None


# ---- the frames of an MP3 --------------------------------------------------------------------------------------------

# Kilobits a second of MPEG audio by the index in a frame's header (ISO 11172-3 and 13818-3): (MPEG-1?, layer) -> rates.
_SHORT = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
BIT_RATES = {
    (True, 1): tuple(range(0, 449, 32)),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): _SHORT,
    (False, 3): _SHORT,
}


def mpeg_frames(path: str) -> Iterator[tuple[float, int, bytes]]:
    """Of each frame of an MP3 file: seconds, the bytes in front of it that are neither a frame nor a tag, and its first
    40 bytes.
    """
    place = end = missed = 0
    # Not mapped: the pages would count as memory. In so large a buffer most steps from frame to frame stay inside of
    # it.
    with open(path, "rb", buffering=VALUES) as file:
        while len(start := read_at(file, place, 40)) >= 4:
            if (frame := mpeg_frame(start)) is None:
                if start[:3] == b"ID3":
                    place += _tag_length(start)
                    if _tag_length(start) >= 20:  # libmpg123 takes smaller ones for damage
                        end += _tag_length(start)
                    continue
                missed, place = missed + 1, place + 1
                while (piece := read_at(file, place, 4096)) and b"\xff" not in piece:
                    place += len(piece)
                place += piece.find(b"\xff")
                if not piece or missed > 100_000:  # no further frame, or damaged through and through
                    break
                continue
            seconds, length = frame
            yield seconds, place - end, start
            place += length
            end = place


def mpeg_frame(start: bytes) -> tuple[float, int] | None:
    """Seconds and bytes of the frame of an MP3 that begins so; None: none does."""
    head = int.from_bytes(start[:4], "big")
    version, layer = head >> 19 & 3, 4 - (head >> 17 & 3)
    index, rate, padding = head >> 12 & 15, head >> 10 & 3, head >> 9 & 1
    if head >> 21 != 0x7FF or version == 1 or layer == 4 or index in (0, 15) or rate == 3:
        return None
    hertz = (44_100, 48_000, 32_000)[rate] // {3: 1, 2: 2, 0: 4}[version]
    bits = 1000 * BIT_RATES[version == 3, layer][index]
    samples = 384 if layer == 1 else 576 if layer == 3 and version != 3 else 1152
    length = (12 * bits // hertz + padding) * 4 if layer == 1 else samples // 8 * bits // hertz + padding
    return samples / hertz, length


def mpeg_seconds(path: str) -> float:
    """Seconds of sound in the frames of an MP3 file, whatever its header states."""
    return sum(seconds for seconds, _, _ in mpeg_frames(path))
