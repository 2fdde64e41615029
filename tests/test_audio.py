"""glmasr/audio.py: every statement of its docstrings, with Transformers' extractor as the oracle of the log-mel."""

import io
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
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from helpers.memory import measured, needs_proc
from helpers.programs import needs
from helpers.sounds import bytes_of, melody, speech

from glmasr import audio
from glmasr.audio_files import child_process, ffmpeg, formats, reader, sound_files, spool, tracks
from glmasr.errors import AudioError, Cancelled, GlmAsrError, OptionError

# ---- signals ------------------------------------------------------------------------------------------------------------


def tone(frequency, rate, seconds=1.0, amplitude=0.5):
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)


def gain(samples, frequency, rate=16000):
    """(decibels, delay in seconds) of a tone of amplitude 0.5 in the middle of float samples (S,)."""
    samples = np.asarray(samples, dtype=np.float64)
    inner = slice(len(samples) // 8, -len(samples) // 8)
    wave = np.exp(-2j * np.pi * frequency * np.arange(len(samples)) / rate)
    window = np.hanning(len(samples[inner]))
    found = 2j * (samples * wave)[inner] @ window / window.sum()
    return 20 * np.log10(abs(found) / 0.5), -np.angle(found) / (2 * np.pi * frequency)


def level(samples):
    """Loudest of the inner samples, in decibels against a tone of amplitude 0.5: everything that is left of it."""
    samples = np.abs(np.asarray(samples))
    return 20 * np.log10(max(samples[len(samples) // 8 : -len(samples) // 8].max() / 0.5, 1e-12))


def write(path, samples, rate, format, subtype):
    """TRAP: libsndfile's Vorbis encoder overflows the stack when it gets a minute at once."""
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with soundfile.SoundFile(path, "w", rate, channels, subtype, format=format) as file:
        for start in range(0, len(samples), 8192):
            file.write(samples[start : start + 8192])
    return path


def same(a, b, tolerance=0.0):
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance


# ---- formats ------------------------------------------------------------------------------------------------------------

LOSSLESS = [
    ("WAV", "PCM_U8", 8),
    ("WAV", "PCM_16", 16),
    ("WAV", "PCM_24", 24),
    ("WAV", "PCM_32", 24),
    ("WAV", "FLOAT", 24),
    ("WAV", "DOUBLE", 24),
    ("WAVEX", "PCM_16", 16),
    ("WAVEX", "FLOAT", 24),
    ("RF64", "PCM_24", 24),
    ("FLAC", "PCM_16", 16),
    ("FLAC", "PCM_24", 24),
    ("AIFF", "PCM_16", 16),
    ("AIFF", "FLOAT", 24),
    ("AU", "PCM_16", 16),
    ("AU", "FLOAT", 24),
    ("CAF", "PCM_16", 16),
    ("CAF", "FLOAT", 24),
]


@pytest.mark.parametrize("format, subtype, bits", LOSSLESS)
def test_lossless_formats(tmp_path, monkeypatch, format, subtype, bits):
    monkeypatch.setenv("PATH", "")  # libsndfile alone reads them
    samples = speech(0.5)
    read = audio.load(write(tmp_path / "a", samples, 16000, format, subtype))
    assert read.dtype == torch.float32
    same(read, torch.from_numpy(samples), 2.0 ** (1 - bits))


@pytest.mark.parametrize(
    "format, subtype, rate",
    [
        ("OGG", "VORBIS", 44100),
        ("OGG", "OPUS", 48000),
        ("MP3", "MPEG_LAYER_III", 44100),
        ("WAV", "ULAW", 8000),
        ("WAV", "ALAW", 8000),
    ],
)
def test_lossy_formats(tmp_path, monkeypatch, format, subtype, rate):
    monkeypatch.setenv("PATH", "")
    read = audio.load(write(tmp_path / "a", tone(440, rate, 2), rate, format, subtype))
    assert abs(len(read) - 32000) < 1700  # encoders pad to whole frames
    assert abs(gain(read, 440)[0]) < 0.3


def encoded_by_ffmpeg(path, samples, rate, *options):
    wav = path.with_suffix(".source.wav")
    soundfile.write(wav, samples, rate)
    subprocess.run(["ffmpeg", "-v", "error", "-i", wav, *options, path], check=True, stdin=subprocess.DEVNULL)
    wav.unlink()
    return path


@needs("ffmpeg")
def test_m4a_through_ffmpeg(tmp_path):
    stereo = np.stack([tone(440, 44100, 2), np.zeros(88200)], axis=1)
    path = encoded_by_ffmpeg(tmp_path / "-a: b's.m4a", stereo, 44100)
    read = audio.load(path)
    assert abs(len(read) - 32000) < 1700
    assert abs(gain(read, 440)[0] + 6.02) < 0.3  # the mean of a tone and silence
    same(audio.load(path.read_bytes()), read)


@needs("ffmpeg")
def test_ffmpeg_is_exact_and_all_channels_count_alike(tmp_path):
    random = np.random.default_rng(0)
    surround = random.uniform(-0.5, 0.5, (5000, 6))
    path = encoded_by_ffmpeg(tmp_path / "a.mka", surround, 16000, "-c:a", "pcm_s16le")
    same(audio.load(path), torch.from_numpy(surround.mean(1)).float(), 2.0**-14)


@needs("ffmpeg")
def test_ffmpeg_ends_when_the_caller_stops(tmp_path):
    path = encoded_by_ffmpeg(tmp_path / "a.mka", np.zeros(16000 * 60 * 5), 16000)
    threads = threading.active_count()
    recording = audio.blocks(path, seconds=1)
    assert len(next(recording)) == 16000
    recording.close()
    assert threading.active_count() == threads


def test_without_ffmpeg(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    path = tmp_path / "meeting.m4a"
    path.write_bytes(b"\0\0\0\x20ftypM4A \0\0\0\0" + bytes(1000))
    with pytest.raises(AudioError, match=r"meeting\.m4a.*install ffmpeg or convert it to WAV"):
        audio.load(path)


def test_rare_codecs_are_not_given_to_libsndfile(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    path = write(tmp_path / "a.wav", speech(0.5), 16000, "WAV", "MS_ADPCM")
    with pytest.raises(AudioError, match="MS_ADPCM in WAV.*install ffmpeg"):
        audio.load(path)


@needs("ffmpeg")
def test_playlists_are_not_followed(tmp_path):
    write(tmp_path / "secret.wav", speech(0.5), 16000, "WAV", "PCM_16")
    for name, text in [
        ("a.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{}\n#EXT-X-ENDLIST\n"),
        ("a.txt", "ffconcat version 1.0\nfile {}\n"),
    ]:
        (tmp_path / name).write_text(text.format(tmp_path / "secret.wav"))
        with pytest.raises(AudioError, match="not a readable recording"):
            audio.load(tmp_path / name)


def test_ffmpeg_gets_an_absolute_path_and_nothing_but_files(tmp_path, monkeypatch):
    """What it is started with: no shell, no network, media files only. This one writes its arguments down."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ffmpeg").write_text('#!/bin/sh\nprintf "%s\\n" "$@" > seen\n')
    (tmp_path / "bin" / "ffmpeg").chmod(0o755)
    (tmp_path / "-y $(touch evil); a.m4a").write_bytes(b"no sound")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "bin")  # a relative one: it must not be looked up once more
    with pytest.raises(AudioError, match="not a readable recording"):
        audio.load("-y $(touch evil); a.m4a")
    seen = (tmp_path / "seen").read_text().splitlines()
    assert seen[seen.index("-i") + 1] == str(tmp_path / "-y $(touch evil); a.m4a")
    assert seen[seen.index("-protocol_whitelist") + 1] == "file,pipe"
    formats = seen[seen.index("-format_whitelist") + 1].split(",")
    assert not {"hls", "concat", "dash", "sdp", "rtsp", "image2", "lavfi", "tee", "ffmetadata", "concatf", "imf"} & set(
        formats
    )
    assert "-nostdin" in seen and seen[-1] == "pipe:1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["-y $(touch evil); a.m4a", "bin", "seen"]


@needs("ffmpeg")
def test_a_file_for_ffmpeg_cannot_be_longer_than_allowed(tmp_path):
    path = encoded_by_ffmpeg(tmp_path / "a.mka", np.zeros(16000 * 3), 16000)
    assert len(audio.load(path, max_duration=3.1)) > 47_000
    with pytest.raises(AudioError, match="longer than 2 s"):
        audio.load(path, max_duration=2)


# ---- limits -------------------------------------------------------------------------------------------------------------


def test_only_files_that_begin_like_those_of_the_list_reach_libsndfile(tmp_path, monkeypatch):
    """Its memory bugs are in the code that opens a file."""
    others = sorted(
        set(soundfile.available_formats()) - set(formats.FORMATS) - {"RAW", "SD2"}
    )  # which do not begin in any way
    others = [
        (format, bytes_of(speech(0.1), 8000, format, {"XI": "DPCM_16", "WVE": "ALAW"}.get(format, "PCM_16")))
        for format in others
    ]
    others += [
        ("MAT4", bytes_of(speech(0.1), endian=endian, format="MAT4", subtype="PCM_16")) for endian in ("BIG", "LITTLE")
    ]
    opened = []
    monkeypatch.setattr(soundfile, "SoundFile", lambda path: opened.append(path) or {}["opened"])
    monkeypatch.setenv("PATH", "")
    for format, content in others:  # HTK begins like nothing
        for tag in (b"", b"ID3\4\0\0\0\0\1\0" + bytes(128)):
            with pytest.raises(
                AudioError,
                match="formats read directly" if format == "HTK" else f"({format}|IFF) is not among the formats",
            ):
                audio.load(tag + content)
    assert not opened
    for format in formats.FORMATS:
        with pytest.raises(KeyError, match="opened"):
            audio.load(FILES[format])
    assert len(opened) == len(formats.FORMATS)


def test_a_tag_in_front_is_skipped():
    for format in ("MP3", "FLAC"):
        tag = b"ID3\4\0\0\0\0\1\2" + bytes(130)  # 1 * 128 + 2
        for more in (tag, tag + tag):
            same(audio.load(more + FILES[format]), audio.load(FILES[format]))


def test_padding_in_front_of_an_mp3(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    for name in ("a.mp3", "b.MP3"):
        for padding in (bytes(30), bytes(2000), b"ID3\4\0\0\0\0\0\12" + bytes(10 + 200)):
            (tmp_path / name).write_bytes(padding + FILES["MP3"])
            same(audio.load(tmp_path / name), audio.load(FILES["MP3"]))
    (tmp_path / "a.mp3").write_bytes(bytes(5000))
    with pytest.raises(AudioError, match="begins like none"):
        audio.load(tmp_path / "a.mp3")


FILES = {
    "WAV": ("WAV", "PCM_16"),
    "WAVEX": ("WAVEX", "PCM_16"),
    "RF64": ("RF64", "PCM_16"),
    "AIFF": ("AIFF", "FLOAT"),
    "AU": ("AU", "ULAW"),
    "CAF": ("CAF", "PCM_16"),
    "FLAC": ("FLAC", "PCM_16"),
    "OGG": ("OGG", "VORBIS"),
    "MP3": ("MP3", "MPEG_LAYER_III"),
}
FILES = {name: bytes_of(speech(2), format=format, subtype=subtype) for name, (format, subtype) in FILES.items()}


@pytest.mark.parametrize("format", FILES)
def test_max_duration(format):
    whole = audio.load(FILES[format])
    same(audio.load(FILES[format], max_duration=len(whole) / 16000 + 1e-9), whole)
    with pytest.raises(AudioError, match=r"longer than 1\.9 s \(max_duration\)"):
        audio.load(FILES[format], max_duration=1.9)
    with pytest.raises(AudioError, match="longer than"):  # what comes before is given out
        parts = audio.blocks(FILES[format], seconds=0.5, max_duration=1.9)
        list(parts)


def test_max_duration_of_arrays_and_its_own_range():
    same(audio.load(np.zeros(8000), 8000, max_duration=1), torch.zeros(16000))
    with pytest.raises(AudioError, match="longer than 1 s"):
        audio.load(np.zeros(8001), 8000, max_duration=1)
    assert len(audio.load(np.zeros(8001), 8000, max_duration=float("inf"))) == 16002
    for value in (0, -1, float("nan"), None, "1"):
        with pytest.raises(OptionError, match="max_duration"):
            next(audio.blocks(WAV, max_duration=value))


def test_a_length_that_the_size_bears_out_is_refused_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(sound_files, "_decoded", lambda *arguments: pytest.fail("was read"))
    with pytest.raises(AudioError, match="longer than 1 s"):
        audio.load(FILES["WAV"], max_duration=1)


def test_an_absurd_rate_is_not_taken_for_a_long_recording():
    for rate in (1, 100):
        with pytest.raises(AudioError, match=f"sample rate {rate} Hz"):
            audio.load(FILES["WAV"][:24] + struct.pack("<I", rate) + FILES["WAV"][28:], max_duration=1)


def test_odd_rates():
    """Their kernels are as large as the rate is high: those above 50 kHz are no device's."""
    for rate in (4001, 47_952, 48_048, 49_999, 64_000, 88_200, 96_000, 176_400, 352_800, 384_000):
        assert len(audio.load(np.zeros(rate, np.float32), rate)) == 16000
    for rate in (50_001, 95_999, 96_001, 192_050, 383_983):
        with pytest.raises(AudioError, match="whole hundreds"):
            audio.load(np.zeros(100), rate)


def test_a_forged_rate_does_not_help(monkeypatch):
    """2 s that are declared to be 0.08 s at 384 kHz: the bytes are counted too."""
    monkeypatch.setattr(reader, "MOST_BYTES", 32_000 * 4 - 1)
    forged = FILES["WAV"][:24] + struct.pack("<I", 384_000) + FILES["WAV"][28:]
    with pytest.raises(AudioError, match="GiB of samples"):
        audio.load(forged, max_duration=1)
    monkeypatch.setattr(reader, "MOST_BYTES", 32_000 * 4)
    assert len(audio.load(forged, max_duration=1)) == 1334


def test_sound_far_above_full_scale_is_sound():
    samples = torch.from_numpy(speech(0.5))
    same(audio.load(bytes_of((samples * 900).numpy(), subtype="FLOAT")), samples * 900)


KINDS = ["WAV", "WAVEX", "RF64", "AIFF", "AU", "CAF", "W64"]


def read_whole(content):
    """The samples, and the warnings."""
    heard = []
    return audio.load(content, warn=heard.append), heard


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_cut_off_is_said(kind):
    """libsndfile makes the header's length that of the file, without a word."""
    if kind in ("W64", "CAF") and shutil.which("ffmpeg") is None:
        pytest.skip("no ffmpeg, which reads it")
    content = bytes_of(speech(3), format=kind)
    assert read_whole(content) == (pytest.approx(audio.load(bytes_of(speech(3))), abs=1e-4), [])
    samples, heard = read_whole(content[: len(content) - 32_000])
    assert len(samples) == 32_000 or kind == "CAF"  # it has empty space after its sound
    assert len(heard) == 1
    assert re.search(r": breaks off after [12]\.\d s \(3\.0 s announced\); what comes before is used$", heard[0])
    start = {"AIFF": content.find(b"SSND"), "AU": 0}.get(kind, content.find(b"data"))
    samples, heard = read_whole(content[: start + 150])
    assert len(samples) < 100 and len(heard) == 1 and "breaks off after 0.0 s (3.0 s announced)" in heard[0]


@pytest.mark.parametrize(
    "kind, mark, after, sizes",
    [
        ("WAV", b"data", 4, [2**32 - 1, 0x7FFFF000, 2**31, 2**31 - 36]),  # ffmpeg, SoX, arecord
        ("AU", b".snd", 8, [2**32 - 1]),
        ("AIFF", b"SSND", 4, [0x7F000008]),
        ("CAF", b"data", 4, [2**64 - 1]),
    ],
)
def test_a_length_that_was_not_known_is_none(kind, mark, after, sizes):
    """As who writes into a pipe leaves it."""
    if kind == "CAF" and shutil.which("ffmpeg") is None:
        pytest.skip("no ffmpeg, which reads it")
    content = bytearray(bytes_of(speech(1), format=kind))
    place = content.index(mark) + after
    for size in sizes:
        width = 8 if kind == "CAF" else 4
        content[place : place + width] = size.to_bytes(width, "little" if kind == "WAV" else "big")
        samples, heard = read_whole(bytes(content))
        assert abs(len(samples) - 16_000) < 10 and not heard


def test_the_last_of_several_recordings_is_cut_off():
    samples, heard = read_whole((bytes_of(speech(1)) + bytes_of(speech(3)))[:-64_000])
    assert len(samples) == 2 * 16_000 and ["breaks off after 1.0 s (3.0 s announced)" in text for text in heard] == [
        True
    ]
    assert read_whole(bytes_of(speech(1))[:-3000])[1] == []  # less than a word


def test_lists_of_numbers():
    """As datasets give them, unless they are asked for arrays."""
    samples = speech(0.1)
    for source in ({"array": samples.tolist(), "sampling_rate": 16000}, (16000, samples.tolist())):
        same(audio.load(source), torch.from_numpy(samples))
    two = audio.load({"array": [samples.tolist(), samples.tolist()], "sampling_rate": 16000})
    same(two, torch.from_numpy(samples))


@pytest.mark.parametrize(
    "values, said",
    [
        ([-3000, 32_767], ["holds int32 from -3000 to 32767, which is within 16 bits.*2\\^15, pass `array / 2..15`"]),
        ([-40_000, 5], ["holds int32 from -40000 to 5, which is within 24 bits.*2\\^23, pass `array / 2..23`"]),
        ([0, 2**23], []),
        ([0, 0], []),
    ],
)
def test_int32_that_holds_fewer_bits(values, said):
    heard = []
    audio.load(np.array(values * 100, np.int32), 16_000, warn=heard.append)
    assert len(heard) == len(said) and all(map(re.search, said, heard))


def test_a_stream_is_not_copied_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    content = bytes_of(speech(0.5), subtype="DOUBLE")  # half as large when it is decoded
    monkeypatch.setattr(spool, "MOST_BYTES", len(content))
    assert len(audio.load(io.BytesIO(content))) == 8000
    with pytest.raises(AudioError, match="has an end"):
        audio.load(io.BytesIO(content + b"\0"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("channels", [255, 256])
def test_channels(channels):
    content = bytes_of(np.full((100, channels), 0.25))
    for source, rate in ((content, None), (np.full((900, channels), 0.25), 16000)):
        if channels == 255:
            assert abs(audio.load(source, rate) - 0.25).max() < 1e-6
        else:
            with pytest.raises(AudioError, match="256 channels; expected 1 to 255"):
                audio.load(source, rate)


# ---- sources ------------------------------------------------------------------------------------------------------------


def test_paths_bytes_files_and_standard_input(tmp_path, monkeypatch):
    content = bytes_of(speech(0.5))
    expected = torch.from_numpy(soundfile.read(io.BytesIO(content), dtype="float32")[0])
    path = tmp_path / "naïve 漢字 file"
    path.write_bytes(content)
    for source in (path, str(path), content, bytearray(content), io.BytesIO(content)):
        same(audio.load(source), expected)
    with open(path, "rb") as file:
        same(audio.load(file), expected)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    same(audio.load("-"), expected)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_named_pipe(tmp_path):
    path, content = tmp_path / "pipe", bytes_of(speech(0.5))
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(content,))
    writer.start()
    same(audio.load(path), audio.load(content))
    writer.join()


def test_temporary_files_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    audio.load(bytes_of(speech(0.5)))
    with pytest.raises(AudioError):
        audio.load(b"not audio")
    next(audio.blocks(bytes_of(speech(0.5)), seconds=0.1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_arrays(dtype):
    samples = speech(0.5).astype(dtype)
    expected = torch.from_numpy(samples.astype(np.float32))
    samples.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(audio.load(samples, 16000), expected)
        same(audio.load(samples[::-1], 16000.0), expected.flip(0))
    stereo = np.stack([samples, 0 * samples])
    same(audio.load(stereo, 16000), expected / 2)  # (channels, samples)
    same(audio.load(stereo.T, np.int64(16000)), expected / 2)


def test_tensors():
    samples = torch.from_numpy(speech(0.5))
    same(audio.load(samples, 16000), samples)
    same(audio.load(samples.bfloat16().requires_grad_(), sample_rate=16000), samples.bfloat16().float())
    same(audio.load(samples[None].double(), 16000), samples)


@pytest.mark.parametrize("dtype, full", [("int16", 2**15), (">i2", 2**15), ("int32", 2**31), ("uint8", 2**7)])
def test_integers_are_divided_by_their_full_scale(dtype, full):
    """As in a file of as many bits; and memory holds the floats of a block only."""
    zero = 128 if dtype == "uint8" else 0
    floats = np.round(speech(0.5).astype(np.float64) * (full - 1)) / full
    floats[:2] = -1, (full - 1) / full
    samples = (floats * full + zero).astype(dtype)
    expected = torch.from_numpy(floats.astype(np.float32))
    same(audio.load(samples, 16000), expected)
    same(audio.load(np.stack([samples, samples]), 8000), audio.load(np.stack([floats, floats]), 8000))
    if dtype != ">i2":
        same(audio.load(torch.from_numpy(samples), 16000), expected)
        subtype = {"int16": "PCM_16", "int32": "PCM_32", "uint8": "PCM_U8"}[dtype]
        same(audio.load(bytes_of(floats, subtype=subtype)), expected, 0 if full < 2**20 else 2.0**-23)


def test_pairs_and_dicts(tmp_path):
    samples = speech(0.5)
    expected, integers = torch.from_numpy(samples), np.round(samples * 2**15).clip(-(2**15), 2**15 - 1).astype(np.int16)
    same(audio.load((16000, samples)), expected)
    same(audio.load((np.int64(16000), torch.from_numpy(samples))), expected)
    same(audio.load((8000, integers[:, None])), audio.load(integers.astype(np.float32) / 2**15, 8000))
    same(audio.load({"path": None, "array": samples.astype(np.float64), "sampling_rate": 16000}), expected)
    content = bytes_of(integers)
    (tmp_path / "a.wav").write_bytes(content)
    for source in (
        {"bytes": content, "path": "nowhere.wav"},
        {"bytes": None, "path": str(tmp_path / "a.wav")},
        {"path": tmp_path / "a.wav", "array": None},
    ):
        same(audio.load(source), audio.load(content))


@pytest.mark.parametrize(
    "make",
    [
        lambda samples: samples.to_sparse(),
        lambda samples: samples.to("meta"),
        lambda samples: samples[None].to_sparse_csr(),
        lambda samples: torch.quantize_per_tensor(samples, 0.1, 0, torch.qint8),
    ],
)
def test_tensors_that_hold_no_samples(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, of sparse tensors
        tensor = make(torch.from_numpy(speech(0.1)))
    with pytest.raises(AudioError, match="the Tensor of shape .*can't be read; expected a dense tensor"):
        audio.load(tensor, 16000)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_tensors_of_eight_bits(dtype):
    samples = torch.from_numpy(speech(0.5)).to(dtype)
    same(audio.load(samples, 16000), samples.float())


def test_the_argument_is_not_a_view_of_the_result():
    samples = speech(0.5)
    audio.load(samples, 16000).zero_()
    assert np.any(samples)


@pytest.mark.parametrize("channels", [2, 3, 6])
def test_all_channels_are_averaged(channels):
    random = np.random.default_rng(0)
    samples = random.uniform(-1, 1, (5000, channels)).astype(np.float32)
    for read in (audio.load(samples, 16000), audio.load(bytes_of(samples, subtype="FLOAT"))):
        same(read, torch.from_numpy(samples).mean(1), 3e-7)


def test_stereo():
    left = speech(0.5)
    same(audio.load(bytes_of(np.stack([left, 0 * left], 1), subtype="FLOAT")), torch.from_numpy(left) / 2)
    same(audio.load(bytes_of(np.stack([0 * left, left], 1), subtype="FLOAT")), torch.from_numpy(left) / 2)


# ---- errors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source, rate, message",
    [
        (np.zeros(100, np.int64), 16000, "int64; expected floats in -1..1, or int16, int32, uint8: divide"),
        (
            torch.zeros(100, dtype=torch.int64),
            16000,
            "torch.int64; expected floats in -1..1, or int16, int32, uint8: divide",
        ),
        (np.zeros(100, np.uint16), 16000, "uint16.*divide other integers by their full scale"),
        (np.zeros(100, bool), 16000, "bool; expected floats"),
        (np.zeros(100, complex), 16000, "complex128; expected floats"),
        (np.array(["a"]), 16000, "expected floats"),
        (np.zeros(100, np.int16), None, "sample_rate"),
        ((16000, np.zeros(100, np.int16)), 16000, "comes with a rate, 16000: leave it out"),
        (("16000", np.zeros(100)), None, "whole number"),
        ((np.zeros(100), 16000), None, "cannot be a tuple.*a pair"),
        (("a.wav", "b.wav"), None, r"cannot be a tuple.*several recordings are a list: list\(recordings\)"),
        ((name for name in ["a.wav"]), None, "cannot be a generator.*several recordings are a list"),
        ({"array": ["a", "b"], "sampling_rate": 16000}, None, "'array' of the dict is a list of something else"),
        ({"array": [[0.0], [0.1, 0.2]], "sampling_rate": 16000}, None, "expected an array, a tensor, or a list of"),
        ({"array": "a.wav", "sampling_rate": 16000}, None, "'array' of the dict is a str"),
        ({"array": [1, 2], "sampling_rate": 16000}, None, "int64; expected floats in -1..1"),
        ({"array": [], "sampling_rate": 16000}, None, "holds no samples"),
        ({"array": np.zeros(100), "sampling_rate": None}, None, "comes without sample_rate"),
        ({"array": np.zeros(100), "sampling_rate": 8000}, 16000, "comes with a rate, 8000: leave it out"),
        ({"bytes": b"", "path": "a.wav"}, None, "empty"),
        ({"bytes": None, "path": None}, None, "a dict without a recording"),
        ({"path": "no/such/file.wav"}, None, "no/such/file.wav: no such file"),
        ({"path": "a.wav"}, 16000, "leave it out"),
        (np.zeros(100), None, "sample_rate"),
        (np.zeros((2, 3, 4)), 16000, "3 axes"),
        (np.float32(np.zeros(())), None, "a recording cannot be"),
        (torch.zeros(()), 16000, "0 axes"),
        (np.zeros(0), 16000, "no samples"),
        (np.zeros((0, 2)), 16000, "no samples"),
        (np.zeros((2, 0)), 16000, "no samples"),
        (np.array([0, np.nan]), 16000, "sample 1 is NaN or infinite"),
        (np.array([[0.0, np.inf], [0, 0], [0, 0]]), 16000, "sample 0 is NaN or infinite"),
        (np.array([1e300]), 16000, "NaN or infinite"),
        (
            np.array([0, -1001.5]),
            16000,
            r"sample 1 is -1001\.5; expected floats in about -1\.\.1: divide them by their full scale",
        ),
        (np.zeros(100), 1, "4000 to 384000"),
        (np.zeros(100), 3999, "4000 to 384000"),
        (np.zeros(100), 384001, "4000 to 384000"),
        (np.zeros(100), -16000, "4000 to 384000"),
        (np.zeros(100), float("nan"), "whole number"),
        (np.zeros(100), float("inf"), "whole number"),
        (np.zeros(100), 16000.5, "whole number"),
        (np.zeros(100), "16000", "whole number"),
        (b"", None, "empty"),
        (io.BytesIO(), None, "empty"),
        (io.StringIO("text"), None, "binary mode"),
        (b"RIFF", 16000, "leave it out"),
        (None, None, "cannot be a NoneType"),
        ([0.0, 0.1], None, "cannot be a list.*make an array of numbers: np.asarray"),
        (7, None, "cannot be a int"),
        ("no/such/file.wav", None, "no/such/file.wav: no such file"),
        ("nul\0.wav", None, "cannot be opened"),
        ("", None, "directory|no such file|is empty"),
    ],
)
def test_unusable_sources(source, rate, message):
    with pytest.raises(AudioError, match=message), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's own, of the cast out of range
        audio.load(source, rate)


WAV = bytes_of(speech(0.5))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "empty"),
        (b"This is a text, not a recording.\n" * 50, "not.* readable"),
        (bytes(5000), "not.* readable"),
        (WAV[:44], "no samples"),
        (bytes_of(np.zeros(0)), "no samples"),
        (WAV[:30], "not.* readable"),
        (WAV[:24] + struct.pack("<I", 1) + WAV[28:], "sample rate 1 Hz"),
        (WAV[:24] + struct.pack("<I", 1_000_000) + WAV[28:], "sample rate 1000000 Hz"),
        (WAV[:22] + b"\0\0" + WAV[24:], "not.* readable"),
        (bytes_of(np.array([0, np.nan, 0]), subtype="FLOAT"), "sample 1 is NaN"),
        (bytes_of(np.array([0, -np.inf, 0]), subtype="DOUBLE"), "sample 1 is NaN or infinite"),
        (bytes_of(np.array([0, 1e200, 0]), subtype="DOUBLE"), "sample 1 is NaN or infinite"),
        *[
            (bytes_of(np.array([0, value, 0]), subtype="FLOAT"), "sample 1 is .*; expected floats in about")
            for value in (32767.0, -1e20, 3e38)
        ],
        (bytes_of(speech(0.5), format="FLAC")[:60], "not.* readable|cannot be decoded"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",
)  # which hold the time of day in a WAV of floats
@pytest.mark.parametrize("ffmpeg", [pytest.param("ffmpeg", marks=needs("ffmpeg")), "no ffmpeg"])
def test_unusable_files(tmp_path, monkeypatch, content, message, ffmpeg):
    if ffmpeg == "no ffmpeg":
        monkeypatch.setenv("PATH", "")
    path = tmp_path / "talk.wav"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=message) as error:
        audio.load(path)
    assert "talk.wav" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a directory", "zero.raw"])
def test_what_is_not_a_recording(tmp_path, name):
    (tmp_path / "a directory").mkdir()
    (tmp_path / "zero.raw").write_bytes(bytes(1000))
    with pytest.raises(AudioError, match=name):
        audio.load(tmp_path / name)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no devices here")
def test_devices_are_refused():
    with pytest.raises(AudioError, match="device"):
        audio.load("/dev/zero")


def test_truncated_wav_is_read_to_its_end():
    same(audio.load(WAV[:-1000]), audio.load(WAV)[:-500])
    same(audio.load(WAV[:-1001]), audio.load(WAV)[:-501])


def test_truncated_flac_is_read_up_to_the_damage_with_a_warning():
    content = bytes_of(np.random.default_rng(0).uniform(-0.5, 0.5, 100_000), format="FLAC")
    with pytest.warns(UserWarning, match="breaks off after [23].* s"):
        read = audio.load(content[: len(content) // 2])
    assert len(read) > 40_000
    same(read, audio.load(content)[: len(read)])


def test_forged_lengths():
    """A WAV that claims 4 GB and FLACs that claim 2^36 - 1 samples or do not say give what they hold."""
    same(audio.load(WAV[:40] + b"\xff\xff\xff\xff" + WAV[44:]), audio.load(WAV))
    flac = bytearray(bytes_of(speech(0.5), format="FLAC"))
    flac[21] |= 0x0F
    flac[22:26] = b"\xff" * 4
    with pytest.warns(UserWarning, match="breaks off after 0.5 s .4294967.3 s announced"):
        same(audio.load(bytes(flac)), audio.load(WAV), 2.0**-15)
    flac[21] &= 0xF0
    flac[22:26] = bytes(4)  # what every FLAC encoder writes into a pipe
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(audio.load(bytes(flac)), audio.load(WAV), 2.0**-15)


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_never_fail_otherwise():
    random, read, refused = np.random.default_rng(0), 0, 0
    for format, subtype in [
        ("WAV", "PCM_16"),
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("MP3", "MPEG_LAYER_III"),
        ("AIFF", "PCM_16"),
    ]:
        whole = bytes_of(speech(0.3), format=format, subtype=subtype)
        for _ in range(6):
            content = bytearray(whole[: random.integers(1, len(whole))])
            content[random.integers(len(content))] ^= 1 << random.integers(8)
            try:
                assert audio.load(bytes(content)).isfinite().all()
                read += 1
            except GlmAsrError:
                refused += 1
    assert read > 5 and refused > 5


# ---- resampling ---------------------------------------------------------------------------------------------------------

RATES = [8000, 11025, 12000, 15999, 22050, 24000, 32000, 37800, 44056, 44100, 47999, 48000, 96000]


@pytest.mark.parametrize("rate", RATES)
def test_tones_survive(rate):
    for frequency in (50, 300, 1000, 2000, 3400, 4500, 5800, 6500, 7000):
        if frequency <= 0.9 * min(rate, 16000) / 2:
            samples = audio.resample(torch.from_numpy(tone(frequency, rate)), rate)
            assert len(samples) == 16000
            change, delay = gain(samples, frequency)
            assert abs(change) < 0.01, (frequency, change)
            assert abs(delay) < 1e-7, (frequency, delay)
            expected = torch.from_numpy(tone(frequency, 16000)).float()
            same(samples[500:-500], expected[500:-500], 2e-4)


@pytest.mark.parametrize("rate", [rate for rate in RATES if rate > 16000])
def test_nothing_is_folded_down(rate):
    for frequency in (8000, 8050, 8200, 9000, 11000, 12000, 15900, 16000, 20000, 23900, 32000, 40000):
        if frequency < rate / 2:
            left = level(audio.resample(torch.from_numpy(tone(frequency, rate)), rate))
            assert left < -75, (frequency, left)


@pytest.mark.parametrize("rate", [8000, 11025, 12000])
def test_no_images_above_the_source(rate):
    samples = audio.resample(torch.from_numpy(tone(0.8 * rate / 2, rate)), rate).double()
    spectrum = torch.fft.rfft(samples[2000:14000] * torch.kaiser_window(12000, False, 20.0, dtype=torch.float64)).abs()
    above = spectrum[round(6000 * rate / 16000) :]
    assert 20 * torch.log10(above.max() / spectrum.max()) < -75


def test_resample_length_and_bounds():
    for rate in (8000, 15999, 22050, 44100, 48000):
        for length in (0, 1, 2, 3, 160, 441, 1000, 44101):
            assert len(audio.resample(torch.zeros(length), rate)) == -(-length * 16000 // rate)
    same(audio.resample(torch.ones(48000), 48000)[200:-200], torch.ones(15600), 2e-4)
    samples = torch.from_numpy(speech(0.2))
    same(audio.resample(samples, 16000), samples)
    assert len(audio.resample(samples, 16000, 44100)) == 8820
    for rate in (0, -1, 500, 1_000_000, 44100.5):
        with pytest.raises(AudioError, match="sample rate"):
            audio.resample(samples, rate)


def test_resample_equals_the_definition():
    """The slow, obvious sum over all source samples."""
    random = np.random.default_rng(0)
    for source, target in [(44100, 16000), (8000, 16000), (15999, 16000), (48000, 16000), (16000, 22050)]:
        samples = random.standard_normal(700)
        count = -(-700 * target // source)
        distance = np.arange(700) - np.arange(count)[:, None] * source / target
        nyquist = min(source, target) / 2
        half = (80 - 7.95) / 2.285 / (2 * np.pi * 0.1 * nyquist / source) / 2
        inside = np.abs(distance) <= half
        kaiser = (
            np.i0(0.1102 * 71.3 * np.sqrt(np.where(inside, 1 - (distance / half) ** 2, 0)))
            / np.i0(0.1102 * 71.3)
            * inside
        )
        width = 2 * 0.95 * nyquist / source
        expected = (width * np.sinc(width * distance) * kaiser) @ samples
        same(audio.resample(torch.from_numpy(samples), source, target), torch.from_numpy(expected).float(), 2e-6)


@pytest.mark.parametrize("rate", [8000, 15999, 44056, 44100, 48000])
def test_resampling_in_blocks_equals_the_whole(monkeypatch, rate):
    random = np.random.default_rng(0)
    samples = random.uniform(-1, 1, 3 * rate + 17).astype(np.float32)
    whole = audio.resample(torch.from_numpy(samples), rate)
    for values in (997, 30_000):
        monkeypatch.setattr(audio, "VALUES", values)
        monkeypatch.setattr(reader, "VALUES", values)
        same(audio.load(samples, rate), whole, 2e-6)
        same(audio.load(bytes_of(np.stack([samples, samples], 1), rate, subtype="FLOAT")), whole, 2e-6)


@pytest.mark.parametrize("format, subtype", [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")])
def test_decoding_in_blocks_equals_the_whole(tmp_path, monkeypatch, format, subtype):
    random = np.random.default_rng(0)
    path = write(tmp_path / "a", random.uniform(-0.3, 0.3, (100_000, 2)), 44100, format, subtype)
    whole = torch.from_numpy(soundfile.read(path, dtype="float32")[0].mean(1))
    monkeypatch.setattr(audio, "VALUES", 10_000)
    same(audio.load(path), audio.resample(whole, 44100), 2e-6)


@pytest.mark.parametrize("format, subtype", [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("MP3", "MPEG_LAYER_III")])
def test_memory_is_made_for_the_sound_that_is_there(tmp_path, monkeypatch, format, subtype):
    """To fill 4 MiB takes longer than to read a short recording."""
    path, made, full = write(tmp_path / "a", speech(2), 16000, format, subtype), [], np.full
    monkeypatch.setattr(np, "full", lambda shape, *how, **more: made.append(shape) or full(shape, *how, **more))
    assert len(audio.load(path)) >= 32_000
    assert 32_000 <= sum(shape[0] for shape in made if type(shape) is tuple) < 80_000


def test_blocks(tmp_path):
    path = write(tmp_path / "a.wav", speech(3.3), 16000, "WAV", "FLOAT")
    for seconds, lengths in [(1, [16000] * 3 + [4800]), (1.1, [17600] * 3), (30.0, [52800]), (1e9, [52800])]:
        parts = list(audio.blocks(path, seconds=seconds))
        assert [len(part) for part in parts] == lengths
        same(torch.cat(parts), audio.load(path))
    for seconds in (0, -1, 1e-9, float("nan"), float("inf")):
        with pytest.raises(OptionError, match="seconds"):
            next(audio.blocks(path, seconds=seconds))


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("minutes", [8, 40])
def test_memory_does_not_grow_with_length(tmp_path, minutes):
    """8 minutes of stereo are 170 MB as float32, and their result 31 MB; what is read at any time is 4 MiB, as of 2
    minutes."""
    for name, length in (("short", 2), ("long", minutes)):
        with open(tmp_path / name, "wb") as file:  # 8-bit, 44.1 kHz, sparse on disk
            size = 44100 * 2 * 60 * length
            file.write(
                struct.pack(
                    "<4sI4s4sIHHIIHH4sI",
                    b"RIFF",
                    size + 36,
                    b"WAVE",
                    b"fmt ",
                    16,
                    1,
                    2,
                    44100,
                    88200,
                    2,
                    8,
                    b"data",
                    size,
                )
            )
            file.truncate(44 + size)
    (_, before), (read, after) = measured(
        "from glmasr import audio\nfor name in sys.argv[1:]: print(sum(map(len, audio.blocks(name))), peak())",
        tmp_path / "short",
        tmp_path / "long",
    )
    assert read == 60 * minutes * 16000
    assert after - before < 20e6, (before, after)  # pieces that the allocator keeps are 16 MB


# ---- log-mel ------------------------------------------------------------------------------------------------------------


def click():
    samples = np.zeros(160_000, np.float32)
    samples[80_001] = 1
    return samples


CLIPS = {
    **{f"speech {seconds} s": lambda seconds=seconds: speech(seconds) for seconds in (0.1, 1.0, 9.97, 30.0, 35.0)},
    "silence": lambda: np.zeros(48_000, np.float32),
    "click": click,
    "tone": lambda: tone(1000, 16000, 3, 1.0).astype(np.float32),
    "noise": lambda: np.random.default_rng(0).uniform(-1, 1, 80_000).astype(np.float32),
    "faint": lambda: speech(3) * np.float32(1e-4),
    "one sample": lambda: np.ones(1, np.float32),
}
EXAMPLES = [
    path
    for path in sorted((Path(__file__).parent.parent / "examples").glob("**/*"))
    if path.suffix.lower() in (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".au", ".caf")
]


def published_log_mel(samples, bands):
    transformers = pytest.importorskip("transformers")
    extractor = transformers.WhisperFeatureExtractor(feature_size=bands, chunk_length=30)
    parts = [samples[start : start + 480_000] for start in range(0, len(samples), 480_000)]
    return torch.cat([extractor(part, sampling_rate=16000, return_tensors="pt").input_features for part in parts])


@pytest.mark.parametrize("bands", [80, 128])
@pytest.mark.parametrize("clip", CLIPS)
def test_log_mel_is_the_published_one(clip, bands):
    samples = CLIPS[clip]()
    same(audio.log_mel(audio.windows(torch.from_numpy(samples)), bands), published_log_mel(samples, bands), 1e-5)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_log_mel_of_the_examples(path):
    samples = audio.load(path)
    same(audio.log_mel(audio.windows(samples), 128), published_log_mel(samples.numpy(), 128), 1e-5)


def test_log_mel_shapes_and_rows():
    rows = torch.stack([torch.from_numpy(speech(1)), torch.from_numpy(speech(1, seed=1)) * 1e-3])
    mel = audio.log_mel(rows)
    assert mel.shape == (2, 128, 100) and mel.dtype == torch.float32
    for row, one in zip(rows, mel):  # the loud row does not lift the floor of the faint one
        same(audio.log_mel(row)[0], one, 1e-6)
        assert one.max() - one.min() <= 2.0001  # 80 dB: 8 orders of magnitude, divided by 4
    for length in (201, 319, 320, 479, 480_000):
        assert audio.log_mel(torch.zeros(length), 80).shape == (1, 80, length // 160)
    with pytest.raises(AudioError, match="200 samples are too few"):
        audio.log_mel(torch.zeros(200))
    assert torch.all(audio.log_mel(torch.zeros(3, 16000)) == -1.5)


def test_mel_filters_by_definition():
    for bands in (80, 128):
        filters = audio.mel_filters(bands)
        assert filters.shape == (bands, 201) and filters.dtype == torch.float32
        assert (filters >= 0).all() and (filters.sum(1) > 0).all()  # no band is empty
        assert audio.mel_filters(bands) is filters  # cached
        mels = np.linspace(0, 15 + 27 * np.log(8) / np.log(6.4), bands + 2)
        edges = [mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27) for mel in mels]
        for band in (0, 1, bands // 3, bands // 2, bands - 1):
            low, center, high = edges[band : band + 3]
            expected = np.interp(np.arange(201) * 40, [low, center, high], [0, 2 / (high - low), 0])
            assert np.abs(filters[band].numpy() - expected).max() < 1e-8
        assert (filters[bands // 2 :].sum(1) * 40 - 1).abs().max() < 0.2  # Slaney norm: area 1 in Hz
    assert audio.mel_filters(128)[:, 0].max() == 0  # nothing at 0 Hz


def test_windows():
    samples = torch.arange(1.0, 11.0)
    assert audio.windows(samples, 4).tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 0, 0]]
    assert audio.windows(samples, 5).tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
    assert audio.windows(samples[:0], 4).tolist() == [[0, 0, 0, 0]]
    assert audio.windows(torch.zeros(480_001)).shape == (2, 480_000)
    same(audio.windows(samples[::3], 4), torch.tensor([[1.0, 4, 7, 10]]))


# ---- files that are longer than their header says -----------------------------------------------------------------------


def joined(format, subtype, times, seconds=3.0):
    """The bytes of `times` files, one behind the other."""
    file = io.BytesIO()
    sound = np.random.default_rng(0).normal(0, 0.05, int(seconds * 16_000)).astype(np.float32)
    soundfile.write(file, sound, 16_000, format=format, subtype=subtype)
    return file.getvalue() * times


def unfinished():
    """A WAV as a recorder leaves it that was switched off."""
    whole = bytearray(joined("WAV", "PCM_16", 1))
    whole[40:44] = bytes(4)
    return bytes(whole)


def sun(length):
    """An AU whose header states another length."""
    whole = bytearray(joined("AU", "PCM_16", 1))
    struct.pack_into(">I", whole, 8, length)
    return bytes(whole)


LONGER = {
    "two MP3": (lambda: joined("MP3", "MPEG_LAYER_III", 2), 6.0),
    "WAV without a length": (unfinished, 3.0),
    **{
        f"AU of {length:#x} without a length": (lambda length=length: sun(length), 3.0) for length in (0, 1, 0x7FFFFFFF)
    },
}


@needs("ffmpeg")
@pytest.mark.parametrize("name", LONGER)
def test_files_longer_than_their_header_says_are_read_to_the_end(name):
    make, seconds = LONGER[name]
    warnings = []
    assert len(audio.load(make(), warn=warnings.append)) / 16_000 == pytest.approx(seconds, abs=0.2) and warnings == []


@needs("ffmpeg")
@pytest.mark.parametrize("length", [-1, 0, 2**62])
def test_a_caf_without_a_length_is_read_by_ffmpeg(length):
    """-1 is up to the end of the file, which libsndfile doesn't know."""
    content = bytearray(FILES["CAF"])
    struct.pack_into(">q", content, content.find(b"data") + 4, length)
    same(audio.load(bytes(content)), audio.load(FILES["CAF"]))


@pytest.mark.parametrize("name", LONGER)
def test_without_ffmpeg_it_is_said_that_something_is_lost(monkeypatch, name):
    monkeypatch.setenv("PATH", "")
    warnings = []
    try:
        assert len(audio.load(LONGER[name][0](), warn=warnings.append)) / 16_000 == pytest.approx(3.0, abs=0.2)
    except AudioError as error:
        assert "holds no samples" in str(error) and name.endswith("without a length")
    [warning] = warnings
    assert "what follows is lost: install ffmpeg" in warning


@pytest.mark.parametrize("seconds", [0.5, 7.0])
@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
def test_the_frames_of_an_mp3_are_counted(tmp_path, seconds, rate):
    soundfile.write(tmp_path / "a.mp3", np.random.default_rng(0).normal(0, 0.05, int(seconds * rate)), rate)
    assert formats.mpeg_seconds(tmp_path / "a.mp3") == pytest.approx(seconds, abs=0.3)
    tagged = b"ID3\x04\0\0\0\0\x10\0" + bytes(2048) + (tmp_path / "a.mp3").read_bytes() + b"TAG" + bytes(125)
    (tmp_path / "a.mp3").write_bytes(tagged)
    assert formats.mpeg_seconds(tmp_path / "a.mp3") == pytest.approx(seconds, abs=0.3)


def test_the_frames_of_an_mp3_are_counted_in_pieces(tmp_path, monkeypatch):
    """Whatever lies between them, and wherever the pieces that are read at once end."""
    frames = joined("MP3", "MPEG_LAYER_III", 1)
    seconds = formats.mpeg_seconds(write_bytes(tmp_path / "a", frames))
    assert seconds == pytest.approx(3.0, abs=0.2)
    for size in (2, 17, 2**20):
        monkeypatch.setattr(formats, "VALUES", size)
        for junk in (
            bytes(10_000),
            bytes(4095) + b"\xff",
            b"\xff" * 5000,
            b"\xff\xfa\x90",
            b"",
            b"ID3\4\0\0\0\0\x10\0" + b"\xff" * 2048,
        ):
            content = frames + junk + frames + junk[:3]
            assert formats.mpeg_seconds(write_bytes(tmp_path / "a", content)) == pytest.approx(2 * seconds, abs=0.1)


@needs_proc
@pytest.mark.parametrize("count", [2000, pytest.param(8000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_frames_of_an_mp3(tmp_path, count):
    """25 MB of them, or 100, counted in a second."""
    write_bytes(tmp_path / "a.mp3", joined("MP3", "MPEG_LAYER_III", 1) * count)
    [[before, seconds, after]] = measured(
        "from glmasr.audio_files import formats; print(peak(), formats.mpeg_seconds(sys.argv[1]), peak())",
        tmp_path / "a.mp3",
    )
    assert seconds > 2.9 * count and after - before < 8e6


def write_bytes(path, content):
    path.write_bytes(content)
    return path


# ---- several recordings in one file --------------------------------------------------------------------------------------

ENDING = {name: content for name, content in FILES.items() if name != "MP3"} | {
    "Opus": bytes_of(speech(2), format="OGG", subtype="OPUS")
}


@pytest.mark.parametrize("first", ENDING)
def test_all_recordings_of_a_file_are_read(monkeypatch, first):
    monkeypatch.setenv("PATH", "")
    for second, content in ENDING.items():
        warnings = []
        read = audio.load(ENDING[first] + content, warn=warnings.append)
        assert warnings == [], second
        same(read, torch.cat([audio.load(ENDING[first]), audio.load(content)]))


def test_recordings_of_other_rates_and_channels():
    a, b = speech(1), 0.5 * speech(2, seed=1)
    content = bytes_of(a) + bytes_of(np.stack([b, b], 1)) + bytes_of(np.repeat(b, 3), 48_000) + bytes_of(a)
    read = audio.load(content)
    assert len(read) == (1 + 2 + 2 + 1) * 16_000
    same(read[:16_000], read[-16_000:])
    same(read[16_000:48_000], torch.from_numpy(b), 2.0**-14)
    with pytest.raises(AudioError, match="longer than 5 s"):
        audio.load(content, max_duration=5)


def chunk(name, content):
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


@pytest.mark.parametrize(
    "tail",
    [
        chunk(b"LIST", b"INFO" + chunk(b"ISFT", b"Lavf\0")),
        chunk(b"id3 ", b"ID3\3\0\0\0\0\0\0"),
        chunk(b"bext", bytes(603)),
        bytes(5000),
        b"\0",
        b"ID3\3\0\0\0\0\1\0" + bytes(128),
        b"TAG" + bytes(125),
        chunk(b"JUNK", bytes(2**20 + 1)),
    ],
)
@pytest.mark.parametrize("odd", [0, 1])
def test_what_lies_behind_the_sound_of_a_wav_is_no_recording(tail, odd):
    wav, warnings = bytes_of(speech(0.5)[: 8000 - odd], subtype="PCM_U8"), []
    same(audio.load(wav + tail, warn=warnings.append), audio.load(wav))
    assert warnings == [] and len(audio.load(wav + tail + wav)) == 2 * (8000 - odd)  # nor does it hide one


def test_a_second_recording_that_cannot_be_read_is_said_to_be_lost():
    warnings, wav = [], FILES["WAV"]
    broken = wav[:22] + b"\0\0" + wav[24:]
    same(audio.load(wav + broken + wav, warn=warnings.append), torch.cat(2 * [audio.load(wav)]))
    assert warnings == [
        f"the recording in memory: recording 2 in this file, which begins at byte {len(wav)}, is lost (Channel count is zero): "
        "cut the file in two there"
    ]


@pytest.mark.parametrize("format", ENDING)
def test_forged_sizes_lead_nowhere(monkeypatch, format):
    """Whatever a header says of where the sound ends: no other exception, and no endless search."""
    monkeypatch.setenv("PATH", "")
    random = np.random.default_rng(0)
    for place in range(4, 80):
        content = bytearray(ENDING[format][:4000])
        content[place : place + 8] = random.choice([b"\xff" * 8, b"\x7f" + b"\xff" * 7, bytes(8), random.bytes(8)])
        try:
            audio.load(bytes(content), warn=str)
        except AudioError:
            pass


def test_forged_recordings_are_not_read_over_and_over(monkeypatch):
    """Each of a thousand seems to go on up to the end of the file."""
    content, at, read = FILES["FLAC"] + 999 * b"fLaC\0\0\0\x22" + bytes(2**20), formats.read_at, []

    def counted(*arguments):
        read.append(len(at(*arguments)))
        return at(*arguments)

    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(formats, "read_at", counted)
    monkeypatch.setattr(sound_files, "read_at", counted)
    same(audio.load(content, warn=str), audio.load(FILES["FLAC"]))
    assert sum(read) < 300 * len(content)


# ---- two channels ---------------------------------------------------------------------------------------------------------


def stereo(left, right):
    return np.stack([left, right], 1).astype(np.float32)


def later(samples, count):
    return np.concatenate([np.zeros(count, np.float32), samples[:-count]])


@pytest.mark.parametrize("gain", [1.0, 0.95, 1.05, 0.6])
@pytest.mark.parametrize("seconds", [0.2, 0.3, 1.1, 12.0])
def test_a_channel_is_taken_where_two_cancel(gain, seconds):
    voice, warnings = np.tile(speech(1), 12)[3000:][: round(seconds * 16_000)], []
    read = audio.load(stereo(voice, -gain * voice), 16_000, warn=warnings.append)
    same(read, torch.from_numpy(voice if gain <= 1 else -np.float32(gain) * voice), 1e-6)
    [warning] = warnings
    assert (
        f"in opposite phase, so that their mean would be next to silence; the {'left' if gain <= 1 else 'right'} one"
        in warning
    )


def test_where_the_phase_changes(monkeypatch):
    """Silence, then opposite for 10 s, then alike: in blocks of any size, and said once."""
    voice = speech(10) + np.float32(0.01) * np.random.default_rng(0).standard_normal(160_000).astype(np.float32)
    silence = np.zeros(48_000, np.float32)
    left, right = np.concatenate([silence, voice, voice, voice]), np.concatenate([silence, -voice, voice, -voice])
    found = []
    for values in (2**20, 30_000):
        monkeypatch.setattr(audio, "VALUES", values)
        monkeypatch.setattr(reader, "VALUES", values)
        warnings = []
        found.append(audio.load(stereo(left, right), 16_000, warn=warnings.append))
        same(found[-1], torch.from_numpy(left), 1e-6)
        [warning] = warnings
        assert "opposite phase from 3.0 s on" in warning
    same(*found)


MEANS = {
    "one channel silent": lambda v: stereo(v, 0 * v),
    "alike": lambda v: stereo(v, v),
    "softer": lambda v: stereo(v, 0.1 * v),
    "two voices": lambda v: stereo(v, speech(20, seed=1)),
    "a voice, then another": lambda v: stereo(v * (v > 0), speech(20, seed=1) * (v < 0)),
    **{f"{count} samples later": lambda v, count=count: stereo(v, later(v, count)) for count in (1, 4, 8, 16, 24, 40)},
    "hum in opposite phase": lambda v: stereo(v + hum(), v - hum()),
    "direct current in opposite phase": lambda v: stereo(v + 0.5, v - 0.5),
    "noise": lambda v: np.random.default_rng(0).standard_normal((320_000, 2)).astype(np.float32) * 0.1,
    "wide": lambda v: stereo(v + 0.7 * melody(20), v - 0.7 * melody(20)),
    "silence": lambda v: stereo(0 * v, 0 * v),
    "a tone half a wave apart for 1.5 s": lambda v: stereo(v + beep(1), v + beep(-1)),
}


def hum():
    return np.tile(tone(50, 16_000, 1.0, 0.3), 20).astype(np.float32)


def beep(sign):
    return sign * np.concatenate([np.zeros(80_000), tone(500, 16_000, 1.5, 0.9), np.zeros(216_000)]).astype(np.float32)


@pytest.mark.parametrize("name", MEANS)
def test_the_mean_of_ordinary_stereo_stays(name):
    samples, warnings = MEANS[name](speech(20)), []
    same(audio.load(samples, 16_000, warn=warnings.append), torch.from_numpy(samples).mean(1), 1e-6)
    assert warnings == []


def test_no_number_hides_in_the_other_channel():
    samples = stereo(speech(4), -speech(4))
    samples[50_000, 1] = np.nan
    with pytest.raises(AudioError, match="sample 50000 is NaN"):
        audio.load(samples, 16_000, warn=str)


# ---- the clock of a file, and its tracks ----------------------------------------------------------------------------------


def made(path, *arguments):
    """What ffmpeg makes of tones of 500 Hz (input 0) and 1000 Hz (1), silence (2) and a picture (3), 6 s each."""
    inputs = ["sine=500:d=6:r=16000", "sine=1000:d=6:r=16000", "anullsrc=r=16000:cl=mono:d=6", "color=s=64x64:r=5:d=6"]
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-y",
        *(part for source in inputs for part in ("-f", "lavfi", "-i", source)),
        *arguments,
        path,
    ]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


def heard(samples):
    """(begin, end) in seconds of each stretch with sound."""
    loud = (samples[: len(samples) // 160 * 160].view(-1, 160).abs().amax(1) > 0.02).tolist()
    edges = [
        place
        for place in range(len(loud) + 1)
        if (place < len(loud) and loud[place]) != (place > 0 and loud[place - 1])
    ]
    return [(begin / 100, end / 100) for begin, end in zip(edges[::2], edges[1::2], strict=True)]


LATE = ["-map", "3", "-map", "0:a", "-c:v", "mpeg4", "-filter:a", "atrim=start=2.5"]


@needs("ffmpeg")
@pytest.mark.parametrize(
    "ending, more", [("mp4", []), ("mkv", []), ("mov", []), ("ts", []), ("ts", ["-output_ts_offset", "1000"])]
)
def test_sound_that_begins_later_than_the_picture(tmp_path, ending, more):
    read = audio.load(made(tmp_path / f"a.{ending}", *LATE, *more))
    [(begin, end)] = heard(read)
    assert begin == pytest.approx(2.5, abs=0.08) and end == pytest.approx(6.0, abs=0.1)


@needs("ffmpeg")
@pytest.mark.parametrize("ending", ["mp4", "m4a", "mkv", "mov", "ts", "wv"])
def test_sound_that_begins_with_the_file_is_what_ffmpeg_gives(tmp_path, ending):
    """Padding of encoders and the clocks of packets change nothing; nor does a picture that begins later."""
    picture = ["-filter:v", "trim=start=2", "-map", "3", "-c:v", "mpeg4"] if ending in ("mp4", "mkv", "mov") else []
    path = made(tmp_path / f"a.{ending}", "-map", "0:a", *picture)
    raw = subprocess.run(
        ["ffmpeg", "-nostdin", "-v", "error", "-i", path, "-map", "0:a:0", "-f", "f32le", "-"],
        capture_output=True,
        check=True,
    ).stdout
    same(audio.load(path), torch.frombuffer(bytearray(raw), dtype=torch.float32))


@needs("ffmpeg")
@pytest.mark.parametrize("ending", ["mka", "mp4", "ts"])
def test_packets_that_are_missing(tmp_path, ending):
    path = made(tmp_path / f"a.{ending}", "-map", "0:a", "-c:a", "aac", "-filter:a", "aselect='not(between(t,2,4.5))'")
    read = audio.load(path)
    [(_, begin), (end, last)] = heard(read)
    assert (begin, end, last) == pytest.approx((2.0, 4.5, 6.0), abs=0.15) and len(read) == pytest.approx(
        6 * 16_000, abs=2000
    )


@needs("ffmpeg")
def test_a_clock_that_jumps_loses_no_sound(tmp_path):
    """Back, or by more than can be missing."""
    parts = [
        made(tmp_path / f"{offset}.ts", "-map", "0:a", "-output_ts_offset", str(offset)).read_bytes()
        for offset in (3000, 10, 20_000)
    ]
    read = audio.load(b"".join(parts))
    assert len(read) == pytest.approx(18 * 16_000, abs=9000) and sum(end - begin for begin, end in heard(read)) > 17.5


TRACKS = [
    "-map",
    "2:a",
    "-map",
    "1:a",
    "-map",
    "0:a",
    "-metadata:s:a:1",
    "language=eng",
    "-metadata:s:a:2",
    "language=chi",
    "-c:a",
    "aac",
]


def pitch(samples):
    return round(float(torch.fft.rfft(samples[:16_000]).abs().argmax()), -1)


@needs("ffmpeg")
@pytest.mark.parametrize("ending", ["mkv", "ts"])
def test_tracks(tmp_path, ending):
    path, warnings = made(tmp_path / f"a.{ending}", *TRACKS), []
    for track, expected in ((2, 1000), ("eng", 1000), ("en", 1000), ("ENG", 1000), (3, 500), ("zh", 500), ("zho", 500)):
        assert pitch(audio.load(path, track=track, warn=warnings.append)) == expected
    assert warnings == []
    for track in (4, "deu"):
        with pytest.raises(
            AudioError,
            match=rf"has no track {track}; expected one of 1.*, 2 \(eng.*\), 3 \(chi.*\): choose one of these",
        ):
            audio.load(path, track=track)
    assert audio.load(path, track=1, warn=warnings.append).abs().max() < 1e-3
    [warning] = warnings
    assert "track 1, which was read, is silent throughout, but track 2 has sound: choose it with --track 2" in warning


@needs("ffmpeg")
def test_the_default_track_is_read(tmp_path):
    path, warnings = made(tmp_path / "a.mkv", *TRACKS, "-disposition:a", "0", "-disposition:a:2", "default"), []
    assert pitch(audio.load(path, warn=warnings.append)) == 500
    assert warnings == [
        f"{path}: has 3 tracks of sound, 1, 2 (eng), 3 (chi, default); track 3 is read: choose another one with --track"
    ]


def test_files_with_one_track():
    for source, rate in ((FILES["WAV"], None), (np.zeros(100), 16_000)):
        assert len(audio.load(source, rate, track=1))
        for track in (2, "eng"):
            with pytest.raises(AudioError, match=f"has no track {track}; it has one"):
                audio.load(source, rate, track=track)
    for track in (0, -1, True, 1.5, "", "english", "1", b"eng"):
        with pytest.raises(OptionError, match="track is .*expected a number from 1 on, or a language"):
            audio.load(FILES["WAV"], track=track)


LISTED = """Input #0, mpegts, from 'a.ts':
  Duration: 01:00:12.50, start: 1.800000, bitrate: 45 kb/s
  Program 1
  Stream #0:3[0x103](eng): Audio: aac (LC), 16000 Hz, mono
  Program 2
    Stream #0:1[0x101](und): Audio: mp2, 48000 Hz, stereo (default)
  Stream #0:3[0x103](eng): Audio: aac (LC), 16000 Hz, mono
    title           : x
                    :   Stream #0:9: Audio: no stream
"""


@pytest.mark.skipif(not os.path.exists("/bin/cat"), reason="needs a shell")
def test_what_ffmpeg_lists(tmp_path, monkeypatch):
    """By program, with one twice, as version 4 and 5 indent it."""
    (tmp_path / "listed").write_text(LISTED)
    fake_ffmpeg(
        tmp_path / "bin", monkeypatch, f"#!/bin/sh\n/bin/cat {tmp_path}/listed >&2; exit 1\n".encode(), patience=20
    )
    found, begin, length = ffmpeg.Ffmpeg("a.ts", "a.ts", "", lambda: False).look()
    assert found == [tracks.Track(1, "", True), tracks.Track(3, "eng", False)] and (begin, length) == (1.8, 3612.5)


# ---- an ffmpeg that misbehaves ------------------------------------------------------------------------------------------


def fake_ffmpeg(folder, monkeypatch, script, patience=0.5):
    """It is the only program on the PATH, so scripts name others in full."""
    folder.mkdir()
    (folder / "ffmpeg").write_bytes(script)
    (folder / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(child_process, "PATIENCE", patience)


@pytest.mark.skipif(not os.path.exists("/bin/sleep"), reason="needs a shell")
@pytest.mark.parametrize(
    "script", [b"/bin/sleep 20", b"exec /bin/sleep 20", b"exec >&-; exec /bin/sleep 20", b"/bin/sleep 20 & exit 0"]
)
def test_the_time_limit_holds_for_all_that_ffmpeg_starts(tmp_path, monkeypatch, script):
    fake_ffmpeg(tmp_path / "bin", monkeypatch, b"#!/bin/sh\n" + script)
    start = time.monotonic()
    with pytest.raises(AudioError, match="the recording in memory: .*ffmpeg says: nothing for 0.5 s, so it was ended"):
        audio.load(b"no sound")
    assert time.monotonic() - start < 5


@pytest.mark.skipif(os.name != "posix", reason="permissions, and a folder that is none")
def test_an_ffmpeg_that_cannot_be_started(tmp_path, monkeypatch):
    fake_ffmpeg(tmp_path / "bin", monkeypatch, b"not a program")
    (tmp_path / "x.m4a").write_bytes(b"no sound")
    with pytest.raises(
        AudioError,
        match=r"x\.m4a: not readable \(.*\), and .*ffmpeg can't be started \(.*Exec format error.*convert it to WAV",
    ):
        audio.load(tmp_path / "x.m4a")
    (tmp_path / "bin" / "ffmpeg").write_bytes(b"#!/bin/sh\n")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(AudioError, match=r"x\.m4a: not readable \(.*\), and .*ffmpeg can't be started \(.*nowhere"):
        audio.load(tmp_path / "x.m4a")


# ---- what must not outlive whoever started it ----------------------------------------------------------------------------


class Sign:
    """A pipe that a fake ffmpeg and all that it starts hold open: whether any of them lives, zombies not counted."""

    SCRIPT = b"#!/bin/sh\nexec 5>%s; echo >&5; /bin/sleep 50 & exec /bin/sleep 50\n"

    def __init__(self, path):
        os.mkfifo(path)
        self.script, self.end = self.SCRIPT % str(path).encode(), os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def wait(self, alive, seconds=20.0) -> float:
        """Until one lives, or none does; the seconds that it took."""
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            try:
                found = os.read(self.end, 1)  # b"": nobody holds it
            except BlockingIOError:  # somebody does, and says nothing
                found = b"" if alive else b"?"
            if bool(found) == alive:
                return time.monotonic() - start
            time.sleep(0.02)
        raise AssertionError("is still there" if not alive else "has not begun")


@pytest.fixture
def sign(tmp_path, monkeypatch):
    for path in ("/bin/sh", "/bin/sleep"):
        if not os.path.exists(path):
            pytest.skip(f"needs {path}")
    sign = Sign(tmp_path / "sign")
    fake_ffmpeg(tmp_path / "bin", monkeypatch, sign.script, patience=60)
    (tmp_path / "x.m4a").write_bytes(b"no sound")
    yield sign
    os.close(sign.end)


@pytest.mark.parametrize(
    "end",
    [
        "killed",
        *(
            pytest.param(end, marks=pytest.mark.slow)
            for end in ("stopped, then killed", "killed with its group", "ends at once")
        ),
    ],
)
def test_ffmpeg_ends_with_the_process_that_started_it(sign, tmp_path, end):
    """Killed as soon as its leash is there, which is started after it."""
    code = """
import os, sys, threading
from glmasr import audio
from glmasr.audio_files.child_process import Child
make = Child.__init__
Child.__init__ = lambda *given, **more: (make(*given, **more), print(flush=True))[0]
threading.Timer(float(sys.argv[2]), os._exit, [3]).start()
audio.load(sys.argv[1])
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "x.m4a", "2" if end == "ends at once" else "60"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        sign.wait(alive=True)
        child.stdout.readline()
        if "stopped" in end:
            child.send_signal(signal.SIGSTOP)
        if "group" in end:
            os.killpg(child.pid, signal.SIGKILL)
        elif "killed" in end:
            child.kill()
        child.wait(20)
        assert sign.wait(alive=False) < 5
    finally:
        child.kill()
        child.stdout.close()


def test_ffmpeg_ends_when_nobody_waits_for_it(sign, tmp_path):
    """While it is silent: nothing was read yet."""
    left = threading.Event()
    threading.Timer(0.5, left.set).start()
    start, threads = time.monotonic(), threading.active_count()
    with pytest.raises(Cancelled):
        list(audio.blocks(tmp_path / "x.m4a", cancelled=left.is_set))
    assert time.monotonic() - start < 3 and sign.wait(alive=False) < 1 and threading.active_count() < threads


def test_ffmpeg_leaves_nothing_behind(tmp_path, monkeypatch, sign):
    """A script that ends, and what it has started doesn't: it holds the output open no longer."""
    script = sign.script.replace(b"& exec /bin/sleep 50", b">&- 2>&- & echo nothing >&2; exit 1")
    (tmp_path / "bin" / "ffmpeg").write_bytes(script)
    with pytest.raises(AudioError, match="ffmpeg says: nothing"):
        audio.load(tmp_path / "x.m4a")
    sign.wait(alive=False)


def test_without_a_shell_ffmpeg_has_no_leash(sign, tmp_path, monkeypatch):
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path != "/bin/sh" and exists(path))
    monkeypatch.setattr(child_process, "PATIENCE", 0.5)
    with pytest.raises(AudioError, match="ffmpeg says: nothing for 0.5 s"):
        audio.load(tmp_path / "x.m4a")
    sign.wait(alive=False)


@pytest.mark.parametrize("source", ["FLAC", "a stream"])
def test_cancelled(source):
    """Between the parts that were decoded; and in a stream that has no end."""
    calls = []

    class Endless(io.RawIOBase):
        def read(self, size):
            return b"RIFF\xff\xff\xff\xffWAVE".ljust(size, b"\x55")[:size]

    def cancelled():
        calls.append(1)
        return len(calls) > 3

    opened = FILES["FLAC"] if source == "FLAC" else Endless()
    with pytest.raises(Cancelled):
        for _ in audio.blocks(opened, cancelled=(lambda: True) if source == "FLAC" else cancelled):
            pass
    assert source == "FLAC" or len(calls) == 4


# ---- what libmpg123 has to say ---------------------------------------------------------------------------------------------


def layer3(seconds=3.0):
    return bytes_of(speech(seconds), format="MP3", subtype="MPEG_LAYER_III")


def damaged(content):
    random, content = np.random.default_rng(0), bytearray(content)
    for place in random.integers(1000, len(content), 100):
        content[place] = random.integers(256)
    return bytes(content)


def odd_tags(count):
    """ID3 tags whose length is no length, and one with frames in an encoding that there is not."""
    frame = b"TXXX\0\0\0\x05\0\0\x09abcd"
    return (
        b"ID3\4\0\0\0\0"
        + bytes([len(frame) * 8 >> 7, len(frame) * 8 & 127])
        + frame * 8
        + b"ID3\4\0\0\0\0\0\x01x" * count
    )


# What an MP3 is, and how often it has to be said that sound is lost, without an ffmpeg that reads on. None: it is
# refused.
REMARKED = {
    "whole": (layer3, 0),
    "two, one behind the other": (lambda: layer3() + layer3(2.0), 1),
    "cut off": (lambda: layer3()[:-4000], 1),
    "junk in the middle": (lambda: layer3()[:5000] + bytes(3000) + layer3()[5000:], 1),
    "damaged frames": (lambda: damaged(layer3()), 1),
    "odd tags in front": (lambda: odd_tags(6) + layer3(), None),
    "odd tags in the middle": (lambda: layer3()[:5000] + odd_tags(9000) + layer3()[5000:], 1),
    "a tag with 10,000 odd frames": (
        lambda: b"ID3\4\0\0\0\x09\x13\x70" + b"TXXX\0\0\0\x05\0\0\x09abcd" * 10_000 + layer3(),
        0,
    ),
}
hushed = pytest.mark.skipif(
    "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", ()), reason="needs the GNU C library"
)


@hushed
@pytest.mark.parametrize("kind", REMARKED)
def test_remarks_of_libmpg123_reach_nobody(capfd, monkeypatch, kind):
    monkeypatch.setenv("PATH", "")
    (make, count), warnings = REMARKED[kind], []
    content = make()
    if count is None:
        with pytest.raises(AudioError):
            audio.load(content)
    else:
        audio.load(content, warn=warnings.append)
    assert capfd.readouterr() == ("", "") and len(warnings) == (count or 0), warnings
    soundfile.read(io.BytesIO(content)) if kind == "two, one behind the other" else None
    assert bool(capfd.readouterr().err) == (
        kind == "two, one behind the other"
    )  # it does make them, and is heard again


@hushed
def test_what_others_say_meanwhile_is_not_lost(capfd, monkeypatch):
    monkeypatch.setenv("PATH", "")
    content, ended, said = REMARKED["odd tags in the middle"][0](), threading.Event(), []

    def talk():
        while not ended.is_set():
            os.write(2, b"a line\n")
            said.append(1)
            time.sleep(0.001)

    talker = threading.Thread(target=talk)
    readers = [threading.Thread(target=audio.load, args=[content], kwargs={"warn": str}) for _ in range(4)]
    talker.start()
    for thread in readers:
        thread.start()
    for thread in readers:
        thread.join()
    ended.set()
    talker.join()
    assert capfd.readouterr().err == "a line\n" * len(said)


@hushed
@pytest.mark.slow
@pytest.mark.parametrize("closed", [False, True])
def test_remarks_of_libmpg123_in_a_process_of_its_own(tmp_path, closed):
    (tmp_path / "a.mp3").write_bytes(REMARKED["odd tags in the middle"][0]())
    code = "import sys; from glmasr import audio; print(len(audio.load(sys.argv[1], warn=print)) > 8000)"
    close = (lambda: os.close(2)) if closed else None
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.mp3"],
        env=os.environ | {"PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=close,
    )
    assert (done.returncode, done.stderr, done.stdout.splitlines()[-1:]) == (0, "", ["True"]) and len(
        done.stdout.splitlines()
    ) == 2


@needs("ffmpeg")
@pytest.mark.parametrize(
    "kind, count", [("junk in the middle", 0), ("odd tags in the middle", 0), ("two, one behind the other", 0)]
)
def test_ffmpeg_reads_on_where_libmpg123_stops(kind, count):
    warnings = []
    assert (
        len(audio.load(REMARKED[kind][0](), warn=warnings.append)) / 16_000
        == pytest.approx(5.1 if "two" in kind else 3.0, abs=0.15)
        and len(warnings) == count
    )


@needs("ffmpeg")
def test_sound_that_ffmpeg_cannot_find_either_is_said_to_be_lost():
    content, warnings = bytearray(layer3(6.0)), []
    content[8000:16000] = bytes(8000)
    assert len(audio.load(bytes(content), warn=warnings.append)) < 5.5 * 16_000
    [warning] = warnings
    assert "(6.0 s expected); parts of it are damaged" in warning


def test_a_warning_that_nobody_takes_escapes_the_name(tmp_path):
    path = write_bytes(tmp_path / "a\x1b[2J.flac", bytes_of(speech(2), format="FLAC")[:-4000])
    with pytest.warns(UserWarning, match=r"a\\x1b\[2J\.flac: breaks off after"):
        audio.load(path)
