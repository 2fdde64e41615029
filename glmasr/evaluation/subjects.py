"""What is compared: models, which recognize the clips, and files with texts that others recognized.

A subject has for each clip a text, or says why it has none. The recordings are read, and their batches made, by the
parts of `glmasr-archive` that do that.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..archive import rows, work
from ..archive.worker import Worker
from ..config import is_number
from ..errors import GlmAsrError, OptionError
from ..pipeline import load
from ..transcription.options import Options
from .manifest import Clip, display

RETRIES, TIMEOUT = 2, 120.0  # of a recording at an address; seconds
MISSING = "there is no text of it"

Step = Callable[[float], object]  # told of the seconds of sound that are done


class HypothesisError(GlmAsrError):
    """A file of texts, or a line of it, can't be used."""


@dataclass(frozen=True)
class Hypothesis:
    """Of a clip: its text, or the error. `seconds` of sound, `took` seconds; None: nobody knows. `warnings` of whoever
    recognized it, such as that the file ends before the clip does."""

    text: str = ""
    error: str = ""
    seconds: float | None = None
    took: float | None = None
    warnings: tuple[str, ...] = ()


@dataclass
class Subject:
    """`source`: the model or the file; `hypotheses` by the clip's id; `how` it was computed; `error`: why it wasn't."""

    name: str
    source: str
    hypotheses: dict[str, Hypothesis] = field(default_factory=dict)
    how: dict[str, str] = field(default_factory=dict)
    error: str = ""

    def of(self, clip: Clip) -> Hypothesis:
        """That of a clip."""
        return self.hypotheses.get(clip.item.id, Hypothesis(error=self.error or MISSING))


def names(sources: Iterable[str]) -> dict[str, str]:
    """Model or file -> what its column is called: the last part of it where that tells it from the others. Raises
    OptionError for what is named twice.

    >>> names(["models/base/", "demo", "out/base.jsonl", "a/rows.jsonl", "b/rows.jsonl"])["models/base/"]
    'base'
    """
    some = list(sources)
    if twice := [source for source in some if some.count(source) > 1]:
        raise OptionError(f"{twice[0]} is named twice; expected other models, or other files")
    short = {source: Path(source).name or source for source in some}
    counts = list(short.values())
    return {source: name if counts.count(name) == 1 else source for source, name in short.items()}


def recognized(
    source: str, name: str, clips: list[Clip], args: Any, options: Options, step: Step, fail: Callable[[str], None]
) -> Subject:
    """What a model, or the first one with an adapter, makes of the clips. `args` has `model`, `adapter`, `lang`,
    `device`, `dtype` and `batch_seconds`; `fail` is told of each clip that can't be recognized. Raises OptionError for
    what the model can't do."""
    model, adapter = (args.model[0], source) if source in args.adapter else (source, None)
    try:
        recognizer = load(model, device=args.device, dtype=args.dtype, adapter=adapter, progress=not args.quiet)
        recognizer.check("auto", options)
    except OptionError:
        raise
    except GlmAsrError as error:
        fail(f"{name}: {error}")
        return Subject(name, source, error=str(error))
    subject = Subject(name, source, how=recognizer.how(options))
    worker = Worker(recognizer, "", "auto", options, RETRIES, TIMEOUT)
    items = [replace(clip.item, language=args.lang or clip.item.language or "auto") for clip in clips]
    for language in dict.fromkeys(item.language for item in items):
        try:
            recognizer.check(language, options)
        except OptionError as error:
            refused = [item for item in items if item.language == language]
            items = [item for item in items if item.language != language]
            subject.hypotheses |= {item.id: Hypothesis(error=str(error)) for item in refused}
            fail(f"{name}: {len(refused)} clips: {error}")
    for batch in work.batches(work.pieces(items, float("inf")), args.batch_seconds):
        for row in worker(batch):
            reason = row["error"] if row["status"] == rows.FAILED else ""
            if reason:
                clip_id = display(row["id"])
                fail(f"{name}: {reason if clip_id in reason else f'{clip_id}: {reason}'}")
            warnings = tuple(map(rows.writable, row["warnings"]))
            subject.hypotheses[row["id"]] = Hypothesis(
                rows.writable(row["text"]), reason, row["seconds"] or None, row["took"], warnings
            )
        step(sum(piece.seconds for piece in batch))
    return subject


def read(source: str, name: str, clips: list[Clip], say: Callable[[str], None], fail: Callable[[str], None]) -> Subject:
    """What a file of lines {"id": ..., "text": ...} has, or a folder of `glmasr-archive`; `fail` is told of lines that
    can't be used. Raises HypothesisError where the file can't be read."""
    known = {clip.id: clip.item.id for clip in clips}
    subject, seen = Subject(name, source), set[str]()
    for path in _files(source):
        for number, line in enumerate(_lines(path), 1):
            if not line.strip():
                continue
            try:
                clip_id, hypothesis = _hypothesis(line)
                if clip_id in seen:
                    raise ValueError(
                        f"has the id {clip_id!r:.200}, as a line before it has; expected one text of each clip"
                    )
            except ValueError as error:
                fail(f"{path}, line {number}: {error}")
                continue
            seen.add(clip_id)
            if clip_id in known:
                subject.hypotheses[known[clip_id]] = hypothesis
    if others := len(seen - set(known)):
        say(f"{source}: {others} of its ids are in no line of the manifest, and count nowhere")
    if missing := sum(clip.item.id not in subject.hypotheses for clip in clips):
        fail(f"{source}: {missing} clips of the manifest have no text in it; expected their ids")
    return subject


def _files(source: str) -> list[Path]:
    path = Path(source)
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("rows-*.jsonl"))
    if not found:
        raise HypothesisError(f"{source}: has no rows-*.jsonl; expected a folder that glmasr-archive wrote, or a file")
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise HypothesisError(f'{path}: can\'t be read ({reason}); expected lines {{"id": ..., "text": ...}}') from None


def _hypothesis(line: str) -> tuple[str, Hypothesis]:
    """Raises ValueError."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'is no JSON ({error}); expected {{"id": ..., "text": ...}}') from None
    clip_id, text = (fields.get("id"), fields.get("text")) if isinstance(fields, dict) else (None, None)
    if not isinstance(clip_id, str | int):
        raise ValueError(f'is {line!r:.60}; expected {{"id": ..., "text": ...}}')
    if fields.get("status") == rows.FAILED:
        return display(str(clip_id)), Hypothesis(error=rows.writable(str(fields.get("error") or MISSING)))
    if not isinstance(text, str):
        raise ValueError(f"has the text {text!r:.60}; expected what was recognized")
    seconds, took = (_positive(fields.get(key)) for key in ("seconds", "took"))
    return display(str(clip_id)), Hypothesis(rows.writable(text), "", seconds, took)


def _positive(value: object) -> float | None:
    return float(value) if is_number(value) and value > 0 else None
