"""Sound from a pipe, which never has to end -> its sample rate, and float32 samples (samples, channels), as soon as
they are there.

    WAV                             read here, by its header
    what begins like another file   an ffmpeg that reads the same bytes
    anything else                   samples of 16 bits without a header, of a rate that the user has said

Unusual: nothing is copied to a disk, and nothing has a limit. A header's sizes count only where what comes after them
is no sound.
"""

import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import BinaryIO

import numpy as np

from ..errors import AudioError
from .address import is_address, shown
from .ffmpeg import Ffmpeg
from .formats import mpeg_frame, no_sound
from .limits import MOST_CHANNELS, IsCancelled, checked_rate
from .pcm import Incoming, Pcm, samples, wav_header

HEAD = 4096  # bytes that are looked at; two frames of any MP3 are shorter
# How files begin, in four bytes or more. TRAP: the two that begin an MP3 are also two quiet samples without a header.
FILES = re.compile(
    rb"RIFF....WAVE|RF64....WAVE|RIFX....WAVE|RIFF....AVI |FORM....AIF[FC]|fLaC|OggS|\.snd|caff\0\x01|ID3[\x02-\x04]|"
    rb"\x1aE\xdf\xa3|0&\xb2u|....ftyp|wvpk|FLV\x01|#!AMR|riff|MAC |\0\0\x01\xba|G.{187}G.{187}G|"
    rb"NIST_1A\n|Creative Voice File\x1a|\0...(?:moov|mdat|wide|free|skip)",  # the last: QuickTime, before it had ftyp
    re.DOTALL,
)
FOREIGN = "it is no WAV; of others those are read that make sense from their beginning on"
CHUNK = re.compile(rb"[A-Za-z0-9_ ]{4}", re.DOTALL)  # the name of one, after the sound of a WAV


def parts(
    source: BinaryIO, name: str, raw: Pcm, stack: ExitStack, cancelled: IsCancelled
) -> Iterator[tuple[int, np.ndarray]]:
    """(sample rate, float32 array (samples, channels)) of a file that is not buffered, called `name` in messages, until
    its end. `raw`: how samples without a header are. An ffmpeg ends with `stack`. Raises AudioError."""
    failed: list[AudioError] = []  # TRAP: where ffmpeg is fed by a thread, an error of reading looks like the end

    def read(count: int) -> bytes:
        try:
            return source.read(count) or b""
        except (OSError, ValueError) as error:
            failed.append(AudioError(f"{name}: cannot be read on ({error}); what comes before is used"))
            raise failed[0] from error

    incoming = Incoming(read)
    if not incoming.peek(12):
        raise AudioError(f"{name}: is empty (0 bytes); expected sound")
    while (header := wav_header(incoming)) is not None:
        form, place, size = header
        _check(form, name)
        incoming.skip(place)
        yield from _of(form, samples(incoming, form, size))
        if not _another(incoming, size):
            yield from _of(form, samples(incoming, form))
            return
    start = incoming.peek(HEAD)
    if trouble := no_sound(start) if start else "":
        raise AudioError(f"{name}: not a recording ({trouble}); expected sound: check where it comes from")
    if _is_file(start):
        ffmpeg = Ffmpeg("pipe:0", name, FOREIGN, cancelled)
        found = ffmpeg.decode(None, None, math.inf, stack, incoming.read)
        rate = checked_rate(found.rate, name)
        for part in found.parts():
            yield rate, part
        if failed:
            raise failed[0]
        if not found.read:
            raise ffmpeg.refused(found.child)
        if found.child.wait() != 0:
            raise AudioError(f"{name}: breaks off ({ffmpeg.complaint(found.child)}); what comes before is used")
    elif start:
        _check(raw, name)
        yield from _of(raw, samples(incoming, raw))


def _of(form: Pcm, arrays: Iterator[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    return ((form.rate, part) for part in arrays)


def _check(form: Pcm, name: str) -> None:
    checked_rate(form.rate, name)
    if form.channels > MOST_CHANNELS:
        raise AudioError(f"{name}: {form.channels} channels; expected 1 to {MOST_CHANNELS}: the header is damaged")


def _another(incoming: Incoming, size: int) -> bool:
    """Whether the sound of a WAV ends where its header says: nothing comes after it, or chunks that are no sound, or
    another file. These chunks are dropped."""
    incoming.skip(size % 2 if CHUNK.fullmatch(incoming.peek(5)[1:]) else 0)
    while CHUNK.fullmatch((chunk := incoming.peek(8))[:4]) and chunk[:4] not in (b"RIFF", b"RF64"):
        length = int.from_bytes(chunk[4:], "little")
        incoming.skip(8 + length + length % 2)
    return not chunk or bool(FILES.match(incoming.peek(HEAD)))


def _is_file(start: bytes) -> bool:
    """Whether a file of a known format begins so; an MP3 and an AAC do with a frame, and another one after it."""
    if FILES.match(start):
        return True
    frame = mpeg_frame(start)
    if frame and mpeg_frame(start[frame[1] : frame[1] + 4]):
        return True
    following = start[int.from_bytes(start[3:6], "big") >> 5 & 0x1FFF :]  # of AAC, by the length of its frame
    return all(len(frame) > 7 and frame[0] == 0xFF and frame[1] & 0xF6 == 0xF0 for frame in (start, following))


# ---- where it comes from ---------------------------------------------------------------------------------------------


def is_recording(source: str) -> bool:
    """Whether this is a file on a disk that says itself how it is to be read, as `audio.blocks` reads it."""
    try:
        if not os.path.isfile(source):
            return False
        with open(source, "rb") as file:
            return _is_file(file.read(HEAD))
    except (OSError, ValueError):
        return False


def opened(source: str, stack: ExitStack) -> tuple[BinaryIO, str]:
    """ "-" or a path -> a file that is not buffered, its name in messages. Raises AudioError."""
    if source == "-":
        file = getattr(getattr(sys.stdin, "buffer", None), "raw", None)
        if file is None:
            raise AudioError("standard input: is closed; expected sound: pipe it into it")
        if file.isatty():
            raise AudioError("standard input: is a terminal; expected sound: pipe it into it, or use `--live mic`")
        return file, "standard input"
    if is_address(source):
        raise AudioError(
            f"{shown(source)}: is an address; expected -, mic or a file: `ffmpeg -i ADDRESS -f wav -` pipes its sound"
        )
    try:
        return stack.enter_context(open(source, "rb", buffering=0)), source
    except (OSError, ValueError) as error:
        raise AudioError(f"{source}: cannot be opened ({error}); expected -, mic or a file") from error
