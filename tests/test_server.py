"""The server's API, over real connections on loopback, with the demo in a real worker process; the official client of
OpenAI."""

import asyncio
import base64
import contextlib
import errno
import hashlib
import html
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import glmasr
from glmasr.errors import CheckpointError, OptionError
from glmasr.pipeline import Options
from glmasr.writers.formats import WRITERS

pytest.importorskip("fastapi", reason="needs the extra [web]")
pytest.importorskip("prometheus_client", reason="needs the extra [web]")
uvicorn = pytest.importorskip("uvicorn", reason="needs the extra [web]")
httpx = pytest.importorskip("httpx", reason="needs the extra [test]")
openai = pytest.importorskip("openai", reason="needs the extra [test]")

from helpers.adapters import lora  # noqa: E402
from helpers.checkpoints import make_encoder_decoder  # noqa: E402

from glmasr.server import (  # noqa: E402
    addresses,
    answers,
    api,
    forms,
    gate,
    main,
    manual,
    messages,
    problems,
    request_queue,
    worker,
)

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the workers: the models are tiny, as in conftest.py
ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
TEXTS = {
    name: entry["text"] for name, entry in json.loads((EXAMPLES / "texts.json").read_text(encoding="utf-8")).items()
}
MODEL = "demo-article"
ROUTE, TRANSLATIONS = "/v1/audio/transcriptions", "/v1/audio/translations"


