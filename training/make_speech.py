"""Makes synthetic English speech of texts: clips of up to a window, said by many voices, for students and adapters.

    python training/make_speech.py TEXTS... --out DIR

writes DIR/audio/*.flac (mono, 16 kHz) and DIR/manifest.jsonl, whose lines are
    {"audio", "text", "language": "en", "speaker", "seconds"}
A text file has a sentence a line; one with empty lines is prose, whose paragraphs are cut into sentences. Sentences that
follow each other are joined to clips, mostly of one voice. Most clips fill the window, for a model that pads to it takes
as long for a short one. A share of them goes through a room, a telephone or noise.

Clip number n depends on the texts, --seed, --seconds and n only. With --held-out the voices are others, which no training
has heard: to measure with.
"""

import argparse
import json
import math
import multiprocessing
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import voices
from augment import add_noise, change_speed
from channels import through_channel
from options import above_zero, positive, seed
from tqdm import tqdm
from voices import ACCENTS, FLITE_VOICES, HELD_OUT_VARIANTS, RATE

HELD_OUT_FLITE = ("rms",)
FLITE = 0.85  # share of the voices; the rest is espeak-ng, of which Whisper base understands less than half
FULL = 0.75  # share of the clips that fill the window as far as whole sentences do
CHANGE = 0.1  # chance that another voice says the next sentence
NOISY = 0.4  # share of the clips with noise
GAPS = 0.1, 0.7  # seconds between sentences
WORDS = 2, 45  # of a sentence that is used
TRIES = 6  # sentences that are too long for the rest of a clip, until it is left as it is
ENOUGH = 0.92  # of a clip is filled
BOOK = re.compile(r"\*\*\* ?(?:START|END) OF TH(?:E|IS) PROJECT GUTENBERG[^*]*\*\*\*")
END = re.compile(r"(?<=[.!?])([\"')\u2019\u201d]*)\s+(?=[\"'(\u2018\u201c]*[A-Z0-9])")
TITLE = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|Messrs|Prof|Capt|Gen|Col|No|[A-Z])\.$")
SAID = re.compile(r"[A-Za-z0-9\"'(\u2018\u201c][\w\s.,;:!?'\"()\u2018\u2019\u201c\u201d\u2014-]*")


# --- texts ---


