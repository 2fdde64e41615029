"""The command `glmasr-archive`: recordings in any number -> rows in a folder.

glmasr-archive recordings/ calls.jsonl 's3://bucket/2024/*.flac' --out archive --lang zh --workers 4
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import hub
from ..cli import INTERRUPTED, Parser, count, gpus, positive, seconds
from ..errors import GlmAsrError, OptionError, printable
from ..pipeline import load
from ..tools import journal
from ..tools.console import Messages, writable
from ..transcription import hotwords
from ..transcription.options import Options
from ..writers.output import write_whole
from . import cluster, rounds, rows, shards, sources, work
from .items import Item
from .progress import Progress
from .report import Report
from .rows import Row
from .worker import Worker

SHARD_ROWS, SHARD_SECONDS = 1000, 60.0  # a shard is written when it has so many rows, or its first one is so old
LEAST_PIECE = 120.0  # seconds


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The arguments of the command line, checked. Wrong usage ends the process, with exit code 2."""
    parser = Parser("glmasr-archive", "Recognizes many recordings, on one machine or a Ray cluster.")
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="manifest, folder, pattern, tar file, recording, or an address"
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder of the rows; a run that was stopped goes on"
    )
    add = parser.add_argument_group("cluster")
    add.add_argument(
        "--address", default="local", help="local: this machine (default); auto, HOST:6379, ray://HOST:10001: a cluster"
    )
    add.add_argument(
        "--workers", type=positive, metavar="N", help="recognizers (default: one for each GPU; one on CPUs)"
    )
    add.add_argument(
        "--gpus-per-worker", type=gpus, metavar="X", help="also a part of one (default: 1 where there are any)"
    )
    add.add_argument("--cpus-per-worker", type=positive, metavar="N", help="cores (default: all, shared out)")
    add = parser.add_argument_group("recognition")
    add.add_argument("--model", default="glm-asr-nano-2512", metavar="NAME|DIR", help="as of transcribe.py")
    add.add_argument("--adapter", type=Path, metavar="DIR", help="a LoRA in PEFT's format, for the model")
    add.add_argument(
        "--lang", "--language", default="auto", metavar="LANGUAGE", help="where the source has none (default: auto)"
    )
    add.add_argument("--languages", metavar="LANGUAGE,...", help="of these, where it is detected")
    add.add_argument("--device", default="auto", help="auto, cpu or cuda")
    add.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32", "int8"])
    add.add_argument("--beams", type=positive, metavar="N", help="1: greedy (default: 5, of GLM-ASR 1)")
    add.add_argument("--words", action="store_true", help="times of words")
    add.add_argument("--hotwords", metavar="FILE|NAME,...", help="names to be spelled right")
    add.add_argument("--script", choices=["simplified", "traditional"], help="of Chinese text; needs the extra [zh]")
    add.add_argument("--vad", default="auto", choices=["auto", "off"])
    add.add_argument("--pad-to", default="window", choices=["window", "speech"])
    add = parser.add_argument_group("work")
    add.add_argument(
        "--retries", type=count, default=2, metavar="N", help="of a recording that can't be read, or whose worker died"
    )
    add.add_argument("--retry-failed", action="store_true", help="try those again that failed in an earlier run")
    add.add_argument("--timeout", type=seconds, default=120.0, help="for a storage that is silent (default: 120 s)")
    add.add_argument(
        "--batch-seconds", type=seconds, default=240.0, metavar="SECONDS", help="of sound in a batch (default: 240)"
    )
    add.add_argument(
        "--split-seconds", type=seconds, default=1800.0, metavar="SECONDS", help="longer recordings are divided"
    )
    add.add_argument("--quiet", action="store_true", help="errors only")
    args = parser.parse_args(argv)
    if args.split_seconds < LEAST_PIECE:
        parser.error(f"--split-seconds is {args.split_seconds:g}, expected {LEAST_PIECE:g} or more")
    return args


def options(args: argparse.Namespace) -> Options:
    """Those of the recognition. Raises OptionError."""
    found: dict[str, Any] = {name: getattr(args, name) for name in ("beams", "words", "script", "vad", "pad_to")}
    if args.hotwords is not None:
        found["hotwords"] = hotwords.read(args.hotwords)
    return Options(**found, languages=tuple(args.languages.split(",")) if args.languages else ())


class MakeWorker:
    """What is sent to an actor, which makes a worker of it: names, no weights."""

    def __init__(self, args: argparse.Namespace, run: str, chosen: Options, cores: int):
        self.model = os.path.abspath(args.model) if os.path.isdir(args.model) else args.model  # see `sources.read`
        self.adapter = args.adapter and args.adapter.absolute()
        self.device, self.dtype = args.device, args.dtype
        self.run, self.language, self.options, self.cores = run, args.lang, chosen, cores
        self.retries, self.timeout = args.retries, args.timeout

    def __call__(self) -> Worker:
        """Loads the model."""
        torch.set_num_threads(self.cores)
        model = load(self.model, device=self.device, dtype=self.dtype, adapter=self.adapter, progress=False)
        return Worker(model, self.run, self.language, self.options, self.retries, self.timeout)


