"""Can the subtitles be read? Cues of a long recording of people, with and without the times of words.

    python benchmarks/subtitles.py MANIFEST --model DIR [--minutes 12] [--language en] [--beams 1]

MANIFEST is a table as in tests/speech: path, language, text, separated by tabs. Clips of one language, each of at least
3 s, are joined with pauses of 0.2 to 1.2 s; the join is the same each time. It is recognized twice, and of the cues
those are counted that are below 1 s, faster than 20 characters a second, faster than is easily read (17 in English, 9
in Chinese), above 7 s, a single word of a sentence, and those with a gap below 0.1 s after them; also those that end
with a sentence or a clause. Prints a table in Markdown.
"""

import argparse
import csv
import datetime
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import glmasr  # noqa: E402
from glmasr import audio  # noqa: E402
from glmasr.alignment.words import spans  # noqa: E402
from glmasr.writers.line_breaks import ends_clause, ends_sentence, reading_time  # noqa: E402
from glmasr.writers.subtitles import Cue, cues  # noqa: E402

GAPS = 0.2, 1.2  # seconds
SHORTEST = 3.0  # of a clip: shorter ones are commands, whose pauses nobody reads across
FAST = 20  # characters a second


def join(manifest: Path, language: str, seconds: float, seed: int = 1) -> np.ndarray:
    """Samples (S,) of about so many seconds."""
    rng = random.Random(seed)
    with open(manifest, encoding="utf-8") as file:
        rows = [
            row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row["language"] == language
        ]
    rng.shuffle(rows)
    parts, length, used = [], 0.0, 0
    while length < seconds:
        if used == len(rows):  # all were said: once more
            if not parts:
                sys.exit(f"{manifest}: no clip of {SHORTEST:.0f} s or more in language {language!r}")
            used = 0
        samples = audio.load(manifest.parent / rows[used]["path"]).numpy()
        used += 1
        if len(samples) >= SHORTEST * audio.SAMPLE_RATE:
            pause = np.zeros(int(rng.uniform(*GAPS) * audio.SAMPLE_RATE), dtype=np.float32)
            parts += [samples, pause]
            length += (len(samples) + len(pause)) / audio.SAMPLE_RATE
    return np.concatenate(parts)


def counts(shown: list[Cue]) -> dict[str, int]:
    texts = [" ".join(cue.lines) for cue in shown]
    lengths = [cue.end - cue.start for cue in shown]
    gaps = [right.start - left.end for left, right in zip(shown, shown[1:])]
    whole = [ends_sentence(before) and ends_sentence(text) for before, text in zip([".", *texts], texts)]
    return {
        "cues": len(shown),
        "below 1 s": sum(length < 1000 for length in lengths),
        "above 7 s": sum(length > 7000 for length in lengths),
        f"above {FAST} characters/s": sum(1000 * len(text) > FAST * length for text, length in zip(texts, lengths)),
        "faster than is easy": sum(reading_time(text) > length + 1 for text, length in zip(texts, lengths)),
        "single words": sum(len(spans(text)) == 1 and not alone for text, alone in zip(texts, whole)),
        "gaps below 0.1 s": sum(0 < gap < 100 for gap in gaps),
        "end with a sentence or clause": sum(map(ends_clause, texts)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--language", default="en")
    parser.add_argument("--beams", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--show", action="store_true", help="also the subtitles with words")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    recognizer = glmasr.load(args.model)
    samples = join(args.manifest, args.language, 60 * args.minutes)
    rows = {}
    for name, words in (("segments", False), ("words", True)):
        began = time.perf_counter()
        transcript = recognizer.transcribe(
            samples,
            args.language,
            sample_rate=audio.SAMPLE_RATE,
            beams=args.beams,
            timestamps=True if recognizer.timed(glmasr.Options()) else None,
            words=words,
        )
        rows[name] = {**counts(list(cues(transcript))), "seconds": round(time.perf_counter() - began)}
    if args.show:
        print(transcript.to_srt())
    print(
        f"{args.language}, {len(samples) / audio.SAMPLE_RATE / 60:.1f} minutes, {Path(args.model).name}, "
        f"{datetime.date.today()}\n"
    )
    print("| cues of | " + " | ".join(rows["words"]) + " |\n|---" + "|---" * len(rows["words"]) + "|")
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(map(str, row.values())) + " |")


if __name__ == "__main__":
    main()
