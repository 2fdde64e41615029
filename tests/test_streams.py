"""Several recordings in common batches: each gets what it gets alone, whatever the others are, and however little
memory there is."""

import math
import re
from itertools import groupby

import numpy as np
import pytest
import torch

import glmasr
from glmasr.decode import Hypothesis
from glmasr.errors import AudioError, CheckpointError
from glmasr.kernels import devices
from glmasr.pipeline import Options
from glmasr.transcription import memory, window_decoder
from glmasr.transcription.batcher import Batcher
from glmasr.transcription.chunking import Window
from glmasr.transcription.families import Job, RecordingState
from glmasr.transcription.search import BEST_OF

RATE = 16_000
MEMORY = 2**40


@pytest.fixture(scope="module", params=["demo", "demo-article"])
def recognizer(request):
    return glmasr.load(request.param, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def article():
    return glmasr.load("demo-article", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def recordings():
    zh, yue, en = (glmasr.audio.load(f"examples/{name}").numpy() for name in ("zh.wav", "yue.flac", "en.mp3"))
    pause, noise = (
        np.zeros(RATE // 2, np.float32),
        np.random.default_rng(0).normal(0, 0.01, 5 * RATE).astype(np.float32),
    )
    return {
        "zh": zh,
        "mixed and long": np.concatenate([yue, pause, en[:RATE], pause, zh, pause, en]),
        "silence": np.zeros(2 * RATE, np.float32),
        "en": en,
        "noise first": np.concatenate([noise, yue]),
        "very short": zh[:100],
        "yue": yue,
        "short": en[: RATE // 2],
    }


def told(recognizer, recordings, options):
    """For each recording all its parts, or its error."""
    parts = list(recognizer.streams(recordings, "auto", options, sample_rate=RATE))
    assert [index for index, _ in parts] == sorted(index for index, _ in parts)
    found = [[part for _, part in some] for _, some in groupby(parts, lambda each: each[0])]
    assert len(found) == len(recordings)
    # Sums may be made in another order; what is decided by them is the same.
    return [
        [
            str(part)
            if isinstance(part, Exception)
            else (
                part.start,
                part.end,
                part.language,
                part.warnings,
                part.failed,
                part.last,
                [
                    (
                        segment.start,
                        segment.end,
                        segment.text,
                        segment.temperature,
                        segment.flags,
                        pytest.approx(segment.mean_logprob, abs=2e-4),
                    )
                    for segment in part.segments
                ],
            )
            for part in some
        ]
        for some in found
    ]


@pytest.mark.parametrize(
    "beams, pad_to",
    [
        (1, "speech"),
        (5, "window"),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((1, "window"), (5, "speech"))),
    ],
)
def test_each_recording_gets_what_it_gets_alone(recognizer, recordings, beams, pad_to):
    how = {"beams": beams, "pad_to": pad_to, "max_new_tokens": 30}
    alone = [told(recognizer, [samples], Options(**how, batch_size=1))[0] for samples in recordings.values()]
    assert sum(len(segments) > 0 for parts in alone for *_, segments in parts) > 6
    for size in (None, 3):
        assert told(recognizer, list(recordings.values()), Options(**how, batch_size=size)) == alone


# -- the language, where it is judged
# ----------------------------------------------------------------------------------------


@pytest.fixture
def judging(article, monkeypatch):
    """judging(judge): `judge(samples)` -> (language, probability that nobody speaks). All answers repeat themselves,
    and with `alone` there is none for several windows at once. Then windows (S,) of one recording -> their
    languages."""

    def run(judge, windows, batch_size, alone=False):
        seen, names, encode = [], list(article.config.languages), article.family.encode_windows
        monkeypatch.setattr(
            article.family, "encode_windows", lambda windows, length: seen.append(windows) or encode(windows, length)
        )

        def judged(heard):
            found = [judge(samples) for samples in seen[-1]]
            return torch.tensor([[float(name == language) for name in names] for language, _ in found]), torch.tensor(
                [silence for _, silence in found]
            )

        ids = article.tokenizer.encode("一" * 40)
        monkeypatch.setattr(article.model, "detect_language", judged, raising=False)

        def search(model, audio, prompts, *more):
            if alone and len(prompts) > 1:
                raise CheckpointError("the model gives no usable answer: NaN")
            return [Hypothesis(ids, -1.0, True) for _ in prompts]

        monkeypatch.setattr(window_decoder, "search", search)
        state, options = (
            RecordingState.of("auto"),
            article.check(options=Options(pad_to="speech", temperatures=(0.0,), batch_size=batch_size)),
        )
        batcher = Batcher(lambda jobs: article.decode_together(jobs, options), article.batch_size(options), soon=True)
        jobs = [Job(Window(4 * RATE * index, samples), state) for index, samples in enumerate(windows)]
        found = [part for job in jobs for part in batcher.add(0, job)]
        return [part.language for _, part in [*found, *batcher.flush()]]

    return run


def window(seconds, loudness):
    noise = (
        torch.rand(round(seconds * RATE), generator=torch.Generator().manual_seed(0)) - 0.5
    )  # a melody would say nothing about the language
    return loudness * noise / noise.max()


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_windows_with_speech_say_the_language_whatever_their_length(judging, batch_size):
    """What isn't speech says nothing about the windows behind it, and is taken for what was heard before."""

    def judge(samples):
        return {1: ("zh", 0.9), 2: ("yue", 0.1), 3: ("en", 0.1)}[round(10 * float(samples.max()))]

    windows = [
        window(1, 0.1),
        window(3, 0.2),
        window(1, 0.2),
        window(3, 0.1),
        window(1, 0.3),
        window(3, 0.3),
        window(1, 0.1),
    ]
    assert judging(judge, windows, batch_size) == ["zh", "yue", "yue", "yue", "en", "en", "en"]


@pytest.mark.parametrize("batch_size", [1, 8])
def test_halves_say_nothing_about_the_recording(judging, batch_size):
    """They are decoded when later windows of their batch were judged already."""

    def judge(samples):
        return ("en", 0.1) if len(samples) < 1.8 * RATE else ("zh", 0.9) if samples.max() < 0.15 else ("yue", 0.1)

    assert judging(judge, [window(3, 0.1), window(3, 0.2)], batch_size) == ["zh", "yue"]


def test_another_try_begins_with_what_was_known_before(judging):
    def judge(samples):
        return ("zh", 0.9) if samples.max() < 0.15 else ("yue", 0.1)

    assert judging(judge, [window(1, 0.1), window(1, 0.2)], 2, alone=True) == ["zh", "yue"]


# -- errors
# ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def spoilt(recognizer, recordings, monkeypatch):
    """A model with no answer to windows of other loudness than 1. Returns the windows of each search."""
    searches, search, hear = [], window_decoder.search, recognizer.family.encode

    def heard(jobs, length, options, states):
        heard.loud = [float(job.window.samples.abs().max()) == 1 for job in jobs]
        return hear(jobs, length, options, states)

    def spoilt(model, audio, prompts, *more):
        searches.append(len(prompts))
        if heard.loud[: len(prompts)] != [False] * len(prompts):
            raise CheckpointError("the model gives no usable answer: NaN")
        return search(model, audio, prompts, *more)

    monkeypatch.setattr(recognizer.family, "encode", heard)
    monkeypatch.setattr(window_decoder, "search", spoilt)
    return searches


def test_no_answer_to_one_recording_is_no_error_of_the_others(recognizer, recordings, spoilt):
    good, options = [recordings[name] for name in ("yue", "mixed and long", "en")], Options(beams=1, guards=False)
    bad = recordings["zh"] / np.abs(recordings["zh"]).max()
    expected = told(recognizer, good, options)
    found = told(recognizer, [good[0], bad, *good[1:]], options)
    assert found == [expected[0], ["the model gives no usable answer: NaN"], *expected[1:]]


def test_a_recording_that_failed_is_not_read_to_its_end(recognizer, recordings, spoilt):
    bad = recordings["zh"] / np.abs(recordings["zh"]).max()
    found = told(recognizer, [np.tile(bad, 60), recordings["yue"]], Options(beams=1, guards=False))
    assert len(found[0]) == 1 and len(found[1]) == 2 and sum(spoilt) < 12


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9000 bytes. Error code 12"
        ),
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 9.00 GiB. GPU 0 has a total capacity of 8.00 GiB"
        ),
        MemoryError("9000 bytes"),
    ],
)
def test_what_memory_does_not_hold_at_once_is_decoded_one_by_one(recognizer, recordings, monkeypatch, error):
    sounds, options, search, sizes = (
        [recordings[name] for name in ("yue", "zh", "en")],
        Options(beams=1),
        window_decoder.search,
        [],
    )
    expected = told(recognizer, sounds, options)

    def short(model, audio, prompts, *more):
        sizes.append(len(prompts))
        if len(prompts) > short.most:
            raise error
        return search(model, audio, prompts, *more)

    monkeypatch.setattr(window_decoder, "search", short)
    short.most = 1
    assert told(recognizer, sounds, options) == expected and max(sizes) > 1 and sizes.count(1) >= 3
    short.most = 0
    for found in told(recognizer, sounds, options):
        assert len(found) == 1 and re.search(
            "memory of the device 'cpu' doesn't hold one window with these options: .*9.*; expected fewer beams",
            found[0],
        )


