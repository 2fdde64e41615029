"""The container without Docker: its files agree with the server. And with -m container: the image's commands are run in
a fresh virtual environment, its entry point is started, a real nginx with the shipped configuration is put in front,
and recordings go through both."""

import base64
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path

import pytest

httpx = pytest.importorskip("httpx", reason="needs the extra [test]")
yaml = pytest.importorskip("yaml", reason="needs the extra [test]")
pytest.importorskip("fastapi", reason="needs the extra [web]")

from helpers.programs import needs, program  # noqa: E402
from helpers.server import ROOT, Server  # noqa: E402

from glmasr.server import gate, main, realtime, running  # noqa: E402

EXAMPLES = ROOT / "examples"
TEXTS = {
    name: entry["text"] for name, entry in json.loads((EXAMPLES / "texts.json").read_text(encoding="utf-8")).items()
}
MODEL = "demo"
ROUTE = "/v1/audio/transcriptions"
NGINX = (ROOT / "docker/nginx.conf").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


def stages() -> list[list[tuple[str, str]]]:
    """Of the Dockerfile: the instructions of each stage, as (name, rest)."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE).replace(
        "\\\n", " "
    )
    found = []
    for line in filter(None, text.splitlines()):
        name, rest = line.split(maxsplit=1)
        if name == "FROM":
            found.append([])
        found[-1].append((name, rest.strip()))
    return found


BUILD, IMAGE = stages()
LAST = dict(IMAGE)  # of an instruction that comes several times the last one
ENTRY = json.loads(LAST["ENTRYPOINT"])
CHECK = json.loads(LAST["HEALTHCHECK"].partition("CMD")[2])


def context() -> list[str]:
    """What .dockerignore lets into the build."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return [line[1:] for line in lines if line.startswith("!")]


def directive(name: str) -> str:
    """The value of one that nginx.conf has once."""
    [value] = re.findall(rf"^\s*{name}\s+([^;{{]+);", NGINX, re.MULTILINE)
    return value


def seconds(text: str) -> int:
    return int(text.removesuffix("s")) if text.endswith("s") else 60 * int(text.removesuffix("m"))


# ---- the files ------------------------------------------------------------------------------------------------------------


def test_the_image():
    assert (
        BUILD[0][1] == f"{IMAGE[0][1]} AS build" and "-slim-" in IMAGE[0][1]
    )  # one Python for both: the environment links to it
    assert ("ARG", "TORCH=cpu") in BUILD
    assert LAST["USER"] not in ("root", "0") and f"useradd --create-home --uid 1000 {LAST['USER']}" in str(IMAGE)
    assert IMAGE[-1] == ("ENTRYPOINT", LAST["ENTRYPOINT"]) and ENTRY == ["python", "app.py", "--host", "0.0.0.0"]
    assert f"HF_HOME={LAST['VOLUME']}" in LAST["ENV"].split()
    assert (
        LAST["EXPOSE"] == str(main.arguments([]).port)
        and f"'127.0.0.1', {LAST['EXPOSE']}" in CHECK[-1]
        and "/healthz" in CHECK[-1]
    )
    assert not re.search(r"\b(gcc|build-essential|git|dev)\b", str(IMAGE)) and "pip" not in str(IMAGE)


def test_what_is_installed():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    commands = [rest for name, rest in BUILD if name == "RUN" and " install " in rest]
    assert len(commands) == 2 and all("-c constraints.txt" in command for command in commands)
    assert "--extra-index-url https://download.pytorch.org/whl/${TORCH} torch" in commands[0]
    [extras] = re.findall(r"'\.\[(.+)\]'", commands[1])
    assert set(extras.split(",")) == {"web", "hub"} < set(setup["options.extras_require"])
    modules = [f"{name}.py" for name in setup["options"]["py_modules"].split()] + [
        pattern.rstrip("*") for pattern in setup["options.packages.find"]["include"].split()
    ]
    needed = {
        "setup.cfg",
        "pyproject.toml",
        "constraints.txt",
        setup["metadata"]["license_files"],
        setup["metadata"]["long_description"].split()[1],
        *modules,
    }
    assert set(context()) == {*needed, ENTRY[1]} and all((ROOT / name).exists() for name in context())
    copied = {
        name
        for instruction, rest in BUILD + IMAGE
        if instruction == "COPY" and "--from" not in rest
        for name in rest.split()[:-1]
    }
    assert copied <= {".", *context()} and ENTRY[1] in copied


