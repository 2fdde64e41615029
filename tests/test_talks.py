"""What users of the page say into their microphones: no sample is lost or heard twice, and texts grow from events."""

import asyncio
import time
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs the extra [web]")
httpx = pytest.importorskip("httpx", reason="needs the extra [test]")

from glmasr.errors import AudioError  # noqa: E402
from glmasr.pipeline import Segment, Word  # noqa: E402
from glmasr.server import api, calls, messages, page, page_live, page_texts, request_queue, talks, uploads  # noqa: E402
from glmasr.server.live_session import LiveSession  # noqa: E402
from glmasr.server.messages import Finish, Heard, Listen, LiveSettings, Refused, Sound  # noqa: E402
from glmasr.server.problems import Busy, Closing, Gone, InvalidValue, UnknownUrl  # noqa: E402
from glmasr.transcription.live_events import Committed, Notice, SpeechStarted, SpeechStopped, Tentative  # noqa: E402

RATE = 8000
SETTINGS = LiveSettings("en", RATE)
KEY = "0123456789abcdef" * 2
ONE, TWO = Word("one", 0.5, 0.8, 0.9), Word("two", 1.0, 1.4, 0.9)
SPOKEN = [  # a segment, as a session tells it
    SpeechStarted(0.4),
    Tentative("one"),
    Committed("one", (ONE,)),
    Tentative(" too"),
    SpeechStopped(1.5),
    Committed(" two", (TWO,)),
    Segment(0.5, 1.4, "one two", language="en", words=(ONE, TWO)),
]


class Queue:
    """Has one place, and no worker: what a session sends is in `sent`, what it is told comes from the test."""

    def __init__(self):
        self.sent, self.session, self.facts = [], None, None

    def listen(self, settings):
        if self.session:
            raise Busy("there is no place")
        self.session = LiveSession(1, settings, self.sent.append, self.left, lambda _: None, 60.0)
        return self.session

    def left(self, session):
        self.outcome, self.session = session.outcome, None

    def say(self, events=(), asked=Sound, seconds=0.0, since=0.0):
        self.session.put(Heard(1, list(events), asked, 1, seconds, since))

    @property
    def sound(self):
        return b"".join(message.samples for message in self.sent if isinstance(message, Sound))


class Listening:
    """`talk.listen` while it runs: `views` of what was there to be shown."""

    def __init__(self, talk, queue, key=KEY, settings=SETTINGS):
        self.talk, self.views = talk, []
        self.task = asyncio.ensure_future(self._run(talk.listen(queue, key, settings)))

    async def _run(self, steps):
        async for _ in steps:
            self.views.append((len(self.talk.segments), self.talk.committed, self.talk.tentative))


def within_time(coroutine):
    """What it returns, in 30 s at most: a call may wait for an event that never comes."""

    async def run():
        return await asyncio.wait_for(coroutine, 30)

    return asyncio.run(run())


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


def test_texts_grow_from_events():
    talk, seen = talks.Talk(60.0), []
    for event in SPOKEN:
        talk.add(event, 10.0)
        seen.append((talk.committed, talk.tentative))
    assert seen == [("", ""), ("", "one"), ("one", ""), ("one", " too"), ("one", " too"), ("one two", ""), ("", "")]
    [segment] = talk.segments
    assert (segment.text, segment.start, segment.end) == ("one two", 10.5, 11.4)
    assert [(word.start, word.end) for word in segment.words] == [(10.5, 10.8), (11.0, 11.4)]
    talk.add(Segment(2.0, 3.0, ""), 10.0)  # somebody coughed
    talk.add(Notice("this is slow"))
    talk.add(Notice("this is slow"))
    assert len(talk.segments) == 1 and talk.notices == ["this is slow"]
    talk._before = 20.0  # seconds of sound
    transcript = talk.transcript({"device": "cpu"})
    assert (transcript.text, transcript.language, transcript.warnings) == ("one two", "en", ["this is slow"])
    assert transcript.to_srt().startswith("1\n00:00:10,500 --> 00:00:11,") and transcript.seconds == 20.0


