"""Recording of any kind -> mono samples at 16 kHz (S,) -> windows (W, 480000) -> log-mel (W, bands, 3000).

What is unusual here:
- Every recording is read, mixed and resampled in blocks, so memory does not grow with its length; the blocks joined are
  the same samples, to float rounding, as those of one pass over the whole.
- All channels are averaged. Keeping the first one only would lose a speaker who was recorded on the second. But two in opposite
  phase would cancel each other out (a plug that is wired the wrong way round): `_Phase` takes one of them there.
- The resampler has a real anti-alias filter: flat to 7.2 kHz, 80 dB down at 8 kHz, the highest frequency that 16 kHz can hold.
- The log-mel is in float32 on purpose: the models were trained on the rounding of a float32 transform, which shows at the
  bottom of the 80 dB that are kept.
"""

import ctypes
import io
import math
import numbers
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import AudioError, OptionError, printable

try:
    import resource
except ImportError:                       # Windows
    resource = None

SAMPLE_RATE = 16_000                      # samples a second, of everything behind this stage
FFT_SIZE = 400                            # 25 ms of samples in one frame of the spectrum
HOP = 160                                 # 10 ms between frames: SAMPLE_RATE / HOP = 100 frames a second
BINS = FFT_SIZE // 2 + 1                  # 201 frequencies, SAMPLE_RATE / FFT_SIZE = 40 Hz apart: 0, 40, ... 8000 Hz
WINDOW = 30 * SAMPLE_RATE                 # 480,000 samples, 3000 frames: what the models take at once

LOWEST_RATE, HIGHEST_RATE = 4_000, 384_000   # Hz; outside of it a header is damaged or forged, or the sound is no speech
ODD_RATE = 50_000                         # Hz; above it only whole hundreds: the kernels of others take seconds and 300 MB
LOUDEST = 1000.0                          # times full scale; the text of sounds that are so loud is wrong, and soon empty
MOST_CHANNELS = 255                       # more than any array of microphones that people speak into
VALUES = 2 ** 20                          # samples x channels decoded at once: 4 MiB of float32, whatever a header claims
MAX_DURATION = 12 * 3600.0                # seconds of a recording, if the caller sets no other limit
MOST_BYTES = 2 ** 36                      # of decoded samples; 12 hours of 8 channels at 48 kHz are as many
RESYNC = 1000                             # bytes that are no sound; libmpg123 gives up behind 1024
PATIENCE = 60.0                           # seconds that ffmpeg may take for the next VALUES samples
MOST_MEMORY = 2 ** 31                     # bytes that it may address; 8K video beside the sound takes it to 0.4 of it
MOST_ALLOCATED = 2 ** 28                  # bytes that it may ask for at once: the table of 12 hours of packets is a quarter of it
MOST_LISTED = 2 ** 20                     # bytes of what ffmpeg says about a file before it reads it; tags may be as long as they like
GAP = 0.1                                 # seconds without packets that are made up with silence; clocks of packets tremble by less
LONGEST_GAP = 3600.0                      # seconds; beyond that a clock has jumped, and no sound is missing
SILENT = 1e-3                             # of full scale: a track that is never louder is a microphone that was off

MOST_LOGGED = 2 ** 20                     # bytes of its complaints that are kept; a damaged file can give a line a packet

# The decoders of libsndfile that are widely used and fuzzed; the others have open memory bugs and are left to ffmpeg.
PCM = {"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"}
FORMATS = {"WAV": PCM, "WAVEX": PCM, "RF64": PCM, "AIFF": PCM, "AU": PCM, "CAF": PCM, "FLAC": {"PCM_S8", "PCM_16", "PCM_24"},
           "OGG": {"VORBIS", "OPUS"}, "MP3": {"MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III"}}
# How their files begin. TRAP: the memory bugs are in the code that opens a file, so it is looked at before libsndfile gets it.
BEGINNINGS = re.compile(rb"(RIFF|RIFX|RF64)....WAVE|FORM....AIF[FC]|fLaC|OggS|\.snd|dns\.|caff|\xff[\xe0-\xff]", re.DOTALL)
# The same behind the end of another recording, with as much as makes a chance find unlikely.
BEHIND = re.compile(rb"(RIFF|RIFX|RF64)....WAVE|FORM....AIF[FC]|fLaC\0\0\0\x22|OggS\0\x02|\.snd\0\0|caff\0\x01", re.DOTALL)
MOST_PIECES = 1000                        # recordings in one file, one behind the other
# And those of others that have a name. (ffmpeg reads some of them.)
OTHERS = {b"riff": "W64", b"Creative Voice": "VOC", b"NIST_1A": "NIST", b"PVF1": "PVF", b" paf": "PAF", b"fap ": "PAF", b"2BIT": "AVR",
          b"MATLAB 5": "MAT5", b"ALawSoundFile": "WVE", b"Extended Instrument": "XI", b"\xf0\x7e": "SDS", b"\x64\xa3": "IRCAM",
          b"FORM": "IFF", b"MThd": "MIDI", b"#!AMR": "AMR", b"\x1aE\xdf\xa3": "Matroska", b"0&\xb2u": "ASF", b"wvpk": "WavPack",
          b"\x01\x04": "MPC2K", b"\0\0\x03\xe8": "MAT4", b"\0\0\0\0\1\0\0\0\1\0\0\0": "MAT4"}
# What ffmpeg may open: media files only. TRAP: without the list a text file can be a playlist that names other files.
CONTAINERS = ("aac,ac3,aiff,amr,ape,asf,au,avi,caf,dts,eac3,flac,flv,loas,matroska,mov,mp3,mpc,mpc8,mpeg,mpegts,nistsphere,"
              "ogg,rm,tak,tta,voc,w64,wav,wv")


# ---- reading ------------------------------------------------------------------------------------------------------------

class Cancelled(Exception):
    """Nobody waits for a recording any more: `cancelled` of `blocks` said so."""


def warn_printable(warning: str) -> None:
    """`warnings.warn`, which writes to a terminal: the name of a recording is escaped."""
    warnings.warn(printable(warning), stacklevel=2)


def load(source, sample_rate=None, *, track=None, max_duration=MAX_DURATION, warn=warn_printable) -> Tensor:
    """The whole recording -> float32 samples (S,), mono, 16 kHz: `blocks` joined. Arguments and errors as there."""
    return torch.cat(list(blocks(source, sample_rate, track=track, max_duration=max_duration, warn=warn)))