def test_compose():
    server, nginx = COMPOSE["services"]["glmasr"], COMPOSE["services"]["nginx"]
    assert server["mem_limit"] == "8g" and server["build"]["args"] == {"TORCH": "${TORCH:-cpu}"}
    [volume] = server["volumes"]
    assert volume.split(":")[0] in COMPOSE["volumes"] and volume.split(":")[1] == LAST["VOLUME"]
    assert (
        main.arguments([argument.replace("${GLMASR_MODEL:-", "").rstrip("}") for argument in server["command"]]).model
        == main.arguments([]).model
    )
    assert seconds(server["stop_grace_period"]) > running.GRACE + running.LAST and "ports" not in server
    [mounted], [published] = nginx["volumes"], nginx["ports"]
    assert (ROOT / mounted.split(":")[0]).samefile(ROOT / "docker/nginx.conf")
    assert published == f"${{GLMASR_LISTEN:-127.0.0.1:{LAST['EXPOSE']}}}:{directive('listen')}"
    assert nginx["depends_on"]["glmasr"]["condition"] == "service_healthy"
    assert directive("server") == f"glmasr:{LAST['EXPOSE']}"


def test_nginx_agrees_with_the_server():
    known = main.arguments([])
    assert directive("proxy_buffering") == directive("proxy_request_buffering") == "off"
    # What the server lets in passes, and little more.
    most = known.max_upload * 2**20 * 4 / 3 + gate.SLACK
    assert most <= int(directive("client_max_body_size").removesuffix("m")) * 2**20 < most + 2**20
    assert (
        seconds(directive("proxy_read_timeout")) > known.time_limit
        and seconds(directive("client_body_timeout")) > gate.STALL
    )
    # A WebSocket passes, and is not closed while it may be idle.
    assert re.findall(r"proxy_set_header (Upgrade|Connection) (\S+);", NGINX) == [
        ("Upgrade", "$http_upgrade"),
        ("Connection", "$connection_upgrade"),
    ]
    assert directive("proxy_http_version") == "1.1" and seconds(directive("proxy_read_timeout")) > realtime.IDLE
    error = json.loads(re.search(r"return 413 '(.+)';", NGINX)[1])
    assert set(error["error"]) == {"message", "type", "param", "code"} and error["error"]["code"] == "too_large"


# ---- the whole, run -------------------------------------------------------------------------------------------------------


