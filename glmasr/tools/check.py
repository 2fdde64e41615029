"""`glmasr-check DIR`: what a checkpoint directory holds, and whether this package can run it.

Each line of the report is found out for itself, so a directory with one damaged file still says what the others are.
Only the headers of the weights are read until the last line, which loads the model as `transcribe.py` does.
"""

import math
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from .. import pipeline, weights
from ..checkpoint import hub, hub_cache
from ..cli import Parser
from ..config import EncoderDecoderConfig, GlmAsrConfig
from ..errors import CheckpointError, GlmAsrError, printable
from ..tokenizer import SentencePieceTokenizer, Tokenizer, read_tokenizer

# What the published tokenizer makes of some texts: one id each. A tokenizer with other ids feeds the model other words.
PROBES = {
    "\n": 10,
    "?": 63,
    " you": 455,
    " this": 643,
    " into": 1636,
    " trans": 1700,
    " text": 2815,
    "cribe": 8091,
    "Please": 14215,
    " audio": 14812,
    " speech": 16926,
    "<|endoftext|>": 59246,
    "<|system|>": 59252,
    "<|user|>": 59253,
    "<|assistant|>": 59254,
    "<|observation|>": 59255,
    "<|pad|>": 59260,
    "<|begin_of_audio|>": 59261,
    "<|end_of_audio|>": 59262,
}
SHOWN = 5  # names of a list


@dataclass
class Report:
    """The lines of a report as they are found, and what was wrong in any of them."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, title: str, text: str) -> None:
        """Adds a line to the report."""
        self.lines.append(f"{title:<12}{printable(str(CheckpointError(text)))}")  # as in a message, and on one line

    def problem(self, title: str, text: str) -> None:
        """Adds a line, and fails the check."""
        self.problems.append(text)
        self.add(title, text)

    def listing(self, title: str, names: list[str], problem: bool = True) -> None:
        """Adds the number of names and the first SHOWN of them. Any name is a problem unless `problem` is False."""
        (self.problem if names and problem else self.add)(title, f"{len(names)}: {_some(names)}" if names else "none")


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def check(directory: Path) -> Report:
    """The report of a directory. `problems` is empty if the package can run what is in there."""
    report = Report()
    report.add("directory", str(directory))
    contents = _weights(directory, report)
    _tokenizer(directory, contents.config if contents else None, report)
    _run(directory, contents, report)
    return report


def _weights(directory: Path, report: Report) -> weights.Contents | None:
    try:
        contents = weights.examine(directory)
    except CheckpointError as error:
        report.problem("weights", str(error))
        return None
    config = contents.config
    family = "GLM-ASR" if isinstance(config, GlmAsrConfig) else "encoder-decoder (the article's, or Whisper)"
    entries = {name: entry for name in contents.where if (entry := contents.entry(name)) is not None}
    used = [name for name in contents.names.values() if name in entries]
    size = sum(path.stat().st_size for path in contents.headers)
    types = Counter(entry.get("stored", entry["dtype"]) for entry in entries.values())
    report.add("format", f"{contents.format}: {_some([path.name for path in contents.headers])}, {size:,} bytes")
    report.add(
        "family",
        f"{family}: {config.encoder.layers} encoder layers {config.encoder.width} wide, "
        f"{config.decoder.layers} decoder layers {config.decoder.width} wide, "
        f"vocabulary {config.decoder.vocabulary:,}, windows of {config.window_seconds} s",
    )
    there = sum(int(math.prod(entries[name]["shape"])) for name in used)
    report.add("parameters", f"{there:,} of {sum(parameter.numel() for parameter in contents.model.parameters()):,}")
    report.add("dtype", ", ".join(f"{count} tensors {name}" for name, count in types.most_common()))
    if types["F16"] and isinstance(config, GlmAsrConfig):
        report.add("", "float16 overflows in this family; if texts are garbage, get a bfloat16 checkpoint")
    report.listing("missing", contents.missing)
    report.listing("left over", contents.left_over)
    report.listing("misshapen", [f"{name} {wrong}" for name, wrong in contents.misshapen.items()])
    report.listing("ignored", sorted(set(entries) & contents.ignored), problem=False)
    return contents


def _tokenizer(directory: Path, config: GlmAsrConfig | EncoderDecoderConfig | None, report: Report) -> None:
    try:
        tokenizer = read_tokenizer(directory)
    except CheckpointError as error:
        report.problem("tokenizer", str(error))
        return
    kind = {Tokenizer: "byte-level BPE", SentencePieceTokenizer: "SentencePiece"}.get(
        type(tokenizer), "a list of tokens, for decoding only"
    )
    report.add("tokenizer", f"{kind}, {tokenizer.size:,} ids, {len(tokenizer.special)} of them special")
    if not isinstance(config, GlmAsrConfig) or config.decoder.vocabulary != GlmAsrConfig().decoder.vocabulary:
        report.add("probes", "left out: the vocabulary is not that of the published GLM-ASR")
        return
    wrong = []
    for text, expected in PROBES.items():
        try:
            found: list[int] | str = tokenizer.encode(text)
        except CheckpointError as error:
            found = str(error)
        if found != [expected]:
            wrong.append(f"{text!r} is {found!r:.60}, expected {expected}")
    if wrong:
        report.listing("probes", wrong)
    else:
        report.add("probes", f"{len(PROBES)} of {len(PROBES)} texts have the ids of the published tokenizer")


def _run(directory: Path, contents: weights.Contents | None, report: Report) -> None:
    """TRAP: in the type that the file has, and by the plain modules, its pages are mapped; anything else would be a
    copy, of gigabytes."""
    types = {entry["dtype"] for header in contents.headers.values() for entry in header.values()} if contents else set()
    dtype = "int8" if "I8" in types else "bfloat16" if types <= {"BF16"} else "float32"
    try:
        if not report.problems:
            pipeline.load(directory, device="cpu", dtype=dtype, plain=True)
    except GlmAsrError as error:
        report.problem("load", str(error))
    report.add("verdict", "this package can't run it" if report.problems else "this package can run it")


def main(argv: list[str] | None = None) -> int:
    """`glmasr-check`. Exit code: 0 the package can run it, 1 it can't, 2 wrong usage."""
    parser = Parser(
        prog="glmasr-check", description="Says what a checkpoint directory holds, and whether this package can run it."
    )
    parser.add_argument(
        "model",
        metavar="DIR",
        help="a directory, demo, demo-article, or a model in the hub's cache (nothing is fetched)",
    )
    parser.add_argument("--revision", metavar="REV", help="of a model in the hub's cache")
    parser.add_argument(
        "--hub", choices=tuple(hub.HUBS), help="whose cache (default: huggingface, or what GLMASR_HUB says)"
    )
    args = parser.parse_args(argv)
    try:
        found = hub.local(args.model, args.revision, args.hub)
        report = check(found if isinstance(found, Path) else hub_cache.check_whole(found))
    except GlmAsrError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    encoding = sys.stdout.encoding or "utf-8"
    print("\n".join(report.lines).encode(encoding, "backslashreplace").decode(encoding))
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
