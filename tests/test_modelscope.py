"""Fetching from ModelScope's hub, against a stand-in on loopback: it answers as the hub does, large files from another
host, and breaks off, spoils, refuses and lies as a test tells it."""

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest
import soundfile
from helpers import ROOT
from helpers.checkpoints import make_checkpoint, make_encoder_decoder
from helpers.sounds import RATE, melody

import glmasr
import transcribe
from glmasr.checkpoint import download, hub, hub_cache, modelscope
from glmasr.errors import CheckpointError, OptionError
from glmasr.tools import check, fetch, quantize

NAME = "ZhipuAI/GLM-ASR-Nano-2512"
FILES = {"config.json", "generation_config.json", "processor_config.json", "tokenizer.json", "model.safetensors"}
BYSTANDERS = {
    "README.md": b"a model",
    "configuration.json": b"{}",
    "inference.py": b"raise SystemExit",
    "pytorch_model.bin": b"a pickle",
    "tokenizer.model": b"x",
}


class StandIn(ThreadingHTTPServer):
    """The hub under 127.0.0.1, its storage for large files under localhost."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.models: dict[tuple[str, str], dict[str, bytes]] = {}  # (name, revision) -> file -> content
        self.asked: list[SimpleNamespace] = []  # path, file, range, token, host
        self.cuts: list[int] = []  # of the next answers with weights, the bytes after which the connection breaks
        self.spoiled: set[str] = set()
        self.ranges = True
        self.status: dict[str, int] = {}  # file, or "" for the list -> status of the answer
        self.change = lambda answer: answer  # what the list becomes
        self.location: str | None = None
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fetched(self) -> list[str | None]:
        """The ranges of the answers with weights, in their order."""
        return [one.range for one in self.asked if one.host == "localhost"]

    def handle_error(self, request, address):
        pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        server, parts = self.server, urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        host = self.headers["Host"].partition(":")[0]
        found = re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/repo(/files)?", parts.path)
        name = "" if found and found[2] else query.get("FilePath", "")
        server.asked.append(
            SimpleNamespace(
                path=parts.path,
                file=name,
                range=self.headers.get("Range"),
                host=host,
                query=query,
                token=self.headers.get("Authorization"),
                cookie=self.headers.get("Cookie"),
            )
        )
        if name in server.status:
            return self.answer(server.status[name], b'{"Code": 1, "Message": "no", "Success": false}')
        files = server.models.get((found[1], query.get("Revision"))) if found else None
        if files is None:
            return self.answer(404, b'{"Code": 10010205001, "Message": "record not found", "Success": false}')
        if found[2]:
            listed = [
                {
                    "Name": name,
                    "Path": name,
                    "Size": len(content),
                    "Sha256": hashlib.sha256(content).hexdigest(),
                    "Type": "blob",
                    "IsLFS": False,
                    "Revision": "0" * 40,
                }
                for name, content in files.items()
            ] + [{"Name": "onnx", "Path": "onnx", "Size": 0, "Sha256": "", "Type": "tree"}]
            answer = server.change({"Code": 200, "Success": True, "Data": {"Files": listed}})
            return self.answer(200, answer if isinstance(answer, bytes) else json.dumps(answer).encode())
        if name not in files:
            return self.answer(404)
        if name.endswith(".safetensors") and host == "127.0.0.1":
            return self.answer(
                302, b"", {"Location": server.location or f"http://localhost:{server.server_port}{self.path}"}
            )
        content, start, status, headers = files[name], 0, 200, {}
        if name in server.spoiled:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if server.ranges and self.headers.get("Range"):
            start, status = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1]), 206
            headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        self.answer(
            status,
            content[start:],
            headers,
            server.cuts.pop(0) if server.cuts and name.endswith(".safetensors") else None,
        )

    def answer(self, status, content=b"", headers={}, cut=None):
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content if cut is None else content[:cut])
        self.wfile.flush()
        self.close_connection = self.close_connection or cut is not None


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return {
        path.name: path.read_bytes() for path in make_checkpoint(tmp_path_factory.mktemp("made") / "model").iterdir()
    }


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache; the rest of the environment says nothing. `huggingface_hub` isn't there: nothing here needs
    it."""
    for name in list(os.environ):
        if name.startswith(("HF_", "MODELSCOPE_", "GLMASR_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    for name in ("huggingface_hub", "huggingface_hub.utils", "huggingface_hub.errors"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "cache"


@pytest.fixture
def server(cache, content, monkeypatch):
    server = StandIn()
    server.models[NAME, "master"] = content | BYSTANDERS
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url)
    monkeypatch.setattr(download, "PAUSE", 0)
    yield server
    server.shutdown()
    server.server_close()


def find(name=NAME, revision=None, **options):
    return hub.find(name, revision, hub="modelscope", progress=False, **options)


def refused(*words, name=NAME, error=CheckpointError, **options):
    """`find` fails with one line that has all the words."""
    with pytest.raises(error) as caught:
        find(name, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) <= 1100 and all(word in message for word in words), message


def names_in(folder):
    return {path.name for path in folder.iterdir()}


# ---- whole ----------------------------------------------------------------------------------------------------------------


def test_a_whole_fetch_and_then_no_network(server, cache, content):
    found = find("glm-asr-nano-2512")
    assert found.parent == cache / "models" / "ZhipuAI--GLM-ASR-Nano-2512" / "snapshots"
    assert names_in(found) == FILES and all((found / name).read_bytes() == content[name] for name in FILES)
    assert {one.file for one in server.asked} == {"", *FILES} and all(
        one.query["Revision"] == "master" for one in server.asked
    )
    server.asked.clear()
    server.shutdown()
    assert find() == find("GLM-ASR-Nano-2512", "master") == found and not server.asked
    assert (
        glmasr.load(NAME, hub="modelscope", device="cpu", dtype="float32")
        .transcribe(melody(0.5), sample_rate=RATE, max_new_tokens=4)
        .text
    )


def test_the_commands(server, cache, tmp_path, capsys, monkeypatch):
    assert fetch.main(["--hub", "modelscope", "--quiet"]) == 0
    directory = Path(capsys.readouterr().out.rstrip("\n"))
    assert directory == find()
    soundfile.write(tmp_path / "0.wav", melody(0.5), RATE)
    options = ["--model", NAME, "--device", "cpu", "--max-new-tokens", "4", "--quiet"]
    server.asked.clear()
    assert (
        transcribe.main([str(tmp_path / "0.wav"), *options, "--hub", "modelscope"]) == 0
        and check.main([NAME, "--hub", "modelscope"]) == 0
    )
    monkeypatch.setenv("GLMASR_HUB", "modelscope")
    assert transcribe.main([str(tmp_path / "0.wav"), *options]) == 0 and check.main([NAME]) == 0
    monkeypatch.setattr(sys, "argv", ["glmasr-quantize", NAME, str(tmp_path / "int8"), "--hub", "modelscope"])
    assert quantize.main() == 0 and (tmp_path / "int8" / "config.json").is_file() and not server.asked
    assert transcribe.main(["0.wav", "--model", NAME, "--hub", "huggingface"]) == 1
    monkeypatch.setenv("GLMASR_HUB", "gitee")
    assert (
        transcribe.main(["0.wav", "--model", NAME]) == 2
        and "GLMASR_HUB is 'gitee', expected huggingface or modelscope" in capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        transcribe.main(["0.wav", "--hub", "gitee"])


def test_a_whisper(server, tmp_path):
    source = make_encoder_decoder(tmp_path / "source")
    server.models["openai-mirror/whisper-tiny", "master"] = {path.name: path.read_bytes() for path in source.iterdir()}
    assert (
        find("tiny") == find("whisper-tiny") == find("openai-mirror/whisper-tiny")
        and glmasr.load(find("tiny"), device="cpu").config.languages
    )


@pytest.mark.parametrize(
    "name, repository",
    [
        ("tiny", "openai-mirror/whisper-tiny"),
        ("whisper-large-v3", "openai-mirror/whisper-large-v3"),
        ("large", "openai-mirror/whisper-large-v3"),
        ("Turbo", "openai-mirror/whisper-large-v3-turbo"),
        ("glm-asr-nano-2512", NAME),
        ("a/b", "a/b"),
    ],
)
def test_short_names(cache, name, repository):
    found = hub.local(name, hub="modelscope")
    assert (found.repository, found.revision) == (repository, "master")


@pytest.mark.parametrize("name", ["large-v2", "whisper-base.en", "distil-large-v3"])
def test_short_names_without_a_known_copy(server, name):
    refused(name, "no copy of it", "owner/name", "--hub huggingface", name=name)
    assert not server.asked


def test_a_revision_is_kept_apart_and_a_branch_is_asked_for_again(server, content):
    server.models[NAME, "v1"] = content | {"generation_config.json": content["generation_config.json"] + b" "}
    first, old = find(), find(revision="v1")
    assert first != old and server.fetched() == [None]  # the same weights: once
    server.models[NAME, "master"] = server.models[NAME, "v1"]
    assert find() == first and find(renew=True) == find() == old and server.fetched() == [None]
    refused("404", "--revision", revision="v9")


def test_two_at_a_time_fetch_once(server):
    found = []
    threads = [threading.Thread(target=lambda: found.append(find())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and len(set(found)) == 1 and server.fetched() == [None]


# ---- what ModelScope's own packages fetched -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place, revision",
    [
        ("models/ZhipuAI--GLM-ASR-Nano-2512/snapshots/master", None),
        ("models/ZhipuAI/GLM-ASR-Nano-2512", None),
        ("hub/models/ZhipuAI/GLM-ASR-Nano-2512", None),
        ("models/ZhipuAI--GLM-ASR-Nano-2512/snapshots/v2", "v2"),
    ],
)
def test_it_is_found(cache, content, place, revision):
    (cache / place).mkdir(parents=True)
    for name in FILES:
        (cache / place / name).write_bytes(content[name])
    assert find(revision=revision) == cache / place
    (cache / place / ".mv").write_text(
        "Revision:v7,CreatedAt:1766000000"
    )  # it says which one it is, where a folder holds only one
    if "snapshots" in place:
        assert find(revision=revision) == cache / place
    else:
        assert find(revision="v7") == cache / place
        with pytest.raises(CheckpointError, match="not in the cache"):
            hub_cache.check_whole(hub.local(NAME, hub="modelscope"))


@pytest.mark.parametrize("file", sorted(FILES))
def test_a_part_of_it_is_not_used(server, cache, content, file):
    place = cache / "models" / "ZhipuAI--GLM-ASR-Nano-2512" / "snapshots" / "master"
    place.mkdir(parents=True)
    for name in FILES - {file}:
        (place / name).write_bytes(content[name])
    assert find() != place and names_in(find()) == FILES


# ---- broken off, spoiled --------------------------------------------------------------------------------------------------


def test_a_cut_connection_is_taken_up_again(server, content):
    server.cuts = [1000, 0, 5, 0]
    assert (find() / "model.safetensors").read_bytes() == content["model.safetensors"]
    assert server.fetched() == [None, "bytes=1000-", "bytes=1000-", "bytes=1005-", "bytes=1005-"]


def test_a_transfer_that_was_given_up_goes_on_the_next_time(server, cache, content):
    server.cuts = [1000] + [0] * download.TRIES
    refused("1,000 of", "run it again")
    with pytest.raises(CheckpointError):
        hub_cache.check_whole(hub.local(NAME, hub="modelscope"))
    server.asked.clear()
    server.cuts = []
    assert (find() / "model.safetensors").read_bytes() == content["model.safetensors"]
    assert server.fetched() == ["bytes=1000-"] and not list(cache.rglob("*.incomplete"))


def test_a_server_that_starts_from_the_beginning(server, content):
    server.cuts, server.ranges = [1000], False
    assert (find() / "model.safetensors").read_bytes() == content["model.safetensors"] and server.fetched() == [
        None,
        "bytes=1000-",
    ]


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_spoiled_file_is_thrown_away(server, cache, file):
    server.spoiled = {file}
    refused(file, "checksum", "MODELSCOPE_ENDPOINT")
    assert not list(cache.rglob("*.incomplete"))
    server.spoiled = set()
    assert find()


def test_storage_that_is_busy(server, monkeypatch):
    server.status["model.safetensors"] = 503
    refused("model.safetensors", "503", "run it again")
    monkeypatch.setattr(download.time, "sleep", lambda seconds: server.status.clear())
    assert find()


# ---- refused --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "status, words",
    [
        (404, ["no such model", "MODELSCOPE_API_TOKEN", "other owners"]),
        (401, ["token"]),
        (403, ["right"]),
        (500, ["later"]),
    ],
)
def test_what_the_hub_refuses(server, status, words):
    server.status[""] = status
    refused(NAME, str(status), *words)


def test_a_network_that_is_not_there(cache, monkeypatch):
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "127.0.0.1:9")
    refused(
        "https://127.0.0.1:9 can't be reached",
        "MODELSCOPE_ENDPOINT",
        f"https://modelscope.cn/models/{NAME}/files",
        "--hub huggingface",
        "--model demo",
    )


def test_a_proxy_is_used(server, monkeypatch):
    """TRAP: for a proxy that isn't there, nothing is fetched past it."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://modelscope.example")
    refused("can't be reached")
    monkeypatch.setenv("http_proxy", server.url)
    server.models.clear()
    refused("404")
    assert server.asked[-1].host == "modelscope.example"


def test_the_older_variable_names_a_host(server, monkeypatch):
    monkeypatch.delenv("MODELSCOPE_ENDPOINT")
    assert modelscope.endpoint() == "https://modelscope.cn"
    monkeypatch.setenv("MODELSCOPE_DOMAIN", "www.modelscope.ai/")
    assert modelscope.endpoint() == "https://www.modelscope.ai"


@pytest.mark.parametrize("endpoint", ["ftp://x", "http://", "http://[", "http://a:b", "a b", "http://a/?x"])
def test_an_endpoint_that_is_none(cache, monkeypatch, endpoint):
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", endpoint)
    refused("MODELSCOPE_ENDPOINT is")


def test_offline(server, content, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused("HF_HUB_OFFLINE", "not in the cache")
    assert not server.asked
    monkeypatch.delenv("HF_HUB_OFFLINE")
    found = find()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find() == found


def test_a_token_goes_to_the_hub_and_not_to_its_storage(server, monkeypatch):
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "secret")
    assert find()
    tokens = {
        host: {(one.token, one.cookie) for one in server.asked if one.host == host}
        for host in ("127.0.0.1", "localhost")
    }
    assert tokens == {"127.0.0.1": {("Bearer secret", "m_session_id=secret")}, "localhost": {(None, None)}}


def test_no_space(server, cache, content, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    refused("no space", "1,000 are free", "MODELSCOPE_CACHE")
    assert server.fetched() == []
    monkeypatch.undo()


def test_a_disk_that_becomes_full(server, monkeypatch):
    def full(path, mode):
        if mode != "rb":
            raise OSError(errno.ENOSPC, "No space left on device")
        return open(path, mode)

    monkeypatch.setattr(download, "open", full, raising=False)
    refused("no space", "MODELSCOPE_CACHE", "what was fetched stays")


def test_a_cache_that_can_not_be_written(server, cache):
    cache.write_text("a file")
    refused("writable", "MODELSCOPE_CACHE")


# ---- hostile --------------------------------------------------------------------------------------------------------------

EVIL = [
    "../../../evil.json",
    "/evil.json",
    "..",
    "C:\\evil.json",
    "model.safetensors/../evil",
    "a\0b",
    "\x1b[2J",
    "\ud800",
]


def test_names_that_leave_the_folder_are_not_fetched(server, tmp_path):
    server.models[NAME, "master"] = server.models[NAME, "master"] | {name: b"{}" for name in EVIL}
    assert names_in(find()) == FILES and {one.file for one in server.asked} == {"", *FILES}
    assert names_in(tmp_path) == {"cache", "here"}


@pytest.mark.parametrize("name", [*EVIL, "not-listed.safetensors"])
def test_an_index_that_names_other_files(server, content, tmp_path, name):
    index = json.dumps({"weight_map": {"a": name}}).encode()
    server.models["a/evil", "master"] = {key: data for key, data in content.items() if key != "model.safetensors"} | {
        "model.safetensors.index.json": index
    }
    refused("index.json", "it names", name="a/evil")
    assert names_in(tmp_path) == {"cache", "here"}


def listed(answer, **more):
    """The list with the last entry of `model.safetensors` changed."""
    answer["Data"]["Files"] = [
        entry | more if entry["Path"] == "model.safetensors" else entry for entry in answer["Data"]["Files"]
    ]
    return answer


def twice(answer):
    files = answer["Data"]["Files"]
    return {"Data": {"Files": [*files, files[0] | {"Size": 3}]}}


LISTS = {
    "no JSON": (lambda answer: b"<html>please log in</html>", "login page"),
    "a number": (lambda answer: 3, "something else"),
    "null": (lambda answer: {"Data": None}, "something else"),
    "no files": (lambda answer: {"Data": {"Files": None}}, "something else"),
    "numbers": (lambda answer: {"Data": {"Files": [1]}}, "something else"),
    "empty": (lambda answer: {"Data": {"Files": []}}, "neither"),
    "no size": (lambda answer: listed(answer, Size=None), "expected a number"),
    "a negative size": (lambda answer: listed(answer, Size=-1), "expected a number"),
    "no checksum": (lambda answer: listed(answer, Sha256=None), "SHA-256"),
    "a path as checksum": (lambda answer: listed(answer, Sha256="../" * 21 + "x"), "SHA-256"),
    "another checksum": (lambda answer: listed(answer, Sha256="0" * 64), "checksum"),
    "too long": (lambda answer: listed(answer, Size=10), "checksum"),
    "too short": (lambda answer: listed(answer, Size=10**9), "run it again"),
    "more than the disk holds": (lambda answer: listed(answer, Size=10**18), "no space"),
    "twice": (twice, "twice"),
    "very many": (lambda answer: {"Data": {"Files": 3000 * answer["Data"]["Files"][:1]}}, "fewer than 3,000"),
    "endless": (lambda answer: b" " * (modelscope.LARGEST_LISTING + 10), "more than"),
    "deep": (lambda answer: b"[" * 100_000, "something else"),
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_that_are_none(server, cache, tmp_path, kind):
    server.change, words = LISTS[kind]
    refused(words)
    assert names_in(tmp_path) <= {"cache", "here"} and not list(cache.rglob("refs"))


def test_a_small_file_of_absurd_size(server, monkeypatch):
    monkeypatch.setattr(download, "LARGEST", 100)
    refused("expected at most 100")


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "ftp://localhost/x", "http://", "//", "gopher://x", "http://[", "http://localhost:1/x"],
)
def test_redirects_that_lead_nowhere(server, cache, location):
    server.location = location
    refused()
    assert not list(cache.rglob("model.safetensors"))


def test_a_redirect_in_circles(server):
    server.location = f"{server.url}/api/v1/models/{NAME}/repo?Revision=master&FilePath=model.safetensors"
    refused()
    assert len(server.asked) < 100


def test_a_pickle_is_not_fetched(server, content):
    server.models["a/old", "master"] = {name: data for name, data in content.items() if "safetensors" not in name} | {
        "pytorch_model.bin": b"x"
    }
    refused("pytorch_model.bin", "pickle", name="a/old")


@pytest.mark.parametrize("revision", ["", "../../x", "a b", "-x", 3])
def test_what_is_no_revision(server, revision):
    refused("expected a commit", revision=revision, error=OptionError)
    assert not server.asked


def test_in_a_process_of_its_own(server, tmp_path):
    """As a user has it: by the environment alone."""
    done = subprocess.run(
        [sys.executable, "-m", "glmasr.tools.fetch", "--quiet"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        env={**os.environ, "GLMASR_HUB": "modelscope", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0 and Path(done.stdout.rstrip("\n")) == find(), done.stderr
