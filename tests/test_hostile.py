"""The table of hostile inputs, docs/HOSTILE.md: each row is tried here, and the page is made of the rows.

    GLMASR_WRITE=1 python -m pytest tests/test_hostile.py         writes the page anew

In an expected outcome "…" stands for any words, such as those of libsndfile or of the operating system.
"""

import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import model_bin
from helpers.checkpoints import entry, make_checkpoint, make_encoder_decoder, raw
from helpers.sounds import bytes_of, speech
from safetensors.torch import load_file, save_file

import glmasr
from glmasr import audio
from glmasr.audio_files import reader, spool
from glmasr.checkpoint import hub, hub_cache
from glmasr.writers import output

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "HOSTILE.md"
EXAMPLE = ROOT / "examples" / "zh.wav"
pytestmark = pytest.mark.skipif(os.name != "posix", reason="devices, pipes and shell scripts")


@dataclass(frozen=True)
class Row:
    section: str
    what: str
    outcome: str
    run: "object"  # of a Room, in an empty current directory -> what came of it


@dataclass(frozen=True)
class Room:
    """What a row is run with."""

    patch: pytest.MonkeyPatch
    checkpoint: Path  # a whole one, to copy

    def read(self, source, sample_rate=None, **options) -> str:
        heard = []
        samples = audio.load(source, sample_rate, warn=heard.append, **options)
        return "; ".join([f"read, {len(samples) / 16_000:.3g} s", *(f"warning: {text}" for text in heard)])

    def load(self) -> str:
        recognizer = glmasr.load("model", device="cpu", dtype="float32")
        return f"loaded, {len(recognizer.transcribe(np.zeros(1600, np.float32), sample_rate=16_000, max_new_tokens=1).segments)} segment"


ROWS: list[Row] = []


# ---- recordings: the content of a file talk.wav, whatever it is in truth ---------------------------------------------------


def sound(what, content, outcome, **options):
    def run(room):
        Path("talk.wav").write_bytes(content())
        return room.read("talk.wav", **options)

    ROWS.append(Row("Recordings", what, outcome, run))


def wav(**changes) -> bytes:
    """Half a second, with other numbers in the header: rate, channels, size."""
    content = bytearray(bytes_of(speech(0.5)))
    for name, value in changes.items():
        place, kind = {"channels": (22, "<H"), "rate": (24, "<I"), "codec": (20, "<H"), "size": (40, "<I")}[name]
        struct.pack_into(kind, content, place, value)
    return bytes(content)


def flac(frames: int, seconds: float = 0.5) -> bytes:
    """Sound that claims another length."""
    content = bytearray(bytes_of(speech(seconds), format="FLAC"))
    content[21:26] = ((content[21] & 0xF0) << 32 | frames).to_bytes(5, "big")
    return bytes(content)


def kind(format, subtype="PCM_16", rate=16_000):
    return lambda: bytes_of(speech(0.5), rate=rate, format=format, subtype=subtype)


def damaged(value, subtype="FLOAT"):
    return lambda: bytes_of(np.array([0, value, 0]), subtype=subtype)


NO_FFMPEG = "and there is no ffmpeg …"
sound(
    "an empty file",
    bytes,
    "AudioError: talk.wav: the file is empty (0 bytes); expected audio: record or download it again",
)
sound(
    "a text",
    lambda: b"no sound\n" * 99,
    f"AudioError: talk.wav: not readable (it begins like none of the formats read directly), {NO_FFMPEG}",
)
sound(
    "zeros",
    lambda: bytes(5000),
    f"AudioError: talk.wav: not readable (it begins like none of the formats read directly), {NO_FFMPEG}",
)
sound(
    "a WAV header and nothing after it",
    lambda: wav()[:44],
    "AudioError: talk.wav: holds no samples (a header only?); …",
)
sound("half a WAV header", lambda: wav()[:30], f"AudioError: talk.wav: not readable (…), {NO_FFMPEG}")
sound(
    "a WAV that breaks off",
    lambda: wav()[:-8000],
    "read, 0.25 s; warning: talk.wav: breaks off after 0.2 s (0.5 s announced); …",
)
sound("a WAV that claims 4 GB", lambda: wav(size=2**32 - 1), "read, 0.5 s")
sound(
    "a sample rate of 0",
    lambda: wav(rate=0),
    f"AudioError: talk.wav: not readable (its header states no usable sample rate …), {NO_FFMPEG}",
)
sound(
    "a sample rate of 1 Hz", lambda: wav(rate=1), "AudioError: talk.wav: sample rate 1 Hz; expected 4000 to 384000: …"
)
sound("3999 Hz", lambda: wav(rate=3999), "AudioError: talk.wav: sample rate 3999 Hz; expected 4000 to 384000: …")
sound(
    "384,001 Hz", lambda: wav(rate=384_001), "AudioError: talk.wav: sample rate 384001 Hz; expected 4000 to 384000: …"
)
sound("1 MHz", lambda: wav(rate=10**6), "AudioError: talk.wav: sample rate 1000000 Hz; expected 4000 to 384000: …")
sound(
    "383,983 Hz",
    lambda: wav(rate=383_983),
    "AudioError: talk.wav: sample rate 383983 Hz; expected whole hundreds above 50000: …",
)
sound(
    "95,999 Hz",
    lambda: wav(rate=95_999),
    "AudioError: talk.wav: sample rate 95999 Hz; expected whole hundreds above 50000: …",
)
sound("0 channels", lambda: wav(channels=0), f"AudioError: talk.wav: not readable (Channel count is zero), {NO_FFMPEG}")
sound(
    "300 channels", lambda: bytes_of(np.zeros((100, 300))), "AudioError: talk.wav: 300 channels; expected 1 to 255: …"
)
sound(
    "65,535 channels",
    lambda: wav(channels=65_535),
    f"AudioError: talk.wav: not readable (Too many channels specified), {NO_FFMPEG}",
)
sound("NaN among the samples", damaged(np.nan), "AudioError: talk.wav: sample 1 is NaN or infinite; …")
sound("an infinite sample", damaged(-np.inf), "AudioError: talk.wav: sample 1 is NaN or infinite; …")
sound("a sample beyond float32", damaged(1e200, "DOUBLE"), "AudioError: talk.wav: sample 1 is NaN or infinite; …")
sound(
    "samples of 16 bits, written as floats without a division",
    damaged(32767.0),
    "AudioError: talk.wav: sample 1 is 32767; expected floats in about -1..1: divide them by their full scale, …",
)
sound("a sample of 10^20", damaged(1e20), "AudioError: talk.wav: sample 1 is 1e+20; expected floats in about -1..1: …")
sound("one sample", lambda: bytes_of(np.array([0.5])), "read, 6.25e-05 s")
sound("A-law", kind("WAV", "ALAW"), "read, 0.5 s")
sound("mu-law", kind("WAV", "ULAW"), "read, 0.5 s")
sound(
    "MS ADPCM in WAV",
    kind("WAV", "MS_ADPCM"),
    f"AudioError: talk.wav: not readable (MS_ADPCM in WAV is not among the formats read directly), {NO_FFMPEG}",
)
sound(
    "GSM in WAV",
    kind("WAV", "GSM610"),
    f"AudioError: talk.wav: not readable (GSM610 in WAV is not among the formats read directly), {NO_FFMPEG}",
)
sound(
    "ALAC in CAF",
    kind("CAF", "ALAC_16"),
    f"AudioError: talk.wav: not readable (ALAC_16 in CAF is not among the formats read directly), {NO_FFMPEG}",
)
for format in ("W64", "VOC", "NIST", "PVF", "MAT4", "MAT5", "MPC2K"):
    sound(
        f"{format}, which libsndfile would read",
        kind(format),
        f"AudioError: talk.wav: not readable ({format} is not among …), {NO_FFMPEG}",
    )
