"""WORLD disguises, which make many speakers of one: pitch, pitch range, formants (two independent factors), spectral tilt,
breath and timing of a sound are moved.

A disguise is drawn once an utterance, so that all digits of an utterance still come from one (imagined) person. Audio is
mono float64 at 16 kHz; randomness comes from the caller's generator only.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
from voices import RATE, level, read

try:
    import pyworld
except ImportError as error:
    raise SystemExit(f"error: pyworld does not import ({error}): pip install pyworld 'setuptools<81'") from error

FRAME = 0.005  # seconds a row of a Sound
SILENCE = math.log(1e-12)  # floor of the log envelope


@dataclass(frozen=True)
class Sound:
    """WORLD's parts of a sound, one row each FRAME: pitch in Hz (T,), 0 where unvoiced; log power envelope and noise
    share (T, 513)."""

    pitch: np.ndarray
    envelope: np.ndarray
    noise: np.ndarray


def analyze(audio):
    """Audio -> Sound (Morise et al. 2016, WORLD: DIO, StoneMask, CheapTrick, D4C)."""
    audio = np.ascontiguousarray(audio, dtype=np.float64)
    pitch, times = pyworld.dio(audio, RATE, f0_floor=60.0, f0_ceil=500.0, speed=4)
    pitch = pyworld.stonemask(audio, pitch, times, RATE)
    envelope = pyworld.cheaptrick(audio, pitch, times, RATE)
    noise = pyworld.d4c(audio, pitch, times, RATE)
    return Sound(pitch, np.log(np.maximum(envelope, 1e-12)).astype(np.float32), noise.astype(np.float32))


def plain(sound):
    """A Sound as audio, nothing changed."""
    envelope = np.ascontiguousarray(np.exp(np.maximum(sound.envelope, SILENCE), dtype=np.float64))
    return level(pyworld.synthesize(sound.pitch.astype(np.float64), envelope, sound.noise.astype(np.float64), RATE))


def median_pitch(sound):
    """Median of the voiced frames in Hz; 150 for a sound without any."""
    voiced = sound.pitch[sound.pitch > 0]
    return float(np.median(voiced)) if len(voiced) else 150.0


@dataclass(frozen=True)
class Disguise:
    """One imagined speaker: how to change a Sound. Factors; 1 leaves things alone; `tilt` in dB at 8 kHz, `breath` as
    exponent on the noise share."""

    pitch: float
    span: float
    low_formants: float
    high_formants: float
    tilt: float
    breath: float
    pace: float

    @classmethod
    def draw(cls, rng, sounds):
        """A random speaker for the voice of these sounds; pitch stays in 70-340 Hz, the sounds' mean length goes to
        0.22-0.85 s a digit.

        `sounds` are single digits; for phrases the caller replaces `pace`.
        """
        natural_pitch = float(np.median([median_pitch(sound) for sound in sounds]))
        natural_seconds = FRAME * float(np.mean([len(sound.pitch) for sound in sounds]))
        seconds = math.exp(rng.uniform(math.log(0.22), math.log(0.85)))
        low, high = max(0.6, 70 / natural_pitch), min(1.7, 340 / natural_pitch)
        pitch = math.exp(rng.uniform(math.log(min(low, high)), math.log(high)))
        # Higher voices come from shorter vocal tracts, loosely: half of the formant shift follows the pitch.
        formants = np.clip(pitch**0.2 * math.exp(rng.normal(0, 0.07)), 0.82, 1.22)
        bend = math.exp(rng.normal(0, 0.04))
        return cls(
            pitch=pitch,
            span=math.exp(rng.normal(0, 0.25)),
            low_formants=float(np.clip(formants * bend, 0.8, 1.25)),
            high_formants=float(np.clip(formants / bend, 0.8, 1.25)),
            tilt=rng.normal(0, 5.0),
            breath=math.exp(rng.normal(0, 0.3)),
            pace=float(np.clip(seconds / natural_seconds, 0.35, 1.6)),
        )

    def render(self, sound, rng, lift=1.0, hurry=1.0):
        """The changed sound as audio; `lift` is an extra pitch factor of this clip, `hurry` < 1 shortens it."""
        rows = time_map(len(sound.pitch), self.pace * hurry * math.exp(rng.normal(0, 0.08)), rng)
        pitch = sound.pitch[rows]
        voiced, middle = pitch > 0, median_pitch(sound)
        slope = np.linspace(1, -1, len(rows)) * rng.normal(0, 0.04)
        pitch = np.where(
            voiced, middle * self.pitch * lift * (np.maximum(pitch, 1) / middle) ** self.span * np.exp(slope), 0
        )
        envelope = warp(sound.envelope[rows], self.low_formants, self.high_formants)
        envelope += np.linspace(0, self.tilt * math.log(10) / 10, envelope.shape[1], dtype=np.float32)
        envelope = np.ascontiguousarray(np.exp(np.maximum(envelope, SILENCE), dtype=np.float64))
        noise = np.clip(sound.noise[rows].astype(np.float64) ** (1 / self.breath), 0.001, 1.0)
        audio = pyworld.synthesize(np.where(voiced, np.clip(pitch, 50, 500), 0), envelope, noise, RATE)
        return level(audio)


def time_map(count, factor, rng):
    """Indices of source rows for a sound `factor` as long; the speed varies smoothly within it."""
    length = max(8, round(count * factor))
    steps = np.exp(np.interp(np.linspace(0, 3, length), range(4), rng.normal(0, 0.25, 4)))
    places = np.cumsum(steps) - steps[0]
    return np.round(places / places[-1] * (count - 1)).astype(int)


def warp(envelope, low, high):
    """Move what lies at 1.5 kHz to `low` times that, and what lies at 4.5 and 8 kHz to `high` times; linear between."""
    bins = envelope.shape[1]
    nyquist = RATE / 2
    source = np.interp(
        np.linspace(0, nyquist, bins), [0, 1500 * low, 4500 * high, nyquist * high], [0, 1500, 4500, nyquist]
    )
    place = source / nyquist * (bins - 1)
    left = np.minimum(place.astype(int), bins - 2)
    share = (place - left).astype(np.float32)
    return envelope[:, left] * (1 - share) + envelope[:, left + 1] * share


# --- imagined speakers ---


@functools.cache
def recorded(path):
    """A recorded take and its analysis, kept in memory: each is used many times."""
    audio = read(path)
    return audio, analyze(audio)


def undisguised(sounds):
    """The audio of each digit as it was recorded or synthesized; `sounds` is {digit: [(audio, Sound), ...]}."""
    return {digit: [audio for audio, _ in takes] for digit, takes in sounds.items()}


def disguised(rng, sounds):
    """All takes of {digit: [(audio, Sound), ...]} as one imagined speaker: {digit: [audio, ...]}. Which digits are long
    and which short is the speaker's own way too: with one recorded speaker it would soon be taken for the digits'
    nature."""
    speaker = Disguise.draw(rng, [sound for takes in sounds.values() for _, sound in takes])
    hurry = {digit: math.exp(rng.normal(0, 0.25)) for digit in sounds}
    return {
        d: [speaker.render(sound, rng, math.exp(rng.normal(0, 0.04)), hurry[d]) for _, sound in takes]
        for d, takes in sounds.items()
    }


def begin_like(sound, other, rng):
    """A Sound that begins with what `other` has before its vowel, in place of its own first consonant: of "zero" and
    "six" a "sero", as those say it who grew up with another language."""

    def above(s, decibels):
        """The first frame that is at most so far below the loudest."""
        level = np.log(np.exp(s.envelope).sum(axis=1))
        return int(np.argmax(level > level.max() - decibels * math.log(10) / 10))

    voice = above(other, 15)
    taken = slice(max(above(other, 40), voice - int(rng.integers(12, 25))), voice)
    place = above(sound, 15) + int(rng.integers(6, 13))
    parts = [(getattr(other, name)[taken], getattr(sound, name)[place:]) for name in ("pitch", "envelope", "noise")]
    return Sound(*(np.concatenate(pair) for pair in parts))
