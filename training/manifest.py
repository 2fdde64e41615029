"""What to train on: manifests -> rows, each with its recording, text and times. All faults are told together, each with
its line and the way out, before anything is trained.

    train.jsonl             {"audio": "a.wav", "text": "what is said", "language": "en"}
    train.tsv, .csv         the same as a table with a header; .parquet the same as columns
    folder/                 Hugging Face's audiofolder: metadata.jsonl, .csv or .parquet with `file_name`

A path is relative to its manifest. `offset` and `duration` (seconds) take a part of a file, as in NeMo's manifests,
whose names (audio_filepath, lang) are known, as Hugging Face's are (file_name, transcription, sentence).

    speaker     for --without and --twice
    phrases     (or `segments`) [{"start": s, "end": s, "text": "..."}, ...], seconds from the start of the clip: what
                times are learned from, and where a long clip is cut
    previous    what was said before the clip
"""

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from tqdm import tqdm

from glmasr import audio
from glmasr.errors import GlmAsrError, printable
from glmasr.transcription.language import canonical, join

NAMES = {  # ours -> what others call it
    "audio": ("audio", "audio_filepath", "file_name", "path", "file", "audio_path"),
    "text": ("text", "transcription", "sentence", "transcript"),
    "language": ("language", "lang"),
    "speaker": ("speaker", "speaker_id", "client_id"),
    "offset": ("offset",),
    "duration": ("duration",),
    "phrases": ("phrases", "segments"),
    "previous": ("previous",),
}
FORMATS = (".jsonl", ".json", ".tsv", ".csv", ".parquet")
FOLDER = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # of Hugging Face's audiofolder
BEYOND = 0.25  # seconds by which a stated end may lie beyond the file's: others round, or count differently
MOST_LETTERS = 60  # a second; nobody says half as many
READERS = 8  # recordings that are read at once: each may be hours long
FAULTS = 100  # that are told one by one
_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can say one, and no tokenizer can read it


class TrainingError(Exception):
    """Data or options that can't be used; the message is for the user."""


