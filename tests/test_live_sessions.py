"""Live sessions in the server's worker, and the places that they take in its queue."""

import asyncio
import os
import signal

import numpy as np
import pytest
import torch

import glmasr
from glmasr import audio, pipeline
from glmasr.errors import OptionError
from glmasr.transcription.live_events import Committed, Notice, SpeechStarted, SpeechStopped
from glmasr.transcription.results import Segment

pytest.importorskip("fastapi", reason="needs the extra [web]")
pytest.importorskip("prometheus_client", reason="needs the extra [web]")

from glmasr.server import live_session, live_worker, request_queue  # noqa: E402
from glmasr.server.live_worker import PIECE, Listener, take_turns  # noqa: E402
from glmasr.server.messages import (  # noqa: E402
    Clear,
    Commit,
    Finish,
    Heard,
    Listen,
    LiveSettings,
    Refused,
    Sound,
)
from glmasr.server.problems import Busy, Closing, Loading, TooLong, WorkerDied  # noqa: E402

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the workers
RATE = 16_000
SETTINGS = LiveSettings("en", RATE, options={"vad": "off"})
TEXT = "five five five zero one three six"


@pytest.fixture(scope="module")
def recognizer():
    return glmasr.load("demo", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def digits(request):
    return audio.load(request.config.rootpath / "examples/en.mp3")


def spoken(*parts: torch.Tensor | float) -> bytes:
    """int16 of sounds, and of so many seconds of silence."""
    whole = torch.cat([torch.zeros(round(part * RATE)) if isinstance(part, float) else part for part in parts])
    return (whole * 32767).round().to(torch.int16).numpy().tobytes()


def heard(recognizer, listener, *messages) -> list:
    listener.inputs.extend(messages)
    said = []
    while listener.inputs:
        said += take_turns({"": recognizer}, [listener.take()])
    return said


def events(said, kind=object) -> list:
    return [event for message in said for event in message.events if isinstance(event, kind)]


def begun(recognizer, number=1, settings=SETTINGS) -> Listener:
    listener = Listener(number)
    [answer] = heard(recognizer, listener, Listen(number, settings))
    assert answer == Heard(number, [], Listen)
    return listener


def sounds(samples: bytes, size: int, number=1) -> list[Sound]:
    return [Sound(number, samples[start : start + size]) for start in range(0, len(samples), size)]


# ---- in the worker ---------------------------------------------------------------------------------------------------


def test_it_hears_what_a_session_hears(recognizer, digits):
    samples = spoken(1.0, digits, 1.5)
    listener, said = begun(recognizer), []
    for sound in sounds(samples, 640):  # at the pace of speech: nothing waits
        said += heard(recognizer, listener, sound)
    session, expected = recognizer.live("en", vad="off"), []
    for start in range(0, len(samples), 2 * RATE):
        expected += session.feed(np.frombuffer(samples[start : start + 2 * RATE], np.int16))
    kinds = (SpeechStarted, SpeechStopped, Committed, Segment)
    assert events(said, kinds) == [event for event in expected if isinstance(event, kinds)]
    assert [segment.text for segment in events(said, Segment)] == [TEXT]
    assert [message.count for message in said] == [1] * len(sounds(samples, 640))
    assert sum(message.seconds for message in said) == pytest.approx(len(samples) / 2 / RATE)


def test_what_waits_is_heard_together(recognizer, digits):
    samples = spoken(digits)
    said = heard(recognizer, begun(recognizer), *sounds(samples, 640))
    assert sum(message.count for message in said) == len(sounds(samples, 640)) and len(said) == 4
    assert sum(message.seconds for message in said) == pytest.approx(len(samples) / 2 / RATE)


def test_a_commit_ends_the_segment_with_all_that_was_sent(recognizer, digits):
    listener = begun(recognizer, settings=LiveSettings("en", RATE, None))
    samples = spoken(digits)
    said = []
    for message in (*sounds(samples, 3200), Commit(1), *sounds(samples, 3200), Finish(1)):
        said += heard(recognizer, listener, message)
    segments = events(said, Segment)
    assert [segment.text for segment in segments] == [TEXT, TEXT]
    commit, *_, finish = [message for message in said if message.asked in (Commit, Finish)]
    assert commit.since == 0 and finish.since == pytest.approx(len(samples) / 2 / RATE)
    assert segments[0].words == segments[1].words  # nothing of the first one is in the second


def test_clear_forgets(recognizer, digits):
    listener = begun(recognizer, settings=LiveSettings("en", RATE, None))
    said = heard(recognizer, listener, *sounds(spoken(digits), 3200), Clear(1), Commit(1))
    assert not events(said, Segment) and [message.asked for message in said[-2:]] == [Clear, Commit]


def test_settings_that_cannot_be_taken_leave_those_before(recognizer, digits):
    listener = begun(recognizer)
    for wrong in (LiveSettings("xx", RATE), LiveSettings("en", 10), LiveSettings("en", RATE, 99.0)):
        [refused] = heard(recognizer, listener, Listen(1, wrong))
        assert isinstance(refused, Refused) and refused.number == 1
    assert listener.settings is SETTINGS
    said = heard(recognizer, listener, *sounds(spoken(0.5, digits, 1.0), 3200))
    assert [segment.text for segment in events(said, Segment)] == [TEXT]


def test_other_settings_end_the_segment(recognizer, digits):
    listener = begun(recognizer)
    said = heard(recognizer, listener, *sounds(spoken(0.5, digits), 3200), Listen(1, LiveSettings("zh", 8000)))
    assert [segment.text for segment in events(said, Segment)] == [TEXT] and events(said[-1:], Segment)
    assert listener.settings.rate == 8000 and listener.since == pytest.approx(0.5 + len(digits) / RATE, abs=1e-3)


def test_each_session_has_the_recognizer_of_its_adapter(recognizer, digits, monkeypatch):
    """What ends with other settings is still heard by the one that began it; the turns of both come together."""
    other, run, used = pipeline.Recognizer(recognizer.model, recognizer.tokenizer), live_worker.run_together, []

    def run_together(recognizer, courses):
        used.append((recognizer, len(courses)))
        return run(recognizer, courses)

    monkeypatch.setattr(live_worker, "run_together", run_together)
    both = {"": recognizer, "calls": other}
    listeners = [Listener(1), Listener(2)]
    adapted = LiveSettings("en", RATE, options={"vad": "off"}, adapter="calls")
    listeners[0].inputs += [Listen(1, adapted), *sounds(spoken(0.5, digits), 3200), Listen(1, SETTINGS), Finish(1)]
    listeners[1].inputs += [Listen(2, SETTINGS), *sounds(spoken(0.5, digits), 3200, 2), Finish(2)]
    said = []
    while turns := [listener.take() for listener in listeners if listener.inputs]:
        said += take_turns(both, turns)
    for number in (1, 2):
        of_one = [message for message in said if message.number == number]
        assert [segment.text for segment in events(of_one, Segment)] == [TEXT]
    # The sound of the one and its end, that of the other and its end, and what the first one began at last.
    assert used.count((other, 1)) == used.count((recognizer, 1)) - 1 > 1 and len(used) == 2 * used.count((other, 1)) + 1


def test_before_it_has_begun_nothing_is_heard(recognizer, digits):
    listener = Listener(1)
    [refused] = heard(recognizer, listener, Listen(1, LiveSettings("xx")))
    assert isinstance(refused, Refused)
    assert events(heard(recognizer, listener, *sounds(spoken(digits), 3200))) == []


def test_one_that_has_sent_an_hour_holds_up_no_other(recognizer, digits):
    flood, other = begun(recognizer, 1), begun(recognizer, 2)
    flood.inputs.extend(sounds(spoken(3600.0), 2 * RATE, 1))
    other.inputs.extend(sounds(spoken(0.5, digits, 1.0), 3200, 2))
    found: list = []
    for turn in range(1, 100):
        said = take_turns({"": recognizer}, [listener.take() for listener in (flood, other) if listener.inputs])
        assert all(message.seconds <= PIECE for message in said)
        found += [event for message in said if message.number == 2 for event in message.events]
        if any(isinstance(event, Segment) for event in found):
            break
    assert turn <= 6 and len(flood.inputs) == 3600 - turn


@pytest.mark.parametrize("model", ["demo", "demo-article"])
def test_sessions_that_began_at_different_times_are_decoded_together(model, digits):
    """What they have committed so far, which the next decoding begins with, has other lengths."""
    recognizer = glmasr.load(model, device="cpu", dtype="float32")
    listeners = [begun(recognizer, number) for number in range(4)]
    texts = {listener.number: [] for listener in listeners}
    for step in range(80):
        for listener in listeners:
            at = step - 5 * listener.number  # whole seconds, so they are due in the same turns
            samples = spoken(0.5, digits, 1.0)[6400 * at : 6400 * (at + 1)] if at >= 0 else b""
            listener.inputs.append(Sound(listener.number, samples or spoken(0.2)))
        for message in take_turns({"": recognizer}, [listener.take() for listener in listeners]):
            texts[message.number] += [event.text for event in message.events if isinstance(event, Segment)]
    assert texts == {number: [TEXT] for number in texts}


def test_while_sound_waits_only_whole_segments_are_decoded(recognizer, digits):
    said = heard(recognizer, begun(recognizer), *sounds(spoken(0.5, digits, 1.0, 5.0), 2 * RATE))
    first = next(number for number, event in enumerate(events(said)) if not isinstance(event, Notice | SpeechStarted))
    assert isinstance(events(said)[first], SpeechStopped)
    assert [segment.text for segment in events(said, Segment)] == [TEXT]


def test_errors_come_as_events(recognizer, digits, monkeypatch):
    listener = begun(recognizer)
    monkeypatch.setattr(recognizer, "decode_together", lambda jobs, options: [OptionError("no")] * len(jobs))
    said = heard(recognizer, listener, *sounds(spoken(0.5, digits, 0.6), 3200))
    assert [str(error) for error in events(said, OptionError)][:1] == ["no"]


# ---- in the queue ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def queue(loop):
    queue = request_queue.RequestQueue({"name_or_path": "demo", "dtype": "float32"})
    loop.run_until_complete(queue.start())
    yield queue
    queue.end()


async def all_of(session) -> list:
    found = []
    while not session.done:
        found.append(await session.heard())
    return found


def test_a_session_has_a_place_and_gives_it_back(loop, queue, digits):
    async def run():
        with queue.listen(SETTINGS) as session:
            assert queue.sessions == [session] and list(queue.running) == [session.number]
            session.hear(spoken(0.5, digits, 1.0))
            session.finish()
            said = await asyncio.wait_for(all_of(session), 60)
            session.outcome = "done"
        assert not queue.running
        return session, said

    session, said = loop.run_until_complete(run())
    assert [segment.text for segment in events(said, Segment)] == [TEXT]
    assert session.waiting == pytest.approx(0, abs=1e-6) and session.seconds == pytest.approx(1.5 + len(digits) / RATE)
    text = queue.metrics.text().decode()
    assert 'glmasr_sessions_total{outcome="done"} 1.0' in text and "glmasr_live_sessions 0.0" in text


def test_there_are_places_left_for_recordings(loop, queue):
    async def run():
        sessions = [queue.listen(SETTINGS) for _ in range(request_queue.SESSIONS)]
        with pytest.raises(Busy, match="12 live sessions"):
            queue.listen(SETTINGS)
        queue.check()  # a recording is taken in
        for session in sessions:
            session.close()
            session.close()
        assert not queue.running
        queue.check_session()

    loop.run_until_complete(run())


def test_who_sends_too_much_has_to_wait(loop, queue):
    async def run():
        with queue.listen(LiveSettings("en", RATE, options={"vad": "off"})) as session:
            await asyncio.wait_for(session.room(), 1)
            os.kill(queue.process.pid, signal.SIGSTOP)
            session.hear(spoken(live_session.ROOM))
            await asyncio.wait_for(session.room(), 1)
            session.hear(spoken(1.0))
            waiting = asyncio.ensure_future(session.room())
            await asyncio.sleep(0.2)
            assert not waiting.done()
            os.kill(queue.process.pid, signal.SIGCONT)
            await asyncio.wait_for(waiting, 60)

    loop.run_until_complete(run())


def test_settings_are_those_that_the_worker_took(loop, queue):
    async def run():
        with queue.listen(SETTINGS) as session:
            session.change(LiveSettings("xx", 8000))
            session.change(LiveSettings("zh", 48_000))
            said = [await session.heard() for _ in range(3)]
            assert [type(one) for one in said] == [Heard, Refused, Heard] and not session.unanswered
            assert session.settings == LiveSettings("zh", 48_000)

    loop.run_until_complete(run())


def test_a_worker_that_hangs_is_given_up_and_its_sessions_end(loop, queue):
    async def run():
        other = queue.listen(SETTINGS)
        await other.heard()
        queue.time_limit, process = 0.5, queue.process
        with pytest.raises(TooLong), queue.listen(SETTINGS) as session:
            await session.heard()
            os.kill(process.pid, signal.SIGSTOP)
            session.hear(spoken(0.1))
            await asyncio.wait_for(session.heard(), 20)
        queue.time_limit = 600.0
        assert session.outcome == "TooLong"
        with pytest.raises(WorkerDied), other:
            await asyncio.wait_for(other.heard(), 20)
        assert not queue.running and other.outcome == "WorkerDied"
        with pytest.raises(Loading):
            queue.listen(SETTINGS)
        while queue.ready is None:
            await asyncio.sleep(0.05)

    loop.run_until_complete(asyncio.wait_for(run(), 120))


def test_at_the_end_a_session_may_finish(loop, queue, digits):
    """The last one: nothing is taken in afterwards."""

    async def run():
        with queue.listen(SETTINGS) as session:
            await session.heard()
            session.hear(spoken(0.5, digits))
            queue.close()
            found = []
            with pytest.raises(Closing):
                while True:
                    found.append(await session.heard())
            session.finish()
            found += await asyncio.wait_for(all_of(session), 60)
            assert [segment.text for segment in events(found, Segment)] == [TEXT]
            queue.give_up()
            with pytest.raises(Closing):
                await session.heard()
        with pytest.raises(Closing):
            queue.listen(SETTINGS)

    loop.run_until_complete(run())
