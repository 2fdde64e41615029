"""A path, a stream or bytes -> the recordings in it: their sample rates, and float32 samples (samples, channels), block by block.

What is unusual here:
- libsndfile gets those formats only whose decoders are widely used and fuzzed; all others are left to ffmpeg (`ffmpeg.py`).
- A file may hold several recordings, one behind the other, as `cat a.wav b.wav` makes it. Decoders read the first one and say nothing.
- What a header claims is believed as far as the size of the file bears it out. What can't be read is said, by `warn`.
"""

import ctypes
import io
import math
import numbers
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import soundfile

from ..errors import AudioError, Cancelled
from ..observing import stage
from . import ffmpeg
from .ffmpeg import VALUES, damage, least

LOWEST_RATE, HIGHEST_RATE = 4_000, 384_000   # Hz; outside of it a header is damaged or forged, or the sound is no speech
ODD_RATE = 50_000                         # Hz; above it only whole hundreds: the kernels of others take seconds and 300 MB
MOST_BYTES = 2 ** 36                      # of decoded samples; 12 hours of 8 channels at 48 kHz are as many
MOST_RECORDINGS = 1000                    # in one file, one behind the other
RESYNC = 1000                             # bytes that are no sound; libmpg123 gives up behind 1024
AHEAD = 2 ** 16                           # bytes that are searched at once; libFLAC reads an eighth of that beyond its end

# The decoders of libsndfile that are widely used and fuzzed; the others have open memory bugs and are left to ffmpeg.
PCM = {"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"}
FORMATS = {"WAV": PCM, "WAVEX": PCM, "RF64": PCM, "AIFF": PCM, "AU": PCM, "CAF": PCM, "FLAC": {"PCM_S8", "PCM_16", "PCM_24"},
           "OGG": {"VORBIS", "OPUS"}, "MP3": {"MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III"}}
# How their files begin. TRAP: the memory bugs are in the code that opens a file, so it is looked at before libsndfile gets it.
BEGINNINGS = re.compile(rb"(RIFF|RIFX|RF64)....WAVE|FORM....AIF[FC]|fLaC|OggS|\.snd|dns\.|caff|\xff[\xe0-\xff]", re.DOTALL)
# The same behind the end of another recording, with as much as makes a chance find unlikely.
BEHIND = re.compile(rb"(RIFF|RIFX|RF64)....WAVE|FORM....AIF[FC]|fLaC\0\0\0\x22|OggS\0\x02|\.snd\0\0|caff\0\x01", re.DOTALL)
# And those of others that have a name. (ffmpeg reads some of them.)
OTHERS = {b"riff": "W64", b"Creative Voice": "VOC", b"NIST_1A": "NIST", b"PVF1": "PVF", b" paf": "PAF", b"fap ": "PAF", b"2BIT": "AVR",
          b"MATLAB 5": "MAT5", b"ALawSoundFile": "WVE", b"Extended Instrument": "XI", b"\xf0\x7e": "SDS", b"\x64\xa3": "IRCAM",
          b"FORM": "IFF", b"MThd": "MIDI", b"#!AMR": "AMR", b"\x1aE\xdf\xa3": "Matroska", b"0&\xb2u": "ASF", b"wvpk": "WavPack",
          b"\x01\x04": "MPC2K", b"\0\0\x03\xe8": "MAT4", b"\0\0\0\0\1\0\0\0\1\0\0\0": "MAT4"}


