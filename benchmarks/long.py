"""Is anything lost at the cuts of a long recording? Word errors of long recordings against those of their utterances
alone.

    python benchmarks/long.py demo OUT/digits/eval_espeak_{zh,yue,en}.jsonl [--minutes 10] [--recordings 2]

Of each manifest recordings are made: utterances in random order, 0.15 s to 0.8 s apart. Errors are words put in, left
out or replaced, over words said. Time and memory are those of the long way.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "training")]
from evaluate import edits, read_manifest, words  # noqa: E402

import glmasr  # noqa: E402
from glmasr import audio  # noqa: E402
from glmasr.pipeline import Options  # noqa: E402
from glmasr.transcription.language import join  # noqa: E402

GAPS = 0.15, 0.8  # seconds between utterances


def compose(rows: list[dict], seconds: float, rng: np.random.Generator) -> tuple[torch.Tensor, list[dict]]:
    """Samples (S,) of about `seconds`, and the rows whose recordings are in them, in order. Silence around utterances
    is cut off."""
    parts, chosen, length = [], [], 0
    while length < seconds * audio.SAMPLE_RATE:
        row = rows[rng.integers(len(rows))]
        samples = audio.load(row["audio"])
        loud = (samples.abs() > 0.01 * samples.abs().max()).nonzero()[:, 0]
        parts += [samples[loud[0] : loud[-1] + 1], torch.zeros(int(rng.uniform(*GAPS) * audio.SAMPLE_RATE))]
        chosen.append(row)
        length += len(parts[-2]) + len(parts[-1])
    return torch.cat(parts), chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("manifests", nargs="+")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--recordings", type=int, default=2, help="of each manifest (default 2)")
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    recognizer = glmasr.load(args.model, dtype="float32")
    given = getattr(recognizer.config, "languages", None)
    options = Options(beams=args.beams)
    print(
        "| recording | minutes | words | errors, utterances alone | errors, long | difference | real-time factor |\n|---|---|---|---|---|---|---|"
    )
    for manifest in args.manifests:
        rows = read_manifest(manifest)
        rng = np.random.default_rng([args.seed, *Path(manifest).stem.encode()])
        language = rows[0]["language"] if given else "auto"
        alone = {}
        for number in range(args.recordings):
            samples, chosen = compose(rows, 60 * args.minutes, rng)
            missing = [row for row in {row["audio"]: row for row in chosen}.values() if row["audio"] not in alone]
            for start in range(0, len(missing), 16):
                part = missing[start : start + 16]
                found = recognizer.recognize(
                    [audio.load(row["audio"]) for row in part], [language] * len(part), options
                )
                alone |= {
                    row["audio"]: edits(words(transcript.text), words(row["text"]))
                    for row, transcript in zip(part, found)
                }
            began = time.perf_counter()
            transcript = recognizer.transcribe(
                samples.numpy(), language, sample_rate=audio.SAMPLE_RATE, beams=args.beams
            )
            spent = time.perf_counter() - began
            said = words(join([row["text"] for row in chosen]))
            together = 100 * edits(words(transcript.text), said) / len(said)
            apart = 100 * sum(alone[row["audio"]] for row in chosen) / len(said)
            print(
                f"| {Path(manifest).stem} {number + 1} | {len(samples) / audio.SAMPLE_RATE / 60:.1f} | {len(said)} | {apart:.2f} % | {together:.2f} % | "
                f"{together - apart:+.2f} | {spent * audio.SAMPLE_RATE / len(samples):.3f} |",
                flush=True,
            )
    print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