sound(
    "an AU that claims 0 bytes",
    lambda: bytes_of(speech(0.5), format="AU")[:8] + bytes(4) + bytes_of(speech(0.5), format="AU")[12:],
    "AudioError: talk.wav: holds no samples …; …",
)
sound(
    "a FLAC that claims 2^36 - 1 samples",
    lambda: flac(2**36 - 1),
    "read, 0.5 s; warning: talk.wav: breaks off after 0.5 s (4294967.3 s announced); …",
)
sound("a FLAC that does not say how long it is", lambda: flac(0), "read, 0.5 s")
sound("a FLAC header and nothing after it", lambda: flac(0)[:42], "AudioError: talk.wav: …")
sound(
    "an MP3 tag that claims 256 MB, and nothing else",
    lambda: b"ID3\x04\0\0\x7f\x7f\x7f\x7f",
    f"AudioError: talk.wav: not readable (…), {NO_FFMPEG}",
)
sound(
    "2 s where 1 s is allowed",
    lambda: bytes_of(speech(2)),
    "AudioError: talk.wav: is longer than 1 s (max_duration); expected at most that: …",
    max_duration=1,
)
sound(
    "the same as FLAC that does not say how long it is",
    lambda: flac(0, 2),
    "AudioError: talk.wav: is longer than 1 s (max_duration); …",
    max_duration=1,
)
sound("the same as FLAC that claims a tenth of it", lambda: flac(3200, 2), "read, 0.2 s", max_duration=1)
sound(
    "the same as OGG Vorbis",
    kind("OGG", "VORBIS", 4000),
    "AudioError: talk.wav: is longer than 1 s (max_duration); …",
    max_duration=1,
)


def others(section):
    """row(what, outcome) before a function of a Room."""

    def row(what, outcome):
        return lambda run: ROWS.append(Row(section, what, outcome, run))

    return row


row = others("Recordings")


@row(
    "20 hours of sound in a WAV, by default",
    "AudioError: long.wav: is longer than 43200 s (max_duration); expected at most that: …",
)
def _(room):
    size = 20 * 3600 * 8000
    with open("long.wav", "wb") as file:  # sparse: it takes no room
        file.write(
            struct.pack(
                "<4sI4s4sIHHIIHH4sI", b"RIFF", size + 36, b"WAVE", b"fmt ", 16, 1, 1, 8000, 8000, 1, 8, b"data", size
            )
        )
        file.truncate(44 + size)
    return room.read("long.wav")


@row(
    "more decoded bytes than are allowed, whatever the duration",
    "AudioError: talk.wav: gives more than 0 GiB of samples; …",
)
def _(room):
    room.patch.setattr(reader, "MOST_BYTES", 10_000)
    Path("talk.wav").write_bytes(wav(rate=384_000))
    return room.read("talk.wav")


for what, one, outcome in (
    ("zeros", b"\0", "AudioError: the file object: not a recording (its first 1,048,576 bytes are zeros); …"),
    ("text", b"y", "AudioError: the file object: not a recording (it is text, …); …"),
    ("noise", b"fLaC\x80\0", "AudioError: the file object: more than 2 MiB, and 0.1 s (max_duration) have less; …"),
):

    @row(f"{what} without an end, as a stream", outcome)
    def _(room, one=one):
        room.patch.setattr(spool, "BESIDE", 10**6)

        class Endless(io.RawIOBase):
            def read(self, size):
                return one * size

        return room.read(Endless(), max_duration=0.1)


for what, name, outcome in (
    ("no such file", "nothing.wav", "AudioError: nothing.wav: no such file; …"),
    ("a directory", ".", "AudioError: .: is a directory; expected an audio file: …"),
    (
        "a device",
        "/dev/zero",
        "AudioError: /dev/zero: is a device or a socket; expected an audio file, or '-' for standard input",
    ),
    ("a name with NUL in it", "a\0.wav", "AudioError: 'a\\x00.wav': cannot be opened: …"),
    (
        "an address that doesn't answer",
        "http://127.0.0.1:1/talk.wav",
        "AudioError: http://127.0.0.1:1/talk.wav: can't be reached …",
    ),
):
    row(what, outcome)(lambda room, name=name: room.read(name))


def mp3(change):
    return lambda: change(bytes_of(speech(3), format="MP3", subtype="MPEG_LAYER_III"))


