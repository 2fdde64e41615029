"""What stands in front of the server and of Gradio, piece by piece: gate, calls, routes, the page's files."""

import asyncio
import base64
import json
import logging
import os
import random
import re
import threading
import time
from pathlib import Path
from queue import SimpleQueue

import pytest

pytest.importorskip("gradio", reason="needs the extra [web]")
httpx = pytest.importorskip("httpx", reason="needs the extra [test]")

from helpers import ROOT  # noqa: E402

from glmasr.pipeline import Options  # noqa: E402
from glmasr.server import (  # noqa: E402
    addresses,
    api,
    call_body,
    calls,
    fence,
    gate,
    main,
    messages,
    page,
    private_folder,
    request_queue,
    sessions,
    uploads,
)
from glmasr.server.problems import Problem  # noqa: E402

CHOICES = {"language": ["auto", "zh"]}  # of a model that does not translate
MORE = CHOICES | {"task": ["transcribe", "translate"]}


@pytest.fixture
def kept(tmp_path):
    return uploads.Uploads(tmp_path / "page", 2**20, 5)


def ask(app, path="/v1/models", method="GET", url="http://localhost", **more):
    async def run():
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url=url
        ) as client:
            return await client.request(method, path, **more)

    return asyncio.run(run())


def known_hosts(arguments):
    """As of the server with these options."""
    args = main.arguments(arguments)
    return addresses.known_hosts(args.host, args.port, args.allow_host)


# ---- the gate -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host, known",
    [
        ("localhost", True),
        ("localhost:7860", True),
        ("LOCALHOST.", True),
        ("127.0.0.1:1", True),
        ("[::1]:7860", True),
        ("asr.example", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("[::2]", False),
        ("127.0.0.1@evil.example", False),
        ("evil.example:localhost", False),
        ("", False),
    ],
)
def test_hosts(tmp_path, host, known):
    hosts = known_hosts(["--allow-host", "ASR.example"])
    app = api.make_app(request_queue.RequestQueue({}), str(tmp_path), hosts=hosts)
    for path in ("/v1/models", "/metrics"):
        answer = ask(app, path, headers={"Host": host})
        assert answer.status_code == (200 if known else 403)
        assert (
            known
            or answer.json()["error"]["code"] == "unknown_host"
            and "--allow-host" in answer.json()["error"]["message"]
        )


@pytest.mark.parametrize(
    "arguments, names",
    [
        ([], {"localhost", "127.0.0.1", "[::1]"}),
        (["--host", "localhost"], {"localhost", "127.0.0.1", "[::1]"}),
        (["--host", "127.0.0.2"], {"localhost", "127.0.0.1", "[::1]", "127.0.0.2"}),
        (["--host", "::1"], {"localhost", "127.0.0.1", "[::1]"}),
        (["--host", "0.0.0.0"], None),
        (["--host", "::"], None),
        (
            ["--host", "0.0.0.0", "--allow-host", "a.example"],
            {"localhost", "127.0.0.1", "[::1]", "0.0.0.0", "a.example"},
        ),
    ],
)
def test_known_hosts(arguments, names):
    assert known_hosts(arguments) == names


@pytest.mark.parametrize(
    "origin, host, scheme, allowed",
    [
        ("http://localhost:7860", "localhost:7860", "http", True),
        ("https://asr.example", "asr.example", "http", True),
        ("http://asr.example", "asr.example:80", "http", True),
        ("https://asr.example", "asr.example:443", "http", True),
        ("https://friend.example", "asr.example", "http", True),
        ("http://friend.example", "asr.example", "http", False),
        ("http://localhost:1", "localhost:7860", "http", False),
        ("null", "localhost", "http", False),
        ("file://", "localhost", "http", False),
        ("http://evil.example", "localhost", "http", False),
    ],
)
def test_origins(tmp_path, origin, host, scheme, allowed):
    app = api.make_app(request_queue.RequestQueue({}), str(tmp_path), origins=("https://friend.example",))
    headers = {"Origin": origin, "Host": host}
    for method in ("POST", "DELETE", "PUT"):
        answer = ask(app, "/v1/nothing", method, headers=headers)
        assert answer.status_code == (404 if allowed else 403)
    assert ask(app, headers=headers).status_code == 200  # what changes nothing, the browser keeps from the page itself


