"""The realtime protocol without a model: what a client may send, what it is told, and when a session ends. Each event
parses in the types of OpenAI's client."""

import asyncio
import base64
import io
import json
import time
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from queue import SimpleQueue

import numpy as np
import pytest

from glmasr.errors import OptionError, ShortMemoryError
from glmasr.transcription.live_events import Committed, Notice, SpeechStarted, SpeechStopped, Tentative
from glmasr.transcription.results import Segment

pytest.importorskip("fastapi", reason="needs the extra [web]")
pytest.importorskip("prometheus_client", reason="needs the extra [web]")
pytest.importorskip("websockets", reason="needs the extra [web]")
pydantic = pytest.importorskip("pydantic", reason="needs the extra [web]")
pytest.importorskip("openai", reason="needs the extra [test]")
soundfile = pytest.importorskip("soundfile")
testclient = pytest.importorskip("starlette.testclient", reason="needs the extra [test]")

from openai.types.beta.realtime import TranscriptionSessionUpdatedEvent  # noqa: E402
from openai.types.realtime import RealtimeServerEvent  # noqa: E402

from glmasr.server import api, g711, problems, realtime, request_queue  # noqa: E402
from glmasr.server.messages import (  # noqa: E402
    Cancel,
    Clear,
    Commit,
    Finish,
    Heard,
    Listen,
    LiveSettings,
    Ready,
    Refused,
    Sound,
)
from glmasr.server.realtime_events import Dialog  # noqa: E402
from glmasr.server.realtime_messages import SLICE, read  # noqa: E402

TYPES = pydantic.TypeAdapter(RealtimeServerEvent)
VAD = {"type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": 700}


class Told:
    """A session that notes what it is told."""

    def __init__(self):
        self.settings, self.log = LiveSettings(), []

    def hear(self, samples):
        self.log.append(("hear", samples))

    def commit(self):
        self.log.append("commit")

    def clear(self):
        self.log.append("clear")

    def change(self, settings):
        self.log.append(settings)


def checked(events: list[dict]) -> list[dict]:
    """Each parses as OpenAI's type of that name, with an id of its own."""
    for event in events:
        if event["type"].startswith("transcription_session"):
            continue
        assert TYPES.validate_python(event).type == event["type"]
    assert len({event["event_id"] for event in events}) == len(events)
    return events


def kinds(events: list[dict]) -> list[str]:
    return [event["type"].rpartition("input_audio_transcription.")[2] for event in checked(events)]


def begun(detection=VAD, older=False) -> Dialog:
    """A dialog whose settings were taken."""
    dialog = Dialog(Told(), ("demo", "whisper-1"), older)
    assert dialog.changing and dialog.answer(Heard(1, [], Listen)) == []
    update(dialog, audio={"input": {"turn_detection": detection}})
    dialog.told.settings = dialog.told.log.pop()
    assert kinds(dialog.answer(Heard(1, [], Listen))) == ["session.updated"] and not dialog.changing
    return dialog


def take(dialog, kind: str, **content) -> list[dict]:
    return checked(dialog.take(read(json.dumps({"type": kind, "event_id": "mine", **content}))))


def update(dialog, **session) -> list[dict]:
    return take(dialog, "session.update", session={"type": "transcription", **session})


def append(dialog, sound: bytes) -> list[dict]:
    return take(dialog, "input_audio_buffer.append", audio=base64.b64encode(sound).decode())


def segment(text="one two", start=1.0, end=2.0, language="en") -> Segment:
    return Segment(start, end, text, language=language)


def error(events: list[dict]) -> dict:
    [event] = checked(events)
    assert event["type"] == "error"
    return event["error"]


# ---- what a client is told -------------------------------------------------------------------------------------------


def test_an_adapter_is_chosen_by_the_name_of_the_model():
    dialog = Dialog(Told(), ("demo:calls", "demo"), adapted={"demo:calls": "calls"})
    [created] = checked([dialog.created()])
    assert created["session"]["audio"]["input"]["transcription"]["model"] == "demo:calls"
    dialog.answer(Heard(1, [], Listen))
    for name, adapter in (("demo", ""), ("demo:calls", "calls")):
        assert not update(dialog, audio={"input": {"transcription": {"model": name}}})
        assert dialog.told.log.pop().adapter == adapter
        dialog.answer(Heard(1, [], Listen))
    assert not update(dialog, audio={"input": {"transcription": {"model": "demo:calls", "language": "en"}}})
    assert dialog.told.log.pop().adapter == "calls"
    dialog.answer(Heard(1, [], Listen))
    refused = error(update(dialog, audio={"input": {"transcription": {"model": "demo:other"}}}))
    assert refused["code"] == "model_not_found" and not dialog.told.log


