"""Two domains to adapt a model to, made anew on any machine: sentences with rare terms, voices of synthesizers and of
people, and a telephone line, for `adapt.py`.

A domain has the same terms for training and for testing, and everything else of its own for each: the sentences around
them, the voices, the people. `pharmacy` is what is measured; `railway`, with other terms and sentences, is what the defaults of
training were chosen on. Needs flite. espeak-ng's voices were tried and left out: on this line tiny.en makes as many errors
with them as there are words, and its encoder isn't trained by default.
"""

import itertools
import random
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from noise import RATE, SOUNDS, unit

BAND = 300.0, 3400.0  # Hz, of a telephone
LEVELS = 15.0, 30.0  # dB from noise to speech
NOISES = ("pink noise", "hum", "street", "keyboard")


@dataclass(frozen=True)
class Domain:
    """`terms`; sentences to train with and to test with, {} where terms go; voices of flite for both."""

    terms: tuple[str, ...]
    train: tuple[str, ...]
    test: tuple[str, ...]
    flite: tuple[tuple[str, ...], tuple[str, ...]]


DOMAINS = {
    "pharmacy": Domain(
        tuple(
            "Levetiracetam Rivaroxaban Ezetimibe Tocilizumab Dapagliflozin Ondansetron Methotrexate Apixaban Ticagrelor "
            "Sacubitril Lamotrigine Mirtazapine Quetiapine Venlafaxine Pantoprazole Bisoprolol Furosemide Zelborane "
            "Cortavex Ambritol".split()
        ),
        (
            "Please hand the {} to the nurse on the second floor.",
            "She has been taking {} since the beginning of spring.",
            "We are out of {} and the next delivery comes on Monday.",
            "Do not give {} together with {}.",
            "The doctor changed {} to {} after the last visit.",
            "He asked whether {} may be crushed.",
            "Keep the {} in the refrigerator.",
            "There is a new warning about {} for elderly patients.",
            "The label on the {} is hard to read.",
            "I would start with {} and wait for two weeks.",
            "Her mother is allergic to {}, so be careful.",
            "Stop the {} before the operation.",
            "The bottle of {} was open when it arrived.",
            "Could you check the dose of {} once more?",
            "{} is cheaper than {}, but it works more slowly.",
            "Most people tolerate {} quite well.",
            "The patient in room seven needs {} at night.",
            "They found traces of {} in the sample.",
            "My colleague ordered {} by mistake.",
            "Take {} with food and plenty of water.",
        ),
        (
            "Is {} on the list of approved medicines?",
            "The child swallowed some of her grandfather's {}.",
            "Because of his kidneys we cannot use {} any longer.",
            "I have never seen such a reaction to {}.",
            "Both {} and {} were prescribed by the same clinic.",
            "Tell them that the {} must not be exposed to light.",
            "After three days on {} the fever went down.",
            "A box of {} is missing from the cupboard.",
            "The study compared {} with a placebo.",
            "Nobody told me to bring the {} today.",
        ),
        (("awb", "slt"), ("rms", "kal16")),
    ),
    "railway": Domain(
        tuple(
            "Oberwaldau Krempelstein Vyskovice Tornaborg Quistrup Haldenreith Marzanigo Skelbrunn Pontarvel Ljuvanes "
            "Drovetsk Ascherode Belmonvar Feldkirsch Grauholm Nivorzhin Tschapina Umbervale Yarrowick Zellmath".split()
        ),
        (
            "The train to {} leaves from platform four.",
            "Passengers for {} should change at {}.",
            "A tree has fallen on the track near {}.",
            "The bridge between {} and {} is closed for repairs.",
            "We will shortly be arriving at {}.",
            "Send two engines to {} before noon.",
            "The signal at {} shows a red light.",
            "There is no dining car as far as {}.",
            "The last carriage will be taken off in {}.",
            "Somebody pulled the emergency brake outside {}.",
            "Tickets to {} are sold at the counter.",
            "A suitcase was found on the train from {}.",
            "Control, this is the driver of the freight train at {}.",
            "Due to snow the line beyond {} is blocked.",
            "The crew will be replaced in {}.",
            "Please wait behind the line at {}.",
            "The night train stops in {} only on request.",
            "Our connection in {} was missed by a minute.",
            "The heating has failed since {}.",
            "They are building a new station at {}.",
        ),
        (
            "How long does it take to get to {}?",
            "Your seat is reserved from {} to {}.",
            "The old depot at {} burned down last winter.",
            "I was told that the bus goes to {} instead.",
            "Cows are standing on the rails just before {}.",
            "The inspector will get on at {}.",
            "Tell the guard that a child got lost in {}.",
            "No trains have passed {} this morning.",
            "Is there a lift at {} for my wheelchair?",
            "The speed limit after {} has been lowered.",
        ),
        (("rms", "kal16"), ("slt", "awb")),
    ),
}