class Running:
    """The API without the page, in a thread of this process."""

    def __init__(self, folder, model=MODEL, adapters=None, **more):
        self.folder = folder
        self.queue = request_queue.RequestQueue(
            {"name_or_path": str(model), "dtype": "float32", "adapters": adapters or {}},
            **{name: more.pop(name) for name in ("max_waiting", "time_limit") if name in more},
        )
        self.app = api.make_app(
            self.queue, str(folder), names=(MODEL, "whisper-1"), adapters=tuple(adapters or ()), **more
        )
        self.server = uvicorn.Server(uvicorn.Config(self.app, port=0, log_config=None, access_log=False, ws="none"))
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_until_complete, args=(self.run(),), daemon=True)
        self.thread.start()
        self.until(lambda: self.server.started or not self.thread.is_alive(), 120)
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"
        self.client = httpx.Client(base_url=self.url, timeout=60)

    async def run(self):
        await self.queue.start()
        await self.server.serve()
        self.queue.end()

    def stop(self):
        self.client.close()
        self.server.should_exit = True
        self.thread.join(30)

    @staticmethod
    def until(condition, seconds=30.0):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it didn't happen"
            time.sleep(0.01)

    def send(self, name="zh.wav", content=None, client=None, headers=None, route=ROUTE, **fields):
        files = {"file": (name, (EXAMPLES / name).read_bytes() if content is None else content)}
        return (client or self.client).post(route, data={"model": MODEL} | fields, files=files, headers=headers)

    @contextlib.contextmanager
    def paused(self):
        """The worker does nothing: recordings pile up."""
        process = self.queue.process
        os.kill(process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            if process.is_alive():
                os.kill(process.pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = Running(tmp_path_factory.mktemp("uploads"), max_waiting=3, most_bytes=2**20)
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def nothing_is_left(request):
    """After each test: no place is taken, no upload is there."""
    yield
    if "server" in request.fixturenames:
        server = request.getfixturevalue("server")
        server.until(lambda: not server.queue.running and not server.queue.waiting)
        server.until(lambda: not list(server.folder.iterdir()))


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def expected():
    """What the pipeline itself says of an example."""
    recognizer = glmasr.load(MODEL, dtype="float32")
    return lambda name, **options: recognizer.transcribe(EXAMPLES / name, **options)


def error(response, status):
    assert response.status_code == status, response.text
    found = response.json()["error"]
    assert set(found) == {"message", "type", "param", "code"} and found["message"]
    return found


# ---- OpenAI's client ------------------------------------------------------------------------------------------------------


def test_formats(client, expected):
    for name in TEXTS:
        with open(EXAMPLES / name, "rb") as file:
            assert client.audio.transcriptions.create(file=file, model=MODEL).text == expected(name).text == TEXTS[name]
    timed = expected("en.mp3", timestamps=True)
    for form in ("srt", "vtt"):
        assert client.audio.transcriptions.create(
            file=EXAMPLES / "en.mp3", model="whisper-1", response_format=form
        ) == WRITERS[form](timed)
    assert (
        client.audio.transcriptions.create(file=EXAMPLES / "en.mp3", model=MODEL, response_format="text")
        == f"{timed.text}\n"
    )


def test_verbose_json(client, expected):
    found = client.audio.transcriptions.create(
        file=EXAMPLES / "yue.flac", model=MODEL, response_format="verbose_json", timestamp_granularities=["segment"]
    )
    timed = expected("yue.flac", timestamps=True)
    assert (found.text, found.language, found.duration) == (timed.text, "cantonese", timed.seconds)
    assert found.task == "transcribe" and found.usage.type == "duration" and found.usage.seconds == 3
    [segment], [known] = found.segments, timed.segments
    assert (segment.start, segment.end, segment.text, segment.id, segment.seek) == (
        known.start,
        known.end,
        known.text,
        0,
        0,
    )  # Chinese: no space before it
    assert (segment.temperature, segment.compression_ratio, segment.no_speech_prob) == (
        0.0,
        known.compression_ratio,
        known.no_speech,
    )
    assert (
        segment.avg_logprob == pytest.approx(known.mean_logprob, abs=1e-3)
        and segment.tokens
        and all(isinstance(id, int) for id in segment.tokens)
    )


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("asked", [["word"], ["segment", "word"]])
def test_words_in_the_types_of_openai(client, expected, name, asked):
    """Right is what the pipeline says; no segments where only words are asked for, as OpenAI does it."""
    found = client.audio.transcriptions.create(
        file=EXAMPLES / name, model=MODEL, response_format="verbose_json", timestamp_granularities=asked
    )
    known = expected(name, timestamps=True, words=True)
    words = [word for segment in known.segments for word in segment.words]
    assert isinstance(found, openai.types.audio.TranscriptionVerbose) and found.text == TEXTS[name]
    assert {type(word) for word in found.words} == {openai.types.audio.TranscriptionWord}
    assert [(word.word, word.start, word.end) for word in found.words] == [
        (word.text, word.start, word.end) for word in words
    ]
    assert "".join(word.word for word in found.words) == TEXTS[name].replace(" ", "") and len(words) > 5
    for word, known_word in zip(found.words, words, strict=True):
        assert word.model_extra == {"probability": pytest.approx(known_word.probability, abs=1e-3)}
        assert 0 <= word.probability <= 1 and 0 <= word.start < word.end <= found.duration
    if asked == ["word"]:
        assert found.segments is None
    else:
        [segment] = found.segments
        assert (segment.start, segment.end) == (words[0].start, words[-1].end)


def test_words_are_there_where_they_are_asked_for_only(server, tmp_path):
    import soundfile

    for fields in ({}, {"timestamp_granularities[]": "segment"}):
        assert "words" not in server.send("en.mp3", response_format="verbose_json", **fields).json()
    soundfile.write(tmp_path / "silence.wav", torch.zeros(16_000).numpy(), 16_000)
    asked = {"response_format": "verbose_json", "timestamp_granularities[]": ["word", "segment"]}
    found = server.send("silence.wav", (tmp_path / "silence.wav").read_bytes(), **asked).json()
    assert (found["text"], found["words"], found["segments"]) == ("", [], [])


def test_recordings_with_words_and_without_are_decoded_apart(server, expected):
    """At once: those that ask for words get them, the others get none."""
    asked = {"response_format": "verbose_json", "timestamp_granularities[]": "word"}
    with ThreadPoolExecutor(3) as pool:
        with server.paused():
            sent = [pool.submit(server.send, "zh.wav", **fields) for fields in (asked, {}, asked)]
            server.until(lambda: len(server.queue.running) == 3)
        first, plain, last = (answer.result().json() for answer in sent)
    [segment] = expected("zh.wav", timestamps=True, words=True).segments
    assert [word["word"] for word in first["words"]] == [word.text for word in segment.words]
    assert first == last and plain["text"] == TEXTS["zh.wav"] and "words" not in plain


def test_segments_join_to_the_text_as_those_of_openai(server, tmp_path):
    """Spaces stand at the beginning of a segment, where its script has any; the tokens spell it."""
    import numpy
    import soundfile

    sounds = [glmasr.audio.load(EXAMPLES / name).numpy() for name in ("en.mp3", "zh.wav", "yue.flac", "en.mp3")]
    path = tmp_path / "mixed.wav"
    soundfile.write(
        path,
        numpy.concatenate([part for sound in sounds for part in (sound, numpy.zeros(8_000, numpy.float32))]),
        16_000,
    )
    for content in (path.read_bytes(), (EXAMPLES / "en.mp3").read_bytes()):
        found = server.send("mixed.wav", content, response_format="verbose_json").json()
        texts = [segment["text"] for segment in found["segments"]]
        assert found["text"] and "".join(texts).strip() == found["text"]
    assert texts == [f" {TEXTS['en.mp3']}"]
    tokenizer = glmasr.tokenizer.read_tokenizer(glmasr.checkpoint.hub.find(MODEL))
    assert found["segments"][0]["tokens"] == tokenizer.encode(texts[0])


def test_language_and_temperature_reach_the_model(server):
    english = server.send("zh.wav", language="en").json()["text"]
    assert english != TEXTS["zh.wav"]
    assert [server.send("zh.wav", language=name).json()["text"] for name in ("English", "en-US", "zh-CN")] == [
        english,
        english,
        TEXTS["zh.wav"],
    ]
    found = server.send("zh.wav", temperature="0.4", response_format="verbose_json").json()
    assert {segment["temperature"] for segment in found["segments"]} <= {0.4, 0.6, 0.8, 1.0}


def test_stream(client, server, tmp_path):
    import soundfile

    sound, rate = soundfile.read(EXAMPLES / "zh.wav", dtype="float32")
    silence = torch.zeros(int(2.0 * rate)).numpy()
    path = tmp_path / "long.wav"
    import numpy

    soundfile.write(path, numpy.concatenate([sound, silence] * 6), rate)
    events = list(client.audio.transcriptions.create(file=path, model=MODEL, stream=True))
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert len(deltas) > 1 and events[-1].type == "transcript.text.done"
    assert "".join(deltas) == events[-1].text and events[-1].text.count(TEXTS["zh.wav"]) >= 4


def test_models(client):
    assert [model.id for model in client.models.list()] == [MODEL, "whisper-1"]
    assert client.models.retrieve(MODEL).object == "model"
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.models.retrieve("gpt-9")
    with pytest.raises(openai.NotFoundError, match="demo-article"):
        client.audio.transcriptions.create(file=EXAMPLES / "zh.wav", model="gpt-9")


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"prompt": "digits"}, "prompt"),
        ({"timestamp_granularities[]": "segment"}, "timestamp_granularities[]"),
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities[]"),
        ({"timestamp_granularities[]": "word", "response_format": "srt"}, "timestamp_granularities[]"),
        ({"timestamp_granularities[]": "word", "stream": "true"}, "timestamp_granularities[]"),
        ({"timestamp_granularities[]": "letter", "response_format": "verbose_json"}, "timestamp_granularities[]"),
        (
            {"timestamp_granularities[]": ["word", ""], "response_format": "verbose_json"},
            "timestamp_granularities[]",
        ),
        ({"timestamp_granularities": "word", "response_format": "verbose_json"}, "timestamp_granularities"),
        ({"response_format": "diarized_json"}, "response_format"),
        ({"stream": "true", "response_format": "srt"}, "stream"),
        ({"stream": "perhaps"}, "stream"),
        ({"temperature": "1.5"}, "temperature"),
        ({"temperature": "nan"}, "temperature"),
        ({"language": "xx"}, "language"),
        ({"language": "xx", "stream": "true"}, "language"),
        ({"include[]": "logprobs"}, "include[]"),
        ({"chunking_strategy": "auto"}, "chunking_strategy"),
        ({"hotwords": "seven:many"}, "hotwords"),
        ({"hotwords": "一"}, "hotwords"),
        ({"hotwords": "<|nospeech|>"}, "hotwords"),
        ({"language": ["zh", "en"]}, "language"),
        ({"language": "a" * 60_000}, "language"),
    ],
)
def test_what_is_not_supported_is_said(server, fields, param):
    found = error(server.send(**fields), 400)
    assert found["param"] == param and found["type"] == "invalid_request_error"


