"""How long it takes until something happens: `--help`, the demo ready, the server ready, and the features of an hour of
sound; and the floor, which is Python and PyTorch alone.

    python benchmarks/startup.py [--runs 5] [--server 3]

All but the last are fresh processes, with files in the disk cache and modules compiled to bytecode, as an installation
has them. Runs are turn about: ratios are of one turn, for the machine's speed drifts. CPU time is that of all processes.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from glmasr import audio  # noqa: E402

MINUTE = 60 * audio.SAMPLE_RATE
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
SERVER = "import sys; from glmasr.server.main import main; sys.exit(main())"


def hour() -> None:
    samples = 0.1 * torch.randn(MINUTE, generator=torch.Generator().manual_seed(0))
    for _ in range(60):
        audio.log_mel(audio.windows(samples, MINUTE // 2), 128)


def process(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], cwd=ROOT, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)


def server(*options: str) -> float:
    """Starts a server and stops it. -> seconds until it answered that it is ready. Raises SystemExit if it ends."""
    start, port = time.perf_counter(), "7869"
    command = [sys.executable, "-c", SERVER, "--model", "demo", "--port", port, "--quiet", *options]
    child = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT)
    try:
        while child.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
                if answer.status == 200:
                    return time.perf_counter() - start
            time.sleep(0.01)
        sys.exit("the server did not start")
    finally:
        child.terminate()
        child.wait(60)


TASKS: dict[str, Callable[[], float | None]] = {
    "Python alone": lambda: process("-c", "pass"),
    "`python transcribe.py --help`": lambda: process("transcribe.py", "--help"),
    "PyTorch alone": lambda: process("-c", "import torch"),
    "import, demo ready": lambda: process("-c", "import glmasr; glmasr.load('demo')"),
    "log-mel of an hour": hour,
}
SERVERS: dict[str, Callable[[], float | None]] = {
    "server ready, without the page": lambda: server("--no-page"),
    "server ready": server,
}
FLOORS = {
    "`python transcribe.py --help`": "Python alone",
    "import, demo ready": "PyTorch alone",
    "server ready": "PyTorch alone",
    "server ready, without the page": "PyTorch alone",
}


def spent() -> float:
    """CPU seconds of this process and of those that it started and that ended."""
    found = os.times()
    return found.user + found.system + found.children_user + found.children_system


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--server", type=int, default=3, metavar="RUNS", help="of the server; 0: none (default: 3)")
    args = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {}
    for tasks, runs in ((TASKS, args.runs), (SERVERS, args.server)):
        for run in range(runs + 1 if runs else 0):
            for title, task in tasks.items():
                start, before = time.perf_counter(), spent()
                ready = task()
                passed = time.perf_counter() - start if ready is None else ready
                if run:  # the first one fills the disk cache and compiles
                    found.setdefault(title, []).append((passed, spent() - before))
    print("| what | s, median (least-greatest) | times the floor | CPU, s |\n|---|---|---|---|")
    for title, values in found.items():
        floor = ""
        if under := FLOORS.get(title):
            ratios = [mine[0] / its[0] for mine, its in zip(values, found[under], strict=False)]
            floor = f"{statistics.median(ratios):.2f} x {under}"
        print(f"| {title} | {spread([wall for wall, _ in values])} | {floor} | {spread([cpu for _, cpu in values])} |")


if __name__ == "__main__":
    main()
