"""How much speech is lost? Recordings of people, joined; what of their words no text has, and nobody was told of.

    python benchmarks/lost.py MANIFEST --model DIR                  # a table in Markdown; exit code 1 where a loss of four words wasn't flagged

MANIFEST is a table as in tests/speech: path, language, text, separated by tabs. Clips of one language are joined to 20 to 30 s and to 10
minutes, with gaps of 0.1, 0.5 and 2 s, at four levels, some cut off in the middle of the last sentence, some with a sentence that is said
again and again. The joins are the same each time. A loss is a run of four words or more (in Chinese, six characters) that the alignment of
reference and text has as deleted. It was flagged if the recogniser tells of missing text, or doubts the text, within a second of the clip.
"""

import argparse
import csv
import json
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

RATE = 16_000
GAPS = (0.1, 0.5, 2.0)          # seconds
LEVELS = (0, -12, -24, -36)     # dB
LONG = 600.0                    # seconds
NEAR = 1.0                      # seconds
RUN = {"en": 4, "zh": 6, "yue": 6}


@dataclass
class Join:
    """Samples, and what is said where: (start, end, units) of each clip in it; of one that was cut off, the words that are surely there."""

    name: str
    language: str
    samples: np.ndarray
    clips: list[tuple[float, float, list[str]]] = field(default_factory=list)


def units(text: str, language: str) -> list[str]:
    """Words of English, characters of Chinese, as errors are counted."""
    from scoring import normalised
    text = normalised(text, language)
    return text.split() if language == "en" else list(text.replace(" ", ""))


def joins(manifest: Path, languages: list[str], count: int, long: int, seed: int = 1) -> list[Join]:
    from glmasr import audio
    with open(manifest, encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row["language"] in languages]
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
                words = words[:max(0, int(len(words) * left / len(samples)) - 2)]
                samples = samples[:left]
            clips.append((place / RATE, (place + len(samples)) / RATE, words))
            pieces += [samples, np.zeros(round(gap * RATE), np.float32)]
            place += len(samples) + round(gap * RATE)
        joined = np.concatenate(pieces[:-1])[:None if kind != "cut" else round(seconds * RATE)]
        noise = np.random.default_rng(number).normal(0, 10 ** (-65 / 20), len(joined))     # rooms are never silent
        made.append(Join(f"{number:03d}-{language}-{kind}-{gap}s{level}dB", language, ((joined + noise) * 10 ** (level / 20)).astype(np.float32), clips))
    return made


def lost(join: Join, text: str) -> tuple[list[tuple[float, float, list[str]]], int]:
    """Losses, (start, end, words) of the clips that they touch, and how many words are deleted in all."""
    import jiwer
    reference = [(word, clip) for clip in join.clips for word in clip[2]]
    if not reference:
        return [], 0
    found = jiwer.process_words(" ".join(word for word, _ in reference), " ".join(units(text, join.language)) or "")
    losses, deleted = [], 0
    for chunk in found.alignments[0]:
        if chunk.type == "delete":
            missing = reference[chunk.ref_start_idx:chunk.ref_end_idx]
            deleted += len(missing)
            if len(missing) >= RUN[join.language]:
                losses.append((missing[0][1][0], missing[-1][1][1], [word for word, _ in missing]))
    return losses, deleted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--languages", default="en,zh")
    parser.add_argument("--joins", type=int, default=200)
    parser.add_argument("--long", type=int, default=4, help="how many of them last 10 minutes")
    parser.add_argument("--beams", type=int, default=None)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--timestamps", choices=["auto", "no"], default="auto")
    parser.add_argument("--no-guards", action="store_true")
    parser.add_argument("--only", help="a part of the name")
    args = parser.parse_args()
    import glmasr
    recogniser = glmasr.load(args.model, dtype=args.dtype)
    unflagged = words = deleted = flagged = 0
    began = time.perf_counter()
    for join in joins(args.manifest, args.languages.split(","), args.joins, args.long):
        if args.only and args.only not in join.name:
            continue
        transcript = recogniser.transcribe(join.samples, join.language, sample_rate=RATE, beams=args.beams, guards=not args.no_guards, timestamps=True if args.timestamps == "auto" else False)
        losses, count = lost(join, transcript.text)
        told = [*transcript.uncovered, *((segment.start, segment.end) for segment in transcript.segments if segment.flags)]
        words, deleted = words + sum(len(clip[2]) for clip in join.clips), deleted + count
        for start, end, missing in losses:
            seen = any(first < end + NEAR and last > start - NEAR for first, last in told)
            flagged, unflagged = flagged + seen, unflagged + (not seen)
            print(f"{join.name} {start:.1f}-{end:.1f} {'flagged' if seen else 'UNFLAGGED'}: {' '.join(missing)}", file=sys.stderr)
            if not seen:
                print(json.dumps([(segment.start, segment.end, segment.text) for segment in transcript.segments if segment.start < end + 8 and segment.end > start - 8], ensure_ascii=False), file=sys.stderr)
    print(f"words {words}, deleted {deleted}, losses flagged {flagged}, unflagged {unflagged}, {time.perf_counter() - began:.0f} s")
    return unflagged > 0


if __name__ == "__main__":
    sys.exit(main())