# ---- translations ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def translating(tmp_path_factory):
    """A server with a random model that has the token, and its recognizer."""
    folder = make_encoder_decoder(
        tmp_path_factory.mktemp("model") / "tiny",
        languages=("en", "zh", "de"),
        tasks=("translate", "transcribe"),
        seed=1,
    )
    running = Running(tmp_path_factory.mktemp("uploads"), model=folder)
    yield running, glmasr.load(folder, dtype="float32")
    running.stop()


@pytest.mark.filterwarnings("ignore:deprecated")  # so OpenAI's client calls whisper-1
def test_translations(translating, tmp_path):
    """By OpenAI's client, in all formats; right is what the pipeline says."""
    import soundfile

    server, recognizer = translating
    path = tmp_path / "talk.wav"
    soundfile.write(path, glmasr.audio.load(EXAMPLES / "yue.flac").numpy()[:16_000], 16_000)
    plain, timed = (recognizer.transcribe(path, task="translate", timestamps=timed) for timed in (None, True))
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    make = lambda **more: client.audio.translations.create(file=path, model=MODEL, **more)  # noqa: E731
    assert make().text == plain.text != recognizer.transcribe(path).text
    assert make(response_format="text") == f"{plain.text}\n"
    for form in ("srt", "vtt"):
        assert make(response_format=form) == WRITERS[form](timed)
    found = make(response_format="verbose_json")
    assert (found.task, found.language, found.text, found.duration) == (
        "translate",
        "english",
        timed.text,
        timed.seconds,
    )
    assert (
        "".join(segment.text for segment in found.segments).strip() == found.text
        and len(found.segments) == len(timed.segments) > 0
    )
    samples = server.queue.metrics.registry.get_sample_value
    assert samples("glmasr_recordings_total", {"task": "translate", "outcome": "done"}) >= 5


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"language": "zh"}, "language"),
        ({"stream": "true"}, "stream"),
        ({"timestamp_granularities[]": "segment", "response_format": "verbose_json"}, "timestamp_granularities[]"),
        ({"timestamp_granularities[]": "word", "response_format": "verbose_json"}, "timestamp_granularities[]"),
        ({"prompt": "digits"}, "prompt"),
        ({"response_format": "diarized_json"}, "response_format"),
        ({"temperature": "2"}, "temperature"),
        ({"task": "transcribe"}, "task"),
    ],
)
def test_what_a_translation_does_not_take_is_said(translating, fields, param):
    found = error(translating[0].send(route=TRANSLATIONS, **fields), 400)
    assert found["param"] == param and found["type"] == "invalid_request_error"


@pytest.mark.filterwarnings("ignore:deprecated")
def test_a_model_that_does_not_translate_says_so(server, client):
    with pytest.raises(
        openai.BadRequestError,
        match="demo-article doesn't translate: its vocabulary has no token for it; expected a Whisper",
    ) as caught:
        client.audio.translations.create(file=EXAMPLES / "zh.wav", model=MODEL)
    assert (caught.value.param, caught.value.code, caught.value.type) == (
        "model",
        "unsupported_value",
        "invalid_request_error",
    )
    assert error(server.send(route=TRANSLATIONS, model="gpt-9"), 404)["code"] == "model_not_found"
    assert error(server.client.get(TRANSLATIONS), 405) and server.client.get(TRANSLATIONS).headers["Allow"] == "POST"
    assert (
        error(server.client.post(f"{TRANSLATIONS}?language=zh", data={"model": MODEL}, files={"file": b"x"}), 400)[
            "param"
        ]
        == "language"
    )


def test_a_translation_is_refused_before_its_upload_where_the_queue_is_full(server, monkeypatch):
    monkeypatch.setattr(server.queue, "check", lambda: (_ for _ in ()).throw(problems.Busy("full", retry_after=3)))
    for route in (ROUTE, TRANSLATIONS):
        answer = server.send(route=route)
        assert error(answer, 429)["code"] == "queue_full" and answer.headers["Retry-After"] == "3"