def test_the_session_is_described_with_what_is_in_force():
    dialog = Dialog(Told(), ("demo",))
    [created] = checked([dialog.created()])
    sound = created["session"]["audio"]["input"]
    assert created["type"] == "session.created" and created["session"]["type"] == "transcription"
    assert sound["format"] == {"type": "audio/pcm", "rate": 24_000} and sound["transcription"]["model"] == "demo"
    assert sound["turn_detection"]["type"] == "server_vad" and sound["turn_detection"]["silence_duration_ms"] == 500


def test_an_item_from_its_first_word_to_its_text():
    dialog = begun()
    events = dialog.answer(Heard(1, [SpeechStarted(1.0), Tentative("one")], Sound, since=10.0))
    assert kinds(events) == ["input_audio_buffer.speech_started"] and events[0]["audio_start_ms"] == 10_700
    item = events[0]["item_id"]
    events = dialog.answer(Heard(1, [Committed("one", ())], Sound))
    assert kinds(events) == ["delta"] and events[0]["delta"] == "one" and events[0]["item_id"] == item
    end = [SpeechStopped(2.0), Committed(" two", ()), segment()]
    events = dialog.answer(Heard(1, end, Sound, since=10.0))
    assert kinds(events) == [
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "delta",
        "completed",
    ]
    assert events[0]["audio_end_ms"] == 12_700 and events[1]["previous_item_id"] is None
    assert {event.get("item_id", item) for event in events} == {item} == {events[2]["item"]["id"]}
    assert events[-1]["transcript"] == "one two" and events[-1]["usage"] == {"type": "duration", "seconds": 1.0}
    assert events[-1]["languages"] == [{"code": "en"}] and "warnings" not in events[-1]
    events = dialog.answer(Heard(1, [SpeechStarted(5.0), SpeechStopped(6.0), segment("")], Sound))
    assert events[2]["previous_item_id"] == item and events[-1]["transcript"] == ""


@pytest.mark.parametrize("seconds, start", [(2.5, 12_000), (6.0, 13_000), (1.5, 12_000)])
def test_an_item_begins_where_the_one_before_ended_at_the_earliest(seconds, start):
    """What is heard before its speech has nothing of that item, nor of the session before."""
    dialog = begun({"type": "server_vad", "prefix_padding_ms": 3000})
    [started, *_] = dialog.answer(Heard(1, [SpeechStarted(1.0), SpeechStopped(2.0), segment()], Sound, since=10.0))
    assert started["audio_start_ms"] == 10_000
    [started] = checked(dialog.answer(Heard(1, [SpeechStarted(seconds)], Sound, since=10.0)))
    assert started["audio_start_ms"] == start


def test_speech_that_fills_a_window_becomes_an_item_without_a_pause():
    dialog = begun()
    dialog.answer(Heard(1, [SpeechStarted(1.0), Committed("one", ())], Sound))
    events = dialog.answer(Heard(1, [segment("one"), Committed("two", ())], Sound))
    assert kinds(events) == [
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "completed",
        "delta",
    ]
    assert events[-1]["item_id"] != events[0]["item_id"]
    events = dialog.answer(Heard(1, [SpeechStopped(6.0), segment("two")], Sound))
    assert kinds(events)[0] == "input_audio_buffer.speech_stopped" and events[-1]["transcript"] == "two"
    assert events[1]["previous_item_id"]


def test_where_the_client_commits_an_item_is_all_that_was_sent():
    """Windows that speech fills don't end it, and there is a space between their texts."""
    dialog = begun(None)
    events = dialog.answer(Heard(1, [SpeechStarted(0.0), Committed("one", ()), segment("one")], Sound))
    events += dialog.answer(Heard(1, [Committed("two", ()), Committed(" three", ())], Sound))
    assert kinds(events) == ["delta"] * 3
    assert append(dialog, bytes(4800)) == [] == take(dialog, "input_audio_buffer.commit")
    assert dialog.told.log[-1] == "commit"
    last = dialog.answer(Heard(1, [SpeechStopped(3.0), Committed(" four", ()), segment("two three four")], Commit))
    assert kinds(last) == [
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "delta",
        "completed",
    ]
    deltas = "".join(event["delta"] for event in events + last if "delta" in event)
    assert last[-1]["transcript"] == deltas == "one two three four" and last[-1]["usage"]["seconds"] == 2.0


