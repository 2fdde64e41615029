"""A program whose output is read, with limits of time and memory, and that nothing is left of."""

import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import IO

from ..errors import Cancelled, GlmAsrError
from .limits import IsCancelled

if sys.platform == "linux":
    import resource

PATIENCE = 60.0  # seconds that a program may take for what is read from it at once
MOST_MEMORY = 2**31  # bytes that it may address; 8K video beside the sound takes ffmpeg to 0.4 of it
MOST_LOGGED = 2**20  # bytes of what it says that are kept; a damaged file can give a line a packet


class Child:
    """A program whose output is read, in a session of its own: it is ended with all that it has started

    - when it is closed;
    - when nothing came for PATIENCE seconds (then it is `silent`), those not counted in which it may still get input,
      or `cancelled()` is true: a thread looks after that;
    - when this process is gone, however that ended: the kernel closes the pipe then that a shell, the leash, reads
      from.

    `read(count)` gives its input, at most so many bytes, b"" at the end; a thread asks for it. None: it has none.

    Raises OSError where it can't be started.
    """

    LEASH = 'read -r _; kill -9 -"$1"'  # what closes the pipe, kills the session

    def __init__(self, command: Sequence[str], cancelled: IsCancelled, read: Callable[[int], bytes] | None = None):
        self.cancelled, self.silent, self.patience = cancelled, False, math.inf if read else PATIENCE
        self.deadline, self.closed = math.inf, threading.Event()
        with ExitStack() as stack:
            # TRAP: a pipe that isn't read would stop it at 64 KiB.
            self.log = stack.enter_context(tempfile.TemporaryFile())
            # TRAP: no other child may inherit a pipe; `Popen` sees to that.
            self.process = stack.enter_context(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE if read else subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=self.log,
                    start_new_session=True,
                )
            )
            assert self.process.stdout is not None
            self.output: IO[bytes] = self.process.stdout
            if read:
                stack.callback(self._close_input)  # `Popen` would complain that nobody reads the rest
            stack.callback(self.kill)  # runs before the wait that `Popen` ends with
            if sys.platform == "linux":
                with suppress(OSError):
                    resource.prlimit(self.process.pid, resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
                    # A core dump would hold the recording.
                    resource.prlimit(self.process.pid, resource.RLIMIT_CORE, (0, 0))
            if os.path.exists("/bin/sh"):
                leash = stack.enter_context(
                    subprocess.Popen(
                        ["/bin/sh", "-c", self.LEASH, "sh", str(self.process.pid)],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                        start_new_session=True,
                    )
                )
                stack.callback(leash.kill)  # before its pipe is closed: the number may be another one's by then
                stack.callback(self.kill)
            if read:  # nobody waits for this thread: who gives the input may be silent forever
                threading.Thread(target=self._feed, args=[read], daemon=True).start()
            watcher = threading.Thread(target=self._watch, daemon=True)
            watcher.start()
            stack.callback(watcher.join)
            stack.callback(self.closed.set)
            self.stack = stack.pop_all()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def read(self, count: int) -> bytes:
        """So many bytes, fewer at the end."""
        with self._limited():
            return self.output.read(count)

    def read_some(self, count: int) -> bytes:
        """What is there, at most so many bytes, at least one; none at the end."""
        with self._limited():
            content: bytes = self.output.read1(count)  # type: ignore[attr-defined]
            return content

    def said(self, count: int) -> str:
        """The last bytes, so many at most, of what it has written to standard error."""
        self.log.seek(max(0, os.fstat(self.log.fileno()).st_size - count))
        return self.log.read().decode("utf-8", "replace")

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        with self._limited():
            if hasattr(os, "waitid") and self.process.returncode is None:
                with suppress(ChildProcessError):
                    os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
                self.kill()  # what it has left behind, as long as the number is its own
            return self.process.wait()

    def kill(self) -> None:
        """TRAP: ffmpeg may be a script, and what it has started holds the pipe open: all of its session is ended."""
        if self.process.returncode is None:  # else its number may be another one's by now
            # macOS: not permitted, of one that has just ended.
            with suppress(ProcessLookupError, PermissionError):
                if os.name == "posix":
                    os.killpg(self.process.pid, signal.SIGKILL)
                else:
                    self.process.kill()

    @contextmanager
    def _limited(self) -> Iterator[None]:
        self.deadline = time.monotonic() + self.patience
        yield
        self.deadline = math.inf
        if self.cancelled():
            raise Cancelled

    def _feed(self, read: Callable[[int], bytes]) -> None:
        assert self.process.stdin is not None
        # It has ended, or was closed. What `read` raises, it raises again for whoever wants the rest.
        with suppress(OSError, ValueError, GlmAsrError, Cancelled):
            while content := read(2**16):
                self.process.stdin.write(content)
                self.process.stdin.flush()
        self._close_input()
        self.patience = PATIENCE
        self.deadline = time.monotonic() + PATIENCE

    def _close_input(self) -> None:
        assert self.process.stdin is not None
        with suppress(OSError, ValueError):
            self.process.stdin.close()

    def _watch(self) -> None:
        while not self.closed.wait(0.1):
            if getattr(os.fstat(self.log.fileno()), "st_blocks", 0) * 512 > MOST_LOGGED:
                os.ftruncate(self.log.fileno(), 0)  # where it writes on, there is a hole in front
            if self.cancelled():
                self.kill()
            elif time.monotonic() > self.deadline:
                self.silent = True
                self.kill()
