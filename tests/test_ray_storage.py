"""Recordings at addresses: memory://, and stand-ins on loopback for S3 and for the hub's datasets. Needs the extra
[ray], and s3fs and huggingface_hub for the last two:  python -m pytest -m ray tests/test_ray_storage.py"""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest
from helpers import ROOT

pytestmark = pytest.mark.ray
fsspec = pytest.importorskip("fsspec", reason="needs the extra [ray]")
pytest.importorskip("pyarrow", reason="needs the extra [ray]")

from glmasr import Options, load  # noqa: E402
from glmasr.archive import sources, work  # noqa: E402
from glmasr.archive.worker import Worker  # noqa: E402

EXAMPLES = ROOT / "examples"
TEXTS = {
    name: entry["text"] for name, entry in json.loads((EXAMPLES / "texts.json").read_text(encoding="utf-8")).items()
}
BUCKET, DATASET = "a-bucket", "somebody/calls"
COMMIT = "61ba4e0b3309b6656edea3e93e419f7bd5c61957"
DATE = "2026-01-02T03:04:05.000Z"


class StandIn(BaseHTTPRequestHandler):
    """As much of S3 and of the hub as reading needs. `files`: name below the bucket, or the dataset -> content."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes] = {}
    asked: list[str] = []

    def log_message(self, *message):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        names = [name.strip("/") for name in asked.get("paths", [])]
        self.answer(json.dumps([entry for name in names for entry in self.entries(name, exactly=True)]).encode())

    def do_GET(self):
        place = urlsplit(self.path)
        path, query = unquote(place.path), parse_qs(place.query, keep_blank_values=True)
        self.asked.append(path)
        parts = path.strip("/").split("/")
        if parts[0] == BUCKET:
            name = "/".join(parts[1:])
            self.listed(query) if not name else self.file(name)
        elif path == f"/api/datasets/{DATASET}" or path.startswith(f"/api/datasets/{DATASET}/revision"):
            self.answer(json.dumps({"id": DATASET, "sha": COMMIT, "siblings": []}).encode())
        elif path.startswith(f"/api/datasets/{DATASET}/tree/"):
            self.answer(json.dumps(self.entries("/".join(parts[6:]))).encode())
        elif "/resolve/" in path:
            self.file(path.partition("/resolve/")[2].partition("/")[2])
        else:
            self.answer(b"", 404)

    def entries(self, folder, exactly=False):
        """What the hub says of files, and of folders."""
        found = {}
        for name, content in self.files.items():
            if name == folder and exactly or not exactly and (not folder or name.startswith(folder + "/")):
                found[name] = {
                    "type": "file",
                    "path": name,
                    "size": len(content),
                    "oid": f"{hash(content) % 16**8:08x}",
                }
            if exactly and name.startswith(folder + "/"):
                found[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
        return list(found.values())

    def listed(self, query):
        """What S3 says of the files of a bucket."""
        prefix, sign = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        names = [name for name in self.files if name.startswith(prefix)]
        here = [name for name in names if not sign or sign not in name[len(prefix) :]]
        below = {prefix + name[len(prefix) :].partition(sign)[0] + sign for name in names if name not in here}
        lines = [
            f'<Contents><Key>{escape(name)}</Key><LastModified>{DATE}</LastModified><ETag>"{len(self.files[name])}"</ETag>'
            f"<Size>{len(self.files[name])}</Size></Contents>"
            for name in here
        ]
        lines += [f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(below)]
        text = f"<Name>{BUCKET}</Name><IsTruncated>false</IsTruncated><KeyCount>{len(lines)}</KeyCount>{''.join(lines)}"
        self.answer(f"<ListBucketResult>{text}</ListBucketResult>".encode())

    def file(self, name):
        if name not in self.files:
            return self.answer(b"", 404, {"X-Error-Code": "EntryNotFound"})
        content, status = self.files[name], 200
        more = {
            "ETag": f'"{len(content)}"',
            "Last-Modified": "Fri, 02 Jan 2026 03:04:05 GMT",
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(content) - 1), len(content) - 1)
            if start >= len(content):
                return self.answer(b"", 416)
            more["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content, status = content[start : end + 1], 206
        self.answer(content, status, more)

    def answer(self, content, status=200, more=None):
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(content)),
            "Content-Type": "application/json",
            **(more or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@pytest.fixture
def files():
    """Two recordings in folders, and a manifest of them."""
    found = {
        "calls/en.mp3": (EXAMPLES / "en.mp3").read_bytes(),
        "calls/deep/zh.wav": (EXAMPLES / "zh.wav").read_bytes(),
    }
    lines = [{"id": "one", "path": "en.mp3"}, {"id": "two", "path": "deep/zh.wav", "language": "zh"}]
    found["calls/all.jsonl"] = "".join(json.dumps(line) + "\n" for line in lines).encode()
    return found


@pytest.fixture
def stand_in(files):
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (StandIn,), {"files": files, "asked": []}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def recognized(*addresses):
    """id -> row, as `glmasr-archive` has them, in this process."""
    errors: list[str] = []
    items = sources.read(list(addresses), lambda error: errors.append(str(error)))
    assert not errors, errors
    worker = Worker(load("demo", device="cpu"), "run", "auto", Options(), 0, 20.0)
    return {row["id"]: row for row in worker(work.pieces(items, 1800.0))}


def test_memory(files):
    system = fsspec.filesystem("memory")
    for name, content in files.items():
        system.pipe(f"/{name}", content)
    try:
        found = recognized("memory://calls/all.jsonl")
        assert {name: row["text"] for name, row in found.items()} == {"one": TEXTS["en.mp3"], "two": TEXTS["zh.wav"]}
        found = recognized("memory://calls")
        assert sorted(row["text"] for row in found.values()) == sorted([TEXTS["en.mp3"], TEXTS["zh.wav"]])
        assert set(recognized("memory://calls/*.mp3")) == {"memory:///calls/en.mp3"}
    finally:
        system.rm("/calls", recursive=True)


def run(out, *addresses, **environment):
    command = [sys.executable, "-c", "from glmasr.cli import archive; raise SystemExit(archive())", *addresses]
    child = subprocess.run(
        [*command, "--model", "demo", "--out", str(out), "--timeout", "20", "--retries", "0"],
        env=os.environ | {"RAY_AUTH_MODE": "disabled"} | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    rows = [json.loads(line) for path in Path(out).glob("rows-*.jsonl") for line in path.read_text().splitlines()]
    return child, {row["id"]: row for row in rows}


def test_s3(stand_in, tmp_path):
    pytest.importorskip("s3fs")
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    child, rows = run(tmp_path / "out", f"s3://{BUCKET}/calls", AWS_ENDPOINT_URL=stand_in, **keys)
    assert child.returncode == 0, child.stderr
    assert {name: row["text"] for name, row in rows.items()} == {
        f"s3://{BUCKET}/calls/en.mp3": TEXTS["en.mp3"],
        f"s3://{BUCKET}/calls/deep/zh.wav": TEXTS["zh.wav"],
    }
    child, rows = run(tmp_path / "m", f"s3://{BUCKET}/calls/all.jsonl", AWS_ENDPOINT_URL=stand_in, **keys)
    assert child.returncode == 0 and rows["two"]["text"] == TEXTS["zh.wav"] and rows["two"]["language"] == "zh"


def test_the_hub(stand_in, tmp_path):
    pytest.importorskip("huggingface_hub")
    place = {
        "HF_ENDPOINT": stand_in,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    child, rows = run(tmp_path / "out", f"hf://datasets/{DATASET}/calls/all.jsonl", **place)
    assert child.returncode == 0, child.stderr
    assert {name: row["text"] for name, row in rows.items()} == {"one": TEXTS["en.mp3"], "two": TEXTS["zh.wav"]}