@pytest.mark.parametrize("name", ["language", "response_format", "anything"])
def test_what_stands_in_the_address_is_not_ignored(server, name):
    answer = server.client.post(
        f"{ROUTE}?{name}=zh", data={"model": MODEL}, files={"file": (EXAMPLES / "zh.wav").read_bytes()}
    )
    assert error(answer, 400)["param"] == name


def test_only_what_could_not_be_right_is_warned_of(server):
    for temperature in ("0", "0.2"):
        assert "warnings" not in server.send("en.mp3", temperature=temperature).json()


@pytest.mark.parametrize("path", ["/healthz", "/metrics", "/docs", "/v1/models", f"/v1/models/{MODEL}"])
def test_head(server, path):
    answer = server.client.head(path)
    assert answer.status_code == 200 and not answer.content


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("GET", "/v1/modelsx", 404),
        ("GET", "/v1", 404),
        ("OPTIONS", "/v1/audio", 404),
        ("HEAD", ROUTE, 405),
        ("DELETE", f"/v1/models/{MODEL}", 405),
    ],
)
def test_near_misses(server, method, path, status):
    answer = server.client.request(method, path)
    assert answer.status_code == status and (method == "HEAD" or error(answer, status))


def test_a_method_that_a_route_does_not_take(tmp_path):
    app = api.make_app(request_queue.RequestQueue({}), str(tmp_path))
    for method, path, allow in (
        ("GET", ROUTE, "POST"),
        ("PUT", TRANSLATIONS, "POST"),
        ("DELETE", f"/v1/models/{MODEL}", "GET"),
        ("POST", "/healthz", "GET"),
    ):
        answer = call(app, path, method)
        assert error(answer, 405)["code"] == "method_not_allowed" and answer.headers["Allow"] == allow, path


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"track": "9"}, "has no track 9"),
        ({"track": "eng", "stream": "true"}, "has no track eng"),
        ({"track": "0"}, "track is '0'"),
    ],
)
def test_an_error_about_the_track_names_it(server, fields, message):
    found = error(server.send(**fields), 400)
    assert (found["param"], found["code"]) == ("track", "invalid_value") and found["message"].startswith(message)


def test_bad_recordings(server):
    found = error(server.send("talk.wav", b"this is a text"), 400)
    assert (
        found["param"] == "file"
        and re.search("not (a )?readable", found["message"])
        and str(server.folder) not in found["message"]
    )
    assert "empty" in error(server.send("talk.wav", b""), 400)["message"]
    assert error(server.send("talk.wav", b"no sound", stream="true"), 400)["code"] == "invalid_audio"
    assert error(server.client.post(ROUTE, data={"model": MODEL, "file": "talk.wav"}), 400)["param"] == "file"
    assert "SECRET" not in error(server.client.post(ROUTE, data={"model": MODEL, "file": "SECRET"}), 400)["message"]
    assert error(server.client.post(ROUTE, data={"model": MODEL}), 400)["message"] == "file is missing"
    assert error(
        server.client.post(
            ROUTE, content=b"--x\r\nrubbish", headers={"Content-Type": "multipart/form-data; boundary=x"}
        ),
        400,
    )
    assert error(server.client.get("/v1/audio/speech"), 404) and error(server.client.get(ROUTE), 405)


# ---- limits ---------------------------------------------------------------------------------------------------------------


def test_an_upload_that_is_too_large_is_refused_while_it_comes(server):
    assert "1 MiB" in error(server.send("talk.wav", bytes(2**20 + 2**17)), 413)["message"]  # by its stated length
    sent = 0

    def pieces():  # without one
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        for _ in range(64):
            sent += 2**16
            yield bytes(2**16)
        yield b"\r\n--x--\r\n"

    assert (
        error(
            server.client.post(ROUTE, content=pieces(), headers={"Content-Type": "multipart/form-data; boundary=x"}),
            413,
        )["code"]
        == "too_large"
    )
    assert sent == 64 * 2**16  # it was read on, so that the client heard the answer
    assert server.send().json()["text"] == TEXTS["zh.wav"]


def test_a_slow_upload_is_given_up(server, monkeypatch):
    monkeypatch.setattr(gate, "STALL", 0.3)
    with socket.create_connection(server.client.base_url.netloc.decode().split(":")) as slow:
        slow.sendall(
            f"POST {ROUTE} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 5000\r\n\r\n--x".encode()
        )
        assert b" 408 " in slow.recv(1000).split(b"\r\n")[0]
    assert server.send().status_code == 200


def test_batching_and_the_queue(server, monkeypatch):
    """While the worker is busy recordings pile up; then they are decoded together, and each gets its own text."""
    monkeypatch.setattr(request_queue, "RUNNING", 4)
    names = [name for _ in range(3) for name in TEXTS][:8]
    batches = server.queue.metrics.registry.get_sample_value
    before = batches("glmasr_batch_recordings_count"), batches("glmasr_batch_recordings_sum")
    with ThreadPoolExecutor(8) as pool, httpx.Client(base_url=server.url, timeout=60) as client:
        with server.paused():
            answers = [pool.submit(server.send, name, client=client) for name in names[:7]]
            server.until(lambda: (len(server.queue.running), len(server.queue.waiting)) == (4, 3))
            late = server.send(names[7])
            found = error(late, 429)
            assert found["type"] == "rate_limit_error" and 1 <= int(late.headers["Retry-After"]) <= 60
            with pytest.raises(openai.RateLimitError):
                openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0).audio.transcriptions.create(
                    file=EXAMPLES / "zh.wav", model=MODEL
                )
        assert [answer.result().json()["text"] for answer in answers] == [TEXTS[name] for name in names[:7]]
    count, recordings = (
        batches("glmasr_batch_recordings_count") - before[0],
        batches("glmasr_batch_recordings_sum") - before[1],
    )
    assert recordings == 7 > count
    assert batches("glmasr_refused_requests_total", {"status": "429"}) >= 2