@stage("read")
def decode(source, track, max_duration, stack, warn, cancelled) -> tuple[str, Iterator[tuple[int, np.ndarray]]]:
    """source -> its name in messages, and (sample rate, float32 array (samples, channels)) until the end of its last recording.

    Everything that is opened is closed with `stack`. Raises AudioError, here for what the header shows and later for what is inside.
    """
    path, name = _as_file(source, stack, cancelled)
    (trouble, begin), length = _foreign(path), 0.0
    if not trouble:
        end = _end(path, begin)
        try:
            file = stack.enter_context(_sound_file(path, (begin, end) if end is None or end < os.path.getsize(path) else None))
        except soundfile.LibsndfileError as error:
            trouble = error.error_string.rstrip(".")
            if "SF_INFO" in trouble:
                trouble = "its header states no usable sample rate or number of channels"     # what it means
        except TypeError:                 # TRAP: a file named .raw, for which soundfile wants to be told the rate
            trouble = "a .raw file has no header"
        else:
            trouble = _unknown(file)
            known = not trouble
            if known:
                trouble, length = _cut_short(file, path, cancelled)
            if known and not (trouble and shutil.which("ffmpeg")):
                if trouble:
                    warn(f"{name}: {trouble}; what is behind that is lost: install ffmpeg, which reads on, or convert it to WAV")
                    warn = _nothing       # of this recording that is all that there is to say
                # PCM has a byte a sample or more: a length that the size bears out is no forgery, so nothing is read in vain.
                if max_duration * checked_rate(file.samplerate, name) < file.frames <= os.path.getsize(path) // file.channels:
                    raise too_long(name, max_duration)
                ffmpeg.only_track(track, name)
                return name, _recordings(file, path, begin, end, name, length, warn, cancelled)
    rate, parts = ffmpeg.decode(path, name, trouble, length, track, stack, warn, cancelled)
    rate = checked_rate(rate, name)
    return name, ((rate, part) for part in parts)


def until(cancelled, parts) -> Iterator:
    """The parts, as long as `cancelled()` is false; then Cancelled."""
    for part in parts:
        if cancelled():
            raise Cancelled
        yield part


def may_wait(source) -> bool:
    """Whether reading may have to wait for somebody: standard input, a pipe, a file object that is not in memory."""
    if isinstance(source, (str, os.PathLike)):
        return source == "-" or os.path.exists(source) and not os.path.isfile(source)
    return hasattr(source, "read") and not isinstance(source, io.BytesIO)


def stated_duration(source) -> float | None:
    """Seconds that the header of a file states, to show progress; None where it says nothing. It may be wrong."""
    try:
        if source == "-" or not os.path.isfile(source) or _foreign(os.fspath(source))[0]:
            return None
        with _sound_file(source) as file:
            return file.frames / file.samplerate if 0 < file.frames < 2 ** 62 else None
    except (OSError, TypeError, ValueError, ZeroDivisionError, soundfile.LibsndfileError):
        return None


def checked_rate(rate, name) -> int:
    if not (isinstance(rate, numbers.Real) and math.isfinite(rate) and rate == int(rate)):
        raise AudioError(f"{name}: sample rate {rate!r}; expected a whole number of Hz")
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise AudioError(f"{name}: sample rate {rate} Hz; expected {LOWEST_RATE} to {HIGHEST_RATE}: the header is damaged, or "
                         "this is not speech. Convert it to 16000 Hz if it is")
    if rate > ODD_RATE and rate % 100:
        raise AudioError(f"{name}: sample rate {rate} Hz; expected whole hundreds above {ODD_RATE}: the header is damaged, or was "
                         "made up. Convert it to 16000 Hz")
    return int(rate)


def too_long(name, max_duration) -> AudioError:
    return AudioError(f"{name}: is longer than {max_duration:g} s (max_duration); expected at most that: cut the recording, or raise "
                      "the limit with --max-duration")


# ---- a file, whatever it comes from -----------------------------------------------------------------------------------------