def blocks(source, sample_rate=None, *, seconds=30.0, track: int | str | None = None, max_duration=MAX_DURATION, warn=warn_printable,
           cancelled: Callable[[], bool] | None = None) -> Iterator[Tensor]:
    """Yield a recording as float32 blocks (S,), mono, 16 kHz: each `seconds` long, the last one at most that.

    `source` is one of
    - a path, `"-"` for standard input, bytes, or a binary file object: WAV, FLAC, OGG, MP3, AIFF, AU and CAF are decoded by
      libsndfile, everything else (m4a, mp4, webm, ...) by ffmpeg if it is on the PATH;
    - a float array or tensor (S,), (S, channels) or (channels, S), about -1..1, with its `sample_rate` in Hz. The shorter
      axis is the channels, the second one where both are equal.

    `track` is one of several tracks of sound in a file: its number, from 1, or its language ("eng"). By default it is the one that
    the file calls its default, else the first one, and `warn` is told that there are others.

    Raises AudioError, at the first block for what the header shows and later for what is inside: a recording that is
    missing, empty, not audio, without that track, outside 4..384 kHz, of more than MOST_CHANNELS, longer than `max_duration` seconds or MOST_BYTES
    when decoded, or that holds samples that are NaN, infinite or above LOUDEST. One that breaks off in the middle is read up
    to there, and `warn` is called with a sentence that says so. What counts is what was decoded: a header may claim any length.

    `cancelled` is called now and then, from any thread: between parts that were decoded, and while ffmpeg is silent. Once it says True
    everything is closed, and Cancelled is raised.
    """
    if not 1 <= seconds * SAMPLE_RATE < math.inf:
        raise OptionError(f"seconds is {seconds}; a block needs at least one sample and an end: give, for example, 30.0")
    if not (isinstance(max_duration, numbers.Real) and max_duration > 0):
        raise OptionError(f"max_duration is {max_duration!r}; expected a positive number of seconds: give, for example, "
                          f"{MAX_DURATION:.0f}")
    check_track(track)
    with ExitStack() as stack:            # closes files and ends ffmpeg, also when the caller stops before the end
        cancelled = cancelled or (lambda: False)
        name, rate, parts = _open(source, sample_rate, track, max_duration, stack, warn, cancelled)
        rate = _checked_rate(rate, name)
        samples = _mono(_limited(_until(cancelled, parts), name, rate, max_duration), name, rate, warn)
        samples = _regrouped(samples, VALUES)                   # decoders give small parts; long ones are faster behind
        yield from _regrouped(_resampled(samples, rate, SAMPLE_RATE), round(seconds * SAMPLE_RATE))


def _until(cancelled, parts):
    for part in parts:
        if cancelled():
            raise Cancelled
        yield part


def _open(source, sample_rate, track, max_duration, stack, warn, cancelled):
    """source -> its name in messages, its sample rate, and an iterator over float arrays (samples, channels)."""
    if isinstance(source, (np.ndarray, Tensor)):
        name, rate, parts = _open_array(source, sample_rate)
        _only_track(track, name)
        return name, rate, parts
    if sample_rate is not None:
        raise AudioError(f"sample_rate={sample_rate} was given for a {type(source).__name__}; only arrays need it, a file "
                         "states its own: leave it out")
    path, name = _as_file(source, stack, cancelled)
    trouble, length = _foreign(path), 0.0
    if not trouble:
        pieces = _pieces(path, cancelled)
        try:
            file = stack.enter_context(_sound_file(path, *pieces[:2]))
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
                if max_duration * _checked_rate(file.samplerate, name) < file.frames <= os.path.getsize(path) // file.channels:
                    raise _too_long(name, max_duration)
                _only_track(track, name)
                return name, file.samplerate, chain(_decoded(file, name, length, warn), _joined(path, pieces, file.samplerate, name, warn))
    return _open_ffmpeg(path, name, trouble, length, track, stack, warn, cancelled)


def may_wait(source) -> bool:
    """Whether reading may have to wait for somebody: standard input, a pipe, a file object that is not in memory."""
    if isinstance(source, (str, os.PathLike)):
        return source == "-" or os.path.exists(source) and not os.path.isfile(source)
    return hasattr(source, "read") and not isinstance(source, io.BytesIO)


def stated_duration(source) -> float | None:
    """Seconds that the header of a file states, to show progress; None where it says nothing. It may be wrong."""
    try:
        if source == "-" or not os.path.isfile(source) or _foreign(os.fspath(source)):
            return None
        with _sound_file(source) as file:
            return file.frames / file.samplerate if 0 < file.frames < 2 ** 62 else None
    except (OSError, TypeError, ValueError, ZeroDivisionError, soundfile.LibsndfileError):
        return None


def _sound_file(path, begin=0, end=None) -> soundfile.SoundFile:
    """A file, or the bytes of it from `begin` to `end`."""
    with _HUSH:                           # an MP3, if anything
        if begin or end is not None:
            return soundfile.SoundFile(_Slice(path, begin, end))
        # TRAP: on Linux a name need not be UTF-8, and soundfile encodes text as UTF-8; bytes it takes as they are.
        return soundfile.SoundFile(path if os.name == "nt" else os.fsencode(path))


class _Slice(io.RawIOBase):
    """A part of a file, as a file; `end` None: up to its end."""

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


def _unknown(file) -> str:
    """Why an open SoundFile is left to ffmpeg; "" if it isn't."""
    known = file.subtype in FORMATS.get(file.format, ())
    return "" if known else f"{file.subtype} in {file.format} is not among the formats read directly"


# ---- several recordings in one file, as `cat a.wav b.wav` makes it ---------------------------------------------------------

def _pieces(path, cancelled) -> list[int | None]:
    """Where the recordings of a file begin, and where the last one ends: None, or the place of the one that is too many.
    TRAP: libsndfile and ffmpeg read the first one and say nothing."""
    places, size = [0], os.path.getsize(path)
    with open(path, "rb", buffering=VALUES) as file:
        while len(places) <= MOST_PIECES and (place := _behind(file, places[-1], size)) < size:
            for found in _until(cancelled, _searched(file, place)):
                if found is not None:
                    places.append(found)
                    break
            else:
                break
    return places if len(places) > MOST_PIECES else [*places, None]