LOST = "what follows is lost: install ffmpeg, which reads on, or convert it to WAV"
sound("two WAV, one after the other", lambda: 2 * wav(), "read, 1 s")
sound("a WAV, metadata and zeros", lambda: wav() + b"LIST\x0a\0\0\0INFOISFT\2\0" + bytes(500), "read, 0.5 s")
sound("OGG with Opus, then with Vorbis", lambda: kind("OGG", "OPUS")() + kind("OGG", "VORBIS")(), "read, 1 s")
sound(
    "a WAV, and a damaged one after it",
    lambda: wav() + wav(channels=0),
    "read, 0.5 s; warning: talk.wav: recording 2 in this file, which begins at byte 16044, is lost (Channel count is zero): cut the file in two there",
)
sound(
    "2000 WAV, one after the other",
    lambda: 2000 * bytes_of(np.zeros(16)),
    "read, 1 s; warning: talk.wav: holds more than 1000 recordings, one after the other; what follows those, from byte 76000 on, is lost: cut the file in two there",
)
sound(
    "stereo in opposite phase",
    lambda: bytes_of(np.stack([speech(0.5), -0.95 * speech(0.5)], 1)),
    "read, 0.5 s; warning: talk.wav: its two channels are in opposite phase, so that their mean would be next to silence; the left one is taken there",
)
sound(
    "a track that is not there",
    wav,
    "AudioError: talk.wav: has no track 2; it has one track, whose language it doesn't state: leave the track out",
    track=2,
)
sound(
    "an MP3 that breaks off",
    mp3(lambda whole: whole[:-4000]),
    "read, … s; warning: talk.wav: breaks off after … s (3.0 s expected); what comes before is used",
)
sound(
    "two MP3, one after the other",
    mp3(lambda whole: 2 * whole),
    f"read, 3 s; warning: talk.wav: its header makes it 3.0 s long, but its frames are … s; {LOST}",
)
sound(
    "an MP3 with 3000 zeros in the middle",
    mp3(lambda whole: whole[:5000] + bytes(3000) + whole[5000:]),
    f"read, … s; warning: talk.wav: … bytes between its frames are no sound, where libsndfile stops; {LOST}",
)
sound(
    "an MP3 with 19,000 odd tags in the middle",
    mp3(lambda whole: whole[:5000] + b"ID3\4\0\0\0\0\0\1x" * 19_000 + whole[5000:]),
    f"read, … s; warning: talk.wav: … bytes between its frames are no sound, where libsndfile stops; {LOST}",
)


@row(
    "a folder with a pipe named talk.wav",
    "AudioError: folder/talk.wav: is a pipe, a socket or a device; expected an audio file: if a pipe is meant, name it by itself",
)
def _(room):
    Path("folder").mkdir()
    os.mkfifo("folder/talk.wav")
    return output.expand(["folder"])


@row("a file that is named like an option of ffmpeg", "read, 0.5 s")
def _(room):
    Path("-i").write_bytes(wav())
    return room.read("-i")


@row("a file named .raw", "AudioError: zero.raw: not readable (…), " + NO_FFMPEG)
def _(room):
    Path("zero.raw").write_bytes(bytes(1000))
    return room.read("zero.raw")


@row("a file opened as text", "AudioError: the file object: gives text; expected bytes: open it in binary mode, 'rb'")
def _(room):
    return room.read(io.StringIO("text"))


@row(
    "an array of integers",
    "AudioError: the ndarray of shape (9,) holds int64; expected floats in -1..1, or int16, int32, uint8: …",
)
def _(room):
    return room.read(np.zeros(9, np.int64), 16_000)


@row("an array without its sample rate", "AudioError: the ndarray of shape (9,) comes without sample_rate: …")
def _(room):
    return room.read(np.zeros(9))


@row("an array with NaN", "AudioError: the ndarray of shape (2,): sample 1 is NaN or infinite; …")
def _(room):
    return room.read(np.array([0, np.nan]), 16_000)


@row("an array without samples", "AudioError: the ndarray of shape (0,): holds no samples …")
def _(room):
    return room.read(np.zeros(0), 16_000)


@row("an array of 300 channels", "AudioError: the ndarray of shape (300, 900): 300 channels; expected 1 to 255: …")
def _(room):
    return room.read(np.zeros((300, 900)), 16_000)


@row(
    "a sparse tensor",
    "AudioError: the Tensor of shape (9,) holds torch.float32 as torch.sparse_coo on cpu, which can't be read; expected a dense tensor …",
)
def _(room):
    return room.read(torch.zeros(9).to_sparse(), 16_000)


@row("a sample rate of NaN", "AudioError: the ndarray of shape (9,): sample rate nan; expected a whole number of Hz")
def _(room):
    return room.read(np.zeros(9), float("nan"))


for samples in (1, 160, 1600):

    @row(f"{samples} sample{'s' * (samples > 1)} to recognize", f"transcript of {samples / 16_000:g} s")
    def _(room, samples=samples):
        transcript = glmasr.load("demo").transcribe(speech(1)[:samples], sample_rate=16_000, max_new_tokens=3)
        return f"transcript of {transcript.seconds:g} s"


# ---- through ffmpeg --------------------------------------------------------------------------------------------------------