def test_chinese_windows_have_no_space_between_them():
    dialog = begun(None)
    dialog.answer(Heard(1, [Committed("三一", ()), segment("三一", language="zh")], Sound))
    events = dialog.answer(Heard(1, [Committed("四", ()), segment("四", language="zh")], Commit))
    assert events[-1]["transcript"] == "三一四"


def test_a_commit_of_silence_has_an_empty_text():
    dialog = begun(None)
    events = dialog.answer(Heard(1, [], Commit))
    assert kinds(events)[0] == "input_audio_buffer.committed" and events[-1]["transcript"] == ""


def test_a_commit_amid_speech_ends_the_item():
    dialog = begun()
    [started] = dialog.answer(Heard(1, [SpeechStarted(1.0)], Sound))
    events = dialog.answer(Heard(1, [SpeechStopped(2.0), Committed("one", ()), segment("one")], Commit))
    assert kinds(events)[0] == "input_audio_buffer.committed" and kinds(events)[-1] == "completed"
    assert events[0]["item_id"] == started["item_id"]
    assert error(dialog.answer(Heard(1, [], Commit)))["code"] == "input_audio_buffer_commit_empty"


def test_clear_forgets_the_item():
    dialog = begun()
    [started] = dialog.answer(Heard(1, [SpeechStarted(1.0)], Sound))
    assert take(dialog, "input_audio_buffer.clear") == [] and dialog.told.log == ["clear"]
    assert kinds(dialog.answer(Heard(1, [], Clear))) == ["input_audio_buffer.cleared"]
    [again] = dialog.answer(Heard(1, [SpeechStarted(1.0)], Sound))
    assert again["item_id"] != started["item_id"]


def test_what_the_user_should_know_is_with_the_text():
    dialog = begun()
    notice = Notice("this machine is too slow")
    events = dialog.answer(Heard(1, [notice, SpeechStarted(1.0), SpeechStopped(2.0), segment()], Sound))
    assert events[-1]["warnings"] == ["this machine is too slow"]
    events = dialog.answer(Heard(1, [SpeechStarted(1.0), SpeechStopped(2.0), segment()], Sound))
    assert "warnings" not in events[-1]


@pytest.mark.parametrize("detection", [VAD, None])
def test_a_text_that_fails(detection):
    """While somebody speaks it is an error; at the end it is that of the item, whose deltas stay."""
    dialog, wrong = begun(detection), ShortMemoryError("no room")
    dialog.answer(Heard(1, [SpeechStarted(1.0), Committed("one", ())], Sound))
    assert error(dialog.answer(Heard(1, [wrong], Sound)))["code"] == "no_memory"
    events = dialog.answer(Heard(1, [SpeechStopped(2.0), segment("one"), wrong], Commit))
    assert kinds(events) == [
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "failed",
    ]
    assert events[-1]["error"]["code"] == "no_memory" and events[-1]["item_id"] == events[0]["item_id"]
    events = dialog.answer(Heard(1, [SpeechStarted(3.0), SpeechStopped(4.0), segment()], Commit))
    assert kinds(events)[-1] == "completed"


def test_a_window_that_fails():
    """It is an item where pauses end items, else a gap in one."""
    wrong = [segment("one"), ShortMemoryError("no room")]
    dialog = begun()
    dialog.answer(Heard(1, [SpeechStarted(1.0), Committed("one", ())], Sound))
    failed = dialog.answer(Heard(1, wrong, Sound))
    assert kinds(failed)[-1] == "failed"
    events = dialog.answer(Heard(1, [SpeechStopped(9.0), Committed("two", ()), segment("two")], Sound))
    assert events[-1]["transcript"] == "two" and events[-1]["item_id"] != failed[-1]["item_id"]
    dialog = begun(None)
    dialog.answer(Heard(1, [SpeechStarted(1.0), Committed("one", ())], Sound))
    error(dialog.answer(Heard(1, wrong, Sound)))
    events = dialog.answer(Heard(1, [SpeechStopped(9.0), Committed("two", ()), segment("two")], Commit))
    assert events[-1]["transcript"] == "one two"


