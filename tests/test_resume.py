"""A recording that is stopped in the middle: what is kept of it, and that a run that goes on ends as one that was never
stopped."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import ROOT

import glmasr
import transcribe
from glmasr import audio
from glmasr.errors import OptionError, ShortMemoryError
from glmasr.pipeline import Options, Part, Segment
from glmasr.tools import journal, journals
from glmasr.tools.journal import Journal
from glmasr.transcription import long_form
from glmasr.transcription.families import LanguageState, RecordingState
from glmasr.transcription.long_form import Reader
from glmasr.writers import output
from glmasr.writers.formats import WRITERS

RATE = 16_000
MODEL = ["--model", "demo-article", "--device", "cpu", "--dtype", "float32", "--batch-size", "1", "--beams", "1"]


@pytest.fixture(scope="module")
def recognizer():
    return glmasr.load("demo-article", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def talk():
    """(S,): noise of two seconds, then examples of all languages, with pauses: a dozen windows."""
    zh, yue, en = (audio.load(ROOT / "examples" / name).numpy() for name in ("zh.wav", "yue.flac", "en.mp3"))
    pause, noise = (
        np.zeros(RATE // 2, np.float32),
        np.random.default_rng(0).normal(0, 0.01, 3 * RATE).astype(np.float32),
    )
    return np.concatenate([noise, *(part for _ in range(3) for part in (pause, zh, pause, en, pause, yue))])


@pytest.fixture(scope="module")
def whole(talk, recognizer, tmp_path_factory):
    """A folder with the recording, and the files of a run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    soundfile.write(folder / "talk.wav", talk, RATE)
    os.symlink(folder / "talk.wav", folder / "other.wav")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(glmasr, "load", lambda *args, **more: recognizer, raising=False)
        assert transcribe.main(["talk.wav", *MODEL, "--format", "all", "--output-dir", "out"]) == 0
    assert len(list((folder / "out").iterdir())) == len(WRITERS)
    return folder


@pytest.fixture
def run(whole, recognizer, tmp_path, monkeypatch, capsys):
    """run(*arguments, stop=n, error=KeyboardInterrupt) -> (exit code, standard error, windows that were decoded), in
    this process; the n-th window (from 1) ends in the error."""
    monkeypatch.chdir(whole)
    monkeypatch.setattr(glmasr, "load", lambda *args, **more: recognizer, raising=False)
    decode, state = recognizer.windows.decode, {}

    def counting(jobs, options):
        state["count"] += len(jobs)
        if state["count"] >= state["stop"]:
            raise state["error"]
        return decode(jobs, options)

    monkeypatch.setattr(recognizer.windows, "decode", counting)

    def call(*arguments, stop=10**6, error=KeyboardInterrupt(), names=("talk.wav",), files=True):
        state.update(count=0, stop=stop, error=error)
        code = transcribe.main(
            [*names, *MODEL, *(["--format", "all", "--output-dir", str(tmp_path)] if files else []), *arguments]
        )
        out, err = capsys.readouterr()
        return (code, err, state["count"]) if files else (code, err, out)

    return call


