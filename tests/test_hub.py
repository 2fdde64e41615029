"""Finding and fetching a checkpoint, against a stand-in for the hub on loopback: it answers as the hub does, small
files by itself and large ones from another host, and breaks off, spoils or refuses as a test tells it."""

import errno
import hashlib
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest
import soundfile
from helpers import ROOT
from helpers.checkpoints import make_checkpoint, make_encoder_decoder
from helpers.model_bin import convert
from helpers.sounds import RATE, melody
from safetensors.torch import load_file, save_file

import glmasr
import transcribe
from glmasr.checkpoint import download, hub, hub_cache, huggingface
from glmasr.errors import CheckpointError, OptionError
from glmasr.tools import fetch

# TRAP: it reads the environment once, when it is imported. That has to be now, while conftest.py forbids the network.
huggingface_hub = pytest.importorskip("huggingface_hub", exc_type=ImportError)
constants, close_session = pytest.importorskip("huggingface_hub.constants"), huggingface_hub.close_session

NAME = "zai-org/GLM-ASR-Nano-2512"
PIN = "61ba4e0b3309b6656edea3e93e419f7bd5c61957"
OTHER = "91967eab799804ab256a3819a085b92378906eb2"
FILES = {"config.json", "generation_config.json", "processor_config.json", "tokenizer.json", "model.safetensors"}
BYSTANDERS = {
    "README.md": b"a model",
    ".gitattributes": b"*.safetensors",
    "inference.py": b"raise SystemExit",
    "model.fp32.safetensors": b"large",
    "pytorch_model.bin": b"a pickle",
    "tokenizer.model": b"unused",
    "onnx/model.onnx": b"large",
}


class StandIn(ThreadingHTTPServer):
    """A hub of one host name, 127.0.0.1, and its storage for large files under another, localhost."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.models: dict[str, dict[str, dict[str, bytes]]] = {}  # name -> commit -> file -> content
        self.branches: dict[str, str] = {}  # branch -> commit, of all models
        self.asked: list[SimpleNamespace] = []  # method, path, range, token
        self.cuts: list[int] = []  # of the next answers with a large file, the bytes after which the connection breaks
        self.stall: threading.Event | None = None  # a cut waits for it
        self.spoiled: set[str] = set()  # files that arrive with another byte
        self.ranges = True  # understands "Range"
        self.errors: dict[str, tuple] = {}  # part of a path -> status and headers of the answer
        self.change = lambda info: info  # what the description of a model becomes
        self.etags: dict[str, str] = {}
        self.location: str | None = None  # where large files are, instead
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fetched(self, file=".safetensors") -> list[str | None]:
        """The ranges of the answers with the content of a large file, in their order."""
        return [
            one.range
            for one in self.asked
            if one.method == "GET" and one.path.startswith("/storage/") and one.path.endswith(file)
        ]

    def handle_error(self, request, address):
        pass  # a client that went away


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        server, path = self.server, unquote(urlsplit(self.path).path)
        if path == "/api/agent-harnesses":  # once a day, whatever is fetched
            return self.answer(404)
        server.asked.append(
            SimpleNamespace(
                method=self.command,
                path=path,
                range=self.headers.get("Range"),
                token=self.headers.get("Authorization"),
                host=self.headers["Host"].partition(":")[0],
            )
        )
        for part, (status, headers) in server.errors.items():
            if part in path:
                return self.answer(status, headers)
        if found := re.fullmatch(r"/storage/([^/]+/[^/]+)/(\w+)/(.*)", path):
            return self.content(found[3], server.models[found[1]][found[2]][found[3]])
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path) or re.fullmatch(
            r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path
        )
        if not found:
            return self.answer(400)
        if found[1] not in server.models:
            return self.answer(404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        commits = server.models[found[1]]
        commit = server.branches.get(found[2]) or (found[2] if found[2] in commits else None)
        if commit is None:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        files = commits[commit]
        if path.startswith("/api/"):
            info = server.change(
                {
                    "id": found[1],
                    "modelId": found[1],
                    "sha": commit,
                    "siblings": [{"rfilename": name} for name in files],
                    "tags": [],
                }
            )
            return self.answer(200, {"Content-Type": "application/json"}, json.dumps(info).encode())
        if found[3] not in files:
            return self.answer(
                404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", "X-Repo-Commit": commit}
            )
        name, content = found[3], files[found[3]]
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        if name.endswith((".safetensors", "tokenizer.json", "model.bin")):  # "in LFS": elsewhere, under its SHA-256
            etag = server.etags.get(name, hashlib.sha256(content).hexdigest())
            location = (
                server.location
                or f"http://localhost:{server.server_port}/storage/{found[1]}/{commit}/{name}?signature=1"
            )
            return self.answer(
                302,
                {
                    "Location": location,
                    "X-Linked-Etag": f'"{etag}"',
                    "X-Linked-Size": len(content),
                    "ETag": f'"{git}"',
                    "X-Repo-Commit": commit,
                },
            )
        self.content(name, content, {"ETag": f'"{server.etags.get(name, git)}"', "X-Repo-Commit": commit})

    def content(self, name, content, headers={}):
        server, start, status = self.server, 0, 200
        if name in server.spoiled:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if server.ranges and self.headers.get("Range"):
            start, status = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1]), 206
            headers = {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        cut = server.cuts.pop(0) if server.cuts and name.endswith(".safetensors") and self.command == "GET" else None
        self.answer(status, {**headers, "Accept-Ranges": "bytes"}, content[start:], cut)

    def answer(self, status, headers={}, content=b"", cut=None):
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(content if cut is None else content[:cut])
        self.wfile.flush()
        if cut is not None:
            if self.server.stall:
                self.server.stall.wait(5)
            self.close_connection = True


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("made") / "model")


@pytest.fixture(scope="module")
def content(checkpoint):
    return {path.name: path.read_bytes() for path in checkpoint.iterdir()}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache; the rest of the environment says nothing."""
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGINGFACE_")) or name == "XDG_CACHE_HOME" or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home" / "hub"


