"""What lies between a mouth and a file: rooms, microphones, telephones. Mono float64 audio at 16 kHz, the same length out;
randomness comes from the caller's generator only."""

import math

import numpy as np
from voices import RATE


def band(audio, low, high):
    """Keep `low`-`high` Hz, with edges of a tenth of an octave or so."""
    count = 1 << (len(audio) + RATE // 10).bit_length()
    hertz = np.fft.rfftfreq(count, 1 / RATE)
    gain = np.clip((high - hertz) / (0.04 * high) + 0.5, 0, 1)
    if low:
        gain *= np.clip((hertz - 0.7 * low) / (0.3 * low), 0, 1)
    return np.fft.irfft(np.fft.rfft(audio, count) * gain, count)[: len(audio)]


def reverberate(audio, rng):
    """Convolve with exponentially decaying noise after a direct sound: a room with 0.1-0.6 s of reverberation time."""
    seconds = rng.uniform(0.1, 0.6)
    times = np.arange(int(seconds * RATE)) / RATE
    response = rng.normal(size=len(times)) * np.exp(-6.9 * times / seconds)
    response *= 10 ** (rng.uniform(-12, 1) / 20) / np.sqrt(np.square(response).sum())
    response[0] = 1.0
    count = 1 << (len(audio) + len(response)).bit_length()
    return np.fft.irfft(np.fft.rfft(audio, count) * np.fft.rfft(response, count), count)[: len(audio)]


def equalize(audio, rng):
    """A smooth random frequency response: microphone, loudspeaker, telephone."""
    count = 1 << (len(audio) + RATE // 10).bit_length()
    hertz = np.fft.rfftfreq(count, 1 / RATE)
    knots = np.geomspace(60, 8000, 8)
    gain = 10 ** (np.interp(np.log(hertz + 1), np.log(knots), np.clip(rng.normal(0, 5, 8), -12, 12)) / 20)
    return np.fft.irfft(np.fft.rfft(audio, count) * gain, count)[: len(audio)]


def companded(audio):
    """8-bit mu-law and back, as on the telephone."""
    peak = np.abs(audio).max() + 1e-9
    code = np.round(np.sign(audio) * np.log1p(255 * np.abs(audio) / peak) / math.log(256) * 127) / 127
    return np.sign(code) * (np.power(256.0, np.abs(code)) - 1) / 255 * peak


def through_channel(audio, rng):
    """Room, coloring and telephone band, each on a share of the utterances."""
    if rng.random() < 0.25:
        audio = reverberate(audio, rng)
    if rng.random() < 0.30:
        audio = equalize(audio, rng)
    if rng.random() < 0.20:
        audio = band(audio, rng.choice([0, 0, 200, 300]), rng.uniform(3300, 4000))
        audio = companded(audio) if rng.random() < 0.4 else audio
    return audio
