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
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tqdm
from helpers import ROOT
from helpers.checkpoints import HAN, damage, make_checkpoint
from helpers.files import locked
from helpers.sounds import RATE, melody

import glmasr
import transcribe
from glmasr.checkpoint import hub
from glmasr.pipeline import Options, Part, Segment
from glmasr.transcription import window_decoder
from glmasr.writers.formats import WRITERS, record

PROGRAM = [sys.executable, str(ROOT / "transcribe.py")]
KEYS = [
    "schema",
    "audio",
    "text",
    "language",
    "segments",
    "seconds",
    "warnings",
    "decoded_seconds",
    "skipped_seconds",
    "failed",
    "no_speech_seconds",
    "how",
    "uncovered",
    "incomplete",
]
CLOSING = re.compile(
    r"^(\d+\.\d) s of sound in (\d+\.\d\d) s, real-time factor (\d+\.\d+); peak memory \d+ MiB", re.MULTILINE
)


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
    monkeypatch.delenv(
        "PYTHONUNBUFFERED", raising=False
    )  # with it, the last flush would have nothing left to complain about


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
    recognizer = glmasr.load(room / "model", device="cpu", dtype="float32")
    found = [recognizer.transcribe(room / f"{number}.wav", max_new_tokens=6).text for number in range(3)]
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
    assert (
        err.count("warning: ") == 3
        and "warning: 2.wav: 0.0 s to 1.5 s: the limit of tokens was reached" in err
        and "0 failed" in err
    )


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
        [segment] = found["segments"]
        assert (segment["start"], segment["end"], segment["text"], segment["flags"]) == (
            0.0,
            found["seconds"],
            found["text"],
            ["incomplete"],
        )
        assert (found["decoded_seconds"], found["skipped_seconds"], found["failed"], found["schema"]) == (
            found["seconds"],
            0.0,
            0,
            2,
        )
        assert len(found["warnings"]) == 1 and "incomplete" in found["warnings"][0]
    assert "\\u" not in out[0]  # letters, not escapes, where the terminal can show them


@pytest.mark.parametrize("language, letters", [("en", "a-z"), ("zh", HAN)])
def test_language_and_beams(call, language, letters):
    code, out, _ = call("0.wav", "--lang", language, "--beams", "2", "--json", tokens=20)
    found = json.loads(out[0])
    assert code == 0 and found["language"] == language and re.search(f"[{letters}]", found["text"])
    assert not re.search(r"[\u3040-\u30ff\u0400-\u04ff\uac00-\ud7a3]", found["text"])
    assert language == "zh" or not re.search(r"[\u4e00-\u9fff]", found["text"])


def test_options_reach_the_library(call, monkeypatch):
    calls = []

    class Recognizer:
        def check(self, *args):
            pass

        def streams(self, *args, done):
            calls.append(args)
            yield 0, Part(1.0, 1.0, "en", [], [], last=True)

        def how(self, options):
            return {}

    monkeypatch.setattr(glmasr, "load", lambda *args, **more: calls.append((args, more)) or Recognizer(), raising=False)
    assert call(
        "0.wav",
        "--lang",
        "yue",
        "--beams",
        "3",
        "--task",
        "translate",
        "--timestamps",
        "--long",
        "seek",
        "--batch-size",
        "7",
        "--script",
        "traditional",
        "--max-duration",
        "99.5",
        "--track",
        "eng",
        tokens=44,
    )[:2] == (0, [""])
    assert calls == [
        (
            ("model",),
            {
                "device": "cpu",
                "dtype": "float32",
                "plain": False,
                "adapter": None,
                "assistant": None,
                "revision": None,
                "hub": None,
                "progress": True,
            },
        ),
        (
            ["0.wav"],
            "yue",
            Options(
                task="translate",
                timestamps=True,
                beams=3,
                max_new_tokens=44,
                long="seek",
                batch_size=7,
                script="traditional",
                max_duration=99.5,
                track="eng",
            ),
        ),
    ]


