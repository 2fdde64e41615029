"""Speakers for synthetic data: synthesizers, and recorded takes of digits.

Everything here returns mono float64 audio at 16 kHz without silence at its ends. Randomness comes from the caller's
generator only.
"""

import functools
import math
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile

RATE = 16000
SHORT = 0.45  # seconds of a recording of one digit
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
    sound = resample(audio.mean(1), rate)[: len(audio) * RATE // rate]
    # TRAP: what is this short was cut by its makers. Its quietest quarter is no noise, and may be a weak "s".
    return level(sound if len(sound) < SHORT * RATE else trim(sound, noisy=True))


# --- synthesizers ---


def synthesize(command, option, *rest):
    """Run a synthesizer that writes a WAV to the file name after `option`; returns the trimmed, levelled audio."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        done = subprocess.run([*command, option, file.name, *rest], capture_output=True, text=True)
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
    return espeak_text(text, "en-us" if accent in FOREIGN else accent, variant, rate, pitch)


def espeak_text(text, accent, variant, rate, pitch):
    """Any text, said by espeak-ng. TRAP: without "--" one that begins with a dash is an option."""
    settings = ["-v", f"{accent}+{variant}", "-s", str(rate), "-p", str(pitch)]
    return synthesize(["espeak-ng", "-z", *settings], "-w", "--", text)


def flite(digits, separators, voice, stretch):
    """One flite clip; `stretch` > 1 is slower."""
    return flite_text("".join(WORDS[d] + s for d, s in zip(digits, [*separators, ""])), voice, stretch)


def flite_text(text, voice, stretch):
    """Any text, said by flite."""
    return synthesize(["flite", "-voice", voice, "--setf", f"duration_stretch={stretch:.3f}", "-t", text], "-o")


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
