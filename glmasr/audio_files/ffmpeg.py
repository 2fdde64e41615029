"""What libsndfile doesn't read -> the tracks of sound in it -> float32 samples (samples, channels), by the program
ffmpeg.

Unusual: files are hostile. Every ffmpeg is a `Child`, with limits of time and memory, and it opens media files only, by
the lists below.
"""

import math
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import numpy as np

from ..errors import AudioError
from .child_process import MOST_LOGGED, Child
from .limits import VALUES, IsCancelled, Warn
from .matroska import Decoded
from .tracks import Track, choose, listing, only_track

MOST_ALLOCATED = 2**28  # bytes that it may ask for at once: the table of 12 hours of packets is a quarter of it
LEAST_LOST = 0.1  # seconds; some recorders count their header as sound
SILENT = 1e-3  # of full scale: a track that is never louder is a microphone that was off
MOST_TRIED = 8  # other tracks that are looked at for sound, where the one that was read has none

# What ffmpeg may open: media files only. TRAP: without the list a text file can be a playlist that names other files.
CONTAINERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dts,eac3,flac,flv,loas,matroska,mov,mp3,mpc,mpc8,mpeg,mpegts,nistsphere,"
    "ogg,rm,tak,tta,voc,w64,wav,wv"
)


# TRAP: in a transport stream they are listed by program, so not in their order, and one of two programs twice.
STREAM = re.compile(r"^ {2,4}Stream #0:(\d+)(?:\[0x[0-9a-f]+\])?(?:\(([\w,-]+)\))?: Audio: (.*)$", re.MULTILINE)
CLOCK = re.compile(
    r"^  Duration: (?:(?P<hours>\d+):(?P<minutes>\d\d):(?P<seconds>[\d.]+)|N/A)(?:, start: (?P<begin>-?[\d.]+))?",
    re.MULTILINE,
)


def decode(
    path: str,
    name: str,
    trouble: str,
    length: float,
    times: float,
    track: int | str | None,
    stack: ExitStack,
    warn: Warn,
    cancelled: IsCancelled,
) -> tuple[int | float, Iterator[np.ndarray]]:
    """A file -> sample rate, float32 arrays (samples, channels) of one track. `trouble`: why libsndfile doesn't read
    it; `length`: the seconds that an MP3 should give, else 0; `times`: see `formats.times_as_long`. ffmpeg ends with
    `stack` at the latest. Raises AudioError.
    """
    ffmpeg = Ffmpeg(path, name, trouble, cancelled)
    tracks, begin, stated = ffmpeg.look()
    chosen = choose(tracks, track, name) if tracks else 0
    found = ffmpeg.decode(tracks[chosen] if tracks else None, begin, stated, stack)
    if not tracks:
        only_track(track, name)
    if len(tracks) > 1 and track is None:
        warn(
            f"{name}: has {len(tracks)} tracks of sound, {listing(tracks)}; track {chosen + 1} is read: choose another "
            "one with --track"
        )

    def parts() -> Iterator[np.ndarray]:
        silent = len(tracks) > 1
        for part in found.parts():
            silent = silent and np.abs(part).max() < SILENT
            yield part
        seconds = found.read / found.rate
        if found.child.wait() != 0 and found.read:
            warn(damage(name, seconds, ffmpeg.complaint(found.child)))
        elif (times - 1) * seconds >= LEAST_LOST:
            warn(damage(name, seconds, f"{times * seconds:.1f} s announced"))
        elif seconds < least(length):
            warn(
                f"{name}: gives {seconds:.1f} s ({length:.1f} s expected); parts of it are damaged, and their sound is "
                "lost"
            )
        others = [place for place in range(len(tracks)) if place != chosen][:MOST_TRIED] if silent else []
        if (other := next((place for place in others if ffmpeg.has_sound(tracks[place], seconds)), None)) is not None:
            warn(
                f"{name}: track {chosen + 1}, which was read, is silent throughout, but track {other + 1} has sound: "
                f"choose it with --track {other + 1}"
            )

    return found.rate, parts()


def least(length: float) -> float:
    """Seconds of an MP3 that should give so many; encoders put up to 0.2 s before and after it."""
    return 0.99 * length - 0.5


def damage(name: str, seconds: float, trouble: str) -> str:
    """The warning about a recording that breaks off: after how many seconds, and what the decoder said ("trouble")."""
    return f"{name}: breaks off after {seconds:.1f} s ({trouble.rstrip('.')}); what comes before is used"