def ffmpeg(what, script, outcome, shell="#!/bin/sh\n", **options):
    def run(room):
        Path("bin").mkdir()
        Path("bin/ffmpeg").write_text(f"{shell}{script}\n")
        Path("bin/ffmpeg").chmod(0o755)
        room.patch.setenv("PATH", str(Path("bin").absolute()))
        room.patch.setattr(glmasr.audio_files.child_process, "PATIENCE", 0.3)
        Path("talk.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))
        return room.read("talk.m4a", **options)

    ROWS.append(Row("An `ffmpeg` that", what, outcome, run))


# The Matroska that is asked for: a segment, a track of 16000 Hz and one channel, a cluster at 0 s, and in it a block of
# 1 GiB.
HEADER = (
    r"printf '\030\123\200\147\001\377\377\377\377\377\377\377\026\124\256\153\377\265\204\106\172\000\000\237\201\001"
    r"\037\103\266\165\377\347\201\000\243\001\000\000\000\100\000\000\000\201\000\000\200'"
)
# To list the tracks it is called without an output; these say nothing then.
LISTING = 'case "$*" in *pipe:1) ;; *) exit 1 ;; esac; '
HEADER = LISTING + HEADER
ffmpeg(
    "cannot read the file",
    "echo moov atom not found >&2; exit 1",
    "AudioError: talk.m4a: not a readable recording (…); ffmpeg says: moov atom not found; …",
)
NOTHING = "AudioError: talk.m4a: not a readable recording (…); ffmpeg says: nothing for 0.3 s, so it was ended; …"
ffmpeg("never answers", "exec /bin/sleep 60", NOTHING)
ffmpeg("is a script, and what it starts never answers", "/bin/sleep 60", NOTHING)
ffmpeg("closes its output and never ends", "exec >&-; exec /bin/sleep 60", NOTHING)
ffmpeg(
    "is no program",
    "nonsense",
    "AudioError: talk.m4a: not readable (…), and …/bin/ffmpeg can't be started (…); …",
    shell="",
)
ffmpeg(
    "stops answering",
    f"{HEADER}; /bin/head -c 64000 /dev/zero; exec /bin/sleep 60",
    "read, 1 s; warning: talk.m4a: breaks off after 1.0 s (nothing for 0.3 s, so it was ended); what comes before is used",
)
ffmpeg(
    "never ends",
    f"{HEADER}; exec /bin/cat /dev/zero",
    "AudioError: talk.m4a: is longer than 100 s (max_duration); …",
    max_duration=100,
)
ffmpeg(
    "fails after the beginning",
    f"{HEADER}; /bin/head -c 64000 /dev/zero; echo bad packet >&2; exit 1",
    "read, 1 s; warning: talk.m4a: breaks off after 1.0 s (bad packet); what comes before is used",
)


# ---- checkpoints: one file of a whole one is changed -------------------------------------------------------------------------


def checkpoint(what, change, outcome, section="Checkpoints"):
    def run(room):
        shutil.copytree(room.checkpoint, "model")
        change(Path("model"))
        return room.load()

    ROWS.append(Row(section, what, outcome, run))


def put(file, *path_and_value):
    """A change: the value at a path of keys in a JSON file."""

    def change(folder):
        *path, key, value = path_and_value
        data = inside = json.loads((folder / file).read_text(encoding="utf-8"))
        for step in path:
            inside = inside[step]
        inside[key] = value
        (folder / file).write_text(json.dumps(data), encoding="utf-8")

    return change


def write(file, content):
    return lambda folder: (folder / file).write_bytes(content)


def header(header, data=bytes(8), length=None):
    return lambda folder: raw(folder, header, data, length)


def tensors(change):
    def run(folder):
        held = load_file(folder / WEIGHTS)
        change(held)
        save_file(held, folder / WEIGHTS)

    return run


def index(name):
    def run(folder):
        (folder / WEIGHTS).rename(folder.parent / WEIGHTS)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))

    return run


def only(name):
    def run(folder):
        (folder / WEIGHTS).unlink()
        (folder / name).write_bytes(b"\x80\x04N.")

    return run


def huge(file):
    return lambda folder: os.truncate(folder / file, 3 * 10**9)  # sparse


def endless_header(folder):
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 100_000_001))
    os.truncate(folder / WEIGHTS, 100_000_100)  # sparse