@dataclass(frozen=True)
class Spoken:
    """What a synthesizer said: samples (S,) at 16 kHz."""

    samples: np.ndarray
    text: str
    voice: str


def said(command: list[str]) -> np.ndarray:
    """What a program says into the file whose name is put behind it: float32 (S,) at 16 kHz, half a second of silence at
    both ends."""
    from glmasr import audio

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "said.wav"
        subprocess.run([*command, str(path)], check=True, capture_output=True)
        samples = audio.load(path).numpy()
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max(initial=1e-9))
    return np.pad(samples[loud[0] : loud[-1] + 1], RATE // 2)


def sentences(domain: Domain, test: bool, rng: random.Random, count: int) -> list[str]:
    """Each term as often as the others, and each sentence; no text twice."""
    frames = domain.test if test else domain.train
    terms: list[str] = []
    found: dict[str, None] = {}
    for frame in itertools.cycle(frames):
        if len(found) == count:
            return list(found)
        if len(terms) < 2:
            terms += rng.sample(domain.terms, len(domain.terms))
        text = frame.format(*[terms.pop(0) for _ in range(frame.count("{}"))])
        if len(set(domain.terms) & set(re.findall(r"\w+", text))) == frame.count("{}"):
            found[text] = None


def speak(text: str, domain: Domain, test: bool, rng: random.Random) -> Spoken:
    """By a voice of the domain, faster or slower, higher or lower."""
    voice, pace, height = rng.choice(domain.flite[test]), rng.uniform(0.95, 1.3), rng.uniform(0.92, 1.08)
    how = ["--setf", f"duration_stretch={pace * height:.2f}"]
    samples = said(["flite", "-voice", voice, *how, "-t", text, "-o"])
    places = np.arange(0, len(samples) - 1, height)  # played at another speed: throat and pitch of somebody else
    return Spoken(np.interp(places, np.arange(len(samples)), samples).astype(np.float32), text, f"flite-{voice}")


def telephone(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Speech (S,) in noise, through the band of a telephone and 8 bits of mu-law (G.711) at 8 kHz, as float32 (S,) at 16
    kHz; a quarter of a second of the line alone before and after it."""
    samples = np.pad(samples.astype(np.float64), RATE // 4)
    loud = np.abs(samples) > 0.02 * np.abs(samples).max(initial=1e-9)
    level = np.sqrt(np.square(samples[loud]).mean()) if loud.any() else 1.0
    noise = unit(SOUNDS[str(rng.choice(NOISES))](len(samples), rng))
    samples = samples / level + noise * 10 ** (-rng.uniform(*LEVELS) / 20)
    count = len(samples) // 2 * 2
    frequencies = np.fft.rfftfreq(count, 1 / RATE)
    spectrum = np.fft.rfft(samples[:count])
    tilt = 10 ** (rng.uniform(-3, 3) * frequencies / 4000 / 20)
    low, high = 1 / (1 + (BAND[0] / np.maximum(frequencies, 1)) ** 8), 1 / (1 + (frequencies / BAND[1]) ** 24)
    narrow = np.fft.irfft((spectrum * tilt * np.sqrt(low * high))[: count // 4 + 1], count // 2) / 2
    narrow = (narrow / np.abs(narrow).max() * rng.uniform(0.3, 0.95)).clip(-1, 1)
    coded = np.round(np.sign(narrow) * np.log1p(255 * np.abs(narrow)) / np.log(256) * 127) / 127
    narrow = np.sign(coded) * np.expm1(np.abs(coded) * np.log(256)) / 255
    wide = np.zeros(count // 2 + 1, complex)
    wide[: count // 4 + 1] = np.fft.rfft(narrow)
    return (np.fft.irfft(wide, count) * 2).clip(-1, 1).astype(np.float32)


def missing() -> str:
    """The package of a program that isn't there, or ""."""
    return "" if shutil.which("flite") else "flite"
