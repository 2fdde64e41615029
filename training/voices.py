"""Speakers for the digit data: synthesizers, recorded takes, and WORLD disguises that make many speakers of one.

Everything here returns mono float64 audio at 16 kHz without silence at its ends. Randomness comes from the caller's
generator only. Unusual: a disguise moves pitch, pitch range, formants (two independent factors), spectral tilt, breath
and timing of a sound, and is drawn once an utterance, so that all digits of an utterance still come from one (imagined)
person.
"""

import functools
import math
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

try:
    import pyworld
except ImportError as error:
    raise SystemExit(f"error: pyworld does not import ({error}): pip install pyworld 'setuptools<81'") from error

RATE = 16000
WORDS = "zero one two three four five six seven eight nine".split()
HANZI = "零一二三四五六七八九"

# Kept for evaluation only: five female and five male human-like variants.
HELD_OUT_VARIANTS = ("f2", "f5", "Annie", "linda", "belinda", "m3", "m7", "Andy", "Diogo", "Michael")
ODD_VARIANTS = re.compile(r"robo|robot|whisper|croak|demonic|announcer|klatt|kaukovalta|fast", re.IGNORECASE)
ACCENTS = {
    # TRAP: voice "cmn" of espeak-ng 1.51 reads hanzi as English letters and the number of the tone ("yi one"); ASCII
    # digits it reads right. Since people will try the demo with what espeak-ng makes of hanzi, a share of the data is
    # like that.
    "zh": ("cmn",),
    "yue": ("yue", "yue-latn-jyutping"),
    "en": (
        "en-us",
        "en-us",
        "en-gb",
        "en-gb-scotland",
        "en-gb-x-rp",
        "en-gb-x-gbclan",
        "en-gb-x-gbcwmd",
        "en-us-nyc",
        "en-029",
    ),
}
# For training only, read by en-us: English as those say it who grew up with another language. A "zero" without a voiced
# z sounds much like "two".
FOREIGN = {
    "en-german": "tsiro one two tree four fife six seven eight nine".split(),
    "en-latin": "sero one two tree four five six zeven eight nine".split(),
}
FLITE_VOICES = ("kal", "kal16", "awb", "rms", "slt")
FESTIVAL_VOICES = {
    "kal": ("voice_kal_diphone", "festvox-kallpc16k"),
    "ked": ("voice_ked_diphone", "festvox-kdlpc16k"),
    "slt-hts": ("voice_cmu_us_slt_arctic_hts", "festvox-us-slt-hts"),
}
FRAME = 0.005  # seconds a row of a Sound
SILENCE = math.log(1e-12)  # floor of the log envelope


def need(program, package):
    """Stop with one line that names the package when `program` isn't installed."""
    if shutil.which(program) is None:
        raise SystemExit(f"error: {program} is not on the PATH: apt-get install {package}")


def text_of(digits, language):
    """The transcript of a list of digits."""
    return " ".join(WORDS[d] for d in digits) if language == "en" else "".join(HANZI[d] for d in digits)