def _behind(file, place, end) -> int:
    """Where the sound ends of the recording that begins at `place`, by its own header; of a FLAC, which doesn't say that, where it
    begins. `end`, of the file, where that isn't known."""
    head = _at(file, place, 36)
    if head[:3] == b"ID3":                # in front of a FLAC
        place = min(place + _tag_length(head), end)
        head = _at(file, place, 36)
    kind, order = head[:4], "little" if head[:4] in (b"RIFF", b"RF64", b"dns.") else "big"
    if kind == b"fLaC":
        return place + 4
    if kind == b"OggS":
        return _behind_ogg(file, place)
    if kind in (b".snd", b"dns."):
        offset, size = (int.from_bytes(head[start:start + 4], order) for start in (4, 8))
        return place + offset + size if size else end
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
            return place + size if size else end
        place += size + (size % 2 if digits == 4 else 0)
    return end


def _searched(file, place) -> Iterator[int | None]:
    """From `place` on, where the next recording begins; None as long as it isn't found."""
    while len(content := _at(file, place, VALUES)) > 16:
        found = BEHIND.search(content)
        yield place + found.start() if found else None
        place += len(content) - 16


def _behind_ogg(file, place) -> int:
    """The same of an OGG file: where a page is none of its streams', but begins another, or where there are no more pages."""
    sound = False
    while len(head := _at(file, place, 27)) == 27 and head.startswith(b"OggS"):
        first = bool(head[5] & 2)
        if first and sound:
            break
        sound = sound or not first
        place += 27 + head[26] + sum(file.read(head[26]))
    return place


def _joined(path, places, rate, name, warn) -> Iterator[np.ndarray]:
    """The recordings of a file behind the first one, as float32 arrays (samples, channels) at the rate of that one."""
    for number, (begin, end) in enumerate(pairwise(places[1:]), 2):
        try:
            with _sound_file(path, begin, end) as file:
                if trouble := _unknown(file):
                    raise AudioError(trouble)
                parts = _decoded(file, name, 0.0, warn)
                if _checked_rate(file.samplerate, name) == rate:
                    yield from parts
                else:
                    for part in _resampled((torch.from_numpy(_mean(part)) for part in parts), file.samplerate, rate):
                        yield part.numpy()[:, None]
        except (AudioError, soundfile.LibsndfileError) as error:
            reason = getattr(error, "error_string", str(error)).rstrip(".")
            warn(f"{name}: recording {number} in this file, which begins at byte {begin}, is lost ({reason}): cut the file in two there")
    if places[-1] is not None:
        warn(f"{name}: holds more than {MOST_PIECES} recordings, one behind the other; what follows those, from byte {places[-1]} on, is "
             "lost: cut the file in two there")


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


def _nothing(warning: str) -> None:
    pass


def _foreign(path) -> str:
    """Why a file is not for libsndfile, judged by its first bytes; "" if it may be."""
    with open(path, "rb") as file:
        start, place = file.read(20), 0
        for _ in range(9):
            if start[:3] == b"ID3":       # a tag in front of an MP3
                place += _tag_length(start)
                file.seek(place)
                start = file.read(20)
        if path.lower().endswith(".mp3") and not any(start):                # libsndfile goes by the name then
            start = file.read(4096).lstrip(b"\0")
    if BEGINNINGS.match(start):
        return ""
    kind = next((kind for beginning, kind in OTHERS.items() if start.startswith(beginning)), None)
    return f"{kind} is not among the formats read directly" if kind else "it begins like none of the formats read directly"


def _tag_length(head: bytes) -> int:
    """Bytes of the ID3 tag that begins so: 10, and what its last four say in 7 bits each."""
    return 10 + sum((byte & 0x7f) << 7 * digit for digit, byte in enumerate(reversed(head[6:10])))


def _cut_short(file, path, cancelled) -> tuple[str, float]:
    """Why libsndfile would stop before the end of a file, "" if it wouldn't; and the seconds that an MP3 should give, else 0."""
    stated, length, junk, counted = file.frames / max(1, file.samplerate), 0.0, 0, False
    if file.format == "MP3":
        for seconds, before, start in _until(cancelled, _mpeg_frames(path)):
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