def test_two_of_a_header_are_refused(tmp_path):
    app = api.make_app(request_queue.RequestQueue({}), str(tmp_path))
    for name, values in (
        ("Origin", ("http://localhost", "http://evil.example")),
        ("Content-Type", ("multipart/form-data; boundary=x", "a/b; charset=punycode")),
    ):
        answer = ask(app, gate.ROUTES["transcribe"], "POST", headers=[(name, value) for value in values])
        assert answer.status_code == 400 and name.lower() in answer.json()["error"]["message"]


# ---- a cancellation that coincides with an event ---------------------------------------------------------------------------


def test_a_cancellation_that_coincides_with_an_event_gives_the_place_back():
    """In one turn of the event loop the worker says something, and the client leaves."""

    async def run():
        queue = request_queue.RequestQueue({}, time_limit=1000)
        sent = []
        queue._send, queue.ready = sent.append, messages.Ready([], True, [], {})
        for event in (messages.Began(1, 2.0), messages.PartReady(1, None)):
            events = queue.recognize("talk.wav", "auto", Options())
            task = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)
            [request] = queue.running.values()
            request.events.put_nowait(event)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await events.aclose()
            assert not queue.running and not queue.waiting and isinstance(sent[-1], messages.Cancel)

        async def receive():
            await ready.wait()
            return {"type": "http.request", "body": b"x", "more_body": True}

        ready = asyncio.Event()
        watched = asyncio.ensure_future(gate.Body(gate.Gate(None, queue, "", 100, None, ()), receive, 100).receive())
        await asyncio.sleep(0)
        ready.set()
        watched.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watched

    asyncio.run(run())


def test_a_hanging_worker_does_not_hold_the_event_loop():
    """More messages than the pipe takes."""

    async def run():
        queue = request_queue.RequestQueue({})
        queue.ready = messages.Ready([], True, [], {})
        reader, writer = __import__("multiprocessing").Pipe()
        queue._outbox = __import__("queue").SimpleQueue()
        __import__("threading").Thread(target=queue._write_pipe, args=(writer, queue._outbox), daemon=True).start()
        for _ in range(3000):
            events = queue.recognize("talk.wav" * 20, "auto", Options())
            task = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await events.aclose()
        assert not queue.running
        reader.close()

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_worker_that_dies_amid_a_message_leaves_no_error():
    """Its pipe is closed by whoever writes into it, not while that writes."""
    done = []

    class Pipe:
        def __init__(self):
            self.begun, self.goes_on = threading.Event(), threading.Event()

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.close()

        def close(self):
            done.append("closed")

        def send(self, message):
            self.begun.set()
            self.goes_on.wait(10)
            done.append("written")
            raise BrokenPipeError

    async def run():
        queue = request_queue.RequestQueue({})
        queue._loop, queue.closing = asyncio.get_running_loop(), True
        queue._pipe, queue._outbox = pipe, outbox = Pipe(), SimpleQueue()
        writing = threading.Thread(target=queue._write_pipe, args=(pipe, outbox), daemon=True)
        writing.start()
        queue._send(messages.Clear(1))
        assert await asyncio.to_thread(pipe.begun.wait, 10)
        queue._died(pipe)
        pipe.goes_on.set()
        await asyncio.to_thread(writing.join, 10)

    asyncio.run(run())
    assert done == ["written", "closed"]


# ---- the body of a call ---------------------------------------------------------------------------------------------------


def read(kept, pieces):
    """-> the call, and the content of the recording that came with it, None without one."""

    async def run():
        left = list(pieces)

        async def receive():
            part = left.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(left)}

        body = call_body.CallBody(kept)
        try:
            call = await body.read(receive)
            return json.loads(json.dumps(call).replace(body.token, "HERE")), body.path and Path(body.path).read_bytes()
        finally:
            if body.path:
                kept.drop(body.path)

    return asyncio.run(run())


def cut(body, chance):
    places = sorted({0, len(body), *(chance.randrange(len(body) + 1) for _ in range(chance.choice([0, 1, 5, 200])))})
    return [body[start:end] for start, end in zip(places, places[1:])] or [b""]