def _as_file(source, stack, cancelled):
    """source -> (path, name in messages). What is not a regular file yet becomes a temporary one: decoders have to seek."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _spooled(io.BytesIO(source), "the recording in memory", stack, cancelled)
    if isinstance(source, str) and source == "-":
        if sys.stdin is None:
            raise AudioError("standard input: is closed; expected a recording: pipe one into it, or name a file")
        return _spooled(getattr(sys.stdin, "buffer", sys.stdin), "standard input", stack, cancelled)
    if hasattr(source, "read"):
        return _spooled(source, str(getattr(source, "name", "the file object")), stack, cancelled)
    if not isinstance(source, (str, os.PathLike)):
        raise AudioError(f"a recording cannot be a {type(source).__name__}; expected a path, '-', bytes, a binary file object, "
                         "or a float array with its sample_rate")
    name = os.fsdecode(source)
    if not name:
        raise AudioError("the name of the recording is empty; expected a file, or '-' for standard input")
    if "\0" in name:
        raise AudioError(f"{name!r}: cannot be opened: no file has a NUL in its name; check how the name was made")
    try:
        path = Path(name)
        if path.is_fifo():                # a shell's <(command)
            return _spooled(stack.enter_context(open(path, "rb")), name, stack, cancelled)
        if path.is_dir():
            raise AudioError(f"{name}: is a directory; expected an audio file: name the files in it")
        if not path.exists():
            raise AudioError(f"{name}: no such file; check the spelling and the current directory ({os.getcwd()})")
        if not path.is_file():
            raise AudioError(f"{name}: is a device or a socket; expected an audio file, or '-' for standard input")
        if path.stat().st_size == 0:
            raise AudioError(f"{name}: the file is empty (0 bytes); expected audio: record or download it again")
        with open(path, "rb"):            # tells a lack of permission from a bad format
            return os.path.abspath(path), name
    except OSError as error:
        raise AudioError(f"{name}: cannot be opened ({error}); check the name and its permissions") from error


def _spooled(stream, name, stack, cancelled):
    """Write the rest of a binary stream into a temporary file that lives as long as `stack`."""
    try:
        path = os.path.join(stack.enter_context(tempfile.TemporaryDirectory(prefix="glmasr-")), "recording")
    except OSError as error:
        raise AudioError(f"{name}: no room for a temporary copy ({error}); make room, or name another folder in TMPDIR") from error
    with open(path, "wb") as file:
        try:
            while part := stream.read(VALUES):
                if cancelled():
                    raise Cancelled
                file.write(part)
                if file.tell() > MOST_BYTES:
                    raise AudioError(f"{name}: more than {MOST_BYTES / 2 ** 30:.0f} GiB; expected a recording, which has an end")
            file.flush()                  # here, and not where the file is closed, a full disk has a name
        except (TypeError, UnicodeDecodeError) as error:
            raise AudioError(f"{name}: gives text; expected bytes: open it in binary mode, 'rb'") from error
        except (OSError, ValueError) as error:              # a closed file, a full disk
            raise AudioError(f"{name}: cannot be read ({error}); open it again, or make room for a temporary copy") from error
        if file.tell() == 0:
            raise AudioError(f"{name}: is empty (0 bytes); expected the bytes of an audio file")
    return path, name


# ---- by libsndfile ----------------------------------------------------------------------------------------------------------

def _foreign(path) -> tuple[str, int]:
    """Why a file is not for libsndfile, judged by its first bytes, "" if it may be; and where it begins, behind tags."""
    with open(path, "rb") as file:
        start, place = file.read(20), 0
        for _ in range(9):
            if start[:3] == b"ID3":       # a tag in front of an MP3 or a FLAC
                place += _tag_length(start)
                start = _at(file, place, 20)
        if path.lower().endswith(".mp3") and not any(start):                # libsndfile goes by the name then
            start = file.read(4096).lstrip(b"\0")
    if BEGINNINGS.match(start):
        return "", place
    kind = next((kind for beginning, kind in OTHERS.items() if start.startswith(beginning)), None)
    return f"{kind} is not among the formats read directly" if kind else "it begins like none of the formats read directly", place


def _tag_length(head: bytes) -> int:
    """Bytes of the ID3 tag that begins so: 10, and what its last four say in 7 bits each."""
    return 10 + sum((byte & 0x7f) << 7 * digit for digit, byte in enumerate(reversed(head[6:10])))


def _unknown(file) -> str:
    """Why an open SoundFile is left to ffmpeg; "" if it isn't."""
    known = file.subtype in FORMATS.get(file.format, ())
    return "" if known else f"{file.subtype} in {file.format} is not among the formats read directly"