class Ffmpeg:
    """ffmpeg on the PATH, for one file."""

    def __init__(self, path: str, name: str, trouble: str, cancelled: IsCancelled):
        self.path, self.name, self.trouble, self.cancelled = path, name, trouble, cancelled
        program = shutil.which("ffmpeg")
        if program is None:
            raise AudioError(
                f"{name}: not readable ({trouble}), and there is no ffmpeg on the PATH that could; if it is a "
                "recording, install ffmpeg or convert it to WAV"
            )
        self.program = program

    def start(
        self, options: Sequence[str], output: Sequence[str] = (), read: Callable[[int], bytes] | None = None
    ) -> Child:
        """Starts ffmpeg with `options` before the input and `output` after it. `read`: gives the bytes of the file, as
        of `Child`, in place of the path. Raises AudioError."""
        limits = f"-max_alloc {MOST_ALLOCATED} -threads 1 -vn -sn -dn -protocol_whitelist file,pipe"
        source = ["-format_whitelist", CONTAINERS, "-i", "pipe:0" if read else self.path]
        command = [self.program, "-nostdin", "-hide_banner", *options, *limits.split(), *source, *output]
        try:
            return Child(command, self.cancelled, read)
        except OSError as error:
            raise AudioError(
                f"{self.name}: not readable ({self.trouble}), and {self.program} can't be started ({error}); mend "
                "that, or convert it to WAV"
            ) from error

    def refused(self, child: Child) -> AudioError:
        """The error for a file that ffmpeg can't decode. Waits for `child` to exit."""
        return AudioError(
            f"{self.name}: not a readable recording ({self.trouble}); ffmpeg says: {self.complaint(child)}; convert it "
            "to WAV, or record or download it again"
        )

    def complaint(self, child: Child) -> str:
        """Why ffmpeg failed: its last line on standard error, or its exit status. Waits for it to exit."""
        status = child.wait()
        if child.silent:
            return f"nothing for {child.patience:g} s, so it was ended"
        lines = child.said(4096).strip().splitlines()
        if any("matches no streams" in line for line in lines):
            return "there is no sound in it"
        return lines[-1].replace(self.path, "input") if lines else f"exit status {status}"

    def look(self) -> tuple[list[Track], float, float]:
        """The tracks of sound; the seconds at which the clock of the file begins; and how long it says that it is (inf:
        it doesn't).
        """
        with self.start(["-v", "info"]) as child:  # it has no output to write, and ends at once
            child.wait()
            if child.silent:
                raise self.refused(child)
            text = child.said(MOST_LOGGED)
        found = {
            int(index): Track(int(index), "" if language == "und" else language, "(default)" in rest)
            for index, language, rest in STREAM.findall(text)
        }
        clock = CLOCK.search(text)
        begin, length = 0.0, math.inf
        if clock:
            begin = float(clock["begin"] or 0)
            if clock["hours"]:
                length = 3600 * int(clock["hours"]) + 60 * int(clock["minutes"]) + float(clock["seconds"])
        return [found[index] for index in sorted(found)], begin, length

    def decode(
        self,
        track: Track | None,
        begin: float | None,
        length: float,
        stack: ExitStack,
        read: Callable[[int], bytes] | None = None,
    ) -> Decoded:
        """A track; None: the first sound, of a file that lists nothing. `read`: of the bytes that this gives, as of
        `Child`, and as soon as they are there."""
        # No -ac: ffmpeg's own downmix weighs the channels. Matroska is the simplest container that says when a packet
        # is played.
        # TRAP: without -copyts a transport stream begins where its sound does, not where the file does.
        what = f"-map {f'0:{track.index}' if track else '0:a:0'} -map_metadata -1 -map_chapters -1"
        form = "-avoid_negative_ts disabled -c:a pcm_f32le -f matroska pipe:1"
        options = "-v error -copyts"
        if read:  # else it looks at 5 MB or 5 s before it gives the first sound, and gives 5 s of it at once
            # TRAP: with -fflags nobuffer what it has looked at would be lost.
            options += " -probesize 1048576 -analyzeduration 500000"
            form = f"-cluster_time_limit 100 -flush_packets 1 {form}"
        child = stack.enter_context(self.start(options.split(), f"{what} {form}".split(), read))
        decoded = Decoded(child, begin if begin is None else max(begin, 0.0), length, soon=read is not None)
        if not decoded.rate or not decoded.channels:
            raise self.refused(child)
        return decoded

    def has_sound(self, track: Track, seconds: float) -> bool:
        """Whether a track has any sound, as far as that."""
        output = f"-map 0:{track.index} -t {seconds:.3f} -ac 1 -ar 8000 -f f32le pipe:1".split()
        with self.start(["-v", "error"], output) as child:
            while raw := child.read(4 * VALUES):
                if np.abs(np.frombuffer(raw, "<f4", len(raw) // 4)).max(initial=0) >= SILENT:
                    return True
        return False