def test_a_recording_is_taken_out_of_a_call_however_it_comes(kept):
    chance = random.Random(1)
    for _ in range(300):
        content = chance.randbytes(chance.choice([0, 1, 2, 3, 100, 5000, 100_000]))
        text = base64.b64encode(content).decode()
        text = "".join(
            chance.choice([letter, letter, letter, "\\/" if letter == "/" else f"\\u{ord(letter):04x}"])
            if chance.random() < 0.05
            else letter
            for letter in text
        )
        if chance.random() < 0.3:
            text = re.sub(
                "(.{76})(?=.{8})",
                lambda line: (
                    line[1]
                    if line[1].endswith(("\\", "\\u")) or "\\" in line[1][-6:]
                    else line[1] + chance.choice(["\\n", " ", "\\r\\n"])
                ),
                text,
            )
        head = chance.choice(
            [
                "data:audio/wav;base64,",
                "data:;base64,",
                "DATA:audio\\/x-wav;BASE64,",
                'data:audio/ogg; codecs=\\"opus\\";base64,',
            ]
        )
        body = f'{{ "a": "a \\"data\\" text", "data" :[{{"name":"x","data":"{head}{text}"}},"auto"], "z": [1, "}}"]}}'.encode()
        call, found = read(kept, cut(body, chance))
        assert found == content
        assert call == {"a": 'a "data" text', "data": [{"name": "x", "data": "HERE"}, "auto"], "z": [1, "}"]}
    kept.leaving.join()
    assert not kept.files and kept.bytes == 0 and not list(kept.folder.iterdir())


@pytest.mark.parametrize(
    "body, status",
    [
        (b"", 400),
        (b"[]", 400),
        (b"{", 400),
        (b'{"data": ["data:a/b;base64,AAA"]}', 400),
        (b'{"data": ["data:a/b;base64,AA==A"]}', 400),
        (b'{"data": ["data:a/b;base64,A\xff=="]}', 400),
        (b'{"data": ["data:a/b;base64,AAAA', 400),
        (b'{"data": ["data:a/b;base64,AAAA\\"]}', 400),
        (b'{"data": ["data:a/b;base64,AAA\\u004', 400),
        (b'{"data": ["data:a/b;base64,\\x"]}', 400),
        (b'{"data": ["data:a/b;base64,AA=","A"]}', 400),
        (b"[" * 60_000, 400),
        (b'{"a":' * 12_000, 400),
        (b'{"a": 1e999}', 200),
        (b'{"a": NaN}', 400),
        (b"[" * 70_000, 413),
        (b'{"a": "' + b"a" * 70_000, 413),
        (b'{"data": ["data:a/b;base64,' + b"A" * 2**21 + b'"]}', 507),
        (b'{"data": ["data:a/b;base64,AAAA", "' + b"a" * 70_000, 413),
    ],
)
def test_calls_that_cannot_be_read(kept, body, status):
    for pieces in ([body], cut(body, random.Random(2))):
        if status == 200:
            read(kept, pieces)
            continue
        with pytest.raises(Problem) as caught:
            read(kept, pieces)
        assert caught.value.status == status
        kept.leaving.join()
        assert not kept.files and not list(kept.folder.iterdir())


