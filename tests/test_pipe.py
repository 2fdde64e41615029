"""Pipes: what comes through one is recognized before it ends, and in the end it is as if it had been a file."""

import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.sounds import bytes_of, speech

import glmasr
from glmasr import audio
from glmasr.audio_files import pipe
from glmasr.audio_files.pipe import Pipe, piped
from glmasr.errors import AudioError
from glmasr.pipeline import Options, Part

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
RATE = 16_000
SECONDS = 12.0


@pytest.fixture(autouse=True)
def soon(monkeypatch, tmp_path):
    monkeypatch.setattr(pipe, "AT_ONCE", 0.05)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


@pytest.fixture(scope="module")
def sound():
    return speech(SECONDS)


class Fed:
    """A named pipe that gives the first `early` bytes, and the others once `go_on` is set."""

    def __init__(self, path, content, early):
        self.path, self.go_on, self.content, self.early = path, threading.Event(), content, early
        os.mkfifo(path)
        self.thread = threading.Thread(target=self.write, daemon=True)
        self.thread.start()

    def write(self):
        try:
            with open(self.path, "wb", buffering=0) as file:
                for place in range(0, self.early, 4096):
                    file.write(self.content[place : min(place + 4096, self.early)])
                self.go_on.wait(60)
                file.write(self.content[self.early :])
        except BrokenPipeError:
            pass