def found(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


INCOMPLETE = sorted(["talk.incomplete.jsonl", *(f"talk.incomplete.{form}" for form in WRITERS)])


# ---- Ctrl-C and crashes ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_a_signal_and_then_on(run, whole, tmp_path, name):
    """A process of its own, stopped as soon as three parts are on the disk."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child would inherit that it is ignored
    child = subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "transcribe.py"),
            "talk.wav",
            *MODEL,
            "--format",
            "all",
            "--output-dir",
            str(tmp_path),
        ],
        cwd=whole,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, handler)
    kept, end = tmp_path / "talk.incomplete.jsonl", time.monotonic() + 120
    try:
        while not (kept.exists() and kept.read_bytes().count(b"\n") >= 4):
            assert child.poll() is None and time.monotonic() < end
            time.sleep(0.005)
        child.send_signal(getattr(signal, name))
        _, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert "Traceback" not in err and not (tmp_path / "talk.srt").exists()
    if name == "SIGINT":
        assert (
            child.returncode == 130
            and err.endswith("--resume goes on there\ninterrupted\n")
            and sorted(found(tmp_path)) == INCOMPLETE
        )
    lines = kept.read_bytes().count(b"\n")
    code, err, count = run("--resume")
    assert code == 0 and "talk.wav: goes on at 00:" in err and found(tmp_path) == found(whole / "out")
    assert count == len(parts_of(whole)) - (lines - 1)


@pytest.mark.parametrize("parts, place", [(2, 0), (5, 1), (8, 8)])
def test_the_place_that_is_named_is_where_it_goes_on(run, recognizer, tmp_path, monkeypatch, parts, place):
    """Stopped within a batch, after some of its parts: only after its last one is it known how to go on."""
    streams = recognizer.streams
    last = {2: (), 5: (1,), 8: (1, 5, 8)}[parts]

    def stopping(*arguments, **more):
        for number, (index, part) in enumerate(streams(*arguments, **more), 1):
            if number > parts:
                raise KeyboardInterrupt
            yield index, part if number in last else replace(part, language_state=None)

    with monkeypatch.context() as patch:
        patch.setattr(recognizer, "streams", stopping)
        code, err, _ = run()
    ends = [part["end"] for part in map(json.loads, list(open(tmp_path / "talk.incomplete.jsonl"))[1:])]
    assert code == 130 and len(ends) == parts
    named = {0: "begins anew", parts: "with --resume goes on there"}
    expected = named.get(place) or f"with --resume goes on at {transcribe.clock(ends[place - 1])}"
    assert f"recognized up to {transcribe.clock(ends[-1])}; the same command {expected}\n" in err
    code, err, _ = run("--resume", stop=1)
    goes_on = (
        f"goes on at {transcribe.clock(ends[place - 1])}" if place else "begins anew, because too little was recog"
    )
    assert f"talk.wav: {goes_on}" in err


def parts_of(whole):
    """The windows of the recording, by the library."""
    recognizer = glmasr.load("demo-article", device="cpu", dtype="float32")
    return list(
        recognizer.jobs(Reader(audio.blocks(whole / "talk.wav"), recognizer.config.window), RecordingState.of("auto"))
    )


def test_what_is_written_at_once(run, whole, tmp_path):
    code, err, _ = run(stop=6)
    assert code == 130 and sorted(found(tmp_path)) == INCOMPLETE
    record, all_of_it = (
        json.loads((tmp_path / "talk.incomplete.json").read_bytes()),
        json.loads((whole / "out" / "talk.json").read_bytes()),
    )
    assert (
        record["incomplete"] is True
        and all_of_it["incomplete"] is False
        and record["language"]
        and all_of_it["language"]
    )
    assert record["segments"] == all_of_it["segments"][: len(record["segments"])] and len(record["segments"]) >= 4
    assert (
        record["seconds"] < all_of_it["seconds"]
        and record["warnings"][-1] == f"it was stopped at {record['seconds']:.1f} s, so the text is incomplete"
    )
    assert (
        f"talk.wav: incomplete, recognized up to {transcribe.clock(record['seconds'])}; the same command with --resume goes on there"
        in err
    )
    assert "\nNOTE incomplete: the recording goes on after 00:00:" in (tmp_path / "talk.incomplete.vtt").read_text(
        encoding="utf-8"
    )
    assert "NOTE" not in (whole / "out" / "talk.vtt").read_text(encoding="utf-8")
    whole_text = (whole / "out" / "talk.txt").read_text(encoding="utf-8")
    assert whole_text.startswith((tmp_path / "talk.incomplete.txt").read_text(encoding="utf-8"))
    code, err, count = run("--resume", "--skip-existing")  # nobody takes it for the whole
    assert code == 0 and "skipped" not in err and found(tmp_path) == found(whole / "out")
    assert count == len(parts_of(whole)) - 5
    assert "0 done, 1 skipped" in run("--resume", "--skip-existing", names=("talk.wav", "nothing.wav"))[1]


@pytest.mark.parametrize("options", [["--timestamps"], ["--batch-size", "3"], ["--batch-size", "auto", "--lang", "zh"]])
def test_stopped_again_and_again(run, whole, tmp_path, options):
    """Also in the middle of batches."""
    code, err, total = run(*options)
    assert code == 0
    expected = found(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    code, counts = 130, []
    while code == 130:
        code, err, count = run(*options, "--resume", stop=total // 3 + 2)
        counts.append(count)
    assert (
        code == 0 and len(counts) > 2 and sum(counts) <= total + len(counts) * 8
    )  # windows of the batch that was stopped
    same = found(tmp_path)
    assert set(same) == set(expected)
    for name, text in expected.items():
        if name == "talk.json" and "--batch-size" in options:  # sums are made in another order
            ours, theirs = json.loads(same[name]), json.loads(text)
            for segment, other in zip(ours["segments"], theirs["segments"], strict=True):
                assert segment.pop("mean_logprob") == pytest.approx(other.pop("mean_logprob"), abs=2e-4)
                assert segment.pop("no_speech") == pytest.approx(other.pop("no_speech"), abs=2e-4)
            assert ours == theirs
        else:
            assert same[name] == text, name


@pytest.mark.parametrize(
    "torn", [b"", b'{"start": 12.', b"\0" * 40, b"\0\0\n\0", b'{"start": 1.0}\n', "一".encode()[:2] + b"\n"]
)
def test_a_torn_line(run, whole, tmp_path, torn):
    run(stop=5)
    with open(tmp_path / "talk.incomplete.jsonl", "ab") as file:
        file.write(torn)
    code, err, count = run("--resume", stop=3)
    assert (
        code == 130
        and count == 3
        and all(json.loads(line) for line in (tmp_path / "talk.incomplete.jsonl").read_bytes().splitlines())
    )
    code, err, count = run("--resume")
    assert code == 0 and count == len(parts_of(whole)) - 6 and found(tmp_path) == found(whole / "out")


def test_a_torn_first_line(run, whole, tmp_path):
    (tmp_path / "talk.incomplete.jsonl").write_bytes(b'{"run": {"rec')
    code, err, count = run("--resume")
    assert (
        code == 0
        and "talk.wav: begins anew, because nothing was recognized of it" in err
        and found(tmp_path) == found(whole / "out")
    )


# ---- what doesn't fit --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, other",
    [
        (["--lang", "zh"], "language"),
        (["--beams", "2"], "beams"),
        (["--pad-to", "speech", "--no-timestamps"], "pad_to, timestamps"),
    ],
)
def test_other_options_begin_anew(run, whole, tmp_path, options, other):
    run(stop=4)
    code, err, count = run("--resume", *options, stop=2)
    assert (
        code == 130
        and count == 2
        and f"talk.wav: begins anew, because the run that was stopped differs in its {other}\n" in err
    )


def test_another_recording_or_model_begins_anew(run, whole, tmp_path, monkeypatch):
    run(stop=4)
    monkeypatch.setattr(journal, "_digest", lambda recording: "another")
    assert "differs in its recording\n" in run("--resume", stop=1)[1]
    monkeypatch.undo()


def test_the_fingerprint(recognizer, whole, tmp_path):
    def found(recording="talk.wav", model=glmasr.checkpoint.hub.find("demo-article"), options=Options()):
        return journal.fingerprint(str(whole / recording), Path(model), recognizer, "auto", options)

    assert (
        found() == found("other.wav") == found(options=Options(batch_size=7, max_duration=5.0))
    )  # of other names, and read in other steps
    assert {key for key, value in found().items() if value != found(model=glmasr.checkpoint.hub.find("demo"))[key]} == {
        "model"
    }
    samples, rate = soundfile.read(whole / "talk.wav")
    samples[len(samples) // 2] += 0.01
    soundfile.write(tmp_path / "changed.wav", samples, rate)
    assert {key for key, value in found().items() if value != found(tmp_path / "changed.wav")[key]} == {"recording"}
    assert found("nothing.wav")["recording"] is None


def test_without_resume_a_line_says_what_it_would_do(run, whole, tmp_path):
    run(stop=4)
    before = json.loads((tmp_path / "talk.incomplete.json").read_bytes())
    code, err, count = run(stop=3)
    assert (
        f"talk.wav: begins anew; with --resume it goes on at {transcribe.clock(before['seconds'])}, where it was stopped"
        in err
    )
    assert count == 3 and (tmp_path / "talk.incomplete.jsonl").read_bytes().count(b"\n") == 3
    code, err, count = run()
    assert code == 0 and count == len(parts_of(whole)) and found(tmp_path) == found(whole / "out")


def test_resume_goes_with_files(capsys):
    with pytest.raises(SystemExit) as leave:
        transcribe.main(["talk.wav", "--resume"])
    assert leave.value.code == 2 and "--resume goes with files" in capsys.readouterr().err


# ---- errors in the middle, several recordings ----------------------------------------------------------------------------------


def test_an_error_keeps_its_part_and_the_others_are_done(run, whole, recognizer, tmp_path, monkeypatch):
    def starved(jobs, options, decode=recognizer.windows.decode):
        return (
            [ShortMemoryError("no memory")]
            if jobs and jobs[0].window.begin > 12 and jobs[0].recording is first[0]
            else decode(jobs, options)
        )

    first, work = [], long_form.cut_jobs

    def noting(reader, window, recording, *more):
        first.append(recording)
        return work(reader, window, recording, *more)

    with monkeypatch.context() as patch:
        patch.setattr(recognizer.windows, "decode", starved)
        patch.setattr(long_form, "cut_jobs", noting)
        code, err, _ = run(names=("talk.wav", "other.wav"))
    assert code == 1 and "error: talk.wav: no memory" in err and "1 done, 0 skipped, 1 failed" in err
    assert sorted(found(tmp_path)) == sorted([*INCOMPLETE, *(f"other.{form}" for form in WRITERS)])
    code, err, count = run("--resume", "--skip-existing", names=("talk.wav", "other.wav"))
    assert code == 0 and "1 done, 1 skipped" in err and 0 < count < len(parts_of(whole)) - 2
    assert {name: text for name, text in found(tmp_path).items() if name.startswith("talk")} == found(whole / "out")


def test_a_defect_keeps_it_too(run, tmp_path):
    with pytest.raises(ZeroDivisionError):
        run(stop=4, error=ZeroDivisionError())
    assert sorted(found(tmp_path)) == INCOMPLETE


def test_each_of_several_recordings_keeps_its_own(run, whole, tmp_path):
    total = len(parts_of(whole))
    code, err, _ = run("--batch-size", "4", stop=total + 8, names=("talk.wav", "other.wav"))
    assert code == 130 and set(found(tmp_path)) == {f"talk.{form}" for form in WRITERS} | {
        name.replace("talk", "other") for name in INCOMPLETE
    }
    code, err, count = run("--batch-size", "4", "--resume", "--skip-existing", names=("talk.wav", "other.wav"))
    assert (
        code == 0 and "1 done, 1 skipped" in err and count < total and "incomplete" not in str(sorted(found(tmp_path)))
    )
    assert found(tmp_path)["other.txt"] == found(tmp_path)["talk.txt"] == found(whole / "out")["talk.txt"]


def test_one_window_needs_no_journal(run, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(journal.Journal, "__init__", None)
    soundfile.write(whole / "short.wav", np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32), RATE)
    assert run(names=("short.wav",))[0] == 0 and len(found(tmp_path)) == len(WRITERS)


# ---- standard output ---------------------------------------------------------------------------------------------------------


def test_without_files(run, whole):
    """What was recognized is printed, and a line says that it isn't all."""
    text = (whole / "out" / "talk.txt").read_text(encoding="utf-8")
    code, err, out = run(stop=6, files=False)
    assert (
        code == 130
        and re.search("talk.wav: incomplete, recognized up to 00:..\\...\ninterrupted\n$", err)
        and len(out.splitlines()) >= 4
        and text.startswith(out)
    )
    code, err, out = run("--json", stop=6, files=False)
    record = json.loads(out)
    assert code == 130 and "incomplete, " in err and record["incomplete"] and len(record["segments"]) >= 4


# ---- the journal -------------------------------------------------------------------------------------------------------------

PART = Part(
    1.0,
    2.5,
    "zh",
    [Segment(1.1, 2.4, "三\ud800", -0.1, 0.7, 0.01, 0.2, ("sampled",))],
    ["warned"],
    language_state=LanguageState("zh"),
)


def test_parts_come_back_as_they_were(tmp_path):
    kept = Journal(tmp_path / "a" / "b.jsonl")
    kept.begin({"beams": 1}, ["txt"])
    parts = [
        PART,
        replace(PART, start=2.5, end=3.1 + 1e-16, language_state=None),
        replace(PART, start=4.0, language_state=LanguageState("auto")),
        replace(PART, language_state=None),
    ]
    for part in parts:
        kept.add(part)
    kept.close()
    again = Journal(tmp_path / "a" / "b.jsonl")
    assert (again.run, again.formats, again.parts, again.count) == ({"beams": 1}, ["txt"], parts[:3], 3)
    again.remove()
    assert not (tmp_path / "a" / "b.jsonl").exists()


def test_an_interrupted_line_is_written_again_once(tmp_path, monkeypatch):
    kept = Journal(tmp_path / "b.jsonl")
    kept.begin({"beams": 1}, ["txt"])
    kept.add(PART)

    def interrupted(number):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "fsync", interrupted)
        kept.add(PART)
    assert kept.count == 1
    kept.add(replace(PART, start=1.5))
    kept.close()
    assert Journal(tmp_path / "b.jsonl").parts == [PART, replace(PART, start=1.5)]


