"""The command line: what goes to standard output, what to standard error, and the exit code."""

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile

import glmasr
import transcribe
from test_pipeline import HAN, RATE, ROOT, damage, make_checkpoint, melody

PROGRAM = [sys.executable, str(ROOT / "transcribe.py")]
KEYS = ["audio", "text", "language", "segments", "seconds", "warnings"]
CLOSING = re.compile(r"^(\d+\.\d) s of sound in (\d+\.\d\d) s, real-time factor (\d+\.\d+); peak memory \d+ MiB", re.MULTILINE)


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A folder with a model, three recordings and a file that is none."""
    folder = tmp_path_factory.mktemp("room")
    make_checkpoint(folder / "model")
    for number, seconds in enumerate((1.0, 0.5, 1.5)):
        soundfile.write(folder / f"{number}.wav", melody(seconds, seed=number), RATE)
    (folder / "bad.wav").write_text("this is no sound")
    return folder


@pytest.fixture(autouse=True)
def inside(room, monkeypatch):
    monkeypatch.chdir(room)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)       # with it, the last flush would have nothing left to complain about


@pytest.fixture
def call(capsys):
    """call(*arguments) -> exit code, lines on standard output, standard error; in this process."""
    def run(*arguments, tokens=6):
        options = ["--model", "model", "--device", "cpu", "--dtype", "float32", "--max-new-tokens", str(tokens)]
        try:
            code = transcribe.main([*arguments, *options])
        except SystemExit as leave:
            code = leave.code
        out, err = capsys.readouterr()
        return code, out.splitlines(), err
    return run


@pytest.fixture(scope="module")
def texts(room):
    """What the library says about the three recordings."""
    recogniser = glmasr.load(room / "model", device="cpu", dtype="float32")
    found = [recogniser.transcribe(room / f"{number}.wav", max_new_tokens=6).text for number in range(3)]
    assert len(set(found)) == 3 and not any("\n" in text for text in found)
    return found


def process(*arguments, **more):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8", "timeout": 120} | more
    return subprocess.run([*PROGRAM, *arguments], **options)


# ---- what comes out -----------------------------------------------------------------------------------------------------

def test_texts_in_order_and_the_rest_on_standard_error(call, texts):
    code, out, err = call("2.wav", "0.wav", "1.wav")
    assert (code, out) == (0, [texts[2], texts[0], texts[1]])
    closing = CLOSING.search(err)
    assert closing[1] == "3.0" and float(closing[3]) == pytest.approx(float(closing[2]) / 3, abs=0.003)
    assert err.count("warning: ") == 3 and "warning: 2.wav: the limit of 6 tokens was reached" in err and "failed" not in err


def test_the_same_file_twice(call, texts):
    assert call("1.wav", "./1.wav", "1.wav")[:2] == (0, [texts[1]] * 3)


def test_options_between_the_recordings(call, texts):
    assert call("0.wav", "--beams", "1", "1.wav")[:2] == (0, texts[:2])


def test_quiet(call, texts):
    assert call("0.wav", "1.wav", "--quiet") == (0, texts[:2], "")
    code, out, err = call("bad.wav", "1.wav", "--quiet")
    assert (code, out) == (1, [texts[1]]) and err.startswith("error: bad.wav: ") and err.count("\n") == 1


def test_json(call, texts):
    code, out, err = call("0.wav", "bad.wav", "2.wav", "--json")
    assert code == 1 and len(out) == 2 and "error: bad.wav" in err and CLOSING.search(err)
    for number, line in zip((0, 2), out):
        found = json.loads(line)
        assert list(found) == KEYS and found["audio"] == f"{number}.wav" and found["text"] == texts[number]
        assert found["seconds"] == (1.0, 0.5, 1.5)[number] and found["language"] in ("zh", "yue", "en", "")
        assert found["segments"] == [{"start": 0.0, "end": found["seconds"], "text": found["text"]}]
        assert len(found["warnings"]) == 1 and "incomplete" in found["warnings"][0]
    assert "\\u" not in out[0]                                  # letters, not escapes, where the terminal can show them


@pytest.mark.parametrize("language, letters", [("en", "a-z"), ("zh", HAN)])
def test_language_and_beams(call, language, letters):
    code, out, _ = call("0.wav", "--lang", language, "--beams", "2", "--json", tokens=20)
    found = json.loads(out[0])
    assert code == 0 and found["language"] == language and re.search(f"[{letters}]", found["text"])
    assert not re.search(r"[\u3040-\u30ff\u0400-\u04ff\uac00-\ud7a3]", found["text"])
    assert language == "zh" or not re.search(r"[\u4e00-\u9fff]", found["text"])


def test_options_reach_the_library(call, monkeypatch):
    calls = []

    class Recogniser:
        def transcribe(self, *args, **more):
            calls.append((args, more))
            return glmasr.Transcript("ok", "en", [], 1.0)

    monkeypatch.setattr(glmasr, "load", lambda *args, **more: calls.append((args, more)) or Recogniser(), raising=False)
    assert call("0.wav", "--lang", "yue", "--beams", "3", "--task", "translate", "--timestamps", tokens=44)[:2] == (0, [""])
    assert calls == [(("model",), {"device": "cpu", "dtype": "float32"}),
                     (("0.wav", "yue"), {"task": "translate", "timestamps": True, "beams": 3, "max_new_tokens": 44})]


def test_progress_on_a_terminal(call, texts, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    code, out, _ = call("0.wav", "1.wav")
    assert (code, out) == (0, texts[:2]) and "0/2" in terminal.getvalue() and "1.5 s of sound" in terminal.getvalue()


def test_a_warning_names_its_recording_once(call, room):
    soundfile.write(room / "torn.flac", melody(3), RATE)
    whole = (room / "torn.flac").read_bytes()
    (room / "torn.flac").write_bytes(whole[:len(whole) // 2])
    code, out, err = call("torn.flac")
    warnings = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert code == 0 and len(out) == 1 and len(warnings) == 2 and "breaks off" in warnings[0] and "incomplete" in warnings[1]
    assert all(line.startswith("warning: torn.flac: ") and line.count("torn.flac") == 1 for line in warnings)


# ---- what goes wrong ----------------------------------------------------------------------------------------------------

def test_a_bad_recording_does_not_stop_the_others(call, texts):
    code, out, err = call("nothing.wav", "0.wav", "bad.wav", ".", "1.wav")
    assert (code, out) == (1, texts[:2])
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3 and all(name in line for name, line in zip(("nothing.wav", "bad.wav", "directory"), errors))
    assert "3 of 5 recordings failed" in err and CLOSING.search(err)[1] == "1.5"


def test_only_bad_recordings(call):
    code, out, err = call("bad.wav")
    assert (code, out) == (1, []) and CLOSING.search(err)


@pytest.mark.parametrize("arguments", [[], ["--lang", "zh"], ["0.wav", "--nothing"], ["0.wav", "--beams", "0"], ["0.wav", "--beams", "two"],
                                       ["0.wav", "--beams", "-1"], ["0.wav", "--lang", "xx"], ["0.wav", "--max-new-tokens", "0"],
                                       ["0.wav", "--device", "toaster"], ["0.wav", "--dtype", "float16"], ["0.wav", "--model"]])
def test_wrong_usage(capsys, arguments):
    with pytest.raises(SystemExit) as leave:
        transcribe.main(arguments)
    out, err = capsys.readouterr()
    assert leave.value.code == 2 and out == "" and "usage:" in err and "error:" in err


def test_without_the_published_weights(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert transcribe.main(["0.wav"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 2 and err.startswith("error: ")
    assert "hf download zai-org/GLM-ASR-Nano-2512" in err and "--model demo" in err


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer.json:other"])
def test_a_broken_model(capsys, room, tmp_path, file):
    name = damage(Path(shutil.copytree(room / "model", tmp_path / "broken")), file)
    assert transcribe.main(["0.wav", "--model", str(tmp_path / "broken")]) == 1
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and err.startswith("error: ") and name in err


@pytest.mark.parametrize("name", ["nothing", "0.wav", ""])
def test_a_model_that_is_not_there(capsys, name):
    assert transcribe.main(["0.wav", "--model", name]) == 1
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and err.startswith("error: ")


# ---- terminals and pipes ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "gbk", "utf-16"])
def test_letters_that_the_output_cannot_hold(call, texts, monkeypatch, encoding):
    found = {}
    for form in ("text", "json"):
        buffer = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding=encoding))
        assert call("0.wav", "--quiet", *(["--json"] if form == "json" else []))[0] == 0
        found[form] = buffer.getvalue().decode(encoding).strip()
    assert json.loads(found["json"])["text"] == texts[0]
    if encoding in ("ascii", "cp1252"):
        assert found["text"] == texts[0].encode(encoding, "backslashreplace").decode(encoding) and "\\u" in found["text"]


def test_json_is_valid_in_every_encoding(monkeypatch):
    transcript = glmasr.Transcript("é 零 \U00020000 \" \\", "zh", [], 1.0)
    for encoding in ("ascii", "latin-1", "utf-8"):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        line = transcribe.line("a.wav", transcript, True).encode(encoding).decode(encoding)
        assert json.loads(line)["text"] == transcript.text


def test_a_file_name_that_is_not_text(capsys):
    name = b"\xff.wav".decode("utf-8", "surrogateescape")       # as Python names a file in another encoding
    line = transcribe.line(name, glmasr.Transcript("零", "zh", [], 1.0), True)
    line.encode("utf-8")
    assert json.loads(line)["audio"] == name and json.loads(line)["text"] == "零"


def test_help_is_quick():
    blocked = "import sys; sys.modules['torch'] = None; sys.argv[0] = 'transcribe.py'; import transcribe; transcribe.main()"
    done = subprocess.run([sys.executable, "-c", blocked, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "" and all(option in done.stdout for option in (
        "AUDIO", "--model", "--lang", "--beams", "--max-new-tokens", "--device", "--dtype", "--json", "--quiet"))


def test_standard_input_and_a_poor_locale(texts, room):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    with open(room / "0.wav", "rb") as sound:
        done = process("-", "1.wav", "--model", "model", "--dtype", "float32", "--device", "cpu", "--max-new-tokens", "6", stdin=sound,
                       env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [text.encode("ascii", "backslashreplace").decode() for text in texts[:2]]
    assert "warning: -: " in done.stderr and CLOSING.search(done.stderr)[1] == "1.5"


def test_nobody_reads(room):
    read, write = os.pipe()
    os.close(read)
    try:
        done = process("0.wav", "1.wav", "--model", "model", "--quiet", stdout=write)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk(room):
    with open("/dev/full", "w") as full:
        done = process("0.wav", "--model", "model", "--quiet", stdout=full)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a named pipe")
def test_interrupt(room):
    os.mkfifo(room / "pipe")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)       # a child would inherit that it is ignored
    child = subprocess.Popen([*PROGRAM, "pipe", "--model", "model"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    end, writer = time.monotonic() + 60, None
    try:
        while writer is None:                                   # it opens when the child reads: then the child waits for sound
            try:
                writer = os.open(room / "pipe", os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                assert error.errno == errno.ENXIO and child.poll() is None and time.monotonic() < end
                time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
        if writer is not None:
            os.close(writer)
    assert (child.returncode, out, err) == (130, "", "interrupted\n")
