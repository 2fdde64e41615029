"""Speech that no text covers is found. What comes of it: tests/test_encoder_decoder_pipeline.py."""

import pytest
import torch

from glmasr.transcription.chunking import Window
from glmasr.transcription.coverage import Stretch, fits, pauses, same, sounds_on, sparse, spoken, stretches
from glmasr.transcription.recovery import Lost, patched
from glmasr.transcription.results import Part, Segment


def voice(*spans, seconds=30.0):
    """Frames of which these seconds are voiced."""
    frames = torch.zeros(round(seconds * 100), dtype=torch.bool)
    for start, end in spans:
        frames[round(start * 100) : round(end * 100)] = True
    return frames


@pytest.mark.parametrize(
    "text, letters", [("", 0), ("I'm here.", 6), ("八二三", 9), ("42 次", 9), ("カナ", 4), ("naïve été", 8), ("…!?", 0)]
)
def test_how_much_is_said_with_a_text(text, letters):
    assert spoken(text) == letters


def test_a_text_too_short_for_its_speech():
    ten_words = "and so the ten words of it were all there"
    assert sparse(ten_words, 20) and not sparse(ten_words, 5)
    assert not sparse("yes", 1.0) and not sparse("", 0.0)
    assert sparse("我们", 4.0) and not sparse("我们今天去看电影", 4.0)


def test_a_text_too_long_for_its_speech():
    assert fits("x" * 60, 5) and not fits("x" * 200, 5) and not fits("x" * 10, 5)


def test_texts_that_say_the_same():
    again = "Red lorry, yellow lorry. " * 5
    assert (
        same(again, again.replace(",", "").upper())
        and not same(again, again[:100])
        and not same("我们今天去看电影", "我们昨天没有去")
    )


def test_long_pauses_are_cut_in_their_middle():
    assert pauses(voice((1, 3), (3.3, 5), (8, 9), seconds=10)) == [649] and pauses(
        voice((1, 3), (5, 6), (6.6, 8), seconds=10)
    ) == [399]
    assert pauses(voice((1, 3), (4, 5), (5.5, 7), seconds=10)) == [349, 524]  # half as long
    assert pauses(voice(seconds=3)) == [] and pauses(voice((1, 3), (3.3, 5), seconds=6)) == []
    assert pauses(voice((0, 0.2), (2, 4), (5, 6), (8, 8.4), seconds=10)) == [449]  # not around a cough
    assert pauses(voice((0, 2), (2.6, 2.9), (3.9, 6), seconds=7)) == [
        339
    ]  # not the one before it, with too little between
    assert pauses(voice((0, 0.5), (1, 1.5), seconds=2)) == [74] and pauses(voice((0, 0.49), (1, 1.5), seconds=2)) == []


def test_a_text_with_few_letters_across_a_pause():
    """It may have jumped over what was said before the pause, or somebody speaks slowly."""
    frames = voice((0, 2), (4, 10))
    [found] = stretches(frames, [(0, 10, "x" * 70)])
    assert (found.first, found.last, found.covering, found.pauses) == (0, 1000, 0, (299,))
    assert not list(stretches(frames, [(0, 10, "x" * 100)])) and not list(stretches(voice((0, 8)), [(0, 10, "x" * 70)]))


@pytest.mark.parametrize(
    "spans, covered, expected",
    [
        ([(0, 10)], [(0, 10, "x" * 100)], []),
        ([(0, 10), (12, 28)], [(0, 10, "x" * 100)], [(1000, 3000, 16.0, None)]),  # a decoder that stopped
        ([(0, 20)], [(0, 5, "x" * 60), (9, 20, "x" * 100)], [(500, 900, 4.0, None)]),  # one that jumped
        ([(3, 20)], [(9, 20, "x" * 100)], [(0, 900, 6.0, None)]),  # one that began late
        ([(0, 23)], [(0, 23, "x" * 40)], [(0, 2300, 23.0, 0)]),  # ten words for 23 seconds
        ([(0, 30)], [], [(0, 3000, 30.0, None)]),
        ([(0, 10), (11, 11.4)], [(0, 10, "x" * 100)], []),  # a cough
        ([(0, 20)], [(0, 12, "x" * 100), (10, 20, "x" * 80)], []),  # times that overlap
        ([(0, 20)], [(0, 40, "x" * 200)], []),
    ],
)
def test_stretches_without_text(spans, covered, expected):
    assert [
        (found.first, found.last, pytest.approx(found.voice), found.covering)
        for found in stretches(voice(*spans), covered)
    ] == expected


@pytest.mark.parametrize(
    "loud, place, alone",
    [
        ([(0, 2.2)], (2, 4), True),  # the last word sounds on, and fades
        ([(0, 2.9)], (2, 2.9), True),
        ([(1.6, 4)], (0, 2), True),  # the first one began before its text
        ([(0, 2.3), (2.6, 4)], (2.1, 2.9), True),  # both
        ([(0, 4)], (2, 2.9), True),
        ([(0, 1.95), (2.2, 2.7)], (2, 4), False),  # a word of its own, behind a gap that the detector bridges
        ([(0, 1.85), (1.95, 2.5)], (2, 4), False),  # also where the text ends behind the gap
        ([(0.2, 0.9), (2, 4)], (0, 1.9), False),
        ([(0, 4)], (2, 3.1), False),  # too much for one word
        ([(0.2, 0.9)], (0, 4), False),  # nothing else was said
    ],
)
def test_the_end_of_a_word_is_not_one_of_its_own(loud, place, alone):
    """What the detector takes for voice goes on for 0.6 s behind what is loud."""
    frames = voice(*((start, end + 0.6) for start, end in loud), seconds=4)
    levels = torch.full((400,), -70.0)
    for start, end in loud:
        levels[round(100 * start) : round(100 * end)] = -20.0
        levels[round(100 * end) : round(100 * end) + 8] = -45.0  # it fades
    first, last = (round(100 * second) for second in place)
    stretch = Stretch(first, last, float(frames[first:last].sum()) / 100)
    assert sounds_on(frames, levels, stretch) is alone


@pytest.mark.parametrize("voice, flags, kept", [(0.7, (), 1), (0.7, ("sampled",), 0), (2.0, ("sampled",), 1)])
def test_what_is_guessed_in_a_stretch_as_short_as_a_cough_is_no_text(voice, flags, kept):
    window = Window(16_000, torch.zeros(round(voice * 16_000)))
    said = Segment(0.0, 1.0, "These take the shape of an arch.")
    guess = Segment(1.0, 1.0 + voice, "Thank you.", flags=flags)
    lost = Lost(0, Stretch(100, 100 + round(100 * voice), voice), window, [window])
    part = patched(Part(0.0, 3.0, "en", [said], []), [(lost, [Part(1.0, 1.0 + voice, "en", [guess], [])])])
    assert part.segments == [said, *[guess] * kept] and not part.uncovered
