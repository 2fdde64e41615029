"""Recording of any kind -> mono samples at 16 kHz (S,) -> windows (W, 480000) -> log-mel (W, bands, 3000).

What is unusual here:
- Every recording is read, mixed and resampled in blocks, so memory does not grow with its length; the blocks joined are
  the same samples, to float rounding, as those of one pass over the whole.
- All channels are averaged. Keeping the first one only would lose a speaker who was recorded on the second.
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
from functools import lru_cache
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

MOST_LOGGED = 2 ** 20                     # bytes of its complaints that are kept; a damaged file can give a line a packet

# The decoders of libsndfile that are widely used and fuzzed; the others have open memory bugs and are left to ffmpeg.
PCM = {"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"}
FORMATS = {"WAV": PCM, "WAVEX": PCM, "RF64": PCM, "AIFF": PCM, "AU": PCM, "CAF": PCM, "FLAC": {"PCM_S8", "PCM_16", "PCM_24"},
           "OGG": {"VORBIS", "OPUS"}, "MP3": {"MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III"}}
# How their files begin. TRAP: the memory bugs are in the code that opens a file, so it is looked at before libsndfile gets it.
BEGINNINGS = re.compile(rb"(RIFF|RIFX|RF64)....WAVE|FORM....AIF[FC]|fLaC|OggS|\.snd|dns\.|caff|\xff[\xe0-\xff]", re.DOTALL)
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


def load(source, sample_rate=None, *, max_duration=MAX_DURATION, warn=warn_printable) -> Tensor:
    """The whole recording -> float32 samples (S,), mono, 16 kHz: `blocks` joined. Arguments and errors as there."""
    return torch.cat(list(blocks(source, sample_rate, max_duration=max_duration, warn=warn)))


def blocks(source, sample_rate=None, *, seconds=30.0, max_duration=MAX_DURATION, warn=warn_printable,
           cancelled: Callable[[], bool] | None = None) -> Iterator[Tensor]:
    """Yield a recording as float32 blocks (S,), mono, 16 kHz: each `seconds` long, the last one at most that.

    `source` is one of
    - a path, `"-"` for standard input, bytes, or a binary file object: WAV, FLAC, OGG, MP3, AIFF, AU and CAF are decoded by
      libsndfile, everything else (m4a, mp4, webm, ...) by ffmpeg if it is on the PATH;
    - a float array or tensor (S,), (S, channels) or (channels, S), about -1..1, with its `sample_rate` in Hz. The shorter
      axis is the channels, the second one where both are equal.

    Raises AudioError, at the first block for what the header shows and later for what is inside: a recording that is
    missing, empty, not audio, outside 4..384 kHz, of more than MOST_CHANNELS, longer than `max_duration` seconds or MOST_BYTES
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
    with ExitStack() as stack:            # closes files and ends ffmpeg, also when the caller stops before the end
        cancelled = cancelled or (lambda: False)
        name, rate, parts = _open(source, sample_rate, max_duration, stack, warn, cancelled)
        rate = _checked_rate(rate, name)
        samples = _mono(_limited(_until(cancelled, parts), name, rate, max_duration), name)
        samples = _regrouped(samples, VALUES)                   # decoders give small parts; long ones are faster behind
        yield from _regrouped(_resampled(samples, rate, SAMPLE_RATE), round(seconds * SAMPLE_RATE))


def _until(cancelled, parts):
    for part in parts:
        if cancelled():
            raise Cancelled
        yield part


def _open(source, sample_rate, max_duration, stack, warn, cancelled):
    """source -> its name in messages, its sample rate, and an iterator over float arrays (samples, channels)."""
    if isinstance(source, (np.ndarray, Tensor)):
        return _open_array(source, sample_rate)
    if sample_rate is not None:
        raise AudioError(f"sample_rate={sample_rate} was given for a {type(source).__name__}; only arrays need it, a file "
                         "states its own: leave it out")
    path, name = _as_file(source, stack, cancelled)
    trouble, length = _foreign(path), 0.0
    if not trouble:
        try:
            file = stack.enter_context(_sound_file(path))
        except soundfile.LibsndfileError as error:
            trouble = error.error_string.rstrip(".")
            if "SF_INFO" in trouble:
                trouble = "its header states no usable sample rate or number of channels"     # what it means
        except TypeError:                 # TRAP: a file named .raw, for which soundfile wants to be told the rate
            trouble = "a .raw file has no header"
        else:
            known = file.subtype in FORMATS.get(file.format, ())
            trouble = f"{file.subtype} in {file.format} is not among the formats read directly"
            if known:
                trouble, length = _cut_short(file, path, cancelled)
            if known and not (trouble and shutil.which("ffmpeg")):
                if trouble:
                    warn(f"{name}: {trouble}; what is behind that is lost: install ffmpeg, which reads on, or convert it to WAV")
                    warn = _nothing       # of this recording that is all that there is to say
                # PCM has a byte a sample or more: a length that the size bears out is no forgery, so nothing is read in vain.
                if max_duration * _checked_rate(file.samplerate, name) < file.frames <= os.path.getsize(path) // file.channels:
                    raise _too_long(name, max_duration)
                return name, file.samplerate, _decoded(file, name, length, warn)
    return _open_ffmpeg(path, name, trouble, length, stack, warn, cancelled)


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