@pytest.fixture
def server(cache, content, monkeypatch):
    """A hub with the tiny checkpoint under the published name and commit; `huggingface_hub` of this process asks it."""
    server = StandIn()
    server.models[NAME] = {PIN: content | BYSTANDERS, OTHER: content | {"README.md": b"before"}}
    server.branches["main"] = PIN
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_TOKEN_PATH": str(cache / "token"),
        "AGENT_HARNESSES_PATH": str(cache.parent / "agents"),
    }.items():
        monkeypatch.setattr(constants, name, value, raising=False)
    monkeypatch.setattr(download, "PAUSE", 0)
    close_session()
    yield server
    if server.stall:
        server.stall.set()
    server.shutdown()
    server.server_close()
    close_session()


def refused(*words, name=NAME, error=CheckpointError, **options):
    """`find` fails with one line that has all the words; what is in the cache then is not taken for a checkpoint."""
    with pytest.raises(error) as caught:
        hub.find(name, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000 and all(word in message for word in words), message
    return message


def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def without_the_extra(monkeypatch):
    for name in ("huggingface_hub", "huggingface_hub.utils", "huggingface_hub.errors"):
        monkeypatch.setitem(sys.modules, name, None)


def files_of(directory):
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir()}


# ---- whole ----------------------------------------------------------------------------------------------------------------


def test_a_whole_fetch_and_then_no_network(server, cache, content, capsys):
    found = hub.find(NAME)
    assert found == cache / "models--zai-org--GLM-ASR-Nano-2512" / "snapshots" / PIN
    assert files_of(found) == FILES and all((found / name).read_bytes() == content[name] for name in FILES)
    assert "model.safetensors" in capsys.readouterr().err  # the bar
    assert (
        glmasr.load(found, device="cpu", dtype="float32")
        .transcribe(melody(0.5), sample_rate=RATE, max_new_tokens=4)
        .text
    )
    asked = {one.path.rpartition("/")[2] for one in server.asked if one.method == "GET" and "/api/" not in one.path}
    assert asked == FILES and all(PIN in one.path for one in server.asked)
    server.asked.clear()
    server.shutdown()
    assert hub.find(NAME) == hub.find("glm-asr-nano-2512") == hub.find("GLM-ASR-Nano-2512", PIN) == found
    assert not server.asked


def test_the_cache_is_one_that_huggingface_hub_knows(server, cache, monkeypatch):
    from huggingface_hub import hf_hub_download, scan_cache_dir, try_to_load_from_cache

    found = hub.find(NAME, "main", progress=False)
    (repository,) = scan_cache_dir(cache).repos
    (revision,) = repository.revisions
    assert (repository.repo_id, revision.commit_hash, set(revision.refs)) == (NAME, PIN, {"main"})
    assert {file.file_name for file in revision.files} == FILES
    server.asked.clear()
    assert (
        Path(hf_hub_download(NAME, "model.safetensors", revision=PIN, cache_dir=cache)) == found / "model.safetensors"
    )
    assert (
        try_to_load_from_cache(NAME, "preprocessor_config.json", cache, PIN) is not None and not server.asked
    )  # known not to be there


