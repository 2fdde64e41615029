"""Long recordings and doubtful answers, in both families, with the search replaced by what it could find."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

import glmasr
from glmasr import decode
from glmasr.decode import Hypothesis
from glmasr.errors import OptionError
from glmasr.pipeline import FLAGS, Options, Segment
from glmasr.rules import StopLoops, loops
from glmasr.transcription import window_decoder
from glmasr.transcription.chunking import Window
from glmasr.transcription.long_form import untimed

RATE = 16_000


@pytest.fixture(scope="module")
def demo():
    recognizer = glmasr.load("demo", device="cpu", dtype="float32")
    recognizer.model.config = replace(
        recognizer.config, window_seconds=10
    )  # which the numbers below go by; nothing else does
    return recognizer


def talk(stretches, seconds=8.0, gap=1.0):
    """Stretches of sound with silence between them; one fills a window of 10 s."""
    rng = np.random.default_rng(0)
    parts = [
        part for _ in range(stretches) for part in (rng.normal(0, 0.1, int(seconds * RATE)), np.zeros(int(gap * RATE)))
    ]
    return np.concatenate(parts).astype(np.float32)


def said(recognizer, text, logprob=-0.1, stopped=True):
    ids = recognizer.tokenizer.encode(text)
    return Hypothesis(ids, logprob * (len(ids) + 1), stopped)


def answering(monkeypatch, answer):
    """answer(batch number, temperature, prompts) -> hypotheses; returns the calls."""
    calls = []

    def search(model, audio, prompts, stop, budgets, options, rules, temperature=0.0):
        calls.append((len(prompts), temperature))
        return answer(len(calls) - 1, temperature, prompts)

    monkeypatch.setattr(window_decoder, "search", search)
    return calls


# ---- guards while decoding ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("period", [1, 2, 3, 7, 12, 29, 30])
def test_a_loop_of_any_period_is_noticed_and_nothing_shorter(period):
    enough = max(24, 4 * period)
    turn = list(range(100, 100 + period))
    sequence = [1, 2, 3] + (turn * (enough // period + 2))
    assert loops(sequence[: 3 + enough]) and loops(sequence[: 3 + enough + 1])
    assert not loops(sequence[: 3 + enough - 1])
    assert not loops(sequence[: 3 + enough] + [5])


def test_what_is_no_loop():
    assert not loops([]) and not loops([7] * 12)  # twelve equal digits
    assert not loops(list(range(31)) * 6)  # a period of 31
    rng = np.random.default_rng(0)
    assert not any(loops(rng.integers(0, 10, 200).tolist()) for _ in range(50))


class Table:
    """A model whose next token is a fixed function of the row and the last one."""

    def __init__(self, nexts, vocabulary=40):
        self.nexts, self.vocabulary = nexts, vocabulary

    def new_cache(self, rows, capacity):
        model = self

        class Cache:
            def fork(self, beams): ...
            def reorder(self, rows): ...
            def keep(self, recordings):
                model.rows = [model.rows[number] for number in recordings.tolist()]

        return Cache()

    def logits(self, rows, tokens):
        out = torch.full((len(tokens), self.vocabulary), -10.0)
        for row, token in enumerate(tokens):
            out[row, self.nexts(rows[row], int(token))] = 0.0
        return out

    def prefill(self, audio, prompt, cache):
        self.rows = list(audio)
        return self.logits(self.rows, [ids[-1] for ids in prompt])

    def step(self, tokens, cache):
        beams = len(tokens) // len(self.rows)
        return self.logits([row for row in self.rows for _ in range(beams)], tokens)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_loop_ends_there_and_other_rows_go_on(beams):
    def nexts(row, token):
        if row == "loop":
            return 10 + (token - 9) % 3  # 10 11 12 10 11 12 ...
        return token + 1 if token < 39 else 0  # 10 11 12 ... 39, then the end

    model, prompts = Table(nexts), [[9], [9]]
    how = {"stop": [0], "max_new": 60, "rules": [StopLoops(0)]}
    found = (
        decode.greedy(model, ["loop", "count"], prompts, **how)
        if beams == 1
        else [some[0] for some in decode.beam(model, ["loop", "count"], prompts, width=beams, **how)]
    )
    assert found[1].ids == list(range(10, 40)) and found[1].stopped
    assert found[0].ids == [10, 11, 12] * 8 and found[0].stopped  # a loop by `loops`, as soon as it is one


def test_loops_are_those_of_the_definition():
    """The last max(24, 4 p) tokens agree with those p before them, as far as both are among them; for a p of 1 to
    30."""
    generator, seen = random.Random(0), set()
    for _ in range(4000):
        period, length = generator.randint(1, 32), generator.randint(0, 140)
        once = [generator.randint(10, 40) for _ in range(period)]
        ids = [generator.randint(10, 40) for _ in range(generator.randint(0, 30))] + (once * 200)[:length]
        if generator.random() < 0.3 and ids:
            ids[-generator.randint(1, min(len(ids), 60))] = 9
        looping = any(
            len(ids) >= (count := max(24, 4 * p)) and ids[-count:][p:] == ids[-count:][:-p] for p in range(1, 31)
        )
        assert loops(ids) == looping, ids
        seen.add(looping)
    assert seen == {True, False}


@pytest.mark.parametrize("beams", [1, 3])
def test_each_recording_has_its_own_budget(beams):
    model, limits = Table(lambda row, token: 10 + (token - 9) % 30), [5, 20, 12, 20, 20, 1]

    def found(rows, max_new):
        prompts = [[9]] * len(rows)
        return (
            [decode.greedy(model, rows, prompts, stop=[0], max_new=max_new)]
            if beams == 1
            else decode.beam(model, rows, prompts, stop=[0], max_new=max_new, width=beams)
        )

    together = found("abcdef", limits)
    together = together[0] if beams == 1 else [some[0] for some in together]
    assert [len(hypothesis.ids) for hypothesis in together] == limits and not any(
        hypothesis.stopped for hypothesis in together
    )
    assert together == [found("a", limit)[0][0] for limit in limits]


@pytest.mark.parametrize("name", ["zh.wav", "yue.flac", "en.mp3"])
@pytest.mark.parametrize("beams", [1, 5])
def test_where_no_guard_fires_the_ids_are_those_without_guards(demo, monkeypatch, name, beams):
    found, search = [], window_decoder.search
    monkeypatch.setattr(
        window_decoder, "search", lambda *args, **more: found.append(search(*args, **more)) or found[-1]
    )
    guarded, bare = (demo.transcribe(f"examples/{name}", beams=beams, guards=guards) for guards in (True, False))
    assert [hypothesis.ids for hypothesis in found[0]] == [hypothesis.ids for hypothesis in found[1]] and len(
        found
    ) == 2
    assert guarded == bare and guarded.segments[0].flags == ()


# ---- another try, and halves --------------------------------------------------------------------------------------------


def test_a_doubtful_answer_is_sampled_and_says_so(demo, monkeypatch):
    calls = answering(
        monkeypatch, lambda number, temperature, prompts: [said(demo, "one two", -3.0 if temperature < 0.4 else -0.1)]
    )
    transcript = demo.transcribe(talk(1), sample_rate=RATE)
    assert [temperature for _, temperature in calls] == [0.0, 0.2, 0.4]
    (segment,) = transcript.segments
    assert (segment.text, segment.temperature, segment.flags) == (
        "one two",
        0.4,
        ("sampled",),
    ) and transcript.failed == 0
    assert transcript.warnings == [f"0.0 s to 9.0 s: {FLAGS['sampled']}"]


def test_what_no_temperature_mends_is_heard_in_halves(demo, monkeypatch):
    halves = []

    def answer(number, temperature, prompts):
        if len(prompts) == 2:
            halves.append(prompts)
            return [said(demo, "three"), said(demo, "four")]
        return [said(demo, "one " * 40)]

    calls = answering(monkeypatch, answer)
    transcript = demo.transcribe(talk(1, 4.0, 0.5), sample_rate=RATE)
    assert [temperature for _, temperature in calls] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 0.0] and len(halves) == 1
    assert transcript.text == "three four" and transcript.failed == 0
    first, second = transcript.segments
    assert (
        first.flags == second.flags == ("split",) and 0 <= first.start < first.end <= second.start < second.end <= 4.5
    )
    assert transcript.warnings == [f"0.0 s to 4.5 s: {FLAGS['split']}"]


def test_what_nothing_mends_is_kept_and_named(demo, monkeypatch):
    answering(monkeypatch, lambda number, temperature, prompts: [said(demo, "one " * 40) for _ in prompts])
    transcript = demo.transcribe(talk(1, 4.0, 0.5), sample_rate=RATE)
    assert transcript.text.startswith("one one") and transcript.failed == 1
    assert all(set(segment.flags) >= {"repeats", "split"} for segment in transcript.segments)
    assert any(FLAGS["repeats"] in warning for warning in transcript.warnings)


def test_a_text_that_is_given_up_is_told(demo, monkeypatch):
    """The whole window is doubtful at every temperature; in its halves nobody seems to speak."""

    def answer(number, temperature, prompts):
        whole = len(prompts) == 1 and number < 6
        return [Hypothesis(said(demo, "一二三").ids, -12.0, True, empty=0.0 if whole else 0.9) for _ in prompts]

    answering(monkeypatch, answer)
    transcript = demo.transcribe(talk(1, 4.0, 0.5), sample_rate=RATE)
    assert (transcript.text, transcript.segments, transcript.failed) == (
        "",
        [],
        1,
    ) and transcript.no_speech_seconds == pytest.approx(4.5)
    [warning] = transcript.warnings
    assert FLAGS["dropped"] in warning


def test_an_empty_answer_that_is_doubtful_is_told(demo, monkeypatch):
    answering(monkeypatch, lambda number, temperature, prompts: [Hypothesis([], -5.0, True) for _ in prompts])
    transcript = demo.transcribe(talk(1, 1.0, 0.5), sample_rate=RATE)
    assert (
        transcript.text == ""
        and transcript.failed == 1
        and any(FLAGS["doubtful"] in warning for warning in transcript.warnings)
    )


def test_the_first_text_is_soon_there(demo, monkeypatch):
    calls = answering(monkeypatch, lambda number, temperature, prompts: [said(demo, "一") for _ in prompts])
    monkeypatch.setattr(
        demo.model.encoder, "forward", lambda mel: torch.zeros(len(mel), mel.shape[-1] // 2, demo.config.encoder.width)
    )
    demo.transcribe(talk(30), sample_rate=RATE)
    assert [rows for rows, _ in calls][:3] == [4, 8, 16]
    calls.clear()
    demo.recognize([torch.from_numpy(talk(1))] * 40, ["auto"] * 40)  # here nobody waits
    assert [rows for rows, _ in calls] == [32, 8]


def test_a_short_window_is_not_split(demo, monkeypatch):
    calls = answering(monkeypatch, lambda number, temperature, prompts: [said(demo, "one", -4.0)])
    transcript = demo.transcribe(talk(1, 1.0, 0.5), sample_rate=RATE)
    assert len(calls) == 6 and transcript.segments[0].flags == ("doubtful", "sampled") and transcript.failed == 1


# ---- long recordings ----------------------------------------------------------------------------------------------------


def test_windows_are_decoded_in_batches_and_come_in_order(demo, monkeypatch):
    calls = answering(
        monkeypatch, lambda number, temperature, prompts: [said(demo, "one two three".split()[number]) for _ in prompts]
    )
    parts = demo.stream(talk(5), "en", Options(batch_size=2), sample_rate=RATE)
    first = next(parts)
    assert [rows for rows, _ in calls] == [2]  # nothing is decoded before it is asked for
    rest = list(parts)
    assert [rows for rows, _ in calls] == [2, 2, 1]
    segments = [segment for part in [first, *rest] for segment in part.segments]
    assert [segment.text for segment in segments] == ["one", "one", "two", "two", "three"]
    assert [round(segment.start / 9, 1) for segment in segments] == [0, 1, 2, 3, 4]
    assert all(8.0 <= segment.end - segment.start <= 8.1 for segment in segments)  # tightened to the sound
    assert rest[-1].end == 45.0 and rest[-1].segments == []


def test_what_is_covered(demo, monkeypatch):
    answering(monkeypatch, lambda number, temperature, prompts: [said(demo, "one") for _ in prompts])
    sound = np.concatenate([talk(2), np.zeros(100 * RATE, np.float32), talk(1)])
    transcript = demo.transcribe(sound, sample_rate=RATE)
    assert transcript.seconds == 127.0 and 24.0 < transcript.decoded_seconds < 27.0
    assert len(transcript.segments) == 3


def test_silence_costs_nothing_and_says_nothing(demo, monkeypatch):
    calls = answering(monkeypatch, lambda *args: pytest.fail("silence was decoded"))
    transcript = demo.transcribe(np.zeros(60 * RATE, np.float32), sample_rate=RATE)
    assert (transcript.text, transcript.segments, transcript.decoded_seconds, transcript.seconds) == (
        "",
        [],
        0,
        60.0,
    ) and not calls


def test_whole_is_one_prompt(demo, monkeypatch):
    asked = []
    answering(
        monkeypatch, lambda number, temperature, prompts: asked.append(prompts) or [said(demo, "one") for _ in prompts]
    )
    demo.transcribe(talk(3), sample_rate=RATE, long="whole")
    assert len(asked) == 1 and asked[0][0].count(demo.config.audio_token) == 125 + 125 + 87
    limited = demo.transcribe(talk(8), sample_rate=RATE, long="whole")
    assert (
        "the model takes 60 s at most, 6 whole windows: the last 12.0 s of the recording are left out"
        in limited.warnings
    )


def test_a_recording_of_one_window_is_heard_as_it_is(demo, monkeypatch):
    """Silence around it stays, whatever `long` is."""
    heard, hear = [], demo.family.embed_all
    monkeypatch.setattr(
        demo.family,
        "embed_all",
        lambda recordings, length: heard.extend(map(len, recordings)) or hear(recordings, length),
    )
    sound = np.concatenate([np.zeros(RATE), talk(1)]).astype(np.float32)
    for long in ("cut", "whole"):
        demo.transcribe(sound, sample_rate=RATE, long=long, guards=False)
    assert heard == [10 * RATE] * 2


def test_several_recordings_share_their_batches(demo):
    recordings = [torch.from_numpy(talk(n, 3.0)) for n in (1, 4, 2)]
    options = Options(max_new_tokens=8, guards=False)
    together = demo.recognize(recordings, ["zh", "auto", "en"], options)
    assert together == [
        demo.recognize([samples], [language], options)[0] for samples, language in zip(recordings, ["zh", "auto", "en"])
    ]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"temperatures": 0.0}, "temperatures is 0.0"),
        ({"temperatures": None}, "temperatures is None"),
        ({"task": ["x"]}, "task is"),
        ({"long": "seek"}, "supports 'cut' and 'whole'"),
        ({"long": "fast"}, "long is 'fast'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 10**30}, "at most 4096"),
    ],
)
def test_wrong_options(demo, arguments, message):
    with pytest.raises(OptionError, match=message):
        demo.transcribe("no such file", **arguments)


def test_a_transcript_is_plain_data(demo):
    from dataclasses import asdict

    record = json.loads(json.dumps(asdict(demo.transcribe("examples/zh.wav"))))
    assert record["segments"][0]["text"] == record["text"] and record["segments"][0]["flags"] == []
    assert 0 < record["decoded_seconds"] <= record["seconds"] and -0.5 < record["segments"][0]["mean_logprob"] < 0


# ---- how much of a window is heard --------------------------------------------------------------------------------------


def test_padding_to_speech(monkeypatch):
    """The encoder hears a second behind the last sound, rounded up, and no more than a window; the text is that of less
    padding."""
    demo = glmasr.load("demo", device="cpu")
    frames, encoder = [], demo.model.encoder.forward
    monkeypatch.setattr(demo.model.encoder, "forward", lambda mel: frames.append(mel.shape[-1]) or encoder(mel))
    clip = glmasr.audio.load("examples/zh.wav").numpy()
    clip = clip[: np.flatnonzero(np.abs(clip) > 0.02)[-1]]
    length, whole = len(clip) / RATE, demo.config.window // 160
    late = np.concatenate([clip, np.zeros(demo.config.window - len(clip) - 1000, np.float32)])
    window, speech = (demo.transcribe(late, sample_rate=RATE, pad_to=pad_to) for pad_to in ("window", "speech"))
    assert frames[0] == whole and 100 * (length + 0.9) < frames[1] < whole and frames[1] % 8 == 0
    assert window.text == speech.text != "" and speech.decoded_seconds == window.decoded_seconds
    frames.clear()
    assert (
        demo.transcribe(talk(1, 3.8), sample_rate=RATE, pad_to="speech", guards=False)
        and frames == [whole, whole][: len(frames)]
    )
    with pytest.raises(OptionError, match="expected 'window' or 'speech'"):
        demo.transcribe(clip, sample_rate=RATE, pad_to="sound")


def test_padding_to_speech_with_long_whole_keeps_all_windows(demo):
    sound, how = talk(2), {"sample_rate": RATE, "long": "whole", "guards": False, "max_new_tokens": 5}
    assert demo.transcribe(sound, pad_to="speech", **how).segments == demo.transcribe(sound, **how).segments


def test_without_times_a_doubtful_sentence_stays_apart():
    """Those of one window and language are joined; what is doubtful of one isn't of its neighbor."""
    window = Window(160_000, torch.ones(160_000))
    segments = [
        Segment(11.0, 12.0, "One.", -0.1, language="en"),
        Segment(12.0, 13.0, "Two.", -0.2, language="en"),
        Segment(13.0, 14.0, "Three?", -1.5, flags=("doubtful", "sampled"), language="en"),
        Segment(14.0, 15.0, "Four?", -1.2, flags=("sampled", "doubtful"), language="en"),
        Segment(15.0, 16.0, "五。", -0.1, language="zh"),
    ]
    found = untimed(window, segments)
    assert [(one.start, one.end, one.text, one.flags) for one in found] == [
        (10.0, 13.0, "One. Two.", ()),
        (13.0, 15.0, "Three? Four?", ("doubtful", "sampled")),
        (15.0, 20.0, "五。", ()),
    ]
    assert [one.mean_logprob for one in found] == [-0.2, -1.5, -0.1]