def _open_array(source, sample_rate):
    """As `_open`, for a float array or tensor in memory."""
    name = f"the {type(source).__name__} of shape {tuple(source.shape)}"
    if isinstance(source, Tensor):
        floating = source.is_floating_point()
        try:
            array = source.detach().cpu().float().numpy()       # numpy has no bfloat16
        except (RuntimeError, TypeError):
            raise AudioError(f"{name} holds {source.dtype} as {source.layout} on {source.device}, which can't be read; expected a "
                             "dense tensor with its samples in memory: pass `samples.to_dense().float()`") from None
    else:
        array, floating = source, np.issubdtype(source.dtype, np.floating)
    if not floating:
        raise AudioError(f"{name} holds {source.dtype}; expected floats in -1..1: divide by the full scale of the integers, "
                         "for int16 `samples / 32768`")
    if array.ndim not in (1, 2):
        raise AudioError(f"{name} has {array.ndim} axes; expected (samples,), (samples, channels) or (channels, samples)")
    if sample_rate is None:
        raise AudioError(f"{name} comes without sample_rate: pass it in Hz, for example sample_rate=16000")
    if array.ndim == 1:
        array = array[:, None]
    elif array.shape[0] < array.shape[1]:
        array = array.T
    step = max(1, VALUES // max(1, array.shape[1]))
    return name, sample_rate, (array[start:start + step] for start in range(0, len(array), step))


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
        if seconds < _least(length):
            trouble = f"{length:.1f} s expected"
        if not trouble:
            return
    elif 0 < read < file.frames < 2 ** 62:                      # 2^62 and more stand for a length that is not stated
        trouble = f"{file.frames / file.samplerate:.1f} s announced"
    elif "lost sync" not in trouble:
        return
    warn(_damage(name, seconds, trouble))


def _least(length) -> float:
    """Seconds of an MP3 that should give so many; encoders put up to 0.2 s in front and behind."""
    return 0.99 * length - 0.5


def _damage(name, seconds, trouble) -> str:
    return f"{name}: breaks off after {seconds:.1f} s ({trouble.rstrip('.')}); what comes before is used"


@dataclass(frozen=True)
class _Track:
    """A stream of sound in a file with several streams. `index`: its number among all of them."""

    index: int
    language: str = ""                    # three letters, "" where the file doesn't say
    default: bool = False


# TRAP: in a transport stream they are listed by program, so not in their order, and one of two programs twice.
STREAM = re.compile(r"^ {2,4}Stream #0:(\d+)(?:\[0x[0-9a-f]+\])?(?:\(([\w,-]+)\))?: Audio: (.*)$", re.MULTILINE)
CLOCK = re.compile(r"^  Duration: (?:(\d+):(\d\d):([\d.]+)|N/A)(?:, start: (-?[\d.]+))?", re.MULTILINE)
# What people call a language, and what files call it (ISO 639-1, and 639-2 in both of its ways).
CALLED = ({"zh", "chi", "zho", "cmn"}, {"yue"}, {"en", "eng"}, {"de", "ger", "deu"}, {"fr", "fre", "fra"}, {"es", "spa"}, {"it", "ita"},
          {"ja", "jpn"}, {"ko", "kor"}, {"pt", "por"}, {"ru", "rus"}, {"nl", "dut", "nld"}, {"ar", "ara"}, {"hi", "hin"}, {"vi", "vie"})


def check_track(track) -> None:
    """Raises OptionError for what no track can be called."""
    if track is None or isinstance(track, int) and not isinstance(track, bool) and track >= 1:
        return
    if not (isinstance(track, str) and re.fullmatch("[A-Za-z]{2,3}", track)):
        raise OptionError(f"track is {track!r}, expected a number from 1 on, or a language of two or three letters such as 'eng'")


def _only_track(track, name) -> None:
    if track not in (None, 1):
        raise AudioError(f"{name}: has no track {track}; it has one track, whose language it doesn't state: leave the track out")


def _listing(tracks) -> str:
    def described(number, track):
        remarks = ", ".join(filter(None, (track.language, "default" if track.default else "")))
        return f"{number} ({remarks})" if remarks else str(number)
    shown = [described(number, track) for number, track in enumerate(tracks[:20], 1)]
    return ", ".join(shown + ["..."] * (len(tracks) > 20))


def _chosen(tracks, track, name) -> int:
    """Which of the tracks is read, from 0: the one that was asked for, the default one, the first one."""
    if track is None:
        return next((place for place, one in enumerate(tracks) if one.default), 0)
    if isinstance(track, int):
        fitting = [track - 1] if track <= len(tracks) else []
    else:
        names = next((names for names in CALLED if track.lower() in names), {track.lower()})
        fitting = [place for place, one in enumerate(tracks) if names & set(one.language.lower().split(","))]
    if not fitting:
        raise AudioError(f"{name}: has no track {track}; expected one of {_listing(tracks)}: choose one of these, or leave the track out")
    return fitting[0]


class _Ffmpeg:
    """ffmpeg on the PATH, for one file."""

    def __init__(self, path, name, trouble, cancelled):
        self.path, self.name, self.trouble, self.cancelled = path, name, trouble, cancelled
        self.program = shutil.which("ffmpeg")
        if self.program is None:
            raise AudioError(f"{name}: not readable ({trouble}), and there is no ffmpeg on the PATH that could; if it is a "
                             "recording, install ffmpeg or convert it to WAV")

    def start(self, log, options, output=()) -> "_Child":
        command = [self.program, "-nostdin", *options, "-max_alloc", str(MOST_ALLOCATED), "-threads", "1", "-vn", "-sn", "-dn",
                   "-protocol_whitelist", "file,pipe", "-format_whitelist", CONTAINERS, "-i", self.path, *output]
        try:
            return _Child(command, log, self.cancelled)
        except OSError as error:
            raise self.not_started(error) from error

    def not_started(self, error) -> AudioError:
        return AudioError(f"{self.name}: not readable ({self.trouble}), and {self.program} can't be started ({error}); mend that, or "
                          "convert it to WAV")

    def refused(self, complaint) -> AudioError:
        return AudioError(f"{self.name}: not a readable recording ({self.trouble}); ffmpeg says: {complaint}; convert it to WAV, or record "
                          "or download it again")

    def look(self) -> tuple[list[_Track], float, float]:
        """The tracks of sound; the seconds at which the clock of the file begins; and how long it says that it is (inf: it doesn't)."""
        with self.start(subprocess.STDOUT, ["-hide_banner", "-v", "info"]) as child:
            text = child.read(MOST_LISTED).decode("utf-8", "replace")
            if child.silent:
                raise self.refused(_SILENCE.format(PATIENCE))
        found = {int(index): _Track(int(index), "" if language == "und" else language, "(default)" in rest)
                 for index, language, rest in STREAM.findall(text)}
        clock = CLOCK.search(text)
        hours, minutes, seconds, begin = clock.groups() if clock else (None,) * 4
        length = 3600 * int(hours) + 60 * int(minutes) + float(seconds) if hours else math.inf
        return [found[index] for index in sorted(found)], float(begin or 0), length

    def decode(self, stream: str, begin: float, length: float, stack) -> "_Sound":
        """A stream, by ffmpeg's name for it."""
        # No -ac: ffmpeg's own downmix weighs the channels. Matroska is the simplest container that says when a packet is heard.
        # TRAP: without -copyts a transport stream begins where its sound does, not where the file does.
        output = ["-map", stream, "-map_metadata", "-1", "-map_chapters", "-1", "-avoid_negative_ts", "disabled",
                  "-c:a", "pcm_f32le", "-f", "matroska", "pipe:1"]
        try:
            log = stack.enter_context(tempfile.TemporaryFile())     # TRAP: a pipe that nobody reads would stop ffmpeg at 64 KiB
        except OSError as error:
            raise self.not_started(error) from error
        child = stack.enter_context(self.start(log, ["-v", "error", "-copyts"], output))
        return _Sound(self, child, log, max(begin, 0.0), length)


_SILENCE = "nothing for {:g} s, so it was ended"


class _Sound:
    """What ffmpeg makes of a stream: its `rate`, and `parts`, with silence where the clock of the file runs on without sound.

    So a time in the recording is one of the file, as players show it: where sound begins later than the picture, or packets were lost.
    No sound is dropped: where the clock goes back, the sound goes on.
    """

    # Elements of Matroska (RFC 9559): those that hold others, and those that count here. All others are skipped.
    HOLDERS = {0x18538067, 0x1F43B675, 0x1654AE6B, 0xAE, 0xE1, 0xA0}            # segment, cluster, tracks, track, audio, block group
    RATE, CHANNELS, TIME, BLOCKS = 0xB5, 0x9F, 0xE7, (0xA3, 0xA1)

    def __init__(self, ffmpeg, child, log, begin, length):
        self.ffmpeg, self.child, self.log, self.begin, self.length = ffmpeg, child, log, begin, length
        self.rate = self.channels = self.read = 0
        self.stream = io.BufferedReader(_Output(child), 4 * VALUES)
        self.elements = self._elements()
        self.held = next(self.elements, None)           # the first block: what comes before it says rate and channels
        if not self.rate or not self.channels:
            raise ffmpeg.refused(self.complaint())

    def complaint(self) -> str:
        status = self.child.wait()
        if self.child.silent:
            return _SILENCE.format(PATIENCE)
        self.log.seek(max(0, os.fstat(self.log.fileno()).st_size - 4096))       # a damaged file can give a line a packet
        lines = self.log.read().decode("utf-8", "replace").strip().splitlines()
        if any("matches no streams" in line for line in lines):
            return "there is no sound in it"
        return lines[-1].replace(self.ffmpeg.path, "input") if lines else f"exit status {status}"

    def _number(self, marked: bool) -> int | None:
        """The next number of variable length; an element's kind keeps the bit that marks the length. None: the end."""
        first = self.stream.read(1)
        if not first or not first[0]:
            return None
        length = 9 - first[0].bit_length()
        rest = self.stream.read(length - 1)
        return int.from_bytes(first + rest, "big") & (-1 if marked else (1 << 7 * length) - 1) if len(rest) == length - 1 else None

    def _elements(self) -> Iterator[tuple[float | None, bytes]]:
        """Of each block the second at which it is heard, and its bytes; of a large one several pieces, all but the first without a time."""
        cluster = 0
        while (kind := self._number(True)) is not None and (size := self._number(False)) is not None:
            if kind in self.HOLDERS:
                continue
            time = None
            if kind in self.BLOCKS:
                head = self.stream.read(4)
                time, size = (cluster + int.from_bytes(head[1:3], "big", signed=True)) / 1000, size - len(head)
            while size > 0 and (piece := self.stream.read(min(size, 4 * VALUES))):
                size -= len(piece)
                if kind in self.BLOCKS:
                    yield time, piece
                    time = None
                elif kind == self.RATE and len(piece) in (4, 8):
                    self.rate = struct.unpack(">f" if len(piece) == 4 else ">d", piece)[0]
                elif kind == self.CHANNELS:
                    self.channels = int.from_bytes(piece, "big")
                elif kind == self.TIME:
                    cluster = int.from_bytes(piece, "big")

    def parts(self) -> Iterator[np.ndarray]:
        """float32 arrays (samples, channels)."""
        width, ahead, joined = 4 * self.channels, -self.begin, bytearray()      # bytes of a sample in all channels; our clock - the file's

        def joined_up() -> np.ndarray:
            count = len(joined) // width
            self.read += count
            part = np.frombuffer(bytes(joined[:count * width]), "<f4").reshape(count, self.channels)
            del joined[:count * width]
            return part

        for time, piece in chain([self.held] if self.held else [], self.elements):
            if time is not None:
                reached = self.read + len(joined) // width
                missing = time + ahead - reached / self.rate
                if missing < -1 or missing > min(LONGEST_GAP, max(GAP, self.length - reached / self.rate)):
                    ahead -= missing                    # another clock, or a damaged one
                elif missing > GAP:
                    if joined:
                        yield joined_up()
                    left = round(missing * self.rate)
                    self.read += left
                    while left > 0:
                        count = min(left, max(1, VALUES // self.channels))
                        left -= count
                        yield np.zeros((count, self.channels), np.float32)
            joined += piece
            if len(joined) >= 4 * VALUES:
                yield joined_up()
        if joined:
            yield joined_up()

    def silent(self) -> bool:
        """Whether it is silent throughout. Reads it as far as it is."""
        return all(not part.size or np.abs(part).max() < SILENT for part in self.parts())


class _Output(io.RawIOBase):
    """What a program writes, as far as it may take."""

    def __init__(self, child):
        self.child = child

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        content = self.child.read(len(buffer))
        buffer[:len(content)] = content
        return len(content)


def _open_ffmpeg(path, name, trouble, length, track, stack, warn, cancelled):
    """As `_open`, for what libsndfile does not read: `trouble` says why. `length`: the seconds that an MP3 should give, else 0."""
    ffmpeg = _Ffmpeg(path, name, trouble, cancelled)
    tracks, begin, stated = ffmpeg.look()
    chosen = _chosen(tracks, track, name) if tracks else 0
    found = ffmpeg.decode(f"0:{tracks[chosen].index}" if tracks else "0:a:0", begin, stated, stack)
    if len(tracks) > 1 and track is None:
        warn(f"{name}: has {len(tracks)} tracks of sound, {_listing(tracks)}; track {chosen + 1} is read: choose another one with --track")

    def parts():
        silent = True
        for part in found.parts():
            silent = silent and len(tracks) > 1 and np.abs(part).max() < SILENT
            yield part
        seconds = found.read / found.rate
        if found.child.wait() != 0 and found.read:
            warn(_damage(name, seconds, found.complaint()))
        elif seconds < _least(length):
            warn(f"{name}: gives {seconds:.1f} s ({length:.1f} s expected); parts of it are damaged, and their sound is lost")
        if silent and len(tracks) > 1:
            others = (place for place in range(len(tracks)) if place != chosen and _heard(ffmpeg, tracks[place], begin, stated))
            if (other := next(others, None)) is not None:
                warn(f"{name}: track {chosen + 1}, which was read, is silent throughout, but track {other + 1} has sound: choose it with "
                     f"--track {other + 1}")

    return name, found.rate, parts()


def _heard(ffmpeg, track, begin, length) -> bool:
    """Whether a track has any sound."""
    with ExitStack() as stack, suppress(AudioError):            # one that can't be read: nobody asked for it
        return not ffmpeg.decode(f"0:{track.index}", begin, length, stack).silent()
    return False


class _Child:
    """A program whose output is read, in a session of its own: it is ended with all that it has started

    - when it is closed;
    - when nothing came for PATIENCE seconds (then it is `silent`), or `cancelled()` is true: a thread looks after that;
    - when this process is gone, however that ended: the kernel closes the pipe then that a shell, the leash, reads from.

    Raises OSError where it can't be started.
    """

    LEASH = 'read -r _; kill -9 -"$1"'    # what closes the pipe, kills the session

    def __init__(self, command, log, cancelled):
        self.log, self.cancelled, self.silent, self.deadline, self.closed = log, cancelled, False, math.inf, threading.Event()
        with ExitStack() as stack:
            # TRAP: no other child may inherit a pipe; `Popen` sees to that.
            self.process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                                                                start_new_session=True))
            stack.callback(self.kill)     # runs before the wait that `Popen` ends with
            if hasattr(resource, "prlimit"):                    # Linux
                with suppress(OSError):
                    resource.prlimit(self.process.pid, resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
                    resource.prlimit(self.process.pid, resource.RLIMIT_CORE, (0, 0))        # a core dump would hold the recording
            if os.path.exists("/bin/sh"):
                leash = stack.enter_context(subprocess.Popen(["/bin/sh", "-c", self.LEASH, "sh", str(self.process.pid)], stdin=subprocess.PIPE,
                                                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True))
                stack.callback(leash.kill)                      # before its pipe is closed: the number may be another one's by then
                stack.callback(self.kill)
            watcher = threading.Thread(target=self._watch, daemon=True)
            watcher.start()
            stack.callback(watcher.join)
            stack.callback(self.closed.set)
            self.stack = stack.pop_all()

    def __enter__(self) -> "_Child":
        return self

    def __exit__(self, *error) -> None:
        self.stack.close()

    def read(self, count) -> bytes:
        """So many bytes, fewer at the end."""
        with self._limited():
            return self.process.stdout.read(count)

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        with self._limited():
            if hasattr(os, "waitid") and self.process.returncode is None:
                with suppress(ChildProcessError):
                    os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
                self.kill()               # what it has left behind, as long as the number is its own
            return self.process.wait()

    def kill(self) -> None:
        """TRAP: ffmpeg may be a script, and what it has started holds the pipe open: all of its session is ended."""
        if self.process.returncode is None:                     # else its number may be another one's by now
            with suppress(ProcessLookupError, PermissionError):             # macOS: not permitted, of one that has just ended
                os.killpg(self.process.pid, signal.SIGKILL) if os.name == "posix" else self.process.kill()

    @contextmanager
    def _limited(self):
        self.deadline = time.monotonic() + PATIENCE
        yield
        self.deadline = math.inf
        if self.cancelled():
            raise Cancelled

    def _watch(self) -> None:
        while not self.closed.wait(0.1):
            if getattr(os.fstat(self.log.fileno()), "st_blocks", 0) * 512 > MOST_LOGGED:       # where it writes on, there is a hole in front
                os.ftruncate(self.log.fileno(), 0)
            if self.cancelled():
                self.kill()
            elif time.monotonic() > self.deadline:
                self.silent = True
                self.kill()


def _checked_rate(rate, name):
    if not (isinstance(rate, numbers.Real) and math.isfinite(rate) and rate == int(rate)):
        raise AudioError(f"{name}: sample rate {rate!r}; expected a whole number of Hz")
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise AudioError(f"{name}: sample rate {rate} Hz; expected {LOWEST_RATE} to {HIGHEST_RATE}: the header is damaged, or "
                         "this is not speech. Convert it to 16000 Hz if it is")
    if rate > ODD_RATE and rate % 100:
        raise AudioError(f"{name}: sample rate {rate} Hz; expected whole hundreds above {ODD_RATE}: the header is damaged, or was "
                         "made up. Convert it to 16000 Hz")
    return int(rate)


def _limited(parts, name, rate, max_duration):
    """The same float arrays (samples, channels), up to the limits."""
    read = size = 0
    for part in parts:
        if part.shape[1] > MOST_CHANNELS:
            raise AudioError(f"{name}: {part.shape[1]} channels; expected 1 to {MOST_CHANNELS}: the header is damaged, or this is "
                             "not speech. Keep the channels that people speak on")
        read, size = read + len(part), size + part.nbytes
        if read > max_duration * rate:
            raise _too_long(name, max_duration)
        if size > MOST_BYTES:
            raise AudioError(f"{name}: gives more than {MOST_BYTES / 2 ** 30:.0f} GiB of samples; expected at most that: cut the "
                             "recording, or convert it to one channel and 16000 Hz")
        yield part


def _too_long(name, max_duration) -> AudioError:
    return AudioError(f"{name}: is longer than {max_duration:g} s (max_duration); expected at most that: cut the recording, or raise "
                      "the limit with --max-duration")


def _mono(parts, name, rate, warn):
    """Float arrays (samples, channels) -> float32 tensors (samples,), the mean of all channels, or one of two, checked."""
    read, phase = 0, _Phase(name, rate, warn)
    parts = (np.ascontiguousarray(part, dtype=np.float32) for part in parts if 0 not in part.shape)     # native byte order
    for mono in map(torch.from_numpy, phase.mixed(parts)):                      # a cast out of range has given infinity
        finite = mono.isfinite()
        if not finite.all():
            first = read + int(finite.logical_not().nonzero()[0])
            raise AudioError(f"{name}: sample {first} is NaN or infinite; expected finite floats in -1..1: the file is damaged "
                             "or was written by a step that overflowed")
        if mono.abs().max() > LOUDEST:
            first = read + int((mono.abs() > LOUDEST).nonzero()[0])
            raise AudioError(f"{name}: sample {first} is {mono[first - read]:g}; expected floats in about -1..1: divide them by their "
                             "full scale, 32768 for 16 bits, or record again if the file is damaged")
        read += len(mono)
        yield mono
    if read == 0:
        raise AudioError(f"{name}: holds no samples (a header only?); expected audio: record or download it again")


def _mean(part):
    """(samples, channels) -> (samples,)"""
    return part @ np.full(part.shape[1], 1 / part.shape[1], dtype=np.float32)   # ten times as fast as mean(axis=1)


class _Phase:
    """Two channels -> one: their mean, but the louder one of them as long as they are in opposite phase.

    The rule, on frames of 0.25 s: two channels cancel each other out where their mean has less than a tenth of the power of the louder
    one. (It has a quarter if the other is silent, half if they have nothing in common, all if they are alike; to a tenth it only comes
    when they are opposite.) They don't where it has more than a fifth. In between, and in frames that are quiet beside the loudest so
    far, nothing is decided. What counts is the slope of the sound between 100 and 2000 Hz, about, where voices are: hum and offsets of
    direct current are often opposite where the voice is not.

    It takes 2 s of frames that agree, with none that objects, to change over, and then it is done from the first of them on: a tone, a
    vowel or a chord that reaches two microphones half a wave apart cancels as well, but for no longer than it sounds. Where the
    sound ends before that, or pauses for long, one frame will do if nothing ever objected. At most OPEN seconds are held back.
    """

    FRAME, AGREE, OPEN = 0.25, 8, 10.0
    CANCELS, STANDS = 0.1, 0.2            # power of the mean, of that of the louder channel
    QUIET, FAINTEST = 1e-3, 1e-10         # power of a frame, of the loudest so far; and of full scale

    def __init__(self, name, rate, warn):
        self.name, self.rate, self.warn = name, rate, warn
        self.fold = max(1, rate // 4000)  # samples whose mean is looked at: about 4000 a second
        self.frame = self.fold * max(2, round(self.FRAME * rate / self.fold))
        self.folding = np.tile(np.eye(2, dtype=np.float32) / self.fold, (self.fold, 1))
        self.channel: int | None = None   # the one that is taken; None: the mean
        self.loudest, self.settled, self.told, self.read = 0.0, False, False, 0
        self.open: list[np.ndarray] = []  # frames that wait until it is clear what becomes of them
        self.against = 0                  # how many of them are for a change
        self.power = np.zeros(2)          # of those, in each channel

    def mixed(self, parts):
        """Arrays (samples, channels) -> arrays (samples,), in all as many."""
        rest = np.zeros((0, 2), np.float32)
        for part in parts:
            if part.shape[1] != 2:        # after another recording in the same file
                yield from self.closed(rest)
                rest = rest[:0]
                yield _mean(part)
                continue
            part = np.concatenate([rest, part]) if len(rest) else part
            count = len(part) // self.frame
            if count:
                yield from self.frames(part[:count * self.frame].reshape(count, self.frame, 2))
            rest = part[count * self.frame:]
        yield from self.closed(rest)

    def closed(self, rest):
        """What is left, at the end: less than a frame, and it counts as one."""
        whole = len(rest) // self.fold * self.fold
        if whole > self.fold:
            [power], [mixed] = self.powers(rest[None, :whole])
            verdict = self.verdict(power, mixed)
            self.settled = self.settled or verdict is False
            if verdict:
                self.against, self.power = self.against + 1, self.power + power
        yield from self.give_up()
        if len(rest):
            yield self.taken(rest)

    def frames(self, part):
        """(frames, samples, 2): as long as nothing speaks against it, all at once."""
        powers, mean = self.powers(part)
        first = 0                         # of those that are not given out yet
        for place, (power, mixed) in enumerate(zip(powers, mean, strict=True)):
            verdict = self.verdict(power, mixed)
            if verdict is False:          # it is as it was
                self.settled = True
                yield from self.flush()
            elif verdict or self.open:
                if first < place and not self.open:
                    yield self.taken(part[first:place].reshape(-1, 2))
                self.open.append(part[place])
                first = place + 1
                if verdict:
                    self.against, self.power = self.against + 1, self.power + power
                if self.against == self.AGREE:
                    self.change()
                    yield from self.flush()
                elif len(self.open) * self.FRAME >= self.OPEN:
                    yield from self.give_up()
        if first < len(part):
            yield self.taken(part[first:].reshape(-1, 2))

    def powers(self, part):
        """(frames, samples, 2) -> those of the channels (frames, 2), and those of their mean (frames,)."""
        with np.errstate(all="ignore"):   # NaN and infinity are found behind
            coarse = part.reshape(len(part), -1, 2 * self.fold) @ self.folding
            coarse = np.diff(coarse, axis=1)
            return np.square(coarse, dtype=np.float64).mean(1), np.square(coarse.mean(2), dtype=np.float64).mean(1)

    def verdict(self, power, mixed) -> bool | None:
        """Whether a frame is for a change. None: it says nothing."""
        louder = power.max()
        if not self.FAINTEST < louder < np.inf or louder < self.QUIET * self.loudest:
            return None
        self.loudest = max(self.loudest, louder)
        cancels = True if mixed < self.CANCELS * louder else False if mixed > self.STANDS * louder else None
        return None if cancels is None else cancels == (self.channel is None)

    def change(self) -> None:
        self.channel, self.settled = int(self.power.argmax()) if self.channel is None else None, True
        if self.channel is not None and not self.told:
            self.told = True
            begin = self.read / self.rate
            since = f" from {begin:.1f} s on" if begin >= 1 else ""
            self.warn(f"{self.name}: its two channels are in opposite phase{since}, so that their mean would be next to silence; the "
                      f"{('left', 'right')[self.channel]} one is taken there")

    def give_up(self):
        """What is open is decided with what there is."""
        if self.against and not self.settled:
            self.change()
        yield from self.flush()

    def flush(self):
        held, self.open, self.against, self.power = self.open, [], 0, np.zeros(2)
        if held:
            yield self.taken(np.concatenate(held))

    def taken(self, part):
        self.read += len(part)
        mean = _mean(part)
        # What is no number is found in the mean of both.
        return mean if self.channel is None or not np.isfinite(mean).all() else np.ascontiguousarray(part[:, self.channel])


def _regrouped(parts, length):
    """Tensors (any,) -> the same samples as tensors (length,), the last one shorter."""
    held, count = [], 0
    for part in parts:
        while count + len(part) >= length:
            held.append(part[:length - count])
            part = part[length - count:]
            yield torch.cat(held)
            held, count = [], 0
        if len(part):
            held.append(part)
            count += len(part)
    if held:
        yield torch.cat(held)


# ---- resampling ---------------------------------------------------------------------------------------------------------
# Output m is the convolution of the source with a low-pass kernel, taken at source position m * source / target. With
# source / target = down / up in lowest terms the positions repeat: `up` outputs advance the source by exactly `down` samples.
# So the `up` kernels (phases) form one strided convolution. Phases are taken in groups of about 100 neighbours, which share
# one stretch of the source: a kernel for all phases at once would be mostly zeros (1 GB of them from 15999 Hz).

FLAT = 0.9                                # of the Nyquist frequency is kept: 7.2 of 8 kHz
STOP = 80.0                               # dB down at the Nyquist frequency and above
GROUP = 100                               # outputs of one matrix product, about the reach of the kernel


def resample(samples, source_rate, target_rate=SAMPLE_RATE) -> Tensor:
    """Float samples (S,) at `source_rate` Hz -> float32 (ceil(S * target / source),) at `target_rate` Hz, without delay.

    Flat (0.01 dB) to 90 % of half the lower rate, 80 dB down from half the lower rate on: a Kaiser-windowed sinc (Kaiser 1974;
    the formulas are in Oppenheim and Schafer, "Discrete-Time Signal Processing", section 7.5.3).
    """
    source_rate, target_rate = (_checked_rate(rate, "resample") for rate in (source_rate, target_rate))
    samples = samples.float()
    return torch.cat([samples[:0], *_resampled(samples.split(VALUES), source_rate, target_rate)])


def _resampled(parts, source_rate, target_rate):
    """`resample` over a stream: tensors (any,) -> tensors (any,)."""
    if source_rate == target_rate:
        yield from parts
        return
    up, down, reach, groups = _phases(source_rate, target_rate)
    pending, read, written = torch.zeros(reach), 0, 0           # silence before the first sample; as much behind the last
    for part in parts:
        read += len(part)
        pending = torch.cat([pending.to(part.device), part])
        periods = (len(pending) - 2 * reach - 1) // down
        if periods > 0:
            yield _convolved(pending, periods, down, groups)
            pending, written = pending[periods * down:], written + periods * up
    left = -(-read * target_rate // source_rate) - written      # of ceil(read * target / source)
    if left > 0:
        periods = -(-left // up)
        silence = pending.new_zeros(max(0, periods * down + 2 * reach + 1 - len(pending)))
        yield _convolved(torch.cat([pending, silence]), periods, down, groups)[:left]


def _convolved(samples, periods, down, groups):
    """(S,) with S >= periods * down + 2 * reach + 1 -> (periods * up,)"""
    outputs = []
    for start, kernel in groups:                                # (G, 1, L)
        stretch = samples[start:start + (periods - 1) * down + kernel.shape[-1]]
        outputs.append(F.conv1d(stretch[None, None], kernel.to(samples.device), stride=down)[0])
    return torch.cat(outputs).T.flatten()                       # groups of (G, periods) -> (up, periods) -> (periods * up,)


@lru_cache(maxsize=2)                     # 0.5 MB for 44.1 kHz, but 60 MB for a prime rate near it
def _phases(source_rate, target_rate):
    """-> up, down, reach (taps either side of a position), and for each group of phases its first sample and kernel (G, 1, L)."""
    divisor = math.gcd(source_rate, target_rate)
    up, down = target_rate // divisor, source_rate // divisor
    repeat = max(1, GROUP // up)                                # 48 kHz has one phase: make a group of a hundred periods
    up, down = up * repeat, down * repeat
    nyquist = min(source_rate, target_rate) / 2
    cutoff = (1 + FLAT) / 2 * nyquist                           # the filter is 6 dB down here
    transition = 2 * math.pi * (1 - FLAT) * nyquist / source_rate               # radians a source sample
    half = (STOP - 7.95) / (2.285 * transition) / 2             # length of the kernel either side, in source samples
    reach = math.ceil(half) + 1

    groups = []
    for phases in torch.arange(up).chunk(-(-up // GROUP)):
        start, end = int(phases[0]) * down // up, int(phases[-1]) * down // up
        taps = torch.arange(start - reach, end + reach + 1, dtype=torch.float64)
        distance = taps - (phases.double() * down / up)[:, None]                # (G, L), in source samples
        kernel = 2 * cutoff / source_rate * torch.sinc(2 * cutoff / source_rate * distance) * _kaiser(distance / half)
        groups.append((start, kernel.float()[:, None]))
    return up, down, reach, groups


def _kaiser(position):
    """Kaiser window at positions -1..1, zero outside; its one parameter gives side lobes of STOP dB."""
    beta = 0.1102 * (STOP - 8.7)
    inside = (1 - position.square()).clamp(min=0).sqrt()
    return torch.special.i0(beta * inside) / torch.special.i0(torch.tensor(beta, dtype=torch.float64)) * (position.abs() <= 1)


# ---- log-mel ------------------------------------------------------------------------------------------------------------

def windows(samples, length=WINDOW) -> Tensor:
    """(S,) -> (W, length), at least one window. TRAP: silence is added here, to the samples: zeros in the log-mel are loud."""
    count = max(1, -(-len(samples) // length))
    return F.pad(samples, (0, count * length - len(samples))).reshape(count, length)


@lru_cache(maxsize=4)
def mel_filters(bands) -> Tensor:
    """Triangular filters (bands, 201) from 0 to 8000 Hz on Slaney's mel scale, float32, rounded once from float64.

    Scale and norm are those of Slaney's Auditory Toolbox (1998): linear up to 1000 Hz, logarithmic above, and every
    triangle of area 1 in Hz. TRAP: with the other scale (2595 log10(1 + f / 700)) or without the norm nothing fails,
    but the model hears another sound. Shared by all callers: do not change in place.
    """
    edges = _mel_to_hertz(torch.linspace(0, _hertz_to_mel(SAMPLE_RATE / 2), bands + 2, dtype=torch.float64))
    low, centre, high = (edges[i:i + bands, None] for i in range(3))
    hertz = torch.arange(BINS, dtype=torch.float64) * SAMPLE_RATE / FFT_SIZE
    rising, falling = (hertz - low) / (centre - low), (high - hertz) / (high - centre)
    return (torch.minimum(rising, falling).clamp(min=0) * 2 / (high - low)).float()


def _hertz_to_mel(hertz):
    """Above 1000 Hz; 15 mels are 1000 Hz, and 27 more are a factor of 6.4."""
    return 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def _mel_to_hertz(mel):
    return torch.where(mel < 15, mel * 1000 / 15, 1000 * torch.exp((mel - 15) * math.log(6.4) / 27))


def log_mel(samples, bands=128) -> Tensor:
    """Float samples (B, S) or (S,) at 16 kHz -> float32 log-mel (B, bands, S // 160), on the same device.

    As Whisper large-v3 and its published feature extractor compute it: `mel_power`; log10; 8 orders of magnitude below the
    loudest point of the row; about -1..1.
    """
    log = mel_power(samples, bands).clamp(min=1e-10).log10()
    # TRAP: the maximum is that of each row; one for the batch would make a recording depend on its batch mates.
    log = torch.maximum(log, log.amax(dim=(-2, -1), keepdim=True) - 8)
    return (log + 4) / 4


def mel_power(samples, bands=128) -> Tensor:
    """Float samples (B, S) or (S,) at 16 kHz -> float32 energy of mel bands (B, bands, S // 160): the power spectrum of periodic
    Hann frames, centred, mirrored at both ends, through `mel_filters`. AudioError for fewer samples than there are to mirror."""
    samples = torch.atleast_2d(samples).float()
    if samples.shape[-1] <= FFT_SIZE // 2:
        raise AudioError(f"{samples.shape[-1]} samples are too few to mirror at the ends; a log-mel needs more than "
                         f"{FFT_SIZE // 2}: pad with `windows` first")
    hann = torch.hann_window(FFT_SIZE, device=samples.device)
    spectrum = torch.stft(samples, FFT_SIZE, HOP, window=hann, center=True, pad_mode="reflect", return_complex=True)
    power = spectrum[..., :-1].abs().square()                   # TRAP: the last frame is dropped, as in training
    return mel_filters(bands).to(samples.device) @ power
