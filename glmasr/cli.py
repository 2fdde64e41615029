"""What all commands share: how they start, and how they read arguments.

Ctrl-C while Python imports what a command needs ends it at once, with exit code 130 and one line. TRAP: some of the
code that an import runs, such as the callbacks of its own locks, drops a KeyboardInterrupt, and everything else lets it
end in a traceback of 30 lines. Nothing has to be cleaned up as early as that, so the process just ends. What this
module itself imports is what Python has imported already, or next to nothing.
"""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import NoReturn, TypeVar

from . import __version__, uncollected
from .errors import printable

INTERRUPTED = 130  # the exit code, as of shells: 128 + SIGINT
Number = TypeVar("Number", int, float)


@contextmanager
def ended_at_once() -> Iterator[None]:
    """While this runs, Ctrl-C ends the process. Nothing changes where it is handled or ignored already, nor in a
    thread beside the main one."""
    if not _hold():
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _hold() -> bool:
    in_main = threading.current_thread() is threading.main_thread()
    ours = in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, _end)
    return ours


def _end(*signal_and_frame: object) -> None:
    with suppress(OSError):  # standard error is closed
        os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def _run(module: str) -> int:
    if sys.argv[1:] == ["--version"]:
        Parser().parse_args()  # ends here: some modules import PyTorch, which takes a second
    try:
        with ended_at_once(), uncollected():
            main: Callable[[], int] = import_module(module).main
        return main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    finally:
        _hold()  # for good: what is left to do is to end
        with suppress(OSError, ValueError, AttributeError):  # nobody reads it; it is closed; there is none
            sys.stdout.flush()


def transcribe() -> int:
    """Runs the command `glmasr` and returns its exit code."""
    return _run("transcribe")


def fetch() -> int:
    """Runs the command `glmasr-fetch` and returns its exit code."""
    return _run("glmasr.tools.fetch")


def check() -> int:
    """Runs the command `glmasr-check` and returns its exit code."""
    return _run("glmasr.tools.check")


def quantize() -> int:
    """Runs the command `glmasr-quantize` and returns its exit code."""
    return _run("glmasr.tools.quantize")


def merge() -> int:
    """Runs the command `glmasr-merge` and returns its exit code."""
    return _run("glmasr.tools.merge")


def archive() -> int:
    """Runs the command `glmasr-archive` and returns its exit code."""
    return _run("glmasr.archive.main")


def evaluate() -> int:
    """Runs the command `glmasr-eval` and returns its exit code."""
    return _run("glmasr.evaluation.main")


# -- arguments ---------------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Knows `--version`. Quotes what it doesn't know, which a pattern of the shell may have made of the name of a file,
    so that no terminal obeys it."""

    def __init__(self, prog: str | None = None, description: str | None = None):
        super().__init__(prog=prog, description=description)
        self.add_argument("--version", action="version", version=f"glmasr {__version__}")

    def error(self, message: str) -> NoReturn:
        """Prints usage and message, control characters escaped, and exits with status 2."""
        super().error(printable(message))


def refused(text: str, expected: str) -> argparse.ArgumentTypeError:
    """The error of a type of arguments: `expected` is what the text isn't, such as "a positive integer"."""
    return argparse.ArgumentTypeError(f"{text!r} is not {expected}")


def _number(text: str, kind: Callable[[str], Number], fits: Callable[[Number], bool], expected: str) -> Number:
    try:
        number = kind(text)
    except ValueError:
        raise refused(text, expected) from None
    if not fits(number):
        raise refused(text, expected)
    return number


def positive(text: str) -> int:
    """The type of an argument that is an integer of 1 or more. Raises ArgumentTypeError."""
    return _number(text, int, lambda number: number >= 1, "a positive integer")


def positive_or_auto(text: str) -> int | None:
    """None: auto."""
    return None if text == "auto" else _number(text, int, lambda number: number >= 1, "a positive integer or auto")


def count(text: str) -> int:
    """The type of an argument that is an integer of 0 or more. Raises ArgumentTypeError."""
    return _number(text, int, lambda number: number >= 0, "an integer of 0 or more")


def port(text: str) -> int:
    """The type of an argument that is a port, an integer of 0 to 65535. Raises ArgumentTypeError."""
    return _number(text, int, lambda number: 0 <= number <= 65535, "an integer of 0 to 65535")


def gpus(text: str) -> float:
    """The type of an argument that is a number of GPUs, also a part of one. Raises ArgumentTypeError."""
    return _number(text, float, lambda number: 0 <= number < 1000, "a number of GPUs, 0 or more, such as 0.5")


def seconds(text: str) -> float:
    """The type of an argument that is a positive, finite number of seconds. Raises ArgumentTypeError."""
    return _number(text, float, lambda number: 0 < number < float("inf"), "a positive number of seconds")


def moment(text: str) -> float:
    """The type of an argument that is a time in a recording: seconds, M:SS or H:MM:SS. Raises ArgumentTypeError."""
    expected = "a time in seconds, or as H:MM:SS"
    *larger, last = text.split(":")
    if len(larger) > 2 or not all(part.isascii() and part.isdecimal() for part in larger):
        raise refused(text, expected)
    try:
        found = float(last)
    except ValueError:
        raise refused(text, expected) from None
    if not 0 <= found < (60 if larger else float("inf")):
        raise refused(text, expected)
    if len(larger) == 2 and int(larger[1]) >= 60:
        raise refused(text, expected)
    for factor, part in zip((60, 3600), reversed(larger), strict=False):
        found += factor * int(part)
    return found


def clips(text: str) -> tuple[tuple[float, float | None], ...]:
    """The type of an argument that lists parts of a recording: 60-120,5:00-. Raises ArgumentTypeError."""
    found = []
    for part in text.split(","):
        start, dash, end = part.strip().partition("-")
        if not dash or not (start or end):
            raise refused(part, "a part of a recording, such as 60-120 or 1:05:00-")
        found.append((moment(start) if start else 0.0, moment(end) if end else None))
    return tuple(found)


def megabytes(text: str) -> float:
    """The type of an argument that is a positive, finite number of MiB. Raises ArgumentTypeError."""
    return _number(text, float, lambda number: 0 < number < float("inf"), "a positive number of MiB")


def device(text: str) -> str:
    """The type of an argument that is auto, cpu, cuda or cuda:N. Raises ArgumentTypeError."""
    number = text.removeprefix("cuda:")
    if text not in ("auto", "cpu", "cuda") and (number == text or not (number.isascii() and number.isdecimal())):
        raise refused(text, "auto, cpu, cuda, or cuda:0, cuda:1 and so on")
    return text


def number_or_language(text: str) -> int | str:
    """Of a track."""
    expected = "a number from 1 on or a language, such as eng"
    if text.isdecimal():
        return _number(text, int, lambda number: number >= 1, expected)
    if not (text.isascii() and text.isalpha() and len(text) in (2, 3)):
        raise refused(text, expected)
    return text
