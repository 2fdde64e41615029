"""The realtime API of a running server: OpenAI's own client, and what its socket has to stand."""

import asyncio
import base64
import io
import json
import os
import re
import signal
import socket
import struct
import threading
import time
from contextlib import suppress

import pytest

pytestmark = pytest.mark.web
pytest.importorskip("gradio", reason="needs the extra [web]")
httpx = pytest.importorskip("httpx", reason="needs the extra [test]")
openai = pytest.importorskip("openai", reason="needs the extra [test]")
websockets = pytest.importorskip("websockets", reason="needs the extra [web]")
np = pytest.importorskip("numpy")
soundfile = pytest.importorskip("soundfile")

from helpers import attacks  # noqa: E402
from helpers.attacks import MiB  # noqa: E402
from helpers.server import ROOT, Server  # noqa: E402
from websockets.asyncio.client import connect  # noqa: E402

from glmasr import audio  # noqa: E402
from glmasr.server import connections, gate, request_queue  # noqa: E402

MODEL, TEXT = "demo-article", "five five five zero one three six"
PATH = "/v1/realtime?intent=transcription"
BEAT = 0.2  # seconds in which /healthz has to answer, whatever comes beside it
FREE = 100 * MiB  # that memory may grow by


@pytest.fixture(scope="module")
def server():
    with Server("--no-page") as running:
        yield running
    assert running.process.returncode == 0 and not list(running.temporary.iterdir())
    assert not re.search(r"Traceback|five|[\x00-\x08\x0b-\x1f\x7f]", running.log), running.log


@pytest.fixture(autouse=True)
def it_works_afterwards(request):
    """No place is taken, and the next session is answered."""
    yield
    if "server" in request.fixturenames:
        server = request.getfixturevalue("server")
        idle = {"status": "ok", "waiting": 0, "running": 0}
        server.until(lambda: httpx.get(f"{server.url}/healthz").json() == idle, 30)
        assert asyncio.run(transcript(server)) == TEXT


def digits(rate: int) -> np.ndarray:
    """The example between silence, samples (S,) from -1 to 1."""
    samples = audio.load(ROOT / "examples/en.mp3").numpy()
    whole = np.concatenate([np.zeros(8000, np.float32), samples, np.zeros(16_000, np.float32)])
    return audio.resample(audio.torch.from_numpy(whole), 16_000, rate).numpy()


def pcm() -> bytes:
    return (digits(24_000).clip(-1, 1) * 32767).round().astype("<i2").tobytes()


def g711(subtype: str) -> bytes:
    """Encoded by libsndfile."""
    file = io.BytesIO()
    soundfile.write(file, digits(8000), 8000, format="RAW", subtype=subtype)
    return file.getvalue()


def client(server, **more) -> "openai.AsyncOpenAI":
    url = f"{server.url}/v1"
    return openai.AsyncOpenAI(
        base_url=url, websocket_base_url=url.replace("http", "ws", 1), **{"api_key": "none", **more}
    )


def settings(kind: str = "audio/pcm", **sound) -> dict:
    return {
        "type": "transcription",
        "audio": {
            "input": {"format": {"type": kind}, "transcription": {"model": MODEL, "language": "en"}, **sound},
        },
    }


async def transcript(server, sound: bytes | None = None, kind: str = "audio/pcm", size: int = 9600) -> str:
    """What OpenAI's client is told, of sound that is sent as fast as it can be."""
    async with client(server).realtime.connect(extra_query={"intent": "transcription"}) as connection:
        await connection.session.update(session=settings(kind))
        sound = pcm() if sound is None else sound
        for start in range(0, len(sound), size):
            await connection.input_audio_buffer.append(audio=base64.b64encode(sound[start : start + size]).decode())
        async for event in connection:
            assert event.type != "error", event
            if event.type == "conversation.item.input_audio_transcription.completed":
                return event.transcript
    raise AssertionError("the connection was closed")


def address(server) -> str:
    return server.url.replace("http", "ws", 1) + PATH


def append(sound: bytes) -> str:
    return json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(sound).decode()})


