"""What does a second worker bring, and what does Ray take?

    pip install -c constraints.txt '.[ray]'
    python benchmarks/archive.py MANIFEST --model DIR [--seconds 120 480] [--turns 2] [--long 60]

MANIFEST is one of glmasr-archive; of it so many seconds are recognized, by workers of one core each. A
run's time is a + b * seconds of sound: two sizes tell both, the start and the pace. Turn about:

ray N      glmasr-archive --workers N --cpus-per-worker 1
plain N    N processes, each with its share of the same batches, without Ray: what the machine itself allows

start      a: seconds until workers can begin, and to end
pace       1 / b: times as fast as the sound
of N       pace over N times that of one worker: 1 is a second machine's worth
others     CPU time of all that isn't a worker, Ray's and the driver's: seconds for the start, and its part in a
           worker's for each second more
worker     most memory that a worker had, in MiB

--long M recognizes two recordings of M minutes, made of those of the manifest, on two workers of a cluster here, and tells
the most that its object store held, by Ray's metrics for Prometheus.
Prints a table in Markdown.
"""

import argparse
import datetime
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import soundfile
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from glmasr import Options, audio, load  # noqa: E402
from glmasr.archive import sources, work  # noqa: E402
from glmasr.archive.items import Item  # noqa: E402
from glmasr.archive.worker import Worker  # noqa: E402
from glmasr.audio_files.sound_files import stated_duration  # noqa: E402

TICK = os.sysconf("SC_CLK_TCK")
BATCH = 30.0  # seconds of sound, so that a small run has batches enough for both
POLL = 0.25  # seconds


@dataclass
class Watch:
    """CPU seconds and memory in MiB of a process and all that it started, Ray's included, which leave its tree."""

    cpu: dict[int, tuple[str, float]] = field(default_factory=dict)
    worker: float = 0.0
    store: float = 0.0
    metrics: str = ""  # their address

    def look(self) -> None:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                name = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if "ray" not in name and "glmasr" not in name:
                    continue
                numbers = (folder / "stat").read_text().rpartition(")")[2].split()
                status = dict(
                    line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line
                )
            except (OSError, ValueError):
                continue
            kind = "worker" if "MapWorker" in name else "other"
            if kind == "worker" or self.cpu.get(int(folder.name), ("", 0.0))[0] != "worker":
                self.cpu[int(folder.name)] = kind, (int(numbers[11]) + int(numbers[12])) / TICK
            if kind == "worker":
                self.worker = max(self.worker, int(status.get("VmRSS", "0 kB").split()[0]) / 1024)

        if self.metrics:
            with suppress(OSError):
                text = urllib.request.urlopen(self.metrics, timeout=10).read().decode()
                held = re.findall(r'^ray_object_store_memory\{[^}]*Location="MMAP[^}]*\} (\S+)', text, re.MULTILINE)
                self.store = max(self.store, sum(map(float, held)) / 2**20)

    def seconds(self, kind: str) -> float:
        return sum(seconds for found, seconds in self.cpu.values() if found == kind)