def _sound_file(path) -> soundfile.SoundFile:
    # TRAP: on Linux a name need not be UTF-8, and soundfile encodes text as UTF-8; bytes it takes as they are.
    with _HUSH:                           # an MP3, if anything
        return soundfile.SoundFile(path if os.name == "nt" else os.fsencode(path))


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
    if file.format == "OGG" and _chained(path):
        return f"it is several recordings, one behind the other, and the first is {stated:.1f} s long", length
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


def _chained(path) -> bool:
    """Whether another stream begins in an OGG file behind the pages of the first ones."""
    sound = False
    with open(path, "rb") as file:
        while len(head := file.read(27)) == 27 and head.startswith(b"OggS"):
            first = head[5] & 2
            if first and sound:
                return True
            sound = sound or not first
            file.seek(sum(file.read(head[26])), os.SEEK_CUR)
    return False


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


def _open_ffmpeg(path, name, trouble, length, stack, warn, cancelled):
    """As `_open`, for what libsndfile does not read: `trouble` says why. `length`: the seconds that an MP3 should give, else 0."""
    program = shutil.which("ffmpeg")
    if program is None:
        raise AudioError(f"{name}: not readable ({trouble}), and there is no ffmpeg on the PATH that could; if it is a "
                         "recording, install ffmpeg or convert it to WAV")
    # No -ac: ffmpeg's own downmix weighs the channels. AU is the simplest header that carries rate and channels.
    command = [program, "-nostdin", "-v", "error", "-max_alloc", str(MOST_ALLOCATED), "-threads", "1", "-vn", "-sn", "-dn",
               "-protocol_whitelist", "file,pipe", "-format_whitelist", CONTAINERS,
               "-i", path, "-map", "0:a:0", "-f", "au", "-c:a", "pcm_f32be", "pipe:1"]
    try:
        log = stack.enter_context(tempfile.TemporaryFile())     # TRAP: a pipe that nobody reads would stop ffmpeg at 64 KiB
        child = stack.enter_context(_Child(command, log, cancelled))
    except OSError as error:
        raise AudioError(f"{name}: not readable ({trouble}), and {program} can't be started ({error}); mend that, or convert it to "
                         "WAV") from error

    def complaint():
        status = child.wait()
        if child.silent:
            return f"nothing for {PATIENCE:g} s, so it was ended"
        log.seek(max(0, os.fstat(log.fileno()).st_size - 4096))             # a damaged file can give a line a packet
        lines = log.read().decode("utf-8", "replace").strip().splitlines()
        if any("matches no streams" in line for line in lines):
            return "there is no sound in it"
        return lines[-1].replace(path, "input") if lines else f"exit status {status}"

    header = child.read(24)
    if len(header) < 24:
        raise AudioError(f"{name}: not a readable recording ({trouble}); ffmpeg says: {complaint()}; convert it to WAV, or record "
                         "or download it again")
    _, offset, _, _, rate, channels = struct.unpack(">4s5I", header)
    child.read(offset - len(header))

    def parts():
        count, width = 0, 4 * channels    # bytes of one float32 sample in all channels
        while raw := child.read(max(1, VALUES // channels) * width):
            part = np.frombuffer(raw, ">f4", len(raw) // width * channels)
            count += len(part) // channels
            yield part.reshape(-1, channels)
        if child.wait() != 0 and count:
            warn(_damage(name, count / rate, complaint()))
        elif count / rate < _least(length):
            warn(f"{name}: gives {count / rate:.1f} s ({length:.1f} s expected); parts of it are damaged, and their sound is lost")

    return name, rate, parts()


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


def _mono(parts, name):
    """Float arrays (samples, channels) -> float32 tensors (samples,), the mean of all channels, checked."""
    read = 0
    for part in parts:
        if 0 in part.shape:
            continue
        part = np.ascontiguousarray(part, dtype=np.float32)     # native byte order; a cast out of range gives infinity
        weights = np.full(part.shape[1], 1 / part.shape[1], dtype=np.float32)
        mono = torch.from_numpy(part @ weights)                 # ten times as fast as mean(axis=1)
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
