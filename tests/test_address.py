"""Recordings on the web: what a server on this machine gives, and what goes wrong."""

import http.server
import threading

import pytest
import torch
from helpers import ROOT

import transcribe
from glmasr import audio
from glmasr.audio_files import reader, web
from glmasr.errors import AudioError, Cancelled
from glmasr.writers.output import expand, plan_outputs

CLIP = (ROOT / "examples" / "zh.wav").read_bytes()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.partition("?")[0]
        if path in ("/missing", "/private"):
            self.send_error({"/missing": 404, "/private": 403}[path])
            return
        if path in ("/moved", "/file", "/loop"):
            self.send_response(302)
            self.send_header("Location", {"/moved": "/talk.wav", "/file": "file:///etc/passwd", "/loop": "/loop"}[path])
            self.end_headers()
            return
        self.send_response(200)
        if path != "/endless":
            self.send_header("Content-Length", str({"/cut": len(CLIP) + 5000, "/page": 19}.get(path, len(CLIP))))
        self.end_headers()
        if path == "/silent":
            self.server.wait.wait(20)
            return
        self.wfile.write(b"<html>log in</html>" if path == "/page" else CLIP)
        if path == "/endless":
            while not self.server.wait.is_set():
                self.wfile.write(bytes(2**16))

    def log_message(self, *args):
        pass


@pytest.fixture
def address():
    """That of a server."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.wait, server.handle_error = threading.Event(), lambda *args: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.wait.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("path", ["/talk.wav", "/moved", "/a%20b.wav?key=[1]*&x=?"])
def test_it_is_read_as_the_file_is(address, path):
    assert torch.equal(audio.load(address + path), audio.load(ROOT / "examples" / "zh.wav"))


@pytest.mark.parametrize(
    "path, message",
    [
        ("/missing", "status 404: there is no such recording"),
        ("/private", "status 403: it is not for everybody"),
        ("/cut", "cannot be read.*cut off.*5,000 bytes before the end"),
        ("/page", "begins like none of the formats|Invalid data|not audio|no audio"),
        ("/file", "status 302: it leads to another address"),
        ("/loop", "status 302: it leads to another address"),
    ],
)
def test_what_is_no_recording(address, path, message):
    with pytest.raises(AudioError, match=message) as caught:
        audio.load(address + path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["http://127.0.0.1:1/a.wav", "https://no.such.host.invalid/a.wav", "http://[bad/a.wav"]
)
def test_nobody_there(name):
    with pytest.raises(AudioError, match="can't be reached"):
        audio.load(name)


def test_a_server_that_says_nothing_is_given_up(address, monkeypatch):
    monkeypatch.setattr(web, "TIMEOUT", 0.3)
    with pytest.raises(AudioError, match="cannot be read.*timed out"):
        audio.load(address + "/silent")


def test_limits_and_cancelling(address, monkeypatch):
    with pytest.raises(AudioError, match="is longer than 1 s"):
        audio.load(address + "/talk.wav", max_duration=1.0)
    with pytest.raises(Cancelled):
        next(audio.blocks(address + "/endless", cancelled=lambda: True))
    monkeypatch.setattr(reader, "MOST_BYTES", 2**20)
    with pytest.raises(AudioError, match="expected a recording, which has an end"):
        audio.load(address + "/endless")


def test_names_of_files():
    names = [
        "https://host/a/talk.mp3?key=1",
        "http://host/b/talk.mp3",
        "https://host/",
        "https://host/a%2F..%2Fb%00.wav",
    ]
    assert expand([*names, names[0]]) == names
    found = [str(files["srt"]) for files in plan_outputs(names, ["srt"]).values()]
    assert len(set(found)) == 4 and not any("/" in name for name in found) and {"host.srt", "b_.srt"} < set(found)


def test_on_the_command_line(address, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = transcribe.main([f"{address}/talk.wav?x=*", f"{address}/missing", "--model", "demo", "--format", "txt"])
    out, err = capsys.readouterr()
    assert code == 1 and "status 404" in err and "1 done, 0 skipped, 1 failed" in err
    assert [path.name for path in tmp_path.iterdir()] == ["talk.txt"]