def raw(server) -> socket.socket:
    """A connection after its handshake."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    connection.sendall(
        f"GET {PATH} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
    )
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 101"), answer
    return connection


def frame(content: bytes, opcode: int = 1, last: bool = True, mask: bool = True) -> bytes:
    """Masked with zeros."""
    size, flag = len(content), 0x80 * mask
    if size < 126:
        length = bytes([flag | size])
    else:
        length = struct.pack("!BH", flag | 126, size) if size < 2**16 else struct.pack("!BQ", flag | 127, size)
    return bytes([0x80 * last | opcode]) + length + (bytes(4) if mask else b"") + content


def closed(connection: socket.socket) -> bool:
    """Whether the server has closed it, within a minute."""
    with suppress(ConnectionError):
        while connection.recv(2**16):
            pass
    return True


# ---- OpenAI's client -------------------------------------------------------------------------------------------------


def test_text_comes_while_somebody_speaks(server):
    """At the pace of speech: the first words are there before the last ones are said."""

    async def run():
        found, sent = [], []
        async with client(server).realtime.connect(extra_query={"intent": "transcription"}) as connection:

            async def speak():
                sound = pcm()
                for start in range(0, len(sound), 4800):
                    await connection.input_audio_buffer.append(
                        audio=base64.b64encode(sound[start : start + 4800]).decode()
                    )
                    sent.append(start)
                    await asyncio.sleep(0.1)

            await connection.session.update(session=settings())
            speaking = asyncio.ensure_future(speak())
            async for event in connection:
                found.append((event, speaking.done()))
                if event.type.endswith("completed"):
                    break
            await speaking
        return found

    found = asyncio.run(run())
    kinds = [event.type.rpartition("transcription.")[2] for event, _ in found]
    assert [kind for kind in kinds if kind != "delta"] == [
        "session.created",
        "session.updated",
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "completed",
    ]
    deltas = [(event.delta, over) for event, over in found if event.type.endswith("delta")]
    assert "".join(delta for delta, _ in deltas) == found[-1][0].transcript == TEXT
    assert deltas[0][0].startswith("five") and not deltas[0][1]
    started, stopped = (found[kinds.index(f"input_audio_buffer.speech_{name}")][0] for name in ("started", "stopped"))
    assert started.audio_start_ms == pytest.approx(200, abs=150)
    assert stopped.audio_end_ms == pytest.approx(4400, abs=400)


@pytest.mark.parametrize("kind, subtype", [("audio/pcmu", "ULAW"), ("audio/pcma", "ALAW")])
def test_g711(server, kind, subtype):
    assert asyncio.run(transcript(server, g711(subtype), kind, 800)) == TEXT


def test_one_message_may_hold_it_all(server):
    assert asyncio.run(transcript(server, size=2**30)) == TEXT


def test_the_client_commits(server):
    async def run():
        texts = []
        async with client(server).realtime.connect(extra_query={"intent": "transcription"}) as connection:
            await connection.session.update(session=settings(turn_detection=None))
            for _ in range(2):
                await connection.input_audio_buffer.append(audio=base64.b64encode(pcm()).decode())
                await connection.input_audio_buffer.commit()
            await connection.input_audio_buffer.append(audio=base64.b64encode(pcm()).decode())
            await connection.input_audio_buffer.clear()
            async for event in connection:
                assert "speech" not in event.type and event.type != "error", event
                if event.type.endswith("completed"):
                    texts.append(event.transcript)
                if event.type == "input_audio_buffer.cleared":
                    break
            await connection.input_audio_buffer.commit()
            return texts, (await connection.recv()).error.code

    assert asyncio.run(run()) == ([TEXT, TEXT], "input_audio_buffer_commit_empty")


def test_the_older_client(server):
    async def run():
        kinds = []
        async with client(server).beta.realtime.connect(
            model=MODEL, extra_query={"intent": "transcription"}
        ) as connection:
            session = {"input_audio_format": "g711_ulaw", "input_audio_transcription": {"language": "en"}}
            await connection.transcription_session.update(session=session)
            await connection.input_audio_buffer.append(audio=base64.b64encode(g711("ULAW")).decode())
            async for event in connection:
                kinds.append(event.type)
                if event.type.endswith("completed"):
                    return kinds, event.transcript

    kinds, text = asyncio.run(run())
    assert text == TEXT and kinds[:2] == ["transcription_session.created", "transcription_session.updated"]
    assert "conversation.item.created" in kinds


def test_errors_do_not_end_a_session(server):
    async def run():
        async with connect(address(server)) as connection:
            await connection.recv()
            for message in (b"\x00", "{", '{"type": "response.create"}', append(b"123")):
                await connection.send(message)
                assert json.loads(await connection.recv())["type"] == "error"
            wrong = {"type": "session.update", "event_id": "mine", "session": settings()}
            wrong["session"]["audio"]["input"]["transcription"]["language"] = "xx"
            await connection.send(json.dumps(wrong))
            error = json.loads(await connection.recv())["error"]
            assert error["event_id"] == "mine" and error["param"].endswith("language"), error
            await connection.send(append(pcm()))
            kinds = []
            while "conversation.item.input_audio_transcription.completed" not in kinds:
                kinds.append(json.loads(await connection.recv())["type"])
            assert "error" not in kinds

    asyncio.run(asyncio.wait_for(run(), 60))


# ---- who gets in -----------------------------------------------------------------------------------------------------


def test_key_and_origin():
    with Server("--no-page", "--api-key", "secret", "--cors", "https://example.org") as locked:

        async def status(**more) -> int:
            try:
                async with connect(address(locked), **more) as connection:
                    assert json.loads(await connection.recv())["type"] == "session.created"
                    return 101
            except websockets.exceptions.InvalidStatus as refused:
                assert json.loads(refused.response.body)["error"]["code"]
                return refused.response.status_code

        async def run():
            key = {"Authorization": "Bearer secret"}
            assert await status() == await status(additional_headers={"Authorization": "Bearer wrong"}) == 401
            assert await status(additional_headers=key, origin="https://evil.example") == 403
            assert await status(additional_headers=key, origin="https://example.org") == 101
            assert await status(additional_headers=key, origin=locked.url) == 101
            browser = ["realtime", "openai-insecure-api-key.secret"]
            assert await status(subprotocols=browser) == 101
            assert await status(subprotocols=[browser[0], browser[1] + "x"]) == 401
            with pytest.raises(websockets.exceptions.InvalidStatus):
                async with client(locked, api_key="wrong").realtime.connect():
                    pass
            async with client(locked, api_key="secret").realtime.connect(model=MODEL) as connection:
                assert (await connection.recv()).type == "session.created"

        asyncio.run(run())
        assert "secret" not in locked.log


def test_of_64_sessions_as_many_as_may_are_answered_and_the_others_refused(server):
    async def one() -> str:
        try:
            return await transcript(server)
        except websockets.exceptions.InvalidStatus as refused:
            assert int(refused.response.headers["Retry-After"]) > 0
            return json.loads(refused.response.body)["error"]["code"]

    async def run() -> list[str]:
        return await asyncio.gather(*(one() for _ in range(64)))

    with attacks.heartbeat(server.url) as worst:
        found = asyncio.run(run())
        slowest = worst()
    assert sorted(set(found)) == [TEXT, "queue_full"]
    assert request_queue.SESSIONS <= found.count(TEXT) <= 2 * request_queue.SESSIONS, found.count(TEXT)
    assert slowest < 1.0, slowest  # 64 clients, and all that they send, are within this process, on the same cores
    metrics = httpx.get(f"{server.url}/metrics").text
    assert "glmasr_live_sessions 0.0" in metrics and 'glmasr_refused_requests_total{status="429"}' in metrics


# ---- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["at once", "amid a frame", "amid a message", "amid sound", "with a reset"])
def test_a_cut_connection_gives_its_place_back(server, where):
    connection = raw(server)
    message = frame(append(pcm()).encode())
    if where == "amid a frame":
        connection.sendall(message[:1000])
    elif where == "amid a message":
        connection.sendall(frame(b'{"type": "input_', last=False))
    elif where != "at once":
        for _ in range(20):  # more than may wait: the server doesn't read
            connection.sendall(message)
    if where == "with a reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    server.until(lambda: httpx.get(f"{server.url}/healthz").json()["running"] == 0, 10)


GARBAGE = {
    "no frames": b"\xff" * 1000,
    "HTTP": b"GET / HTTP/1.1\r\n\r\n" * 10,
    "without a mask": frame(b"{}", mask=False),
    "a reserved opcode": frame(b"{}", 3),
    "a reserved bit": bytes([0xC1]) + frame(b"{}")[1:],
    "no UTF-8": frame(b"\xff\xfe\x00"),
    "a long ping": frame(bytes(126), 9),
    "a ping in parts": frame(b"", 9, last=False),
    "the middle of a message": frame(b"{}", 0),
    "two beginnings": frame(b"{", last=False) + frame(b"}"),
    "a message of an exabyte": bytes([0x81]) + struct.pack("!BQ", 0xFF, 2**60) + bytes(4),
    "a message of 16 MiB": frame(bytes(connections.MESSAGE + 1)),
    "16 MiB in parts": frame(b"", last=False) + frame(bytes(2**20), 0, last=False) * 16,
    "a message without an end": frame(b"", last=False) + frame(b"", 0, last=False) * 100_000,
    "a bad close": frame(b"\x00", 8),
    "a close with a wrong code": frame(struct.pack("!H", 5), 8),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_closes_the_connection_and_holds_nobody_up(server, name):
    found = []
    for _ in range(3):  # a busy machine may be slow once
        with attacks.heartbeat(server.url) as worst, raw(server) as connection:
            with suppress(ConnectionError):
                connection.sendall(GARBAGE[name])
            assert closed(connection)
            found.append(worst())
        if found[-1] < BEAT:
            break
    assert found[-1] < BEAT, found


def pour(connection: socket.socket, content: bytes, seconds: float) -> int:
    """Sends the same again and again, as fast as it is taken, until time is over or the server closes. -> bytes."""
    connection.settimeout(0.5)
    sent, end = 0, time.monotonic() + seconds
    with suppress(ConnectionError):
        while time.monotonic() < end:
            with suppress(TimeoutError):
                sent += connection.send(memoryview(content)[sent % len(content) :])
    return sent


FLOODS = {
    "pings": frame(bytes(125), 9) * 1000,
    "tiny messages": frame(b"{}") * 10_000,
    "messages in tiny parts": (frame(b"{", last=False) + frame(b"", 0, last=False) * 50 + frame(b"}", 0)) * 100,
    "sound": frame(append(bytes(960)).encode()) * 100,
    "large messages": frame(append(bytes(10 * MiB)).encode()),
}


@pytest.mark.parametrize("what", FLOODS)
def test_a_flood_holds_nobody_up_and_takes_no_memory(server, what):
    """For three seconds, from a client that reads what it gets."""
    found = []
    for _ in range(3):
        before = server.memory()
        with attacks.heartbeat(server.url) as worst, raw(server) as connection:
            reading = threading.Thread(target=closed, args=(connection.dup(),))
            reading.start()
            sent = pour(connection, FLOODS[what], 3)
            found.append((worst(), (server.memory() - before) / MiB))
            connection.shutdown(socket.SHUT_RDWR)
            reading.join()
        assert sent > MiB
        if found[-1][0] < BEAT and found[-1][1] * MiB < FREE:
            break
    assert found[-1][0] < BEAT and found[-1][1] * MiB < FREE, found


def test_a_client_that_never_reads_is_closed(server):
    """It sends what has to be answered, until neither side takes any more."""
    with raw(server) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        start, most = time.monotonic(), 60 + gate.STALL
        pour(connection, FLOODS["tiny messages"], most)
        assert gate.STALL < time.monotonic() - start < most


def test_an_hour_of_silence_costs_nothing(server):
    """As fast as it is taken: no text, and no memory."""

    async def run():
        quiet, growth = append(b"\xff" * 8000), []
        async with connect(address(server)) as connection:
            await connection.send(json.dumps({"type": "session.update", "session": settings("audio/pcmu")}))
            kinds = [json.loads(await connection.recv())["type"] for _ in range(2)]
            before = server.memory()
            for second in range(3600):
                await connection.send(quiet)
                if second % 600 == 599:
                    growth.append(server.memory() - before)
            sound = base64.b64encode(g711("ULAW")).decode()
            await connection.send(json.dumps({"type": "input_audio_buffer.append", "audio": sound}))
            while "conversation.item.input_audio_transcription.completed" not in kinds:
                event = json.loads(await connection.recv())
                kinds.append(event["type"])
                if event["type"].endswith("speech_started"):
                    assert event["audio_start_ms"] == pytest.approx(3_600_200, abs=150)
            return kinds, growth, event["transcript"]

    batches = re.search(r"glmasr_batch_windows_count (\d+)", httpx.get(f"{server.url}/metrics").text)
    kinds, growth, text = asyncio.run(asyncio.wait_for(run(), 300))
    assert text == TEXT and kinds[:3] == ["session.created", "session.updated", "input_audio_buffer.speech_started"]
    assert max(growth) < FREE, growth
    assert batches


def test_a_worker_that_dies_ends_its_sessions(server):
    async def run():
        async with connect(address(server)) as connection:
            await connection.recv()
            await connection.send(append(pcm()))
            os.kill(server.worker, signal.SIGKILL)
            while (event := json.loads(await connection.recv()))["type"] != "error":
                pass
            assert event["error"]["code"] == "worker_died"
            with pytest.raises(websockets.exceptions.ConnectionClosed) as caught:
                await connection.recv()
            assert caught.value.rcvd.code == 1011 and caught.value.rcvd.reason == "worker_died"

    asyncio.run(asyncio.wait_for(run(), 60))
    server.until(lambda: httpx.get(f"{server.url}/healthz").status_code == 200)


def test_at_the_end_a_session_gets_its_text():
    with Server("--no-page") as ending:

        async def run():
            async with connect(address(ending)) as connection:
                await connection.send(append(pcm()[: -2 * 24_000]))  # nobody knows yet that it is over
                kinds = []
                while "input_audio_buffer.speech_started" not in kinds:
                    kinds.append(json.loads(await connection.recv())["type"])
                ending.process.send_signal(signal.SIGTERM)
                found = {}
                with pytest.raises(websockets.exceptions.ConnectionClosed) as caught:
                    while True:
                        event = json.loads(await connection.recv())
                        found[event["type"].rpartition(".")[2]] = event
                return found, caught.value.rcvd.code

        start = time.monotonic()
        found, code = asyncio.run(asyncio.wait_for(run(), 60))
        assert found["completed"]["transcript"] == TEXT and found["error"]["error"]["code"] == "shutting_down"
        assert code == 1001 and ending.process.wait(30) == 0 and time.monotonic() < start + 30
        assert "Traceback" not in ending.log
