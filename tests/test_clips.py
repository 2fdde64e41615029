"""Parts of a recording: which samples are recognized, with which times, and what is said about the rest."""

import io
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from helpers import ROOT

import glmasr
import transcribe
from glmasr import audio
from glmasr.cli import clips as clips_argument
from glmasr.cli import moment
from glmasr.errors import AudioError, OptionError
from glmasr.pipeline import Options
from glmasr.tools import attention
from glmasr.transcription import clips
from glmasr.transcription.clips import as_clips, check, clipped, name, within

RATE = 16_000


@pytest.fixture(scope="module", params=["demo", "demo-article"])
def recognizer(request):
    return glmasr.load(request.param, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def en():
    return audio.load(ROOT / "examples" / "en.mp3").numpy()


@pytest.fixture(scope="module")
def talk(en):
    """The same digits at 0, 8 and 16 s, each in 8 s; 24 s."""
    return np.concatenate([np.pad(en, (0, 8 * RATE - len(en)))] * 3)


def heard(transcript):
    return re.sub(r"\W", "", transcript.text)


# ---- samples ---------------------------------------------------------------------------------------------------------------


def blocks(count, length):
    numbers = torch.arange(float(count))
    return [numbers[place : place + length] for place in range(0, count, length)]


@pytest.mark.parametrize("length", [1, 1000, 7919, 48_000, 10**6])
@pytest.mark.parametrize("wanted", [[(0, 1)], [(0.5, 1), (1, 2.25)], [(1, None)], [(0, 0.1), (0.7, 2), (2.9, None)]])
def test_the_samples_of_clips(length, wanted):
    if length == 1:
        wanted = [tuple(None if edge is None else edge / 100 for edge in clip) for clip in wanted]
    count = 3 * RATE if length > 1 else RATE // 20
    warnings = []
    for (start, end), (first, parts) in zip(wanted, clipped(blocks(count, length), wanted, warnings.append)):
        assert first == round(start * RATE)
        stop = count if end is None else round(end * RATE)
        assert torch.cat(list(parts)).tolist() == list(range(first, stop))
    assert not warnings


def test_nothing_is_read_after_the_last_clip():
    read = []

    def stream():
        for block in blocks(RATE, 1000):
            read.append(len(block))
            yield block

    for _, parts in clipped(stream(), [(0.125, 0.25)], print):
        list(parts)
    assert sum(read) == 4000


def test_clips_beyond_the_end():
    warnings = []
    found = [
        (first, sum(map(len, parts)))
        for first, parts in clipped(blocks(RATE, 999), [(0.5, 2), (3, 4), (5, None)], warnings.append)
    ]
    assert found == [(8000, 8000)]
    assert warnings == [
        "clip 0.5-2 goes beyond its end: the recording is 1.0 s long",
        "clip 3-4 begins beyond its end, and is left out: the recording is 1.0 s long",
    ]
    for start in (1, 7):
        with pytest.raises(AudioError, match="begins beyond its end: the recording is 1.0 s long"):
            list(clipped(blocks(RATE, 999), [(start, None)], print))


def test_without_clips_the_stream_is_handed_on():
    stream = blocks(10, 3)
    assert list(clipped(stream, (), print)) == [(0, stream)]


@pytest.mark.parametrize(
    "wrong, reason",
    [
        ([(2, 1)], "2-1 begins at 2 s and ends at 1 s"),
        ([(1, 1)], "1-1 begins at 1 s and ends at 1 s"),
        ([(1, 1 + 1e-9)], "there is nothing in it"),  # not even a sample
        ([(-1, 3)], "no number of seconds"),
        ([(math.nan, 3)], "nan-3 has a time"),
        ([(0, math.inf)], "0-inf has a time"),
        ([("0", 3)], "no number of seconds"),
        ([(None, 3)], "no number of seconds"),
        ([(True, 3)], "no number of seconds"),
        ([(5, 7), (6, 8)], "6-8 begins before the end of the one before"),
        ([(5, 7), (1, 2)], "1-2 begins before the end"),
        ([(5, None), (8, 9)], "8-9 begins before the end"),
        ([3], "a clip is 3"),
        ([(1, 2, 3)], "a clip is"),
        ("0-3", "clips is '0-3'"),
        (None, "clips is None"),
    ],
)
def test_clips_that_are_none(wrong, reason):
    with pytest.raises(OptionError, match=re.escape(reason)):
        check(wrong)
    with pytest.raises(OptionError, match=re.escape(reason)):
        Options(clips=wrong).check(100)


@pytest.mark.parametrize("wrong", [5, "0-3", b"0-3", [3]])
def test_what_holds_no_clips_is_named(wrong):
    with pytest.raises(OptionError, match=re.escape(repr(wrong if not isinstance(wrong, list) else wrong[0]))):
        check(as_clips(wrong))
    assert as_clips(iter([(0, 1), (2, None)])) == ((0, 1), (2, None))


def test_clips_that_are_right():
    for right in ((), [], [(0, 1)], ((0, 1), (1, 2.5), [4, None])):
        check(right)
    assert name((60, 120.5)) == "60-120.5"
    assert [within([(1, 2), (4, None)], seconds) for seconds in (0, 1.5, 3, 6, math.inf)] == [0, 0.5, 1, 3, math.inf]


# ---- recognized ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("long", ["cut", "whole", "seek"])
@pytest.mark.parametrize("words", [False, True])
def test_a_clip_is_recognized_as_if_it_were_alone(recognizer, talk, en, long, words):
    if long not in recognizer.family.long_form:
        pytest.skip("this model has no such way")
    alone = recognizer.transcribe(en, "en", sample_rate=RATE, beams=1, words=words, long=long)
    end = len(en) / RATE
    wanted = [(0, end), (16, 16 + end)]
    found = recognizer.transcribe(talk, "en", sample_rate=RATE, beams=1, words=words, long=long, clips=wanted)
    assert heard(found) == 2 * heard(alone)
    expected = [(s.start + shift, s.end + shift) for shift in (0, 16) for s in alone.segments]
    assert [time for s in found.segments for time in (s.start, s.end)] == pytest.approx(
        [time for span in expected for time in span], abs=0.002
    )
    shifted = [w.start + shift for shift in (0, 16) for s in alone.segments for w in s.words]
    assert [w.start for s in found.segments for w in s.words] == pytest.approx(shifted, abs=0.002)
    assert found.seconds == pytest.approx(16 + end) and found.clips == tuple(wanted)
    assert found.decoded_seconds == pytest.approx(2 * end, abs=0.01) and found.skipped_seconds == 0
    assert found.to_dict()["clips"] == [list(clip) for clip in wanted]


@pytest.mark.parametrize("long", ["cut", "whole", "seek"])
def test_a_long_clip_is_as_the_same_samples(recognizer, talk, long):
    if long not in recognizer.family.long_form:
        pytest.skip("this model has no such way")
    alone = recognizer.transcribe(talk[8 * RATE :], "en", sample_rate=RATE, beams=1, long=long)
    found = recognizer.transcribe(talk, "en", sample_rate=RATE, beams=1, long=long, clips=[(8, None)])
    assert found.text == alone.text and found.seconds == 24.0
    assert [s.start - 8 for s in found.segments] == pytest.approx([s.start for s in alone.segments], abs=0.002)
    assert found.decoded_seconds == pytest.approx(alone.decoded_seconds, abs=0.01)
    assert found.skipped_seconds == pytest.approx(alone.skipped_seconds, abs=0.01)


def test_silence_in_a_clip_is_skipped_and_what_is_outside_is_neither(recognizer, talk):
    found = recognizer.transcribe(talk, "en", sample_rate=RATE, beams=1, vad="off", clips=[(0, 8), (13, 15), (16, 24)])
    assert found.decoded_seconds + found.skipped_seconds == pytest.approx(18, abs=0.01)
    assert found.seconds == 24.0 and found.skipped_seconds > 2


def test_a_silent_clip(recognizer, talk):
    found = recognizer.transcribe(talk, sample_rate=RATE, beams=1, clips=[(5, 7)])
    assert (found.text, found.seconds, found.decoded_seconds) == ("", 7.0, 0.0) or found.decoded_seconds == 2.0


def test_progress_counts_clips_only(recognizer, talk, tmp_path):
    soundfile.write(tmp_path / "talk.wav", talk, RATE)
    told = []
    recognizer.transcribe(
        str(tmp_path / "talk.wav"), beams=1, clips=[(8, 12), (16, None)], progress=lambda *so_far: told.append(so_far)
    )
    assert {total for _, total in told} == {12.0} and told[-1][0] == pytest.approx(12)


def test_what_is_drawn_is_the_first_window_of_the_first_clip(recognizer, talk, tmp_path):
    soundfile.write(tmp_path / "talk.wav", talk, RATE)
    options = recognizer.check("auto", Options(clips=((8, 11),), vad="off"))
    samples, begin = attention.first_window(recognizer, tmp_path / "talk.wav", options)
    assert begin == 8.0 and len(samples) == 3 * RATE


# ---- the command line ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, seconds",
    [("0", 0), ("90", 90), ("1.5", 1.5), ("1:30", 90), ("0:05.25", 5.25), ("1:02:03", 3723), ("90:00", 5400)],
)
def test_times_of_the_command_line(text, seconds):
    assert moment(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "-1", "nan", "inf", "x", "1:60", "1:99:00", "1:2:3:4", ":5", "1:-2", "1:nan", "²:1"]
)
def test_times_that_are_none(text):
    with pytest.raises(Exception, match="is not a time in seconds"):
        moment(text)


