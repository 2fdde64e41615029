"""What libsndfile doesn't read -> the tracks of sound in it -> float32 samples (samples, channels), by the program ffmpeg.

What is unusual here:
- Files are hostile: every ffmpeg is a `Child`, with limits of time and memory, and it opens media files only, by the lists below.
- A time in the recording is one of the file's own clock, as players show it: `Decoded` puts silence where the clock runs on without
  sound. ffmpeg's filter for that, aresample=async=1, isn't used: it drops sound where a clock goes back, as in two WebM files one
  behind the other, and it can't make up a gap of half an hour, as of somebody who was muted.
"""

import io
import math
import os
import re
import shutil
import signal
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain

import numpy as np

from ..errors import AudioError, Cancelled, OptionError

try:
    import resource
except ImportError:                       # Windows
    resource = None

VALUES = 2 ** 20                          # samples x channels decoded at once: 4 MiB of float32, whatever a header claims
PATIENCE = 60.0                           # seconds that ffmpeg may take for the next VALUES samples
MOST_MEMORY = 2 ** 31                     # bytes that it may address; 8K video beside the sound takes it to 0.4 of it
MOST_ALLOCATED = 2 ** 28                  # bytes that it may ask for at once: the table of 12 hours of packets is a quarter of it
MOST_LOGGED = 2 ** 20                     # bytes of what it says that are kept; a damaged file can give a line a packet
GAP = 0.1                                 # seconds without packets that are made up with silence; clocks of packets tremble by less
LONGEST_GAP = 3600.0                      # seconds; beyond that a clock has jumped, and no sound is missing
SILENT = 1e-3                             # of full scale: a track that is never louder is a microphone that was off
MOST_TRIED = 8                            # other tracks that are looked at for sound, where the one that was read has none

# What ffmpeg may open: media files only. TRAP: without the list a text file can be a playlist that names other files.
CONTAINERS = ("aac,ac3,aiff,amr,ape,asf,au,avi,caf,dts,eac3,flac,flv,loas,matroska,mov,mp3,mpc,mpc8,mpeg,mpegts,nistsphere,"
              "ogg,rm,tak,tta,voc,w64,wav,wv")


# ---- tracks ---------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Track:
    """A stream of sound in a file. `index`: its number among all streams, from 0."""

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


def only_track(track, name) -> None:
    """Raises AudioError if another track is asked for than the first one of a recording that has one."""
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


# ---- one file -------------------------------------------------------------------------------------------------------------

def decode(path, name, trouble, length, track, stack, warn, cancelled) -> tuple[int | float, Iterator[np.ndarray]]:
    """A file -> sample rate, float32 arrays (samples, channels) of one track. `trouble`: why libsndfile doesn't read it; `length`: the
    seconds that an MP3 should give, else 0. ffmpeg ends with `stack` at the latest. Raises AudioError."""
    ffmpeg = Ffmpeg(path, name, trouble, cancelled)
    tracks, begin, stated = ffmpeg.look()
    chosen = _chosen(tracks, track, name) if tracks else 0
    found = ffmpeg.decode(tracks[chosen] if tracks else None, begin, stated, stack)
    if not tracks:
        only_track(track, name)
    if len(tracks) > 1 and track is None:
        warn(f"{name}: has {len(tracks)} tracks of sound, {_listing(tracks)}; track {chosen + 1} is read: choose another one with --track")

    def parts():
        silent = len(tracks) > 1
        for part in found.parts():
            silent = silent and np.abs(part).max() < SILENT
            yield part
        seconds = found.read / found.rate
        if found.child.wait() != 0 and found.read:
            warn(damage(name, seconds, ffmpeg.complaint(found.child)))
        elif seconds < least(length):
            warn(f"{name}: gives {seconds:.1f} s ({length:.1f} s expected); parts of it are damaged, and their sound is lost")
        others = [place for place in range(len(tracks)) if place != chosen][:MOST_TRIED] if silent else []
        if (other := next((place for place in others if ffmpeg.hears(tracks[place], seconds)), None)) is not None:
            warn(f"{name}: track {chosen + 1}, which was read, is silent throughout, but track {other + 1} has sound: choose it with "
                 f"--track {other + 1}")

    return found.rate, parts()


def least(length) -> float:
    """Seconds of an MP3 that should give so many; encoders put up to 0.2 s in front and behind."""
    return 0.99 * length - 0.5