def test_what_huggingface_hub_fetched_is_found(server, cache, monkeypatch):
    from huggingface_hub import hf_hub_download

    for name in FILES:
        hf_hub_download(NAME, name, revision=PIN, cache_dir=cache)
    server.shutdown()
    without_the_extra(monkeypatch)
    assert hub.find(NAME).name == PIN


@pytest.mark.slow
def test_the_command_line_fetches_once(server, cache, tmp_path):
    soundfile.write(tmp_path / "0.wav", melody(0.5), RATE)
    command = [
        sys.executable,
        str(ROOT / "transcribe.py"),
        str(tmp_path / "0.wav"),
        "--lang",
        "zh",
        "--device",
        "cpu",
        "--max-new-tokens",
        "4",
    ]
    environment = {**os.environ, "HF_ENDPOINT": server.url, "OMP_NUM_THREADS": "1"}
    first = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert first.returncode == 0 and first.stdout.strip() and "model.safetensors: 100%" in first.stderr, first.stderr
    server.asked.clear()
    again = subprocess.run(
        command, capture_output=True, text=True, env={**environment, "HF_HUB_OFFLINE": "1"}, timeout=120
    )
    assert (
        (again.returncode, again.stdout) == (0, first.stdout)
        and "model.safetensors" not in again.stderr
        and not server.asked
    )


