"""Archives on a cluster of two nodes: the rows are those of one process, whoever is killed. Needs the extra [ray], and
minutes:  python -m pytest -m ray tests/test_ray_archive.py"""

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

import numpy as np
import pytest
import soundfile
from helpers import ROOT

import glmasr
from glmasr import audio
from glmasr.archive import cluster, work
from glmasr.archive.items import Item
from glmasr.archive.worker import Worker

pytestmark = pytest.mark.ray
ray = pytest.importorskip("ray", reason="needs the extra [ray]")

EXAMPLES = ["en.mp3", "en.ogg", "yue.flac", "zh.wav"]
COPIES = 145  # of each: 580
KILLS = int(os.environ.get("GLMASR_KILLS", "20"))
DIFFERS = ["worker", "took"]  # from run to run
LONG = 280.0  # seconds of one recording, which is divided
os.environ["RAY_AUTH_MODE"] = "disabled"  # of this cluster, which is on loopback


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """600 recordings as a manifest: people's digits, louder, softer, in noise, at other rates; a long one; and such as
    can't be recognized."""
    folder, rng = tmp_path_factory.mktemp("recordings"), np.random.default_rng(3)
    lines = []

    def add(name, samples, rate=audio.SAMPLE_RATE):
        soundfile.write(folder / f"{name}.wav", samples, rate)
        lines.append({"id": name, "path": f"{name}.wav", "duration": round(len(samples) / rate, 3)})

    for example in EXAMPLES:
        samples = audio.load(ROOT / "examples" / example).numpy()
        for number in range(COPIES):
            noise = rng.normal(0, 0.002 * (number % 4), len(samples))
            add(f"{example.replace('.', '-')}-{number}", samples * (1 - number / 200) + noise, 16_000 + number % 3)
    pause = np.zeros(audio.SAMPLE_RATE)
    one = np.concatenate([samples, pause])
    add("long", np.tile(one, round(LONG * audio.SAMPLE_RATE / len(one))))
    (folder / "text.wav").write_text("no sound")
    (folder / "empty.wav").write_bytes(b"")
    (folder / "cut.flac").write_bytes((ROOT / "examples" / "yue.flac").read_bytes()[:3000])
    (folder / "noise.mp3").write_bytes(rng.bytes(20_000))
    (folder / "folder.wav").mkdir()
    broken = ["text.wav", "empty.wav", "cut.flac", "noise.mp3", "folder.wav", "gone.wav"]
    lines += [{"id": f"{name} {number}", "path": name} for name in broken for number in range(3)]
    add("silent", np.zeros(30_000))
    assert len(lines) == 600
    random.Random(1).shuffle(lines)
    (folder / "all.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def made():
    """A cluster of two nodes of a core each."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    found = Cluster(initialize_head=True, head_node_args=node)
    found.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    yield found
    found.shutdown()


@pytest.fixture
def nodes(made):
    """Its address."""
    return made.address


CODE = """
import sys
from glmasr.archive import main
main.SHARD_SECONDS = 3.0  # so that those that are killed leave some
if most := {most}:  # bytes of a file, as on a disk that is full
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
sys.exit(main.main())
"""


def start(*arguments, most=0):
    command = [sys.executable, "-c", CODE.format(most=most), *map(str, arguments)]
    command += ["--model", "demo", "--dtype", "float32", "--batch-seconds", "10", "--split-seconds", "120"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(child):
    said, _ = child.communicate(timeout=600)
    return child.returncode, said


def rows_of(out):
    """id -> row, without what differs; each id once, and in both formats the same."""
    import pyarrow.parquet

    lines = [line for path in sorted(out.glob("rows-*.jsonl")) for line in path.read_text().splitlines()]
    found = [json.loads(line) for line in lines]
    tables = [pyarrow.parquet.read_table(path).to_pylist() for path in sorted(out.glob("rows-*.parquet"))]
    assert [row["id"] for table in tables for row in table] == [row["id"] for row in found]
    assert len({row["id"] for row in found}) == len(found)
    return {row["id"]: {key: value for key, value in row.items() if key not in DIFFERS} for row in found}


def lines_of(rows):
    """For a comparison byte for byte. How often a recording was tried depends on who was killed."""
    return sorted(json.dumps(row | {"attempts": 1}, ensure_ascii=False) for row in rows.values())


@pytest.fixture(scope="module")
def expected(recordings, tmp_path_factory):
    """The rows of one worker on this machine."""
    out = tmp_path_factory.mktemp("one") / "out"
    code, said = finished(start(recordings / "all.jsonl", "--out", out, "--workers", "1"))
    assert code == 1 and "Traceback" not in said, said
    found = rows_of(out)
    assert len(found) == 600 and sum(row["status"] == "failed" for row in found.values()) == 18
    assert found["en-mp3-0"]["text"] == "five five five zero one three six"
    assert len(found["long"]["text"].split()) == 7 * round(LONG / 6) or found["long"]["text"]
    report = json.loads((out / "report.json").read_text())
    assert (
        report["failed"] == 18 and sum(one["count"] for one in report["failures"]) == 18 and report["utilisation"] > 0
    )
    return found


def workers(made):
    """Those of this cluster."""
    raylets = [node.all_processes["raylet"][0].process.pid for node in made.list_all_nodes()]
    command = ["pgrep", "-P", ",".join(map(str, raylets)), "-f", "ray::MapWorker"]
    return [int(number) for number in subprocess.run(command, capture_output=True, text=True).stdout.split()]


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_writes_what_is_recognized(recordings, nodes, tmp_path, number, code):
    out = tmp_path / "out"
    child = start(recordings / "all.jsonl", "--out", out, "--address", nodes)
    deadline = time.monotonic() + 120
    while not list(out.glob("rows-*")):  # TRAP: before, Ray may be in the middle of its start
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.2)
    time.sleep(1)
    child.send_signal(number)
    ended, said = finished(child)
    assert ended == code and said.rstrip().endswith("the same command goes on") and "***" not in said, said
    report = json.loads((out / "report.json").read_text())
    assert report["left"] == 600 - len(rows_of(out)) > 0


def test_nobody_reads_the_report(tmp_path):
    (tmp_path / "none.jsonl").touch()
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", CODE.format(most=0), str(tmp_path / "none.jsonl"), "--model", "demo"]
    child = subprocess.run([*command, "--out", str(tmp_path / "out")], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert child.returncode == 1 and "Traceback" not in child.stderr and "BrokenPipe" not in child.stderr


def test_two_nodes_make_the_same_rows(recordings, expected, nodes, tmp_path):
    code, said = finished(
        start(recordings / "all.jsonl", "--out", tmp_path / "out", "--address", nodes, "--workers", "2")
    )
    assert code == 1 and "workers: 2, cores of each: 1" in said, said
    assert lines_of(rows_of(tmp_path / "out")) == lines_of(expected)
    lines = [line for path in (tmp_path / "out").glob("*.jsonl") for line in path.read_text().splitlines()]
    assert len({worker for line in lines for worker in json.loads(line)["worker"].split()}) == 2, "one did all"


def test_whoever_is_killed_each_row_is_there_once_and_the_same(recordings, expected, made, tmp_path):
    rng, killed, code = random.Random(5), [], None
    while code is None:
        child = start(recordings / "all.jsonl", "--out", tmp_path / "out", "--address", made.address, "--workers", "2")
        drain = threading.Thread(target=child.stdout.read)
        drain.start()
        while child.poll() is None:
            time.sleep(rng.uniform(0.5, 4))
            if len(killed) < KILLS and (found := workers(made)):
                if rng.random() < 0.8:
                    os.kill(rng.choice(found), signal.SIGKILL)
                    killed.append("worker")
                else:
                    child.kill()
                    killed.append("driver")
        drain.join()
        code = child.returncode if child.returncode >= 0 else None
    print(killed)
    assert code == 1 and len(killed) > KILLS // 2
    assert lines_of(rows_of(tmp_path / "out")) == lines_of(expected)


def test_a_node_that_goes(recordings, expected, made, tmp_path):
    """As machines do that are cheap because they may be taken away: what it had is recognized by the other one."""
    gone = made.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    child = start(recordings / "all.jsonl", "--out", tmp_path / "out", "--address", made.address, "--workers", "3")
    drain = threading.Thread(target=child.stdout.read)
    drain.start()
    while not list((tmp_path / "out").glob("rows-*.parquet")):
        assert child.poll() is None
        time.sleep(0.2)
    made.remove_node(gone, allow_graceful=False)
    drain.join(400)
    assert child.wait(10) == 1 and lines_of(rows_of(tmp_path / "out")) == lines_of(expected)


def test_a_full_disk(recordings, expected, nodes, tmp_path):
    """The run ends, and says why; what is there is whole, and the next run makes the rest."""
    arguments = [recordings / "all.jsonl", "--out", tmp_path / "out", "--address", nodes, "--workers", "2"]
    code, said = finished(start(*arguments, most=40_000))
    assert code == 1 and "error: " in said and "Traceback" not in said, said
    rows_of(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tmp")), "a file that isn't whole"
    code, said = finished(start(*arguments))
    assert code == 1 and lines_of(rows_of(tmp_path / "out")) == lines_of(expected)


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
