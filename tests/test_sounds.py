"""Sounds in which nobody speaks: no text, or one that is flagged. Both demos; and what is said is not taken for a
tune."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import glmasr
from glmasr import audio
from glmasr.pipeline import FLAGS
from glmasr.transcription.chunking import Window

EXAMPLES = Path(__file__).parent.parent / "examples"
RATE = audio.SAMPLE_RATE
SCALE = (0, 2, 4, 5, 7, 9, 11, 12, 11, 9, 7, 5, 4, 2)


def times(seconds: float) -> np.ndarray:
    return np.arange(int(seconds * RATE)) / RATE


def partials(hertz, heights) -> np.ndarray:
    """A tone of changing pitch (S,) with overtones: their multiples of the pitch -> how high each is."""
    phase = 2 * np.pi * np.cumsum(hertz) / RATE
    return sum(height * np.sin(multiple * phase) for multiple, height in heights.items())


def tune(seconds: float, pace: float, lowest: float, notes=SCALE) -> np.ndarray:
    """The pitch of notes, each `pace` seconds long."""
    place = (times(seconds) / pace).astype(int)
    return lowest * 2 ** (np.asarray(notes)[place % len(notes)] / 12)


def struck(seconds: float, pace: float) -> np.ndarray:
    return np.exp(-3 * (times(seconds) / pace % 1))


HARMONIC = {k: 1 / k for k in range(1, 7)}
SOUNDS = {  # of so many seconds
    "a hum of 50 Hz": lambda s: partials(np.full(int(s * RATE), 50.0), HARMONIC),
    "a hum of 60 Hz": lambda s: partials(np.full(int(s * RATE), 60.0), {1: 1, 3: 0.5, 5: 0.3}),
    "the tone A": lambda s: np.sin(2 * np.pi * 440 * times(s)),
    "a whistle": lambda s: partials(1500 + 300 * np.sin(2 * np.pi * 0.7 * times(s)), {1: 1}),
    "a chord": lambda s: sum(np.sin(2 * np.pi * pitch * times(s)) for pitch in (262, 330, 392)),
    "a chord that swells": lambda s: (
        sum(np.sin(2 * np.pi * pitch * times(s)) for pitch in (220, 277, 330))
        * (1 + 0.5 * np.sin(4 * np.pi * times(s)))
    ),
    "a flute": lambda s: partials(tune(s, 0.35, 262), {1: 1}),
    "a violin": lambda s: partials(tune(s, 0.5, 294) * (1 + 0.008 * np.sin(2 * np.pi * 6 * times(s))), HARMONIC),
    "an organ": lambda s: sum(partials(tune(s, 0.5, pitch), HARMONIC) for pitch in (262, 330, 392)),
    "a clarinet": lambda s: partials(tune(s, 0.3, 196), {k: 1 / k for k in (1, 3, 5, 7, 9)}),
    "a harp": lambda s: partials(tune(s, 0.25, 196), {1: 1, 2: 0.5, 3: 0.3}) * struck(s, 0.25),
    "bells": lambda s: partials(tune(s, 0.5, 523), {1: 1, 2.76: 0.5, 5.4: 0.25}) * struck(s, 0.5),
    "white noise": lambda s: np.random.default_rng(1).standard_normal(int(s * RATE)),
    "hiss": lambda s: np.diff(np.random.default_rng(2).standard_normal(int(s * RATE) + 1)),
    "rumble": lambda s: np.cumsum(np.random.default_rng(3).uniform(-1, 1, int(s * RATE))),
    "digital silence": lambda s: np.zeros(int(s * RATE)),
    "a single click": lambda s: np.eye(1, int(s * RATE), RATE // 2)[0],
}


def sound(name: str, seconds: float, level: float, noise: float) -> np.ndarray:
    """Peaks at `level` of full scale, with noise at that part of it."""
    samples = SOUNDS[name](seconds)
    samples = samples / max(np.abs(samples).max(), 1e-9)
    if samples.any():
        samples = samples + noise * np.random.default_rng(4).standard_normal(len(samples))
    return (level * samples).astype(np.float32)


@pytest.fixture(scope="module", params=["demo", "demo-article"])
def recognizer(request):
    return glmasr.load(request.param, device="cpu")


@pytest.mark.parametrize("name", SOUNDS)
def test_no_text_or_a_flagged_one(recognizer, name):
    for seconds, level, noise in ((1.5, 0.3, 0.003), (3.5, 0.9, 0.0), (10.0, 0.1, 0.01)):
        transcript = recognizer.transcribe(sound(name, seconds, level, noise), sample_rate=RATE)
        assert all(segment.flags for segment in transcript.segments if segment.text), (seconds, transcript.segments)
        assert not transcript.text or transcript.warnings


TONES = [name for name in SOUNDS if name not in ("white noise", "hiss", "rumble", "digital silence", "a single click")]


def window(samples) -> Window:
    return Window(0, torch.as_tensor(samples, dtype=torch.float32))


@pytest.mark.parametrize("name", TONES)
def test_tones_are_told_from_a_voice(name):
    assert window(sound(name, 3.5, 0.3, 0.0)).tonal()
    assert window(sound(name, 3.5, 0.3, 0.0) + 0.4).tonal()  # an offset is no partial


@pytest.mark.parametrize("name", json.loads((EXAMPLES / "texts.json").read_text(encoding="utf-8")))
def test_a_voice_is_not_taken_for_tones(name):
    (samples,) = audio.load(EXAMPLES / name)[None]
    assert not window(samples).tonal() and not window(samples + 0.4).tonal()
    hum = torch.from_numpy(sound("a hum of 50 Hz", len(samples) / RATE + 1, 0.01, 0.0))[: len(samples)]
    assert not window(samples + hum).tonal()


@pytest.mark.parametrize("count", [1, 100, 400, 1023, 1024, 1025])
def test_short_windows_can_be_asked(count):
    """What is too short for partials to be told is not taken for tones; 300 ms of a tone are enough."""
    assert window(np.random.default_rng(0).standard_normal(count)).tonal() is False
    assert window(np.sin(np.arange(4800) * 0.2)).tonal() is True


def test_only_a_text_that_is_not_sure_is_flagged(monkeypatch):
    """What is tonal by the measure alone goes without a flag, and without guards there is none at all."""
    recognizer = glmasr.load("demo", device="cpu")
    monkeypatch.setattr(Window, "tonal", lambda self: True)
    transcript = recognizer.transcribe(EXAMPLES / "en.mp3")
    assert transcript.text and not transcript.warnings and not any(segment.flags for segment in transcript.segments)
    melody = sound("a chord", 3.5, 0.3, 0.01)
    found = recognizer.transcribe(melody, sample_rate=RATE)
    bare = recognizer.transcribe(melody, sample_rate=RATE, guards=False)
    assert [segment.text for segment in bare.segments] == [
        segment.text for segment in found.segments
    ] and not bare.warnings
    assert found.segments
    for segment in found.segments:
        assert segment.flags == ("tones",) and FLAGS["tones"] in found.warnings[0]
