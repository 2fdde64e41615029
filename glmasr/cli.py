"""The first lines of the commands: Ctrl-C while Python imports what they need ends them at once, with exit code 130 and one line.

TRAP: some of the code that an import runs, such as the callbacks of its own locks, drops a KeyboardInterrupt, and everything else lets it
end in a traceback of 30 lines. Nothing has to be cleaned up as early as that, so the process just ends. What this module itself imports is
what Python has imported already, or next to nothing.
"""

import argparse
import os
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from importlib import import_module

from .errors import printable

INTERRUPTED = 130               # the exit code, as of shells: 128 + SIGINT


@contextmanager
def ended_at_once():
    """While this runs, Ctrl-C ends the process. Nothing changes where somebody handles or ignores it already, nor in a thread beside the main one."""
    if not _hold():
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _hold() -> bool:
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, _end)
    return ours


def _end(*signal_and_frame) -> None:
    with suppress(OSError):                     # standard error is closed
        os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def _run(module: str) -> int:
    try:
        with ended_at_once():
            main = import_module(module).main
        return main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    finally:
        _hold()                                 # for good: what is left to do is to end
        with suppress(OSError, ValueError, AttributeError):     # nobody reads it; it is closed; there is none
            sys.stdout.flush()


def transcribe() -> int:
    return _run("transcribe")


def fetch() -> int:
    return _run("glmasr.tools.fetch")


def check() -> int:
    return _run("glmasr.tools.check")


def quantize() -> int:
    return _run("glmasr.tools.quantize")


class Parser(argparse.ArgumentParser):
    """Quotes what it doesn't know, which a pattern of the shell may have made of the name of a file, so that no terminal obeys it."""

    def error(self, message: str):
        super().error(printable(message))