def test_what_people_type(call, texts, monkeypatch):
    args = transcribe.arguments(["0.wav", "--language", "zh", "--device", "cuda:1", "--threads", "3"])
    assert (args.lang, args.device, args.threads, args.languages) == ("zh", "cuda:1", 3, None)
    chosen = []
    monkeypatch.setattr("torch.set_num_threads", chosen.append)
    assert call("0.wav", "--language", "auto", "--threads", "3")[:2] == (0, texts[:1]) and chosen == [3]


def test_the_help_fits_on_a_screen(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = transcribe.make_parser().format_help().splitlines()
    assert len(lines) < 60 and max(map(len, lines)) < 80


def test_progress_on_a_terminal(call, texts, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    code, out, _ = call("0.wav", "1.wav")
    assert (
        (code, out) == (0, texts[:2])
        and "1/2 0.wav" in terminal.getvalue()
        and "2/2 1.wav: " in terminal.getvalue()
        and "1.5 s of sound" in terminal.getvalue()
    )


@pytest.mark.parametrize("stated", [0.4, 60.0, None])
def test_progress_of_a_recording_that_is_longer_than_its_header_states(call, texts, monkeypatch, stated):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(glmasr.audio_files.sound_files, "stated_duration", lambda name: stated)
    monkeypatch.setattr(tqdm.tqdm, "__init__", partialmethod(tqdm.tqdm.__init__, mininterval=0, miniters=0))
    assert call("2.wav", "0.wav")[:2] == (0, [texts[2], texts[0]])
    assert {0.4: "100%|", 60.0: "of 60 s, ", None: "1/2 2.wav: 2 s, "}[stated] in terminal.getvalue()


def test_a_warning_names_its_recording_once(call, room):
    soundfile.write(room / "torn.flac", melody(3), RATE)
    whole = (room / "torn.flac").read_bytes()
    (room / "torn.flac").write_bytes(whole[: len(whole) // 2])
    code, out, err = call("torn.flac")
    warnings = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert (
        code == 0
        and len(out) == 1
        and len(warnings) == 2
        and "breaks off" in warnings[0]
        and "incomplete" in warnings[1]
    )
    assert all(line.startswith("warning: torn.flac: ") and line.count("torn.flac") == 1 for line in warnings)


# ---- what goes wrong ----------------------------------------------------------------------------------------------------


def test_a_bad_recording_does_not_stop_the_others(call, texts):
    code, out, err = call("nothing.wav", "0.wav", "bad.wav", "model", "1.wav")
    assert (code, out) == (1, texts[:2])
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3 and all(name in line for name, line in zip(("model", "nothing.wav", "bad.wav"), errors))
    assert "2 done, 0 skipped, 3 failed" in err and err.count("  failed: ") == 3 and CLOSING.search(err)[1] == "1.5"


def test_an_error_that_does_not_know_the_recording_names_it(call, monkeypatch):
    def decode(*arguments):
        raise glmasr.errors.CheckpointError("the model gives no usable answer")

    monkeypatch.setattr(window_decoder.WindowDecoder, "_grouped", decode)
    code, out, err = call("0.wav", "1.wav")
    assert code == 1 and all(
        f"{place}: {number}.wav: the model gives no usable answer\n" in err
        for place in ("error", "  failed")
        for number in (0, 1)
    )


def test_only_bad_recordings(call):
    code, out, err = call("bad.wav")
    assert (code, out) == (1, []) and CLOSING.search(err)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--lang", "xx"], "language is 'xx'"),
        (["--timestamps"], "no time tokens"),
        (["--long", "seek"], "'seek'"),
        (["--task", "translate"], "task is 'translate'"),
    ],
)
def test_what_the_model_cannot_do_is_wrong_usage(room, monkeypatch, call, arguments, message):
    monkeypatch.chdir(room)
    code, out, err = call("0.wav", *arguments)
    assert code == 2 and out == [] and err.startswith("error: ") and message in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--lang", "zh"],
        ["0.wav", "--nothing"],
        ["0.wav", "--beams", "0"],
        ["0.wav", "--beams", "two"],
        ["0.wav", "--beams", "-1"],
        ["0.wav", "--max-new-tokens", "0"],
        ["0.wav", "--device", "toaster"],
        ["0.wav", "--dtype", "float16"],
        ["0.wav", "--model"],
    ],
)
def test_wrong_usage(capsys, arguments):
    with pytest.raises(SystemExit) as leave:
        transcribe.main(arguments)
    out, err = capsys.readouterr()
    assert leave.value.code == 2 and out == "" and "usage:" in err and "error:" in err