def by_ray(
    manifest: Path, workers: int, args: argparse.Namespace, address: str = "local", metrics: str = ""
) -> tuple[float, Watch]:
    """-> seconds, and what was used."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-c", "from glmasr.cli import archive; raise SystemExit(archive())", str(manifest)]
        command += ["--model", args.model, "--out", out, "--workers", str(workers), "--cpus-per-worker", "1"]
        command += ["--dtype", args.dtype, "--batch-seconds", str(BATCH), "--quiet", "--address", address]
        watch, begun = Watch(metrics=metrics), time.perf_counter()
        child = subprocess.Popen(command, cwd=ROOT)
        while child.poll() is None:
            watch.look()
            time.sleep(POLL)
        took = time.perf_counter() - begun
        if child.returncode:
            raise SystemExit(f"{' '.join(command)} failed")
    return took, watch


def plainly(manifest: Path, workers: int, args: argparse.Namespace) -> float:
    """-> seconds from when all have the model to when the last one is ready."""
    share = [sys.executable, __file__, str(manifest), "--model", args.model, "--dtype", args.dtype, "--share"]
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    some = [subprocess.Popen([*share, f"{n}/{workers}"], cwd=ROOT, **pipe) for n in range(workers)]
    for child in some:
        child.stdout.readline()
    begun = time.perf_counter()
    for child in some:
        child.stdin.close()
    for child in some:
        child.stdout.readline()
    took = time.perf_counter() - begun
    for child in some:
        child.wait()
    return took


def share(args: argparse.Namespace) -> None:
    """A process of `plainly`: its batches are every so manyth."""
    torch.set_num_threads(1)
    number, count = map(int, args.share.split("/"))
    worker = Worker(load(args.model, device="cpu", dtype=args.dtype), "", "auto", Options(), 0, 60.0)
    batches = work.batches(work.pieces(items(args.manifest), 1800.0), BATCH)[number::count]
    print("ready", flush=True)
    sys.stdin.read()
    for batch in batches:
        worker(batch)
    print("done", flush=True)


def items(manifest: Path) -> list[Item]:
    def unusable(error: Exception) -> None:
        raise SystemExit(str(error))

    return sources.read([str(manifest)], unusable)


def write(path: Path, some: list[Item]) -> Path:
    lines = [{"id": one.id, "path": os.path.abspath(one.path), "duration": one.duration} for one in some]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def chosen(some: list[Item], seconds: float) -> list[Item]:
    """So many seconds of them; again from the start, by other names, where they are fewer."""
    found, total, turn = [], 0.0, 0
    while True:
        for one in some:
            if total >= seconds:
                return found
            found.append(Item(f"{one.id} {turn}", one.path, duration=one.duration))
            total += one.duration or 0.0
        turn += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seconds", type=float, nargs=2, default=[120.0, 480.0])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--long", type=float, metavar="MINUTES")
    parser.add_argument("--share", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.share:
        return share(args)
    known = [replace(one, duration=one.duration or stated_duration(one.path)) for one in items(args.manifest)]
    if args.long:
        return long(known, args)
    with tempfile.TemporaryDirectory() as folder:
        small, large = (
            (write(Path(folder) / f"{seconds:g}.jsonl", some), sum(one.duration or 0.0 for one in some))
            for seconds in args.seconds
            for some in [chosen(known, seconds)]
        )
        times: dict[str, list[tuple[float, float]]] = {}
        watches: dict[str, list[Watch]] = {}
        for turn in range(args.turns):
            for workers in (1, 2) if turn % 2 == 0 else (2, 1):
                pair = [by_ray(manifest, workers, args) for manifest, _ in (small, large)]
                times.setdefault(f"ray {workers}", []).append((pair[0][0], pair[1][0]))
                watches[f"ray {workers}"] = [watch for _, watch in pair]
                plain = [plainly(manifest, workers, args) for manifest, _ in (small, large)]
                times.setdefault(f"plain {workers}", []).append((plain[0], plain[1]))
                print(workers, pair[0][0], pair[1][0], plain, file=sys.stderr)
    print(f"{datetime.date.today()}, {args.model}, {args.dtype}, {small[1]:.0f} s and {large[1]:.0f} s of sound\n")
    print("| | start | pace | of N | others | worker |\n|---|---|---|---|---|---|")
    paces: dict[str, float] = {}
    for name in ("plain 1", "plain 2", "ray 1", "ray 2"):
        first, second = (statistics.median(column) for column in zip(*times[name], strict=True))
        slope = (second - first) / (large[1] - small[1])
        paces[name] = 1 / slope
        one = paces[f"{name.split()[0]} 1"]
        cells = [f"{first - slope * small[1]:.1f} s", f"{1 / slope:.2f}", f"{1 / slope / one / int(name[-1]):.3f}"]
        if name in watches:
            (other, more), (own, owned) = (
                [watch.seconds(kind) for watch in watches[name]] for kind in ("other", "worker")
            )
            rate = (more - other) / (owned - own)
            cells += [f"{other - rate * own:.0f} s + {rate:.1%}", f"{watches[name][1].worker:.0f} MiB"]
        print(f"| {name} | " + " | ".join(cells + ["-"] * (5 - len(cells))) + " |")


def long(known: list[Item], args: argparse.Namespace) -> None:
    import ray

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = ray.init(num_cpus=2, object_store_memory=256 * 2**20, include_dashboard=False, _metrics_export_port=port)
    with tempfile.TemporaryDirectory() as folder:
        samples = torch.cat([audio.load(one.path) for one in chosen(known, args.long * 60)]).numpy()
        path = Path(folder) / "long.wav"
        soundfile.write(path, samples, audio.SAMPLE_RATE)
        pair = [Item(name, str(path), duration=len(samples) / audio.SAMPLE_RATE) for name in "ab"]
        manifest = write(Path(folder) / "long.jsonl", pair)
        took, watch = by_ray(manifest, 2, args, here.address_info["address"], f"http://127.0.0.1:{port}/metrics")
    print(
        f"two of {args.long:g} minutes: {took:.0f} s, object store {watch.store:.2f} MiB, a worker {watch.worker:.0f} MiB"
    )


if __name__ == "__main__":
    main()