def test_at_the_end_what_was_said_is_told():
    dialog = begun()
    dialog.answer(Heard(1, [SpeechStarted(1.0), Committed("one", ())], Sound))
    events = dialog.answer(Heard(1, [SpeechStopped(2.0), segment("one")], Finish))
    assert kinds(events)[-1] == "completed" and dialog.answer(Heard(1, [], Finish)) == []


# ---- what a client may set -------------------------------------------------------------------------------------------


def test_an_update_changes_what_it_names():
    dialog = begun()
    asked = {"model": "whisper-1", "language": "zh", "prompt": "before", "keywords": ["GLM-ASR", "Kowloon Tong:2"]}
    sound = {"format": {"type": "audio/pcmu"}, "transcription": asked, "noise_reduction": None}
    assert update(dialog, audio={"input": sound}, include=[]) == [] and dialog.changing
    options = {
        "prompt": "before",
        "hotwords": (("GLM-ASR", 1.0), ("Kowloon Tong", 2.0)),
        "threshold": 0.5,
        "padding": 0.3,
    }
    assert dialog.told.log == [LiveSettings("zh", 8000, 0.7, options)]
    [updated] = checked(dialog.answer(Heard(1, [], Listen)))
    assert updated["session"]["audio"]["input"] == {
        "format": {"type": "audio/pcmu"},
        "transcription": asked,
        "turn_detection": VAD,
        "noise_reduction": None,
    }
    update(dialog, audio={"input": {"transcription": {"language": "en"}, "turn_detection": None}})
    assert dialog.told.log[-1].language == "en" and dialog.told.log[-1].pause is None
    assert dict(dialog.told.log[-1].options)["prompt"] == "before"


def test_settings_that_the_model_refuses_stay_as_they_were():
    dialog = begun()
    update(dialog, audio={"input": {"transcription": {"language": "xx"}, "format": {"type": "audio/pcma"}}})
    refused = error(dialog.answer(Refused(1, OptionError("language is 'xx', expected zh, yue or en"))))
    assert refused["param"] == "session.audio.input.transcription.language" and refused["event_id"] == "mine"
    assert not dialog.changing and dialog.session.audio.input.format.type == "audio/pcm"
    assert append(dialog, b"123")[0]["error"]["param"] == "audio"  # still 16 bits


def test_an_update_amid_speech_ends_the_item_unless_the_client_does():
    for detection, ends in ((VAD, True), (None, False)):
        dialog = begun(detection)
        dialog.answer(Heard(1, [SpeechStarted(1.0), Committed("one", ())], Sound))
        update(dialog, audio={"input": {"transcription": {"language": "en"}}})
        events = dialog.answer(Heard(1, [SpeechStopped(2.0), segment("one")], Listen))
        assert kinds(events)[-1] == "session.updated" and ("completed" in kinds(events)) == ends
        assert "input_audio_buffer.speech_stopped" not in kinds(events)