def test_a_client_that_leaves_frees_its_place(server):
    for fields in ({}, {"stream": "true"}):
        with server.paused(), httpx.Client(base_url=server.url, timeout=0.5) as client:
            with pytest.raises(httpx.TimeoutException):
                server.send(client=client, **fields)
            server.until(lambda: not server.queue.running and not list(server.folder.iterdir()))
        assert server.send().json()["text"] == TEXTS["zh.wav"]


def test_time_limit(server, monkeypatch):
    monkeypatch.setattr(server.queue, "time_limit", 0.3)
    monkeypatch.setattr(server.queue, "_last_message", float("inf"))  # or the worker would be taken for one that hangs
    with server.paused():
        assert error(server.send(), 504)["code"] == "time_limit"
        server.until(lambda: not server.queue.running)
    monkeypatch.undo()
    assert server.send().json()["text"] == TEXTS["zh.wav"]


def test_the_worker_dies(server, monkeypatch):
    """Who was worked for is told so, who waits or comes later is served by the next worker."""
    monkeypatch.setattr(request_queue, "RUNNING", 2)
    process, restarts = server.queue.process, server.queue.restarts
    with ThreadPoolExecutor(3) as pool:
        with server.paused():
            answers = [pool.submit(server.send, **fields) for fields in ({}, {"stream": "true"})]
            server.until(lambda: len(server.queue.running) == 2)
            waiting = pool.submit(server.send, "en.mp3")
            server.until(lambda: server.queue.waiting)
            process.kill()
            process.join()
        for answer in answers:
            assert error(answer.result(), 500)["code"] == "worker_died"
        assert server.client.get("/healthz").status_code == 503
        assert server.send().json()["text"] == TEXTS["zh.wav"] and waiting.result().json()["text"] == TEXTS["en.mp3"]
    assert server.queue.restarts == restarts + 1 and server.client.get("/healthz").status_code == 200


def test_a_model_that_cannot_be_loaded_is_not_tried_again():
    """Also where the event loop hears of the error and of the worker's end at once, as it is busy with an import."""

    async def start():
        queue = request_queue.RequestQueue({"name_or_path": "nowhere"})
        loading = asyncio.create_task(queue.start())
        await asyncio.sleep(0)
        queue.process.join(100)
        time.sleep(0.5)  # its threads have told the loop of both
        with pytest.raises(CheckpointError, match="nowhere"):
            await loading
        await asyncio.sleep(0.1)
        assert queue.restarts == 0
        queue.end()

    asyncio.run(start())


@pytest.mark.slow
def test_the_worker_dies_at_the_end(tmp_path):
    """Who was worked for is told so, then too."""
    running = Running(tmp_path)
    try:
        with ThreadPoolExecutor(1) as pool, running.paused():
            answer = pool.submit(running.send)
            running.until(lambda: running.queue.running)
            running.loop.call_soon_threadsafe(running.queue.close)
            running.until(lambda: running.queue.closing)
            running.queue.process.kill()
            running.queue.process.join()
            assert error(answer.result(20), 500)["code"] == "worker_died"
    finally:
        running.stop()


