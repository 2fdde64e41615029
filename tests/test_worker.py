"""The threads of the worker that read recordings: they end when nobody waits any more."""

import threading
import time

import numpy as np
import pytest
import soundfile
from helpers.programs import needs

import glmasr
from glmasr.pipeline import Options
from glmasr.server import messages, worker


class Pipe:
    """What the worker says to the server, and nothing of what the server says."""

    def __init__(self):
        self.said = []

    def send(self, message):
        self.said.append(message)


@pytest.fixture(scope="module")
def recognizer():
    return glmasr.load("demo", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def silence(tmp_path_factory):
    """Two hours at 48 kHz, which take seconds to read."""
    path = tmp_path_factory.mktemp("silence") / "silence.flac"
    with soundfile.SoundFile(path, "w", 48_000, 1) as file:
        for _ in range(120):
            file.write(np.zeros(60 * 48_000, np.int16))
    return path


@pytest.mark.parametrize("through", ["libsndfile", pytest.param("ffmpeg", marks=needs("ffmpeg"))])
def test_a_client_that_leaves_ends_its_reader_in_hours_of_silence(recognizer, silence, monkeypatch, through):
    if through == "ffmpeg":
        monkeypatch.setattr(worker.sound_files, "why_foreign", lambda path: ("a format for ffmpeg", 0))
    threads = threading.active_count()
    one = worker.Worker({"": recognizer}, Pipe())
    reader = worker.ReaderThread(
        one, messages.Recording(1, str(silence), "auto", Options()), Options(max_duration=9 * 3600.0)
    )
    reader.start()
    time.sleep(0.5)
    assert reader.is_alive(), one.pipe.said
    with one.changed:
        reader.cancelled = True
        one.changed.notify_all()
    start = time.monotonic()
    reader.join(20)
    assert not reader.is_alive() and time.monotonic() - start < 0.5 and threading.active_count() == threads
    assert reader.ended is None and not reader.windows
