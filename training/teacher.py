"""What a student learns of its teacher, made once and kept in the folder of the run:

    texts.jsonl         what the teacher recognizes in each clip, with the flags of its own checks
    logits-....npy      at each position of these texts the most likely tokens, their log-probabilities, and that of all
                        others together; mapped from the file, of any size

A clip is left out, named and counted, if a check flags its text, or if the text disagrees with the manifest's, where
that has one.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import start
import torch
import torch.nn.functional as F
from anchors import with_phrases
from batches import unchanged
from evaluate import recognized
from families import IGNORE, Clip, family_of
from long_clips import fitted
from manifest import Row, TrainingError, raise_faults, read_manifests, strangers
from states import States
from torch import Tensor
from tqdm import tqdm

from glmasr import weights
from glmasr.config import GlmAsrConfig
from glmasr.evaluation import scoring
from glmasr.pipeline import Options, Recognizer, Transcript
from glmasr.tokenizer import read_tokenizer
from glmasr.transcription.language import name_language
from glmasr.transcription.results import FLAGS

TEXTS = "texts.jsonl"
AT_ONCE = 16  # clips, after which their texts are written
NAMED = 10  # clips that are named one by one
NONE = -60_000.0  # the log-probability of what can't come: float16 has nothing below -65504
LEAST = 2**-23  # of a probability that is what others leave of 1, in float32
HARMLESS = ("interpolated",)  # a flag that is about times
MIB = 2**20


@dataclass(frozen=True)
class Answer:
    """A clip with the teacher's text, the language that it was taken for, and what the checks flagged."""

    row: Row
    text: str
    language: str
    flags: tuple[str, ...]