@pytest.mark.parametrize(
    "session, says, param",
    [
        ({"type": "realtime"}, "transcription sessions only", "type"),
        ({"audio": {"input": {"format": {"type": "audio/pcm", "rate": 16_000}}}}, "16000", "format.rate"),
        ({"audio": {"input": {"format": {"type": "audio/opus"}}}}, "audio/pcmu", "format"),
        ({"audio": {"input": {"format": "pcm16"}}}, "'pcm16'", "format"),
        ({"audio": {"input": {"noise_reduction": {"type": "near_field"}}}}, "reduce noise", "noise_reduction"),
        ({"audio": {"input": {"turn_detection": {"type": "semantic_vad"}}}}, "semantic_vad", "turn_detection.type"),
        ({"audio": {"input": {"turn_detection": {"threshold": 1.5}}}}, "less than 1", "threshold"),
        ({"audio": {"input": {"turn_detection": {"silence_duration_ms": 60_000}}}}, "10000", "silence_duration_ms"),
        ({"audio": {"input": {"turn_detection": {"prefix_padding_ms": 5001}}}}, "5000", "prefix_padding_ms"),
        ({"audio": {"input": {"turn_detection": {"prefix_padding_ms": True}}}}, "integer", "prefix_padding_ms"),
        ({"audio": {"input": {"turn_detection": {"silence_duration_ms": "500"}}}}, "integer", "silence_duration_ms"),
        ({"audio": {"input": {"turn_detection": {"threshold": "0.5"}}}}, "number", "threshold"),
        ({"audio": {"input": {"turn_detection": {"create_response": True}}}}, "no responses", "create_response"),
        ({"audio": {"input": {"turn_detection": {"idle_timeout_ms": 5000}}}}, "no responses", "idle_timeout_ms"),
        ({"audio": {"input": {"transcription": None}}}, "nothing but transcribe", "transcription"),
        ({"audio": {"input": {"transcription": {"model": "gpt-9"}}}}, "has demo, whisper-1", "model"),
        ({"audio": {"input": {"transcription": {"language": "x" * 50}}}}, "40 characters", "language"),
        ({"audio": {"input": {"transcription": {"delay": "low"}}}}, "no such field", "delay"),
        ({"audio": {"input": {"transcription": {"keywords": ["GLM:0"]}}}}, "weight", "keywords"),
        ({"audio": {"output": {"voice": "alloy"}}}, "doesn't speak", "output"),
        ({"include": ["item.input_audio_transcription.logprobs"]}, "log-probabilities", "include"),
        ({"instructions": "be quick"}, "no such field", "instructions"),
        ({"audio": 7}, "valid dictionary", "audio"),
    ],
)
def test_what_the_server_cannot_do_is_an_error_that_says_so(session, says, param):
    dialog = begun()
    before = dialog.session
    found = error(update(dialog, **session))
    assert says in found["message"] and param in found["param"] and found["event_id"] == "mine", found
    assert dialog.session is before and not dialog.changing and not dialog.told.log


@pytest.mark.parametrize(
    "message, says",
    [
        ("", "isn't JSON"),
        ("{", "isn't JSON"),
        ("[" * 100_000, "isn't JSON"),
        ("7", "type is 'None'"),
        ('{"type": ["x"]}', "session.update"),
        ('{"type": "response.create"}', "'response.create'"),
        ('{"type": "conversation.item.create", "item": {}}', "input_audio_buffer.append"),
        ('{"type": "\\ud800"}', "type is"),
        ('{"type": "session.update"}', "session is missing"),
        ('{"type": "session.update", "session": []}', "session is missing"),
        ('{"type": "input_audio_buffer.append"}', "audio is missing"),
        ('{"type": "input_audio_buffer.append", "audio": 7}', "audio is missing"),
        ('{"type": "input_audio_buffer.append", "audio": "!!!"}', "isn't base64"),
        ('{"type": "input_audio_buffer.append", "audio": "AA==AAAA"}', "isn't base64"),
        ('{"type": "input_audio_buffer.append", "audio": "AAAAA"}', "isn't base64"),
        ('{"type": "input_audio_buffer.append", "audio": "é"}', "isn't base64"),
        ('{"type": "input_audio_buffer.append", "audio": "AAAA", "rate": 8000}', "rate is no field"),
        ('{"type": "input_audio_buffer.append", "audio": "AAAA"}', "odd number"),
        ('{"type": "input_audio_buffer.commit", "event_id": 7}', "event_id is no text"),
        ('{"type": "input_audio_buffer.commit"}', "at least 100 ms"),
        (b"\x00" * 1000, "binary message of 1000 bytes"),
    ],
)
def test_garbage_is_an_error_and_the_session_goes_on(message, says):
    dialog = begun()
    found = error(dialog.take(read(message)))
    assert says in found["message"] and found["type"] == "invalid_request_error" and not dialog.told.log
    json.dumps(found).encode()
    assert append(dialog, bytes(4800)) == [] and len(dialog.told.log) == 1


def test_a_commit_needs_a_tenth_of_a_second():
    dialog = begun(None)
    append(dialog, bytes(4798))
    assert error(take(dialog, "input_audio_buffer.commit"))["code"] == "input_audio_buffer_commit_empty"
    append(dialog, bytes(2))
    assert take(dialog, "input_audio_buffer.commit") == []
    assert error(take(dialog, "input_audio_buffer.commit"))["message"].startswith("0 ms")