def test_no_room_for_an_upload(server, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(forms.shutil, "copyfileobj", full)
    assert error(server.send(), 507)["code"] == "no_space"


def test_a_defect_is_answered_without_its_message(server, monkeypatch, caplog):
    def broken(*args):
        raise RuntimeError("the text was SECRET")

    monkeypatch.setattr(answers, "as_json", broken)
    response = server.send()
    assert error(response, 500)["code"] == "internal_error"
    assert (
        "SECRET" not in response.text + caplog.text
        and "RuntimeError" in caplog.text
        and "test_server.py" in caplog.text
    )


def test_logs_name_no_content(server, caplog):
    caplog.set_level(logging.DEBUG, "glmasr")
    caplog.set_level(logging.INFO, "uvicorn")
    assert server.send("zh.wav").status_code == 200
    server.send("private-talk.wav", b"SECRET", language="hidden")
    assert "done, 2.6 s of sound" in caplog.text and "OptionError" in caplog.text
    assert not any(
        word in caplog.text for word in ("private", "SECRET", "hidden", TEXTS["zh.wav"], "zh.wav", "upload-")
    )


def test_health_and_metrics(server):
    from prometheus_client.parser import text_string_to_metric_families

    server.send()
    assert server.client.get("/healthz").json() == {"status": "ok", "waiting": 0, "running": 0}
    found = {family.name: family for family in text_string_to_metric_families(server.client.get("/metrics").text)}
    assert found["glmasr_ready"].samples[0].value == 1 and found["glmasr_sound_seconds"].samples[0].value > 2
    assert any(
        sample.labels == {"task": "transcribe", "outcome": "done"} and sample.value >= 1
        for sample in found["glmasr_recordings"].samples
    )


def test_every_refusal_is_counted_by_its_status(tmp_path):
    queue = request_queue.RequestQueue({})
    app = api.make_app(queue, str(tmp_path), key="secret", most_bytes=1000)
    count = lambda status: (
        queue.metrics.registry.get_sample_value("glmasr_refused_requests_total", {"status": str(status)}) or 0
    )  # noqa: E731
    form = {"data": {"model": "glmasr"}, "files": {"file": b"sound"}}
    for status, more in (
        (401, {"headers": {}}),
        (404, {"path": "/v1/nothing"}),
        (404, {"path": "/nothing"}),
        (405, {"path": ROUTE}),
        (400, {"path": ROUTE, "method": "POST"}),
        (413, {"path": ROUTE, "method": "POST", "content": bytes(100_000)}),
        (500, {"path": ROUTE, "method": "POST"} | form),  # without a model
        (
            415,
            {
                "path": ROUTE,
                "method": "POST",
                "headers": {"Authorization": "Bearer secret", "Content-Type": "a/b; charset=punycode"},
            },
        ),
    ):
        before = count(status)
        assert call(app, **{"headers": {"Authorization": "Bearer secret"}} | more).status_code == status
        assert count(status) == before + 1, more
    queue.close()
    assert (
        call(app, ROUTE, "POST", headers={"Authorization": "Bearer secret"}, **form).status_code == 503
        and count(503) == 1
    )
    assert call(app, "/healthz").status_code == 503 and count(503) == 1  # which is what it is asked for
    assert call(app, headers={"Authorization": "Bearer secret"}).status_code == 200 and count(200) == 0


def test_no_other_origin_is_let_in(server):
    for method, headers in (("GET", {}), ("OPTIONS", {"Access-Control-Request-Method": "POST"})):
        answer = server.client.request(method, "/v1/models", headers={"Origin": "https://example.org", **headers})
        assert "access-control-allow-origin" not in answer.headers


# ---- an application of its own --------------------------------------------------------------------------------------------


def call(app, path="/v1/models", method="GET", **more):
    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.request(method, path, **more)

    return asyncio.run(ask())


def test_key(tmp_path):
    app = api.make_app(request_queue.RequestQueue({}), str(tmp_path), key="open sesame")
    found = call(app)
    assert error(found, 401)["type"] == "authentication_error" and "Basic" in found.headers["WWW-Authenticate"]
    basic = base64.b64encode(b"me:open sesame").decode()
    for value, status in (
        ("Bearer open sesame", 200),
        (f"Basic {basic}", 200),
        ("Bearer open", 401),
        ("Bearer ", 401),
        ("Basic !", 401),
        ("open sesame", 401),
        ("Bearer \xff", 401),
        ("Digest open sesame", 401),
    ):
        assert call(app, headers={"Authorization": value.encode("latin-1")}).status_code == status, value
    assert call(app, "/metrics").status_code == 401
    assert call(app, ROUTE, "POST", files={"file": b""}).status_code == 401
    assert call(app, "/healthz").status_code == 503  # asked without a key; this one has no worker


def test_origins(tmp_path):
    app = api.make_app(request_queue.RequestQueue({}), str(tmp_path), origins=("https://example.org",))
    assert (
        call(app, headers={"Origin": "https://example.org"}).headers["access-control-allow-origin"]
        == "https://example.org"
    )
    assert "access-control-allow-origin" not in call(app, headers={"Origin": "https://example.com"}).headers


def test_origins_with_a_key(tmp_path):
    """A browser asks without the key whether it may send it, and lets its page read what is refused."""
    app = api.make_app(request_queue.RequestQueue({}), str(tmp_path), key="secret", origins=("https://example.org",))
    ours = {"Origin": "https://example.org"}
    asked = call(
        app,
        ROUTE,
        "OPTIONS",
        headers=ours | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"},
    )
    assert asked.status_code == 200 and "authorization" in asked.headers["access-control-allow-headers"]
    found = call(app, headers=ours)
    assert found.status_code == 401 and found.headers["access-control-allow-origin"] == "https://example.org"


def test_who_waits_is_refused_at_the_end(tmp_path):
    async def run():
        queue = request_queue.RequestQueue({})
        queue._send = lambda message: None
        queue.ready = messages.Ready([], True, [], {})
        running, waiting = (queue.recognize("talk.wav", "auto", Options()) for _ in range(2))
        first = asyncio.ensure_future(anext(running))
        await asyncio.sleep(0)
        batching_running, request_queue.RUNNING = request_queue.RUNNING, 1
        try:
            second = asyncio.ensure_future(anext(waiting))
            await asyncio.sleep(0)
            assert (len(queue.running), len(queue.waiting)) == (1, 1)
            queue.close()
            with pytest.raises(problems.Closing):
                await second
            with pytest.raises(problems.Closing):
                queue.check()
            queue._receive(messages.Began(1, 2.0))  # what runs goes on
            assert (await first).seconds == 2.0
        finally:
            request_queue.RUNNING = batching_running
            await running.aclose()
        assert not queue.running

    asyncio.run(run())


def test_peaks():
    generator = torch.Generator().manual_seed(1)
    for count in (0, 1, 159, 160, 161, 1000, 160 * worker.MOST_PEAKS, 160 * worker.MOST_PEAKS + 1, 1_234_567):
        samples, peaks = torch.randn(count, generator=generator) / 5, worker.Peaks()
        for part in samples.split(100_003):
            peaks.add(part)
        found = peaks.listed()
        assert len(found) <= worker.MOST_PEAKS + 1
        assert found == [
            round(float(part.abs().max().clamp(max=1)), 3) for part in samples.split(peaks.unit) if len(part)
        ]


# ---- the page about the API -----------------------------------------------------------------------------------------------


def examples(text):
    """The examples of /docs, as somebody copies them."""
    return [
        html.unescape(re.sub(r"</?b>", "", example)) for example in re.findall(r"<pre>(.*?)</pre>", text, re.DOTALL)
    ]


def test_the_examples_of_the_page_about_the_api_work(translating, tmp_path, monkeypatch, capsys):
    """Each as it stands there, but for the address and the name of the file."""
    server, _ = translating
    import soundfile

    soundfile.write(tmp_path / "talk.wav", glmasr.audio.load(EXAMPLES / "yue.flac").numpy()[:16_000], 16_000)
    monkeypatch.chdir(tmp_path)
    found = [example.replace(manual.SERVER, server.url) for example in examples(server.client.get("/docs").text)]
    said = {}
    for example in found:
        if example.startswith("curl "):
            if shutil.which("curl"):
                done = subprocess.run(
                    ["sh", "-c", example.replace("curl ", "curl -sS --fail ")],
                    capture_output=True,
                    text=True,
                    timeout=60,
                )
                assert done.returncode == 0 and done.stdout, (example, done.stderr)
        elif "import" in example:
            exec(example, {})
            said[re.search(r"client\.[\w.]+|http\S+/\w+(?=\")", example.rpartition("\n")[2])[0]] = (
                capsys.readouterr().out.strip()
            )
    assert len(said) == len(server.app.openapi()["paths"]) and all(said.values())
    assert (
        said["client.audio.transcriptions.create"]
        != said["client.audio.translations.create"]
        == server.send("talk.wav", (tmp_path / "talk.wav").read_bytes(), route=TRANSLATIONS).json()["text"].strip()
    )


def test_the_page_about_the_api_is_whole_and_fetches_nothing(tmp_path):
    app = api.make_app(
        request_queue.RequestQueue({}),
        str(tmp_path),
        names=('my "own" <model>', "b"),
        key="SESAME",
        most_bytes=5 * 2**20,
        max_duration=90,
    )
    answer = call(
        app,
        "/docs",
        headers={"Authorization": "Bearer SESAME", "X-Forwarded-Host": "evil.example", "Host": "evil.example"},
    )
    text, schema = answer.text, app.openapi()
    policy = answer.headers["content-security-policy"]
    assert (
        policy.startswith("default-src 'none'; ")
        and "frame-ancestors 'self'" in policy
        and "unsafe" not in policy
        and "http" not in policy
    )
    for name in ("style", "script"):
        [content] = re.findall(f"<{name}>(.*?)</{name}>", text, re.DOTALL)
        assert f"{name}-src 'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-store"
    assert (
        set(re.findall(r'(?:src|href|action)="([^"#][^"]*)"', text)) == {"data:,", "openapi.json"}
        and " style=" not in text
        and "url(" not in text
    )
    assert not re.search("evil|SESAME|<model>", text) and set(re.findall(r"https?://[\w.:]+", text)) == {manual.SERVER}
    assert "5 MiB and 90 seconds" in text and all(
        "Bearer KEY" in example or 'api_key="KEY"' in example for example in examples(text) if "/v1/" in example
    )
    copied = "".join(examples(text))
    assert (
        "-F 'model=my \"own\" <model>'" in copied
        and 'model="my \\"own\\" <model>"' in copied
        and "/v1/models/my%20%22own%22%20%3Cmodel%3E " in copied
    )
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            assert f"{method.upper()} {path}" in text and operation["description"] in text
            assert (
                set(operation["responses"]) - {"200"} <= set(re.findall(r"<td><code>(\d+)</code></td>", text))
                and "422" not in operation["responses"]
            )
    for name in ("Transcription", "Translation"):
        for field, about in schema["components"]["schemas"][name]["properties"].items():
            assert f"<td><code>{field}</code></td>" in text and html.escape(about["description"]).split("`")[0] in text
    assert re.search(r"number from 0 to 1</td><td><code>0.0</code>", text) and "at most 40 characters" in text
    assert {"Failure", "Error"} <= set(schema["components"]["schemas"]) and "model_not_found" in text
    assert "KEY" not in "".join(
        examples(call(api.make_app(request_queue.RequestQueue({}), str(tmp_path)), "/docs").text)
    )


@pytest.mark.parametrize(
    "languages, tasks, expected",
    [
        (["auto", "en"], ["transcribe"], "the languages <code>en</code>, and doesn’t translate."),
        (["auto", "zh"], ["transcribe", "translate"], "the languages <code>zh</code>."),
    ],
)
def test_the_page_about_the_api_says_what_the_model_knows(tmp_path, languages, tasks, expected):
    queue = request_queue.RequestQueue({})
    queue.facts = messages.Ready(languages, True, tasks, {})
    assert expected in call(api.make_app(queue, str(tmp_path)), "/docs").text


def test_the_page_about_the_api_needs_the_key_as_the_openapi_document_does(tmp_path):
    app = api.make_app(request_queue.RequestQueue({}), str(tmp_path), key="open sesame")
    for path in ("/docs", "/openapi.json"):
        assert error(call(app, path), 401)["code"] == "invalid_api_key"
        assert call(app, path, headers={"Authorization": "Bearer open sesame"}).status_code == 200


# ---- the command ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["uvicorn", "gradio"])
def test_a_missing_package_names_the_extra(package):
    program = f"import sys; sys.modules[{package!r}] = None; from glmasr.server.main import main; sys.exit(main(['--model', 'demo']))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and package in done.stderr and "[web]" in done.stderr and "Traceback" not in done.stderr


def test_arguments(capsys):
    assert main.arguments([]).host == "127.0.0.1" and main.arguments([]).port == 7860 and main.arguments([]).queue == 20
    assert main.arguments(["--device", "cuda:1"]).device == "cuda:1"
    assert main.arguments(["--cors", "*", "--cors", "https://example.org:8000"]).cors == [
        "*",
        "https://example.org:8000",
    ]
    for wrong in (
        ["--queue", "-1"],
        ["--time-limit", "0"],
        ["--max-upload", "nan"],
        ["--port", "x"],
        ["--port", "99999"],
        ["--cors", "example.org"],
        ["--device", "cuda:x"],
    ):
        with pytest.raises(SystemExit):
            main.arguments(wrong)
        assert wrong[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    "model, expected",
    [
        ("demo", ["demo"]),
        ("owner/Model-1", ["Model-1", "owner/Model-1"]),
        ("/srv/models/mine/", ["mine"]),
        ("./mine", ["mine"]),
    ],
)
def test_names_of_the_model(model, expected):
    assert addresses.model_names(model, []) == expected
    assert addresses.model_names(model, ["whisper-1"]) == [*expected, "whisper-1"]


def test_an_address_at_which_nobody_can_listen():
    """Said before a model is looked for: this one isn't there."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "app.py", "--model", "./nothing", "--no-page", "--port", str(port)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 2 and f"--host 127.0.0.1 --port {port}" in done.stderr and "Traceback" not in done.stderr
    for host in ("nosuch.invalid", "1.2.3.4"):
        with pytest.raises(OptionError, match=f"--host {host} --port 0"):
            addresses.check_address(host, 0)
    addresses.check_address("127.0.0.1", 0)


# ---- docs/SERVER.md -------------------------------------------------------------------------------------------------------


def test_the_page_about_the_server(tmp_path, capsys):
    text = (ROOT / "docs" / "SERVER.md").read_text(encoding="utf-8")
    with pytest.raises(SystemExit):
        main.arguments(["--help"])
    shown = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help", "--version"}
    section = text.partition("## Options")[2].partition("## ")[0]
    assert set(re.findall(r"--[a-z][a-z-]+", section)) == shown
    app = api.make_app(request_queue.RequestQueue({}), str(tmp_path))
    schema = app.openapi()
    for path in schema["paths"]:
        assert path.replace("{name}", "NAME") in text
    for method, path in (
        *((method, path) for path, methods in schema["paths"].items() for method in methods),
        ("get", "/docs"),
        ("get", "/openapi.json"),
    ):
        assert (
            f"`{method.upper()} {path.replace('{name}', 'NAME')}`"
            in text.partition("## What programs can call")[2].partition("Gradio's calls take")[0]
        )
    fields = schema["components"]["schemas"]["Transcription"]["properties"]
    assert all(f"`{name}`" in text for name in fields)
    rows = {
        (int(status), code)
        for status, codes in re.findall(r"^\| (\d{3}) \|([^|]*)\|", text, re.MULTILINE)
        for code in re.findall(r"`(\w+)`", codes)
    }
    assert rows == {(kind.status, kind.code) for kind in problems.Problem.__subclasses__() if kind.code}
    assert (
        f"up to {request_queue.RUNNING} recordings" in text
        and f"{gate.STALL:.0f} s, or not all of it in {gate.UPLOAD / 60:.0f} minutes" in text
    )


# ---- adapters -----------------------------------------------------------------------------------------------------------


def test_adapters_by_the_name_of_the_model(tmp_path):
    """Many at once: each recording gets the text of its own, though all wait in one line."""
    folders = {name: lora(tmp_path / name, strength, MODEL) for name, strength in (("mild", 0.2), ("wild", 0.3))}
    wanted = {
        name: glmasr.load(MODEL, adapter=folder, dtype="float32").transcribe(EXAMPLES / "zh.wav").text
        for name, folder in ({"": None} | folders).items()
    }
    assert len(set(wanted.values())) == 3
    (tmp_path / "uploads").mkdir()
    server = Running(tmp_path / "uploads", adapters=folders)
    try:
        names = [MODEL, "whisper-1", *(f"{base}:{name}" for base in (MODEL, "whisper-1") for name in folders)]
        listed = server.client.get("/v1/models").json()["data"]
        assert [model["id"] for model in listed] == names
        assert server.client.get(f"/v1/models/{MODEL}:mild").json()["id"] == f"{MODEL}:mild"
        with ThreadPoolExecutor(12) as pool:
            texts = list(pool.map(lambda name: (name, server.send(model=name).json()["text"]), names))
        for name, text in texts:
            assert text == wanted[name.partition(":")[2]], name
        for unknown in (f"{MODEL}:", f"{MODEL}:other", "mild", ":mild", f"{MODEL}:mild:wild"):
            answer = server.send(model=unknown)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found"), unknown
    finally:
        server.stop()


def test_an_adapter_that_cannot_be_used_ends_the_start(tmp_path, capsys):
    for given in ("calls", "=folder", "calls=", "a:b=folder", "../x=folder"):
        with pytest.raises(SystemExit):
            main.arguments(["--adapter", given])
        assert "is not NAME=DIR" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main.arguments(["--adapter", "a=b", "--adapter", "a=c"])
    assert "given twice" in capsys.readouterr().err
    queue = request_queue.RequestQueue({"name_or_path": MODEL, "adapters": {"a": str(tmp_path / "none")}})
    with pytest.raises(CheckpointError, match="none: no such directory"):
        asyncio.run(queue.start())
    queue.end()