@contextmanager
def _sound_file(path, part=None) -> Iterator[soundfile.SoundFile]:
    """A file, or of its bytes only the part (begin, end): of that `name.tell()` is how far it was read."""
    with ExitStack() as stack:
        # TRAP: on Linux a name need not be UTF-8, and soundfile encodes text as UTF-8; bytes it takes as they are.
        source = stack.enter_context(_Slice(path, *part)) if part else path if os.name == "nt" else os.fsencode(path)
        with _HUSH:                       # an MP3, if anything
            file = soundfile.SoundFile(source)
        yield stack.enter_context(file)


class _Slice(io.RawIOBase):
    """Bytes of a file, as a file; `end` None: up to its end."""

    def __init__(self, path, begin, end):
        self.file, self.begin, self.place = open(path, "rb"), begin, 0
        self.size = (os.path.getsize(path) if end is None else end) - begin

    def seek(self, offset, whence=os.SEEK_SET) -> int:
        self.place = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.size}[whence])
        return self.place

    def tell(self) -> int:
        return self.place

    def readinto(self, buffer) -> int:
        content = _at(self.file, self.begin + self.place, max(0, min(len(buffer), self.size - self.place)))
        buffer[:len(content)] = content
        self.place += len(content)
        return len(content)

    def close(self) -> None:
        self.file.close()
        super().close()


def _decoded(file, name, length, warn):
    """An open SoundFile -> float32 arrays (samples, channels). `length`: the seconds that an MP3 should give."""
    step, read, trouble = max(1, VALUES // file.channels), 0, ""
    while not trouble:
        part = np.full((step, file.channels), np.nan, dtype=np.float32)
        try:
            with _HUSH if file.format == "MP3" else nullcontext():
                part = file.read(out=part)
        except soundfile.LibsndfileError as error:
            # TRAP: what was decoded before the error lies in `part` already. A FLAC without a stated length ends like this.
            part, trouble = part[~np.isnan(part).all(axis=1)], error.error_string.rstrip(".")
        if len(part) == 0:
            break
        read += len(part)
        yield part
    if read == 0 and trouble:
        raise AudioError(f"{name}: cannot be decoded ({trouble}); the file is damaged: record or download it again")
    seconds = read / file.samplerate
    if file.format == "MP3":              # whose header may only estimate the length
        if seconds < least(length):
            trouble = f"{length:.1f} s expected"
        if not trouble:
            return
    elif 0 < read < file.frames < 2 ** 62:                      # 2^62 and more stand for a length that is not stated
        trouble = f"{file.frames / file.samplerate:.1f} s announced"
    elif "lost sync" not in trouble or read == file.frames:     # what is behind a FLAC is none of it
        return
    warn(damage(name, seconds, trouble))


def _nothing(warning: str) -> None:
    pass


class _Hush:
    """libmpg123, a part of libsndfile, writes remarks on an MP3 to C's `stderr`: millions of them, if the file wants it. While one is opened or
    read, that variable names a stream that leads nowhere; file descriptor 2, `sys.stderr` and other processes are left as they are.

    Only with the GNU C library, whose manual allows it ("Standard Streams"). TRAP: elsewhere the variable may be in memory that is read only.
    """

    def __init__(self):
        self.lock, self.users, self.variable, self.loud, self.nowhere = threading.Lock(), 0, None, None, None

    def __enter__(self) -> None:
        with self.lock:
            if self.users == 0 and self.found():
                self.loud, self.variable.value = self.variable.value, self.nowhere
            self.users += 1

    def __exit__(self, *error) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0 and self.loud:
                self.variable.value, self.loud = self.loud, None

    def found(self) -> bool:
        if self.nowhere is None and "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", ()):
            library = ctypes.CDLL(None)
            library.fopen.restype = ctypes.c_void_p
            self.variable, self.nowhere = ctypes.c_void_p.in_dll(library, "stderr"), library.fopen(b"/dev/null", b"we")
        return bool(self.nowhere)         # else there is no /dev/null


