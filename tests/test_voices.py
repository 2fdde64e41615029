"""What training/voices.py makes of recorded digits."""

import numpy as np
import pytest
import soundfile
from helpers.training import FOLDER

RATE = 16_000


@pytest.fixture
def voices(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return __import__("voices")


def hissed(seconds: float, level: float) -> np.ndarray:
    """A hiss of so many seconds at `level` dB, and a vowel of 0.2 s at -12 dB after it."""
    hiss = np.random.default_rng(0).standard_normal(int(seconds * RATE)) * 10 ** (level / 20)
    vowel = 0.35 * np.sin(2 * np.pi * 300 * np.arange(RATE // 5) / RATE)
    return np.concatenate([hiss, vowel])


def test_the_weak_consonant_of_a_short_recording_stays(voices, tmp_path):
    """0.1 s of "s", 36 dB below the vowel: of a recording that ends where the word does, nothing is noise."""
    soundfile.write(tmp_path / "3.wav", hissed(0.1, -48), RATE, subtype="FLOAT")
    assert len(voices.read(tmp_path / "3.wav")) == int(0.3 * RATE)


def test_a_noisy_room_is_cut_off(voices, tmp_path):
    """0.8 s of noise before the vowel: 30 ms of it stay."""
    soundfile.write(tmp_path / "3.wav", hissed(0.8, -48), RATE, subtype="FLOAT")
    assert 0.2 <= len(voices.read(tmp_path / "3.wav")) / RATE <= 0.25


def test_a_rate_without_whole_fifths_of_a_second_adds_no_silence(voices, tmp_path):
    """0.29 s at 44.1 kHz are 0.29 s at 16 kHz."""
    tone = 0.3 * np.sin(2 * np.pi * 300 * np.arange(int(0.29 * 44_100)) / 44_100)
    soundfile.write(tmp_path / "1.wav", tone, 44_100, subtype="FLOAT")
    assert len(voices.read(tmp_path / "1.wav")) == pytest.approx(0.29 * RATE, abs=1)
