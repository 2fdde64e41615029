"""What was recognized of a recording so far, kept beside its files, so that a run that was stopped can go on.

    talk.incomplete.jsonl   {"run": {"recording": "9f3c...", "model": "51aa...", "beams": 5, ...}, "formats": ["srt"]}
                            {"start": 0.0, "end": 27.4, "segments": [...], "language_state": {"requested": "en"}, ...}
                            ...

The first line says what the text depends on; each other one is a `Part`. A line is on the disk before the next window
is recognized. What comes after the last part that has its `language_state`, such as a line that a crash has torn, is
dropped.

Unusual: the recording is known by its bytes, not by its name and time, so it may be moved or copied before the run goes
on.
"""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..checkpoint import hub_cache
from ..checkpoint.adapter import CONFIG, WEIGHTS
from ..errors import OutputError
from ..pipeline import Options, Part, Recognizer, Segment, Word
from ..transcription import vad
from ..transcription.families import LanguageState

try:
    import fcntl
except ImportError:  # Windows: there nothing keeps a second process from the same files
    fcntl = None  # type: ignore[assignment]  # a module or None, which mypy has no way to say

FORMAT = 2  # of the file
SAMPLE = 2**16  # bytes at both ends of the files of a model that tell it from others
NO_MATTER = {"batch_size", "max_duration"}  # options that the text doesn't depend on


Fields = dict[str, Any]  # a line of the file


def fingerprint(recording: str, model: Path, recognizer: Recognizer, language: str, options: Options) -> Fields:
    """What the parts of a recording depend on, as JSON gives it back; `model` is the directory of the checkpoint,
    `options` as `check` returns them. Raises OSError."""
    how = recognizer.how(options)
    chosen = {name: value for name, value in asdict(options).items() if name not in NO_MATTER}
    chosen["hotwords"] = _list_digest(options.hotwords)
    chosen["vad"] = options.vad == "auto" and vad.available()  # it says where windows end
    found = {
        "journal": FORMAT,
        "recording": _digest(recording),
        "model": _identity(model),
        "language": language,
        "dtype": "int8" if how["linears"] == "int8" else how["dtype"],
        **chosen,
    }
    if (adapter := recognizer.runtime.adapter) is not None:  # small enough to be read
        found["adapter"] = [_digest(str(adapter / name)) for name in (CONFIG, WEIGHTS)]
    again: Fields = json.loads(json.dumps(found))
    return again


def _list_digest(hotwords: tuple[Any, ...]) -> str:
    """ "" without any: a list can be long."""
    content = json.dumps(hotwords).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest() if hotwords else ""


def _digest(recording: str) -> str | None:
    """None of what can't be read a second time, such as standard input."""
    if not os.path.isfile(recording):
        return None
    digest = hashlib.blake2b(digest_size=16)
    with open(recording, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _identity(model: Path) -> str:
    """Of both ends and the size of each file: to read all of the weights would take as long as to load them."""
    digest = hashlib.blake2b(digest_size=16)
    weights = (".safetensors", ".bin")
    files = (path for path in model.iterdir() if path.name in hub_cache.SMALL or path.suffix in weights)
    for path in sorted(files):
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(f"{path.name} {size} ".encode())
            for place in (0, max(0, size - SAMPLE)):
                file.seek(place)
                digest.update(file.read(SAMPLE))
    return digest.hexdigest()


class Journal:
    """The journal at a path, which is made if it isn't there, and held: no other process can have it meanwhile.

    run         what the parts depend on, {} of a new one
    formats     of the files that the run was to write
    parts       those that were there, up to the last one after which a run can go on
    count       of the parts in the file
    resumes     seconds at which a run goes on after what is in the file; 0.0: it begins anew
    begun       whether parts may be added: after those that are there if the caller sets it, or after `begin`

    Raises OutputError where it can't be opened, read or written to, or another process has it.
    """

    def __init__(self, path: Path):
        self.path = path
        self.run: Fields = {}
        self.formats: list[str] = []
        self.parts: list[Part] = []
        self.resumes = 0.0
        self.begun = False
        self._ends: list[int] = []  # bytes up to the end of each line that is whole
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+b")
        except OSError as error:
            raise self._refused(error) from error
        try:
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError:
            self.close()
            expected = "wait for its end, or choose another --output-dir"
            raise OutputError(f"{path}: another process is at work on the same files; {expected}") from None
        except OSError as error:
            self.close()
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> OutputError:
        reason = f"cannot be written ({error.strerror or error})"
        return OutputError(f"{self.path}: {reason}; make room, or check the permissions of its folder")

    @property
    def count(self) -> int:
        """Parts in the file: its complete lines but the first, which describes the run."""
        return max(0, len(self._ends) - 1)

    def _read(self) -> None:
        parts, ends = [], [0]
        try:
            for line in self._file.read().split(b"\n")[:-1]:
                fields = json.loads(line)
                ends.append(ends[-1] + len(line) + 1)
                if not self.run:
                    self.run, self.formats, self._ends = dict(fields["run"]), list(fields["formats"]), ends[1:]
                    continue
                parts.append(_part(fields))
                if parts[-1].language_state is not None:
                    self.parts, self.resumes, self._ends = list(parts), parts[-1].end, ends[1:]
        except (ValueError, TypeError, KeyError, AttributeError):  # torn, or of another version, which `run` says
            pass

    def begin(self, run: Fields, formats: list[str]) -> None:
        """Drops what is there. Raises OutputError."""
        self._ends, self.resumes = [], 0.0
        self._write({"run": run, "formats": formats}, True)
        self.begun = True

    def add(self, part: Part) -> None:
        """After what is there. Raises OutputError; then, or after Ctrl-C, what was added before is still there, and the
        part can be added again."""
        self._write(asdict(part), part.language_state is not None)
        if part.language_state is not None:
            self.resumes = part.end

    def _write(self, fields: Fields, lasting: bool) -> None:
        try:
            self._file.seek(self._ends[-1] if self._ends else 0)
            self._file.truncate()  # of what was torn
            self._file.write(json.dumps(fields).encode() + b"\n")
            self._file.flush()
            if lasting:  # the others don't count by themselves
                os.fsync(self._file.fileno())
            self._ends.append(self._file.tell())
        except OSError as error:
            raise self._refused(error) from error

    def close(self) -> None:
        """The file stays, and others can have it."""
        try:
            self._file.close()
        except OSError:  # a full disk: what is in the buffer was refused before
            pass

    def remove(self) -> None:
        """Closes and deletes the file, once all outputs of the run are written."""
        self.close()
        self.path.unlink(missing_ok=True)


def _segment(fields: Fields) -> Segment:
    words = tuple(Word(**word) for word in fields.get("words", ()))
    return Segment(**{**fields, "flags": tuple(fields["flags"]), "words": words})


def _part(fields: Fields) -> Part:
    return Part(
        **{
            **fields,
            "segments": list(map(_segment, fields["segments"])),
            "uncovered": tuple(map(tuple, fields["uncovered"])),
            "language_state": LanguageState(**fields["language_state"]) if fields.get("language_state") else None,
        }
    )