@dataclass(frozen=True)
class Phrase:
    """A part of a text, and when it is said: seconds from the start of its clip."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Row:
    """A line of a manifest: a recording, or `seconds` of it from second `offset` on, and what is said."""

    audio: str
    text: str
    language: str = ""
    speaker: str = ""
    offset: float = 0.0
    seconds: float = 0.0  # of the clip; 0 until it was read, but where a part of a file is asked for
    phrases: tuple[Phrase, ...] = ()
    previous: str = ""
    where: str = ""  # "train.jsonl, line 3"
    labeled: bool = True  # whether the manifest says the text

    @property
    def person(self) -> str:
        """Who speaks; what follows an asterisk says how the recording was changed (make_digits.py)."""
        return self.speaker.partition("*")[0]


Fail = Callable[[str], None]


def read_manifests(
    paths: Iterable[str | Path], language: str = "", fail: Fail | None = None, *, textless: bool = False
) -> list[Row]:
    """The rows of all manifests, their recordings read once. `language`: of rows that say none. With `fail` it is told
    of each fault; else TrainingError has them all. `textless`: a line may have no text."""
    faults: list[str] = []
    rows = [row for path in paths for row in read_manifest(path, language, fail or faults.append, textless)]
    raise_faults(faults)
    return rows


def raise_faults(faults: list[str]) -> None:
    """Raises TrainingError with all faults, if there are any."""
    if faults:
        lines = [printable(fault) for fault in faults[:FAULTS]]
        more = [f"and {len(faults) - FAULTS} more"] if len(faults) > FAULTS else []
        counted = [f"{len(faults)} faults in the manifests:"] if len(faults) > 1 else []
        raise TrainingError("\n".join([*counted, *lines, *more]))


def strangers(rows: list[Row], options: dict[str, list[str]]) -> list[str]:
    """A line about each speaker whom an option names and no row has: perhaps the name is mistyped."""
    there = {row.person for row in rows}
    return [
        f"--{option} {name}: no recording is of a speaker of this name"
        for option, names in options.items()
        for name in names
        if name not in there
    ]


def read_manifest(path: str | Path, language: str, fail: Fail, textless: bool = False) -> list[Row]:
    """The rows of a manifest, without those that `fail` was told of."""
    path = Path(path)
    try:
        path = _in_folder(path) if path.is_dir() else path
        if path.exists() and not path.is_file():
            raise ValueError("is neither a file nor a folder")
        rows, any_line = [], False
        for number, fields in _lines(path, textless):
            where, any_line = f"{path}, line {number}", True
            try:
                if isinstance(fields, ValueError):
                    raise fields
                row = _row(fields, path.parent, textless)
            except (ValueError, RecursionError) as error:
                fail(f"{where}: {error}")
            else:
                rows.append(replace(row, language=row.language or canonical(language), where=where))
    except (OSError, ValueError, csv.Error) as error:
        fail(f"{path}: {error.strerror if isinstance(error, OSError) and error.strerror else error}")
        return []
    with ThreadPoolExecutor(min(READERS, os.cpu_count() or 1)) as threads:
        found = list(tqdm(threads.map(_measured, rows), total=len(rows), leave=False, desc=path.name, mininterval=2))
    for item in found:
        if isinstance(item, str):
            fail(item)
    rows = [row for row in found if isinstance(row, Row)]
    if not any_line:
        fail(f"{path}: no recordings in it; expected a line for each, such as {EXAMPLE}")
    return _with_previous(rows)


EXAMPLE = '{"audio": "a path beside it", "text": "what is said"}'


# -- files -> fields ---------------------------------------------------------------------------------------------------


def _in_folder(folder: Path) -> Path:
    for name in FOLDER:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"is a folder; expected {' or '.join(FOLDER)} in it, with file_name and transcription")


def _lines(path: Path, textless: bool) -> Iterator[tuple[int, Any]]:
    """(line, its fields; or a ValueError that says what is wrong)."""
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise ValueError(f"is no manifest by its name; expected {', '.join(FORMATS)}, or a folder")
    if kind == ".parquet":
        yield from _parquet(path)
    elif kind in (".tsv", ".csv"):
        yield from _table(_text(path), "\t" if kind == ".tsv" else ",", textless)
    else:
        yield from _json(_text(path))


def _text(path: Path) -> str:
    """With or without a byte-order mark. Raises ValueError."""
    content = path.read_bytes()
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"line {line} is no UTF-8 (byte {error.start}: {content[error.start]:#x}); save the file as UTF-8"
        ) from None


def _json(text: str) -> Iterator[tuple[int, Any]]:
    """Objects, one a line. Not `splitlines`: a text may hold other ends of lines than this."""
    if text.lstrip()[:1] == "[":
        raise ValueError(f"is one JSON list; expected an object a line, such as {EXAMPLE}")
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                reason = "nested too deep" if isinstance(error, RecursionError) else getattr(error, "msg", error)
                yield number, ValueError(f"is no JSON ({reason}); expected {EXAMPLE}, found {line:.80}")


def _table(text: str, separator: str, textless: bool) -> Iterator[tuple[int, Any]]:
    tabs = separator == "\t"  # in such a table quotes mean nothing special
    reader = csv.DictReader(  # TRAP: unless it is strict, a quote that never ends takes all lines after it for one text
        io.StringIO(text, newline=""),
        delimiter=separator,
        quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
        strict=True,
    )
    for ours in ("audio",) if textless else ("audio", "text"):
        if text.strip() and not set(NAMES[ours]).intersection(reader.fieldnames or ()):
            raise ValueError(
                f"the first line is {(reader.fieldnames or [])!r:.120}; expected the names of columns, and among them "
                f"{' or '.join(NAMES[ours])}"
            )
    names = list(reader.fieldnames or ())
    if twice := next((name for place, name in enumerate(names) if name and name in names[:place]), None):
        raise ValueError(f"the first line has two columns {twice!r:.60}; expected one of each name")
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:  # such as a quote that never ends
            yield reader.line_num + 1, ValueError(f"can't be read ({error}); is a quote missing?")
            return
        if row is None:
            return
        if None in row:
            yield reader.line_num, ValueError(f"has more columns than the first line: {row[None]!r:.80}")
        else:
            yield reader.line_num, {name: value for name, value in row.items() if value}


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise ValueError("needs the package pyarrow: pip install 'glmasr[train]', or write .jsonl") from None
    try:
        rows = parquet.read_table(path).to_pylist()
    except Exception as error:  # whatever a damaged file makes of it: pyarrow has many
        raise ValueError(f"is no Parquet that can be read ({error})") from None
    yield from enumerate(({name: value for name, value in row.items() if value is not None} for row in rows), 1)


# -- fields -> row -----------------------------------------------------------------------------------------------------


def _row(fields: Any, folder: Path, textless: bool) -> Row:
    """Raises ValueError."""
    if not isinstance(fields, dict):
        raise ValueError(f"is {fields!r:.60}; expected {EXAMPLE}")
    found = {ours: next((fields[name] for name in names if name in fields), None) for ours, names in NAMES.items()}
    path = found["audio"]
    if not isinstance(path, str) or not path or "\0" in path:
        named = "no" if path is None else f"the path {path!r:.60} for a"
        raise ValueError(f"has {named} recording; expected {EXAMPLE}")
    phrases = _phrases(found["phrases"])
    if found["text"] is None and phrases:
        found["text"] = join([phrase.text for phrase in phrases])
    labeled = found["text"] is not None
    if textless and not labeled:
        found["text"] = ""
    for name in ("text", "language", "speaker", "previous"):
        value = found[name]
        if isinstance(value, str) and (half := _SURROGATE.search(value)):
            raise ValueError(f"has half a character in its {name}, {half[0]!r}; expected text that UTF-8 can hold")
        if not isinstance(value, str) and not (value is None and name != "text"):
            said = "no text" if value is None else f"the {name} {value!r:.60}"
            raise ValueError(f'has {said}; expected a text, as in {EXAMPLE}; "" if nobody speaks')
    duration = _seconds(found["duration"], "duration")
    if duration == 0:
        raise ValueError("has the duration 0; expected seconds, or none for all of the file")
    return Row(
        str(folder / path),
        " ".join(found["text"].split()),
        canonical((found["language"] or "").strip()),
        found["speaker"] or "",
        _seconds(found["offset"], "offset") or 0.0,
        duration or 0.0,
        phrases,
        found["previous"] or "",
        labeled=labeled,
    )


def _seconds(value: Any, name: str) -> float | None:
    if value is None:
        return None
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not 0 <= number < 1e7:
        raise ValueError(f"has the {name} {value!r:.60}; expected a number of seconds from 0 on")
    return number


def _phrases(value: Any) -> tuple[Phrase, ...]:
    if value is None:
        return ()
    example = 'expected [{"start": 0.0, "end": 1.2, "text": "..."}, ...] in order'
    if isinstance(value, str):  # in a table
        try:
            value = json.loads(value)
        except ValueError:
            pass
    good = isinstance(value, (list, tuple)) and all(
        isinstance(phrase, dict) and isinstance(phrase.get("text"), str) for phrase in value
    )
    if not good:
        raise ValueError(f"has the phrases {value!r:.60}; {example}")
    if any(_SURROGATE.search(phrase["text"]) for phrase in value):
        raise ValueError(f"has half a character in its phrases {value!r:.60}; expected text that UTF-8 can hold")
    found: list[Phrase] = []
    for phrase in value:
        start, end = _seconds(phrase.get("start"), "start"), _seconds(phrase.get("end"), "end")
        if start is None or end is None or not start < end or found and start < found[-1].start:
            raise ValueError(f"has the phrase {phrase!r:.80}, from {start} to {end} s; {example}")
        if phrase["text"].strip():
            found.append(Phrase(start, end, " ".join(phrase["text"].split())))
    return tuple(found)


def _with_previous(rows: list[Row]) -> list[Row]:
    """Clips of one file, one after the other: the text of one is what was said before the next."""
    order = sorted(range(len(rows)), key=lambda i: (rows[i].audio, rows[i].offset))
    for before, after in zip(order, order[1:], strict=False):
        first, second = rows[before], rows[after]
        gap = second.offset - first.offset - first.seconds
        if first.audio == second.audio and not second.previous and -BEYOND <= gap < 10:
            rows[after] = replace(second, previous=first.text)
    return rows


# -- sound -------------------------------------------------------------------------------------------------------------


def samples(row: Row) -> np.ndarray:
    """The clip of a row, float32 (S,) at 16 kHz. Raises AudioError."""
    if row.offset:
        try:  # a part of a long file, without the rest of it
            with soundfile.SoundFile(row.audio) as file:
                if file.seekable() and file.frames:
                    file.seek(min(file.frames, round(row.offset * file.samplerate)))
                    count = round(row.seconds * file.samplerate) if row.seconds else -1
                    part = file.read(count, dtype="float32", always_2d=True)
                    return audio.load(part, file.samplerate).numpy() if len(part) else np.zeros(0, np.float32)
        except (OSError, TypeError, soundfile.LibsndfileError):
            pass  # what libsndfile can't read, others can
    first = round(row.offset * audio.SAMPLE_RATE)
    last = first + round(row.seconds * audio.SAMPLE_RATE) if row.seconds else None
    return audio.load(row.audio, warn=lambda _: None).numpy()[first:last]


def _measured(row: Row) -> Row | str:
    """The row with the length of its clip, or what is wrong with that."""
    if not os.path.isfile(row.audio):  # TRAP: a named pipe would be waited for
        found = "is no file" if os.path.lexists(row.audio) else "no such file"
        return f"{row.where}: {row.audio}: {found}; a path is relative to the manifest"
    try:
        sound = samples(row)
    except GlmAsrError as error:
        return f"{row.where}: {error}"
    seconds = len(sound) / audio.SAMPLE_RATE
    if not len(sound) or seconds < row.seconds - BEYOND:
        end = f"{row.offset + row.seconds:g}" if row.seconds else "its end"
        length = len(samples(replace(row, offset=0.0, seconds=0.0))) / audio.SAMPLE_RATE
        return (
            f"{row.where}: {row.audio} ends at {length:.2f} s; expected an offset and a duration within "
            f"it, not {row.offset:g} to {end}"
        )
    if row.text and not np.abs(sound).max() > 1e-4:
        return f'{row.where}: {row.audio} is silent, but has a text; expected sound, or the text ""'
    if len(row.text) > MOST_LETTERS * (seconds + 0.5):
        return (
            f"{row.where}: {len(row.text)} letters in {seconds:.2f} s can't be said; does the text belong to "
            f"{row.audio}?"
        )
    if row.phrases and row.phrases[-1].end > seconds + BEYOND:
        return (
            f"{row.where}: the last phrase ends at {row.phrases[-1].end:g} s, after the clip ({seconds:.2f} s); times "
            "are seconds from the start of the clip"
        )
    return replace(row, seconds=seconds)