def test_interrupted_while_it_begins(run, whole, tmp_path, monkeypatch):
    """Between the opening of the journal and its first line."""

    def interrupted(*arguments, real=journal.fingerprint, calls=[]):
        calls.append(arguments)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(journal, "fingerprint", interrupted)
    code, err, count = run()
    assert (code, count) == (130, 2) and sorted(found(tmp_path)) == INCOMPLETE
    code, err, count = run("--resume")
    assert code == 0 and count == len(parts_of(whole)) - 2 and found(tmp_path) == found(whole / "out")


@pytest.mark.skipif(journal.fcntl is None, reason="needs locks of POSIX")
def test_two_processes_do_not_write_into_one_journal(run, whole, tmp_path):
    run(stop=4)
    before = found(tmp_path)
    held = Journal(tmp_path / "talk.incomplete.jsonl")
    for resume in ([], ["--resume"]):
        code, err, count = run(*resume)
        assert (
            (code, count) == (1, 0)
            and "another process is at work on the same files; wait for its end" in err
            and found(tmp_path) == before
        )
    held.close()
    assert run("--resume")[0] == 0 and found(tmp_path) == found(whole / "out")


@pytest.mark.skipif(journal.fcntl is None, reason="needs locks of POSIX")
def test_another_process_that_has_begun_meanwhile(run, whole, tmp_path, monkeypatch):
    """The recording is written all the same, and the journal of the other one stays."""
    held = []

    def late(self, *args, real=journals.Journals.begun):
        names = real(self, *args)
        held.append(Journal(tmp_path / "talk.incomplete.jsonl"))
        return names

    monkeypatch.setattr(journals.Journals, "begun", late)
    code, err, _ = run()
    assert (
        code == 0
        and err.count("another process") == 1
        and {**found(whole / "out"), "talk.incomplete.jsonl": b""} == found(tmp_path)
    )
    held[0].close()