def test_the_command_that_fetches_ahead(server, cache, capsys, monkeypatch):
    assert fetch.main(["--quiet"]) == 0
    out, err = capsys.readouterr()
    assert Path(out.rstrip("\n")) == hub.find(NAME) and err == ""
    assert fetch.main(["demo"]) == 0 and Path(capsys.readouterr().out.strip()) == hub.BUILT_IN["demo"]
    assert fetch.main(["nobody/nothing"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and err.startswith("error: ")
    with pytest.raises(SystemExit) as leave:
        fetch.main(["--nothing"])
    assert leave.value.code == 2
    monkeypatch.setattr(hub, "find", lambda *args, **more: (_ for _ in ()).throw(KeyboardInterrupt))
    assert fetch.main([]) == 130


def test_shards(server, cache, content, checkpoint, tmp_path):
    tensors = load_file(checkpoint / "model.safetensors")
    names, index = sorted(tensors), {}
    files = {name: data for name, data in content.items() if name != "model.safetensors"}
    for n, part in enumerate((names[:7], names[7:]), 1):
        file = f"model-{n:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, tmp_path / file)
        files[file] = (tmp_path / file).read_bytes()
        index |= dict.fromkeys(part, file)
    server.models["somebody/large"] = {
        PIN: files | {"model.safetensors.index.json": json.dumps({"weight_map": index}).encode()}
    }
    server.cuts = [100, 100, 10, 0, 0, 0, 0]  # gives up at the second shard
    found = hub.local("somebody/large", "main")
    given_up = 0
    for _ in range(6):
        try:
            download.fetch(found, progress=False)
            break
        except CheckpointError:
            given_up += 1
            with pytest.raises(CheckpointError, match="model-0000[12]-of-00002.safetensors.*not complete"):
                hub_cache.check_whole(hub.local("somebody/large", PIN))
    assert given_up == 1
    assert files_of(hub.find("somebody/large")) == set(files) | {"model.safetensors.index.json"}
    assert glmasr.load("somebody/large", device="cpu")


def test_two_at_a_time_fetch_once(server, cache):
    found = []
    threads = [threading.Thread(target=lambda: found.append(hub.find(NAME, progress=False))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and len(set(found)) == 1 and server.fetched() == [None]


# ---- revisions ------------------------------------------------------------------------------------------------------------


def test_a_branch_stays_where_it_was_until_it_is_asked_for(server, cache):
    assert hub.find(NAME, "main", progress=False).name == PIN
    server.branches["main"] = OTHER
    server.asked.clear()
    assert hub.find(NAME, "main").name == PIN and not server.asked
    assert hub.find(NAME, "main", progress=False, renew=True).name == OTHER
    assert hub.find(NAME, "main").name == OTHER and hub.find(NAME).name == PIN
    assert server.fetched() == []  # the same weights: not a second time
    assert fetch.main([NAME, "--revision", "main", "--quiet"]) == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("kind", ["a pipe", "a link to /dev/zero", "a file of 1 GB"])
def test_a_cache_with_something_else_in_the_place_of_small_files(server, cache, content, kind):
    """TRAP: to open a pipe, or to read a device, has no end."""
    folder, checksum = (
        cache / "models--zai-org--GLM-ASR-Nano-2512",
        hashlib.sha256(content["model.safetensors"]).hexdigest(),
    )
    for path in (folder / "refs" / "main", folder / "blobs" / f"{checksum}.incomplete"):
        path.parent.mkdir(parents=True)
        if kind == "a pipe":
            os.mkfifo(path)
        elif kind == "a link to /dev/zero":
            path.symlink_to("/dev/zero")
        elif path.name == "main":
            path.touch()
            os.truncate(path, 2**30)
    with pytest.raises(CheckpointError, match="not in the cache"):
        hub_cache.check_whole(hub.local(NAME, "main"))
    assert hub.find(NAME, "main", progress=False).name == PIN
    assert (folder / "refs" / "main").read_text() == PIN and not (folder / "refs" / "main").is_symlink()
    assert hub_cache.check_whole(hub.local(NAME, "main"))


def test_another_commit(server, cache):
    refused("no revision '91967ea'", "40 digits", revision=OTHER[:7])  # the hub knows whole ones only
    assert hub.find(NAME, OTHER, progress=False).name == OTHER
    server.shutdown()
    assert hub.find(NAME, OTHER).name == OTHER


def test_another_model_is_taken_from_main(server, cache, content):
    server.models["somebody/else"] = {OTHER: content}
    server.branches["main"] = OTHER
    assert hub.find("somebody/else", progress=False).name == OTHER


def test_an_unknown_revision(server, cache, capsys):
    refused("no revision 'v9'", "--revision", revision="v9")
    assert transcribe.main(["0.wav", "--revision", "v9"]) == 1 and "no revision 'v9'" in capsys.readouterr().err


@pytest.mark.parametrize("revision", ["", "../../x", "a b", "a\nb", "-x", "/x", "x" * 300, 3])
def test_what_is_no_revision(server, cache, revision):
    refused("expected a commit", revision=revision, error=OptionError)
    assert not server.asked


def test_a_directory_has_no_revisions(cache, checkpoint):
    refused("directory of this machine", name=checkpoint, revision="main", error=OptionError)
    refused("directory of this machine", name="demo", revision="main", error=OptionError)


# ---- broken off -----------------------------------------------------------------------------------------------------------


def test_a_cut_connection_is_taken_up_again(server, cache, content):
    server.cuts = [1000, 0, 5, 0, 0]
    found = hub.find(NAME, progress=False)
    assert (found / "model.safetensors").read_bytes() == content["model.safetensors"]
    assert server.fetched() == [None, "bytes=1000-", "bytes=1000-", "bytes=1005-", "bytes=1005-", "bytes=1005-"]


def test_a_transfer_that_was_given_up_goes_on_the_next_time(server, cache, content):
    server.cuts = [1000] + [0] * download.TRIES
    message = refused("1,000 of", "run it again", progress=False)
    assert f"{len(content['model.safetensors']):,} bytes" in message
    with pytest.raises(CheckpointError):
        hub_cache.check_whole(hub.local(NAME, PIN))
    server.asked.clear()
    server.cuts = []
    assert (hub.find(NAME, progress=False) / "model.safetensors").read_bytes() == content["model.safetensors"]
    assert server.fetched() == ["bytes=1000-"] and not list(cache.rglob("*.incomplete"))


@pytest.mark.slow
def test_a_process_that_was_killed_leaves_nothing_that_is_used(server, cache):
    server.cuts, server.stall = [1000], threading.Event()
    program = f"from glmasr.checkpoint import hub; hub.find({NAME!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "HF_ENDPOINT": server.url},
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not any(path.stat().st_size == 1000 for path in cache.rglob("*.incomplete")):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    server.stall.set()
    with pytest.raises(CheckpointError, match="model.safetensors"):
        hub_cache.check_whole(hub.local(NAME, PIN))
    assert hub.find(NAME, progress=False) and server.fetched() == [None, "bytes=1000-"]


def test_a_server_that_starts_from_the_beginning(server, cache, content):
    server.cuts, server.ranges = [1000], False
    assert (hub.find(NAME, progress=False) / "model.safetensors").read_bytes() == content["model.safetensors"]
    assert server.fetched() == [None, "bytes=1000-"]


def test_storage_that_is_busy_for_a_while(server, cache, monkeypatch):
    server.errors["/storage/"] = (503, {})
    monkeypatch.setattr(download.time, "sleep", lambda seconds: server.errors.clear())
    assert hub.find(NAME, progress=False)
    hub.find(NAME)


def test_storage_that_stays_busy(server, cache):
    server.errors["/storage/"] = (503, {})
    refused("tokenizer.json", "503", "run it again")


def test_a_link_that_leads_nowhere_and_a_file_that_was_cut(server, cache, content):
    found = hub.find(NAME, progress=False)
    blob = (found / "model.safetensors").resolve()
    for damage in (
        lambda: blob.unlink(),
        lambda: blob.write_bytes(blob.read_bytes()[:-8]),
        lambda: (found / "config.json").unlink(),
    ):
        damage()
        with pytest.raises(CheckpointError):
            hub_cache.check_whole(hub.local(NAME, PIN))
        assert all((hub.find(NAME, progress=False) / name).read_bytes() == content[name] for name in FILES)


def test_where_links_can_not_be_made(server, cache, content, monkeypatch):
    monkeypatch.setattr(Path, "symlink_to", lambda *args: (_ for _ in ()).throw(OSError(1, "no")))
    found = hub.find(NAME, progress=False)
    assert all((found / name).read_bytes() == content[name] and not (found / name).is_symlink() for name in FILES)
    (found / "config.json").unlink()
    monkeypatch.setattr(
        download.shutil, "disk_usage", lambda path: SimpleNamespace(free=0)
    )  # nothing large is fetched twice
    assert hub.find(NAME, progress=False) == found and server.fetched() == [None]


# ---- spoiled --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted(FILES))
def test_a_wrong_checksum(server, cache, content, file):
    server.spoiled = {file}
    refused(file, "checksum", "thrown away", progress=False)
    assert not [path for path in cache.rglob("*") if path.is_file() and path.name == file] and not list(
        cache.rglob("*.incomplete")
    )
    with pytest.raises(CheckpointError):
        hub_cache.check_whole(hub.local(NAME, PIN))
    server.spoiled = set()
    assert (hub.find(NAME, progress=False) / file).read_bytes() == content[file]


def test_a_wrong_beginning_from_before(server, cache):
    server.cuts = [1000] + [0] * download.TRIES
    refused("1,000 of")
    (part,) = cache.rglob("*.incomplete")
    part.write_bytes(bytes(2000))
    refused("checksum")
    assert hub.find(NAME) and server.fetched()[-2:] == ["bytes=2000-", None]


# ---- refused --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "status, headers, words",
    [
        (404, {"X-Error-Code": "RepoNotFound"}, ("no such model", "no such directory here", "HF_TOKEN")),
        (401, {}, ("no such model", "status 401", "HF_TOKEN")),
        (
            401,
            {"X-Error-Message": "Invalid credentials in Authorization header"},
            ("status 401", "HF_TOKEN to a valid token"),
        ),
        (403, {"X-Error-Code": "GatedRepo"}, ("accept its terms", "HF_TOKEN")),
        (403, {}, ("status 403", "no right")),
        (404, {}, ("status 404", "no such model")),
        (429, {}, ("status 429", "later")),
        (500, {}, ("status 500", "HF_ENDPOINT")),
    ],
)
@pytest.mark.parametrize("where", ["/api/", "/resolve/"])
def test_answers_that_are_errors(server, cache, status, headers, words, where):
    server.errors[where] = (status, headers)
    refused(*words)


def test_a_file_that_is_listed_and_not_there(server, cache):
    server.errors["generation_config.json"] = (404, {"X-Error-Code": "EntryNotFound"})
    refused("status 404")


def test_a_model_that_nobody_has(server, cache):
    refused("nobody/nothing", "no such directory here", server.url, name="nobody/nothing")


def test_another_kind_of_model_is_refused_before_its_weights(server, cache, content):
    server.models["somebody/bert"] = {PIN: content | {"config.json": b'{"model_type": "bert"}'}}
    refused("model_type is 'bert'", name="somebody/bert")
    assert server.fetched() == []


@pytest.mark.parametrize(
    "files, words",
    [({"pytorch_model.bin": b"x"}, ("pytorch_model.bin", "pickle")), ({}, ("this package can't run it",))],
)
def test_models_without_safetensors(server, cache, content, files, words):
    server.models["somebody/old"] = {
        PIN: {name: data for name, data in content.items() if "safetensors" not in name} | files
    }
    refused(*words, name="somebody/old")
    assert not (cache / "models--somebody--old").exists()


# ---- CTranslate2's format -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The files of a tiny Whisper as faster-whisper has it."""
    source = make_encoder_decoder(tmp_path_factory.mktemp("made") / "source")
    return {path.name: path.read_bytes() for path in convert(source, source.parent / "model", "float16").iterdir()}


def test_a_model_of_faster_whisper(server, cache, converted):
    name = "Systran/faster-whisper-tiny"
    server.models[name] = {
        PIN: converted | {"README.md": b"x", "vocabulary.json": b"[]", "vocabulary.txt": b"x", "other.bin": b"x"}
    }
    found = hub.find(name, progress=False)
    assert {path.name for path in found.iterdir()} == set(converted) and server.fetched("model.bin") == [None]
    server.shutdown()
    assert hub.find(name) == found and glmasr.load(name, device="cpu").config.languages
    for file in ("model.bin", "tokenizer.json", "config.json"):
        (found / file).rename(found / "away")
        with pytest.raises(CheckpointError):
            hub_cache.check_whole(hub.local(name))
        (found / "away").rename(found / file)
    blob = (found / "model.bin").resolve()
    blob.write_bytes(blob.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="not downloaded whole"):
        hub_cache.check_whole(hub.local(name))


@pytest.mark.parametrize("file", ["vocabulary.json", "vocabulary.txt"])
def test_a_list_of_tokens_is_fetched_where_there_is_no_tokenizer(server, cache, converted, file):
    data = json.loads(converted["tokenizer.json"])
    numbers = data["model"]["vocab"] | {token["content"]: token["id"] for token in data["added_tokens"]}
    tokens = sorted(numbers, key=numbers.get)
    lists = {"vocabulary.json": json.dumps(tokens).encode(), "vocabulary.txt": "\n".join(tokens).encode()}
    server.models["somebody/list"] = {
        PIN: {name: content for name, content in converted.items() if name != "tokenizer.json"} | {file: lists[file]}
    }
    found = hub.find("somebody/list", progress=False)
    assert (found / file).is_file() and glmasr.load(found, device="cpu").config.languages
    assert hub.find("somebody/list") == found


def test_a_pickle_named_model_bin_is_not_fetched(server, cache, content):
    """TRAP: it has the name of CTranslate2's file; the configuration beside it says what it is."""
    server.models["somebody/old"] = {
        PIN: {name: data for name, data in content.items() if "safetensors" not in name} | {"model.bin": b"x"}
    }
    refused("unknown key", "model.bin", name="somebody/old")
    assert server.fetched("model.bin") == []


def test_safetensors_are_fetched_where_both_are(server, cache, content):
    server.models["somebody/both"] = {PIN: content | {"model.bin": b"x"}}
    assert not (hub.find("somebody/both", progress=False) / "model.bin").exists()


# ---- other models ---------------------------------------------------------------------------------------------------------

SHORT = {
    "tiny.en": "openai/whisper-tiny.en",
    "base": "openai/whisper-base",
    "large-v1": "openai/whisper-large",
    "large-v2": "openai/whisper-large-v2",
    "large": "openai/whisper-large-v3",
    "large-v3": "openai/whisper-large-v3",
    "whisper-large-v3": "openai/whisper-large-v3",
    "turbo": "openai/whisper-large-v3-turbo",
    "Large-V3-Turbo": "openai/whisper-large-v3-turbo",
    "distil-large-v3": "distil-whisper/distil-large-v3",
    "GLM-ASR-Nano-2512": "zai-org/GLM-ASR-Nano-2512",
}


@pytest.mark.parametrize("name, repository", SHORT.items())
def test_short_names(cache, name, repository):
    assert hub.local(name).repository == repository


def test_every_name_of_openai_whisper_is_known():
    """large-v1 among them; whether these repositories are there can't be known without the network."""
    whisper = pytest.importorskip("whisper")
    assert set(whisper.available_models()) <= set(hub.NAMES)


def test_a_model_without_a_tokenizer(server, cache, content):
    server.models["somebody/mute"] = {PIN: {name: data for name, data in content.items() if name != "tokenizer.json"}}
    refused("tokenizer.json", "tokenizer.model", name="somebody/mute", progress=False)


def test_a_model_without_a_file_that_others_have_is_whole(server, cache, content):
    server.models["somebody/plain"] = {
        PIN: {name: data for name, data in content.items() if name != "generation_config.json"}
    }
    found = hub.find("somebody/plain", progress=False)
    server.shutdown()
    assert hub.find("somebody/plain") == found


# ---- redirects and tokens -------------------------------------------------------------------------------------------------


def test_a_token_goes_to_the_hub_and_not_to_its_storage(server, cache, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert hub.find(NAME, progress=False)
    tokens = {host: {one.token for one in server.asked if one.host == host} for host in ("127.0.0.1", "localhost")}
    assert tokens == {"127.0.0.1": {"Bearer hf_secret"}, "localhost": {None}}


def test_a_redirect_within_the_hub(server, cache):
    server.errors[f"{NAME}/resolve/"] = (307, {"Location": "elsewhere"})
    refused()  # it goes round in circles
    assert len(server.asked) < 200


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "http://",
        "http://localhost:1/x",
        "//",
        "gopher://x",
        "http://[",
        "http://a:b/",
        "http://a b/",
        "\x7f",
    ],
)
def test_redirects_that_lead_nowhere(server, cache, location):
    server.location = location
    refused()
    assert not [path for path in cache.rglob("*") if path.name == "tokenizer.json"]


# ---- no space -------------------------------------------------------------------------------------------------------------


def test_no_space_is_seen_before_the_weights_are_fetched(server, cache, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    refused("no space", "1,000 are free", "HF_HOME")
    assert server.fetched() == []


def test_a_disk_that_becomes_full(server, cache, content, monkeypatch):
    def full(path, mode):
        if mode == "rb" or not server.fetched():
            return open(path, mode)
        with open(path, mode) as file:
            file.write(content["model.safetensors"][:500])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "open", full, raising=False)
    refused("no space", "HF_HOME", "what was fetched stays")
    monkeypatch.delattr(download, "open")
    assert hub.find(NAME, progress=False) and server.fetched() == [None, "bytes=500-"]


def test_a_cache_that_can_not_be_written(server, cache):
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("a file")
    refused("writable", "HF_HOME")


# ---- offline --------------------------------------------------------------------------------------------------------------


def test_offline_without_a_cache(server, cache, monkeypatch):
    offline(monkeypatch)
    refused("HF_HUB_OFFLINE", "glmasr-fetch")
    refused("HF_HUB_OFFLINE", revision="main")
    assert not server.asked


def test_offline_with_a_cache(server, cache, monkeypatch):
    found = hub.find(NAME, progress=False)
    offline(monkeypatch)
    server.asked.clear()
    assert hub.find(NAME) == found and hub.find(NAME).is_dir()
    assert PIN in refused("HF_HUB_OFFLINE", revision="main")  # says what there is
    refused("HF_HUB_OFFLINE", revision=OTHER)
    assert not server.asked


@pytest.mark.parametrize("file", sorted(FILES))
def test_offline_with_a_part_of_a_cache(server, cache, monkeypatch, file):
    (hub.find(NAME, progress=False) / file).unlink()
    offline(monkeypatch)
    refused("HF_HUB_OFFLINE", file)


def test_a_network_that_is_not_there(server, cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    refused(
        "http://127.0.0.1:9",
        "can't be reached",
        "HF_ENDPOINT",
        f"https://huggingface.co/{NAME}/tree/{PIN}",
        "--model demo",
    )


@pytest.mark.parametrize("endpoint", ["", "huggingface.co", "ftp://x", "http://", "http://[", "http://a:b"])
def test_an_endpoint_that_is_none(server, cache, monkeypatch, endpoint):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    refused("HF_ENDPOINT")


def test_without_the_extra(cache, monkeypatch):
    without_the_extra(monkeypatch)
    refused("[hub]", "pip install", f"https://huggingface.co/{NAME}/tree/{PIN}", "by hand", "--model demo")


def test_another_revision_in_the_cache_is_pointed_out(server, cache, monkeypatch):
    hub.find(NAME, OTHER, progress=False)
    without_the_extra(monkeypatch)
    refused("[hub]", f"The cache has revision {OTHER}")


# ---- hostile --------------------------------------------------------------------------------------------------------------

EVIL = [
    "../../../evil.json",
    "/evil.json",
    "..",
    "snapshots/../../evil",
    "C:\\evil.json",
    "model.safetensors/../evil",
    "a\0b",
    "\x1b[2J",
]


def test_names_that_leave_the_folder_are_not_fetched(server, cache, tmp_path):
    server.models[NAME][PIN] = server.models[NAME][PIN] | dict.fromkeys(EVIL, b"{}")
    assert files_of(hub.find(NAME, progress=False)) == FILES
    assert not [one.path for one in server.asked if "evil" in one.path]
    assert {path.name for path in tmp_path.iterdir()} == {"home", "here"} and not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("name", [*EVIL, "", "not-listed.safetensors"])
def test_an_index_that_names_other_files(server, cache, content, tmp_path, name):
    files = {key: data for key, data in content.items() if key != "model.safetensors"}
    index = json.dumps({"weight_map": {"a": name}}).encode()
    server.models["somebody/evil"] = {PIN: files | dict.fromkeys(EVIL, b"{}") | {"model.safetensors.index.json": index}}
    refused("index.json", "it names", name="somebody/evil", progress=False)
    assert not [one.path for one in server.asked if one.method == "GET" and "evil.json" in one.path]
    assert {path.name for path in tmp_path.iterdir()} == {"home", "here"}


@pytest.mark.parametrize("etag", ["../../../../evil", "", "x" * 64, "0" * 63, "/evil", "0" * 40 + "/x"])
@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_checksums_that_are_none(server, cache, tmp_path, etag, file):
    server.etags[file] = etag
    refused(file, "checksum")
    assert {path.name for path in tmp_path.iterdir()} == {"home", "here"}


@pytest.mark.parametrize(
    "change",
    [
        lambda info: {**info, "sha": "../../evil"},
        lambda info: {**info, "sha": None},
        lambda info: [],
        lambda info: 3,
        lambda info: {**info, "siblings": 3},
        lambda info: {**info, "siblings": [3]},
        lambda info: {},
        lambda info: {**info, "siblings": [{"rfilename": ["x"]}]},
        lambda info: {**info, "siblings": None},
    ],
)
def test_descriptions_that_are_none(server, cache, change):
    server.change = change
    refused()
    assert not cache.exists() or not list(cache.rglob("snapshots"))


def test_a_login_page(server, cache, monkeypatch):
    monkeypatch.setattr(
        Handler, "do_GET", lambda self: self.answer(200, {"Content-Type": "text/html"}, b"<html>please log in</html>")
    )
    refused("HF_ENDPOINT", "login page")


def test_a_file_of_absurd_size(server, cache, monkeypatch):
    monkeypatch.setattr(download, "LARGEST", 100)
    refused("expected at most 100")


def test_more_bytes_than_announced(server, cache, monkeypatch):
    whole = Handler.content
    monkeypatch.setattr(
        Handler,
        "content",
        lambda self, name, content, headers={}: whole(
            self, name, content + bytes(10**7 if "/storage/" in self.path else 0), headers
        ),
    )
    refused("tokenizer.json", "checksum")
    assert not list(cache.rglob("*.incomplete"))


def test_another_commit_than_was_asked_for(server, cache):
    server.change = lambda info: {**info, "sha": OTHER}
    refused(PIN, OTHER)


# ---- names and directories ------------------------------------------------------------------------------------------------


def test_find_a_directory_and_the_demo(cache, tmp_path):
    (tmp_path / "mine").mkdir()
    os.chdir(tmp_path)
    assert hub.find(tmp_path / "mine") == hub.find(str(tmp_path / "mine")) == tmp_path / "mine"
    assert hub.find("mine").resolve() == (tmp_path / "mine").resolve()
    assert hub.find("demo").parts[-3:] == ("glmasr", "checkpoints", "demo")
    (tmp_path / "zai-org" / "GLM-ASR-Nano-2512").mkdir(parents=True)
    assert hub.find(NAME) == Path(NAME)  # what is here comes first


def test_a_modelscope_directory(cache, checkpoint, tmp_path):
    directory = tmp_path / "modelscope" / "hub" / "models" / "ZhipuAI" / "GLM-ASR-Nano-2512"
    shutil.copytree(checkpoint, directory)
    for name, text in {
        "configuration.json": '{"framework": "pytorch", "task": "auto-speech-recognition"}',
        ".msc": "\x80\x04",
        ".mdl": "\x80\x04",
        ".mv": "Revision:master,CreatedAt:1766000000",
        "README.md": "---\nlicense: mit\n---",
    }.items():
        (directory / name).write_text(text)
    (directory / "._____temp").mkdir()
    assert hub.find(directory) == directory and glmasr.load(directory, device="cpu")


@pytest.mark.parametrize(
    "name",
    [
        "no-such-model",
        "a/b/c",
        "../x/y",
        "./x",
        "/x",
        "~nobody-of-this-name/x",
        "a--b/c",
        "a/..",
        "x" * 5000,
        "a/" + "b" * 100,
        "a\0b",
        "a b/c",
        "a/b.git",
        "-a/b",
        "a/b\n",
        "ä/b",
    ],
)
def test_names_that_are_none(server, cache, name):
    with pytest.raises(CheckpointError) as caught:
        hub.find(name)
    assert str(caught.value).splitlines()[1:] in ([], [""]) or "\n" in name
    assert not server.asked


def test_an_unknown_name_is_told_the_known_ones(cache):
    refused(
        "'no-such-model': no such directory",
        "demo, demo-article, glm-asr-nano-2512",
        "owner/name",
        name="no-such-model",
    )


def test_a_file_is_no_directory(cache, checkpoint):
    refused("is a file", "directory", name=checkpoint / "model.safetensors")


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"])
def test_where_the_cache_is(server, cache, monkeypatch, tmp_path, variable):
    place = tmp_path / "elsewhere"
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv(variable, str(place))
    root = {"HF_HOME": place / "hub", "XDG_CACHE_HOME": place / "huggingface" / "hub"}.get(variable, place)
    fresh = runpy.run_path(Path(huggingface_hub.__file__).parent / "constants.py")  # as a new process has them
    assert huggingface.cache_folder() == root == Path(fresh["HF_HUB_CACHE"])