def test_other_errors_are_not_taken_for_missing_memory(recognizer, recordings, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(window_decoder, "search", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        told(recognizer, [recordings["zh"]], Options(beams=1))


def test_nothing_to_recognize(recognizer):
    assert recognizer.recognize([], []) == [] == list(recognizer.streams([]))
    [(index, error)] = recognizer.streams(["no such file"])
    assert index == 0 and isinstance(error, AudioError)


# -- memory
# ------------------------------------------------------------------------------------------------------------------


def test_a_batch_is_what_memory_holds(recognizer, monkeypatch):
    def size(free=MEMORY, **options):
        monkeypatch.setattr(devices, "free_memory", lambda device: free)
        return recognizer.batch_size(recognizer.check(options=Options(**options)))

    assert size() == memory.MOST_ROWS and size(0) == size(2**20) == 1
    monkeypatch.setattr(memory, "MOST_ROWS", MEMORY)
    usual = {"guards": False, "beams": 1, "max_new_tokens": 10}
    few = size(**usual)
    assert few == pytest.approx(8 * size(MEMORY // 8, **usual), rel=1e-3)
    assert few > size(**usual | {"max_new_tokens": 100})  # a longer answer
    assert (
        few > size(**usual | {"beams": 5}) == size(**usual | {"guards": True}) > 0
    )  # more rows; those of samples may come
    assert few == size(**usual | {"guards": True, "temperatures": (0.0,)})
    if "whole" in recognizer.family.long_form:
        assert size(guards=False, beams=1) > 2 * size(guards=False, beams=1, long="whole")


@pytest.mark.parametrize("options", [{}, {"beams": 5}, {"long": "whole"}, {"max_new_tokens": 100}])
def test_caches_stay_within_memory(recognizer, recordings, monkeypatch, options):
    if options.get("long") not in (None, *recognizer.family.long_form):
        pytest.skip("it has no such way")
    free, taken = 16 * 2**20, []
    monkeypatch.setattr(devices, "free_memory", lambda device: free)
    config = recognizer.config
    key_heads = getattr(config.decoder, "key_heads", config.decoder.heads)
    each = 2 * config.decoder.layers * key_heads * config.decoder.head_size * 4

    def counted(model, audio, prompts, stop, budgets, options, rules, temperature=0.0, bias=None):
        beams = options.beams if temperature == 0 else BEST_OF
        taken.append(each * len(prompts) * beams * (max(map(len, prompts)) + max(budgets)))
        return [
            Hypothesis(recognizer.tokenizer.encode("一" * 40), -math.inf, True) for _ in prompts
        ]  # so that all is tried

    monkeypatch.setattr(window_decoder, "search", counted)
    sound = [np.tile(recordings["en"], 4 if "long" in options else 1)] * 8
    list(recognizer.streams(sound, "auto", Options(temperatures=(0.0, 0.5), **options), sample_rate=RATE))
    assert 0 < max(taken) < free / 4