@pytest.mark.parametrize("size", ["0", "-1", "x"])
def test_a_wrong_size_of_batches_says_what_is_expected(capsys, size):
    with pytest.raises(SystemExit):
        transcribe.main(["0.wav", "--batch-size", size])
    assert f"--batch-size: '{size}' is not a positive integer or auto" in capsys.readouterr().err


def test_without_the_published_weights(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert transcribe.main(["0.wav"]) == 1
    out, err = capsys.readouterr()
    assert (
        out == "" and len(err.splitlines()) == 1 and err.startswith("error: HF_HUB_OFFLINE ")
    )  # as conftest.py sets it
    assert "zai-org/GLM-ASR-Nano-2512" in err and "glmasr-fetch" in err and "--model demo" in err


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


# ---- files ---------------------------------------------------------------------------------------------------------------


def test_files_in_all_formats(call, texts, tmp_path):
    code, out, err = call("0.wav", "bad.wav", "1.wav", "--format", "all", "--output-dir", str(tmp_path / "out"))
    assert (code, out) == (1, []) and "2 done, 0 skipped, 1 failed" in err and err.count("failed: bad.wav: ") == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        f"{number}.{form}" for number in (0, 1) for form in WRITERS
    )
    for number in (0, 1):
        assert (tmp_path / "out" / f"{number}.txt").read_text(encoding="utf-8") == f"{texts[number]}\n"
        record = json.loads((tmp_path / "out" / f"{number}.json").read_text(encoding="utf-8"))
        assert list(record) == KEYS and record["text"] == texts[number] and record["audio"] == f"{number}.wav"
        assert f"{number}.wav -> " in err


def test_a_stopped_batch_goes_on(call, texts, tmp_path):
    files = ("0.wav", "1.wav", "2.wav", "--format", "txt,json", "--output-dir", str(tmp_path))
    assert call(*files)[0] == 0
    (tmp_path / "1.json").unlink()
    (tmp_path / "0.txt").write_text("kept")
    code, _, err = call(*files, "--skip-existing")
    assert (
        code == 0
        and "1 done, 2 skipped, 0 failed" in err
        and (tmp_path / "1.json").is_file()
        and (tmp_path / "0.txt").read_text() == "kept"
    )
    code, _, err = call(*files, "--skip-existing")
    assert code == 0 and "0 done, 3 skipped, 0 failed" in err


def test_folders_and_patterns(call, room, texts, tmp_path):
    for place in ("talks", "talks/monday"):
        (tmp_path / place).mkdir()
        shutil.copy(room / "1.wav", tmp_path / place / "talk.wav")
    out = str(tmp_path / "out")
    assert call(str(tmp_path / "talks"), "--output-dir", out)[0] == 0
    assert sorted(os.listdir(out)) == ["talk.txt"]
    assert call(str(tmp_path / "talks"), str(tmp_path / "t*s" / "talk.wav"), "--output-dir", out, "--recursive")[0] == 0
    found = {str(path.relative_to(out)): path.read_text(encoding="utf-8") for path in Path(out).rglob("*.txt")}
    assert found == dict.fromkeys(("talk.txt", os.path.join("monday", "talk.txt")), f"{texts[1]}\n")


def test_two_recordings_of_one_name_get_two_files(call, room, tmp_path):
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        shutil.copy(room / ("0.wav" if place == "a" else "1.wav"), tmp_path / place / "talk.wav")
    assert call(str(tmp_path / "a"), str(tmp_path / "b"), "--output-dir", str(tmp_path / "out"))[0] == 0
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) == 2 and len({path.read_text(encoding="utf-8") for path in files}) == 2


def test_files_beside_the_recordings(call, room, texts, tmp_path):
    shutil.copy(room / "0.wav", tmp_path / "talk.wav")
    assert call(str(tmp_path / "talk.wav"), "--format", "txt")[:2] == (0, [])
    assert (tmp_path / "talk.txt").read_text(encoding="utf-8") == f"{texts[0]}\n"


