"""The command `glmasr-eval`: how many errors models make on recordings whose text is known.

glmasr-eval clips.jsonl --model base small --out report
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..archive import work
from ..cli import INTERRUPTED, Parser, device, positive, seconds
from ..errors import GlmAsrError, OptionError, printable
from ..tools.console import Messages, writable
from ..transcription import hotwords
from ..transcription.language import NAMES, canonical
from ..transcription.options import Options
from ..writers.output import prepare, write_whole
from . import manifest, page, results, scoring, subjects
from .manifest import Clip
from .subjects import Subject
from .tables import to_markdown


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The arguments of the command line, checked. Wrong usage ends the process, with exit code 2."""
    parser = Parser(
        "glmasr-eval", "Counts the errors of models on recordings whose text is known. docs/EVAL.md says more."
    )
    parser.add_argument(
        "manifest", metavar="MANIFEST", help="table or lines of JSON: path, text, language, speaker, ..."
    )
    parser.add_argument(
        "--model",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME|DIR",
        help="as of transcribe.py; the first one is the baseline",
    )
    parser.add_argument(
        "--adapter",
        nargs="+",
        action="extend",
        default=[],
        metavar="DIR",
        help="LoRAs in PEFT's format: further columns, of the baseline with each",
    )
    parser.add_argument(
        "--hypotheses",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE|DIR",
        help="texts of others: lines of JSON with id and text, or a folder of glmasr-archive",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for report.json, report.md and report.html")
    add = parser.add_argument_group("recognition")
    add.add_argument(
        "--lang", "--language", metavar="LANGUAGE", help="of all clips, or auto (default: what the manifest says)"
    )
    add.add_argument("--device", type=device, default="auto", help="auto, cpu or cuda")
    add.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32", "int8"])
    add.add_argument("--beams", type=positive, metavar="N", help="1: greedy (default: 5, of GLM-ASR 1)")
    add.add_argument("--hotwords", metavar="FILE|NAME,...", help="names to be spelled right")
    add.add_argument("--vad", default="auto", choices=["auto", "off"])
    add.add_argument("--pad-to", default="window", choices=["window", "speech"])
    add.add_argument(
        "--batch-seconds", type=seconds, default=240.0, metavar="SECONDS", help="of sound in a batch (default: 240)"
    )
    parser.add_argument("--quiet", action="store_true", help="beside the report errors only")
    args = parser.parse_args(argv)
    if args.lang is not None and canonical(args.lang) not in {"auto", *NAMES}:
        parser.error(f"--lang is {args.lang!r}, expected auto, or a language such as zh or English")
    if args.adapter and not args.model:
        parser.error("--adapter goes with --model: the first one is what the adapter is added to")
    if not (args.model or args.hypotheses):
        parser.error("there is nothing to evaluate; expected --model, --hypotheses, or both")
    return args


def options(args: argparse.Namespace) -> Options:
    """Those of the recognition. Raises OptionError."""
    found: dict[str, Any] = {name: getattr(args, name) for name in ("beams", "vad", "pad_to")}
    if args.hotwords is not None:
        found["hotwords"] = hotwords.read(args.hotwords)
    return Options(**found)


class Evaluation:
    """A run of the command."""

    def __init__(self, args: argparse.Namespace, messages: Messages):
        self.args, self.messages = args, messages
        self.unusable: list[str] = []
        self.failed = False

    def run(self) -> int:
        """All of it. -> exit code. Raises GlmAsrError for what concerns all clips."""
        args = self.args
        scoring.check_extra()  # before minutes are spent
        names, chosen = subjects.names([*args.model, *args.adapter, *args.hypotheses]), options(args)
        if args.out:
            prepare(args.out)
        clips = manifest.read(args.manifest, self.unfit, args.lang or "auto")
        self.messages.say(f"{len(clips)} clips, {len(self.unusable)} lines that can't be used")
        report = results.report(clips, self.subjects(clips, names, chosen), self.unusable, self.about(chosen))
        markdown = to_markdown(report)
        if args.out:
            addresses = {clip.id: page.address(clip.item, args.out) for clip in clips}
            write_whole(args.out / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
            write_whole(args.out / "report.md", markdown)
            write_whole(args.out / "report.html", page.to_html(report, addresses))
        if sys.stdout is not None:
            print("\n".join(map(writable, markdown.splitlines())), flush=True)
        failed = self.unusable or any(model["failed"] or model["error"] for model in report["models"])
        return 1 if self.failed or failed else 0

    def subjects(self, clips: list[Clip], names: dict[str, str], chosen: Options) -> list[Subject]:
        """Models first, one after the other: in memory there is one at a time."""
        found = []
        total = sum(piece.seconds for piece in work.pieces([clip.item for clip in clips], float("inf")))
        quiet = self.args.quiet or None
        for source in [*self.args.model, *self.args.adapter]:
            with tqdm(total=round(total), unit="s", desc=printable(names[source]), disable=quiet) as bar:

                def step(seconds: float, update: Callable[[float], object] = bar.update) -> None:
                    update(round(seconds))

                found.append(subjects.recognized(source, names[source], clips, self.args, chosen, step, self.fail))
        for source in self.args.hypotheses:
            found.append(subjects.read(source, names[source], clips, self.messages.say, self.fail))
        return found

    def about(self, chosen: Options) -> dict[str, Any]:
        """What the report says of the run."""
        args = self.args
        settings = {
            "lang": args.lang or "manifest",
            "beams": args.beams or "default",
            "vad": args.vad,
            "pad_to": args.pad_to,
            "hotwords": len(chosen.hotwords),
        }
        return {"manifest": manifest.display(args.manifest), "settings": settings}

    def unfit(self, error: GlmAsrError) -> None:
        """A line of the manifest."""
        self.unusable.append(str(error))
        self.fail(str(error))

    def fail(self, text: str) -> None:
        """A line, a clip or a model."""
        self.failed = True
        self.messages.complain(printable(text))


def main(argv: list[str] | None = None) -> int:
    """Runs the command. -> exit code: 0, 1 for a line, a clip or a model that failed, 2 for a wrong option."""
    args = arguments(argv)
    if sys.stdout is None and not args.out:
        print("error: standard output is closed, and there is no --out", file=sys.stderr)
        return 1
    try:
        return Evaluation(args, Messages(args.quiet)).run()
    except GlmAsrError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, OptionError) else 1
    except OSError as error:  # the report can't be printed; its files are written
        if not isinstance(error, BrokenPipeError):  # `| head` has just seen enough
            print(f"error: {printable(str(error))}", file=sys.stderr)
        # TRAP: the interpreter flushes standard output once more when it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing is written", file=sys.stderr)
        return INTERRUPTED