WEIGHTS, CONFIG, KEY = "model.safetensors", "config.json", "language_model.lm_head.weight"
DAMAGED = "the file is damaged or was not downloaded whole"
checkpoint(
    "no weights, but pytorch_model.bin",
    only("pytorch_model.bin"),
    "CheckpointError: model: found pytorch_model.bin, a pickle, which can run any program when it is opened; …",
)
checkpoint("no weights, but model.pt", only("model.pt"), "CheckpointError: model: found model.pt, a pickle, …")
checkpoint(
    "a program that config.json asks to run (`auto_map`)",
    lambda folder: (put(CONFIG, "auto_map", {"AutoModel": "evil.Model"})(folder), write("evil.py", b"1/0")(folder)),
    "loaded, … segment",
)
checkpoint(
    "weights of 0 bytes",
    write(WEIGHTS, b""),
    f"CheckpointError: model/model.safetensors: 0 bytes are no safetensors file; {DAMAGED}",
)
checkpoint(
    "weights that break off",
    lambda folder: os.truncate(folder / WEIGHTS, 9000),
    f"CheckpointError: model/model.safetensors: its tensors end at byte … of 9000; {DAMAGED}",
)
checkpoint(
    "a header of 2^63 bytes",
    header({}, length=2**63),
    "CheckpointError: model/model.safetensors: a header of 9223372036854775808 bytes is announced in a file of 18 bytes; …",
)
checkpoint(
    "a header of 100,000,001 bytes, and they are there",
    endless_header,
    "CheckpointError: model/model.safetensors: a header of 100000001 bytes is announced in a file of 100000100 bytes; …",
)
checkpoint(
    "a header that is no JSON",
    header("nonsense"),
    "CheckpointError: model/model.safetensors: its header is not valid JSON (…); …",
)
checkpoint(
    "a header of 200,000 brackets",
    header("[" * 200_000),
    "CheckpointError: model/model.safetensors: its header is not valid JSON (…); …",
)
checkpoint(
    "a tensor named twice",
    header('{"a": %s, "a": %s}' % ((json.dumps(entry(0, 8, [2])),) * 2)),
    "CheckpointError: model/model.safetensors: its header is not valid JSON ('a' twice in one object); …",
)
checkpoint(
    "a gap between tensors",
    header({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}),
    "CheckpointError: model/model.safetensors: tensor b of shape [1] and type F32 lies at bytes 8 to 12; expected 4 to 8; …",
)
checkpoint(
    "tensors that overlap",
    header({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}),
    "CheckpointError: model/model.safetensors: tensor b of shape [2] and type F32 lies at bytes 4 to 12; expected 8 to 16; …",
)
checkpoint(
    "an offset below 0",
    header({"a": entry(-8, 0, [2])}),
    "CheckpointError: model/model.safetensors: tensor a of shape [2] and type F32 lies at bytes -8 to 0; …",
)
checkpoint(
    "a tensor larger than its bytes",
    header({"a": entry(0, 8, [3])}),
    "CheckpointError: model/model.safetensors: tensor a of shape [3] and type F32 lies at bytes 0 to 8; expected 0 to 12; …",
)
checkpoint(
    "a tensor of 2^70 bytes",
    header({"a": entry(0, 2**70, [2**68])}),
    "CheckpointError: model/model.safetensors: tensor a has dtype 'F32' and shape [295147905179352825856]; …",
)
checkpoint(
    "a shape of thousands of digits",
    header('{"a": {"dtype": "U8", "shape": [1%s, 1%s], "data_offsets": [0, 4]}}' % (("0" * 4000,) * 2)),
    "CheckpointError: model/model.safetensors: tensor a has dtype 'U8' and shape [1000… ... …",
)
checkpoint(
    "2000 axes of 4000 digits each",
    header('{"a": {"dtype": "U8", "shape": [%s], "data_offsets": [0, 4]}}' % ", ".join(["9" * 4000] * 2000)),
    f"CheckpointError: model/model.safetensors: tensor a has 2000 axes; expected at most 32; {DAMAGED}",
)
checkpoint(
    "200,000 tensors",
    header({str(number): entry(0, 0, [0]) for number in range(200_000)}),
    "CheckpointError: model/model.safetensors: its header is not valid JSON (so many values that they take … MB of memory, expected at most 100); …",
)
checkpoint(
    "a shape below 0",
    header({"a": entry(0, 8, [-2, -1])}),
    "CheckpointError: model/model.safetensors: tensor a has dtype 'F32' and shape [-2, -1]; …",
)
checkpoint(
    "an unknown type",
    header({"a": entry(0, 8, [2], "F31")}),
    "CheckpointError: model/model.safetensors: tensor a has dtype 'F31' and shape [2]; …",
)
checkpoint(
    "a name that a terminal would obey",
    tensors(lambda held: held.update({"\x1b[2J": torch.zeros(1)})),
    "CheckpointError: model/model.safetensors: tensor \\x1b[2J is unexpected; …",
)
checkpoint(
    "bytes after the last tensor",
    lambda folder: write(WEIGHTS, (folder / WEIGHTS).read_bytes() + b"\0")(folder),
    f"CheckpointError: model/model.safetensors: its tensors end at byte … of …; {DAMAGED}",
)
checkpoint(
    "a tensor that is missing",
    tensors(lambda held: held.pop("language_model.model.norm.weight")),
    "CheckpointError: model/model.safetensors: tensor language_model.model.norm.weight is missing",
)
checkpoint(
    "a tensor of another shape",
    tensors(lambda held: held.update({KEY: held[KEY][:-1].clone()})),
    f"CheckpointError: model/model.safetensors: tensor {KEY} has shape […, 24]; config.json asks for […, 24]",
)
checkpoint(
    "integers as weights",
    tensors(lambda held: held.update({KEY: held[KEY].to(torch.int8)})),
    f"CheckpointError: model/model.safetensors: tensor {KEY} is of type I8 and needs {KEY}_scale, F32 of shape …",
)
checkpoint(
    "an index that names a file outside",
    index("../model.safetensors"),
    "CheckpointError: model/model.safetensors.index.json: it names '../model.safetensors', which is not a file beside it",
)
checkpoint(
    "an index that names /etc/passwd",
    index("/etc/passwd"),
    "CheckpointError: model/model.safetensors.index.json: it names '/etc/passwd', which is not a file beside it",
)
checkpoint(
    "an index that names a file that is not there",
    index("b.safetensors"),
    "CheckpointError: model/b.safetensors: no such file, but model.safetensors.index.json names it; …",
)
checkpoint(
    "an index that names what no file can be called",
    index("x" * 5000),
    "CheckpointError: model/xxx…xxx: no such file, …",
)
checkpoint("config.json is empty", write(CONFIG, b""), "CheckpointError: model/config.json: not readable as JSON (…)")
checkpoint(
    "config.json is of 3 GB",
    huge(CONFIG),
    "CheckpointError: model/config.json: not readable as JSON (3000000000 bytes, expected at most 5000000)",
)
checkpoint(
    "config.json is a pipe",
    lambda folder: ((folder / CONFIG).unlink(), os.mkfifo(folder / CONFIG)),
    "CheckpointError: model/config.json: not readable as JSON (it is a directory, a pipe or a device, expected a file)",
)
checkpoint(
    "config.json is a link to /dev/zero",
    lambda folder: ((folder / CONFIG).unlink(), (folder / CONFIG).symlink_to("/dev/zero")),
    "CheckpointError: model/config.json: not readable as JSON (it is a directory, a pipe or a device, expected a file)",
)
checkpoint(
    "config.json is 100,000 brackets",
    write(CONFIG, b"[" * 100_000),
    "CheckpointError: model/config.json: not readable as JSON (…)",
)
checkpoint(
    "config.json is 5 MB of lists",
    write(CONFIG, b"[" + b"[]," * 1_600_000 + b"0]"),
    "CheckpointError: model/config.json: not readable as JSON (so many values that they take 192 MB of memory, expected at most 50)",
)
checkpoint(
    "config.json has 100 lists inside of each other",
    put(CONFIG, "shiny", json.loads("[" * 100 + "]" * 100)),
    "CheckpointError: model/config.json: not readable as JSON (more than 64 lists and objects inside of each other)",
)
checkpoint(
    "model.safetensors is a pipe",
    lambda folder: ((folder / WEIGHTS).unlink(), os.mkfifo(folder / WEIGHTS)),
    "CheckpointError: model: neither model.safetensors nor model.safetensors.index.json is there",
)
checkpoint(
    "config.json has a key twice",
    write(CONFIG, b'{"model_type": "glmasr", "model_type": "bart"}'),
    "CheckpointError: model/config.json: not readable as JSON ('model_type' twice in one object)",
)
checkpoint(
    "another kind of model",
    put(CONFIG, "model_type", "bart"),
    "CheckpointError: model: config.json: model_type is 'bart'; this package runs …",
)
checkpoint(
    "an unknown key",
    put(CONFIG, "shiny", 1),
    "CheckpointError: model: config.json: unknown key 'shiny'; this package can't tell whether it changes the model",
)
for value in (0, 10**9, 10**30, -1, 2000, 1000, True, "2"):
    checkpoint(
        f"{json.dumps(value) if not isinstance(value, int) or value < 10**6 else f'10^{len(str(value)) - 1}'} layers",
        put(CONFIG, "text_config", "num_hidden_layers", value),
        "CheckpointError: model: config.json asks for 1001 layers, but there are … tensors only"
        if value == 1000
        else "CheckpointError: model: decoder: 2000 layers, expected at most 1000"
        if value == 2000
        else "CheckpointError: model: decoder: layers is …, expected …",
    )
