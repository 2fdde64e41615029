"""Cheap changes to a training clip, different each time it is used: speed, channel, noise, level; gaps in the log-mel.

They stand for what differs between recordings but not in what is said. Samples are float32 (S,) at 16 kHz, numpy in and
out.
"""

import numpy as np
import torch
from torch import Tensor

RATE = 16_000


def augment(samples: np.ndarray, rng: np.random.Generator, longest: float = np.inf) -> tuple[np.ndarray, float]:
    """-> the changed samples, and how many times faster they are; slowed down they have at most `longest` seconds."""
    slowest = min(1.0, max(0.9, len(samples) / RATE / longest))
    speed = rng.uniform(slowest, 1.11) if rng.random() < 0.5 else 1.0
    if speed != 1.0:
        samples = change_speed(samples, speed)
    if rng.random() < 0.5:
        samples = extend(samples, rng)
    samples = samples / (np.abs(samples).max() + 1e-6)
    changes = [change for change in (color, add_noise) if rng.random() < 0.6]
    for change in rng.permutation(changes):  # noise in the room goes through the line, noise of the line doesn't
        samples = change(samples, rng)
    # Peaks from full scale down to -30 dB. The features are relative to a window's loudest band, so little depends on
    # it.
    return (samples * 10 ** (-rng.uniform(0, 30) / 20)).astype(np.float32), speed