def test_clips_of_the_command_line():
    assert clips_argument("60-120,5:00-") == ((60, 120), (300, None))
    assert clips_argument("-10, 1:00:00-1:00:01.5") == ((0, 10), (3600, 3601.5))
    for wrong in ("", "5", "-", "1-2,", "1-2-3", "a-b"):
        with pytest.raises(Exception, match="is not"):
            clips_argument(wrong)


@pytest.fixture
def call(recognizer, talk, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(glmasr, "load", lambda *args, **more: recognizer, raising=False)
    soundfile.write("talk.wav", talk, RATE)
    soundfile.write("short.wav", talk[: 9 * RATE], RATE)

    def run(*arguments):
        code = transcribe.main([*arguments, "--model", "demo-article", "--lang", "en", "--beams", "1"])
        return (code, *capsys.readouterr())

    return run


def test_clips_of_several_files(call):
    code, out, err = call("short.wav", "talk.wav", "--json", "--clip", "0-4,16-20")
    short, long = (json.loads(line) for line in out.splitlines())
    assert code == 0 and long["text"].count("five") == 2 * short["text"].count("five") > 0
    assert "warning: short.wav: clip 16-20 begins beyond its end, and is left out" in err
    assert (short["seconds"], long["seconds"]) == (4.0, 20.0) and short["clips"] == [[0.0, 4.0], [16.0, 20.0]]
    assert "12.0 s of sound in" in err


def test_a_clip_beyond_the_end_is_an_error_of_that_recording(call):
    code, out, err = call("short.wav", "talk.wav", "--start", "16", "--end", "0:20")
    assert (
        code == 1
        and "error: short.wav: clip 16-20 begins beyond its end" in err
        and "1 done, 0 skipped, 1 failed" in err
    )
    assert "five" in out


def test_clips_of_standard_input(call, talk, monkeypatch):
    file = io.BytesIO()
    soundfile.write(file, talk, RATE, format="WAV")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(file.getvalue())))
    code, out, err = call("-", "--clip", "8-12")
    assert code == 0 and out.count("five") > 0 and "4.0 s of sound in" in err


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--clip", "2-1"], "begins at 2 s and ends at 1 s"),
        (["--clip", "5-7,6-8"], "begins before the end of the one before it"),
        (["--start", "5", "--end", "4"], "begins at 5 s and ends at 4 s"),
        (["--end", "0"], "begins at 0 s and ends at 0 s, so there is nothing in it; expected an end"),
        (["--start", "nan"], "is not a time"),
        (["--clip", "1-2", "--start", "1"], "it goes without --start and --end"),
        (["--words-per-cue", "2"], "goes with --words"),
    ],
)
def test_wrong_usage(call, capsys, arguments, reason):
    with pytest.raises(SystemExit) as leave:
        call("talk.wav", *arguments)
    assert leave.value.code == 2 and reason in capsys.readouterr().err


