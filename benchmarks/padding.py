"""What padding costs: time and word errors of a demo with windows padded in full, as published, and up to the end of
speech.

    python benchmarks/padding.py demo OUT/digits/eval_espeak_{zh,yue,en}.jsonl [--dtype float32] [--runs 3]

Each manifest is recognized both ways, turn about; the time is that of all its recordings, in batches.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "training")]
from evaluate import evaluate, read_manifest  # noqa: E402

import glmasr  # noqa: E402
from glmasr.pipeline import Options  # noqa: E402

WAYS = ("window", "speech")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("manifests", nargs="+", metavar="MANIFEST")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    recognizer = glmasr.load(args.model, dtype=args.dtype)
    language = "given" if getattr(recognizer.config, "languages", None) else "auto"
    print(
        "| manifest | sound | errors, window | errors, speech | time, window | time, speech | ratio |\n|---|---|---|---|---|---|---|"
    )
    for manifest in args.manifests:
        rows, rates, times = read_manifest(manifest), {}, {way: [] for way in WAYS}
        for _ in range(args.runs):
            for way in WAYS:
                options = Options(beams=1, temperatures=(0.0,), guards=False, pad_to=way)
                start = time.perf_counter()
                rates[way] = evaluate(recognizer, rows, options, language=language, progress=False).rate
                times[way].append(time.perf_counter() - start)
        ratio = statistics.median(speech / window for window, speech in zip(*times.values(), strict=True))
        print(
            f"| {Path(manifest).stem} | {sum(row['seconds'] for row in rows):.0f} s | "
            + " | ".join(f"{100 * rates[way]:.2f} %" for way in WAYS)
            + " | "
            + " | ".join(f"{statistics.median(times[way]):.1f} s" for way in WAYS)
            + f" | {ratio:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
