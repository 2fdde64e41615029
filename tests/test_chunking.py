"""Windows of a long recording: nothing but silence is left out, no cut goes through sound where there is a gap, blocks
don't matter."""

import numpy as np
import pytest
import torch

from glmasr.audio import HOP, SAMPLE_RATE
from glmasr.transcription.chunking import AROUND_SPEECH, MARGIN, PAUSE, Window, cut, loudness, quietest
from glmasr.transcription.vad import CHUNK

LENGTH = 10 * SAMPLE_RATE


def tone(seconds, level=0.3, hertz=440):
    return level * torch.sin(2 * torch.pi * hertz * torch.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE)


def silence(seconds):
    return torch.zeros(round(seconds * SAMPLE_RATE))


def words(rng, seconds, gaps=(0.15, 0.8), noise=0.0):
    """Tones of 0.2-0.6 s with gaps between; and the samples at which each begins and ends."""
    parts, borders, place = [], [], 0
    while place < seconds * SAMPLE_RATE:
        word = tone(rng.uniform(0.2, 0.6), rng.uniform(0.1, 0.5), rng.uniform(150, 1500))
        gap = silence(rng.uniform(*gaps))
        borders.append((place, place + len(word)))
        parts += [word, gap]
        place += len(word) + len(gap)
    samples = torch.cat(parts)
    return samples + noise * torch.from_numpy(rng.standard_normal(len(samples))).float(), borders


def in_blocks(samples, rng=None, size=None):
    place = 0
    while place < len(samples):
        count = size or int(rng.integers(1, 200_000))
        yield samples[place : place + count]
        place += count


def silent(samples, loudest):
    """Below -80 dB, or where all is quiet 55 dB below the loudest, but never lower than -100 dB. Where samples are cut
    off, their last frames are up to 3 dB louder than within the recording."""
    return len(samples) < HOP or loudness(samples).max() < max(min(-80, loudest - 55), -100) + 3


def check(samples, windows, length=LENGTH):
    """The windows are stretches of the recording, in order, not too long; what is between them is silent."""
    place, loudest = 0, loudness(samples).max().item()
    for window in windows:
        assert isinstance(window, Window) and 0 < len(window.samples) <= length and window.start >= place
        assert torch.equal(window.samples, samples[window.start : window.start + len(window.samples)])
        assert silent(samples[place : window.start], loudest)
        place = window.start + len(window.samples)
    assert silent(samples[place:], loudest)


@pytest.mark.parametrize("seed", range(6))
def test_no_cut_goes_through_a_word(seed):
    rng = np.random.default_rng(seed)
    samples, borders = words(rng, 95, noise=0.001 * (seed % 2))
    windows = list(cut(in_blocks(samples, rng), LENGTH))
    check(samples, windows)
    for window in windows:
        for edge in (window.start, window.start + len(window.samples)):
            assert not any(first < edge < last for first, last in borders if edge < borders[-1][1]), edge / SAMPLE_RATE
    assert all(
        len(window.samples) > LENGTH * 0.6 for window in windows[:-1]
    )  # no shorter than the cut allows, but for margins


