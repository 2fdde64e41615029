"""`python app.py` as a process of its own, for load.py and for the tests."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Server:
    """The server on a free port.

    temporary          the folder in which it makes its private one
    prefix             a command that runs it
    command, folder    what is run, and where
    environment        beside this process's own
    """

    def __init__(
        self,
        *arguments: str,
        model: str = "demo-article",
        prefix: tuple[str, ...] = (),
        temporary: Path | None = None,
        command: tuple[str, ...] = (sys.executable, "app.py"),
        folder: Path = ROOT,
        environment: dict[str, str] = {},
    ):
        self.temporary = Path(temporary or tempfile.mkdtemp(prefix="glmasr-test-"))
        self.lines: list[str] = []
        environment = (
            os.environ | {"TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment
        )
        self.process = subprocess.Popen(
            [*prefix, *command, "--model", model, "--port", "0", *arguments],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        threading.Thread(target=lambda: self.lines.extend(self.process.stdout), daemon=True).start()
        try:
            self.until(lambda: "Uvicorn running" in self.log or self.process.poll() is not None)
        except AssertionError:
            self.process.kill()
            raise
        found = re.search(r"Uvicorn running on (http://[\d.]+:\d+)", self.log)
        assert found, self.log
        self.url = found[1]

    @property
    def log(self) -> str:
        return "".join(list(self.lines))

    @staticmethod
    def until(condition, seconds: float = 120.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it didn't happen"
            time.sleep(0.02)

    def children(self) -> list[int]:
        return [
            int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ]

    @property
    def worker(self) -> int:
        """The process with the model. (multiprocessing has one more, which tracks resources.)"""
        return next(pid for pid in self.children() if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes())

    def memory(self) -> int:
        """Bytes of resident memory of the server and its worker."""
        return sum(
            int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) * 1024
            for pid in (self.process.pid, self.worker)
        )

    def uploads(self) -> list[Path]:
        """Files that it keeps for its clients."""
        # Not rglob, which stumbles over a folder that goes just now.
        return [
            Path(place, name)
            for folder in self.temporary.glob("glmasr-server-*")
            for place, _, names in os.walk(folder)
            for name in names
            if name != "lock"
        ]

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(60)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.process.poll() is None:
            self.stop()