def test_a_file_that_cannot_be_written(call, room, tmp_path):
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "0.txt").mkdir()  # a folder is where the file should go
    code, out, err = call("0.wav", "1.wav", "--output-dir", str(tmp_path / "0"))
    assert (
        code == 1
        and "error: " in err
        and "0.txt" in err
        and "1 done, 0 skipped, 1 failed" in err
        and (tmp_path / "0" / "1.txt").is_file()
    )


def test_a_format_that_cannot_be_written_does_not_drop_the_others(call, tmp_path):
    for form in ("srt", "tsv"):
        (tmp_path / f"0.{form}").mkdir()
    code, out, err = call("0.wav", "1.wav", "--output-dir", str(tmp_path), "--format", "all")
    assert (
        code == 1
        and "1 done, 0 skipped, 1 failed" in err
        and all(
            (tmp_path / f"{number}.{form}").is_file() for number in (0, 1) for form in ("txt", "vtt", "json", "lrc")
        )
    )
    [line] = [line for line in err.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: 0.wav: {tmp_path / '0.srt'}: cannot be written (") and line.endswith(
        "; nor could 0.tsv"
    )
    assert f"0.wav -> {tmp_path / '0.txt'}, {tmp_path / '0.vtt'}, " in err


def test_one_folder_that_cannot_be_read_does_not_stop_the_others(call, room, texts, tmp_path, monkeypatch):
    for place in ("tree/ok", "tree/locked"):
        (tmp_path / place).mkdir(parents=True)
        shutil.copy(room / "0.wav", tmp_path / place)
    shutil.copy(room / "1.wav", tmp_path / "tree")
    locked(monkeypatch)
    for arguments in ([str(tmp_path / "tree"), "--recursive"], [str(tmp_path / "tree" / "*")]):
        code, out, err = call(*arguments)
        assert code == 1 and sorted(out) == sorted(texts[:2]) and "2 done, 0 skipped, 1 failed" in err
        assert (
            err.count(
                f"{tmp_path / 'tree' / 'locked'}: the folder cannot be read (Permission denied); check its permissions"
            )
            == 2
        )
    code, out, err = call(str(tmp_path / "tree" / "locked"), "0.wav", "--output-dir", str(tmp_path / "out"))
    assert code == 1 and err.count("error: ") == 1 and os.listdir(tmp_path / "out") == ["0.txt"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a named pipe")
@pytest.mark.parametrize("pattern", [False, True])
def test_a_pipe_in_a_folder_does_not_stop_the_others(call, room, texts, tmp_path, pattern):
    shutil.copy(room / "0.wav", tmp_path)
    os.mkfifo(tmp_path / "a.wav")
    code, out, err = call(f"{tmp_path}/*.wav" if pattern else str(tmp_path), "--quiet")
    assert (code, out) == (1, [texts[0]]) and err.splitlines() == [
        f"error: {tmp_path}/a.wav: is a pipe, a socket or a device; expected an audio file: if a pipe is meant, name it by itself"
    ]


def test_a_slash_behind_the_name(call, room, texts, tmp_path):
    shutil.copy(room / "0.wav", tmp_path / "talk.wav")
    assert call(f"{tmp_path / 'talk.wav'}/", "--format", "txt")[0] == 0
    assert (tmp_path / "talk.txt").read_text(encoding="utf-8") == f"{texts[0]}\n"


@pytest.mark.parametrize(
    "arguments, message",
    [(["--output-dir", ""], "'': can't be made "), (["--output-dir", "out", "--model", ""], "'': no such directory, ")],
)
def test_empty_names_are_seen(capsys, arguments, message):
    assert transcribe.main(["0.wav", "--model", "model", *arguments]) == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--format", "doc"],
        ["--format", ""],
        ["--skip-existing"],
        ["--format", "srt", "--max-line-width", "1"],
        ["--json", "--format", "json"],
        ["--explain", "--output-dir", "out"],
        ["--max-duration", "0"],
        ["--max-duration", "nan"],
        ["--batch-size", "0"],
        ["--long", "short"],
        ["--script", "latin"],
    ],
)
def test_wrong_usage_of_files(capsys, arguments):
    with pytest.raises(SystemExit) as leave:
        transcribe.main(["0.wav", *arguments])
    assert leave.value.code == 2 and "error:" in capsys.readouterr().err