class Teacher:
    """A model that others learn of. Its weights are read when they are needed: not, where all is kept already. With a
    `folder` the encoder's states of the clips are kept there: its texts, its logits and the steps of a student with the
    same encoder take them once computed."""

    def __init__(self, directory: Path, device: torch.device, folder: Path | None = None):
        self.directory, self.device, self.folder = directory, device, folder
        self.config = weights.examine(directory).config
        self.tokenizer = read_tokenizer(directory)
        with torch.device("meta"):
            self.family = family_of(weights.build(self.config), self.tokenizer)  # counts tokens, computes nothing

    @cached_property
    def model(self) -> start.AnyModel:
        """In float32."""
        return start.load(self.directory, self.device).eval()

    @cached_property
    def recognizer(self) -> Recognizer:
        """What makes the texts."""
        return Recognizer(self.model, self.tokenizer)

    @cached_property
    def states(self) -> States | None:
        """Where kept ones are."""
        if self.folder is None:
            return None
        found = States(self.folder, family_of(self.model, self.tokenizer))
        found.serve(self.recognizer)
        return found

    def hear(self, rows: list[Row], say: Callable[[str], None]) -> None:
        """Computes the states of some rows that aren't kept yet. Raises TrainingError."""
        if rows and self.states:
            self.states.fill(rows, say)

    @cached_property
    def name(self) -> str:
        """Changes with its files."""
        files = sorted(path for path in self.directory.iterdir() if path.suffix in (".safetensors", ".bin", ".json"))
        return _digest([(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files])

    # -- texts ---------------------------------------------------------------------------------------------------------

    def rows(self, args, say: Callable[[str], None]) -> list[Row]:
        """The clips of all manifests, each of a length that the model takes; they may be without a text. Raises
        TrainingError with all faults."""
        faults: list[str] = []
        rows = read_manifests(args.train, args.language, faults.append, textless=True)
        for row in rows:
            try:
                if row.language:
                    self.family.check(replace(row, text="", phrases=(), seconds=min(row.seconds, self.family.longest)))
            except ValueError as error:
                faults.append(f"{row.where}: {error}")
        raise_faults(list(dict.fromkeys(faults)))
        odd = strangers(rows, {"without": args.without, "twice": args.twice})
        rows = [row for row in rows if row.person not in args.without and row.seconds <= args.longest]
        rows, said = fitted(
            rows, self.family.window, self.family.longest, lambda row: with_phrases(row, self.recognizer)
        )
        for line in [*odd, *said]:
            say(line)
        return rows

    def answers(self, rows: list[Row], path: Path, beams: int, say: Callable[[str], None]) -> list[Answer]:
        """The teacher's text of each clip; those that `path` has are taken from there. Raises TrainingError."""
        head = {"teacher": self.name, "beams": beams}
        known = _kept(path, head)
        language = "given" if getattr(self.config, "languages", None) else "auto"
        options = Options(beams=beams, temperatures=(0.0,))  # what fails the checks is left out, not sampled
        missing = sorted((row for row in rows if _key(row) not in known), key=lambda row: row.seconds)
        self.hear(missing, say)
        try:
            part = path.with_suffix(".part")
            part.write_text("".join(map(_line, [head, *known.values()])), encoding="utf-8")
            part.replace(path)
            with (
                open(path, "a", encoding="utf-8") as file,
                tqdm(total=len(missing), desc="texts", mininterval=10) as bar,
            ):
                for first in range(0, len(missing), AT_ONCE):
                    some = missing[first : first + AT_ONCE]
                    for row, found in zip(some, recognized(self.recognizer, some, options, language), strict=True):
                        known[_key(row)] = {
                            "audio": os.path.abspath(row.audio),
                            "offset": row.offset,
                            "duration": row.seconds,
                            "asked": row.language,
                            "language": row.language or (found.language if language == "given" else ""),
                            "text": " ".join(found.text.split()),
                            "flags": flags(found),
                        }
                        file.write(_line(known[_key(row)]))
                    file.flush()
                    bar.update(len(some))
        except OSError as error:
            raise TrainingError(f"{path}: can't be written ({error}); expected a folder with enough room") from None
        found = [(row, known[_key(row)]) for row in rows]
        return [Answer(row, one["text"], one["language"], tuple(one["flags"])) for row, one in found]

    # -- logits --------------------------------------------------------------------------------------------------------

    def logits(
        self, rows: list[Row], folder: Path, top: int, temperature: float, say: Callable[[str], None]
    ) -> "Logits":
        """Those at the positions of the rows' texts; taken from the folder, if it has them of the same rows. Raises
        TrainingError."""
        counts = [self.positions(row) for row in rows]
        top = min(top, self.config.decoder.vocabulary - 1)
        kept = [(os.path.abspath(row.audio), row.offset, row.seconds, row.language, row.text) for row in rows]
        path = folder / f"logits-{_digest([self.name, top, temperature, kept])}.npy"
        kind = np.dtype([("ids", "<i4", (top,)), ("logprobs", "<f2", (top + 1,))])
        if not path.is_file():
            size, free = sum(counts) * kind.itemsize, shutil.disk_usage(folder).free
            say(
                f"the teacher's logits: {sum(counts)} positions of {kind.itemsize} bytes, {size / MIB:.1f} MiB in "
                f"{path}; {free / MIB:.0f} are free"
            )
            if size > free:
                raise TrainingError(f"{folder}: too little room; expected {size / MIB:.0f} MiB, or a smaller --top")
            for old in folder.glob("logits-*"):
                old.unlink()
            self.hear(rows, say)
            self._write(
                path,
                rows,
                np.lib.format.open_memmap(path.with_suffix(".part"), "w+", kind, (sum(counts),)),
                temperature,
            )
        return Logits(path, rows, counts, temperature)

    def positions(self, row: Row) -> int:
        """Tokens of a row that are learned."""
        if isinstance(self.family.config, GlmAsrConfig):
            return len(self.tokenizer.encode(row.text)) + 1  # and its stop
        return int((self.family.answer(Clip(torch.zeros(1), row.text, row.language), False)[2] != IGNORE).sum())

    @torch.inference_mode()
    def _write(self, path: Path, rows: list[Row], table: np.memmap, temperature: float) -> None:
        family, done = family_of(self.model, self.tokenizer), 0
        family.states = self.states
        with tqdm(total=len(rows), desc="logits", mininterval=10) as bar:
            for some, batch in unchanged(rows, family, whole=True):
                batch = batch.to(self.device)
                learned = batch.targets != IGNORE
                logits = family.model.decoder.head(family.forward(batch)[0][learned]).float()
                ids = logits.topk(table.dtype["ids"].shape[0]).indices
                part = table[done : done + len(ids)]
                part["ids"] = ids.cpu().numpy()
                part["logprobs"] = summary(logits, ids, temperature).clamp(min=NONE).cpu().numpy()
                done += len(ids)
                bar.update(len(some))
        if done != len(table):
            raise TrainingError(f"{path}: {done} positions were written, expected {len(table)}")
        table.flush()
        path.with_suffix(".part").replace(path)


class Logits:
    """What a teacher finds likely at each position of each row: (positions, k) ids, and log-probabilities (positions,
    k + 1) of these and of all others together, at a temperature."""

    def __init__(self, path: Path, rows: list[Row], counts: list[int], temperature: float):
        self.temperature, self._path, self._places, first = temperature, path, {}, 0
        for row, count in zip(rows, counts, strict=True):
            self._places[row.where] = slice(first, first + count)
            first += count

    @cached_property
    def _table(self) -> np.ndarray:
        """Mapped where it is first used: what is sent to other processes is without it."""
        return np.load(self._path, mmap_mode="r")

    def at(self, where: Iterable[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """ids and log-probabilities of some rows, one after the other."""
        found = np.concatenate([self._table[self._places[one]] for one in where])
        ids, logprobs = (torch.from_numpy(found[name].copy()) for name in ("ids", "logprobs"))
        return ids.long().to(device), logprobs.float().to(device)

    def divergence(self, logits: Tensor, where: Iterable[str]) -> Tensor:
        """The sum over positions of KL(teacher || student), for the student's logits (N, V) at the positions of some rows;
        times the square of the temperature, so that its gradient keeps its size (Hinton et al., 2015). Tokens that aren't
        among the teacher's k are one event: so it is never above the KL of all tokens, and 0 for the teacher itself."""
        ids, theirs = self.at(where, logits.device)
        ours = summary(logits, ids, self.temperature)
        # Rounded to float16 they don't sum to 1 any more.
        found = F.kl_div(ours, theirs.log_softmax(-1), log_target=True, reduction="sum")
        return found * self.temperature**2


def summary(logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """logits (N, V), ids (N, k) -> log-probabilities (N, k + 1) of these tokens, and of all others together; of the latter
    float32 knows no less than -15.9, one in eight millions.

    TRAP: each further pass over all the logits takes as long as a layer of a small decoder."""
    if temperature != 1.0:
        logits = logits / temperature
    some = logits.gather(1, ids) - logits.logsumexp(-1, keepdim=True)
    together = some.logsumexp(-1, keepdim=True).clamp(max=-LEAST)
    return torch.cat((some, torch.log(-torch.expm1(together))), 1)


# -- which texts count -------------------------------------------------------------------------------------------------


def flags(transcript: Transcript) -> list[str]:
    """What the checks flagged in it."""
    found = {flag for segment in transcript.segments for flag in segment.flags} - {*HARMLESS}
    found |= {"uncovered"} if transcript.uncovered else set()
    found |= {"doubtful"} if transcript.failed and not found else set()
    return sorted(found)


def sieved(answers: list[Answer], check: Callable[[Row], Row], agreement: float) -> tuple[list[Row], list[str]]:
    """The rows with their teacher's text, and what is to be said about those that are left out. `check` raises ValueError
    for what can't be learned; `agreement`: errors a word (Chinese: a character) by which a text may differ from the
    manifest's."""
    if any(answer.row.labeled for answer in answers):
        scoring.check_extra()
    rows: list[Row] = []
    left_out: dict[str, list[str]] = {}
    for answer in answers:
        row = answer.row
        place = row.where + f" from {row.offset:g} s" * bool(row.offset)
        # No times, for the teacher's text is without.
        said = replace(row, text=answer.text, language=answer.language, phrases=(), previous="", where=place)
        cause, more = _objection(answer, said, check, agreement)
        if cause:
            left_out.setdefault(cause, []).append(f"{place}{more}")
        else:
            rows.append(said)
    lines = []
    for cause, places in left_out.items():
        more = f", and {len(places) - NAMED} more" if len(places) > NAMED else ""
        lines.append(f"LEFT OUT: {len(places)} of {len(answers)} clips, {cause}: {', '.join(places[:NAMED])}{more}")
    return rows, lines


def _objection(answer: Answer, row: Row, check: Callable[[Row], Row], agreement: float) -> tuple[str, str]:
    """(why a text doesn't count, details of the clip); ("", "") if it does."""
    if answer.flags:
        return "; ".join(FLAGS[flag] for flag in answer.flags), ""
    if not answer.text and not answer.row.labeled:
        return "the teacher found no text, and the manifest has none", ""
    try:
        check(row)
    except ValueError as error:
        return "it can't be learned", f" ({error})"
    if answer.row.labeled and answer.text != answer.row.text:
        cause = f"the teacher's text disagrees with the manifest's by more than {agreement:.0%}"
        try:
            language = row.language or name_language(answer.row.text) or "en"
            rate = scoring.Errors.of(answer.text, answer.row.text, language).rate
        except scoring.ScoringError as error:
            return "the texts can't be compared", f" ({error})"
        if rate is None or rate > agreement:
            return cause, f" ({'it has none' if rate is None else f'{rate:.0%}'})"
    return "", ""


# -- files -------------------------------------------------------------------------------------------------------------


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _key(row: Row) -> tuple:
    return os.path.abspath(row.audio), row.offset, row.seconds, row.language


def _line(entry: dict) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"


def _kept(path: Path, head: dict) -> dict[tuple, dict]:
    """The texts that a file has. Raises TrainingError for those of another teacher, or of other beams."""
    if not path.exists():
        return {}
    found = []
    try:
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line:
                found.append(json.loads(line))
    except ValueError:
        pass  # the last line, of a process that was killed while it wrote
    if not found or found[0] != head:
        raise TrainingError(
            f"{path}: has the texts of another teacher, or of other --beams; expected another --out, or no such file"
        )
    return {(one["audio"], one["offset"], one["duration"], one["asked"]): one for one in found[1:]}