def damage(name, seconds, trouble) -> str:
    return f"{name}: breaks off after {seconds:.1f} s ({trouble.rstrip('.')}); what comes before is used"


class Ffmpeg:
    """ffmpeg on the PATH, for one file."""

    def __init__(self, path, name, trouble, cancelled):
        self.path, self.name, self.trouble, self.cancelled = path, name, trouble, cancelled
        self.program = shutil.which("ffmpeg")
        if self.program is None:
            raise AudioError(f"{name}: not readable ({trouble}), and there is no ffmpeg on the PATH that could; if it is a "
                             "recording, install ffmpeg or convert it to WAV")

    def start(self, options, output=()) -> "Child":
        command = [self.program, "-nostdin", "-hide_banner", *options, "-max_alloc", str(MOST_ALLOCATED), "-threads", "1", "-vn", "-sn", "-dn",
                   "-protocol_whitelist", "file,pipe", "-format_whitelist", CONTAINERS, "-i", self.path, *output]
        try:
            return Child(command, self.cancelled)
        except OSError as error:
            raise AudioError(f"{self.name}: not readable ({self.trouble}), and {self.program} can't be started ({error}); mend that, or "
                             "convert it to WAV") from error

    def refused(self, child) -> AudioError:
        return AudioError(f"{self.name}: not a readable recording ({self.trouble}); ffmpeg says: {self.complaint(child)}; convert it to WAV, "
                          "or record or download it again")

    def complaint(self, child) -> str:
        status = child.wait()
        if child.silent:
            return f"nothing for {PATIENCE:g} s, so it was ended"
        lines = child.said(4096).strip().splitlines()
        if any("matches no streams" in line for line in lines):
            return "there is no sound in it"
        return lines[-1].replace(self.path, "input") if lines else f"exit status {status}"

    def look(self) -> tuple[list[Track], float, float]:
        """The tracks of sound; the seconds at which the clock of the file begins; and how long it says that it is (inf: it doesn't)."""
        with self.start(["-v", "info"]) as child:               # it has no output to write, and ends at once
            child.wait()
            if child.silent:
                raise self.refused(child)
            text = child.said(MOST_LOGGED)
        found = {int(index): Track(int(index), "" if language == "und" else language, "(default)" in rest)
                 for index, language, rest in STREAM.findall(text)}
        clock = CLOCK.search(text)
        hours, minutes, seconds, begin = clock.groups() if clock else (None,) * 4
        length = 3600 * int(hours) + 60 * int(minutes) + float(seconds) if hours else math.inf
        return [found[index] for index in sorted(found)], float(begin or 0), length

    def decode(self, track, begin, length, stack) -> "Decoded":
        """A track; None: the first sound, of a file that lists nothing."""
        # No -ac: ffmpeg's own downmix weighs the channels. Matroska is the simplest container that says when a packet is heard.
        # TRAP: without -copyts a transport stream begins where its sound does, not where the file does.
        output = ["-map", f"0:{track.index}" if track else "0:a:0", "-map_metadata", "-1", "-map_chapters", "-1", "-avoid_negative_ts", "disabled",
                  "-c:a", "pcm_f32le", "-f", "matroska", "pipe:1"]
        child = stack.enter_context(self.start(["-v", "error", "-copyts"], output))
        decoded = Decoded(child, max(begin, 0.0), length)
        if not decoded.rate or not decoded.channels:
            raise self.refused(child)
        return decoded

    def hears(self, track, seconds) -> bool:
        """Whether a track has any sound, as far as that."""
        output = ["-map", f"0:{track.index}", "-t", f"{seconds:.3f}", "-ac", "1", "-ar", "8000", "-f", "f32le", "pipe:1"]
        with self.start(["-v", "error"], output) as child:
            while raw := child.read(4 * VALUES):
                if np.abs(np.frombuffer(raw, "<f4", len(raw) // 4)).max(initial=0) >= SILENT:
                    return True
        return False


class Decoded:
    """What ffmpeg makes of a track: its `rate`, and `parts`, with silence where the clock of the file runs on without sound, whose first
    second is `begin` and whose last one is `length` later. No sound is dropped: where the clock goes back, the sound goes on."""

    # Elements of Matroska (RFC 9559): those that hold others, and those that count here. All others are skipped.
    HOLDERS = {0x18538067, 0x1F43B675, 0x1654AE6B, 0xAE, 0xE1, 0xA0}            # segment, cluster, tracks, track, audio, block group
    RATE, CHANNELS, TIME, BLOCKS = 0xB5, 0x9F, 0xE7, (0xA3, 0xA1)

    def __init__(self, child, begin, length):
        self.child, self.begin, self.length = child, begin, length
        self.rate = self.channels = self.read = 0               # `read`: samples so far
        self.stream = io.BufferedReader(_Output(child), 4 * VALUES)
        blocks = self._blocks()
        self.blocks = chain([first] if (first := next(blocks, None)) else [], blocks)       # what comes before it says rate and channels

    def _number(self, marked=False) -> int | None:
        """The next number of variable length; `marked`: with the bit that marks the length, as the kinds of elements. None: the end."""
        first = self.stream.read(1)
        if not first or not first[0]:
            return None
        length = 9 - first[0].bit_length()
        rest = self.stream.read(length - 1)
        number = int.from_bytes(first + rest, "big")
        return None if len(rest) < length - 1 else number if marked else number & (1 << 7 * length) - 1

    def _blocks(self) -> Iterator[tuple[float | None, bytes]]:
        """Of each block the second at which it is heard, and its bytes; of a large one several pieces, all but the first without a time."""
        cluster = 0
        while (kind := self._number(marked=True)) is not None and (size := self._number()) is not None:
            if kind in self.HOLDERS:
                continue
            second = None
            if kind in self.BLOCKS:
                head = self.stream.read(4)                      # the track, in a byte; milliseconds, in two; flags
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
        width, held, shift = 4 * self.channels, bytearray(), self.begin         # bytes of a sample in all channels; file's clock - ours

        def taken() -> np.ndarray:
            count = len(held) // width
            part = np.frombuffer(bytes(held[:count * width]), "<f4").reshape(count, self.channels)
            del held[:count * width]
            self.read += count
            return part

        for second, piece in self.blocks:
            if second is not None:
                reached = (self.read + len(held) // width) / self.rate
                missing = second - shift - reached
                if missing < -1 or missing > min(LONGEST_GAP, max(GAP, self.length - reached)):
                    shift += missing                            # another clock, or a damaged one
                elif missing > GAP:
                    if held:
                        yield taken()
                    yield from self._silence(round(missing * self.rate))
            held += piece
            if len(held) >= 4 * VALUES:
                yield taken()
        if held:
            yield taken()

    def _silence(self, count) -> Iterator[np.ndarray]:
        while count > 0:
            part = np.zeros((min(count, max(1, VALUES // self.channels)), self.channels), np.float32)
            count, self.read = count - len(part), self.read + len(part)
            yield part


class _Output(io.RawIOBase):
    """What a `Child` writes, as a file."""

    def __init__(self, child):
        self.child = child

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        content = self.child.read(len(buffer))
        buffer[:len(content)] = content
        return len(content)


# ---- the process -----------------------------------------------------------------------------------------------------------

class Child:
    """A program whose output is read, in a session of its own: it is ended with all that it has started

    - when it is closed;
    - when nothing came for PATIENCE seconds (then it is `silent`), or `cancelled()` is true: a thread looks after that;
    - when this process is gone, however that ended: the kernel closes the pipe then that a shell, the leash, reads from.

    Raises OSError where it can't be started.
    """

    LEASH = 'read -r _; kill -9 -"$1"'    # what closes the pipe, kills the session

    def __init__(self, command, cancelled):
        self.cancelled, self.silent, self.deadline, self.closed = cancelled, False, math.inf, threading.Event()
        with ExitStack() as stack:
            self.log = stack.enter_context(tempfile.TemporaryFile())            # TRAP: a pipe that nobody reads would stop it at 64 KiB
            # TRAP: no other child may inherit a pipe; `Popen` sees to that.
            self.process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log,
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

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *error) -> None:
        self.stack.close()

    def read(self, count) -> bytes:
        """So many bytes, fewer at the end."""
        with self._limited():
            return self.process.stdout.read(count)

    def said(self, count) -> str:
        """The last bytes, so many at most, of what it has written to standard error."""
        self.log.seek(max(0, os.fstat(self.log.fileno()).st_size - count))
        return self.log.read().decode("utf-8", "replace")

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
            if getattr(os.fstat(self.log.fileno()), "st_blocks", 0) * 512 > MOST_LOGGED:
                os.ftruncate(self.log.fileno(), 0)              # where it writes on, there is a hole in front
            if self.cancelled():
                self.kill()
            elif time.monotonic() > self.deadline:
                self.silent = True
                self.kill()
