"""Sounds that change all the time, and sound files of them."""

import io
from functools import cache

import numpy as np
import soundfile

RATE = 16_000


def melody(seconds: float, seed: int = 0) -> np.ndarray:
    """float32 (S,): tones and noise that change all the time."""
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    pitch = 300 + 1500 * random.random(len(time) // 1600 + 1).repeat(1600)[: len(time)]
    return (0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / RATE) + 0.02 * random.standard_normal(len(time))).astype(
        np.float32
    )


def speech(seconds, seed=0):
    """Speech-like (S,) at 16 kHz: a gliding voice under syllables and two formants, hissing in between, hum and
    pauses."""
    return _speech(seconds, seed).copy()


@cache  # 20 s of it take a third of a second
def _speech(seconds, seed):
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * 16000)) / 16000
    pitch = 120 + 30 * np.sin(2 * np.pi * 0.7 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / 16000
    voice = sum(
        np.sin(k * phase)
        * (np.exp(-(((k * pitch - 600) / 300) ** 2)) + 0.3 * np.exp(-(((k * pitch - 1900) / 400) ** 2)))
        for k in range(1, 30)
    )
    syllables = np.clip(np.sin(2 * np.pi * 2.3 * time), 0, 1) ** 2
    hiss = np.diff(random.standard_normal(len(time) + 1)) * np.clip(np.sin(2 * np.pi * 2.3 * time + 3.5), 0, 1) ** 4
    pauses = np.sin(2 * np.pi * 0.31 * time) > -0.7
    return ((0.2 * voice * syllables + 0.03 * hiss) * pauses + 0.001 * np.sin(2 * np.pi * 50 * time)).astype(np.float32)


def bytes_of(samples, rate=16000, format="WAV", subtype="PCM_16", endian=None):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype, endian=endian)
    return file.getvalue()
