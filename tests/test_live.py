"""Live sessions: what is committed stays, no matter how the sound is cut; and the words that remain at the end."""

import numpy as np
import pytest
import torch

import glmasr
from glmasr import audio
from glmasr.errors import AudioError, CheckpointError, GlmAsrError, OptionError
from glmasr.transcription import live_decoder
from glmasr.transcription.live import Live, feed_together, remaining
from glmasr.transcription.live_decoder import unlooped
from glmasr.transcription.live_events import Committed, Notice, SpeechStarted, SpeechStopped, Tentative
from glmasr.transcription.live_words import Said
from glmasr.transcription.results import Part, Segment, Word

RATE = 16_000


@pytest.fixture(scope="module", params=["demo", "demo-article"])
def recognizer(request):
    return glmasr.load(request.param, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def demo():
    return glmasr.load("demo", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def digits(examples):
    return audio.load(examples / "en.mp3")


@pytest.fixture(scope="module")
def examples(request):
    return request.config.rootpath / "examples"


def listened(session: Live, samples: torch.Tensor, size: int) -> list:
    found = []
    for start in range(0, len(samples), size):
        found += session.feed(samples[start : start + size])
    return found + session.finish()


def with_pauses(samples: torch.Tensor, times: int, pause: float = 1.0) -> torch.Tensor:
    quiet = torch.zeros(round(pause * RATE))
    return torch.cat([quiet, *[part for _ in range(times) for part in (samples, quiet)]])


def test_it_says_what_is_said(recognizer, digits):
    found = listened(recognizer.live("en", vad="off"), with_pauses(digits, 2), 1600)
    segments = [event for event in found if isinstance(event, Segment)]
    expected = recognizer.transcribe(digits, "en", sample_rate=RATE).text
    assert [segment.text for segment in segments] == [expected, expected]
    assert segments[0].start == pytest.approx(1.0, abs=0.4) and segments[0].end < segments[1].start
    assert all(segment.language == "en" and segment.words for segment in segments)
    assert [type(event) for event in found if isinstance(event, SpeechStarted | SpeechStopped)] == [
        SpeechStarted,
        SpeechStopped,
    ] * 2
    assert any(isinstance(event, Tentative) for event in found)


def test_what_is_committed_is_what_the_segment_says(recognizer, digits):
    found, text, words, early = listened(recognizer.live(step=0.5, vad="off"), with_pauses(digits, 1), 800), "", [], 0
    for number, event in enumerate(found):
        if isinstance(event, Committed):
            text, words = text + event.text, [*words, *event.words]
            early += not any(isinstance(other, SpeechStopped) for other in found[:number])
        elif isinstance(event, Segment):
            assert event.text == text and list(event.words) == words
            assert all(a.end <= b.start for a, b in zip(words, words[1:], strict=False))
    assert early  # while somebody speaks


@pytest.fixture
def windows(monkeypatch):
    """What is decoded, as it is asked for."""
    asked, decode = [], live_decoder.decode
    monkeypatch.setattr(live_decoder, "decode", lambda who, some: (asked.extend(some), decode(who, some))[1])
    return asked


@pytest.mark.parametrize("padding", [0.0, 0.3, 1.0, 5.0])
def test_sound_before_the_speech_is_decoded_too(demo, digits, windows, padding):
    samples = torch.cat([torch.zeros(2 * RATE), digits[: 2 * RATE], torch.zeros(RATE)])
    found = listened(demo.live("en", vad="off", padding=padding), samples, 1600)
    [start] = [event.seconds for event in found if isinstance(event, SpeechStarted)]
    assert windows[0].window.begin == pytest.approx(max(0, start - padding), abs=0.033)


def test_a_segment_has_nothing_of_the_one_before(demo, digits, windows):
    part, pause = digits[: 2 * RATE], torch.zeros(RATE // 4)
    samples = torch.cat([pause, part, pause, part, torch.zeros(RATE)])
    found = listened(demo.live("en", vad="off", padding=5.0, pause=0.1), samples, 1600)
    stops = [event.seconds for event in found if isinstance(event, SpeechStopped)]
    starts = [asked.window.begin for asked in windows if asked.final]
    assert len(stops) == len(starts) > 1
    assert all(start == pytest.approx(stop) for start, stop in zip(starts[1:], stops, strict=False))


@pytest.mark.parametrize("size", [1, 37, 512, 100_000])
def test_it_does_not_matter_how_the_sound_is_cut(demo, digits, size):
    samples = with_pauses(digits[: 2 * RATE], 1, 0.7)
    size = size if size > 1 else 11
    assert listened(demo.live(vad="off"), samples, size) == listened(demo.live(vad="off"), samples, 5000)


def test_other_rates_and_types(demo, digits):
    rate = 8000
    narrow = audio.resample(with_pauses(digits, 1), RATE, rate)
    integers = (narrow * 32767).round().to(torch.int16).numpy()
    session, found = demo.live("en", sample_rate=rate, vad="off"), []
    for start in range(0, len(integers), 801):
        found += session.feed(integers[start : start + 801])
    found += session.finish()
    [segment] = [event for event in found if isinstance(event, Segment)]
    assert segment.text == demo.transcribe(narrow, "en", sample_rate=rate).text


def test_silence_costs_nothing(demo, monkeypatch):
    session = demo.live(vad="off")
    monkeypatch.setattr("glmasr.transcription.live_decoder.decode", lambda *_: pytest.fail("decoded"))
    noise = torch.Generator().manual_seed(1)
    for _ in range(120):
        assert session.feed(1e-3 * torch.randn(30 * RATE, generator=noise)) == []
        assert len(session._samples) < 2 * RATE and not session._waiting
    assert session.finish() == [] and session.seconds == pytest.approx(3600, abs=1)


def test_speech_without_a_pause_is_cut(demo, digits):
    loud = torch.cat([digits] * 12)  # 36 s; the demo takes 4 s at a time
    found = listened(demo.live("en", step=2.0, vad="off", pause=10.0), loud, RATE)
    segments = [event for event in found if isinstance(event, Segment)]
    assert len(segments) >= 36 / 4 and sum(isinstance(event, SpeechStarted) for event in found) == 1
    committed = [word for event in found if isinstance(event, Committed) for word in event.words]
    assert committed == [word for segment in segments for word in segment.words]
    assert all(a.end <= b.start for a, b in zip(committed, committed[1:], strict=False))
    assert 80 <= len(committed) <= 100  # of 96


@pytest.mark.parametrize("skipped", [0.0, 2.8])
def test_words_are_in_the_segment_that_follows_them(demo, digits, skipped):
    """The quietest place of the first window lies before words that are committed already."""
    samples = torch.cat([digits] * 3)[round(skipped * RATE) :]
    samples += 3e-3 * torch.randn(len(samples), generator=torch.Generator().manual_seed(1))
    samples[round(2.75 * RATE) :][:1200] = 0
    text, words, count = "", [], 0
    for event in listened(demo.live("en", step=0.3, vad="off", pause=10.0), samples, 800):
        if isinstance(event, Committed):
            text, words = text + event.text, [*words, *event.words]
        elif isinstance(event, Segment):
            assert event.text == text and list(event.words) == words
            text, words, count = "", [], count + 1
    assert not words and count >= 3


def test_a_segment_ends_when_it_is_told_to(demo, digits):
    session = demo.live("en", pause=None)
    found = session.feed(with_pauses(digits, 1, 0.2))
    assert not any(isinstance(event, SpeechStopped | Segment) for event in found)
    [*_, segment] = session.commit()
    assert isinstance(segment, Segment) and len(segment.words) == 7
    assert session.commit() == [] == session.finish()


def test_sessions_together_are_as_alone(recognizer, digits):
    texts = {}
    streams = [with_pauses(digits, 1, 0.8), with_pauses(digits[RATE:], 1, 1.1)]
    for name in ("alone", "together"):
        sessions, found = [recognizer.live("en", vad="off") for _ in streams], [[], []]
        for start in range(0, 6 * RATE, 4000):
            fed = [
                (session, samples[start : start + 4000], 0.0)
                for session, samples in zip(sessions, streams, strict=True)
            ]
            groups = feed_together(fed) if name == "together" else [session.feed(some) for session, some, _ in fed]
            for events, new in zip(found, groups, strict=True):
                events += new
        for events, session in zip(found, sessions, strict=True):
            events += session.finish()
        texts[name] = [[event.text for event in events if isinstance(event, Segment)] for events in found]
    assert texts["alone"] == texts["together"] and all(map(len, texts["alone"]))


def test_an_error_is_that_of_its_session_and_what_is_committed_stays(demo, digits, monkeypatch):
    good, bad = demo.live("en", vad="off"), demo.live("en", vad="off")
    samples = with_pauses(digits, 1)
    found = [event for start in range(0, 3 * RATE, 1600) for event in bad.feed(samples[start : start + 1600])]
    committed = "".join(event.text for event in found if isinstance(event, Committed))
    windows = bad.recognizer.windows
    refused = lambda jobs, options: [CheckpointError("no answer")] * len(jobs)  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(windows, "decode", refused)
        [fine, failed] = feed_together([(good, torch.zeros(10), 0.0), (bad, samples[3 * RATE :], 0.0)])
    assert fine == [] and isinstance(failed[-1], CheckpointError)
    committed += "".join(event.text for event in failed if isinstance(event, Committed))
    assert isinstance(failed[-2], Segment) and failed[-2].text == committed != ""
    [wrong, right] = feed_together([(good, torch.full((9,), torch.nan), 0.0), (bad, samples, 0.0)])
    assert isinstance(wrong[0], AudioError) and any(isinstance(event, Segment) for event in [*right, *bad.finish()])


def test_what_cannot_be_decoded_together_is_decoded_one_by_one(recognizer, digits, monkeypatch):
    def fed() -> list:
        return [(recognizer.live("en", vad="off"), samples, 0.0) for samples in streams]

    streams = [with_pauses(digits, 1)[: 3 * RATE], with_pauses(digits[RATE:], 1, 1.0)[: 3 * RATE]]
    search, sizes = live_decoder.search, []

    def refusing(model, audio, prompts, *rest, **more):
        sizes.append(len(prompts))
        if len(prompts) > 1:
            raise CheckpointError("no finite logits")
        return search(model, audio, prompts, *rest, **more)

    expected = feed_together(fed())
    monkeypatch.setattr(live_decoder, "search", refusing)
    found = feed_together(fed())
    assert [list(map(type, events)) for events in found] == [list(map(type, events)) for events in expected]
    assert 2 in sizes and not any(isinstance(event, GlmAsrError) for events in found for event in events)


def test_what_cannot_be_decoded_at_all_is_an_error(demo, digits, monkeypatch):
    def refuse(*_, **more):
        raise CheckpointError("no finite logits")

    session, samples = demo.live("en", vad="off"), with_pauses(digits, 1)[: 3 * RATE]
    with monkeypatch.context() as patch:
        patch.setattr(live_decoder, "search", refuse)
        with pytest.raises(CheckpointError, match="no finite logits"):
            session.feed(samples)
    *_, segment = [*session.feed(torch.zeros(RATE)), *session.finish()]
    assert isinstance(segment, Segment) and segment.text


def test_on_a_slow_machine_steps_get_longer(demo, digits):
    session, samples, found = demo.live(step=0.5, vad="off"), with_pauses(digits, 1, 0.2), []
    for start in range(0, len(samples), 1600):
        found += session.feed(samples[start : start + 1600], behind=0.0 if 2 * RATE < start < 2.3 * RATE else 0.6)
    found += session.finish()
    kinds = [type(event) for event in found]
    assert kinds[:4] == [SpeechStarted, Notice, Tentative, SpeechStopped]  # a step of two seconds
    assert "a step of 0.5 s" in found[1].text
    segment = found[-1]
    assert segment.text == demo.transcribe(digits, sample_rate=RATE).text


def test_after_finish_nothing_is_taken(demo):
    session = demo.live(vad="off")
    session.finish()
    with pytest.raises(AudioError, match="finished"):
        session.feed(torch.zeros(10))


@pytest.mark.parametrize(
    "samples, says",
    [
        (np.zeros((100, 2), np.float32), "one channel"),
        ([0.0, 0.1], "are a list; expected a tensor or an array"),
        (b"\0\0", "are a bytes"),
        (np.full(100, np.nan, np.float32), "NaN"),
        (np.zeros(100, np.int64), "int64"),
        (np.full(100, 5000.0, np.float32), "full scale"),
    ],
)
def test_what_is_no_sound_is_refused_and_the_session_goes_on(demo, digits, samples, says):
    session = demo.live("en", vad="off")
    with pytest.raises(AudioError, match=says):
        session.feed(samples)
    session.feed(with_pauses(digits, 1))
    assert any(isinstance(event, Segment) for event in session.finish()) or session.seconds > 3


@pytest.mark.parametrize(
    "how, says",
    [
        ({"step": 0}, "step is 0"),
        ({"step": "1"}, "step is '1'"),
        ({"pause": 60}, "pause is 60"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"long": "whole"}, "long is 'whole'"),
        ({"clips": ((0, 1),)}, "clips is"),
        ({"language": "xx"}, "language is 'xx'"),
        ({"beams": 0}, "beams is 0"),
    ],
)
def test_wrong_options(demo, how, says):
    with pytest.raises(OptionError, match=says):
        demo.live(**how)


def said(text: str, start: float) -> Said:
    return Said(f" {text}", (Word(text, start, start + 0.3, 1.0),), (1,))


def part(text: str) -> Part:
    words = tuple(Word(each, float(place), place + 0.3, 1.0) for place, each in enumerate(text.split()))
    return Part(0.0, 9.0, "en", [Segment(0.0, 9.0, text, words=words)], [])


@pytest.mark.parametrize(
    "committed, text, rest",
    [
        ("", "a b c", "a b c"),
        ("a b", "A, b. c", " c"),
        ("a x", "a b c", " c"),  # a word that the last decoding hears otherwise
        ("a b", "a c d", " d"),
        ("a - b", "a and b c", " c"),
        ("a and b", "a b c", " c"),
        ("a b c", "a b", ""),
        ("a b", "", ""),
    ],
)
def test_what_remains_after_the_committed_words(committed, text, rest):
    before = [said(word, float(place)) for place, word in enumerate(committed.split()) if word != "-"]
    words, found = remaining(before, part(text))
    assert found == rest and [word.text for word in words] == rest.split()


@pytest.mark.parametrize(
    "committed, texts, rest",
    [
        ("", ["a b", "c d"], "a b c d"),
        ("a", ["a b", "c d"], " b c d"),
        ("a b", ["a b", "c d"], " c d"),
        ("", ["八", "二"], "八二"),
    ],
)
def test_between_the_segments_of_a_text_is_a_space(committed, texts, rest):
    segments = [segment for text in texts for segment in part(text).segments]
    before = [said(word, 8.0 * place) for place, word in enumerate(committed.split())]
    assert remaining(before, Part(0.0, 9.0, "en", segments, []))[1] == rest


@pytest.mark.parametrize(
    "ids, kept",
    [
        ([1, 2, 3], [1, 2, 3]),
        ([1, 2, 3, 2, 3], [1, 2, 3, 2, 3]),  # said twice
        ([1, 2, 3, 2, 3, 2, 3], [1, 2, 3]),
        ([1, 2, 3, 4, 2, 3, 4, 2, 3, 4, 2], [1, 2, 3, 4]),
        ([5, 5, 5], [5, 5, 5]),  # three digits
        ([0, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]),  # a phrase
        ([0, 1, 2, 3, 4, 1, 2, 3, 4], [0, 1, 2, 3, 4, 1, 2, 3, 4]),
        ([9] * 8, [9]),
        ([], []),
    ],
)
def test_a_loop_is_said_once(ids, kept):
    assert unlooped(ids) == kept


def test_a_draft_changes_nothing(recognizer, digits, monkeypatch):
    samples = with_pauses(digits, 1)
    with_draft = listened(recognizer.live("en", step=0.5, vad="off"), samples, 1600)
    monkeypatch.setattr(live_decoder, "_confirmed", lambda family, request, *_: list(request.prefix))
    assert listened(recognizer.live("en", step=0.5, vad="off"), samples, 1600) == with_draft


class Scripted:
    """Says at each step what it is told to: (text, start, end, probability) of words."""

    def __init__(self, recognizer, steps):
        self.recognizer, self.steps, self.count = recognizer, iter(steps), 0

    def decode(self, _, asked):
        return [self.heard(request) for request in asked]

    def heard(self, request):
        if request.final:
            return Part(0.0, 0.0, "en", [], [])
        self.count += 1
        words = next(self.steps)
        return live_decoder.Heard(tuple(Said(f" {word[0]}", (Word(*word),), (1,)) for word in words), "en")


@pytest.mark.parametrize(
    "probability, after",
    [(0.9, 2), (0.49, 3)],  # twice the same; and two seconds after it
)
def test_an_unsure_word_waits_but_not_for_ever(demo, monkeypatch, probability, after):
    words = [("one", 0.3, 0.9, probability), ("two", 0.9, 1.2, 0.9)]
    scripted = Scripted(demo, [words] * 4)
    monkeypatch.setattr(live_decoder, "decode", scripted.decode)
    session, found = demo.live("en", vad="off"), []
    session.feed(torch.zeros(RATE // 4))
    noise = 0.3 * torch.randn(4 * RATE, generator=torch.Generator().manual_seed(1))
    while not found:
        found = [event for event in session.feed(noise[:512]) if isinstance(event, Committed)]
        noise = noise[512:]
    assert scripted.count == after
    assert found[0].text == "one two" and found[0].words[0].probability == probability


def test_what_was_said_is_decoded_as_soon_as_a_pause_begins(demo, digits, windows):
    samples = torch.cat([torch.zeros(RATE // 2), digits[: round(1.5 * RATE)], torch.zeros(RATE)])
    found = listened(demo.live("en", vad="off", step=5.0), samples, 512)
    [stop] = [event.seconds for event in found if isinstance(event, SpeechStopped)]
    early = [asked.window for asked in windows if not asked.final]
    assert stop < early[-1].begin + early[-1].seconds < stop + 0.2