def container(test):
    return pytest.mark.container(needs("nginx")(test))


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """(a folder that stands for the root of the image, the environment of its processes). Made by the Dockerfile's own
    lines; those that make a user and install programs of Debian are left out."""
    root = tmp_path_factory.mktemp("image")
    # pip and python are those that run this test; in the image they are the base's. TRAP: without this, a user's own
    # packages are seen.
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TORCH": "cpu",
        "PYTHONNOUSERSITE": "1",
    }

    def placed(text):
        return re.sub(r"(?<![\w./])/(venv|src|app|cache)\b", rf"{root}/\1", text)

    def run(command):
        try:
            socket.create_connection(("download.pytorch.org", 443), 5).close()
        except OSError:  # no network, or a mirror in its place: what that has
            command = re.sub(r"--extra-index-url \S+ ", "", command)
        done = subprocess.run(
            ["sh", "-c", placed(command)], cwd=place, env=environment, capture_output=True, text=True, timeout=3600
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    for stage in (BUILD, IMAGE):
        for name, rest in stage:
            if name == "WORKDIR":
                place = Path(placed(rest))
                place.mkdir()
            elif name == "COPY" and "--from" not in rest:
                for source in context() if rest == ". ." else rest.split()[:-1]:
                    if (ROOT / source).is_dir():
                        shutil.copytree(ROOT / source, place / source, ignore=shutil.ignore_patterns("__pycache__"))
                    else:
                        shutil.copy(ROOT / source, place)
            elif name == "COPY":
                assert rest == "--from=build /venv /venv"  # there it is already
            elif name == "RUN" and stage is BUILD:
                run(rest)
            elif name == "ENV":
                environment |= dict(
                    pair.split("=", 1) for pair in placed(rest).replace("$PATH", environment["PATH"]).split()
                )
    shutil.rmtree(root / "src")  # is not in the image
    yield root, environment
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def server(image):
    root, environment = image
    with Server(model=MODEL, command=tuple(ENTRY), folder=root / "app", environment=environment) as running:
        running.url = running.url.replace("0.0.0.0", "127.0.0.1")
        yield running
    assert running.process.returncode == 0 and not list(running.temporary.iterdir())
    assert not any(text in running.log for text in (*TEXTS.values(), "zh.wav", "Traceback")), running.log
    running.temporary.rmdir()


@pytest.fixture(scope="module")
def nginx(server):
    """The address of an nginx with the shipped configuration, of which only the two addresses are replaced."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="glmasr-nginx-"))
    text = NGINX
    for line, replacement in (
        ("    listen 80;\n", f"    listen 127.0.0.1:{port};\n"),
        ("    server glmasr:7860;\n", f"    server {server.url.removeprefix('http://')};\n"),
    ):
        assert text.count(line) == 1
        text = text.replace(line, replacement)
    (folder / "default.conf").write_text(text, encoding="utf-8")
    # What the nginx of the image has around it, with folders of this test's own. The server asks nginx by a header to
    # keep no event back; that is ignored here, so that the configuration has to do it.
    kinds = " ".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user} daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ {kinds} proxy_ignore_headers X-Accel-Buffering; include {folder}/default.conf; }}\n",
        encoding="utf-8",
    )
    command = [program("nginx"), "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]
    done = subprocess.run([*command, "-t"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    process = subprocess.Popen(command)
    try:
        server.until(lambda: answers(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(folder)


def answers(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def post(url, name="zh.wav", content=None, **fields):
    files = {"file": (name, (EXAMPLES / name).read_bytes() if content is None else content)}
    return httpx.post(url + ROUTE, data={"model": MODEL} | fields, files=files, timeout=120)


def talk(times: int) -> bytes:
    """An example several times, as WAV."""
    numpy, soundfile = pytest.importorskip("numpy"), pytest.importorskip("soundfile")
    sound, rate = soundfile.read(EXAMPLES / "zh.wav", dtype="float32")
    buffer = io.BytesIO()
    soundfile.write(buffer, numpy.tile(numpy.append(sound, numpy.zeros(rate, "float32")), times), rate, format="WAV")
    return buffer.getvalue()


@container
def test_what_is_in_the_image(image):
    root, environment = image
    assert [path.name for path in (root / "app").iterdir()] == ["app.py"]
    assert not (root / "venv/bin/pip").exists()
    found = subprocess.run(
        ["python", "-c", "import glmasr, torch; print(glmasr.__file__, torch.__version__)"],
        cwd=root / "app",
        env=environment,
        capture_output=True,
        text=True,
    )
    path, version = found.stdout.split()
    pinned = re.search("^torch==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert Path(path).is_relative_to(root / "venv") and version.partition("+")[0] == pinned


@container
def test_recordings_through_nginx(nginx):
    openai = pytest.importorskip("openai", reason="needs the extra [test]")
    client = openai.OpenAI(base_url=f"{nginx}/v1", api_key="none", max_retries=0)
    for name, text in TEXTS.items():
        assert client.audio.transcriptions.create(file=EXAMPLES / name, model=MODEL).text == text


@container
def test_a_realtime_session_through_nginx(nginx, server):
    openai = pytest.importorskip("openai", reason="needs the extra [test]")
    soundfile, audio = pytest.importorskip("soundfile"), pytest.importorskip("glmasr.audio")
    sound = io.BytesIO()
    soundfile.write(
        sound, audio.resample(audio.load(EXAMPLES / "en.mp3"), 16_000, 24_000).numpy(), 24_000, "PCM_16", format="RAW"
    )
    client = openai.OpenAI(
        base_url=f"{nginx}/v1", websocket_base_url=f"{nginx}/v1".replace("http", "ws", 1), api_key="none"
    )
    with client.realtime.connect(model=MODEL, extra_query={"intent": "transcription"}) as connection:
        connection.session.update(session={"type": "transcription", "audio": {"input": {"turn_detection": None}}})
        connection.input_audio_buffer.append(audio=base64.b64encode(sound.getvalue()).decode())
        connection.input_audio_buffer.commit()
        texts = (event.transcript for event in connection if event.type.endswith(".completed"))
        assert next(texts) == TEXTS["en.mp3"]
    server.until(lambda: httpx.get(f"{server.url}/healthz").json()["running"] == 0, 5)


@container
def test_the_page_through_nginx(nginx):
    gradio_client = pytest.importorskip("gradio_client", reason="needs the extra [test]")
    page = httpx.get(nginx)
    assert page.status_code == 200 and "glmasr" not in page.headers.get("server", "")
    client = gradio_client.Client(nginx, verbose=False)
    assert (
        client.predict(gradio_client.handle_file(EXAMPLES / "en.mp3"), "auto", api_name="/transcribe")
        == TEXTS["en.mp3"]
    )


@container
def test_health(nginx, server, image):
    _, environment = image
    assert httpx.get(f"{nginx}/healthz").json() == {"status": "ok", "waiting": 0, "running": 0}

    def check(port):
        command = [part.replace("7860", str(port)) for part in CHECK]
        return subprocess.run(
            command, env=environment | {"http_proxy": "http://127.0.0.1:1"}, capture_output=True
        ).returncode

    assert check(server.url.rpartition(":")[2]) == 0
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert check(port) != 0


def is_at_work(server) -> bool:
    return httpx.get(f"{server.url}/healthz").json()["running"] == 1


@container
def test_texts_are_not_kept_back(nginx, server):
    """When the first one is here the server still works on the rest. All of them would fit into one of nginx's
    buffers."""
    with httpx.stream(
        "POST",
        nginx + ROUTE,
        data={"model": MODEL, "stream": "true"},
        files={"file": ("talk.wav", talk(25))},
        timeout=120,
    ) as stream:
        lines = filter(None, stream.iter_lines())
        received = [next(lines)]
        assert is_at_work(server)
        received.extend(lines)
    events = [json.loads(line.removeprefix("data: ")) for line in received]
    assert [event["type"] for event in events[-2:]] == ["transcript.text.delta", "transcript.text.done"]
    assert events[-1]["text"].count(TEXTS["zh.wav"]) > 15 and len("\n\n".join(received)) < 4000


@container
def test_messages_of_the_page_are_not_kept_back(nginx, server):
    """The first one comes before the recording is worked on."""
    body = {
        "data": ["data:audio/wav;base64," + base64.b64encode(talk(1)).decode(), "auto"],
        "fn_index": 0,
        "session_hash": "x",
    }
    os.kill(server.worker, signal.SIGSTOP)
    try:
        assert httpx.post(f"{nginx}/gradio_api/queue/join", json=body).status_code == 200
        with httpx.stream("GET", f"{nginx}/gradio_api/queue/data", params={"session_hash": "x"}, timeout=10) as stream:
            messages = (json.loads(line.removeprefix("data: ")) for line in stream.iter_lines() if line)
            assert next(messages)["msg"] == "estimation"
            os.kill(server.worker, signal.SIGCONT)
            assert any(message["msg"] == "process_completed" for message in messages)
    finally:
        os.kill(server.worker, signal.SIGCONT)


@container
def test_who_leaves_frees_the_place(nginx, server):
    with pytest.raises(httpx.TimeoutException):
        httpx.post(nginx + ROUTE, data={"model": MODEL}, files={"file": ("talk.wav", talk(100))}, timeout=1)
    server.until(lambda: not is_at_work(server), 3)


@container
def test_uploads_that_are_too_large(nginx, server):
    # More than the server's limit, less than nginx's: the server answers. More than nginx's: it answers in the server's
    # place.
    of_server = post(nginx, content=bytes(101 * 2**20))
    connection = http.client.HTTPConnection(nginx.removeprefix("http://"), timeout=60)
    connection.putrequest("POST", ROUTE)
    for header in (("Content-Type", "multipart/form-data; boundary=x"), ("Content-Length", str(200 * 2**20))):
        connection.putheader(*header)
    connection.endheaders()
    answer = connection.getresponse()
    of_nginx = json.loads(answer.read())["error"]
    connection.close()
    assert of_server.status_code == answer.status == 413 and answer.headers["Content-Type"] == "application/json"
    assert "100 MiB" in of_server.json()["error"]["message"] and "--max-upload" in of_nginx["message"]
    assert of_server.json()["error"]["code"] == of_nginx["code"] == "too_large"
    assert post(nginx).json()["text"] == TEXTS["zh.wav"]