def nothing_said(seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Sound without speech, or hardly any sound: digital silence, noise, hum and its overtones, a few tones, a tune."""
    count = int(seconds * RATE)
    time = np.arange(count) / RATE
    kind = rng.choice(["silence", "noise", "hum", "tones", "tune"])
    if kind == "silence":
        return np.zeros(count, np.float32)
    if kind == "noise":
        sound = noise(count, rng)
    elif kind == "tune":
        sound = tune(count, rng)
    else:
        pitches = (
            rng.choice([50.0, 60.0]) * np.arange(1, 6) if kind == "hum" else rng.uniform(100, 2000, rng.integers(1, 5))
        )
        sound = sum(rng.uniform(0.1, 1) * np.sin(2 * np.pi * pitch * time + rng.uniform(0, 6)) for pitch in pitches)
    sound = sound + noise(count, rng) * 10 ** rng.uniform(-3, -1)
    return (sound / (np.abs(sound).max() + 1e-9) * 10 ** rng.uniform(-3, 0)).astype(np.float32)


def tune(count: int, rng: np.random.Generator) -> np.ndarray:
    """Notes of the twelve-tone scale, some with overtones, struck or held: it changes as often as speech does."""
    pace = int(rng.uniform(0.1, 0.5) * RATE)
    notes = rng.integers(0, 48, count // pace + 1)
    place = np.arange(count)
    phase = 2 * np.pi * np.cumsum(110 * 2 ** (notes[place // pace] / 12)) / RATE
    fall = rng.choice([0.0, rng.uniform(1, 8)])
    overtones = rng.integers(1, 6)
    sound = sum(np.sin((k + 1) * phase) / (k + 1) ** rng.uniform(0.5, 2) for k in range(overtones))
    return sound * np.exp(-fall * (place % pace) / pace)


def change_speed(samples: np.ndarray, factor: float) -> np.ndarray:
    """Faster and higher, or slower and deeper, like a tape: pitch, formants and tempo together."""
    places = np.arange(0, len(samples) - 1, factor)
    return np.interp(places, np.arange(len(samples)), samples).astype(np.float32)


def extend(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gives a recording that ends at 4 kHz highs of its own: those below, mirrored (Makhoul and Berouti, 1979).

    TRAP: the recorded English digits were sampled with 8 kHz, the Chinese ones were not. Left so, a telephone turns
    Chinese people into English ones, and a good microphone the other way round.
    """
    spectrum = np.fft.rfft(samples, fast_length(len(samples)))
    hertz = np.linspace(0, RATE / 2, len(spectrum))
    power = np.abs(spectrum) ** 2
    if power[hertz > 4400].sum() > 1e-5 * power.sum():
        return samples
    gain = np.interp(hertz, [3900, 4100, 6000, 6500, 8000], [-80, 0, -6, -25, -35]) - rng.uniform(3, 20)
    spectrum = spectrum + np.conj(spectrum[::-1]) * 10 ** (gain / 20)
    return np.fft.irfft(spectrum)[: len(samples)].astype(np.float32)


def add_noise(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """From a quiet room (55 dB below full scale) to a busy one (20 dB)."""
    return samples + noise(len(samples), rng) * 10 ** (-rng.triangular(20, 42, 55) / 20)


def color(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A microphone and a line: a random smooth gain over frequency, mostly without the highs (telephone), now and then
    without the lows."""
    spectrum = np.fft.rfft(samples, fast_length(len(samples)))
    hertz = np.linspace(0, RATE / 2, len(spectrum))
    anchors = np.array([0, 250, 500, 1000, 2000, 3000, 4000, 6000, 8000])
    gain = np.interp(hertz, anchors, rng.normal(0, 4, len(anchors)))
    # TRAP: where only the recordings of one language lack the highs, a telephone makes all speech that language.
    if rng.random() < 0.8:
        highest = rng.uniform(3400, 4000) if rng.random() < 0.6 else rng.uniform(3000, 6500)
        gain -= np.clip((hertz - highest) / 300, 0, 1) * 60
    if rng.random() < 0.3:
        gain -= np.clip((rng.uniform(100, 350) - hertz) / 100, 0, 1) * 40
    return np.fft.irfft(spectrum * 10 ** (gain / 20))[: len(samples)].astype(np.float32)


def noise(count: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of unit power: white, or falling by up to 9 dB an octave, as rooms and streets sound."""
    slope = rng.choice([0.0, rng.uniform(0, 1.5)])
    shaped = rng.standard_normal(count)
    if slope:
        white = np.fft.rfft(shaped, fast_length(count))
        shaped = np.fft.irfft(white / np.maximum(np.arange(len(white)), 1) ** slope)[:count]
    return shaped / (shaped.std() + 1e-9)


def fast_length(count: int) -> int:
    """The next multiple of 4096: a transform of a length with large prime factors takes many times as long."""
    return -(-count // 4096) * 4096


def mask_mel(mel: Tensor, rng: np.random.Generator, *, bands: int = 14, frames: int = 6) -> Tensor:
    """SpecAugment (Park et al., 2019): a stripe of bands and some short stripes of frames are set to the mean. Also
    shifts the bands of most rows: a longer or shorter vocal tract."""
    mel = mel.clone()
    for row in mel:
        if rng.random() < 0.7:
            row.copy_(warp_bands(row, rng.uniform(0.84, 1.2)))
        mean = row.mean()
        width = int(rng.integers(0, min(bands, row.shape[0] // 8) + 1))
        start = int(rng.integers(0, row.shape[0] - width))
        row[start : start + width] = mean
        for _ in range(int(rng.integers(0, 2 + row.shape[1] // 300))):
            width = int(rng.integers(0, frames + 1))
            start = int(rng.integers(0, max(1, row.shape[1] - width)))
            row[:, start : start + width] = mean
    return mel


def spec_augment(mel: Tensor, frames: list[int], rng: np.random.Generator) -> Tensor:
    """SpecAugment as published, without the warping of time: in each row (bands, frames) two stripes of at most a fifth
    of the bands, and two of at most 1 s and a fifth of its sound, are set to the mean of the sound. `frames` of each row
    are sound, the rest is padding."""
    mel = mel.clone()
    for row, count in zip(mel, frames, strict=True):
        mean = row[:, : max(1, count)].mean()
        for _ in range(2):
            width = int(rng.integers(0, row.shape[0] // 5 + 1))
            start = int(rng.integers(0, row.shape[0] - width + 1))
            row[start : start + width, :count] = mean
            width = int(rng.integers(0, min(100, count // 5) + 1))
            start = int(rng.integers(0, max(1, count - width + 1)))
            row[:, start : start + width] = mean
    return mel


def warp_bands(mel: Tensor, factor: float) -> Tensor:
    """Reads band b of mel (bands, frames) at b * factor, between two bands by interpolation."""
    places = (torch.arange(mel.shape[0]) * factor).clamp(max=mel.shape[0] - 1)
    low = places.floor().long()
    high = (low + 1).clamp(max=mel.shape[0] - 1)
    share = (places - low)[:, None]
    return mel[low] * (1 - share) + mel[high] * share