def test_a_long_recording_appears_line_by_line(call, room):
    soundfile.write(
        room / "long.flac",
        np.concatenate([np.concatenate((melody(2.5, seed=seed), np.zeros(RATE, np.float32))) for seed in range(4)]),
        RATE,
    )
    code, out, err = call("long.flac", "--max-duration", "10")
    assert code == 1 and "longer than 10 s" in err
    code, out, err = call("long.flac", "--batch-size", "2")
    assert code == 0 and len(out) > 1


def test_an_option_that_the_model_does_not_know_is_wrong_usage(call):
    for option in (["--timestamps"], ["--long", "seek"], ["--task", "translate"]):
        code, out, err = call("0.wav", "1.wav", *option)
        assert (code, out) == (2, []) and err.startswith("error: ") and err.count("\n") == 1


def test_an_output_folder_that_is_a_file(call, room):
    code, out, err = call("0.wav", "--output-dir", "bad.wav")
    assert code == 1 and err == "error: bad.wav: is a file; expected a folder for the results: name another one\n"


def test_names_that_a_terminal_would_obey_or_take_for_options(call, room, texts, tmp_path):
    for name in ("a\x1b[31mb.wav", "-x.wav"):
        shutil.copy(room / "0.wav", tmp_path / name)
    code, out, err = call(str(tmp_path / "a\x1b[31mb.wav"), str(tmp_path / "no\nne.wav"))
    assert code == 1 and out == texts[:1] and "\x1b" not in err and "a\\x1b[31mb.wav" in err and "no\\nne.wav" in err
    os.chdir(tmp_path)
    assert transcribe.main(["--model", str(room / "model"), "--quiet", "--max-new-tokens", "6", "--", "-x.wav"]) == 0


def test_a_terminal_obeys_neither_names_nor_texts(call, room, tmp_path, monkeypatch):
    """The bar, the text, errors and warnings, and the words of argparse."""
    hostile = "a\x1b]0;owned\x07\r\x9b2Jb"
    shutil.copy(room / "0.wav", tmp_path / f"{hostile}.wav")
    segment = Segment(0.0, 1.0, f"{hostile}\nc", "en")

    class Recognizer:
        def check(self, *args):
            pass

        def streams(self, *args, done):
            yield 0, Part(1.0, 1.0, "en", [segment], [f"warned {hostile}"])
            yield 0, glmasr.GlmAsrError(f"refused {hostile}")

        def how(self, options):
            return {}

    monkeypatch.setattr(glmasr, "load", lambda *args, **more: Recognizer(), raising=False)
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    code, out, _ = call(str(tmp_path / f"{hostile}.wav"), "--timestamps")
    escaped = r"a\x1b]0;owned\x07\r\x9b2Jb"
    assert (code, out) == (1, [rf"[00:00.00 --> 00:01.00] {escaped}\nc"])
    assert (
        f"1/1 {escaped}.wav" in terminal.getvalue()
        and f"warned {escaped}" in terminal.getvalue()
        and f"refused {escaped}" in terminal.getvalue()
    )
    assert call("0.wav", f"--{hostile}")[0] == 2 and f"unrecognized arguments: --{escaped}" in terminal.getvalue()
    assert not set("\x1b\x07\x9b") & set(terminal.getvalue()) and "owned\r" not in terminal.getvalue()
    line = transcribe.as_line({"text": hostile})
    assert json.loads(line) == {"text": hostile} and line.isascii() and line.isprintable()


def test_what_was_read_before_an_error_is_recognized(call, room):
    sound = np.concatenate([np.concatenate((melody(1.7, seed=seed), np.zeros(4000, np.float32))) for seed in range(40)])
    sound[-2000] = np.nan
    soundfile.write(room / "nan.wav", sound, RATE, subtype="FLOAT")
    code, out, err = call("nan.wav")
    assert code == 1 and len(out) > 10 and "NaN or infinite" in err


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
        assert (
            found["text"] == texts[0].encode(encoding, "backslashreplace").decode(encoding) and "\\u" in found["text"]
        )


