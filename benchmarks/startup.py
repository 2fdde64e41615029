"""How long it takes until something happens: `--help`, the demo ready, and the features of an hour of sound.

    python benchmarks/startup.py [--runs 5]

The first two are fresh processes, with files in the disk cache.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from glmasr import audio  # noqa: E402

MINUTE = 60 * audio.SAMPLE_RATE


def hour() -> None:
    samples = 0.1 * torch.randn(MINUTE, generator=torch.Generator().manual_seed(0))
    for _ in range(60):
        audio.log_mel(audio.windows(samples, MINUTE // 2), 128)


def process(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


TASKS = {
    "`python transcribe.py --help`": lambda: process("transcribe.py", "--help"),
    "import, demo ready": lambda: process("-c", "import glmasr; glmasr.load('demo')"),
    "log-mel of an hour": hour,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    print("| what | s, median (least-greatest) |\n|---|---|")
    for title, task in TASKS.items():
        times = []
        for _ in range(args.runs + 1):
            start = time.perf_counter()
            task()
            times.append(time.perf_counter() - start)
        times = times[1:]  # the first one fills the disk cache
        print(f"| {title} | {statistics.median(times):.2f} ({min(times):.2f}-{max(times):.2f}) |", flush=True)


if __name__ == "__main__":
    main()