def test_the_blocks_do_not_matter():
    rng = np.random.default_rng(9)
    samples, _ = words(rng, 60, noise=0.002)
    expected = list(cut([samples], LENGTH))
    for size in (1_600, 16_000, 160_001, 480_000):
        found = list(cut(in_blocks(samples, size=size), LENGTH))
        assert [window.start for window in found] == [window.start for window in expected]
        assert all(torch.equal(a.samples, b.samples) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("loud, quiet", [(0, -70), (-20, -77), (-40, -92), (-60, -97)])
def test_what_is_quiet_is_not_silent(loud, quiet):
    """Behind something loud, between silence: all of it is in the windows, and none of the silence but its margins."""
    said, whispered = (tone(3, 10 ** (level / 20), 1000) for level in (loud, quiet))
    samples = torch.cat((said, silence(20), whispered, silence(20), said))
    windows = list(cut([samples], LENGTH))
    check(samples, windows)
    assert [(window.begin, window.begin + window.seconds) for window in windows] == [
        (pytest.approx(max(0, start - MARGIN), abs=0.05), pytest.approx(min(49, start + 3 + MARGIN), abs=0.05))
        for start in (0, 23, 46)
    ]


@pytest.mark.parametrize("end", [180, pytest.param(3600, marks=pytest.mark.slow)])
def test_silence_is_left_out(end):
    rng = np.random.default_rng(1)
    samples = torch.cat((silence(45), tone(1), silence(100), tone(2), silence(end)))
    windows = list(cut(in_blocks(samples, rng), LENGTH))
    check(samples, windows)
    assert len(windows) == 2
    assert [window.begin for window in windows] == pytest.approx([45 - MARGIN, 146 - MARGIN], abs=0.05)
    assert [window.seconds for window in windows] == pytest.approx([1 + 2 * MARGIN, 2 + 2 * MARGIN], abs=0.08)


@pytest.mark.parametrize("samples", [torch.zeros(0), silence(1), silence(25), 1e-6 * torch.randn(400_000)])
def test_nothing_but_silence(samples):
    assert list(cut([samples], LENGTH)) == []
    assert list(cut([], LENGTH)) == []


def test_sound_without_any_gap_is_cut_all_the_same():
    samples = 0.3 * torch.randn(75 * SAMPLE_RATE, generator=torch.Generator().manual_seed(0))
    windows = list(cut([samples], LENGTH))
    check(samples, windows)
    assert sum(len(window.samples) for window in windows) == len(samples)


@pytest.mark.parametrize("count", [1, 159, 160, 161, 16_000, LENGTH, LENGTH + 1])
def test_short_recordings(count):
    samples = 0.3 * torch.randn(count, generator=torch.Generator().manual_seed(0))
    windows = list(cut([samples], LENGTH))
    assert sum(len(window.samples) for window in windows) == count
    check(samples, windows)


def test_a_steady_quiet_noise_is_not_silence():
    """What is 40 dB below the speech is for the model to judge."""
    samples = torch.cat((tone(5), 0.003 * torch.randn(20 * SAMPLE_RATE, generator=torch.Generator().manual_seed(0))))
    assert sum(len(window.samples) for window in cut([samples], LENGTH)) == len(samples)


def test_the_middle_of_the_longest_gap_is_the_quietest():
    levels = torch.zeros(300)
    levels[40:52] = -60.0
    levels[200:250] = -60.0
    assert abs(quietest(levels) - 225) <= 6


def test_memory_is_that_of_a_window_and_a_block():
    """Blocks that are given away are not kept: a generator of an hour is read with the first window only a little
    ahead."""
    read = []

    def blocks():
        for number in range(10_000):
            read.append(number)
            yield tone(1)

    next(cut(blocks(), LENGTH))
    assert len(read) <= 11


def test_loudness_is_that_of_a_sine():
    for level in (1.0, 0.1, 0.01):
        assert abs(loudness(tone(1, level, 1000)).median() - 20 * np.log10(level)) < 0.2
    assert loudness(torch.zeros(161)).tolist() == pytest.approx([-145.9] * 2, abs=0.2)


def test_quiet_speech_behind_a_loud_sound_is_heard():
    """A beep of full scale, then speech 50 dB below it."""
    beep = torch.sin(torch.arange(16_000) * 0.4)
    speech = 10 ** (-50 / 20) * torch.randn(5 * 16_000, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    windows = list(cut([torch.cat((beep, torch.zeros(16_000), speech))], 3 * 16_000))
    assert sum(len(window.samples) for window in windows) > len(beep) + len(speech)


@pytest.mark.parametrize("seconds", [0.5, 9.0, 10.0])
def test_a_recording_of_one_window_is_heard_as_it_is_or_not_at_all(seconds):
    """Silence at its ends stays, as it fits; but a window of nothing but silence is none."""
    assert list(cut([silence(seconds)], LENGTH)) == []
    samples = silence(seconds)
    samples[-HOP:] = 0.01 * torch.randn(HOP, generator=torch.Generator().manual_seed(0))
    (window,) = cut(in_blocks(samples, size=1000), LENGTH)
    assert window.start == 0 and torch.equal(window.samples, samples)


# ---- where a detector tells what is speech ----------------------------------------------------------------------------------


class Loud:
    """A detector that takes for speech what is above -26 dB."""

    def __init__(self):
        self.rest = torch.zeros(0)

    def __call__(self, samples, last=False):
        samples = torch.cat((self.rest, samples))
        if last:
            samples = torch.nn.functional.pad(samples, (0, -len(samples) % CHUNK))
        count = len(samples) // CHUNK
        self.rest = samples[count * CHUNK :]
        return (
            0.98
            * (samples[: count * CHUNK].view(count, CHUNK).abs().amax(1) > 0.05 if count else torch.zeros(0)).float()
            + 0.01
        )


AROUND = AROUND_SPEECH * CHUNK / SAMPLE_RATE


@pytest.mark.parametrize("seed", range(6))
def test_all_speech_is_heard_and_no_cut_goes_through_it(seed):
    rng = np.random.default_rng(seed)
    samples, borders = words(rng, 95, gaps=(0.2, 0.8) if seed % 2 else (0.2, 5.0), noise=0.005)
    borders = [
        border for border in borders if border[1] - border[0] > 10 * CHUNK
    ]  # shorter ones may be taken for clicks
    windows = list(cut(in_blocks(samples, rng), LENGTH, Loud()))
    place = 0
    for window in windows:
        assert 0 < len(window.samples) <= LENGTH and window.start >= place
        assert torch.equal(window.samples, samples[window.start : window.start + len(window.samples)])
        place = window.start + len(window.samples)
        assert all(0 <= first < last <= len(window.samples) for first, last in window.speech)
    for first, last in borders:
        (window,) = [
            window for window in windows if window.start <= first and last <= window.start + len(window.samples)
        ]
        assert any(window.start + begin <= first + 8 and last <= window.start + end for begin, end in window.speech)
    expected = [(window.start, len(window.samples), window.speech) for window in windows]
    for size in (1_600, 160_001, len(samples)):
        assert [
            (window.start, len(window.samples), window.speech)
            for window in cut(in_blocks(samples, size=size), LENGTH, Loud())
        ] == expected


def test_a_long_pause_ends_a_window_and_a_short_one_does_not():
    pause = PAUSE * CHUNK / SAMPLE_RATE
    parts = [
        (3.0, 0.0),
        (1.0, 0.5),
        (1.0, pause - 0.2),
        (1.0, pause + 0.2),
        (1.0, 20.0),
        (1.0, 0.3),
    ]  # of speech, behind a pause
    noise = 0.003 * torch.randn(60 * SAMPLE_RATE, generator=torch.Generator().manual_seed(0))
    samples, begins = noise.clone(), []
    place = 7.0
    for seconds, before in parts:
        begins.append(place := place + before)
        first = round(place * SAMPLE_RATE)
        samples[first : first + round(seconds * SAMPLE_RATE)] += tone(seconds)
        place += seconds
    windows = list(cut([samples], LENGTH, Loud()))
    assert [window.sound_span()[0] for window in windows] == pytest.approx([begins[0], begins[3], begins[4]], abs=0.04)
    assert [window.sound_span()[1] for window in windows] == pytest.approx(
        [begins[2] + 1, begins[3] + 1, begins[5] + 1], abs=0.04
    )
    assert [window.begin for window in windows] == pytest.approx(
        [begins[number] - AROUND for number in (0, 3, 4)], abs=0.04
    )
    assert [window.begin + window.seconds for window in windows] == pytest.approx(
        [begins[number] + 1 + AROUND for number in (2, 3, 5)], abs=0.04
    )
    assert [len(window.speech) for window in windows] == [3, 1, 2]


@pytest.mark.parametrize("seconds", [1.0, 9.0, 10.0, 95.0])
def test_without_speech_there_is_no_window(seconds):
    noise = 0.003 * torch.randn(round(seconds * SAMPLE_RATE), generator=torch.Generator().manual_seed(0))
    assert list(cut(in_blocks(noise, size=50_000), LENGTH, Loud())) == []
    assert list(cut([], LENGTH, Loud())) == list(cut([torch.zeros(0)], LENGTH, Loud())) == []


def test_speech_in_a_recording_of_one_window_is_found_too():
    samples = torch.cat((silence(4), tone(1), silence(4)))
    (window,) = cut([samples], LENGTH, Loud())
    assert window.begin == pytest.approx(4 - AROUND, abs=0.04) and window.seconds == pytest.approx(
        1 + 2 * AROUND, abs=0.07
    )


def test_speech_without_any_pause_is_cut_all_the_same():
    """And nothing of it is lost, also where little is left behind a cut."""
    samples = tone(75)
    for count in (75 * SAMPLE_RATE, LENGTH + 1, LENGTH + 100, LENGTH + 3000, 2 * LENGTH):
        windows = list(cut([samples[:count]], LENGTH, Loud()))
        assert torch.equal(torch.cat([window.samples for window in windows]), samples[:count])
        assert all(window.speech == ((0, len(window.samples)),) for window in windows)


def test_memory_is_that_of_a_window_and_a_block_with_a_detector():
    for sound in (tone(1), torch.cat((tone(0.5), silence(0.5)))):
        read = []

        def blocks():
            for number in range(100):
                read.append(number)
                yield sound

        for window in cut(blocks(), LENGTH, Loud()):
            assert len(read) * SAMPLE_RATE <= window.start + LENGTH + 2 * SAMPLE_RATE


def test_half_a_window_knows_its_speech():
    window = Window(1000, torch.zeros(20_000), ((2_000, 6_000), (8_000, 15_000)))
    first, second = window.part(0, 10_000), window.part(10_000, 20_000)
    assert first.speech == ((2_000, 6_000), (8_000, 10_000)) and second.speech == ((0, 5_000),)
    assert second.sound_span() == (11_000 / SAMPLE_RATE, 16_000 / SAMPLE_RATE)
    assert window.part(6_000, 8_000).speech == ()