_HUSH = _Hush()


# ---- several recordings in one file -----------------------------------------------------------------------------------------

def _recordings(file, path, begin, end, name, length, warn, cancelled) -> Iterator[tuple[int, np.ndarray]]:
    """(sample rate, float32 array (samples, channels)) of an open SoundFile, from `begin` to `end` in its file, and of all behind that."""
    for part in _decoded(file, name, length, warn):
        yield file.samplerate, part
    if end is None:                       # it was read up to there, and some more
        end = begin + max(4, file.name.tell() - AHEAD)
    number = 1
    while (begin := _next(path, end, cancelled)) is not None:
        number, end = number + 1, _end(path, begin)
        if end is None:                   # TRAP: up to the end of the file it would be read again for each that is forged
            end = _next(path, begin + 4, cancelled)
        end = max(begin + 4, os.path.getsize(path) if end is None else end)
        if number > MOST_RECORDINGS:
            warn(f"{name}: holds more than {MOST_RECORDINGS} recordings, one behind the other; what follows those, from byte {begin} on, is "
                 "lost: cut the file in two there")
            return
        try:
            with _sound_file(path, (begin, end)) as file:
                if trouble := _unknown(file):
                    raise AudioError(trouble)
                rate = checked_rate(file.samplerate, name)
                for part in _decoded(file, name, 0.0, warn):
                    yield rate, part
        except (AudioError, soundfile.LibsndfileError) as error:
            reason = getattr(error, "error_string", str(error)).rstrip(".")
            warn(f"{name}: recording {number} in this file, which begins at byte {begin}, is lost ({reason}): cut the file in two there")


def _next(path, place, cancelled) -> int | None:
    """Where the first recording begins from `place` on."""
    with open(path, "rb") as file:
        while len(content := _at(file, place, AHEAD)) > 16:
            if cancelled():
                raise Cancelled
            if found := BEHIND.search(content):
                return place + found.start()
            place += len(content) - 16
    return None


def _end(path, place) -> int | None:
    """Where the sound ends of the recording that begins at `place`, by its own header: that of the file, where it doesn't say. None for a
    FLAC, which never does: it is known only once it is decoded."""
    end = os.path.getsize(path)
    with open(path, "rb", buffering=VALUES) as file:
        head = _at(file, place, 36)
        kind, order = head[:4], "little" if head[:4] in (b"RIFF", b"RF64", b"dns.") else "big"
        if kind == b"fLaC":
            return None
        if kind == b"OggS":
            return _end_of_ogg(file, place)
        if kind in (b".snd", b"dns."):
            offset, size = (int.from_bytes(head[start:start + 4], order) for start in (4, 8))
            return min(place + offset + size, end) if size else end
        if kind not in (b"RIFF", b"RIFX", b"RF64", b"FORM", b"caff"):
            return end
        # A WAV of 64 bits has its sizes in its first chunk.
        long = int.from_bytes(head[28:36], "little") if kind == b"RF64" and head[12:16] == b"ds64" else 0
        digits, place = (8, place + 8) if kind == b"caff" else (4, place + 12)
        while place < end and len(chunk := _at(file, place, 4 + digits)) == 4 + digits:
            size = int.from_bytes(chunk[4:], order)
            place += 4 + digits
            if chunk[:4] in (b"data", b"SSND"):
                size = long if long and size == 2 ** 32 - 1 else size
                return min(place + size, end) if size else end
            place += size + (size % 2 if digits == 4 else 0)
    return end


