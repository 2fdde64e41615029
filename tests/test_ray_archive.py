"""Archives on Ray: the rows are those of one process, whoever is killed. Minutes, and only with the extra [ray], so not
in the default environment:  python -m pytest tests/test_archive_ray.py"""

import http.server
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import soundfile
from helpers import ROOT

import glmasr
from glmasr import audio
from glmasr.archive import cluster, work
from glmasr.archive.items import Item
from glmasr.archive.worker import Worker

ray = pytest.importorskip("ray")

EXAMPLES = ["en.mp3", "en.ogg", "yue.flac", "zh.wav"]
COPIES = 10  # of each
KILLS = int(os.environ.get("GLMASR_KILLS", "6"))
COUNT = "worker took"  # what may differ from run to run


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Forty recordings, a text, an empty file, and one that isn't there, as a manifest."""
    folder = tmp_path_factory.mktemp("recordings")
    lines = []
    for name in EXAMPLES:
        samples = audio.load(ROOT / "examples" / name).numpy()
        for number in range(COPIES):
            path = folder / f"{name.replace('.', '-')}-{number}.wav"
            soundfile.write(path, samples * (1 - number / 20), audio.SAMPLE_RATE)
            lines.append({"id": path.stem, "path": path.name, "duration": len(samples) / audio.SAMPLE_RATE})
    (folder / "text.wav").write_text("no sound")
    (folder / "empty.wav").write_bytes(b"")
    lines += [{"id": name, "path": f"{name}.wav"} for name in ("text", "empty", "gone")]
    (folder / "all.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def start(*arguments, **more):
    command = [sys.executable, "-c", "from glmasr.cli import archive; raise SystemExit(archive())"]
    command += [*map(str, arguments), "--model", "demo", "--batch-seconds", "10"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)


def finished(child):
    said, _ = child.communicate(timeout=400)
    return child.returncode, said


def rows_of(out):
    """id -> row, without what differs; each id once."""
    found = [json.loads(line) for path in sorted(out.glob("rows-*.jsonl")) for line in path.read_text().splitlines()]
    assert len({row["id"] for row in found}) == len(found)
    return {row["id"]: {key: value for key, value in row.items() if key not in COUNT.split()} for row in found}


@pytest.fixture(scope="module")
def expected(recordings, tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "out"
    code, said = finished(start(recordings / "all.jsonl", "--out", out, "--workers", "1"))
    assert code == 1 and "Traceback" not in said, said
    found = rows_of(out)
    assert sum(row["status"] == "done" for row in found.values()) == 4 * COPIES and len(found) == 4 * COPIES + 3
    assert found["en-mp3-0"]["text"] == "five five five zero one three six"
    report = json.loads((out / "report.json").read_text())
    assert report["failed"] == 3 and sum(one["count"] for one in report["failures"]) == 3 and report["utilisation"] > 0
    return found


def children(name):
    found = subprocess.run(["pgrep", "-f", name], capture_output=True, text=True).stdout.split()
    return [int(number) for number in found]


def test_whoever_is_killed_each_row_is_there_once_and_the_same(recordings, expected, tmp_path):
    rng, killed, code = random.Random(5), [], None
    while code is None:
        child = start(recordings / "all.jsonl", "--out", tmp_path / "out", "--workers", "2")
        drain = threading.Thread(target=child.stdout.read)
        drain.start()
        while child.poll() is None:
            time.sleep(rng.uniform(1, 3))
            workers = children("ray::MapWorker")
            if len(killed) < KILLS and workers:
                if rng.random() < 0.7:
                    os.kill(rng.choice(workers), signal.SIGKILL)
                    killed.append("worker")
                else:
                    child.kill()
                    killed.append("driver")
        drain.join()
        code = child.returncode if child.returncode >= 0 else None
    found = rows_of(tmp_path / "out")
    assert code == 1 and set(found) == set(expected) and killed
    for name, row in found.items():
        assert row | {"attempts": 1} == expected[name] | {"attempts": 1}


def test_a_file_that_has_changed_and_one_that_failed_are_recognized_again(recordings, expected, tmp_path):
    some = tmp_path / "some"
    some.mkdir()
    for name in ("en-mp3-0.wav", "zh-wav-0.wav"):
        (some / name).write_bytes((recordings / name).read_bytes())
    (some / "text.wav").write_text("no sound")
    assert finished(start(some, "--out", tmp_path / "out"))[0] == 1
    before = rows_of(tmp_path / "out")
    (some / "zh-wav-0.wav").write_bytes((recordings / "yue-flac-0.wav").read_bytes())
    (some / "text.wav").write_bytes((recordings / "en-ogg-0.wav").read_bytes())
    code, said = finished(start(some, "--out", tmp_path / "out"))
    after = rows_of(tmp_path / "out")
    assert code == 0 and "2 recordings; 1 rows are there already" in said
    names = {Path(name).name: name for name in after}
    assert after[names["en-mp3-0.wav"]] == before[names["en-mp3-0.wav"]] and len(after) == 3
    assert after[names["zh-wav-0.wav"]]["text"] == expected["yue-flac-0"]["text"]
    assert after[names["text.wav"]]["status"] == "done"
    assert finished(start(some, "--out", tmp_path / "out"))[0] == 0
    code, said = finished(start(some, "--out", tmp_path / "out", "--beams", "3"))
    assert code == 2 and "differs in beams" in said


class Files(http.server.SimpleHTTPRequestHandler):
    """Of a folder; one file never comes, one only when it is asked for the second time."""

    asked: list[str] = []

    def do_GET(self):
        self.asked.append(self.path)
        if "silent" in self.path:
            time.sleep(30)
        elif "second" in self.path and self.asked.count(self.path) == 1:
            self.send_error(503)
        else:
            super().do_GET()

    def log_message(self, *message):
        pass


def test_recordings_at_addresses(recordings, expected, tmp_path):
    pytest.importorskip("aiohttp")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *more: Files(*more, directory=str(recordings)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    names = ["en-mp3-0.wav", "silent.wav", "missing.wav"]
    lines = [json.dumps({"id": name, "path": f"{address}/{name}"}) for name in names]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    code, said = finished(start(tmp_path / "m.jsonl", "--out", tmp_path / "out", "--timeout", "2", "--retries", "1"))
    server.shutdown()
    found = rows_of(tmp_path / "out")
    assert code == 1 and found["en-mp3-0.wav"]["text"] == expected["en-mp3-0"]["text"], said
    assert "nothing came for 2 s" in found["silent.wav"]["error"] and found["silent.wav"]["attempts"] == 2
    assert found["missing.wav"]["status"] == "failed" and f"{address}/missing.wav" in found["missing.wav"]["error"]


class Deadly(Worker):
    """One recording kills whoever recognizes it."""

    def __call__(self, batch):
        if any(piece.item.id == "deadly" for piece in batch):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)


def deadly():
    return Deadly(glmasr.load("demo", device="cpu"), "run", "auto", glmasr.Options(), 0, 5.0)


def test_a_recording_that_kills_its_worker_is_found_and_named():
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    path = str(ROOT / "examples" / "en.mp3")
    some = work.pieces([Item(name, path) for name in ("a", "b", "deadly", "c", "d")], 1800.0)
    ours = cluster.Cluster("local", 1, None, 1)
    try:
        found = {row["id"]: row for row in ours.rows(some, deadly, 9.0, 1, "run")}
    finally:
        ours.close()
    assert len(found) == 5 and {name for name, row in found.items() if row["status"] == "failed"} == {"deadly"}
    assert "died, 3 times" in found["deadly"]["error"]
