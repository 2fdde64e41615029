"""How much memory a piece of work takes, in a process of its own."""

import os
import subprocess
import sys

import pytest

from . import ROOT

needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
PEAK = """
import sys
def peak():
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))
"""


def measured(code: str, *arguments) -> list[list[float]]:
    """Runs Python code, in which `peak()` is the most bytes of memory so far -> the numbers in each line that it
    prints.

    TRAP: not `ru_maxrss`. It begins with what the process that started this one had, which may be more than is ever
    reached here.
    """
    done = subprocess.run(
        [sys.executable, "-c", PEAK + code, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [[float(number) for number in line.split()] for line in done.stdout.splitlines()]