@pytest.mark.parametrize("size", [0, 1, 2, 3, SLICE // 4 * 3, SLICE + 1, SLICE * 2])
def test_sound_is_decoded_in_slices(size):
    sound = np.random.default_rng(1).bytes(size)
    message = {"type": "input_audio_buffer.append", "audio": base64.b64encode(sound).decode()}
    assert read(json.dumps(message)).sound == sound


# ---- the older protocol ----------------------------------------------------------------------------------------------


def test_the_older_shape():
    dialog = begun(older=True)
    assert dialog.created()["type"] == "transcription_session.created"
    session = {
        "input_audio_format": "g711_alaw",
        "input_audio_transcription": {"model": "whisper-1", "language": "zh"},
        "turn_detection": None,
        "input_audio_noise_reduction": None,
    }
    assert take(dialog, "transcription_session.update", session=session) == []
    assert dialog.told.log[-1] == LiveSettings("zh", 8000, None, {"prompt": "", "hotwords": ()})
    [updated] = dialog.answer(Heard(1, [], Listen))
    assert updated["type"] == "transcription_session.updated"
    found = TranscriptionSessionUpdatedEvent.model_validate(
        {**updated, "session": {**updated["session"], "client_secret": {"expires_at": 0, "value": ""}}}
    )
    assert found.session.input_audio_format == "g711_alaw" and found.session.turn_detection is None
    events = dialog.answer(Heard(1, [SpeechStopped(1.0), segment()], Commit))
    assert [event["type"] for event in events][1] == "conversation.item.created" and len(events) == 3


@pytest.mark.parametrize(
    "session, says",
    [
        ({"input_audio_format": "pcm8"}, "pcm16, g711_ulaw, g711_alaw"),
        ({"input_audio_format": ["pcm16"]}, "pcm16"),
        ({"modalities": ["text"]}, "no such field"),
        ({"input_audio_noise_reduction": {"type": "far_field"}}, "reduce noise"),
        (None, "session is missing"),
    ],
)
def test_the_older_shape_is_as_strict(session, says):
    assert says in error(take(begun(), "transcription_session.update", session=session))["message"]


# ---- sound -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, name", [("audio/pcmu", "ULAW"), ("audio/pcma", "ALAW")])
def test_g711_is_that_of_libsndfile(kind, name):
    codes = bytes(range(256))
    expected, _ = soundfile.read(
        io.BytesIO(codes), dtype="int16", samplerate=8000, channels=1, format="RAW", subtype=name
    )
    assert np.array_equal(g711.samples(codes, kind), expected)


def test_pcm_is_little_endian():
    found = g711.samples(b"\x01\x00\x00\x80", "audio/pcm")
    assert found.dtype == np.int16 and found.tolist() == [1, -32768]


# ---- connections, without a worker -----------------------------------------------------------------------------------


class Place:
    """The application with a queue whose worker is this test."""

    def __init__(self, **more):
        self.queue = request_queue.RequestQueue({})
        self.queue._outbox = self.outbox = SimpleQueue()
        self.queue.ready = self.queue.facts = Ready(["auto", "en"], False, ["transcribe"], {})
        self.app = api.make_app(self.queue, "", names=("demo",), **more)
        self.client = testclient.TestClient(self.app)

    def connect(self, address="/v1/realtime?intent=transcription", **more):
        return self.client.websocket_connect(address, **more)

    def told(self):
        return self.outbox.get(timeout=10)

    def say(self, socket, message):
        socket.portal.call(self._say, message)

    async def _say(self, message):
        self.queue._receive(message)

    @contextmanager
    def begun(self, **more):
        # Starlette's client cancels an application that is about to end.
        with suppress(CancelledError), self.connect(**more) as socket:
            assert isinstance(self.told(), Listen)
            assert socket.receive_json()["type"] == "session.created"
            self.say(socket, Heard(self.number, [], Listen))
            yield socket
            socket.close(1000)
            self.until(lambda: not self.queue.running)

    @staticmethod
    def until(condition) -> None:
        end = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < end, "it didn't happen"
            time.sleep(0.01)

    @property
    def number(self):
        [session] = self.queue.sessions
        return session.number

    def ended(self) -> None:
        """Nothing is left of it."""
        self.until(lambda: not self.queue.running)
        while not self.outbox.empty():
            last = self.outbox.get()
        assert isinstance(last, Cancel)


def sound(seconds=0.1) -> dict:
    return {"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(round(48_000 * seconds))).decode()}


def test_sound_goes_to_the_worker_and_events_come_back():
    place = Place()
    with place.begun() as socket:
        socket.send_json(sound())
        assert place.told() == Sound(place.number, bytes(4800))
        place.say(socket, Heard(place.number, [SpeechStarted(1.0)], Sound, 1, 0.1))
        assert socket.receive_json()["type"] == "input_audio_buffer.speech_started"
        socket.send_bytes(b"x")
        assert socket.receive_json()["error"]["message"].startswith("a binary message")
    place.ended()
    assert 'glmasr_sessions_total{outcome="done"} 1.0' in place.queue.metrics.text().decode()


def test_after_an_update_nothing_is_read_until_the_worker_has_answered():
    place = Place()
    with place.begun() as socket:
        socket.send_json(
            {"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/pcmu"}}}}}
        )
        socket.send_json({"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(800)).decode()})
        assert place.told().settings.rate == 8000
        time.sleep(0.2)
        assert place.outbox.empty()
        place.say(socket, Heard(place.number, [], Listen))
        assert place.told().samples == g711.TABLES["audio/pcmu"][[0]].tobytes() * 800
        assert socket.receive_json()["type"] == "session.updated"
    place.ended()


def refused(place, *address, **more) -> tuple[int, dict]:
    with pytest.raises(testclient.WebSocketDenialResponse) as caught, place.connect(*address, **more):
        pass
    assert not place.queue.running
    return caught.value.status_code, caught.value.json()["error"]


def test_who_gets_in():
    place = Place(key="secret", hosts=frozenset({"testserver"}), origins=("https://example.org",))
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
        assert refused(place, headers=headers)[0] == 401
    assert refused(place, subprotocols=["realtime", "openai-insecure-api-key.wrong"])[0] == 401
    key = {"Authorization": "Bearer secret"}
    assert refused(place, headers=key | {"Origin": "https://evil.example"})[1]["code"] == "foreign_origin"
    assert refused(place, headers=key | {"Host": "evil.example"})[1]["code"] == "unknown_host"
    with place.begun(headers=key | {"Origin": "https://example.org"}):
        pass
    place.ended()
    with place.begun(headers=key | {"Origin": "http://testserver"}):
        pass
    place.ended()
    with place.begun(subprotocols=["realtime", "openai-insecure-api-key.secret"]) as socket:
        assert socket.accepted_subprotocol == "realtime"
    assert 'glmasr_refused_requests_total{status="401"} 4.0' in place.queue.metrics.text().decode()


@pytest.mark.parametrize(
    "address, status, code",
    [
        ("/v1/realtime?model=gpt-9", 404, "model_not_found"),
        ("/v1/realtime?intent=conversation", 400, "unsupported_value"),
        ("/v1/realtime?call_id=7", 400, "unsupported_parameter"),
        ("/v1/realtime?model=demo&model=demo", 400, "invalid_value"),
        ("/v1/audio/transcriptions", 404, "unknown_url"),
        ("/", 404, "unknown_url"),
    ],
)
def test_addresses_that_are_refused(address, status, code):
    found = refused(Place(), address)
    assert found[0] == status and found[1]["code"] == code


def test_an_ordinary_request_is_told_what_it_is():
    answer = Place().client.get("/v1/realtime")
    assert answer.status_code == 426 and answer.json()["error"]["code"] == "upgrade_required"


def test_without_a_place_or_a_model_it_is_refused_before_the_handshake(monkeypatch):
    place = Place()
    monkeypatch.setattr(request_queue, "SESSIONS", 1)
    with place.begun():
        status, error = place_refusal(place)
        assert status == 429 and error["code"] == "queue_full"
    place.ended()
    place.queue.ready = None
    assert place_refusal(place) == (503, {**place_refusal(place)[1], "code": "model_loading"})
    place.queue.close()
    assert place_refusal(place)[1]["code"] == "shutting_down"


def place_refusal(place) -> tuple[int, dict]:
    with pytest.raises(testclient.WebSocketDenialResponse) as caught, place.connect():
        pass
    assert int(caught.value.headers["Retry-After"]) > 0
    return caught.value.status_code, caught.value.json()["error"]


def last_words(socket) -> tuple[dict, int]:
    """The error that a session ends with, and the code of its close."""
    event = socket.receive_json()
    assert checked([event]) and event["type"] == "error"
    with pytest.raises(testclient.WebSocketDisconnect) as caught:
        socket.receive_json()
    return event["error"], caught.value.code


def test_an_idle_session_is_closed(monkeypatch):
    monkeypatch.setattr(realtime, "TICK", 0.05)
    monkeypatch.setattr(realtime, "IDLE", 0.5)
    place = Place()
    with place.begun() as socket:
        start = time.monotonic()
        while time.monotonic() < start + 1.0:  # sound keeps it open, whatever it is
            socket.send_json(sound(0.01))
            place.say(socket, Heard(place.number, [], Sound, 1, 0.01))
            time.sleep(0.1)
        error, code = last_words(socket)
        assert error["code"] == "session_idle" and code == 1008 and "0.5 s" in error["message"]
    place.ended()


def test_one_whose_sound_waits_is_not_idle(monkeypatch):
    monkeypatch.setattr(realtime, "TICK", 0.05)
    monkeypatch.setattr(realtime, "IDLE", 0.3)
    place = Place()
    with place.begun() as socket:
        socket.send_json(sound())
        time.sleep(1.0)
        assert place.queue.running
        place.say(socket, Heard(place.number, [], Sound, 1, 0.1))
        assert last_words(socket)[0]["code"] == "session_idle"
    place.ended()


@pytest.mark.parametrize("seconds", [0.0, 2.0])
def test_an_overlong_session_is_closed(monkeypatch, seconds):
    """By time, and by sound, which may come faster."""
    monkeypatch.setattr(realtime, "TICK", 0.05)
    place = Place(max_duration=1.0)
    with place.begun() as socket:
        start = time.monotonic()
        if seconds:
            socket.send_json(sound(seconds))
        error, code = last_words(socket)
        assert error["code"] == "session_expired" and code == 1008
        assert (time.monotonic() < start + 0.8) == bool(seconds)
    place.ended()


def test_more_sound_than_can_be_heard_is_not_read():
    place = Place()
    with place.begun() as socket:
        for _ in range(50):
            socket.send_json(sound(1.0))
        time.sleep(0.5)
        assert place.outbox.qsize() == 31  # 30 s may wait, and one message more
        for _ in range(40):
            place.told()
            place.say(socket, Heard(place.number, [], Sound, 1, 1.0))
        time.sleep(0.5)
        assert place.outbox.qsize() == 10
    place.ended()


def test_at_the_end_of_the_server_a_session_finishes():
    place = Place()
    with place.begun() as socket:
        socket.portal.call(closing, place.queue)
        assert isinstance(place.told(), Finish)
        socket.send_json(sound())  # comes too late
        place.say(socket, Heard(place.number, [SpeechStarted(0.0), SpeechStopped(1.0), segment()], Finish))
        kinds = [socket.receive_json()["type"] for _ in range(5)]
        assert kinds[-1] == "conversation.item.input_audio_transcription.completed"
        error, code = last_words(socket)
        assert error["code"] == "shutting_down" and code == 1001
    place.ended()


async def closing(queue) -> None:
    queue.close()


def test_a_worker_that_dies_ends_its_sessions():
    place = Place()
    with place.begun() as socket:
        place_session = place.queue.sessions[0]
        socket.portal.call(dies, place_session)
        error, code = last_words(socket)
        assert error["code"] == "worker_died" and code == 1011 and error["type"] == "server_error"
    place.ended()
    assert 'glmasr_sessions_total{outcome="WorkerDied"} 1.0' in place.queue.metrics.text().decode()


async def dies(session) -> None:
    session.put(problems.WorkerDied("the process that recognized it has ended"))


def test_a_defect_ends_the_session_and_says_nothing_of_it(caplog):
    place = Place()
    with place.begun() as socket:
        place.say(socket, Heard(place.number, [SpeechStarted("secret")], Sound))
        with pytest.raises(testclient.WebSocketDisconnect) as caught:
            socket.receive_json()
        assert caught.value.code == 1011
    place.ended()
    assert "TypeError at" in caplog.text and "secret" not in caplog.text


def test_courses_end_together():
    """And what the first one raises is raised."""
    ended = []

    async def forever():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(1)

    async def fails():
        raise problems.Busy("no")

    async def run():
        with pytest.raises(problems.Busy):
            await realtime.first_of(forever(), fails(), forever())

    asyncio.run(run())
    assert ended == [1, 1]