def sentences_of(text: str) -> list[str]:
    """Of a file: its lines, or the sentences of its paragraphs. A paragraph without a full stop is a heading.

    >>> sentences_of('CHAPTER I\\n\\nMr. Hale said _nothing_. "Why?" she\\nasked.')
    ['Mr. Hale said nothing.', '"Why?" she asked.']
    """
    parts = BOOK.split(text)
    text = (parts[1] if len(parts) == 3 else text).replace("_", "").strip()
    paragraphs = re.split(r"\n\s*\n", re.sub(r"(?<=\w-)\n(?=\w)", "", text))
    if len(paragraphs) == 1:
        return [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    found: list[str] = []
    for paragraph in paragraphs:
        pieces = END.split(" ".join(paragraph.replace("--", "\u2014").split()))  # text, quotes, text, quotes, ..., text
        before = ""
        for piece, quotes in zip(pieces[::2], [*pieces[1::2], ""], strict=True):
            before = f"{before} {piece}{quotes}".strip()
            if not TITLE.search(before):
                found.append(before)
                before = ""
        found += [before] * bool(before)
    return [sentence for sentence in found if re.search(r"[.!?][\"')\u2019\u201d]*$", sentence)]


def read_texts(paths: list[Path]) -> list[str]:
    """The sentences of all files that a synthesizer can say; how many were left out is told. Ends with a line for what
    can't be read."""
    found, kept = [], []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise SystemExit(f"error: {path}: can't be read as UTF-8 text ({error})") from None
        found += sentences_of(text)
    kept = [one for one in found if SAID.fullmatch(one) and WORDS[0] <= len(one.split()) <= WORDS[1]]
    if not kept:
        raise SystemExit(
            f"error: {', '.join(map(str, paths))}: no English sentence of {WORDS[0]} to {WORDS[1]} words in it; expected a "
            "sentence a line, or prose with empty lines between paragraphs"
        )
    print(
        f"{len(kept)} sentences; {len(found) - len(kept)} more are left out: other letters or signs, or not of "
        f"{WORDS[0]} to {WORDS[1]} words"
    )
    return kept


# --- voices ---


class Voice:
    """One imagined speaker: a voice of a synthesizer with its rate and pitch, perhaps played faster or slower like a tape,
    which moves its formants."""

    def __init__(self, rng: np.random.Generator, held_out: bool):
        self.tape = math.exp(rng.uniform(-0.15, 0.15)) if rng.random() < 0.6 and not held_out else 1.0
        self.engine = "flite" if rng.random() < FLITE else "espeak"
        if self.engine == "flite":
            self.name = str(rng.choice([voice for voice in FLITE_VOICES if (voice in HELD_OUT_FLITE) == held_out]))
            self.rate = rng.uniform(0.8, 1.3) * self.tape  # the tape gives back what it takes of the time
        else:
            self.accent = str(rng.choice(ACCENTS["en"]))
            self.name = self.variant(rng, held_out)
            self.rate, self.pitch = int(rng.integers(120, 211) / self.tape), int(rng.integers(25, 76))

    @staticmethod
    def variant(rng: np.random.Generator, held_out: bool) -> str:
        """Of espeak-ng."""
        if held_out:
            return str(rng.choice(HELD_OUT_VARIANTS))
        names, weights = voices.espeak_variants()
        return str(rng.choice(names, p=weights))

    def __str__(self) -> str:
        return f"{self.engine}-{self.name}" + "*" * (self.tape != 1.0)

    def say(self, text: str) -> np.ndarray:
        """A sentence, float (S,) at 16 kHz."""
        if self.engine == "flite":
            sound = voices.flite_text(text, self.name, self.rate)
        else:
            sound = voices.espeak_text(text, self.accent, self.name, self.rate, self.pitch)
        return sound if self.tape == 1.0 else change_speed(sound, self.tape)


# --- clips ---


def spoken(rng: np.random.Generator, sentences: list[str], most: float, held_out: bool) -> Iterator[tuple]:
    """(sentence, sound, name of the voice) of sentences that follow each other, together at most `most` seconds with the
    gaps, which are in front of each sound but the first."""
    voice, length, misses = Voice(rng, held_out), 0, 0
    place = int(rng.integers(len(sentences)))
    while misses < TRIES and length < ENOUGH * most * RATE:
        sentence, place = sentences[place % len(sentences)], place + 1
        sound = voice.say(sentence)
        if length:
            sound = np.concatenate((np.zeros(int(rng.uniform(*GAPS) * RATE)), sound))
        if length + len(sound) > most * RATE:
            misses += 1
            continue
        length += len(sound)
        yield sentence, sound, str(voice)
        voice = Voice(rng, held_out) if rng.random() < CHANGE else voice


def make_clip(job) -> dict:
    """(folder, seed, number, seconds, held out, sentences) -> manifest line; {} if no sentence is short enough."""
    folder, seed, number, seconds, held_out, sentences = job
    rng = np.random.default_rng([seed, number, held_out])
    most = seconds if rng.random() < FULL else rng.uniform(0.2, 1.0) * seconds
    texts, sounds, names = [], [], []
    for text, sound, name in spoken(rng, sentences, most, held_out):
        texts.append(text)
        sounds.append(sound)
        names.append(name)
    if not sounds:
        return {}
    audio = through_channel(np.concatenate(sounds), rng)
    audio /= np.abs(audio).max() + 1e-9
    if rng.random() < NOISY:
        audio = add_noise(audio, rng)
    path = folder / "audio" / f"{number:06d}.flac"
    soundfile.write(path, audio * (10 ** (-rng.uniform(1, 20) / 20) / np.abs(audio).max()), RATE, subtype="PCM_16")
    return {
        "audio": str(path.relative_to(folder)),
        "text": " ".join(texts),
        "language": "en",
        "speaker": "+".join(dict.fromkeys(names)),
        "seconds": round(len(audio) / RATE, 3),
    }


# --- command line ---


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("texts", nargs="+", type=Path, metavar="TEXTS", help="English; a sentence a line, or prose")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder: audio/, manifest.jsonl")
    parser.add_argument("--clips", type=positive, default=100, metavar="N", help="default 100")
    parser.add_argument("--seconds", type=above_zero, default=25.0, help="the longest clip (default 25)")
    parser.add_argument("--held-out", action="store_true", help="voices that are in no training data, to measure with")
    parser.add_argument("--seed", type=seed, default=1)
    parser.add_argument("--jobs", type=positive, default=2, help="processes (default 2)")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    for program in ("espeak-ng", "flite"):
        voices.need(program, program)
    voices.espeak_variants()
    manifest = args.out / "manifest.jsonl"
    if manifest.exists():
        raise SystemExit(f"error: {manifest} exists; expected a new folder for --out")
    sentences = read_texts(args.texts)
    try:
        (args.out / "audio").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"error: --out {args.out}: {error.strerror}; expected a new folder, or an empty one") from None
    jobs = [(args.out, args.seed, number, args.seconds, args.held_out, sentences) for number in range(args.clips)]
    with multiprocessing.get_context("fork").Pool(args.jobs) as pool:
        lines = list(tqdm(pool.imap(make_clip, jobs), "clips", len(jobs)))
    if not any(lines):
        raise SystemExit(f"error: no sentence is said within {args.seconds:g} s; expected longer clips: --seconds")
    manifest.write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines if line), encoding="utf-8"
    )
    made = [line for line in lines if line]
    missing = f"; {len(lines) - len(made)} more found no sentence that is short enough" * (len(made) < len(lines))
    print(f"{manifest}: {len(made)} clips, {sum(line['seconds'] for line in made) / 60:.1f} min{missing}")


if __name__ == "__main__":
    sys.exit(main())
