"""`--live`: text while somebody speaks, from a pipe, a file, a microphone; on a terminal, in a pipe, into files."""

import errno
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import types
from contextlib import ExitStack

import numpy as np
import pytest
import soundfile
import torch
from helpers import ROOT
from helpers.sounds import bytes_of, speech

import glmasr
import transcribe
from glmasr import audio
from glmasr.audio_files import live_sound
from glmasr.audio_files.pcm import Incoming, Pcm, samples, wav_header
from glmasr.errors import AudioError, CheckpointError
from glmasr.tools import live_console
from glmasr.tools.live_console import Waiting
from glmasr.tools.live_screen import Screen, rows
from glmasr.transcription.results import Segment
from glmasr.writers.line_breaks import width

RATE = 16_000
MODEL = ["--model", "demo", "--device", "cpu", "--dtype", "float32", "--lang", "en", "--vad", "off"]
TEXT = "five five five zero one three six"
posix = pytest.mark.skipif(os.name != "posix", reason="pipes and signals of POSIX")
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")


@pytest.fixture(scope="module")
def recognizer():
    return glmasr.load("demo", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def digits():
    """(S,) int16: seven digits, and a pause after which a segment ends."""
    quiet = np.zeros(RATE, np.int16)
    return np.concatenate([(audio.load(ROOT / "examples" / "en.mp3").numpy() * 32767).astype(np.int16), quiet])


@pytest.fixture
def call(recognizer, monkeypatch, capsys):
    """call(*arguments) -> exit code, lines on standard output, standard error; in this process."""
    monkeypatch.setattr(glmasr, "load", lambda *args, **more: recognizer, raising=False)

    def run(*arguments):
        try:
            code = transcribe.main(["--live", *arguments, *MODEL])
        except SystemExit as leave:
            code = leave.code
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return run


def header(size=0xFFFFFFFF, rate=RATE, channels=1, bits=16, tag=1, before=b""):
    """The beginning of a WAV, as a program writes it that doesn't know how long it will be."""
    form = struct.pack("<HHIIHH", tag, channels, rate, rate * channels * bits // 8, channels * bits // 8, bits)
    riff = struct.pack("<4sI4s4sI", b"RIFF", 0xFFFFFFFF, b"WAVE", b"fmt ", len(form)) + form
    return riff + before + struct.pack("<4sI", b"data", size)


# ---- processes -------------------------------------------------------------------------------------------------------


class Running:
    """A process that is fed through a pipe."""

    def __init__(self, *arguments):
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child would inherit that it is ignored
        self.child = subprocess.Popen(
            [sys.executable, str(ROOT / "transcribe.py"), "--live", "-", *MODEL, "--threads", "1", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        signal.signal(signal.SIGINT, handler)
        self.deadline = threading.Timer(120, self.child.kill)
        self.deadline.start()

    def feed(self, content):
        self.child.stdin.write(content)
        self.child.stdin.flush()

    def line(self):
        return self.child.stdout.readline().decode()

    def taken(self):
        """Waits until the pipe is empty."""
        import fcntl
        import termios

        while struct.unpack("i", fcntl.ioctl(self.child.stdin, termios.FIONREAD, b"\0" * 4))[0]:
            time.sleep(0.01)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.deadline.cancel()
        self.child.kill()
        self.child.communicate()


@posix
def test_lines_come_while_the_pipe_is_open_and_files_are_whole_when_it_is_killed(digits, tmp_path):
    with Running("--format", "srt,vtt,json", "--output-dir", str(tmp_path)) as running:
        running.feed(header())
        for number in (1, 2):
            for start in range(0, len(digits), 3200):
                running.feed(digits[start : start + 3200].tobytes())
            assert running.line() == f"{TEXT}\n"  # and the pipe is open
            while not all((tmp_path / f"live.{form}").exists() for form in ("srt", "vtt", "json")):
                time.sleep(0.01)
        while (tmp_path / "live.json").read_text(encoding="utf-8").count('"start"') < 2:
            time.sleep(0.01)
        running.child.kill()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["live.json", "live.srt", "live.vtt"]
    found = json.loads((tmp_path / "live.json").read_text(encoding="utf-8"))
    assert [segment["text"] for segment in found["segments"]] == [TEXT] * 2 and found["audio"] == "-"
    assert len(re.findall("-->", (tmp_path / "live.srt").read_text(encoding="utf-8"))) >= 2
    assert (tmp_path / "live.vtt").read_text(encoding="utf-8").startswith("WEBVTT\n")


@posix
def test_ctrl_c_ends_the_segment_that_is_being_said(digits, tmp_path):
    with Running("--format", "txt", "--output-dir", str(tmp_path)) as running:
        running.feed(digits.tobytes())  # without a header
        assert running.line() == f"{TEXT}\n"
        running.feed(digits[:-RATE].tobytes())  # no pause ends it
        running.taken()
        running.child.send_signal(signal.SIGINT)
        out, err = running.child.communicate(timeout=60)
        assert (running.child.returncode, out.decode()) == (130, f"{TEXT}\n"), err
        assert err.decode().splitlines()[-1] == "interrupted" and b"Traceback" not in err
    assert (tmp_path / "live.txt").read_text(encoding="utf-8") == f"{TEXT}\n" * 2


# ---- what comes in ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["WAV", "MP3", "OGG"])
def test_a_file(call, kind, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")  # as without --live, these need no ffmpeg
    path = ROOT / "examples" / {"MP3": "en.mp3", "OGG": "en.ogg", "WAV": "en.wav"}[kind]
    if kind == "WAV":
        path = tmp_path / "en.wav"
        soundfile.write(path, audio.load(ROOT / "examples" / "en.mp3").numpy(), RATE)
    code, out, err = call(str(path))
    text = "four two zero seven one nine" if kind == "OGG" else TEXT
    assert (code, out) == (0, [text]) and "1 segment;" in err


@pytest.mark.parametrize("kind", ["NIST", "VOC", "QuickTime"])
def test_a_file_with_an_old_header_is_no_sound_without_one(call, kind, digits, tmp_path):
    path = tmp_path / "old"
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs ffmpeg")
    if kind == "QuickTime":
        soundfile.write(tmp_path / "en.wav", digits, RATE)
        command = ["ffmpeg", "-v", "error", "-i", str(tmp_path / "en.wav"), "-f", "mov", str(path)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        content = path.read_bytes()
        assert content[4:8] == b"ftyp"  # which older ones don't have
        path.write_bytes(content[:4] + b"free" + content[8:])
    else:
        soundfile.write(path, digits, RATE, format=kind, subtype="PCM_16")
    code, out, _ = call(str(path))
    assert (code, out) == (0, [TEXT])


@posix
def test_a_named_pipe(call, digits, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    content = header(0x7FFFF000) + digits.tobytes()
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[content])
    writer.start()
    code, out, err = call(str(tmp_path / "pipe"), "--format", "tsv", "--output-dir", str(tmp_path / "out"))
    writer.join()
    assert (code, out) == (0, [TEXT]) and [path.name for path in (tmp_path / "out").iterdir()] == ["pipe.tsv"]


@posix
def test_standard_input_without_a_header(call, digits, monkeypatch):
    """Two channels, of which the second one is silent, at 8 kHz."""
    narrow = audio.resample(torch.from_numpy(digits.astype(np.float32)), RATE, 8000).numpy().round().astype("<i2")
    read, write = os.pipe()
    writer = threading.Thread(target=lambda: (os.write(write, stereo), os.close(write)))
    stereo = np.stack([narrow, 0 * narrow], 1).tobytes()
    writer.start()
    with open(read, "rb") as file:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
        code, out, err = call("-", "--rate", "8000", "--channels", "2")
    writer.join()
    assert (code, out) == (0, [TEXT])


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "is empty"),
        (b"%PDF-1.7 \xff\0" + bytes(100), "it is a PDF"),
        ("<html>沒有聲音</html>\n".encode() * 400, "it is text"),
        (header(rate=100) + bytes(1000), "sample rate 100 Hz"),
        (header(channels=300, rate=8000) + bytes(6000), "300 channels"),
        (header(bits=32, tag=3) + np.full(5000, np.nan, "<f4").tobytes(), "is NaN or infinite"),
        pytest.param(b"OggS" + bytes(range(256)) * 40, "ffmpeg says: ", marks=needs_ffmpeg),
    ],
)
def test_what_is_no_sound_is_refused(call, tmp_path, content, says):
    (tmp_path / "sound").write_bytes(content)
    code, out, err = call(str(tmp_path / "sound"))
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, out) == (1, []) and len(errors) == 1 and says in errors[0] and "Traceback" not in err


@posix
def test_without_ffmpeg_its_formats_are_refused(call, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")
    os.mkfifo(tmp_path / "pipe")
    content = (ROOT / "examples" / "en.ogg").read_bytes()
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[content[:5000]])
    writer.start()
    code, out, err = call(str(tmp_path / "pipe"))
    writer.join()
    assert (code, out) == (1, []) and "there is no ffmpeg on the PATH" in err


def test_a_file_that_was_cut_off(call, digits, tmp_path):
    soundfile.write(tmp_path / "whole.wav", digits, RATE)
    content = (tmp_path / "whole.wav").read_bytes()
    (tmp_path / "part.wav").write_bytes(content[: len(content) // 2])
    code, out, err = call(str(tmp_path / "part.wav"))
    assert code == 0 and TEXT.startswith(out[0]) and "warning: " in err and "breaks off" in err
    assert "breaks off" not in call(str(tmp_path / "whole.wav"))[2]


def test_what_cannot_be_opened(call, tmp_path):
    for name in (str(tmp_path), str(tmp_path / "nothing.wav")):
        code, out, err = call(name)
        assert (code, out) == (1, []) and f"error: {name}: cannot be opened" in err


class Dribble(io.RawIOBase):
    """A file that gives a few bytes at a time."""

    def __init__(self, content, most=777):
        self.content, self.most = content, most

    def read(self, count=-1):
        count = min(count, self.most)
        found, self.content = self.content[:count], self.content[count:]
        return found


def heard(content, raw=Pcm(RATE), most=777):
    """The rate of what comes in, and all of it."""
    with ExitStack() as stack:
        parts = list(live_sound.parts(Dribble(content, most), "it", raw, stack, lambda: False))
    assert len({rate for rate, _ in parts}) <= 1
    return parts[0][0] if parts else None, np.concatenate([part for _, part in parts]) if parts else None


@pytest.mark.parametrize("format", ["WAV", "WAVEX", "RF64"])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_wav_is_read_as_libsndfile_reads_it(format, subtype):
    content = bytes_of(np.stack([speech(0.3), speech(0.3, seed=1)], 1), 22_050, format, subtype)
    rate, found = heard(content)
    expected, _ = soundfile.read(io.BytesIO(content), dtype="float32")
    assert rate == 22_050 and np.array_equal(found, expected)
    place = content.index(b"data") + 4  # a size that is made up
    for size in (0, 0x7FFFF000, 0xFFFFFFFF, 2**31):
        streamed = content[:place] + struct.pack("<I", size) + content[place + 4 :]
        assert format == "RF64" or np.array_equal(heard(streamed)[1], expected)


def test_what_surrounds_the_sound_of_a_wav():
    sound = (speech(0.2) * 32767).astype("<i2")
    data, other = sound.tobytes(), struct.pack("<4sI", b"LIST", 7) + b"INFOabc\0"
    expected = sound[:, None] / np.float32(2**15)
    assert np.array_equal(heard(header(before=other) + data)[1], expected)
    assert np.array_equal(heard(header(len(data)) + data + other)[1], expected)
    both = header(len(data)) + data + other + header(len(data)) + data  # two files, one behind the other
    assert np.array_equal(heard(both)[1], np.concatenate([expected] * 2))
    # A size that is too small: the sound goes on.
    assert np.array_equal(heard(header(len(data) // 2 // 2 * 2) + data)[1], expected)
    assert np.array_equal(heard(header() + data + b"\1")[1], expected)  # half a sample


def test_a_header_that_never_ends_is_left_to_others():
    assert wav_header(Incoming(Dribble(header(before=struct.pack("<4sI", b"junk", 2**31))).read)) is None
    assert wav_header(Incoming(Dribble(header(tag=2)).read)) is None  # ADPCM
    assert wav_header(Incoming(Dribble(header()[:30]).read)) is None
    assert list(samples(Incoming(Dribble(b"").read), Pcm(RATE))) == []


@pytest.mark.parametrize(
    "first", [b"\xff\xff\xfe\xff", b"\xff\xfb\x90\x00", b"\xff\xf1\x50\x80", b"\1\4\0\0", bytes(4)]
)
def test_sound_without_a_header_that_begins_like_another_file(first):
    """Quiet samples are."""
    noise = np.random.default_rng(0).integers(-3, 3, 8000).astype("<i2").tobytes()
    rate, found = heard(first + noise, Pcm(8000, 2))
    assert rate == 8000 and found.shape == ((len(noise) + 4) // 4, 2)


@needs_ffmpeg
@pytest.mark.parametrize("form", ["mp3", "flac", "ogg", "adts", "matroska", "mpegts"])
def test_what_ffmpeg_reads_from_a_pipe(form, tmp_path):
    """All of it: also what it looks at first, to see what it is."""
    path = tmp_path / "sound"
    wav = bytes_of(speech(6.0))
    codec = {"matroska": ["-c:a", "aac"], "mpegts": ["-c:a", "aac"]}.get(form, [])
    command = ["ffmpeg", "-v", "error", "-i", "pipe:0", *codec, "-f", form, str(path)]
    if subprocess.run(command, input=wav).returncode:
        pytest.skip("this ffmpeg can't write it")
    expected = audio.load(path)
    rate, found = heard(path.read_bytes(), most=2**14)
    assert found.shape[1] == 1 and len(found) / rate == pytest.approx(len(expected) / RATE, abs=0.05)
    if form == "flac":
        assert np.array_equal(found[:, 0], expected.numpy())


@pytest.mark.parametrize("kind", ["WAV", pytest.param("OGG", marks=needs_ffmpeg)])
def test_a_source_that_breaks_off_is_an_error_after_its_sound(kind):
    class Broken(Dribble):
        def read(self, count=-1):
            if not self.content:
                raise OSError(errno.EIO, "Input/output error")
            return super().read(count)

    content = bytes_of(speech(3.0)) if kind == "WAV" else (ROOT / "examples" / "en.ogg").read_bytes()
    if kind == "WAV":
        content = header() + content[44:]
    seconds = 0.0
    with ExitStack() as stack, pytest.raises(AudioError, match="it: cannot be read on .*Input/output error"):
        for rate, part in live_sound.parts(Broken(content), "it", Pcm(RATE), stack, lambda: False):
            seconds += len(part) / rate
    assert seconds > 2.5


# ---- a queue ---------------------------------------------------------------------------------------------------------


def test_nothing_is_dropped_where_nobody_takes_it(monkeypatch):
    monkeypatch.setattr(live_console, "MOST_WAITING", 1.0)
    given = []

    def blocks():
        for number in range(40):
            given.append(number)
            yield torch.full((1600,), float(number))

    waiting = Waiting(blocks())
    time.sleep(0.3)
    assert len(given) == 11 and waiting.seconds == pytest.approx(1.0)  # the writer waits, with a block in its hand
    found = []
    while (some := waiting.take()) is not None:
        assert len(some) <= 5 * 1600
        found.append(some)
    assert torch.equal(torch.cat(found), torch.arange(40.0).repeat_interleave(1600))


def test_behind_is_what_waits_because_the_machine_is_slow(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(live_console.time, "monotonic", lambda: now[0])
    waiting = Waiting(torch.zeros(1600) for _ in range(100))
    while waiting.queue.qsize() < 101:
        real_sleep(0.01)
    assert waiting.take() is not None and waiting.behind == 0  # it came at once
    now[0] += 3.5
    assert waiting.behind == pytest.approx(3.0)
    now[0] += 100
    assert waiting.behind == pytest.approx(waiting.seconds)  # no more than waits: the speaker was silent


real_sleep = time.sleep


def test_an_error_of_reading_comes_after_the_sound(monkeypatch):
    def blocks():
        yield torch.zeros(1600)
        raise AudioError("it broke off")

    waiting = Waiting(blocks())
    real_sleep(0.1)
    assert len(waiting.take()) == 1600
    with pytest.raises(AudioError, match="broke off"):
        waiting.take()


# ---- what goes wrong, and what it writes -----------------------------------------------------------------------------


@pytest.fixture
def twice(digits, tmp_path):
    path = tmp_path / "twice.wav"
    soundfile.write(path, np.concatenate([digits, digits]), RATE)
    return str(path)


def test_an_error_of_the_model_leaves_what_was_recognized(call, recognizer, monkeypatch, twice, tmp_path):
    decode, calls = recognizer.decode_together, []

    def failing(jobs, options, final=True):
        calls.append(1)
        return decode(jobs, options, final) if len(calls) < 2 else [CheckpointError("the model gives no answer")]

    monkeypatch.setattr(recognizer, "decode_together", failing)
    code, out, err = call(twice, "--format", "txt", "--output-dir", str(tmp_path / "out"))
    assert (code, out[0]) == (1, TEXT) and err.count("error: the model gives no answer") == 1
    assert all(TEXT.startswith(text) for text in out[1:])  # what was committed
    assert (tmp_path / "out" / "twice.txt").read_text(encoding="utf-8").splitlines() == out


def test_files_that_cannot_be_written(call, twice, tmp_path, monkeypatch):
    def full(path, text):
        raise glmasr.errors.OutputError(f"{path}: cannot be written (the disk is full)")

    monkeypatch.setattr(live_console, "write_whole", full)
    code, out, err = call(twice, "--format", "txt", "--output-dir", str(tmp_path / "out"))
    assert code == 1 and out == [TEXT] and err.count("the disk is full") == 1 and "Traceback" not in err


@posix
def test_files_are_whole_when_nobody_reads_the_text_any_more(twice, tmp_path):
    command = [sys.executable, str(ROOT / "transcribe.py"), "--live", twice, *MODEL, "--format", "txt"]
    child = subprocess.Popen(
        [*command, "--output-dir", str(tmp_path / "out")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    child.stdout.close()
    child.wait(120)
    assert (tmp_path / "out" / "twice.txt").read_text(encoding="utf-8").startswith(f"{TEXT}\n")


@posix
@pytest.mark.slow
@pytest.mark.parametrize("where", ["nobody reads", "closed"])
def test_the_text_goes_nowhere_and_the_files_cannot_be_written(twice, tmp_path, where):
    (tmp_path / "out" / "twice.txt").mkdir(parents=True)
    command = [sys.executable, str(ROOT / "transcribe.py"), "--live", twice, *MODEL, "--format", "txt"]
    close = ">&-" if where == "closed" else "| true"
    child = subprocess.run(
        ["/bin/sh", "-c", f'"$@" {close}', "sh", *command, "--output-dir", str(tmp_path / "out")],
        stderr=subprocess.PIPE,
        timeout=120,
    )
    err = child.stderr.decode()
    assert err.count("cannot be written") == 1 and "Traceback" not in err


@posix
@pytest.mark.slow
def test_files_without_standard_output(twice, tmp_path):
    command = [sys.executable, str(ROOT / "transcribe.py"), "--live", twice, *MODEL, "--format", "txt"]
    child = subprocess.run(
        ["/bin/sh", "-c", '"$@" >&-', "sh", *command, "--output-dir", str(tmp_path / "out")],
        stderr=subprocess.PIPE,
        timeout=120,
    )
    assert child.returncode == 0 and b"Traceback" not in child.stderr
    assert (tmp_path / "out" / "twice.txt").read_text(encoding="utf-8") == f"{TEXT}\n" * 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a disk that is always full")
@pytest.mark.slow
def test_files_are_whole_when_the_disk_of_the_text_is_full(twice, tmp_path):
    command = [sys.executable, str(ROOT / "transcribe.py"), "--live", twice, *MODEL, "--format", "txt"]
    with open("/dev/full", "wb") as full:
        child = subprocess.run(
            [*command, "--output-dir", str(tmp_path / "out")], stdout=full, stderr=subprocess.PIPE, timeout=120
        )
    assert child.returncode == 1 and b"No space left" in child.stderr and b"Traceback" not in child.stderr
    assert (tmp_path / "out" / "twice.txt").read_text(encoding="utf-8").startswith(f"{TEXT}\n")


def test_json_words_and_times(call, twice, recognizer):
    code, out, err = call(twice, "--json", "--words")
    found = [json.loads(line) for line in out]
    assert code == 0 and [segment["text"] for segment in found] == [TEXT] * 2
    assert [len(segment["words"]) for segment in found] == [7, 7] and found[0]["end"] < found[1]["start"]
    assert all("words" not in json.loads(line) for line in call(twice, "--json")[1])
    code, out, _ = call(twice, "--timestamps")
    assert re.fullmatch(rf"\[00:0\d\.\d\d --> 00:0\d\.\d\d\] {TEXT}", out[0])


def test_quiet(call, twice):
    assert call(twice, "--quiet") == (0, [TEXT] * 2, "")


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["-", "--resume", "--format", "txt"], "--resume goes without --live"),
        (["-", "--clip", "1-2"], "--clip goes without --live"),
        (["-", "--end", "5"], "--end goes without --live"),
        (["-", "--long", "seek"], "--long goes without --live"),
        (["-", "--explain"], "--explain goes without --live"),
        (["-", "--task", "translate"], "--task goes without --live"),
        (["-", "--batch-size", "2"], "--batch-size goes without --live"),
        (["-", "a.wav"], "--live takes one source"),
        (["https://example.org/a.mp3"], "--live takes one source"),
        (["-", "--input-device", "2"], "--input-device goes with `--live mic`"),
        (["-", "--live-step", "60"], "step is 60.0"),
        (["-", "--rate", "3999"], "--rate is 3999, expected 4000 to 384000"),
        (["-", "--channels", "256"], "--channels is 256, expected 1 to 255"),
        (["-", "--lang", "xx"], None),
    ],
)
def test_wrong_usage(call, arguments, says):
    if says is None:
        arguments, says = ["-", "--languages", "xx"], "xx"
    code, out, err = call(*arguments)
    assert (code, out) == (2, []) and says in err


def test_options_that_need_a_session(capsys):
    with pytest.raises(SystemExit) as leave:
        transcribe.main(["a.wav", "--rate", "8000"])
    assert leave.value.code == 2 and "--rate goes with --live" in capsys.readouterr().err


# ---- a terminal ------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """Of so many columns; knows what `Screen` writes, and what is faint."""

    def __init__(self):
        super().__init__()
        self.lines, self.row, self.column, self.faint, self.most = [""], 0, 0, False, 0

    def isatty(self):
        return True

    def write(self, text):
        for part in re.findall(r"\x1b\[\d*[A-Za-z]|.|\n", text):
            if part == "\n":
                self.row, self.column = self.row + 1, 0
                self.lines += [""] * (self.row == len(self.lines))
            elif part == "\r":
                self.column = 0
            elif part == "\x1b[J":
                self.lines = [*self.lines[: self.row], self.lines[self.row][: self.column]]
            elif part in ("\x1b[2m", "\x1b[0m"):
                self.faint = part == "\x1b[2m"
            elif part.endswith("A"):
                self.row -= int(part[2:-1])
            else:
                assert len(part) == 1, part
                self.lines[self.row] += part.upper() if self.faint else part
                self.column += 1
        return len(text)


@pytest.fixture
def open_terminal(monkeypatch):
    """TRAP: pytest has a standard output of its own for each phase of a test."""

    def run():
        monkeypatch.setattr(sys, "stdout", Terminal())
        monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((20, 5)))
        return sys.stdout

    return run


def test_a_text_that_grows(open_terminal):
    terminal = open_terminal()
    screen = Screen(json=False, timestamps=True, words=False)
    screen.guess("a dog")
    screen.draw()
    assert terminal.lines == ["A DOG"]
    screen.commit("a dog")
    screen.guess(" was")
    screen.draw()
    assert terminal.lines == ["a dog WAS"]
    screen.commit(" was here")
    screen.guess(" and barked at me")
    screen.draw()
    assert terminal.lines == ["a dog was here AND", "BARKED AT ME"]
    with screen.cleared():
        terminal.write("a warning\n")
    assert terminal.lines == ["a warning", "a dog was here AND", "BARKED AT ME"]
    screen.guess("")
    screen.draw()
    assert terminal.lines == ["a warning", "a dog was here"]
    screen.end(Segment(0.5, 2.0, "a dog was here and there"))
    assert terminal.lines == ["a warning", "[00:00.50 --> 00:02.00] a dog was here and there", ""]
    screen.guess("then")
    screen.draw()
    screen.end(Segment(3.0, 4.0, ""))  # it was nothing
    assert terminal.lines[2:] == [""]


def test_what_is_longer_than_the_screen_shows_its_end(open_terminal):
    terminal = open_terminal()
    screen = Screen(json=False, timestamps=False, words=False)
    screen.commit("一" * 9 + "二" * 9 + "三" * 9 + "四" * 9 + "五" * 9)
    screen.guess("六" * 9)
    screen.draw()
    assert terminal.lines == ["三" * 9, "四" * 9, "五" * 9, "六" * 9]


def test_a_terminal_does_not_obey_what_a_model_writes(open_terminal):
    terminal = open_terminal()
    screen = Screen(json=False, timestamps=False, words=False)
    screen.commit("a\x1b[2Jb\rc")
    screen.draw()
    assert terminal.lines == [r"a\x1b[2Jb\rc"]


def test_no_row_is_too_long():
    random = np.random.default_rng(0)
    signs = ["a", "bc ", "一", "，", " ", "😀", "e\u0301", "데", "word"]
    for _ in range(300):
        text = "".join(random.choice(signs, 20)).strip()
        columns = int(random.integers(2, 12))
        found = rows(text, columns)
        assert all(width(row) <= columns for row in found), (text, columns)
        assert "".join(found).replace(" ", "") == text.replace(" ", "")


def test_a_session_on_a_terminal(twice, open_terminal, recognizer, monkeypatch):
    drawn, terminal = [], open_terminal()
    monkeypatch.setattr(glmasr, "load", lambda *args, **more: recognizer, raising=False)
    monkeypatch.setattr(
        Screen, "draw", lambda screen, draw=Screen.draw: (draw(screen), drawn.append(terminal.lines[-1]))
    )
    assert transcribe.main(["--live", twice, *MODEL, "--live-step", "0.5", "--quiet"]) == 0
    assert terminal.lines == [TEXT, TEXT, ""]
    assert any(re.search("[A-Z]", row) for row in drawn) and any(re.match("five.*[A-Z]", row) for row in drawn)


# ---- a microphone ----------------------------------------------------------------------------------------------------


@pytest.fixture
def devices(monkeypatch, digits):
    """A `sounddevice` with one microphone, that is unplugged when all is said."""
    module = types.ModuleType("sounddevice")
    module.PortAudioError = type("PortAudioError", (Exception,), {})
    module.opened = []
    sound = iter(np.array_split(digits.astype(np.float32) / 32768, 40))

    class InputStream:
        def __init__(self, **how):
            module.opened.append(how)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            module.opened.append("closed")

        def read(self, count):
            part = next(sound, None)
            if part is None:
                raise module.PortAudioError("Device unavailable [PaErrorCode -9985]")
            return part[:, None], len(module.opened) == 1 and not module.opened.append("late")

    def query_devices(device=None, kind=None):
        known = [{"name": "Loud", "max_input_channels": 0}, {"name": "Mic", "max_input_channels": 1}]
        if kind is None:
            return known
        if device not in (None, 1, "Mic"):
            raise ValueError(f"No input device matching {device!r}")
        return {**known[1], "default_samplerate": 16000.0}

    module.InputStream, module.query_devices = InputStream, query_devices
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    return module


@pytest.mark.parametrize("device", [[], ["--input-device", "1"], ["--input-device", "Mic"]])
def test_a_microphone(call, devices, device, tmp_path):
    code, out, err = call("mic", *device, "--format", "srt", "--output-dir", str(tmp_path))
    assert (code, out) == (1, [TEXT]) and "Device unavailable" in err and "1 Mic" in err
    assert "warning: the microphone: some sound was lost" in err
    expected = {(): None, ("--input-device", "1"): 1, ("--input-device", "Mic"): "Mic"}[tuple(device)]
    assert devices.opened[0] == {"samplerate": 16000, "channels": 1, "dtype": "float32", "device": expected}
    assert devices.opened[-1] == "closed" and (tmp_path / "live.srt").is_file()


def test_a_microphone_that_is_not_there(call, devices):
    code, out, err = call("mic", "--input-device", "Other")
    assert (code, out) == (1, []) and "No input device matching 'Other'" in err and "of these: 1 Mic" in err


def test_without_sounddevice(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    code, _, err = call("mic")
    assert code == 1 and "pip install '.[mic]'" in err


def test_without_portaudio(call, monkeypatch, tmp_path):
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    code, _, err = call("mic")
    assert code == 1 and "finds no PortAudio (PortAudio library not found)" in err and "libportaudio2" in err