def test_a_run_with_clips_goes_on_where_it_was_stopped(call, recognizer, monkeypatch):
    arguments = ["talk.wav", "--format", "all", "--batch-size", "1", "--clip", "0-4,8-12,16-24", "--words"]
    assert call(*arguments, "--output-dir", "whole")[0] == 0
    decode, count = recognizer.windows.decode, []

    def counting(jobs, options):
        count.append([job.window.begin for job in jobs])
        if len(count) == stop:
            raise KeyboardInterrupt
        return decode(jobs, options)

    monkeypatch.setattr(recognizer.windows, "decode", counting)
    stop = 3
    code, _, err = call(*arguments, "--output-dir", "out")
    assert code == 130 and "incomplete, recognized up to 00:1" in err
    part = json.loads(Path("out/talk.incomplete.json").read_text(encoding="utf-8"))
    assert part["incomplete"] and part["decoded_seconds"] + part["skipped_seconds"] == pytest.approx(
        within([(0, 4), (8, 12), (16, 24)], part["seconds"]), abs=0.02
    )
    count.clear()
    stop = -1
    code, _, err = call(*arguments, "--output-dir", "out", "--resume")
    assert code == 0 and "goes on at" in err and count[0][0] >= 8
    files = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert files == {path.name: path.read_bytes() for path in Path("whole").iterdir()}
    count.clear()
    stop = 3
    assert call(*arguments, "--output-dir", "out")[0] == 130
    stop = -1
    other = [*arguments[:-2], "0-4,8-12,16-23", "--words", "--output-dir", "out", "--resume"]
    code, _, err = call(*other)
    assert code == 0 and "the run that was stopped differs in its clips" in err


def test_the_checks_of_clips_need_no_torch():
    assert "torch" not in [
        line.split()[1] for line in open(clips.__file__, encoding="utf-8") if line.startswith("import")
    ]
