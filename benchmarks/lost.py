"""How much speech is lost? Recordings of people, joined; what of their words no text has, and no flag reports.

    pip install -c constraints.txt '.[bench]'
    python benchmarks/lost.py MANIFEST --model DIR [--joins 200] [--peers 40]

MANIFEST is a table as in tests/speech: path, language, text, separated by tabs. Clips of one language are joined to 20
to 30 s and to 10 minutes, with gaps of 0.1, 0.5 and 2 s, at four levels, some cut off in the middle of the last
sentence, some with a sentence that is said again and again. The joins are the same each time. A loss is a run of four
words or more (in Chinese, six characters) that the alignment of reference and text has as deleted. It was flagged if
the recognizer reports missing text, or doubts the text, within a second of the clip. openai-whisper and
faster-whisper, with the same weights and beams, recognize some of the joins, evenly spread; they flag nothing.

Prints a table in Markdown; the exit code is 1 where a loss of ours wasn't flagged.
"""

import argparse
import csv
import datetime
import json
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

RATE = 16_000
GAPS = (0.1, 0.5, 2.0)  # seconds
LEVELS = (0, -12, -24, -36)  # dB
LONG = 600.0  # seconds
NEAR = 1.0  # seconds
RUN = {"en": 4, "zh": 6, "yue": 6}


@dataclass
class Join:
    """Samples, and what is said where: (start, end, units) of each clip in it; of one that was cut off, the words that
    are surely there."""

    name: str
    language: str
    samples: np.ndarray
    clips: list[tuple[float, float, list[str]]] = field(default_factory=list)