checkpoint(
    "-2 heads",
    put(CONFIG, "audio_config", "num_attention_heads", -2),
    "CheckpointError: model: encoder: heads is -2, expected an integer from 0 to 16777216",
)
checkpoint(
    "2^24 heads of 2^24",
    lambda folder: [put(CONFIG, "text_config", key, 2**24)(folder) for key in ("num_attention_heads", "head_dim")],
    "CheckpointError: model: decoder: 16777216 heads of 16777216, expected at most 16777216 in all",
)
checkpoint(
    "a head of 10^400",
    put(CONFIG, "audio_config", "head_dim", 10**400),
    "CheckpointError: model: head size is 1000…000, expected a positive integer",
)
checkpoint(
    "a width of NaN",
    put(CONFIG, "text_config", "hidden_size", float("nan")),
    "CheckpointError: model: decoder: width is nan, expected an integer from 0 to 16777216",
)
checkpoint(
    "an epsilon of NaN",
    put(CONFIG, "text_config", "rms_norm_eps", float("nan")),
    "CheckpointError: model: decoder: eps is nan, expected a positive number",
)
checkpoint(
    "a vocabulary of 10^12",
    put(CONFIG, "text_config", "vocab_size", 10**12),
    "CheckpointError: model: decoder: vocabulary is 1000000000000, …",
)
checkpoint(
    "a window of 11 days",
    put("processor_config.json", "feature_extractor", "chunk_length", 10**6),
    "CheckpointError: model: a window of 1000000 s (chunk_length), expected at most 600 s",
)
checkpoint(
    "an end id that the vocabulary lacks",
    put("generation_config.json", "eos_token_id", 10**6),
    "CheckpointError: model: eos_token_id is [1000000], expected ids below the vocabulary size …",
)


row = others("Checkpoints")
for what, make in (("a pipe", os.mkfifo), ("a link to /dev/zero", lambda path: path.symlink_to("/dev/zero"))):

    @row(
        f"in the hub's cache, a branch that is {what}",
        "CheckpointError: somebody/model at revision main is not in the cache …",
    )
    def _(room, make=make):
        room.patch.setenv("HF_HUB_CACHE", "cache")
        Path("cache/models--somebody--model/refs").mkdir(parents=True)
        make(Path("cache/models--somebody--model/refs/main"))
        return hub_cache.check_whole(hub.local("somebody/model"))


# ---- a Whisper as faster-whisper has it: CTranslate2's format -------------------------------------------------------------------


def model_bin_row(what, change, outcome):
    """`change` gets the folder, and the variables to write into it; what it gives back are options of `model_bin.pack`,
    or None."""

    def run(room):
        folder = model_bin.convert(make_encoder_decoder(Path("source")), Path("model"))
        found = model_bin.variables(Path("source"))
        how = change(folder, found)
        if how is not None:
            (folder / BIN).write_bytes(model_bin.pack(found, **how))
        return room.load()

    ROWS.append(Row("Checkpoints of CTranslate2", what, outcome, run))


def instead(content):
    def change(folder, found):
        (folder / BIN).write_bytes(content)

    return change


def with_more(*more, **how):
    return lambda folder, found: {"more": list(more), **how}


BIN, SIX = "model.bin", struct.pack("<I", 6)
REFUSED = f"CheckpointError: model/{BIN}: "
DAMAGED = "; the file is damaged or was not downloaded whole"
model_bin_row("a good one", lambda folder, found: {}, "loaded, … segment")
model_bin_row(
    "a pickle",
    instead(b"\x80\x04N." + bytes(99)),
    REFUSED + "begins with b'\\x80\\x04N.', expected a version from 1 to 6: it is no file of CTranslate2, …",
)
model_bin_row(
    "a zip with a pickle, as PyTorch writes it",
    instead(b"PK\3\4" + bytes(99)),
    REFUSED + "begins with b'PK\\x03\\x04', … are not read here",
)
model_bin_row("0 bytes", instead(b""), REFUSED + "it ends at byte 0, expected at least 4" + DAMAGED)
model_bin_row(
    "a version from the future",
    lambda folder, found: {"version": 7},
    REFUSED + "begins with b'\\x07\\x00\\x00\\x00', expected a version from 1 to 6: …",
)
model_bin_row(
    "a translator",
    lambda folder, found: {"kind": "TransformerSpec", "revision": 7},
    REFUSED + "holds a TransformerSpec, revision 7; this package reads WhisperSpec, revisions 1 to 3",
)
model_bin_row(
    "it breaks off",
    lambda folder, found: os.truncate(folder / BIN, 20_000),
    REFUSED + "variable … lies at bytes … of 20000" + DAMAGED,
)
model_bin_row(
    "3 GB of zeros after it",
    lambda folder, found: os.truncate(folder / BIN, 3 * 10**9),
    REFUSED + "its variables end at byte … of 3000000000" + DAMAGED,
)
model_bin_row(
    "4,294,967,295 variables",
    lambda folder, found: {"count": 2**32 - 1},
    REFUSED + "4294967295 variables are announced, expected at most 100000" + DAMAGED,
)
model_bin_row(
    "a name of 65,535 bytes that are not there",
    instead(SIX + b"\xff\xff"),
    REFUSED + "it ends at byte 6, expected at least 65541" + DAMAGED,
)
model_bin_row(
    "a name that a terminal would obey",
    with_more(model_bin.variable("\x1b[2J", [2], 1, b"xx")),
    REFUSED + "variable \\x1b[2J of shape [2] is of type I8 and needs …",
)
model_bin_row(
    "a variable twice",
    with_more(*[model_bin.variable("a", [2], 1, b"xx")] * 2),
    REFUSED + "variable a is there twice" + DAMAGED,
)
model_bin_row(
    "255 axes",
    with_more(model_bin.variable("a", [1] * 255, 1, b"x")),
    REFUSED + "variable a has 255 axes, expected at most 8" + DAMAGED,
)
model_bin_row(
    "a shape of 2^64 items, 0 to those who count in 64 bits",
    with_more(model_bin.variable("a", [2**31, 2**31, 4], 1, b"")),
    REFUSED
    + "variable a of shape [2147483648, 2147483648, 4] and type I8 has 0 bytes, expected 18446744073709551616"
    + DAMAGED,
)
model_bin_row(
    "a variable of 4 GB in a file of 100 KB",
    with_more(model_bin.variable("a", [2**32 - 1], 1, b"", 2**32 - 1)),
    REFUSED + "variable a lies at bytes …" + DAMAGED,
)
model_bin_row(
    "an unknown type",
    with_more(model_bin.variable("a", [2], 9, b"xx")),
    REFUSED + "variable a is of type 9, expected 0 to 5" + DAMAGED,
)
model_bin_row(
    "aliases in a circle",
    with_more(aliases={"a": "b", "b": "a"}),
    REFUSED + "alias a stands for b, which is not in front of it" + DAMAGED,
)
model_bin_row(
    "an alias of itself",
    with_more(aliases={"a": "a"}),
    REFUSED + "alias a stands for a, which is not in front of it" + DAMAGED,
)
model_bin_row(
    "a variable that is missing",
    lambda folder, found: found.pop("decoder/layer_norm/beta") is None or {},
    REFUSED + "tensor decoder/layer_norm/beta is missing",
)
model_bin_row(
    "one too many",
    with_more(model_bin.variable("a", [1], 0, bytes(4))),
    REFUSED + "tensor a is unexpected; the model that the others make has none of that name",
)
model_bin_row(
    "keys with a bias",
    lambda folder, found: found["encoder/layer_0/self_attention/linear_0/bias"].fill_(1) is None or {},
    REFUSED + "tensor encoder/layer_0/self_attention/linear_0/bias[1/3] is not zero; keys have no bias in a Whisper",
)
model_bin_row(
    "another activation",
    lambda folder, found: found.update({"decoder/activation": torch.tensor(0, dtype=torch.int8)}) or {},
    REFUSED + "variable decoder/activation is 0; this package computes 3 only",
)
model_bin_row(
    "an unknown key in config.json",
    lambda folder, found: put(CONFIG, "shiny", 1)(folder),
    "CheckpointError: model: config.json: unknown key 'shiny'; …",
)
model_bin_row(
    "languages of another model",
    lambda folder, found: put(CONFIG, "lang_ids", [7])(folder),
    "CheckpointError: model: config.json: lang_ids has 7, in the tokenizer '', expected a language; it is that of another model",
)
model_bin_row(
    "the tokenizer of another model",
    lambda folder, found: put(TOKENIZER, "added_tokens", [])(folder),
    "CheckpointError: model: the vocabulary has no token '<|endoftext|>'; …",
)