def test_json_is_valid_in_every_encoding(monkeypatch):
    found = record(glmasr.Transcript('é 零 \U00020000 " \\', "zh", [], 1.0), "a.wav")
    for encoding in ("ascii", "latin-1", "utf-8"):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        assert json.loads(transcribe.as_line(found).encode(encoding).decode(encoding)) == found


def test_a_file_name_that_is_not_text(capsys):
    record = {
        "audio": b"\xff.wav".decode("utf-8", "surrogateescape"),
        "text": "零",
    }  # as Python names a file in another encoding
    line = transcribe.as_line(record)
    line.encode("utf-8")
    assert json.loads(line) == record


def test_help_is_quick():
    blocked = (
        "import sys; sys.modules |= dict.fromkeys(('torch', 'numpy', 'tqdm')); sys.argv[0] = 'transcribe.py'; "
        "import transcribe; transcribe.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", blocked, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (
        done.returncode == 0
        and done.stderr == ""
        and all(
            option in done.stdout
            for option in (
                "AUDIO",
                "--model",
                "--lang",
                "--long",
                "--beams",
                "--max-new-tokens",
                "--format",
                "--output-dir",
                "--device",
                "--dtype",
                "--json",
                "--quiet",
            )
        )
    )


def test_version():
    done = subprocess.run(
        [sys.executable, "transcribe.py", "--version"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"glmasr {glmasr.__version__}\n", "")
    assert f"## {glmasr.__version__}, " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_standard_input_and_a_poor_locale(texts, room):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    with open(room / "0.wav", "rb") as sound:
        done = process(
            "-",
            "1.wav",
            "--model",
            "model",
            "--dtype",
            "float32",
            "--device",
            "cpu",
            "--max-new-tokens",
            "6",
            stdin=sound,
            env=environment,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [text.encode("ascii", "backslashreplace").decode() for text in texts[:2]]
    assert "warning: -: " in done.stderr and CLOSING.search(done.stderr)[1] == "1.5"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a named pipe")
@pytest.mark.parametrize("before", [pytest.param([], marks=pytest.mark.slow), ["0.wav"]])
def test_interrupt(room, texts, tmp_path, before):
    """While it waits for sound. What was finished is written, and told."""
    pipe, out = tmp_path / "pipe", tmp_path / "out"
    os.mkfifo(pipe)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child would inherit that it is ignored
    options = [
        "--model",
        "model",
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--max-new-tokens",
        "6",
        "--output-dir",
        str(out),
    ]
    child = subprocess.Popen(
        [*PROGRAM, *before, str(pipe), *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    signal.signal(signal.SIGINT, handler)
    end, writer = time.monotonic() + 60, None
    try:
        while writer is None:  # it opens when the child reads: then the child waits for sound
            try:
                writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                assert error.errno == errno.ENXIO and child.poll() is None and time.monotonic() < end
                time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        text, err = child.communicate(timeout=60)
    finally:
        child.kill()
        if writer is not None:
            os.close(writer)
    assert (child.returncode, text, err.splitlines()[-1]) == (130, "", "interrupted") and "Traceback" not in err
    assert sorted(path.name for path in out.glob("*")) == [Path(name).stem + ".txt" for name in before]
    assert bool(before) == ("1.0 s of sound" in err)


# ---- what it doesn't know -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["demo", "demo-article"])
def test_one_line_says_that_a_demo_knows_digits_only(model, capsys):
    """Of whatever it hears: it can't tell. A transcript of digits has no warning."""
    recording = str(ROOT / "examples" / "zh.wav")
    for quiet in ([], ["--quiet"]):
        assert (
            transcribe.main([recording, "--model", model, "--device", "cpu", "--dtype", "float32", "--json", *quiet])
            == 0
        )
        out, err = capsys.readouterr()
        assert json.loads(out)["warnings"] == []
        assert [line for line in err.splitlines() if "digits only" in line] == (
            [] if quiet else [f"{model}: {hub.DEMO}"]
        )


def test_other_models_are_not_said_to_know_digits_only(room, call):
    assert "digits" not in call("0.wav")[2]