def through(path, content, early=None, wait=10.0, **more):
    """Blocks of a pipe: those that came before its last part was written, and the others."""
    fed, found, before = Fed(path, content, len(content) * 3 // 4 if early is None else early), [], 0
    timer = threading.Timer(wait, fed.go_on.set)  # where nothing comes before
    timer.start()
    for block in audio.blocks(piped(path), **more):
        found.append(block)
        before += not fed.go_on.is_set()
        if sum(map(len, found)) >= 5 * RATE:
            fed.go_on.set()
    timer.cancel()
    fed.thread.join()
    return before, torch.cat(found)


def made(sound, form, *options):
    """The bytes of a file in a format that ffmpeg writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, f"sound.{form}")
        command = ["ffmpeg", "-v", "error", "-i", "pipe:0", *options, path]
        if subprocess.run(command, input=bytes_of(sound)).returncode:
            pytest.skip("this ffmpeg can't write it")
        with open(path, "rb") as file:
            return file.read()


@pytest.mark.parametrize(
    "rate, channels, subtype", [(16_000, 1, "PCM_16"), (16_000, 2, "FLOAT"), (16_000, 1, "PCM_24")]
)
def test_a_wav_comes_sample_by_sample(sound, tmp_path, rate, channels, subtype):
    content = bytes_of(np.stack([sound] * channels, 1), rate, subtype=subtype)
    before, found = through(tmp_path / "pipe", content)
    assert before >= 5 and torch.equal(found, audio.load(content))
    assert not os.listdir(tempfile.tempdir)


@needs_ffmpeg
@pytest.mark.parametrize("form", ["flac", "ogg", "mp3", "webm", "mpegts", "aac"])
def test_other_formats_come_through_ffmpeg(sound, tmp_path, form):
    content = made(sound, {"mpegts": "ts"}.get(form, form), *(["-c:a", "libopus"] if form == "webm" else []))
    (tmp_path / "file").write_bytes(content)
    before, found = through(tmp_path / "pipe", content)
    expected = audio.load(tmp_path / "file")
    assert before >= 4 and len(found) == pytest.approx(len(expected), abs=0.03 * RATE)
    if form == "flac":
        assert torch.equal(found, expected)
    count = min(len(found), len(expected))
    assert (found[:count] - expected[:count]).square().mean() < 0.01 * expected.square().mean()


@needs_ffmpeg
def test_what_has_its_index_at_its_end_waits_for_it(sound, tmp_path):
    content = made(sound, "mp4", "-c:a", "aac")
    assert content.index(b"moov") > len(content) // 2
    before, found = through(tmp_path / "pipe", content, wait=1.0)
    assert before == 0 and torch.equal(found, audio.load(content))


def test_without_ffmpeg_others_wait_for_their_end(sound, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    content = bytes_of(sound, format="FLAC")
    before, found = through(tmp_path / "pipe", content, wait=1.0)
    assert before == 0 and torch.equal(found, audio.load(content))


def stated(content, size):
    place = content.index(b"data") + 4
    return content[:place] + struct.pack("<I", size) + content[place + 4 :]


@pytest.mark.parametrize("kind", ["cut off", "two files", "more than stated", "not stated", "zero", "junk after it"])
def test_what_its_file_would_say(sound, tmp_path, kind):
    """The same samples, and the same warnings."""
    content = bytes_of(sound)
    content = {
        "cut off": content[:-100_000],
        "two files": content + bytes_of(speech(1.0, seed=3), 8000),
        "more than stated": stated(content, 200_000),
        "not stated": stated(content, 0xFFFFFFFF),
        "zero": stated(content, 0),
        "junk after it": content + b"LIST\x04\0\0\0abcd",
    }[kind]
    if kind == "zero" and shutil.which("ffmpeg") is None:
        pytest.skip("needs ffmpeg")
    (tmp_path / "file").write_bytes(content)
    warnings, expected = [], []
    _, found = through(tmp_path / "pipe", content, wait=2.0, warn=warnings.append)
    same = audio.load(tmp_path / "file", warn=expected.append)
    assert torch.equal(found, same)
    assert warnings == [text.replace(str(tmp_path / "file"), str(tmp_path / "pipe")) for text in expected]
    assert bool(expected) == (kind == "cut off")


def test_limits(sound, tmp_path):
    content = bytes_of(sound)
    with pytest.raises(AudioError, match=r"pipe: is longer than 4 s"):
        through(tmp_path / "pipe", content, wait=0.5, max_duration=4.0)
    with pytest.raises(AudioError, match=r"other: is empty"):
        through(tmp_path / "other", b"", wait=0.5)
    with pytest.raises(AudioError, match=r"text: not (a readable recording|readable) "):
        through(tmp_path / "text", b"this is a text, and no sound\n" * 9000, wait=0.5)
    assert not os.listdir(tempfile.tempdir)


def test_whoever_stops_early_leaves_nothing_behind(sound, tmp_path):
    threads = threading.active_count()
    fed = Fed(tmp_path / "pipe", bytes_of(sound), 200_000)
    blocks = audio.blocks(Pipe(tmp_path / "pipe", "it"))
    assert len(next(blocks)) == RATE
    blocks.close()
    assert not os.listdir(tempfile.tempdir)
    fed.go_on.set()
    fed.thread.join(20)
    assert threading.active_count() == threads


def test_what_is_no_pipe_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "a.wav").write_bytes(bytes_of(speech(0.2)))
    for source in (str(tmp_path / "a.wav"), "nothing", b"RIFF", np.zeros(3), 5, "a\0b"):
        assert piped(source) is source
    with open(tmp_path / "a.wav") as file:  # `transcribe.py - < a.wav`
        monkeypatch.setattr(sys, "stdin", file)
        assert piped("-") == "-"
    monkeypatch.setattr(sys, "stdin", None)
    assert piped("-") == "-"


@pytest.mark.parametrize("early", [True, False])
def test_windows_are_decoded_when_nothing_follows(tmp_path, early, monkeypatch):
    """Each by itself while the pipe is slow; together where it ends at once."""
    recognizer = glmasr.load("demo", device="cpu", dtype="float32")
    digits = audio.load(ROOT / "examples" / "en.mp3").numpy()
    content, sizes, decode = bytes_of(np.tile(digits, 6)), [], recognizer.windows.decode
    monkeypatch.setattr(
        recognizer.windows, "decode", lambda jobs, *more: sizes.append(len(jobs)) or decode(jobs, *more)
    )
    expected = [part for part in recognizer.stream(content, "en", Options(vad="off")) if part.segments]
    whole, sizes[:] = list(sizes), []
    assert max(whole) == 4
    monkeypatch.setattr(pipe, "AT_ONCE", 0.05 if early else 30.0)
    fed = Fed(tmp_path / "pipe", content, len(content) * 3 // 4 if early else len(content))
    if not early:
        fed.go_on.set()
    found: list[Part] = []
    for part in recognizer.stream(tmp_path / "pipe", "en", Options(vad="off")):
        found += [part] if part.segments else []
        if len(found) == 2 and early:
            assert not fed.go_on.is_set()
            fed.go_on.set()
    assert [part.segments[0].text for part in found] == [part.segments[0].text for part in expected]
    assert early or sizes == whole


def test_the_command_line_does_not_wait_for_the_end():
    digits = audio.load(ROOT / "examples" / "en.mp3").numpy()
    content = bytes_of(np.tile(digits, 3))
    command = [sys.executable, str(ROOT / "transcribe.py"), "-", "--model", "demo", "--lang", "en", "--vad", "off"]
    child = subprocess.Popen(
        [*command, "--threads", "1", "--device", "cpu", "--dtype", "float32"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    timer = threading.Timer(120, child.kill)
    timer.start()
    try:
        child.stdin.write(content[: len(content) * 3 // 4])
        child.stdin.flush()
        first = child.stdout.readline().decode()  # and the pipe is open
        child.stdin.write(content[len(content) * 3 // 4 :])
        out, err = child.communicate(timeout=100)
    finally:
        timer.cancel()
        child.kill()
    assert child.returncode == 0 and first + out.decode() == "five five five zero one three six\n" * 3, err