# ---- tokenizers ----------------------------------------------------------------------------------------------------------------


def tokenizer(what, change, outcome):
    checkpoint(what, change, outcome, "Tokenizers")


def split(pattern):
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return put(TOKENIZER, "pre_tokenizer", {"type": "Sequence", "pretokenizers": [step, level]})


def nested(folder):
    put(TOKENIZER, "normalizer", "HERE")(folder)
    text = (folder / TOKENIZER).read_text()
    (folder / TOKENIZER).write_text(
        text.replace('"HERE"', '{"type": "Sequence", "normalizers": [' * 2000 + "]}" * 2000)
    )


def pieces(added):
    def change(folder):
        import sentencepiece

        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["please transcribe this audio"]),
            model_writer=model,
            model_type="char",
            vocab_size=100,
            hard_vocab_limit=False,
            minloglevel=2,
            num_threads=1,
        )
        (folder / TOKENIZER).unlink()
        (folder / "tokenizer.model").write_bytes(model.getvalue())
        (folder / "added_tokens.json").write_text(json.dumps(added))

    return change


TOKENIZER = "tokenizer.json"
tokenizer(
    "none",
    lambda folder: (folder / TOKENIZER).unlink(),
    "TokenizerError: 'model' has neither tokenizer.json (byte-level BPE) nor tokenizer.model (SentencePiece); …",
)
tokenizer(
    "tokenizer.json is no JSON",
    write(TOKENIZER, b"{"),
    "TokenizerError: 'model/tokenizer.json' is not valid JSON: …; download it again",
)
tokenizer(
    "tokenizer.json is of 3 GB",
    huge(TOKENIZER),
    "TokenizerError: cannot read the tokenizer file 'model/tokenizer.json': 3000000000 bytes, expected at most 36000000",
)
tokenizer(
    "a key twice",
    write(TOKENIZER, b'{"model": 1, "model": 2}'),
    "TokenizerError: 'model/tokenizer.json' is not valid JSON: 'model' twice in one object; …",
)
tokenizer(
    "an id of -1",
    put(TOKENIZER, "model", "vocab", "!", -1),
    "TokenizerError: model/tokenizer.json: the token '!' has the id -1; expected an integer from 0 to 16777216",
)
tokenizer(
    "an id of 10^9",
    put(TOKENIZER, "model", "vocab", "!", 10**9),
    "TokenizerError: model/tokenizer.json: the token '!' has the id 1000000000; expected …",
)
tokenizer(
    "an id that is two tokens'",
    put(TOKENIZER, "model", "vocab", "!", 5),
    "TokenizerError: model/tokenizer.json: the tokens … share the id 5; the vocabulary is damaged",
)
tokenizer(
    "no merges",
    put(TOKENIZER, "model", "merges", []),
    "TokenizerError: model/tokenizer.json: model.merges is empty though the vocabulary has longer tokens; …",
)
tokenizer(
    "a pattern that takes years",
    split("(?:[a-z ]|[a-z ][a-z ])+[0-9]"),
    "CheckpointError: model/tokenizer.json: the regular expression '(?:[a-z ]|[a-z ][a-z ])+[0-9]' takes more than 0.1 s for a text; …",
)
tokenizer(
    "a pattern that takes all memory",
    split("(a{1000}){1000}"),
    "TokenizerError: model/tokenizer.json: the regular expression '(a{1000}){1000}' has 15000000 characters or more when its repeats are written out; expected at most 200000",
)
tokenizer(
    "a pattern of 59 KB, 9999 times",
    split("(?:" + "[a-c]" * 10_000 + "){9999}"),
    "TokenizerError: model/tokenizer.json: the regular expression '(?:[a-c][a-c]… has 50010 characters; expected at most 5000",
)
tokenizer(
    "a pattern of 4.5 KB, 9999 times",
    split("(?:" + "[a-c]" * 900 + "){9999}"),
    "TokenizerError: model/tokenizer.json: the regular expression '(?:[a-c][a-c]… has 45095490 characters or more when its repeats are written out; expected at most 200000",
)
tokenizer(
    "a million steps",
    put(TOKENIZER, "pre_tokenizer", {"type": "Sequence", "pretokenizers": [0] * 10**6}),
    "TokenizerError: model/tokenizer.json: pre_tokenizer.pretokenizers are 1000000 steps; expected at most 20",
)
tokenizer(
    "36 MB of lists",
    write(TOKENIZER, b"[" + b"[]," * 11_999_999 + b"0]"),
    "TokenizerError: 'model/tokenizer.json' is not valid JSON: so many values that they take 1440 MB of memory, expected at most 180; …",
)
tokenizer(
    "a pattern of 2500 groups, one in the other",
    split("(" * 2500 + ")" * 2500),
    "TokenizerError: model/tokenizer.json: the regular expression '((((((… is damaged: …",
)
tokenizer(
    "a pattern that is unknown here",
    split(r"\w+"),
    "TokenizerError: model/tokenizer.json: the regular expression '\\\\w+' uses '\\\\w+' at character 0, which this tokenizer does not implement; …",
)
tokenizer("2000 steps inside of each other", nested, "TokenizerError: 'model/tokenizer.json' is not valid JSON: …")
tokenizer(
    "the one of another model",
    put(TOKENIZER, "added_tokens", 1, "content", "<|bot|>"),
    "CheckpointError: model/tokenizer.json: the vocabulary has no token '<|user|>'; …",
)
tokenizer(
    "tokenizer.model breaks off",
    lambda folder: (pieces({})(folder), os.truncate(folder / "tokenizer.model", 50)),
    "TokenizerError: model: tokenizer.model is damaged or no SentencePiece model: …",
)
tokenizer(
    "tokenizer.model is of 3 GB",
    lambda folder: (pieces({})(folder), huge("tokenizer.model")(folder)),
    "TokenizerError: cannot read the tokenizer file 'model/tokenizer.model': 3000000000 bytes, expected at most 6000000",
)
tokenizer(
    "added_tokens.json with a gap",
    pieces({"<|user|>": 1000}),
    "TokenizerError: model: added_tokens.json: '<|user|>' has the id 1000, expected …: special tokens follow the … pieces of tokenizer.model, …",
)
tokenizer(
    "added_tokens.json with 10^9",
    pieces({"<|user|>": 10**9}),
    "TokenizerError: model: the token '<|user|>' has the id 1000000000; expected …",
)