class Archive:
    """A run: what is there already, what is left, and the rows that come."""

    def __init__(self, args: argparse.Namespace, messages: Messages):
        self.args, self.messages, self.report = args, messages, Report()
        self.waiting: list[Row] = []
        self.since = 0.0  # when the first of these came

    def run(self) -> int:
        """-> exit code: 1 if a recording failed, also in an earlier run, or a source."""
        args, begun = self.args, time.monotonic()
        cluster.check_extra()  # before anything is made
        settings, chosen = self.settings()
        identity = rows.digest(settings)
        items = sources.read(args.sources, self.unusable)
        found = shards.Shards(args.out, settings)
        try:
            todo, stale = shards.unfinished(
                found.known, {item.id: rows.source(item) for item in items}, args.retry_failed
            )
            found.drop(stale)
            wanted = set(todo)
            items = [item for item in items if item.id in wanted]
            self.report.planned, self.report.before = len(items), len(found.known)
            self.report.failed_before = sum(status != rows.DONE for _, status in found.known.values())
            failed = f", {self.report.failed_before} of them failed" if self.report.failed_before else ""
            self.messages.say(f"{len(items)} recordings; {len(found.known)} rows are there already{failed}")
            if items:
                self.recognize(items, found, identity, chosen)
        finally:
            try:
                self.write(found)
                self.report.seconds = time.monotonic() - begun
                self.save()
            finally:
                found.close()
        if not args.quiet:
            print(*map(writable, self.report.to_markdown().splitlines()), sep="\n", flush=True)
        return 1 if self.report.failed or self.report.failed_before or self.report.unusable else 0

    def settings(self) -> tuple[dict[str, Any], Options]:
        """What all rows of a folder depend on, and the options. Raises CheckpointError, OptionError."""
        args = self.args
        chosen = options(args)
        directory = hub.find(args.model)
        place = "cpu" if args.address != "local" else args.device
        recognizer = load(directory, device=place, dtype=args.dtype, adapter=args.adapter)
        checked = recognizer.check(args.lang, chosen)
        known = journal.fingerprint("", directory, recognizer, args.lang, checked)
        known.pop("recording")
        if args.address != "local":
            known["dtype"] = args.dtype  # what "auto" is there isn't known here
        known["split_seconds"] = args.split_seconds
        return known, chosen

    def unusable(self, error: GlmAsrError) -> None:
        """A source, or a line of it."""
        self.messages.complain(printable(str(error)))
        self.report.unusable.append(rows.writable(str(error)))

    def recognize(self, items: list[Item], found: shards.Shards, identity: str, chosen: Options) -> None:
        """All of them, row by row."""
        args = self.args
        pieces = work.pieces(items, args.split_seconds)
        begun = cluster.Cluster(args.address, args.workers, args.gpus_per_worker, args.cpus_per_worker)
        catch_ends()
        self.report.workers = begun.workers
        gpus_of_each = f", GPUs of each: {begun.gpus:g}" if begun.gpus else ""
        self.messages.say(f"workers: {begun.workers}, cores of each: {begun.cpus}{gpus_of_each}")
        parts: dict[str, list[tuple[int, Row]]] = {}
        by_key = {rounds.key(piece): piece for piece in pieces}
        make = MakeWorker(args, identity, chosen, begun.cpus)
        progress = Progress(sum(piece.seconds for piece in pieces), self.report, self.messages.say, not args.quiet)
        try:
            for row in begun.rows(pieces, make, args.batch_seconds, args.retries, identity):
                name, number = key = row.pop("_key")
                piece = by_key[key]
                some = parts.setdefault(name, [])
                some.append((number, row))
                if len(some) == piece.count:
                    pair = [row for _, row in sorted(parts.pop(name), key=lambda one: one[0])]
                    self.take(pair[0] if piece.count == 1 else rows.joined(piece.item, identity, pair), found)
                progress.add(piece.seconds)
        finally:
            progress.close()
            begun.close()

    def take(self, row: Row, found: shards.Shards) -> None:
        """A row that is complete."""
        self.report.add(row)
        if row["status"] != rows.DONE:
            named = row["error"].startswith((row["id"], row["path"]))
            self.messages.complain(printable(row["error"] if named else f"{row['id']}: {row['error']}"))
        self.since = self.since or time.monotonic()
        self.waiting.append(row)
        if len(self.waiting) >= SHARD_ROWS or time.monotonic() - self.since >= SHARD_SECONDS:
            self.write(found)

    def write(self, found: shards.Shards) -> None:
        """Those that wait, as a shard. Raises OutputError."""
        if self.waiting:
            found.add(self.waiting)
            self.waiting, self.since = [], 0.0

    def save(self) -> None:
        """The report. Raises OutputError."""
        write_whole(
            self.args.out / "report.json", json.dumps(self.report.to_dict(), indent=2, ensure_ascii=False) + "\n"
        )
        write_whole(self.args.out / "report.md", self.report.to_markdown())


def catch_ends() -> None:
    """What ends a process or closes its terminal does what Ctrl-C does. TRAP: Ray has a handler of its own, which
    prints where its C++ is."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # `nohup`
            signal.signal(number, _interrupt)


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt(number)


def main(argv: list[str] | None = None) -> int:
    """Runs the command. -> exit code: 0, 1 for a recording or a source that failed, 2 for a wrong option."""
    args = arguments(argv)
    try:
        return Archive(args, Messages(args.quiet)).run()
    except GlmAsrError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, OptionError) else 1
    except KeyboardInterrupt as error:
        print("interrupted; what is recognized is written, and the same command goes on", file=sys.stderr)
        return 128 + error.args[0] if error.args else INTERRUPTED
    except OSError as error:  # the report can't be printed
        if not isinstance(error, BrokenPipeError):  # `| head` has just seen enough
            print(f"error: {printable(str(error))}", file=sys.stderr)
        # TRAP: the interpreter flushes standard output once more when it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
