"""Speech that no text covers is found, decoded again, and told of where it stays without text."""

import numpy as np
import pytest
import torch

from glmasr import coverage, cutting, pipeline
from glmasr.coverage import Stretch, spoken, sparse, stretches
from glmasr.pipeline import Options
from test_encoder_decoder_pipeline import answering, at, folder, recogniser, said, sound          # noqa: F401


def voice(*spans, seconds=30.0):
    """Frames of which these seconds are voiced."""
    frames = torch.zeros(round(seconds * 100), dtype=torch.bool)
    for start, end in spans:
        frames[round(start * 100):round(end * 100)] = True
    return frames


@pytest.mark.parametrize("text, letters", [("", 0), ("I'm here.", 6), ("八二三", 9), ("42 次", 9), ("カナ", 4), ("naïve été", 8), ("…!?", 0)])
def test_how_much_is_said_with_a_text(text, letters):
    assert spoken(text) == letters


def test_a_text_too_short_for_its_speech():
    ten_words = "and so the ten words of it were all there"
    assert sparse(ten_words, 20) and not sparse(ten_words, 5)
    assert not sparse("yes", 1.0) and not sparse("", 0.0)
    assert sparse("我们", 4.0) and not sparse("我们今天去看电影", 4.0)


@pytest.mark.parametrize("spans, covered, expected", [
    ([(0, 10)], [(0, 10, "x" * 100)], []),
    ([(0, 10), (12, 28)], [(0, 10, "x" * 100)], [(1000, 3000, 16.0, None)]),                 # a decoder that stopped
    ([(0, 20)], [(0, 5, "x" * 60), (9, 20, "x" * 100)], [(500, 900, 4.0, None)]),           # one that jumped
    ([(3, 20)], [(9, 20, "x" * 100)], [(0, 900, 6.0, None)]),                               # one that began late
    ([(0, 23)], [(0, 23, "x" * 40)], [(0, 2300, 23.0, 0)]),                                 # ten words for 23 seconds
    ([(0, 30)], [], [(0, 3000, 30.0, None)]),
    ([(0, 10), (11, 11.4)], [(0, 10, "x" * 100)], []),                                      # a cough
    ([(0, 20)], [(0, 12, "x" * 100), (10, 20, "x" * 80)], []),                              # times that overlap
    ([(0, 20)], [(0, 40, "x" * 200)], []),
])
def test_stretches_without_text(spans, covered, expected):
    assert [(found.first, found.last, pytest.approx(found.voice), found.covering) for found in stretches(voice(*spans), covered)] == expected


# ---- in the pipeline (windows of 2 s) -----------------------------------------------------------------------------------------

@pytest.fixture
def all_voice(monkeypatch):
    """Whatever sounds is a voice."""
    monkeypatch.setattr(cutting, "voiced", lambda samples: torch.from_numpy(np.abs(samples.numpy()[::160]) >= 0))


LONG = "many words, quickly said"


def test_decoding_goes_on_where_the_last_time_is(recogniser, monkeypatch, all_voice):
    asked = answering(monkeypatch, [said(at(0), LONG, at(0.8)), said(at(0), "the rest", at(1.2))])
    found = recogniser.transcribe(sound(2), "en", sample_rate=16_000, timestamps=True)
    assert [(segment.start, segment.end, segment.text) for segment in found.segments] == [(0.0, 0.8, LONG), (0.8, 2.0, "the rest")]
    assert len(asked) == 2 and not found.uncovered and not found.warnings


def test_what_stays_without_text_is_told(recogniser, monkeypatch, all_voice):
    answering(monkeypatch, [said(at(0), LONG, at(0.8)), said(at(0), at(0))])
    found = recogniser.transcribe(sound(2), "en", sample_rate=16_000)
    assert found.text == LONG and found.uncovered == [(0.8, 2.0)]
    assert found.warnings == ["0.8 s to 2.0 s: somebody speaks here, and there is no text, or too little"]


def test_text_too_short_for_its_speech_is_told_and_flagged(recogniser, monkeypatch, all_voice):
    monkeypatch.setattr(coverage, "SLOW", 10.0)
    monkeypatch.setattr(pipeline, "SPLIT_SECONDS", 9.0)
    answering(monkeypatch, [said(at(0), "x", at(2))])
    found = recogniser.transcribe(sound(2), "en", sample_rate=16_000, timestamps=True)
    assert [segment.flags for segment in found.segments] == [("uncovered",)] and found.uncovered == [(0.0, 2.0)]


def test_a_longer_text_of_the_halves_is_taken(recogniser, monkeypatch, all_voice):
    monkeypatch.setattr(coverage, "SLOW", 10.0)
    answering(monkeypatch, [said(at(0), "x", at(2)), said(at(0), LONG, at(1)), said(at(0), LONG, at(1))])
    found = recogniser.transcribe(sound(2), "en", sample_rate=16_000)
    assert found.text == f"{LONG} {LONG}" and not found.uncovered


def test_no_text_at_all_is_tried_in_halves_once(recogniser, monkeypatch, all_voice):
    asked = answering(monkeypatch, [said(at(0), at(0)) for _ in range(3)])
    found = recogniser.transcribe(sound(2), "en", sample_rate=16_000)
    assert found.text == "" and found.uncovered == [(0.0, 2.0)] and sum(call["rows"] for call in asked) == 3


def test_nothing_is_decoded_again_without_guards_or_voice(recogniser, monkeypatch, all_voice):
    answering(monkeypatch, [said(at(0), LONG, at(0.8)) for _ in range(2)])     # another search would find no answer left
    recogniser.transcribe(sound(2), "en", sample_rate=16_000, guards=False)
    monkeypatch.setattr(cutting, "voiced", lambda samples: torch.zeros(len(samples) // 160, dtype=torch.bool))
    found = recogniser.transcribe(sound(2), "en", sample_rate=16_000)
    assert found.text == LONG and not found.uncovered


def test_seeking_goes_on_at_the_last_time_where_somebody_speaks_behind_it(recogniser, monkeypatch, all_voice):
    answering(monkeypatch, [said(at(0), LONG, at(1.4)), said(at(0), LONG, at(1.6))])
    parts = list(recogniser.stream(sound(3), "en", Options(timestamps=True, long="seek"), sample_rate=16_000))
    assert [(part.start, part.end) for part in parts[:-1]] == [(0.0, 1.4), (1.4, 3.0)]


def test_times_are_written_and_not_shown(recogniser, monkeypatch, all_voice):
    asked = answering(monkeypatch, [said(at(0), "one", at(0.8), at(0.8), "two", at(2.0)) for _ in range(2)] + [said("one two")])
    hidden, shown, none = (recogniser.transcribe(sound(2), "en", sample_rate=16_000, timestamps=value) for value in (None, True, False))
    assert [len(found.segments) for found in (hidden, shown, none)] == [1, 2, 1] and hidden.text == shown.text == none.text == "one two"
    assert [len(call["prompts"][0]) for call in asked] == [3, 3, 4]
