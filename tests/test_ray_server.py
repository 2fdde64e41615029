"""The server behind Ray Serve, with two replicas on this machine, also when one of them is killed. Needs the extras
[ray,web]:  python -m pytest -m ray tests/test_ray_server.py"""

import asyncio
import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.ray
pytest.importorskip("ray.serve", reason="needs the extra [ray]")
pytest.importorskip("uvicorn", reason="needs the extra [web]")

import requests  # noqa: E402  # of Ray
import websockets  # noqa: E402
from helpers import ROOT  # noqa: E402
from helpers.adapters import lora  # noqa: E402

import glmasr  # noqa: E402
from glmasr import audio  # noqa: E402
from glmasr.server import ray_app  # noqa: E402

EXAMPLES = ROOT / "examples"
TEXTS = {
    name: entry["text"] for name, entry in json.loads((EXAMPLES / "texts.json").read_text(encoding="utf-8")).items()
}
ROUTE = "/v1/audio/transcriptions"
SERVE = [sys.executable, "-c", "from ray.serve.scripts import cli; cli()", "run", "glmasr.server.ray_app:app"]
RESTART = 60.0  # seconds in which a replica is replaced
KEY = "a key"


def run(*options, **more):
    return subprocess.Popen(
        [*SERVE, "model=demo", *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more
    )


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Two, by their names."""
    folder = tmp_path_factory.mktemp("adapters")
    return {name: lora(folder / name, strength) for name, strength in (("mild", 0.2), ("wild", 1.0))}


@pytest.fixture(scope="module")
def server(adapters):
    """Its address. Serve listens at port 8000, which has to be free."""
    with socket.socket() as trial:
        if trial.connect_ex(("127.0.0.1", 8000)) == 0:
            pytest.skip("port 8000 is taken")
    temporary = tempfile.mkdtemp()  # TRAP: sockets are made in it, whose names have to be short
    given = ",".join(f"{name}={folder}" for name, folder in adapters.items())
    child = run(
        "replicas=2",
        "max-upload=4",
        "name=whisper-1,other",
        f"adapter={given}",
        env=os.environ | {"TMPDIR": temporary, "GLMASR_API_KEY": KEY},
    )
    ready = threading.Event()

    def read():
        for line in child.stdout:
            said.append(line)
            if "is ready at" in line:
                ready.set()
        ready.set()

    said: list[str] = []
    threading.Thread(target=read, daemon=True).start()
    ready.wait(180)
    try:
        assert child.poll() is None and any("is ready at" in line for line in said), "".join(said)[-2000:]
        yield "http://127.0.0.1:8000"
    finally:
        child.send_signal(signal.SIGINT)
        child.wait(60)
        subprocess.run(["pkill", "-f", "ray::ServeReplica"])
        shutil.rmtree(temporary, ignore_errors=True)


def post(server, name="en.mp3", key=KEY, content=None, **fields):
    return requests.post(
        server + ROUTE,
        data={"model": "demo"} | fields,
        files={"file": (name, (EXAMPLES / name).read_bytes() if content is None else content)},
        headers={"Authorization": f"Bearer {key}"},
        timeout=120,
    )


def replicas():
    found = subprocess.run(["pgrep", "-f", "ray::ServeReplica"], capture_output=True, text=True).stdout.split()
    return [int(number) for number in found]


def children(process):
    found = subprocess.run(["pgrep", "-P", str(process), "-f", "spawn_main"], capture_output=True, text=True).stdout
    return [int(number) for number in found.split()]


def test_the_api_is_the_same(server):
    assert len(replicas()) == 2
    for name, text in TEXTS.items():
        assert post(server, name).json()["text"] == text
    verbose = post(server, response_format="verbose_json", **{"timestamp_granularities[]": "word"}).json()
    assert [word["word"] for word in verbose["words"]] == TEXTS["en.mp3"].split()
    assert post(server, response_format="text").text.strip() == TEXTS["en.mp3"]
    events = [json.loads(line[6:]) for line in post(server, stream="true").text.splitlines() if line]
    assert events[-1]["type"] == "transcript.text.done" and events[-1]["text"] == TEXTS["en.mp3"]


def test_errors_are_the_same(server):
    cases = {
        401: post(server, key="another"),
        413: post(server, content=bytes(5 * 2**20)),
        400: post(server, content=b"no sound"),
        404: post(server, model="another"),
    }
    for status, answer in cases.items():
        assert answer.status_code == status and answer.json()["error"]["message"], answer.text
    assert requests.get(f"{server}/v1/nothing", headers={"Authorization": f"Bearer {KEY}"}).status_code == 404


def test_live(server):
    samples = audio.load(EXAMPLES / "en.mp3").numpy()
    wanted = np.arange(0, len(samples), audio.SAMPLE_RATE / 24_000)
    pcm = (np.interp(wanted, np.arange(len(samples)), samples) * 32_767).astype("<i2").tobytes()

    async def talk():
        address = server.replace("http", "ws") + "/v1/realtime?intent=transcription"
        async with websockets.connect(address, additional_headers={"Authorization": f"Bearer {KEY}"}) as socket:
            for start in range(0, len(pcm), 24_000):
                chunk = base64.b64encode(pcm[start : start + 24_000]).decode()
                await socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": chunk}))
            await socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
            while True:
                event = json.loads(await asyncio.wait_for(socket.recv(), 60))
                if event["type"].endswith("transcription.completed"):
                    return event["transcript"]

    assert asyncio.run(talk()) == TEXTS["en.mp3"]


def test_adapters_by_the_name_of_the_model(server, adapters):
    wanted = {
        name: glmasr.load("demo", adapter=folder).transcribe(EXAMPLES / "zh.wav").text
        for name, folder in ({"": None} | adapters).items()
    }
    assert len(set(wanted.values())) == 3
    names = [f"{base}{suffix}" for suffix in ("", ":mild", ":wild") for base in ("demo", "whisper-1", "other")]
    listed = requests.get(f"{server}/v1/models", headers={"Authorization": f"Bearer {KEY}"}).json()["data"]
    assert sorted(model["id"] for model in listed) == sorted(names)
    for name in 4 * names:  # of both replicas
        assert post(server, "zh.wav", model=name).json()["text"] == wanted[name.partition(":")[2]], name
    assert post(server, model="demo:calm").status_code == 404


def test_what_may_be_repeated_is_a_list():
    given = {"adapter": "a=x,b=y/z", "cors": ["https://a.org", "https://b.org"], "allow-host": "a", "name": "one,two"}
    (args,) = ray_app.app(given)._bound_deployment.init_args
    assert (args.adapter, args.cors, args.allow_host) == ([("a", "x"), ("b", "y/z")], given["cors"], ["a"])
    assert args.name == ["one", "two"]


def test_one_killed_under_load(server):
    """No request is answered wrongly, and none is lost without an error; then there are two again."""
    answers, end = Counter(), time.monotonic() + 15

    def ask(name):
        while time.monotonic() < end:
            answer = post(server, name)
            good = answer.status_code == 200
            answers[answer.status_code, answer.json()["text"] == TEXTS[name] if good else bool(answer.text)] += 1

    threads = [threading.Thread(target=ask, args=(name,)) for name in [*TEXTS] * 3]
    for thread in threads:
        thread.start()
    time.sleep(4)
    victim = replicas()[0]
    worker = children(victim)
    os.kill(victim, signal.SIGKILL)
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a request without an answer"
    assert set(answers) <= {(200, True), (500, True), (503, True)} and answers[200, True] > 20, answers
    assert sum(count for (status, _), count in answers.items() if status != 200) <= len(threads), answers
    deadline = time.monotonic() + RESTART
    while len(replicas()) < 2 or victim in replicas():
        assert time.monotonic() < deadline, "it wasn't replaced"
        time.sleep(0.5)
    assert worker and not any(Path(f"/proc/{number}").exists() for number in worker), "its worker lives on"
    assert all(post(server).json()["text"] == TEXTS["en.mp3"] for _ in range(10))


@pytest.mark.parametrize(
    "option, expected",
    [
        ("beams=2", "unrecognized arguments: --beams=2"),
        ("replicas=0", "'0'"),
        ("port=80", "Serve's"),
        ("adapter=a=x,y", "'y' is not NAME=DIR"),
        ("adapter=a=x,a=y", "--adapter a is given twice"),
    ],
)
def test_a_wrong_option_is_a_line(option, expected):
    child = run(option)
    said, _ = child.communicate(timeout=60)
    assert child.returncode == 2 and expected in said and "Traceback" not in said


def test_a_missing_package_names_the_extra():
    code = "import sys; sys.modules['prometheus_client'] = None; from ray.serve.scripts import cli; cli(sys.argv[1:])"
    child = subprocess.run([sys.executable, "-c", code, *SERVE[3:]], capture_output=True, text=True, timeout=60)
    assert child.returncode == 2 and "the extra [web]" in child.stderr and "Traceback" not in child.stderr
