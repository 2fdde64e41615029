"""What is to be recognized: manifests, folders, patterns, tar files, addresses -> items, each with an id of its own.

    calls.jsonl       {"id": "a1", "path": "2024/a1.wav", "language": "zh", "offset": 12.5, "duration": 8}
    calls.tsv         the same as a table with a header; .csv too
    calls.parquet     the same as columns
    recordings/       all recordings in it, and in its folders; a pattern such as 'recordings/*.flac'
    shards/a.tar      those in a tar file, as WebDataset has them; a .json beside one may say its language
    s3://bucket/...   any of these at an address that fsspec knows

Only `path` has to be there. NeMo's names count too: audio_filepath, lang. A path is relative to its manifest.
"""

import csv
import glob
import io
import json
import os
import posixpath
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ..audio_files.address import scheme, shown
from ..config import is_number
from ..errors import GlmAsrError, OptionError
from ..writers.output import EXTENSIONS
from . import storage
from .items import Item
from .rows import writable

MANIFESTS = (".jsonl", ".json", ".tsv", ".csv", ".parquet")
NAMES = {  # of columns, as others call them
    "id": ("id", "utt_id", "key"),
    "path": ("path", "audio_filepath", "file", "audio_path", "audio"),
    "language": ("language", "lang"),
    "offset": ("offset",),
    "duration": ("duration",),
}
LARGEST_SIDECAR = 2**20  # bytes of a .json in a tar file


class SourceError(GlmAsrError):
    """A source, or a line of it, can't be used."""


def read(sources: Iterable[str], fail: Callable[[SourceError], None]) -> list[Item]:
    """The items of all sources, in order, with a `version` each. `fail` is told of sources and lines that can't be
    used. Raises OptionError where two different items have one id."""
    found: dict[str, Item] = {}
    for source in sources:
        names: list[str] = []
        with _telling(source, fail):
            names += _expanded(source, fail)
            if not names:
                raise SourceError(f"{source}: there is no recording; expected a file, a folder with some, or a pattern")
        for name in names:
            with _telling(name, fail):
                for read in _of_file(name, fail):
                    # A worker of a cluster has another current folder.
                    path = read.path if scheme(read.path) else os.path.join(os.getcwd(), read.path)
                    item = replace(read, id=writable(read.id), path=path)
                    before = found.setdefault(item.id, item)
                    if before != item:
                        raise OptionError(
                            f"{name}: the id {item.id!r} is that of two recordings, {before.path} and {item.path}; "
                            "expected an id for each"
                        )
    return storage.with_versions(list(found.values()))


@contextmanager
def _telling(source: str, fail: Callable[[SourceError], None]) -> Iterator[None]:
    """Tells `fail` of what goes wrong with a source, so that the others count."""
    try:
        yield
    except OptionError:
        raise
    except GlmAsrError as error:
        fail(SourceError(str(error)))
    except Exception as error:  # of fsspec's packages, each has its own
        fail(SourceError(f"{shown(source)}: can't be read ({str(error) or type(error).__name__})"))


def _of_file(source: str, fail: Callable[[SourceError], None]) -> Iterator[Item]:
    lower = source.lower()
    if lower.endswith(MANIFESTS):
        yield from _of_manifest(source, fail)
    elif lower.endswith(".tar"):
        yield from _of_tar(source, fail)
    elif lower.endswith((".tar.gz", ".tgz", ".tar.zst")):
        raise SourceError(f"{source}: is compressed, so nothing in it can be read by itself; expected a plain .tar")
    else:
        yield Item(source, source)


def _expanded(source: str, fail: Callable[[SourceError], None]) -> Iterator[str]:
    """The files that a path, a folder or a pattern names."""

    def refuse(error: OSError) -> None:
        fail(SourceError(f"{error.filename}: the folder can't be read ({error.strerror}); check its permissions"))

    if scheme(source):
        known = source.lower().endswith((*MANIFESTS, ".tar"))  # then nobody has to be asked what it is
        plain = known and set("*?[").isdisjoint(source)
        yield from [source] if plain else storage.expanded(source, EXTENSIONS | {"tar"})
    elif os.path.isdir(source):
        for folder, folders, names in os.walk(source, onerror=refuse):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                if not name.startswith(".") and name.rpartition(".")[2].lower() in EXTENSIONS | {"tar"}:
                    yield os.path.join(folder, name)
    elif source and (os.path.lexists(source) or set("*?[").isdisjoint(source)):
        yield source  # also what isn't there, which whoever reads it will say
    elif "**" in source:  # which goes into folders itself
        yield from sorted(name for name in glob.glob(source, recursive=True) if not os.path.isdir(name))
    else:
        for name in sorted(glob.glob(source)):
            yield from _expanded(name, fail)


# ---- manifests -------------------------------------------------------------------------------------------------------


def _of_manifest(source: str, fail: Callable[[SourceError], None]) -> Iterator[Item]:
    for number, fields in lines(source):
        try:
            yield as_item(fields, source)
        except ValueError as error:
            fail(SourceError(f"{source}, line {number}: {error}"))


def lines(source: str, more: tuple[str, ...] = ()) -> Iterator[tuple[int, Any]]:
    """The lines of a manifest, with their numbers; `as_item` knows which of them can be used. `more` are columns beside
    NAMES that are read as well, also where a cell is empty. Raises OSError, ValueError, SourceError, StorageError."""
    lower = source.lower()
    if lower.endswith(".parquet"):
        yield from _parquet(source, more)
    elif lower.endswith((".tsv", ".csv")):
        yield from _table(source, "\t" if lower.endswith(".tsv") else ",", more)
    else:
        yield from _json_lines(source)


