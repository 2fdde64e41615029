"""What was recognized so far: rows in files that are whole or not there.

    OUT/run.json                 what all rows depend on: model and settings
    OUT/rows-00000.parquet       rows; each id is in one file only
    OUT/rows-00000.jsonl         the same, a line each
    OUT/report.json, report.md   what came of it

A .parquet is what counts: it is renamed to its name after its .jsonl, so a .jsonl without one is of a run that was
killed, and is removed. One process at a time writes into a folder.
"""

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import OptionError, OutputError
from ..writers.output import prepare, write_whole
from .rows import DONE, Row

try:
    import fcntl
except ImportError:  # Windows: there nothing keeps a second process from the same files
    fcntl = None  # type: ignore[assignment]  # a module or None, which mypy has no way to say


def schema() -> Any:
    """The columns of a row."""
    import pyarrow as pa

    text, number, names = pa.string(), pa.float64(), pa.list_(pa.string())
    word = pa.struct([("text", text), ("start", number), ("end", number), ("probability", number)])
    segment = pa.struct(
        [
            ("start", number),
            ("end", number),
            ("text", text),
            ("language", text),
            ("mean_logprob", number),
            ("compression_ratio", number),
            ("no_speech", number),
            ("temperature", number),
            ("flags", names),
            ("words", pa.list_(word)),
        ]
    )
    kinds = {"segments": pa.list_(segment), "flags": names, "warnings": names, "seconds": number, "took": number}
    order = "id path status text language segments flags warnings seconds error attempts source run worker took"
    return pa.schema([(name, pa.int32() if name == "attempts" else kinds.get(name, text)) for name in order.split()])


class Shards:
    """The rows in a folder, which is held until `close`: no other process can have it meanwhile.

    known   id -> (source, status) of each row that is there

    Raises OutputError where it can't be written to or another process has it, OptionError where another run was begun
    in it.
    """

    def __init__(self, folder: Path, run: dict[str, Any]):
        self.folder, self.known = folder, dict[str, tuple[str, str]]()
        self._where: dict[str, Path] = {}
        self._lock: io.TextIOWrapper | None = None
        prepare(folder)
        self._hold()
        try:
            self._begin(run)
            for path in [*self.files("jsonl"), *folder.glob(f".{'[0-9a-f]' * 16}.part")]:
                if not path.with_suffix(".parquet").exists():
                    path.unlink()
            for path in self.files():
                for row in _columns(path):
                    self.known[row["id"]], self._where[row["id"]] = (row["source"], row["status"]), path
        except OSError as error:
            self.close()
            raise OutputError(f"{folder}: {error}; make room, or check its permissions") from error
        except BaseException:
            self.close()
            raise
        self._next = 1 + max((int(path.stem.rpartition("-")[2]) for path in self.files()), default=-1)

    def _hold(self) -> None:
        try:
            self._lock = open(self.folder / ".lock", "a")  # noqa: SIM115  # until `close`
            if fcntl is not None:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise OutputError(
                f"{self.folder}: another process is at work there; wait for its end, or name another --out"
            ) from None
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be written ({error.strerror or error})") from error

    def _begin(self, run: dict[str, Any]) -> None:
        path = self.folder / "run.json"
        if not path.exists():
            write_whole(path, json.dumps(run, indent=2, ensure_ascii=False) + "\n")
            return
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise OutputError(f"{path}: is damaged ({error}); name another --out") from None
        now = json.loads(json.dumps(run))
        if before != now:
            names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
            raise OptionError(
                f"{self.folder}: has rows of another run, which differs in {', '.join(sorted(names))}; name another "
                "--out, or use the options of run.json there"
            )

    def files(self, form: str = "parquet") -> list[Path]:
        """The shards, in order, and nobody else's files."""
        return sorted(path for path in self.folder.glob(f"rows-*.{form}") if path.stem[5:].isdecimal())

    def drop(self, ids: set[str]) -> None:
        """Rows that don't count any more, such as of a recording that has changed, leave their files."""
        for path in {self._where[name] for name in ids if name in self._where}:
            kept = [row for row in rows(path) if row["id"] not in ids]
            if kept:
                self._write(path, kept)
            else:
                path.unlink()
                path.with_suffix(".jsonl").unlink(missing_ok=True)
        for name in ids:
            self.known.pop(name, None)
            self._where.pop(name, None)

    def add(self, new: list[Row]) -> None:
        """Rows of ids that aren't there, as one more shard. Raises OutputError, and then none of them is there."""
        twice = [row["id"] for row in new if row["id"] in self.known]
        if twice:
            raise ValueError(f"{twice[0]!r} is there already")
        path = self.folder / f"rows-{self._next:05d}.parquet"
        self._write(path, new)
        self._next += 1
        for row in new:
            self.known[row["id"]], self._where[row["id"]] = (row["source"], row["status"]), path

    def _write(self, path: Path, some: list[Row]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as parquet

        content = io.BytesIO()
        parquet.write_table(pa.Table.from_pylist(some, schema()), content, compression="zstd")
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some)
        write_whole(path.with_suffix(".jsonl"), lines)
        write_whole(path, content.getvalue())

    def close(self) -> None:
        """Others can have the folder."""
        if self._lock is not None:
            self._lock.close()


def _columns(path: Path) -> Iterable[Row]:
    """What `Shards` needs to know. Raises OutputError."""
    return _read(path, ["id", "source", "status"])


def _read(path: Path, columns: list[str] | None = None) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        found: list[Row] = parquet.read_table(path, columns=columns).to_pylist()
    except (pa.ArrowException, KeyError, OSError) as error:  # OSError: of what can't be unpacked
        reason = str(error).partition("\n")[0]
        raise OutputError(f"{path}: is damaged ({reason}); remove it, and its rows are made anew") from None
    return found


def rows(path: Path) -> Iterator[Row]:
    """The rows of a shard. Raises OutputError."""
    for row in _read(path):
        for segment in row["segments"]:
            if segment["words"] is None:
                del segment["words"]
        yield row


def unfinished(known: dict[str, tuple[str, str]], sources: dict[str, str], retry: bool) -> tuple[list[str], set[str]]:
    """Ids with what they are known by -> those that are to be recognized, and of these those whose rows have to go: the
    file has changed, or it failed and is to be tried again (`retry`)."""
    stale = {
        name
        for name, source in sources.items()
        if name in known and (known[name][0] != source or retry and known[name][1] != DONE)
    }
    return [name for name in sources if name not in known or name in stale], stale
