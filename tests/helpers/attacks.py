"""Requests that went wrong once, or could, each with the statuses that are right for it; and a heartbeat beside
them."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

ROUTE, TRANSLATIONS = "/v1/audio/transcriptions", "/v1/audio/translations"
JOIN, UPLOAD = "/gradio_api/queue/join", "/gradio_api/upload"
FILE = {"_type": "gradio.FileData"}
SECRET = "/etc/hostname"
MiB = 2**20


@dataclass(frozen=True)
class Attack:
    """`send(url)` gives the status, or None where the connection is closed without an answer."""

    name: str
    send: Callable[[str], int | None]
    right: set[int | None]


def post(
    path: str, content=None, kind: str = "application/json", headers: dict[str, str] = {}
) -> Callable[[str], int | None]:
    """`content`: bytes, or what makes them when it is sent."""

    def send(url: str) -> int:
        body = content() if callable(content) else content
        try:
            return httpx.post(
                url + path, content=body, headers={"Content-Type": kind} | headers, timeout=60
            ).status_code
        except httpx.TransportError:
            return None

    return send


def get(path: str, headers: dict[str, str] = {}) -> Callable[[str], int]:
    return lambda url: httpx.get(url + path, headers=headers, timeout=30).status_code


def join(recording, language="auto", number=0, session="attack-0123456789", **more) -> Callable[[], bytes]:
    return lambda: json.dumps(
        {"data": [recording, language], "fn_index": number, "session_hash": session} | more
    ).encode()


def form(*parts: tuple[str, bytes], boundary: str = "XX") -> bytes:
    """`parts`: the head behind `form-data; `, and the content."""
    return (
        b"".join(
            f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + content + b"\r\n"
            for head, content in parts
        )
        + f"--{boundary}--\r\n".encode()
    )


def raw(head: str, body: Callable[[], bytes] | bytes = b"") -> Callable[[str], int | None]:
    """Sends these very bytes; `head` without its last empty line."""

    def send(url: str) -> int | None:
        address = url.removeprefix("http://").split(":")
        with socket.create_connection(address, timeout=60) as connection:
            try:
                connection.sendall(
                    head.replace("HOST", ":".join(address)).encode("latin-1")
                    + b"\r\n\r\n"
                    + (body() if callable(body) else body)
                )
                line = connection.recv(100).split(b"\r\n")[0]
            except OSError:
                return None
        return int(line.split()[1]) if line else None

    return send


FORM = "multipart/form-data; boundary=XX"
PLAYLIST = f"#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:10,\nfile://{SECRET}\n#EXT-X-ENDLIST\n".encode()
POST = f"POST {ROUTE} HTTP/1.1\r\nHost: HOST\r\nContent-Type: {FORM}\r\n"


def path_of(path, **more):
    return {"path": path, "meta": FILE} | more


def files() -> list[Attack]:
    """That want a file of the server, or want to know whether there is one."""
    here = str(Path(__file__).parents[2] / "examples/zh.wav")
    nowhere = "/nowhere/talk.wav"
    found = [
        Attack(f"{name}: {path}", post(JOIN, join(make(path))), {400})
        for path in (here, SECRET, nowhere, "/proc/self/environ", ".", "../../etc/passwd")
        for name, make in (
            ("a stream", lambda path: path_of(path, is_stream=True)),
            ("a file", path_of),
            ("a bare path", lambda path: path),
            ("without meta", lambda path: {"path": path}),
            ("nested", lambda path: {"data": path_of(path, is_stream=True)}),
            ("twice nested", lambda path: {"data": {"data": path_of(path)}}),
            ("in a list", lambda path: [path_of(path)]),
            ("as a video", lambda path: {"video": path_of(path), "subtitles": None}),
            ("as a language", lambda path: path_of(path)),
        )
    ]
    found += [
        Attack(
            "a file for a language",
            post(JOIN, join("data:audio/wav;base64,UklGRg==", path_of(here, is_stream=True))),
            {400},
        ),
        Attack("a file as an event", post(JOIN, join(None, event_data=path_of(here, is_stream=True))), {400}),
        Attack("another function", post(JOIN, join(path_of(here), number=2)), {400}),
        Attack("a function by a negative number", post(JOIN, join(path_of(here), number=-1)), {400}),
        Attack("a function by a truth value", post(JOIN, join(path_of(here), number=True)), {400}),
        Attack("an address", post(JOIN, join(path_of("http://127.0.0.1:1/talk.wav"))), {400}),
        Attack(
            "a call of curl",
            post("/gradio_api/call/transcribe", json.dumps({"data": [path_of(here, is_stream=True), "auto"]}).encode()),
            {400},
        ),
    ]
    found += [
        Attack(f"GET {path}", get(path), {404})
        for path in (
            f"/gradio_api/file={SECRET}",
            f"/gradio_api/file={here}",
            "/gradio_api/file=http://127.0.0.1:1/x",
            "/gradio_api/file=..%2f..%2fetc%2fpasswd",
            f"/gradio_api/file/{SECRET}",
            "/gradio_api/proxy=http://127.0.0.1:1/x",
            "/file=/etc/passwd",
            "/?deep_link=..%2f..%2fx",
            "/config?deep_link=x",
            "/gradio_api/deep_link?session_hash=x",
            "/gradio_api/custom_component/a/client/component/..%2f..%2fx",
            "/gradio_api/custom_component/%0d%0a/x/y/%1b[31mz",
            "/gradio_api/stream/a/b/c/playlist.m3u8",
            "/assets/..%2f..%2f..%2fetc%2fpasswd",
            "/static/../../../etc/passwd",
            "/static/js/%2e%2e/%2e%2e/x",
            "/svelte/svelte.js",
            "/monitoring",
            "/gradio_api/app_id",
            "/gradio_api/runs",
            "/gradio_api/vibe-code",
            "/gradio_api/profiling/summary",
            "/redoc",
            "/gradio_api/docs",
            "/gradio_api/openapi.json",
        )
    ]
    found += [
        Attack(
            f"a playlist as {name}",
            post(ROUTE, form(('name="model"', b"demo-article"), (f'name="file"; filename="{name}"', content)), FORM),
            {400},
        )
        for name in ("talk.mp4", "talk.m3u8", "talk.wav", "talk.ts", "concat.txt")
        for content in (PLAYLIST, f"ffconcat version 1.0\nfile '{SECRET}'\n".encode(), b"RIFF\0\0\0\0WAVE" + PLAYLIST)
    ]
    found += [
        Attack(
            "a playlist for a translation",
            post(
                TRANSLATIONS,
                form(('name="model"', b"demo-article"), ('name="file"; filename="talk.mp4"', PLAYLIST)),
                FORM,
            ),
            {400},
        )
    ]
    return found + [
        Attack(
            "process_recording",
            post("/gradio_api/process_recording", form(('name="file"; filename="x.mp4"', PLAYLIST)), FORM),
            {404},
        ),
        Attack("component_server", post("/gradio_api/component_server", b"{}"), {404}),
        Attack("run", post("/gradio_api/run/transcribe", join(None)), {404}),
    ]


def heavy(most: int = 100 * MiB) -> list[Attack]:
    """That want to hold the event loop, or memory. `most`: bytes that may be uploaded."""
    uri = "data:audio/wav;base64,"
    return [
        Attack("a data URI whose type has no end", post(JOIN, join("data:a/" + "a" * 80_000)), {413}),
        Attack("one of half the upload limit", post(JOIN, lambda: join("data:a/" + "a" * (most // 2))()), {413}),
        Attack("a type of dots", post(JOIN, join("data:" + "a/.;=+" * 10_000 + ";base64,AAAA")), {400}),
        Attack("many beginnings", post(JOIN, lambda: b'{"data": [' + b'"data:' * 10_000), {400, 413}),
        Attack("many beginnings of escapes", post(JOIN, lambda: b'{"data": [' + b'"data:\\"\\\\' * 6_000), {400, 413}),
        Attack(
            "a recording of zeros as large as may be",
            post(JOIN, lambda: join(uri + "A" * (most * 4 // 3 // 4 * 4))()),
            {200},
        ),
        Attack("one larger than that", post(JOIN, lambda: join(uri + "A" * (most * 4 // 3 + MiB))()), {413}),
        Attack("one of blanks", post(JOIN, lambda: join(uri + " " * most)()), {200}),
        Attack(
            "one of escapes",
            post(
                JOIN,
                lambda: (
                    b'{"data": ["data:audio/wav;base64,'
                    + b"\\u0041" * (most // 8)
                    + b'", "auto"], "fn_index": 0, "session_hash": "escapes"}'
                ),
            ),
            {200, 400},
        ),
        Attack(
            "one of backslashes",
            post(JOIN, lambda: b'{"data": ["data:audio/wav;base64,' + b"\\" * (most // 2) + b'"]}'),
            {400},
        ),
        Attack("two recordings", post(JOIN, join(uri + "AAAA" * 20_000, uri + "AAAA" * 20_000)), {400, 413}),
        Attack("a recording that is no base64", post(JOIN, join(uri + "!" * 100_000)), {400}),
        Attack(
            "a recording without an end", post(JOIN, lambda: b'{"data": ["data:audio/wav;base64,' + b"A" * MiB), {400}
        ),
        Attack("16 MiB of brackets", post(JOIN, lambda: b"[]" * (8 * MiB)), {413}),
        Attack("depth", post(JOIN, lambda: b"[" * 60_000), {400}),
        Attack("depth of objects", post(JOIN, lambda: b'{"data":' * 8_000), {400}),
        Attack(
            "depth in data",
            post(
                JOIN,
                lambda: (
                    b'{"fn_index": 0, "session_hash": "depth-0123", "data": ' + b"[" * 30_000 + b"]" * 30_000 + b"}"
                ),
            ),
            {400},
        ),
        Attack("a long number", post(JOIN, lambda: b'{"data": [' + b"9" * 60_000 + b"]}"), {400}),
        Attack("no number", post(JOIN, b'{"data": [NaN]}'), {400}),
        Attack("a long name", post(JOIN, lambda: b'{"' + b"a" * 60_000 + b'": 1}'), {400}),
        Attack("half a character", post(JOIN, b'{"data": ["\\ud800", "\\udfff"]}'), {400}),
        Attack("a call as a form", post(JOIN, form(("name=a", b"x")), FORM), {415}),
        Attack("a call as a text", post(JOIN, join(None), "text/plain"), {415}),
        *(
            Attack(f"charset {name}", post(ROUTE, lambda: form(('name="model"', b"a" * MiB)), f"{FORM}; {name}"), {415})
            for name in (
                "charset=punycode",
                'charset="punycode"',
                "CHARSET=utf-7",
                "charset*=utf-8''punycode",
                "charset*0=puny; charset*1=code",
                "charset=utf-8; charset=punycode",
                "charset=idna",
                "charset=rot13",
                "charset=",
            )
        ),
        Attack(
            "a type in two headers",
            raw(
                POST + "Content-Type: multipart/form-data; boundary=XX; charset=punycode\r\nContent-Length: 5",
                b"--XX\r",
            ),
            {400},
        ),
        Attack("a type without end", post(ROUTE, b"", FORM + ";" + "a" * 30_000), {415}),
        Attack("a type of quotes", post(ROUTE, b"", 'multipart/form-data; boundary="' + '\\"' * 5_000), {415}),
        Attack("a field of a megabyte", post(ROUTE, lambda: form(('name="model"', b"a" * MiB)), FORM), {413}),
        Attack(
            "fields of a megabyte in all",
            post(ROUTE, lambda: form(*[(f'name="f{number}"', b"a" * 30_000) for number in range(30)]), FORM),
            {413},
        ),
        Attack(
            "a field of a megabyte for a translation",
            post(TRANSLATIONS, lambda: form(('name="model"', b"a" * MiB)), FORM),
            {413},
        ),
        Attack(
            "a translation larger than may be",
            post(TRANSLATIONS, lambda: form(('name="file"; filename="a.wav"', bytes(most + MiB))), FORM),
            {413},
        ),
        Attack(
            "a thousand fields",
            post(ROUTE, lambda: form(*[(f'name="f{number}"', b"a") for number in range(1000)]), FORM),
            {400},
        ),
        Attack(
            "a hundred files",
            post(
                ROUTE, lambda: form(*[(f'name="file"; filename="{number}.wav"', b"a") for number in range(100)]), FORM
            ),
            {400},
        ),
        Attack(
            "a part's head without end",
            post(ROUTE, lambda: b'--XX\r\nContent-Disposition: form-data; name="' + b"a" * (most // 2), FORM),
            {400},
        ),
        Attack("heads without end", post(ROUTE, lambda: b"--XX\r\n" + b"A: b\r\n" * (most // 16), FORM), {400}),
        Attack(
            "almost boundaries",
            post(ROUTE, lambda: form(('name="file"; filename="a.wav"', b"\r\n--X\r\n-" * (most // 20))), FORM),
            {400},
        ),
        Attack(
            "line breaks",
            post(ROUTE, lambda: form(('name="file"; filename="a.wav"', b"\r\n" * (most // 4))), FORM),
            {400},
        ),
        Attack(
            "a form in an address's way",
            post(ROUTE, lambda: b"a=b&" * (2 * MiB), "application/x-www-form-urlencoded"),
            {413},
        ),
        Attack(
            "a small one of many fields",
            post(ROUTE, lambda: b"a&" * 30_000, "application/x-www-form-urlencoded"),
            {400, 413},
        ),
        Attack(
            "chunks of a byte",
            raw(POST + "Transfer-Encoding: chunked", lambda: b"1\r\nx\r\n" * 300_000),
            {None, 400, 413},
        ),
        Attack(
            "chunks with extensions",
            raw(POST + "Transfer-Encoding: chunked", lambda: (b"1;" + b"a" * 29 + b"\r\nx\r\n") * 100_000),
            {None, 400, 413},
        ),
        Attack("half a character in a name", post(JOIN, b'{"\\ud800": 1, "data": []}'), {400}),
        Attack("a cancellation of nothing", post("/gradio_api/cancel", b"{}"), {400}),
        Attack(
            "pipelined requests",
            raw("GET /healthz HTTP/1.1\r\nHost: HOST", lambda: b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 2000),
            {200},
        ),
        Attack("a path of 12 KiB", raw("GET /" + "a" * 12_000 + " HTTP/1.1\r\nHost: HOST"), {404}),
        Attack("slashes in 12 KiB", raw("GET /" + "assets/" * 1_700 + " HTTP/1.1\r\nHost: HOST"), {404}),
        Attack("a long path", raw("GET /" + "a" * 60_000 + " HTTP/1.1\r\nHost: HOST"), {400}),
        Attack("many slashes", raw("GET /" + "assets/" * 8_000 + " HTTP/1.1\r\nHost: HOST"), {400}),
        Attack("a path of percents", raw("GET /" + "%2e%2e/" * 8_000 + " HTTP/1.1\r\nHost: HOST"), {400}),
        Attack("a long query", raw("GET /?" + "a=b&" * 15_000 + " HTTP/1.1\r\nHost: HOST"), {400}),
        Attack("many headers", raw("GET /healthz HTTP/1.1\r\nHost: HOST" + "\r\na: b" * 10_000), {200, 400}),
        Attack("a long host", raw("GET / HTTP/1.1\r\nHost: " + "a." * 20_000), {400}),
        Attack(
            "a password without end", raw("GET / HTTP/1.1\r\nHost: HOST\r\nAuthorization: Basic " + "A" * 60_000), {400}
        ),
        Attack(
            "a WebSocket",
            raw(
                "GET /gradio_api/queue/data HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13"
            ),
            {404},
        ),
        Attack("no HTTP", raw("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), {400}),
    ]


def foreign() -> list[Attack]:
    """By a page of the web that the user visits."""
    good = form(('name="model"', b"demo-article"), ('name="file"; filename="a.wav"', b"RIFF"))
    return [
        *(
            Attack(f"host {host}", raw(f"GET /healthz HTTP/1.1\r\nHost: {host}"), {403})
            for host in (
                "evil.example",
                "evil.example:7860",
                "127.0.0.1.evil.example",
                "localhost.evil.example",
                "192.168.1.1",
                "[::2]",
                "",
                "127.0.0.1@evil.example",
                "a b",
            )
        ),
        *(
            Attack(
                f"origin {origin} at {path}",
                post(
                    path,
                    good if path in (ROUTE, TRANSLATIONS) else b"{}",
                    FORM if path in (ROUTE, TRANSLATIONS) else "application/json",
                    {"Origin": origin},
                ),
                {403},
            )
            for origin in (
                "http://evil.example",
                "null",
                "http://127.0.0.1:1",
                "https://127.0.0.1",
                "http://localhost.evil.example",
            )
            for path in (ROUTE, TRANSLATIONS, JOIN, UPLOAD, "/gradio_api/cancel")
        ),
    ]


# ---- the heartbeat --------------------------------------------------------------------------------------------------------

BEAT = """
import socket, sys, time
address, worst = sys.argv[1].split(":"), 0.0
connection = None
print("begun", flush=True)
while True:
    began = time.monotonic()
    try:
        if connection is None:
            connection = socket.create_connection(address, timeout=60)
        connection.sendall(b"GET /healthz HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\n\\r\\n")
        if not connection.recv(4096):
            connection = None
            continue
    except OSError:
        connection = None
        continue
    now = time.monotonic()
    if now - began > worst:
        worst = now - began
        print(f"{worst:.3f}", flush=True)
    time.sleep(0.01)
"""


@contextmanager
def heartbeat(url: str) -> Iterator[Callable[[], float]]:
    """Asks /healthz again and again, in a process of its own. -> what gives the longest time that an answer took."""
    process = subprocess.Popen(
        [sys.executable, "-c", BEAT, url.removeprefix("http://")], stdout=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    lines: list[str] = []

    def worst() -> float:
        time.sleep(0.1)
        process.kill()
        lines.extend(process.stdout.read().split())
        return float(lines[-1]) if lines else float("inf")

    try:
        yield worst
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