@pytest.mark.parametrize(
    "call, param",
    [
        ({"data": [None, "auto"]}, "session_hash"),
        ({"data": [None, "auto"], "session_hash": "a b"}, "session_hash"),
        ({"data": [None, "auto"], "session_hash": "s" * 65}, "session_hash"),
        ({"data": [None, "auto"], "session_hash": "s", "fn_index": 2}, "fn_index"),
        ({"data": [None, "auto"], "session_hash": "s", "fn_index": True}, "fn_index"),
        ({"data": [None, "auto"], "session_hash": "s", "fn_index": -1}, "fn_index"),
        ({"data": [None, "auto"], "session_hash": "s", "event_data": {"path": "x"}}, "event_data"),
        ({"data": [None, "auto"], "session_hash": "s", "oauth_token": "x"}, "oauth_token"),
        ({"data": [None, "auto"], "session_hash": "s", "simple_format": True}, "simple_format"),
        ({"data": [None, "fr"], "session_hash": "s"}, "language"),
        ({"data": [None, ["auto"]], "session_hash": "s"}, "language"),
        ({"data": [None, "a" * 201], "session_hash": "s"}, "language"),
        ({"data": {"a": 1}, "session_hash": "s"}, "data"),
        ({"session_hash": "s"}, "data"),
        ({"data": [None, "auto", 1], "session_hash": "s"}, "data"),
        ({"data": [None, "auto", True], "session_hash": "s", "fn_index": 1}, "data"),
        ({"data": [None, "auto", 1, False, 0, False, "", ""], "session_hash": "s", "fn_index": 1}, "data"),
        ({"data": [None, "auto", True, 1, 0, False, "", ""], "session_hash": "s", "fn_index": 1}, "data"),
        ({"data": [None, "auto", True, 0, False, "", ""], "session_hash": "s", "fn_index": 1}, "data"),
        ({"data": [None, "auto", True, False, "0", False, "", ""], "session_hash": "s", "fn_index": 1}, "data"),
        ({"data": [None, "auto", True, False, True, False, "", ""], "session_hash": "s", "fn_index": 1}, "data"),
        ({"data": [None, "auto", True, False, 11, False, "", ""], "session_hash": "s", "fn_index": 1}, "data"),
        ({"data": [None, "auto", True, False, 0, False, "\ud800", ""], "session_hash": "s", "fn_index": 1}, "data"),
        ({"data": [None, "auto", True, False, 0, False, "", "a" * 20_001], "session_hash": "s", "fn_index": 1}, "data"),
        ({"data": [None, "auto", True, False, 0, False, "", ["a"]], "session_hash": "s", "fn_index": 1}, "data"),
        ({"data": [{"path": "/etc/hostname"}, "auto"], "session_hash": "s"}, "data"),
        ({"data": [{"path": ["x"]}, "auto"], "session_hash": "s"}, "data"),
    ],
)
def test_what_a_call_may_not_say(kept, call, param):
    with pytest.raises(Problem) as caught:
        calls.checked_call(call, True, call_body.CallBody(kept), kept, CHOICES)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_what_a_call_may_say(kept):
    path = kept.new("talk.wav")
    sent = {
        "path": path,
        "url": "http://x/y",
        "orig_name": "talk.wav",
        "size": 3,
        "mime_type": "audio/wav",
        "is_stream": False,
        "meta": {"_type": "gradio.FileData"},
    }
    call = {
        "data": [sent, "zh", True, False, 0, False, "", ""],
        "fn_index": 1,
        "session_hash": "s.1-2_3",
        "trigger_id": 14,
        "event_data": None,
        "batched": False,
    }
    body = call_body.CallBody(kept)
    assert calls.checked_call(call, True, body, kept, CHOICES) == {
        "data": [path, "zh", True, False, 0, False, "", ""],
        "fn_index": 1,
        "session_hash": "s.1-2_3",
        "trigger_id": 14,
    }
    named = calls.checked_call(
        call | {"data": [sent, "zh-CN", True, False, 0, False, "", ""]}, True, body, kept, CHOICES
    )
    assert named["data"][1] == "zh"  # Gradio knows the codes only
    assert kept.files[path].session == "s.1-2_3"
    for value in (path, body.token):  # by themselves they are nothing that came with the call
        with pytest.raises(Problem, match="expected a data URI"):
            calls.checked_call({"data": [value]}, False, body, kept, CHOICES)
    body.path = kept.new("recording.wav", once=True)
    assert calls.checked_call({"data": [body.token], "session_hash": "s"}, False, body, kept, CHOICES) == {
        "data": [body.path, "auto"],
        "session_hash": "s",
    }


def test_a_call_may_ask_for_a_translation_where_the_model_translates(kept):
    def checked(choices, number, *values):
        return calls.checked_call(
            {"data": [None, *values], "fn_index": number, "session_hash": "s"},
            True,
            call_body.CallBody(kept),
            kept,
            choices,
        )["data"]

    shown = ("zh", True, False, 0, False, "", "")
    assert (
        checked(MORE, 0) == checked(MORE, 0, "auto", "transcribe") == [None, "auto", "transcribe"]
    )  # two values, and less, are still a call
    assert checked(MORE, 0, "zh") == [None, "zh", "transcribe"] and checked(MORE, 0, "zh", "translate") == [
        None,
        "zh",
        "translate",
    ]
    assert checked(MORE, 1, *shown, "translate") == [None, *shown, "translate"]
    for choices, number, values, param in (
        (CHOICES, 0, ("zh", "translate"), "data"),
        (CHOICES, 0, ("zh", "transcribe"), "data"),
        (CHOICES, 1, (*shown, "translate"), "data"),
        (MORE, 1, shown, "data"),
        (MORE, 0, ("zh", "summarize"), "task"),
        (MORE, 0, ("zh", None), "task"),
        (MORE, 0, ("zh", ["translate"]), "task"),
        (MORE, 0, ("zh", {"path": "/etc/hostname"}), "task"),
        (MORE, 1, (*shown, ""), "task"),
        (MORE, 0, ("zh", "translate", 1), "data"),
        (MORE, 0, ("translate",), "language"),
        (MORE, 1, ("zh", "translate", *shown[1:]), "data"),
    ):
        with pytest.raises(Problem) as caught:
            checked(choices, number, *values)
        assert (caught.value.status, caught.value.param) == (400, param), (number, values)