def _text(source: str) -> str:
    return storage.content(source).decode("utf-8-sig")


def _json_lines(source: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(_text(source).split("\n"), 1):
        if line.strip():
            try:
                fields = json.loads(line)
            except json.JSONDecodeError as error:
                fields = error
            except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 1,000 lists in each other
                fields = json.JSONDecodeError(str(error), "", 0)
            yield number, fields


def _table(source: str, separator: str, more: tuple[str, ...]) -> Iterator[tuple[int, Any]]:
    content = io.StringIO(_text(source), newline="")
    tabs = separator == "\t"  # in such a table quotes mean nothing special
    quoting: Any = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL  # Any: for typeshed it is a literal
    reader = csv.DictReader(content, delimiter=separator, quoting=quoting, strict=True)
    try:
        if not set(NAMES["path"]).intersection(reader.fieldnames or ()):
            raise SourceError(f"{source}: has no column `path`; expected a header with it in the first line")
        for row in reader:
            yield reader.line_num, {name: value for name, value in row.items() if value or value == "" and name in more}
    except csv.Error as error:  # a cell of more than 131,072 characters, a quote that never ends
        raise SourceError(f"{source}, line {reader.line_num + 1}: is no line of a table ({error})") from None


def _parquet(source: str, more: tuple[str, ...]) -> Iterator[tuple[int, Any]]:
    import pyarrow.parquet as parquet

    file = parquet.ParquetFile(io.BytesIO(storage.content(source)))
    known = [*(name for names in NAMES.values() for name in names), *more]
    columns = [name for name in known if name in file.schema_arrow.names]
    number = 0
    for batch in file.iter_batches(columns=columns):
        for row in batch.to_pylist():
            number += 1
            yield number, {name: value for name, value in row.items() if value is not None}


def as_item(fields: Any, source: str) -> Item:
    """That of a line of a manifest. Raises ValueError."""
    if isinstance(fields, json.JSONDecodeError):
        raise ValueError(f'is no JSON ({fields.msg}); expected an object such as {{"path": "a.wav"}}')
    if not isinstance(fields, dict):
        raise ValueError(f'is {fields!r:.60}; expected an object such as {{"path": "a.wav"}}')
    known = {ours: next((fields[name] for name in names if name in fields), None) for ours, names in NAMES.items()}
    path = known["path"]
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError(f"has the path {path!r:.60}; expected the name of a recording")
    if not (scheme(path) or os.path.isabs(path)):
        join = posixpath.join if scheme(source) else os.path.join
        path = join(source.rpartition("/")[0] if scheme(source) else os.path.dirname(source), path)
    offset = _seconds(known["offset"], "offset", 0.0)
    duration = _seconds(known["duration"], "duration", None)
    if duration is not None and duration <= 0:
        raise ValueError(f"has the duration {duration:g}; expected a positive number of seconds")
    language = known["language"]
    if not (language is None or isinstance(language, str)):
        raise ValueError(f"has the language {language!r:.60}; expected a code such as zh")
    name = known["id"]
    if name is None:
        name = path if known["offset"] is None else f"{path}@{offset:g}" + (f"+{duration:g}" if duration else "")
    if not isinstance(name, str | int) or name == "":
        raise ValueError(f"has the id {name!r:.60}; expected a text")
    return Item(str(name), path, language or "", offset or 0.0, duration)


def _seconds(value: Any, name: str, default: float | None) -> float | None:
    if value is None:
        return default
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"has the {name} {value!r:.60}; expected a number of seconds") from None
    if not (is_number(found) and 0 <= found < float("inf")):
        raise ValueError(f"has the {name} {value!r:.60}; expected a number of seconds from 0 on")
    return found


# ---- tar files -------------------------------------------------------------------------------------------------------


def _of_tar(source: str, fail: Callable[[SourceError], None]) -> Iterator[Item]:
    """Recordings in a tar file; `a.json` beside `a.wav` may say its language."""
    languages: dict[str, str] = {}
    found: dict[str, Item] = {}  # of two members with one name the last one counts, as for tar
    try:
        with storage.opened(source) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                stem, _, extension = member.name.rpartition(".")
                name = f"{source}#{member.name}"
                if not member.isfile() or posixpath.basename(member.name).startswith("."):
                    continue
                if extension.lower() in EXTENSIONS and member.issparse():
                    fail(SourceError(f"{name}: is packed without its zeros; expected a tar made without --sparse"))
                elif extension.lower() in EXTENSIONS:
                    found[member.name] = Item(name, source, where=(member.offset_data, member.size))
                elif extension.lower() == "json" and member.size <= LARGEST_SIDECAR:
                    content = tar.extractfile(member)
                    try:
                        fields = json.loads(content.read()) if content else None
                    except (ValueError, RecursionError) as error:
                        fail(
                            SourceError(
                                f'{name}: is no JSON ({error}); expected an object such as {{"language": "zh"}}'
                            )
                        )
                        continue
                    if isinstance(fields, dict) and isinstance(fields.get("language"), str):
                        languages[stem] = fields["language"]
    except tarfile.TarError as error:  # what comes before it counts
        fail(SourceError(f"{source}: is no plain tar file, or is damaged ({error}); make it anew"))
        if not found:
            return
    if not found:
        raise SourceError(f"{source}: there is no recording in it")
    for name, item in found.items():
        yield replace(item, language=languages.get(name.rpartition(".")[0], ""))
