"""What benchmarks/peers.py joins, and how it judges what was measured: without a model. And growth.py's bars, and what
parts.py measures."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT

import glmasr

sys.path.append(str(ROOT / "benchmarks"))

import growth  # noqa: E402
import parts  # noqa: E402
import peers  # noqa: E402
from real import Clip  # noqa: E402

RATE = peers.RATE


def clips(*seconds: float) -> tuple[list[Clip], list[np.ndarray]]:
    """Clip number n, from 1, has samples of value n."""
    texts = [f"word{number}" for number in range(1, len(seconds) + 1)]
    sounds = [np.full(round(length * RATE), number, np.float32) for number, length in enumerate(seconds, 1)]
    return [Clip(Path(text), "en", text, "") for text in texts], sounds


def test_recordings_are_of_all_clips_before_one_comes_again():
    some, sounds = clips(2, 3, 4)
    samples, text = peers.compose(some, sounds, 1)
    said = [int(word.removeprefix("word")) for word in text.split()]
    rounds = [said[start : start + 3] for start in range(0, len(said), 3)]
    assert len(rounds) > 3 and all(len(set(one)) == len(one) for one in rounds)
    assert len({tuple(one) for one in rounds[:-1]}) > 1  # in another order
    assert 60 - 4 - 0.8 < len(samples) / RATE <= 60
    loud = np.flatnonzero(np.diff(samples, prepend=0))
    found = [int(samples[place]) for place in loud if samples[place]]
    assert found == said
    pauses = [stop - start for start, stop in zip(loud, loud[1:]) if not samples[start]]
    assert len(pauses) == len(said) - 1 and 0.3 <= min(pauses) / RATE <= max(pauses) / RATE <= 0.8
    again, _ = peers.compose(some, sounds, 1)
    assert np.array_equal(samples, again)
    with pytest.raises(ValueError, match="no clip fits"):
        peers.compose(some, sounds, 0.01)


def test_short_clips_are_those_nearest_to_five_seconds():
    found = peers.recordings(*clips(1, 4.8, 9, *[5.0] * 9), "clip")
    assert [text for _, text in found] == [f"word{number}" for number in (*range(4, 13), 2)]


def record(subject, dtype, turn, seconds, wrong=0, length="3", beams=5, **more):
    return {
        "model": "base",
        "length": length,
        "beams": beams,
        "subject": subject,
        "dtype": dtype,
        "turn": turn,
        "sound": 100.0,
        "recordings": 1,
        "seconds": seconds,
        "cpu": 2 * seconds,
        "memory": 500.0,
        "substitutions": wrong,
        "deletions": 1,
        "insertions": 0,
        "said": 100,
        "date": "2026-01-01",
    } | more


def judged(runs):
    [(place, some)] = peers.cells(runs).items()
    return peers.bars(place, some)


def test_ratios_are_within_a_turn():
    """The machine is half as fast in the second turn; the median of seconds would say 1.5 and 3 times."""
    ours = [record("glmasr", "auto", turn, seconds) for turn, seconds in enumerate((10, 20, 10))]
    plain = [record("faster-whisper", "int8", turn, seconds) for turn, seconds in enumerate((25, 50, 25))]
    batched = [record("faster-whisper batched", "int8", 1, 40, wrong=7)]
    lines = judged([*batched, *plain, *ours])
    assert lines == [
        "glmasr auto 2.50 x as fast as faster-whisper int8 (bar 2.5 x): met",
        "glmasr auto 2.00 x as fast as faster-whisper batched int8 (bar 1.5 x): met",
        "glmasr auto 1.00 % errors, fewest of the others 1.00 % (faster-whisper int8): met",
    ]


def test_bars_are_of_the_fastest_types_and_may_not_be_met():
    runs = [
        record("glmasr", "auto", 0, 12, beams=1),
        record("glmasr", "int8", 0, 10, wrong=2, beams=1),
        record("faster-whisper", "float32", 0, 30, beams=1),
        record("faster-whisper", "int8", 0, 19, wrong=1, beams=1),
        record("faster-whisper batched", "int8", 0, 5, wrong=9, beams=1),
    ]
    assert judged(runs) == [
        "glmasr int8 1.90 x as fast as faster-whisper int8 (bar 2 x): not met",
        "glmasr int8 3.00 % errors, fewest of the others 1.00 % (faster-whisper float32): not met",
    ]
    clips = [
        record("glmasr", "auto", 0, 9, length="clip", recordings=10),
        record("openai-whisper", "float32", 0, 20, length="clip", recordings=10),
        record("faster-whisper", "int8", 0, 8, length="clip", recordings=10),
    ]
    assert judged(clips)[0] == "glmasr auto 0.89 x as fast as faster-whisper int8 (bar 1 x): not met"
    assert judged([record("glmasr", "auto", 0, 9)]) == []  # nobody to compare with
    later = [record("glmasr", "auto", 0, 9), record("faster-whisper", "int8", 1, 9)]  # no turn in common
    assert judged(later) == ["glmasr auto 1.00 % errors, fewest of the others 1.00 % (faster-whisper int8): met"]


def test_tables():
    runs = [
        *(record("glmasr", "auto", turn, seconds, wrong=2) for turn, seconds in enumerate((10, 12, 11))),
        record("glmasr", "int8", 0, 9.5, length="60", beams=1),
        record("faster-whisper", "float32", 0, 40),
        record("faster-whisper", "int8", 0, 30, wrong=4),
    ]
    rows = [line.strip("| ").split(" | ") for line in peers.short_table({"runs": runs}).splitlines()]
    assert rows[0] == ["s, errors", "`base`, 3 min, 5 beams", "`base`, 60 min, greedy"]
    assert [row[0] for row in rows[2:]] == [
        "glmasr auto",
        "glmasr int8",
        "openai-whisper",
        "faster-whisper",
        "faster-whisper batched",
        "Transformers",
    ]
    assert rows[2][1] == "11 s, 3.0 %" and rows[5][1] == "30 s (int8), 5.0 %"
    lines = peers.report({"runs": runs}).splitlines()
    assert "| glmasr auto | 11.00 (10.00-12.00) |  | 0.110 | 22.00 | 500 | 3.00 | 1.00 | 3 |" in lines
    assert "| faster-whisper float32 | 40.00 (40.00-40.00) | 4.00 | 0.400 | 80.00 | 500 | 1.00 | 1.00 | 1 |" in lines


def test_results_of_other_conditions_are_refused(tmp_path):
    path, conditions = tmp_path / "peers.json", {"machine": "one", "threads": 2}
    results = peers.opened(path, conditions)
    assert results == {"conditions": conditions, "runs": []}
    results["runs"].append(record("glmasr", "auto", 0, 1.0))
    peers.keep(path, results)
    assert peers.opened(path, conditions) == peers.opened(path, None) == results
    assert [one.name for one in tmp_path.iterdir()] == ["peers.json"]
    with pytest.raises(SystemExit, match="threads 2, and now it is 1"):
        peers.opened(path, conditions | {"threads": 1})
    with pytest.raises(SystemExit, match="isn't there"):
        peers.opened(tmp_path / "none.json", None)
    for text in ("[]", "{", json.dumps({"runs": []})):
        path.write_text(text)
        with pytest.raises(SystemExit, match="holds no results"):
            peers.opened(path, conditions)


def test_only_what_is_not_there_is_run(tmp_path, monkeypatch):
    """And what fails is named, and the others go on."""
    made = []

    def run(make, dtype, args, checkpoint, recordings, length):
        made.append((make, dtype, length, args.beams))
        if dtype == "int8":
            raise MemoryError("too much")
        return {"seconds": 1.0}

    class Pool:
        def __init__(self, *arguments, **how): ...

        def __enter__(self):
            return self

        def __exit__(self, *error): ...

        def submit(self, function, *arguments):
            return argparse.Namespace(result=lambda: ("en",) if function is peers.convert else {})

    monkeypatch.setattr(peers, "run", run)
    monkeypatch.setattr(peers, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(peers, "chosen", lambda names: [("glmasr", "auto", "a"), ("glmasr", "int8", "b")])
    args = argparse.Namespace(
        models=[Path("base")],
        lengths=["3"],
        beams=[5],
        turns=2,
        subjects=None,
        language="en",
        results=tmp_path / "peers.json",
    )
    results = {"conditions": {}, "runs": []}
    failed = peers.measure_all(args, [], results)
    assert made == [("a", "auto", "3", 5), ("b", "int8", "3", 5), ("b", "int8", "3", 5), ("a", "auto", "3", 5)]
    assert len(failed) == 2 and "glmasr int8" in failed[0] and "too much" in failed[0]
    assert json.loads(args.results.read_text()) == results and len(results["runs"]) == 2
    made.clear()
    peers.measure_all(args, [], results)
    assert made == [("b", "int8", "3", 5)] * 2


def test_subjects_are_chosen_by_name_and_type(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda module: None if module == "whisper" else module)
    named = [(name, dtype) for name, dtype, _ in peers.chosen(["GLMASR:float32", "faster-whisper", "openai-whisper"])]
    assert named == [("glmasr", "float32"), ("faster-whisper", "float32"), ("faster-whisper", "int8")]
    assert len(peers.chosen(None)) == 7
    for check, text in ((peers.subject, "whisper.cpp"), (peers.length, "0"), (peers.length, "an hour")):
        with pytest.raises(argparse.ArgumentTypeError, match=text):
            check(text)
    assert peers.length("60") == "60" and peers.subject("faster-whisper batched:int8")


def test_growth_is_judged_by_its_last_figure():
    assert growth.judged("time", 1.2, [1.5, 1.0], 1.2) == "- time 1.20 x (bar 1.2 x): met"
    assert growth.judged("time", 1.3, [1.5, 1.0], 1.2) == "- time 1.30 x (bar 1.2 x): not met"


def test_time_is_divided_between_products_attention_and_all_else():
    model = glmasr.load("demo-article", device="cpu", dtype="float32").model
    with torch.inference_mode():
        made = parts.works(model, [10])
        assert list(made) == ["encoder, a window", "its keys and values", "step, 10 rows"]
        assert [times for times, _ in made.values()] == [1, 1, parts.STEPS]
        for name, (_, work) in made.items():
            products, attention, other = parts.shares(work)
            assert products > 5 and other > 0 and products + attention + other == pytest.approx(100)
            assert (attention > 0) == (name != "its keys and values")