# ---- the page's files -----------------------------------------------------------------------------------------------------


def test_names_of_uploads():
    for name, expected in (
        ("talk.wav", "talk.wav"),
        ("../../etc/passwd", "passwd"),
        ("C:\\a\\b.mp3", "b.mp3"),
        ("", "recording"),
        ("...", "recording"),
        (".wav", "wav"),
        ("a\x1b[31m\r\n.wav", "a[31m.wav"),
        ("\u202egnp.wav", "gnp.wav"),
        ("录音.m4a", "录音.m4a"),
        ('a<b>:"|?*.wav', "a_b______.wav"),
        ("a\0b.wav", "ab.wav"),
        ("\ud800x.wav", "x.wav"),
    ):
        assert uploads.plain(name) == expected
    for name in ("a" * 5000 + ".wav", "录" * 5000 + ".flac", "." * 5000 + "x", "a." + "b" * 5000):
        assert len(uploads.plain(name).encode()) <= uploads.LONGEST_NAME


def test_files_have_a_quota(kept):
    paths = [kept.new("a.wav") for _ in range(5)]
    with pytest.raises(Problem, match="most-kept") as caught:
        kept.new("a.wav")
    assert caught.value.status == 507
    kept.drop(paths.pop())
    kept.leaving.join()
    kept.grow(paths[0], 2**20 - 10)
    kept.grow(paths[1], 10)
    with pytest.raises(Problem) as caught:
        kept.grow(paths[1], 1)
    assert caught.value.status == 507 and kept.bytes == 2**20
    kept.drop(paths[0])
    kept.leaving.join()
    kept.grow(paths[1], 1)
    with pytest.raises(Problem) as caught:
        kept.grow(paths[0], 1)
    assert caught.value.status == 410 and kept.bytes == 11
    for path in paths:
        kept.drop(path)
    kept.leaving.join()
    assert kept.bytes == 0 and not list(kept.folder.iterdir())


