"""The files of the page: recordings that were uploaded, and results to download.

    uploads = Uploads(folder, most_bytes=2 ** 30)
    path = uploads.new("talk.wav", session="")              # <folder>/<32 random digits>/talk.wav, an empty file
    uploads.grow(path, count)                               # before `count` bytes are written
    uploads.find(text)                                      # the path, if it is one of ours

What is unusual here: a path that a client names is only ever looked up in a table of the paths that were given out,
never on the disk. They are random, so whoever knows one got it from this server, or from another client that did.

A file goes when its page is closed, when another recording takes its place there, or when it was not used for KEEP
seconds.
"""

import queue
import secrets
import shutil
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .problems import Gone, NoSpace

SOON = 60.0  # seconds in which the call that a recording came with has to begin
KEEP = 600.0  # seconds without use, where no open page holds it: a program that calls the page has none
RETURN = 60.0  # seconds in which a page whose connection broke may come back
MOST_FILES = 2000
LONGEST_NAME = 100  # bytes of a name that is kept


@dataclass
class Kept:
    """A file, and until when."""

    size: int
    session: str  # of the page that shows it; "" for none yet
    used: float  # when, by the monotonic clock
    once: bool  # for one call, which drops it
    busy: int = 0  # calls that are at work on it
    lasts: bool = False  # another recording leaves it there


class Uploads:
    """For one event loop. `most_bytes`: of all files together."""

    def __init__(self, folder: Path, most_bytes: int, most_files: int = MOST_FILES):
        self.folder, self.most_bytes, self.most_files = Path(folder), most_bytes, most_files
        self.files: dict[str, Kept] = {}
        self.bytes = 0
        self.pages: Counter[str] = Counter()  # connections of the open pages, by session
        self.lock = threading.Lock()  # of `bytes`, which are given back when a file is gone
        self.leaving: queue.Queue[tuple[Path, int]] = queue.Queue()
        threading.Thread(target=self._remove, daemon=True).start()
        self.folder.mkdir(mode=0o700, exist_ok=True)

    def new(self, name: str, session: str = "", once: bool = False) -> str:
        """The path of a new, empty file. `once`: for one call. Raises NoSpace, OSError."""
        self.check_room(0)
        path = self.folder / secrets.token_hex(16) / plain(name)
        path.parent.mkdir(mode=0o700)
        path.touch()
        self.files[str(path)] = Kept(0, session, time.monotonic(), once)
        return str(path)

    def keep(self, name: str, content: bytes, beside: str) -> str:
        """The path of a new file with this content, for the page that shows `beside`. Raises as `new` does."""
        return self._kept(name, content, self.files[beside].session if beside in self.files else "")

    def keep_last(self, files: dict[str, bytes], session: str) -> list[str]:
        """The paths of new files, name -> content, which belong to no recording; those before, of the same page, go.
        Raises as `new` does."""
        for path, kept in list(self.files.items()):
            if kept.lasts and kept.session == session:
                self.drop(path)
        paths = [self._kept(name, content, session) for name, content in files.items()]
        for path in paths:
            self.files[path].lasts = True
        return paths

    def _kept(self, name: str, content: bytes, session: str) -> str:
        path = self.new(name, session)
        self.grow(path, len(content))
        Path(path).write_bytes(content)
        return path

    def check_room(self, count: int) -> None:
        """Raises Problem where `count` more bytes, or another file, would be too many."""
        if len(self.files) >= self.most_files or self.bytes + count > self.most_bytes:
            raise NoSpace(
                f"the page keeps {len(self.files)} files with {self.bytes / 2**20:.0f} MiB, and no more than "
                f"{self.most_files} with {self.most_bytes / 2**20:g} MiB (--most-kept); try again later",
                retry_after=60,
            )

    def grow(self, path: str, count: int) -> None:
        """Tells of `count` bytes that are about to be written. Raises NoSpace where they are too many, Gone where the
        file has gone."""
        if path not in self.files:
            raise Gone("this recording is no longer kept; send it again", "file")
        if self.bytes + count > self.most_bytes:
            self.check_room(count)
        self.files[path].size += count
        with self.lock:
            self.bytes += count

    def find(self, path: str) -> str | None:
        """The path if it is one of ours, which counts as a use."""
        if kept := self.files.get(path):
            kept.used = time.monotonic()
            return path
        return None

    def show(self, path: str, session: str) -> None:
        """A page shows this recording from now on, and what it showed before is no longer needed."""
        for other, kept in list(self.files.items()):
            if session and kept.session == session and other != path and not kept.lasts:
                kept.once = True
                if not kept.busy:
                    self.drop(other)
        if path in self.files:
            self.files[path].session = session

    def drop(self, path: str) -> None:
        """From now on it isn't there. TRAP: to remove it from the disk may take milliseconds, and a thousand of them
        seconds."""
        if kept := self.files.pop(path, None):
            self.leaving.put((Path(path).parent, kept.size))

    def _remove(self) -> None:
        """Thread: removes files, for ever."""
        while True:
            folder, size = self.leaving.get()
            shutil.rmtree(folder, ignore_errors=True)
            with self.lock:
                self.bytes -= size
            self.leaving.task_done()

    @contextmanager
    def use(self, path: str) -> Iterator[None]:
        """Keeps a file while a call is at work on it. What came within the call goes with it."""
        if kept := self.files.get(path):
            kept.busy += 1
        try:
            yield
        finally:
            if kept:
                kept.busy, kept.used = kept.busy - 1, time.monotonic()
                if kept.once:
                    self.drop(path)

    def page_opened(self, session: str) -> None:
        """A page of this session connected: the session's files are kept until its last page has left."""
        self.pages[session] += 1

    def page_left(self, session: str) -> None:
        """Its connection has ended: it was closed, or it comes back soon."""
        self.pages[session] -= 1
        if self.pages[session] <= 0:
            del self.pages[session]
            for kept in self.files.values():
                if kept.session == session:
                    kept.used = time.monotonic() + RETURN - KEEP

    def tidy(self) -> None:
        """Drops what is no longer needed."""
        now = time.monotonic()
        for path, kept in list(self.files.items()):
            if not kept.busy and kept.session not in self.pages and now > kept.used + (SOON if kept.once else KEEP):
                self.drop(path)


def plain(name: str) -> str:
    """A name that any file system takes and any terminal may show. Its ending stays: some decoders go by it."""
    name = "".join(
        letter
        for letter in unicodedata.normalize("NFC", name.replace("\\", "/").rpartition("/")[2])
        if unicodedata.category(letter)[0] not in "CZ" or letter == " "
    )
    name = "".join("_" if letter in '<>:"|?*' else letter for letter in name).strip(" .")
    stem, dot, ending = name.rpartition(".")
    if not dot or len(ending) > 10:
        stem, dot, ending = name, "", ""
    stem = stem.encode()[: LONGEST_NAME - len((dot + ending).encode())].decode(errors="ignore").strip(" .")
    return f"{stem or 'recording'}{dot}{ending}"