def test_no_sample_is_lost_or_heard_twice():
    async def run():
        queue, talk = Queue(), talks.Talk(60.0)
        listening = Listening(talk, queue)
        await turns()
        sound = bytes(range(200))
        await talk.hear(0, sound[:100], False)
        await talk.hear(0, sound[:100], False)  # its answer was lost
        await talk.hear(25, sound[50:160], False)  # and the page had more by then
        with pytest.raises(InvalidValue, match="expected at most 80"):
            await talk.hear(81, sound[162:], False)
        with pytest.raises(InvalidValue):
            await talk.hear(80, sound[160:163], False)
        await talk.hear(80, sound[160:], True)
        assert queue.sound == sound and isinstance(queue.sent[-1], Finish)
        with pytest.raises(Gone):
            await talk.hear(100, b"", True)
        queue.say(asked=Listen)
        for _ in range(3):
            queue.say()
        await turns()
        assert not listening.task.done()
        queue.say(SPOKEN, asked=Finish)
        await listening.task
        assert queue.session is None and queue.outcome == "done" and talk.session is None
        assert listening.views[0] == (0, "", "") and listening.views[-1] == (1, "", "")

    within_time(run())


def test_another_recording_goes_on_with_the_text_and_its_times():
    async def run():
        queue, talk = Queue(), talks.Talk(60.0)
        for number in range(2):
            listening = Listening(talk, queue, key=f"{number:032x}")
            await turns()
            await talk.hear(0, bytes(2 * 3 * RATE), True)  # 3 s, in three messages
            for asked in (Listen, Sound, Sound, Sound):
                queue.say(asked=asked)
            queue.say(SPOKEN, asked=Finish, since=0.25)
            await listening.task
        assert [(segment.start, segment.end) for segment in talk.segments] == [(0.75, 1.65), (3.75, 4.65)]
        assert talk.seconds == 6.0
        talk.clear()
        assert talk.seconds == 0.0 and not talk.segments

    within_time(run())


@pytest.mark.parametrize("in_time", [True, False])
def test_what_was_certain_stays_where_a_session_breaks_off(in_time):
    async def run():
        queue, talk = Queue(), talks.Talk(60.0)
        listening = Listening(talk, queue)
        await turns()
        queue.say(asked=Listen)
        await talk.hear(0, bytes(2 * RATE), False)
        queue.say(SPOKEN[:4])
        queue.session.put(Closing("the server is about to end"))
        await turns()
        assert isinstance(queue.sent[-1], Finish) and not listening.task.done()
        if in_time:
            queue.say(SPOKEN[4:], asked=Finish)
        else:
            queue.session.put(Closing("the server ends"))
        with pytest.raises(Closing):
            await listening.task
        assert [segment.text for segment in talk.segments] == ["one two" if in_time else "one"] and not talk.tentative
        assert queue.session is None and queue.outcome == "Closing"
        with pytest.raises(Gone):
            await talk.hear(RATE, b"", False)

    within_time(run())


def test_settings_that_are_refused():
    async def run():
        queue, talk = Queue(), talks.Talk(60.0)
        listening = Listening(talk, queue)
        await turns()
        queue.session.put(Refused(1, AudioError("no such rate")))
        with pytest.raises(AudioError, match="no such rate"):
            await listening.task
        assert queue.session is None and not talk.segments

    within_time(run())


def test_a_user_who_leaves_gives_the_place_back():
    async def run():
        queue, talk = Queue(), talks.Talk(60.0)
        steps = talk.listen(queue, KEY, SETTINGS)
        await anext(steps)
        with pytest.raises(InvalidValue, match="is being spoken to"):
            await anext(talk.listen(queue, KEY, SETTINGS))
        await steps.aclose()
        assert queue.session is None and queue.outcome == "left"

    within_time(run())


def test_sound_has_a_limit():
    async def run():
        queue, talk = Queue(), talks.Talk(2.0)
        listening = Listening(talk, queue)
        await turns()
        await talk.hear(0, bytes(2 * 2 * RATE), False)
        assert not isinstance(queue.sent[-1], Finish)
        await talk.hear(2 * RATE, bytes(2), False)
        assert isinstance(queue.sent[-1], Finish) and "2 s were heard" in talk.notices[0]
        listening.task.cancel()
        await asyncio.gather(listening.task, return_exceptions=True)

    within_time(run())