def test_files_stay_as_long_as_they_are_needed(kept, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def left():
        kept.tidy()
        return {Path(path).name for path in kept.files}

    nobody, shown, once, busy = (
        kept.new("nobody"),
        kept.new("shown"),
        kept.new("once", once=True),
        kept.new("busy", once=True),
    )
    kept.show(shown, "s")
    kept.keep("result", b"text", beside=shown)
    kept.page_opened("s")
    with kept.use(busy):
        now += uploads.SOON + 1
        assert left() == {"nobody", "shown", "result", "busy"}
        now += uploads.KEEP
        assert left() == {"shown", "result", "busy"} and kept.find(nobody) is kept.find(once) is None
    assert left() == {"shown", "result"}
    kept.page_opened("s")
    kept.page_left("s")
    assert left() == {"shown", "result"}  # another connection of the same page
    kept.page_left("s")
    now += uploads.RETURN - 1
    assert left() == {"shown", "result"}  # it may come back
    now += 2
    kept.tidy()
    kept.leaving.join()
    assert left() == set() and kept.bytes == 0
    first, second = kept.new("first"), kept.new("second")
    for path in (first, second):
        kept.show(path, "s")
    assert left() == {"second"}  # another recording takes its place


def test_many_files_that_go_at_once_hold_nobody_up(tmp_path):
    kept = uploads.Uploads(tmp_path / "page", 2**30)
    for _ in range(uploads.MOST_FILES):
        kept.files[kept.new("a")].used -= 2 * uploads.KEEP
    began = time.monotonic()
    kept.tidy()
    assert time.monotonic() - began < 0.2 and not kept.files
    kept.leaving.join()
    assert not list(kept.folder.iterdir())


def test_a_recording_that_is_worked_on_stays_until_that_is_done(kept):
    first, second = kept.new("first"), kept.new("second")
    kept.show(first, "s")
    with kept.use(first):
        kept.show(second, "s")
        assert Path(first).exists() and first in kept.files
    kept.leaving.join()
    assert not Path(first).exists() and first not in kept.files and second in kept.files


def test_what_gradio_keeps_of_sessions_that_left_goes(monkeypatch):
    from types import SimpleNamespace

    now = 1000.0
    monkeypatch.setattr(sessions.time, "monotonic", lambda: now)

    def queue_data_helper(session_hash):
        async def heartbeat():
            while session_hash:
                await asyncio.sleep(15)

        return heartbeat()

    async def run():
        nonlocal now
        queues = {name: asyncio.Queue() for name in ("read", "unread", "open")}
        queues["unread"].put_nowait("text")
        waiting = SimpleNamespace(
            pending_messages_per_session=queues,
            pending_event_ids_session={"unread": {"1"}, "open": {"2"}},
            event_ids_to_events={"1": 1, "2": 2},
        )
        tasks = {name: asyncio.ensure_future(queue_data_helper(name)) for name in ("open", "gone")}
        unread: dict[str, float] = {}
        sessions.tidy_sessions(waiting, unread)
        await asyncio.sleep(0)
        assert set(queues) == {"read", "unread", "open"} and set(unread) == {"unread"}
        now += uploads.KEEP + 1
        sessions.tidy_sessions(waiting, unread)
        await asyncio.gather(tasks["gone"], return_exceptions=True)
        assert (
            set(queues) == {"read", "open"}
            and waiting.event_ids_to_events == {"2": 2}
            and not tasks["open"].done()
            and tasks["gone"].cancelled()
        )
        sessions.tidy_sessions(waiting, unread)
        assert not unread
        tasks["open"].cancel()

    asyncio.run(run())


# ---- Gradio's routes ------------------------------------------------------------------------------------------------------

# Those of Gradio 6.31 that nobody needs here, so that one that is new is looked at by somebody.
CLOSED = """/login_check /token /user /app_id /dev/reload /login /logout /svelte/{path:path} /{page} /runs /run-history/connect /run-history/buckets /run-history/records
/run-history/records/{endpoint}/{record_id}/assets/{asset_id} /gradio_api/deep_link /openapi.json /custom_component/{id}/{environment}/{type}/{file_name} /proxy={url_path:path}
/file={path_or_url:path} /stream/{event_id} /stream/{event_id}/close /stream/{session_hash}/{run}/{component_id}/playlist.m3u8
/stream/{session_hash}/{run}/{component_id}/{segment_id}.{ext} /stream/{session_hash}/{run}/{component_id}/playlist-file /file/{path:path} /reset /heartbeat/{session_hash}
/run/{api_name} /api/{api_name} /call/v2/{api_name} /call/v2/{api_name}/{event_id} /component_server /queue/status /upload_progress /upload /startup-events /robots.txt /pwa_icon
/pwa_icon/{size} /monitoring /monitoring/summary /monitoring/{key} /process_recording /vibe-edit /undo-vibe-edit /vibe-code /vibe-starter-queries /profiling/traces
/profiling/summary /profiling/clear /theme.css /static/{path:path}""".split()


@pytest.fixture(scope="module")
def application(tmp_path_factory):
    """The server with its page, without a messages."""
    folder = tmp_path_factory.mktemp("server")
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "page")
    queue = request_queue.RequestQueue({})
    queue.facts = messages.Ready(["auto", "zh"], True, ["transcribe"], {"device": "cpu", "dtype": "float32"})
    app = api.make_app(queue, str(folder))
    page.add(app, queue, uploads.Uploads(folder / "page", 2**20), "demo", most_bytes=2**20, max_duration=60)
    yield app
    os.environ.pop("GRADIO_TEMP_DIR") if before is None else os.environ.update(GRADIO_TEMP_DIR=before)


def routes(app):
    """(method, path) of all routes that Gradio registers."""
    found = set()

    def walk(router, prefix=""):
        for route in router.routes:
            path = prefix + getattr(route, "path", "")
            if getattr(route, "methods", None):
                found.update((method, path) for method in route.methods)
            elif (
                inner := getattr(route, "original_router", None)
                or getattr(getattr(route, "app", None), "routes", None)
                and route.app
            ):
                walk(
                    inner,
                    prefix
                    + (getattr(getattr(route, "include_context", None), "prefix", "") or getattr(route, "path", "")),
                )

    walk(app)
    return found