# ---- options and output ----------------------------------------------------------------------------------------------------------


def option(what, outcome, language="auto", **options):
    def run(room):
        transcript = glmasr.load("demo").transcribe(np.zeros(1600, np.float32), language, sample_rate=16_000, **options)
        return f"transcript of {transcript.seconds:g} s"

    ROWS.append(Row("Options", what, outcome, run))


option("an unknown language", "OptionError: language is 'xx', expected one of auto, zh, yue, en", language="xx")
option("0 beams", "OptionError: beams is 0, expected a positive integer", beams=0)
option("10^9 beams", "OptionError: beams is 1000000000, expected at most 64", beams=10**9)
option("10^12 tokens", "OptionError: max_new_tokens is 1000000000000, expected at most 1024, …", max_new_tokens=10**12)
option(
    "a length penalty of NaN",
    "OptionError: length_penalty is nan, expected a number from -100 to 100",
    beams=2,
    length_penalty=float("nan"),
)
row = others("Options")


@row(
    "a model that is not there",
    "CheckpointError: 'nothing': no such directory, and not a name that this package knows …",
)
def _(room):
    return glmasr.load("nothing")


@row("float16", "OptionError: dtype float16 is refused: …")
def _(room):
    return glmasr.load("demo", dtype="float16")


@row("another device", "OptionError: device is 'tpu', expected 'auto', 'cpu' or 'cuda'")
def _(room):
    return glmasr.load("demo", device="tpu")


@row("no time at all", "OptionError: max_duration is 0; expected a positive number of seconds: …")
def _(room):
    return room.read(EXAMPLE, max_duration=0)


def command(room, *more_files, **more) -> str:
    """What the command says when it ends; the demo's text of an example goes to `stdout`."""
    command = [
        sys.executable,
        ROOT / "transcribe.py",
        EXAMPLE,
        *more_files,
        "--model",
        "demo",
        "--device",
        "cpu",
        "--quiet",
    ]
    done = subprocess.run(command, stderr=subprocess.PIPE, encoding="utf-8", timeout=120, **more)
    return f"exit code {done.returncode}; " + (
        "nothing on standard error" if not done.stderr else f"standard error: {done.stderr.strip()}"
    )


row = others("Output of the command")


@row("its reader is gone", "exit code 1; nothing on standard error")
def _(room):
    read, write = os.pipe()
    os.close(read)
    try:
        return command(room, EXAMPLE, stdout=write)  # nor is it told of the second text
    finally:
        os.close(write)


@row("a full disk", "exit code 1; standard error: error: …No space left on device…")
def _(room):
    with open("/dev/full", "w") as full:
        return command(room, stdout=full)


@row("standard output is closed", "exit code 1; standard error: error: standard output is closed")
def _(room):
    return command(room, preexec_fn=lambda: os.close(1))


# ---- the test, and the page ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("hostile") / "model")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.section}: {row.what}")
def test_row(row, whole, tmp_path, monkeypatch):
    for path in ("/dev/zero", "/dev/full", "/bin/cat", "/bin/head", "/bin/sleep"):
        if not os.path.exists(path):
            pytest.skip(f"no {path} here")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("glmasr.checkpoint.pre_tokenizers.MATCHING", 0.1)
    try:
        outcome = row.run(Room(monkeypatch, whole))
    except glmasr.GlmAsrError as error:
        outcome = f"{type(error).__name__}: {error}"
    expected = ".*".join(map(re.escape, row.outcome.split("…")))
    assert re.fullmatch(expected, outcome), f"{outcome}\n\nbut expected\n\n{row.outcome}"


def page() -> str:
    """The table of all rows, in Markdown."""

    def cell(text):
        return text.replace("|", "\\|").replace("`", "'")

    text = (
        f"# {len(ROWS)} hostile inputs, and what becomes of each\n\n"
        "Made by `tests/test_hostile.py`, which tries each row. `…` stands for words that are left out. Nothing else is raised than these\n"
        "exceptions, all of them `glmasr.GlmAsrError`; the command prints the message on standard error and ends with exit code 1.\n"
        "But for the section on it, there is no `ffmpeg` on the PATH; with one, what is not read directly is tried with it. Limits that\n"
        "would take long to reach are lowered for the test. `tests/fuzz` tries files at random: 40,000 with `python -m pytest -m fuzz`.\n"
    )
    section = None
    for row in ROWS:
        if row.section != section:
            section = row.section
            text += f"\n## {section}\n\n| input | outcome |\n|---|---|\n"
        text += f"| {cell(row.what)} | `{cell(row.outcome)}` |\n"
    return text


def test_page_is_up_to_date():
    if os.environ.get("GLMASR_WRITE"):
        PAGE.write_text(page(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page(), "run this test with GLMASR_WRITE=1 and look at what has changed"
    assert len(ROWS) >= 60 and len({(row.section, row.what) for row in ROWS}) == len(ROWS)