def test_a_full_disk(run, whole, tmp_path, monkeypatch):
    """It is said once, and the recording is recognized all the same."""

    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(journal.os, "fsync", full)
        patch.setattr(output, "write_whole", lambda path, text: Path(path).write_bytes(text.encode()))
        code, err, _ = run()
    assert (
        code == 0
        and err.count("No space left") == 1
        and "make room" in err
        and "--resume can't go on" in err
        and found(tmp_path) == found(whole / "out")
    )


def test_results_that_cannot_be_written_are_not_recognized_again(run, whole, tmp_path, monkeypatch):
    (tmp_path / "talk.srt").mkdir()
    code, err, _ = run()
    assert code == 1 and "talk.srt: cannot be written" in err
    (tmp_path / "talk.srt").rmdir()
    code, err, count = run("--resume")
    assert (code, count) == (0, 0) and found(tmp_path) == found(whole / "out")


# ---- the library -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, more", [(1, {}), (3, {}), (1, {"long": "seek", "timestamps": True})])
def test_a_stream_goes_on_behind_any_part_that_has_its_language_state(recognizer, talk, size, more):
    options, sound = Options(batch_size=size, beams=1, temperatures=(0.0,), **more), talk[: 20 * RATE]
    parts = list(recognizer.stream(sound, "auto", options, sample_rate=RATE))
    places = [place for place, part in enumerate(parts, 1) if part.language_state]
    assert len(places) == -(-(len(parts) - 1) // size) > 1 and parts[places[-1] - 1].language_state.detected in (
        "zh",
        "en",
        "yue",
    )
    for place in places[::2]:
        rest = list(recognizer.stream(sound, "auto", options, sample_rate=RATE, done=parts[:place]))
        assert [
            (part.start, part.end, part.language, [segment.text for segment in part.segments]) for part in rest
        ] == [
            (part.start, part.end, part.language, [segment.text for segment in part.segments]) for part in parts[place:]
        ]


