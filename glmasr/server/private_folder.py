"""The server's folder: private, and gone when the server is gone, also where it was killed."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "glmasr-server-"


@contextmanager
def private_folder() -> Iterator[str]:
    """A new folder for this user only, which is removed at the end. Those that killed servers left behind are removed
    first."""
    remove_leftovers()
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as folder, lock(folder):
        yield folder


@contextmanager
def lock(folder: str) -> Iterator[None]:
    """Holds a lock while this process lives."""
    try:
        import fcntl
    except ImportError:  # Windows, where leftovers stay until the system removes them
        yield
        return
    # It gets its name when it is locked: no other server finds it open.
    with open(os.path.join(folder, "lock.new"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.rename(file.name, os.path.join(folder, "lock"))
        yield


def remove_leftovers() -> None:
    """Removes this user's folders of servers that were killed: those that no living process has locked."""
    try:
        import fcntl
    except ImportError:
        return
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # of another user, still locked, or just gone
            if path.is_symlink() or path.stat().st_uid != os.getuid():
                continue
            if (path / "lock").exists():
                with open(path / "lock") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path)
            elif time.time() - path.stat().st_mtime > 60:  # killed before it had one
                shutil.rmtree(path)