def test_every_route_of_gradio_is_known(application):
    gradio_app = application.router.routes[-1].app.app
    found = routes(gradio_app)
    assert len(found) > 60, found
    values = {"path": "x", "page": "x", "api_name": "transcribe", "event_id": "0" * 32, "session_hash": "s"}
    for method, pattern in sorted(found):
        path = re.sub(r"\{(\w+)(?::path)?\}", lambda part: values.get(part[1], "x"), pattern)
        scope = {"type": "http", "method": method, "path": path, "query_string": b""}
        short = pattern.removeprefix("/gradio_api").rstrip("/") or "/"
        if fence.allowed(scope):
            continue
        assert (
            short in CLOSED
            or pattern.rstrip("/") in CLOSED
            or any(fence.allowed(scope | {"path": path.rstrip("/"), "method": other}) for other in ("GET", "POST"))
        ), f"{method} {pattern} is new in this version of Gradio: may it be reached?"
        if path != "/openapi.json" and not any(
            part in path for part in ("/upload", "/file=", "/heartbeat/")
        ):  # which are ours
            answer = ask(application, path, method)
            assert answer.status_code == 404 and (
                method == "HEAD" or answer.json()["error"]["code"] == "unknown_url"
            ), (method, path, answer.text)


def test_what_the_page_needs_is_open(application):
    index = ask(application, "/").text
    assert ask(application, "/", "HEAD").status_code == 200
    for path in (
        *set(re.findall(r'"\./((?:assets|static)/[\w./-]+)"', index)),
        "theme.css?v=1",
        "config",
        "gradio_api/info?serialize=False",
        "manifest.json",
        "favicon.ico",
    ):
        assert ask(application, f"/{path}").status_code == 200, path


def test_the_routes_are_written_down():
    text = (ROOT / "docs/SERVER.md").read_text(encoding="utf-8")
    for route in fence.ROUTES:
        name = route.path.replace("(?:js|img|fonts|css)/", "").replace(fence.FILES, "...").replace(fence.NAME, "ID")
        assert f"| `{route.method} {name}` |" in text, name


def test_each_promise_names_the_test_that_holds_it():
    text = (ROOT / "docs/SERVER.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| [^|]+ \| (`test_\w+\.py: [^|]+`) \|$",
        text.partition("## Promises")[2].partition("\n## ")[0],
        re.MULTILINE,
    )
    assert len(rows) >= 20
    for row in rows:
        for file, names in re.findall(r"`(test_\w+\.py): ([\w, ]+)`", row):
            source = (ROOT / "tests" / file).read_text(encoding="utf-8")
            for name in names.split(", "):
                assert f"def {name}(" in source, (file, name)


# ---- the server's folder, and its log -------------------------------------------------------------------------------------


def test_leftovers_are_removed_and_folders_in_use_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(private_folder.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(private_folder.tempfile, "tempdir", str(tmp_path))
    other, link, young = (
        tmp_path / "other",
        tmp_path / f"{private_folder.PREFIX}link",
        tmp_path / f"{private_folder.PREFIX}young",
    )
    for folder in (other, young):
        folder.mkdir()
    link.symlink_to(other)
    left, old = tmp_path / f"{private_folder.PREFIX}left", tmp_path / f"{private_folder.PREFIX}old"
    for folder in (left, old):
        (folder / "page/0123").mkdir(parents=True)
    (left / "lock").touch()
    os.utime(old, (0, 0))
    with private_folder.private_folder() as folder:
        assert not left.exists() and not old.exists()
        with private_folder.private_folder():
            assert Path(folder).exists() and other.exists() and link.exists() and young.exists()
    assert sorted(tmp_path.iterdir()) == sorted([other, link, young])


def test_a_log_has_no_control_characters(capsys):
    handler = logging.StreamHandler()
    handler.setFormatter(main.Escaping("%(message)s"))
    log = logging.Logger("test")
    log.addHandler(handler)
    try:
        raise ValueError("a\x1b[31mb\rc")
    except ValueError:
        log.exception("name %s", "\x1b]0;title\x07\r\nforged line\u202e")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", capsys.readouterr().err)