def joins(manifest: Path, languages: list[str], count: int, long: int, seed: int = 1) -> list[Join]:
    from glmasr import audio
    from glmasr.evaluation.scoring import units

    with open(manifest, encoding="utf-8") as file:
        rows = [
            row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row["language"] in languages
        ]
    draw, sounds, made = random.Random(seed), {}, []
    known = {language: [row for row in rows if row["language"] == language] for language in languages}

    def load(row):
        if row["path"] not in sounds:
            samples = audio.load(manifest.parent / row["path"]).numpy()
            sounds[row["path"]] = samples / max(1e-4, float(np.abs(samples).max())) * 0.7
        return sounds[row["path"]]

    for number in range(count):
        language = languages[number % len(languages)]
        gap, level = GAPS[number // len(languages) % 3], LEVELS[number // (3 * len(languages)) % 4]
        kind = ("whole", "cut", "repeated", "cut")[number // len(languages) % 4]
        seconds = LONG if number >= count - long else draw.uniform(20, 30)
        pieces, clips, place, last = [], [], 0, None
        while place < seconds * RATE:
            row = draw.choice(known[language]) if last is None or kind != "repeated" or draw.random() < 0.4 else last
            last, samples = row, load(row)
            words = units(row["text"], language)
            left = round(seconds * RATE) - place
            if kind == "cut" and len(samples) > left:
                words = words[: max(0, int(len(words) * left / len(samples)) - 2)]
                samples = samples[:left]
            clips.append((place / RATE, (place + len(samples)) / RATE, words))
            pieces += [samples, np.zeros(round(gap * RATE), np.float32)]
            place += len(samples) + round(gap * RATE)
        joined = np.concatenate(pieces[:-1])[: None if kind != "cut" else round(seconds * RATE)]
        noise = np.random.default_rng(number).normal(0, 10 ** (-65 / 20), len(joined))  # rooms are never silent
        made.append(
            Join(
                f"{number:03d}-{language}-{kind}-{gap}s{level}dB",
                language,
                ((joined + noise) * 10 ** (level / 20)).astype(np.float32),
                clips,
            )
        )
    return made


@dataclass
class Loss:
    """A run of deleted words: where the clips that it touches begin and end, in seconds."""

    start: float
    end: float
    words: list[str]


def lost(join: Join, text: str) -> tuple[list[Loss], int]:
    """The losses, and how many words are deleted in all."""
    import jiwer

    from glmasr.evaluation.scoring import units

    reference = [(word, clip) for clip in join.clips for word in clip[2]]
    if not reference:
        return [], 0
    found = jiwer.process_words(" ".join(word for word, _ in reference), " ".join(units(text, join.language)) or "")
    losses, deleted = [], 0
    for chunk in found.alignments[0]:
        if chunk.type == "delete":
            missing = reference[chunk.ref_start_idx : chunk.ref_end_idx]
            deleted += len(missing)
            if len(missing) >= RUN[join.language]:
                losses.append(Loss(missing[0][1][0], missing[-1][1][1], [word for word, _ in missing]))
    return losses, deleted


@dataclass
class Subject:
    """One that is measured, and its sums."""

    name: str
    recognize: object  # (samples, language) -> (text, [(start, end) that it doubts])
    joins: int = 0
    words: int = 0
    deleted: int = 0
    losses: int = 0
    lost: int = 0  # words in losses
    silent: int = 0  # losses that it doesn't flag
    silently: int = 0  # words in them
    seconds: float = 0.0
    sound: float = 0.0

    def measure(self, join: Join) -> None:
        began = time.perf_counter()
        text, doubted = self.recognize(join.samples, join.language)
        self.seconds += time.perf_counter() - began
        self.sound += len(join.samples) / RATE
        losses, deleted = lost(join, text)
        self.joins, self.words, self.deleted = (
            self.joins + 1,
            self.words + sum(len(clip[2]) for clip in join.clips),
            self.deleted + deleted,
        )
        for loss in losses:
            flagged = any(first < loss.end + NEAR and last > loss.start - NEAR for first, last in doubted)
            self.losses, self.lost = self.losses + 1, self.lost + len(loss.words)
            self.silent, self.silently = (
                self.silent + (not flagged),
                self.silently + (0 if flagged else len(loss.words)),
            )
            print(
                f"{self.name}: {join.name} {loss.start:.1f}-{loss.end:.1f} {'flagged' if flagged else 'UNFLAGGED'}: {' '.join(loss.words)}",
                file=sys.stderr,
                flush=True,
            )


def ours(args):
    import torch

    import glmasr

    torch.set_num_threads(args.threads)
    recognizer = glmasr.load(args.model, device="cpu", dtype=args.dtype)

    def recognize(samples: np.ndarray, language: str):
        transcript = recognizer.transcribe(samples, language, sample_rate=RATE, beams=args.beams, timestamps=True)
        if args.show:
            print(
                json.dumps(
                    [(segment.start, segment.end, segment.text, segment.flags) for segment in transcript.segments],
                    ensure_ascii=False,
                ),
                file=sys.stderr,
            )
        return transcript.text, [
            *transcript.uncovered,
            *((segment.start, segment.end) for segment in transcript.segments if segment.flags),
        ]

    return recognize


def peers(args, folder: str) -> list[Subject]:
    """openai-whisper and faster-whisper, which flag nothing."""
    import torch
    from real import faster_whisper, openai_checkpoint, openai_whisper

    from glmasr import weights

    checkpoint = f"{folder}/openai.pt"
    torch.save(openai_checkpoint(weights.load(args.model)), checkpoint)
    made = []
    for name, make in (("openai-whisper float32", openai_whisper), ("faster-whisper float32", faster_whisper)):
        recognize = make("float32", args, checkpoint)
        made.append(Subject(name, lambda samples, language, recognize=recognize: (recognize(samples, language), [])))
    return made


def table(subjects: list[Subject]) -> str:
    lines = [
        "| | joins | words said | deleted | losses | words in them | unflagged losses | words in them | real-time factor |",
        "|---" * 9 + "|",
    ]
    lines += [
        f"| {one.name} | {one.joins} | {one.words} | {one.deleted} | {one.losses} | {one.lost} | {one.silent} | {one.silently} | {one.seconds / one.sound:.3f} |"
        for one in subjects
        if one.joins
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--languages", default="en,zh")
    parser.add_argument("--joins", type=int, default=200)
    parser.add_argument("--long", type=int, default=4, help="how many of them last 10 minutes")
    parser.add_argument("--peers", type=int, default=0, help="how many of them the others recognize as well")
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", default="", help="a part of the name")
    parser.add_argument("--show", action="store_true", help="the segments of ours")
    args = parser.parse_args()

    every = [
        join
        for join in joins(args.manifest, args.languages.split(","), args.joins, args.long)
        if args.only in join.name
    ]
    both = {len(every) * number // args.peers for number in range(args.peers)} if args.peers else set()
    with tempfile.TemporaryDirectory() as folder:
        whole, compared = (
            Subject(f"glmasr {args.dtype}", ours(args)),
            [Subject(f"glmasr {args.dtype}, the joins of the others", None), *(peers(args, folder) if both else [])],
        )
        for number, join in enumerate(every):
            before = Subject(**vars(whole))
            whole.measure(join)
            if number in both:
                for name, value in vars(whole).items():
                    if isinstance(value, (int, float)):
                        setattr(compared[0], name, getattr(compared[0], name) + value - getattr(before, name))
                for one in compared[1:]:
                    one.measure(join)
            if number % 10 == 9:
                print(table([whole, *compared]), file=sys.stderr, flush=True)
    from real import machine

    print(
        f"`{Path(args.model).name}`, {args.beams} beams, {args.threads} threads; {datetime.date.today()}, {machine()}\n\n{table([whole, *compared])}"
    )
    return whole.silent > 0


if __name__ == "__main__":
    sys.exit(main())