def _end_of_ogg(file, place) -> int:
    """Where a page is none of the streams that begin at `place`, but begins another, or where there are no more pages."""
    sound = False
    while len(head := _at(file, place, 27)) == 27 and head.startswith(b"OggS"):
        first = bool(head[5] & 2)
        if first and sound:
            break
        sound = sound or not first
        place += 27 + head[26] + sum(file.read(head[26]))
    return place

# ---- MP3 files that libsndfile wouldn't read to the end ----------------------------------------------------------------------

def _cut_short(file, path, cancelled) -> tuple[str, float]:
    """Why libsndfile would stop before the end of a file, "" if it wouldn't; and the seconds that an MP3 should give, else 0."""
    stated, length, junk, counted = file.frames / max(1, file.samplerate), 0.0, 0, False
    if file.format == "MP3":
        for seconds, before, start in until(cancelled, _mpeg_frames(path)):
            if length:
                junk = max(junk, before)
            else:                         # a header in the first frame may count them all, which goes for one that was cut off as well
                counted = b"Xing" in start or b"Info" in start
            length += seconds
        # TRAP: without a Xing header libsndfile goes by the bit rate of the first frame, and stops where that says the end is.
        if length > 1.01 * stated + 0.5:
            return f"its header makes it {stated:.1f} s long, but its frames are {length:.1f} s", length
        length = max(length, stated if counted else 0)
        if junk > RESYNC:
            return f"{junk} bytes between its frames are no sound, where libsndfile stops", length
    if FORMATS[file.format] is PCM and file.frames == 0 and os.path.getsize(path) > 1000:
        return "its header says that it holds no samples, as after a crash of the recorder", length
    return "", length


# Kilobits a second of MPEG audio by the index in a frame's header (ISO 11172-3 and 13818-3): (MPEG-1?, layer) -> rates.
BIT_RATES = {(True, 1): range(0, 449, 32), (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
             (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
             (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
             (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)}
BIT_RATES[False, 3] = BIT_RATES[False, 2]


def _mpeg_seconds(path) -> float:
    """Seconds of sound in the frames of an MP3 file, whatever its header states."""
    return sum(seconds for seconds, _, _ in _mpeg_frames(path))


def _mpeg_frames(path) -> Iterator[tuple[float, int, bytes]]:
    """Of each frame of an MP3 file: seconds, the bytes in front of it that are neither a frame nor a tag, and its first 40 bytes."""
    place = end = missed = 0
    # Not mapped: the pages would count as memory. In so large a buffer most steps from frame to frame stay inside of it.
    with open(path, "rb", buffering=VALUES) as file:
        while len(start := _at(file, place, 40)) >= 4:
            head = int.from_bytes(start[:4], "big")
            version, layer = head >> 19 & 3, 4 - (head >> 17 & 3)
            index, rate, padding = head >> 12 & 15, head >> 10 & 3, head >> 9 & 1
            if head >> 21 != 0x7ff or version == 1 or layer == 4 or index in (0, 15) or rate == 3:
                if start[:3] == b"ID3":
                    place += _tag_length(start)
                    if _tag_length(start) >= 20:                # libmpg123 takes smaller ones for damage
                        end += _tag_length(start)
                    continue
                missed, place = missed + 1, place + 1
                while (piece := _at(file, place, 4096)) and b"\xff" not in piece:
                    place += len(piece)
                place += piece.find(b"\xff")
                if not piece or missed > 100_000:   # no further frame, or damaged through and through
                    break
                continue
            hertz = (44_100, 48_000, 32_000)[rate] // {3: 1, 2: 2, 0: 4}[version]
            bits = 1000 * BIT_RATES[version == 3, layer][index]
            samples = 384 if layer == 1 else 576 if layer == 3 and version != 3 else 1152
            yield samples / hertz, place - end, start
            place += (12 * bits // hertz + padding) * 4 if layer == 1 else samples // 8 * bits // hertz + padding
            end = place


def _at(file, place, count) -> bytes:
    file.seek(place)
    return file.read(count)