def test_a_part_without_its_language_state(recognizer, talk):
    with pytest.raises(OptionError, match="no `language_state`"):
        next(recognizer.stream(talk, sample_rate=RATE, done=[replace(PART, language_state=None)]))


def test_the_language_that_was_judged_is_kept(recognizer, talk):
    """Behind a stretch that was taken for Cantonese all is Cantonese, whatever follows."""
    rest = list(
        recognizer.stream(
            talk,
            "auto",
            Options(batch_size=1, beams=1),
            sample_rate=RATE,
            done=[replace(PART, language_state=LanguageState("yue"))],
        )
    )
    assert {part.language for part in rest[:-1]} == {"yue"}


def test_warnings_are_said_once(recognizer, tmp_path, talk):
    soundfile.write(tmp_path / "torn.flac", talk, RATE)
    data = (tmp_path / "torn.flac").read_bytes()
    (tmp_path / "torn.flac").write_bytes(data[: len(data) * 3 // 4])
    parts = list(recognizer.stream(tmp_path / "torn.flac", "auto", Options(batch_size=1, beams=1, temperatures=(0.0,))))
    said = [warning for part in parts for warning in part.warnings if "breaks off" in warning]
    assert len(said) == 1
    for place in range(1, len(parts), 3):
        rest = recognizer.stream(
            tmp_path / "torn.flac", "auto", Options(batch_size=1, beams=1, temperatures=(0.0,)), done=parts[:place]
        )
        assert [
            warning for part in [*parts[:place], *rest] for warning in part.warnings if "breaks off" in warning
        ] == said
