"""Files on this machine, and at addresses that fsspec knows: s3://, gs://, hf://, https://, memory:// and others."""

import os
import posixpath
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from ..audio_files.address import scheme, shown
from ..errors import GlmAsrError
from .items import Item

AT_ONCE = 32  # files that are asked for their size at a time
BLOCK = 2**20  # bytes
VERSIONS = ("size", "ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "created")


class StorageError(GlmAsrError):
    """A file can't be had. `again`: another time it might."""

    def __init__(self, message: str, again: bool = True):
        super().__init__(message)
        self.again = again


def _system(path: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it. Raises StorageError."""
    try:
        import fsspec
    except ImportError:
        raise StorageError(f"{shown(path)}: addresses need fsspec; pip install 'glmasr[ray]'", again=False) from None
    try:
        return fsspec.core.url_to_fs(path)  # type: ignore[no-any-return]
    except (ImportError, ValueError) as error:  # names the package that is missing; a scheme that nobody knows
        raise StorageError(f"{shown(path)}: {error}", again=False) from error


@contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """A file in which one can seek. Raises OSError, StorageError."""
    if scheme(path):
        system, inner = _system(path)
        with system.open(inner, "rb") as file:
            yield file
    else:
        with open(path, "rb") as file:
            yield file


def content(path: str) -> bytes:
    """All of a file. Raises OSError, StorageError."""
    with opened(path) as file:
        return file.read()


def expanded(address: str, endings: frozenset[str]) -> Iterator[str]:
    """The files that an address names: itself; those of a folder, and of its folders, with one of these endings; those
    that match a pattern. Raises OSError, StorageError."""
    system, inner = _system(address)
    if not set("*?[").isdisjoint(inner):
        names = sorted(system.glob(inner))
    elif system.isdir(inner):
        names = sorted(name for name in system.find(inner) if name.rpartition(".")[2].lower() in endings)
    else:
        names = [inner]
    for name in names:
        yield system.unstrip_protocol(name) if names != [inner] else address


def with_versions(items: list[Item]) -> list[Item]:
    """The items, each with what tells today's file from another one of its name; "" where nothing does."""
    paths = list(dict.fromkeys(item.path for item in items))
    if any(map(scheme, paths)):
        with ThreadPoolExecutor(AT_ONCE) as pool:
            known = dict(zip(paths, pool.map(_version, paths), strict=True))
    else:
        known = {path: _version(path) for path in paths}
    return [replace(item, version=known[item.path]) for item in items]


def _version(path: str) -> str:
    try:
        if not scheme(path):
            found = os.stat(path)
            return f"{found.st_size} {found.st_mtime_ns}"
        system, inner = _system(path)
        info = system.info(inner)
    except Exception:  # whoever reads it will say why it can't be read
        return ""
    return " ".join(str(info[name]) for name in VERSIONS if info.get(name) is not None)


def _is_pipe(path: str) -> bool:
    """TRAP: to open one waits for whoever writes into it."""
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def needs_copy(item: Item) -> bool:
    """Whether it can't be read where it is: at an address, or in a tar file."""
    return bool(scheme(item.path) or item.where)


class Copying:
    """A file that a thread copies into a folder, so that nobody waits for ever for a storage that is silent.

    path   of the copy; of a file on this machine, which needs none, its own
    """

    def __init__(self, item: Item, folder: Path, timeout: float):
        self.name, self.path, self._where, self._timeout = item.path, Path(item.path), item.where, timeout
        self._moved = threading.Event()
        self._error: Exception | None = None
        self._done = False
        if needs_copy(item):
            name = item.id if item.where else item.path.split("?")[0]
            self.path = folder / ("recording" + posixpath.splitext(name)[1][:10])  # ffmpeg may look at the ending
            threading.Thread(target=self._copy, daemon=True).start()
        else:
            self._done = True
            if _is_pipe(item.path):
                self._error = StorageError("is a pipe; expected a file", again=False)

    def _copy(self) -> None:
        try:
            with opened(self.name) as source, open(self.path, "wb") as target:
                left = None
                if self._where:
                    source.seek(self._where[0])
                    left = self._where[1]
                while left != 0 and (block := source.read(BLOCK if left is None else min(BLOCK, left))):
                    target.write(block)
                    left = None if left is None else left - len(block)
                    self._moved.set()
                if left:
                    raise StorageError(f"{shown(self.name)}: ends within the recording", again=False)
        except Exception as error:  # of fsspec's packages, each has its own
            self._error = error
        self._done = True
        self._moved.set()

    def wait(self) -> Path:
        """The copy, complete. Raises StorageError."""
        while not self._done:
            if not self._moved.wait(self._timeout):
                raise StorageError(f"{shown(self.name)}: nothing came for {self._timeout:g} s")
            self._moved.clear()
        if self._error is not None:
            gone = isinstance(self._error, FileNotFoundError | PermissionError)
            again = not gone and getattr(self._error, "again", True)
            reason = str(self._error) or type(self._error).__name__
            raise StorageError(f"{shown(self.name)}: cannot be read ({reason})", again) from self._error
        return self.path
