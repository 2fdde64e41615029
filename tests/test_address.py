"""Recordings on the web: what a server on this machine gives, and what goes wrong."""

import http.server
import io
import threading

import numpy as np
import pytest
import soundfile
import torch
from helpers import ROOT

import transcribe
from glmasr import audio
from glmasr.audio_files import formats, limits, spool, web
from glmasr.errors import AudioError, Cancelled
from glmasr.writers.output import expand, plan_outputs

LOCK = "Basic bWU6c2VjL3JldA=="  # me:sec/ret
CLIP = (ROOT / "examples" / "zh.wav").read_bytes()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.partition("?")[0]
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        if path == "/locked.wav" and self.headers.get("Authorization") != LOCK:
            self.send_error(401)
            return
        if path in ("/missing", "/private"):
            self.send_error({"/missing": 404, "/private": 403}[path])
            return
        if path in ("/moved", "/file", "/loop", "/kept", "/lost"):
            self.send_response(302)
            other = f"http://localhost:{self.server.server_port}/locked.wav"
            self.send_header(
                "Location",
                {
                    "/kept": "/locked.wav",
                    "/lost": other,
                    "/moved": "/talk.wav",
                    "/file": "file:///etc/passwd",
                    "/loop": "/loop",
                }[path],
            )
            self.end_headers()
            return
        self.send_response(200)
        if not path.startswith("/endless"):
            self.send_header("Content-Length", str({"/cut": len(CLIP) + 5000, "/page": 19}.get(path, len(CLIP))))
        self.end_headers()
        if path == "/silent":
            self.server.wait.wait(20)
            return
        endless = {"/endless": bytes(2**16), "/endless-zeros": bytes(2**16), "/endless-text": b"<p>log in</p>\n" * 4000}
        begin = {"/page": b"<html>log in</html>", "/endless-zeros": b"", "/endless-text": b"<html>"}
        self.wfile.write(begin.get(path, CLIP))
        while path in endless and not self.server.wait.is_set():
            self.wfile.write(endless[path])
            self.server.sent += len(endless[path])

    def log_message(self, *args):
        pass


class Address(str):
    def __new__(cls, text, server):
        made = super().__new__(cls, text)
        made.server = server
        return made


@pytest.fixture
def address():
    """That of a server, which is its `server`."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.wait, server.handle_error, server.sent = threading.Event(), lambda *args: None, 0
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Address(f"http://127.0.0.1:{server.server_port}", server)
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
    monkeypatch.setattr(spool, "MOST_BYTES", 2**20)
    with pytest.raises(AudioError, match="expected a recording, which has an end"):
        audio.load(address + "/endless")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """That of temporary files, which is empty in the end."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield tmp_path
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "path, what", [("/endless-zeros", "1,048,576 bytes are zeros"), ("/endless-text", "it is text")]
)
def test_what_begins_as_no_recording_is_not_waited_for(address, folder, path, what):
    with pytest.raises(AudioError, match=f"not a recording .*{what}"):
        audio.load(address + path)
    assert address.server.sent < 2**24  # what is on its way included


def test_no_more_than_max_duration_may_have(address, folder, monkeypatch):
    monkeypatch.setattr(spool, "BESIDE", 0)
    with pytest.raises(AudioError, match=r"more than 6 MiB, and 1 s \(max_duration\) have less.*which has an end"):
        audio.load(io.BytesIO(b"\xff\xfb\x90\x44" + bytes(range(1, 255)) * 40_000), max_duration=1)
    with pytest.raises(AudioError, match=r"more than 1 MiB, and 40 s \(max_duration\) have less.*which has an end"):
        audio.load(address + "/endless", max_duration=40)  # a WAV: its header says what a second has
    with pytest.raises(AudioError, match=r"more than 0 MiB, and 0.01 s"):  # before anything is read
        audio.load(address + "/talk.wav", max_duration=0.01)


def test_the_disk_is_not_filled(address, folder, monkeypatch):
    def usage(path):
        used = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        return type("Usage", (), {"total": 10**8, "free": 10**7 - used})

    monkeypatch.setattr(spool.shutil, "disk_usage", usage)
    for source in (address + "/endless", io.BytesIO(CLIP + bytes(10**7))):
        with pytest.raises(AudioError, match="would fill the disk of .*MiB are free; make room"):
            audio.load(source)
    assert len(audio.load(address + "/talk.wav"))


@pytest.mark.parametrize("start", list(formats.NO_SOUND))
def test_streams_that_are_something_else(folder, start):
    noise = np.random.default_rng(0).bytes(limits.VALUES)
    with pytest.raises(AudioError, match=f"not a recording .it is {formats.NO_SOUND[start]}"):
        audio.load(io.BytesIO(start + noise))


def test_a_long_tag_is_waited_for(folder, monkeypatch):
    """Without ffmpeg what isn't read directly is refused early, but not before its first bytes are there."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(AudioError, match="begins like none .* no ffmpeg"):
        audio.load(io.BytesIO(b"no sound\xff\0" * limits.VALUES))
    tag = b"ID3\4\0\0\0\x60\0\0" + bytes(0x60 << 14)
    sound = io.BytesIO()
    soundfile.write(sound, np.zeros(16_000), 16_000, format="MP3")
    assert len(tag) > limits.VALUES and abs(len(audio.load(io.BytesIO(tag + sound.getvalue()))) - 16_000) < 4000


def with_password(address, path):
    return address.replace("http://", "http://me:sec%2Fret@") + path


def test_user_and_password(address):
    for path in ("/locked.wav", "/kept"):
        assert len(audio.load(with_password(address, path)))
    with pytest.raises(AudioError, match="status 401: it is for those only whose user and password") as caught:
        audio.load(with_password(address, "/lost"))  # another host doesn't get them
    assert "sec" not in str(caught.value)
    assert [header for path, header in address.server.asked] == [LOCK, LOCK, LOCK, LOCK, None]
    with pytest.raises(AudioError, match="status 401"):
        audio.load(address + "/locked.wav")


@pytest.mark.parametrize(
    "name",
    [
        "http://me:sec%2Fret@127.0.0.1:1/a.wav",
        "http://me:sec/ret@127.0.0.1:1/a.wav",
        "http://me:sec ret@127.0.0.1:1/a.wav",
        "http://me:sec@ret@127.0.0.1:1/a.wav",
        "http://me:sec?ret@127.0.0.1:1/a.wav",
        "http://me:secret@[bad/a.wav",
        "ftp://me:secret@host/a.wav",
    ],
)
def test_a_password_is_in_no_message(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert transcribe.main([name, "--model", "demo", "--format", "all"]) == 1
    out, err = capsys.readouterr()
    assert "***@" in err and "sec" not in err and "ret" not in err and not out


def test_other_addresses_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("file:///etc/passwd", "FTP://host/a?b.wav", "s3://bucket/a.wav"):
        with pytest.raises(AudioError, match=f"{name.split(':')[0].lower()}:// is not read; expected an address that"):
            audio.load(expand([name])[0])


def test_what_an_address_may_not_have_is_escaped(address):
    assert len(audio.load(address + "/two words 一.wav?x=a b "))
    assert address.server.asked[0][0] == "/two%20words%20%E4%B8%80.wav?x=a%20b"


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