def test_talks_end_without_sound_and_go_with_their_pages(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(talks.time, "monotonic", lambda: now)

    async def run():
        nonlocal now
        kept = uploads.Uploads(tmp_path / "page", 2**20)
        all_talks, queue = talks.Talks(kept, 60.0), Queue()
        kept.page_opened("open")
        talk = all_talks.of("open")
        assert all_talks.of("open") is talk and all_talks.of("left") is not talk
        listening = Listening(talk, queue)
        await turns()
        assert await all_talks.find(KEY) is talk
        now += talks.IDLE - 1
        all_talks.tidy()
        assert not any(isinstance(message, Finish) for message in queue.sent)
        now += 2
        all_talks.tidy()
        assert isinstance(queue.sent[-1], Finish)
        queue.say(asked=Listen)
        queue.say(asked=Finish)
        await listening.task
        now += uploads.RETURN
        all_talks.tidy()
        assert set(all_talks.talks) == {"open"}
        kept.page_left("open")
        all_talks.tidy()
        assert not all_talks.talks

    within_time(run())


def test_there_may_be_too_many(monkeypatch):
    monkeypatch.setattr(talks, "MOST_TALKS", 2)
    all_talks = talks.Talks(None, 60.0)
    for name in "ab":
        all_talks.of(name)
    with pytest.raises(Busy):
        all_talks.of("c")


def test_sound_may_come_before_the_call_that_listens(monkeypatch):
    monkeypatch.setattr(talks, "BEGINS", 0.2)

    async def run():
        all_talks, queue = talks.Talks(None, 60.0), Queue()
        with pytest.raises(UnknownUrl):
            await all_talks.find(KEY)
        found = asyncio.ensure_future(all_talks.find(KEY))
        await turns()
        steps = all_talks.of("page").listen(queue, KEY, SETTINGS)
        await anext(steps)
        assert await found is all_talks.of("page")
        await steps.aclose()

    within_time(run())


# ---- the route, and the page's functions -----------------------------------------------------------------------------


def test_the_route_takes_sound(tmp_path):
    async def run():
        all_talks, queue = talks.Talks(uploads.Uploads(tmp_path / "page", 2**20), 60.0), Queue()
        app = api.make_app(request_queue.RequestQueue({}), str(tmp_path))
        page_live.add_route(app, all_talks)
        listening = Listening(all_talks.of("page"), queue)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:

            async def post(path, content=b"\1\0", **headers):
                headers = {"Content-Type": "application/octet-stream"} | headers
                return (await client.post(path, content=content, headers=headers)).status_code

            assert await post(f"/live/{KEY}?at=0") == 204
            assert (
                await post(f"/live/{KEY}?at=2") == await post(f"/live/{KEY}?at=-1") == await post(f"/live/{KEY}") == 400
            )
            assert await post(f"/live/{KEY}?at=1", bytes(2**16)) == 204
            assert await post(f"/live/{KEY}?at=1", bytes(2**16 + 2)) == 413
            assert await post(f"/live/{KEY}?at=1", Origin="http://evil.example") == 403
            assert await post("/live/x?at=0") == 400
            assert await post(f"/live/{KEY}?at=1&last=true", b"") == 204
            assert await post(f"/live/{KEY}?at=32769", b"") == 410
        assert queue.sound == b"\1\0" + bytes(2**16)
        listening.task.cancel()
        await asyncio.gather(listening.task, return_exceptions=True)

    within_time(run())


def request(session):
    return type("Request", (), {"session_hash": session, "headers": {}})()


async def values(steps):
    return [value async for value in steps]


def test_what_the_page_shows(tmp_path):
    """Two users at once: each sees what each says, with text that is never HTML."""

    async def run():
        kept = uploads.Uploads(tmp_path / "page", 2**20)
        all_talks, shown = talks.Talks(kept, 60.0), {}
        for name in ("<b>ann", "bob"):
            queue = Queue()
            handlers = page_live.Handlers(queue, all_talks)
            task = asyncio.ensure_future(
                values(handlers.listen(KEY[::-1] if name == "bob" else KEY, 8000.0, "en", request(name)))
            )
            await asyncio.sleep(0.01)
            queue.say(asked=Listen)
            await all_talks.of(name).hear(0, bytes(2 * RATE), False)
            queue.say([SpeechStarted(0.1), Committed(name, (Word(name, 0.2, 0.4, 0.9),)), Tentative(" <i>")])
            await asyncio.sleep(0.01)
            all_talks.of(name).end()
            queue.say([SpeechStopped(1.0), Segment(0.2, 0.4, name, words=(Word(name, 0.2, 0.4, 0.9),))], asked=Finish)
            shown[name] = await task
        for name, other in (("<b>ann", "bob"), ("bob", "ann")):
            views = [view[:3] for view in shown[name]]
            escaped = name.replace("<", "&lt;").replace(">", "&gt;")
            assert any(
                f'<p><span>{escaped}</span><span class="glm-maybe"> &lt;i&gt;</span></p>' == now for _, _, now in views
            )
            status, said, now = views[-1]
            assert "Stopped" in status and now == "" and said == f'<p title="0:00.2 – 0:00.4">{escaped}</p>'
            assert other not in str(views)
            paths = [update["value"] for update in shown[name][-1][3:]]
            assert [path.rpartition(".")[2] for path in paths] == ["txt", "srt", "vtt", "json"]
            assert (name == "bob") == ("\nbob\n" in Path(paths[1]).read_text(encoding="utf-8"))
            assert all(kept.files[path].session == name for path in paths)
        handlers = page_live.Handlers(Queue(), all_talks)
        kept.show(kept.new("talk.wav"), "bob")  # a recording, in the other tab
        assert sum(file.session == "bob" for file in kept.files.values()) == 5
        assert (await handlers.fresh(request("bob")))[:3] == ("", "", "")
        assert sum(file.session == "bob" for file in kept.files.values()) == 1
        assert not all_talks.of("bob").segments and all_talks.of("<b>ann").segments

    within_time(run())


def test_the_page_says_that_there_is_no_place():
    async def run():
        queue, all_talks = Queue(), talks.Talks(None, 60.0)
        queue.session = "somebody else's"
        [view] = await values(page_live.Handlers(queue, all_talks).listen(KEY, 8000, "en", request("page")))
        assert 'role="alert"' in view[0] and "there is no place" in view[0] and view[1:3] == ("", "")

    within_time(run())


def test_the_tab_is_named_in_both_languages_and_its_functions_have_their_numbers():
    queue = request_queue.RequestQueue({})
    queue.facts = messages.Ready(["auto", "en"], True, ["transcribe"], {"device": "cpu", "dtype": "float32"})
    all_talks = talks.Talks(None, 60.0)
    blocks = page.layout("model", queue, page.Handlers(queue, None, 60.0), all_talks)
    names = {number: call.name for number, call in blocks.fns.items()}
    assert (names[0], names[1], names[calls.LISTEN], names[calls.FRESH]) == ("transcribe", "show", "listen", "fresh")
    assert {block.label.key for block in blocks.blocks.values() if isinstance(block, page.gr.Tab)} == {
        "tab_recording",
        "tab_live",
    }
    assert page_texts.TEXTS["tab_live"] == ("Live", "实时")


@pytest.mark.parametrize(
    "values, param",
    [
        ([KEY[1:], 48_000, "auto"], "data"),
        ([KEY.upper(), 48_000, "auto"], "data"),
        ([None, 48_000, "auto"], "data"),
        ([KEY, 48_000.5, "auto"], "data"),
        ([KEY, True, "auto"], "data"),
        ([KEY, 7999, "auto"], "data"),
        ([KEY, 10**9, "auto"], "data"),
        ([KEY, "48000", "auto"], "data"),
        ([KEY, 48_000, "fr"], "language"),
        ([KEY, 48_000], "data"),
        ([KEY, 48_000, "auto", {"path": "/etc/hostname"}], "data"),
    ],
)
def test_what_a_call_to_listen_may_not_say(tmp_path, values, param):
    kept = uploads.Uploads(tmp_path / "page", 2**20)
    for number, data in ((calls.LISTEN, values), (calls.FRESH, values)):
        call = {"data": data, "fn_index": number, "session_hash": "s"}
        with pytest.raises(InvalidValue) as caught:
            calls.checked_call(call, True, calls.CallBody(kept), kept, {"language": ["auto", "en"]})
        assert caught.value.param == (param if number == calls.LISTEN else "data")


def test_what_a_call_to_listen_may_say(tmp_path):
    kept = uploads.Uploads(tmp_path / "page", 2**20)
    for number, data in ((calls.LISTEN, [KEY, 44_100, "en"]), (calls.FRESH, [])):
        call = {"data": data, "fn_index": number, "session_hash": "s"}
        assert calls.checked_call(call, True, calls.CallBody(kept), kept, {"language": ["auto", "en"]}) == call


def test_ticking_gives_a_beat(monkeypatch):
    from glmasr.server.ticking import ticking

    async def slow():
        yield 1
        await asyncio.sleep(1.2)
        yield 2

    began = time.monotonic()
    assert within_time(values(ticking(slow()))) == [1, None, 2] and time.monotonic() - began < 5