def resample(audio, rate, target=RATE):
    """Band-limited resampling by the Fourier transform; right for short clips that start and end near zero."""
    if rate == target:
        return audio
    audio = np.pad(
        audio, (0, -len(audio) % (rate // 5))
    )  # whole fifths of a second: lengths with small prime factors are fast
    count = len(audio) * target // rate
    spectrum = np.fft.rfft(audio)
    kept = np.zeros(count // 2 + 1, complex)
    shared = min(len(kept), len(spectrum))
    kept[:shared] = spectrum[:shared]
    return np.fft.irfft(kept, count) * (count / len(audio))


def loud_frames(audio, below_peak):
    """Which 10 ms frames are less than `below_peak` dB under the loudest one."""
    frames = audio[: len(audio) // 160 * 160].reshape(-1, 160)
    power = np.square(frames).mean(1)
    return power > power.max(initial=0) * 10 ** (-below_peak / 10)


def trim(audio, noisy=False):
    """Cut silence off both ends (30 ms stay), with 5 ms fades. The limit is 38 dB under the peak, in `noisy` rooms up
    to 27 dB."""
    frames = audio[: len(audio) // 160 * 160].reshape(-1, 160)
    power = np.convolve(np.square(frames).mean(1), np.ones(3) / 3, "same")
    peak = power.max(initial=1e-12)
    noise = np.percentile(power, 25) * 8 if noisy else 0.0
    limit = np.clip(noise, peak * 10**-3.8, peak * 10**-2.7)
    loud = np.flatnonzero(power > limit)
    if not len(loud):
        return audio
    audio = audio[max(0, loud[0] * 160 - 320) : (loud[-1] + 1) * 160 + 320].copy()
    fade = np.linspace(0, 1, 80)
    audio[:80] *= fade
    audio[-80:] *= fade[::-1]
    return audio


def shorten_pauses(audio, longest=0.4):
    """Cut inner pauses to `longest` seconds: a synthesized clip has to stay one phrase."""
    quiet = np.r_[False, ~loud_frames(audio, 50.0), False]
    edges = np.flatnonzero(quiet[1:] != quiet[:-1]).reshape(-1, 2) * 160
    keep = np.ones(len(audio), bool)
    for start, end in edges:
        keep[start + int(longest * RATE) : end] = False
    return audio[keep]


def level(audio):
    """Scale to -20 dB mean power over the loud frames, so that takes of all recordings are alike."""
    loud = np.repeat(loud_frames(audio, 30.0), 160)
    power = np.square(audio[: len(loud)][loud]).mean() if loud.any() else 1.0
    return audio * (0.1 / math.sqrt(power + 1e-12))


def read(path):
    """A sound file as mono audio at 16 kHz, trimmed and levelled."""
    audio, rate = soundfile.read(path, dtype="float64", always_2d=True)
    return level(trim(resample(audio.mean(1), rate), noisy=True))


# --- synthesizers ---


def synthesize(command):
    """Run a synthesizer that writes a WAV to the file name appended to `command`; returns the trimmed, levelled
    audio."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        done = subprocess.run([*command, file.name], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}")
        audio, rate = soundfile.read(file.name, dtype="float64")
    return level(shorten_pauses(trim(resample(audio, rate))))


@functools.cache
def espeak_variants():
    """(variants for training, their weights): all but the held-out ones; robots and whispers count a sixth."""
    listing = subprocess.run(["espeak-ng", "--voices=variant"], capture_output=True, text=True, check=True).stdout
    names = sorted(set(re.findall(r"!v/(\S+(?: \S+)?)", listing)))
    missing = set(HELD_OUT_VARIANTS) - set(names)
    if missing:
        raise SystemExit(f"error: espeak-ng lacks the variants {sorted(missing)}: apt-get install espeak-ng-data")
    names = [name for name in names if name not in HELD_OUT_VARIANTS]
    weights = np.array([1 / 6 if ODD_VARIANTS.search(name) else 1.0 for name in names])
    return names, weights / weights.sum()


def espeak(digits, separators, accent, variant, rate, pitch, hanzi=False):
    """One espeak-ng clip. Digits go in as ASCII for Chinese, or as `hanzi` (see ACCENTS); separators (" ", ", " or ";
    ") stand between.

    A separator always holds a space or a comma, so that no two digits are read as one number or one word.
    """
    words = FOREIGN.get(accent, WORDS) if accent.startswith("en") else HANZI if hanzi else "0123456789"
    text = "".join(words[d] + s for d, s in zip(digits, [*separators, ""]))
    voice = "en-us" if accent in FOREIGN else accent
    return synthesize(["espeak-ng", "-z", "-v", f"{voice}+{variant}", "-s", str(rate), "-p", str(pitch), text, "-w"])


def flite(digits, separators, voice, stretch):
    """One flite clip; `stretch` > 1 is slower."""
    text = "".join(WORDS[d] + s for d, s in zip(digits, [*separators, ""]))
    return synthesize(["flite", "-voice", voice, "--setf", f"duration_stretch={stretch:.3f}", "-t", text, "-o"])


def festival_phrases(folder, voice, count, rng):
    """Fill `folder` with `count` phrases of 1-6 digits in one run of festival (a run for each phrase would take 0.4 s);
    returns their paths.

    The digits are in the file name: `ked_12_0451.wav` says 0 4 5 1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command, package = FESTIVAL_VOICES[voice]
    script, paths = [f"({command})"], []
    for number in range(count):
        digits = rng.integers(0, 10, rng.integers(1, 7))
        paths.append(folder / f"{voice}_{number}_{''.join(map(str, digits))}.wav")
        text = "".join(WORDS[d] + rng.choice([" ", " ", ", "]) for d in digits).strip(", ")
        script.append(f"(Parameter.set 'Duration_Stretch {rng.uniform(0.65, 1.4):.2f})")
        script.append(f'(utt.save.wave (utt.synth (Utterance Text "{text}")) "{paths[-1]}" \'riff)')
    if not all(path.exists() for path in paths):
        done = subprocess.run(["festival", "--pipe"], input="\n".join(script), capture_output=True, text=True)
        if not all(path.exists() for path in paths):
            raise SystemExit(
                f"error: festival voice {voice} failed: apt-get install {package} ({done.stderr.strip()[:200]})"
            )
    return paths


@functools.cache
def festival_clip(path):
    """A phrase of festival_phrases, trimmed and levelled, with its digits."""
    audio, rate = soundfile.read(path, dtype="float64")
    digits = [int(d) for d in Path(path).stem.rsplit("_", 1)[1]]
    return level(shorten_pauses(trim(resample(audio, rate)))), digits


# --- recorded takes ---


def recorded_takes(folders):
    """{speaker: {digit: [paths]}} from files `{digit}_{speaker}_{n}.*`, or `{digit}.*` where the folder's name is the
    speaker."""
    speakers = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise SystemExit(f"error: no folder of recordings at {folder}")
        for path in sorted(folder.iterdir()):
            name = re.fullmatch(r"(\d)(?:_(\w+)_\d+)?", path.stem)
            if name and path.suffix.lower() in (".wav", ".mp3", ".opus", ".ogg", ".flac"):
                takes = speakers.setdefault(name[2] or folder.name, {})
                takes.setdefault(int(name[1]), []).append(str(path))
    for speaker, takes in speakers.items():
        if len(takes) < 10:
            raise SystemExit(f"error: speaker {speaker} lacks the digits {sorted(set(range(10)) - set(takes))}")
    return speakers


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


# --- disguises ---


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
