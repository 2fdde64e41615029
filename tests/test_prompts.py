"""What a user says before the sound: a prompt and what was said before, for Whisper; an instruction, for GLM-ASR."""

import json
import math

import numpy as np
import pytest
import torch
from helpers.checkpoints import make_checkpoint, make_encoder_decoder, make_tokenizer

from glmasr import Options, load
from glmasr.errors import OptionError
from glmasr.tokenizer import Tokenizer
from glmasr.transcription.chunking import Window
from glmasr.transcription.families import Job, LanguageState, RecordingState
from glmasr.transcription.prompts import copied, previous, remembered
from glmasr.transcription.results import Part, Segment


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    """A random encoder-decoder whose vocabulary has the token before what was said before."""
    folder = make_encoder_decoder(tmp_path_factory.mktemp("model") / "tiny", loud=0.5)
    path = folder / "tokenizer.json"
    file = json.loads(path.read_text(encoding="utf-8"))
    # In place of one of the 101 times, the last, so that the model's shapes stay.
    file["added_tokens"][-1]["content"] = "<|startofprev|>"
    path.write_text(json.dumps(file), encoding="utf-8")
    return load(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def article(tmp_path_factory):
    return load(make_encoder_decoder(tmp_path_factory.mktemp("model") / "tiny"), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def glm(tmp_path_factory):
    return load(make_checkpoint(tmp_path_factory.mktemp("model") / "tiny"), device="cpu", dtype="float32")


def noise(seconds=1.5, seed=0):
    return (0.3 * np.random.default_rng(seed).standard_normal(round(16000 * seconds))).astype(np.float32)


def asked(recognizer, monkeypatch, audio, **options):
    """The prompts of the searches for a recording, and its transcript."""
    from glmasr.transcription import window_decoder

    seen, search = [], window_decoder.search

    def watching(model, encoded, prompts, *rest, **more):
        seen.extend(prompts)
        return search(model, encoded, prompts, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(window_decoder, "search", watching)
        found = recognizer.transcribe(audio, sample_rate=16000, max_new_tokens=8, beams=1, **options)
    return seen, found


def test_a_prompt_stands_before_every_window(whisper, monkeypatch):
    tokenizer = whisper.tokenizer
    before = [tokenizer.special["<|startofprev|>"], *tokenizer.encode(" good  一二".replace("  ", " "))]
    seen, _ = asked(whisper, monkeypatch, noise(3.5), language="zh", prompt=" good  一二 ", guards=False)
    plain, _ = asked(whisper, monkeypatch, noise(3.5), language="zh", guards=False)
    assert len(plain) == len(seen) > 1 and seen == [[*before, *ids] for ids in plain]


def test_of_a_long_prompt_the_end_stays(whisper):
    positions = whisper.config.decoder.positions
    tokenizer = whisper.tokenizer
    ids = previous(tokenizer, "a b " * 100 + "good", "", positions)
    assert len(ids) == positions // 2 and tokenizer.decode(ids[1:]).endswith("a b good")
    assert previous(tokenizer, "", "", positions) == previous(tokenizer, " \n", "", positions) == []
    short = previous(tokenizer, "good", "x" * 200 + "ab", positions)
    assert len(short) == positions // 2 and tokenizer.decode(short[1:]).startswith(" good")
    assert tokenizer.decode(short[1:]).endswith("xab")
    assert len(previous(tokenizer, "a" * 200, "b", positions)) == positions // 2  # a prompt leaves it no room


def test_what_was_said_is_the_prompt_of_what_follows(whisper, monkeypatch):
    """A random model is never sure, so here everything is."""
    from glmasr.transcription import prompts, window_decoder

    monkeypatch.setattr(prompts, "UNSURE", -99.0)
    monkeypatch.setattr(window_decoder, "DOUBTED", -math.inf)
    audio = noise(5.5)
    seen, found = asked(whisper, monkeypatch, audio, language="zh", context=True, prompt="good", guards=False)
    texts = [segment.text for segment in found.segments]
    assert len(seen) > 2 and texts
    tokenizer, start = whisper.tokenizer, whisper.config.start
    heads = [tokenizer.decode(ids[1 : ids.index(start)]) for ids in seen]
    assert heads[0] == " good" and all(head.startswith(" good") for head in heads)
    assert heads[-1] != heads[0] and heads[1].removeprefix(" good ") == " ".join(texts)[: len(heads[1]) - 6]
    # Another recording of the same batch has its own.
    first, second = whisper.transcribe(
        [audio, noise(3.5, 1)],
        "zh",
        sample_rate=16000,
        max_new_tokens=8,
        beams=1,
        context=True,
        prompt="good",
        guards=False,
    )
    assert first.text == found.text and second.text != first.text


def test_only_what_is_sure_is_gone_on_with():
    def part(text, failed=False, **more):
        return Part(0.0, 1.0, "en", [Segment(0.0, 1.0, text, **more)], [], failed)

    assert remembered("<|0.00|> one<|2.00|>", part("two", mean_logprob=-0.3)) == (
        "<|0.00|> one<|2.00|><|0.00|> two<|1.00|>"
    )
    assert remembered("", part("两个")) == "<|0.00|>两个<|1.00|>"
    assert remembered("one", part("two", mean_logprob=-0.6)) == ""
    assert remembered("one", part("two", temperature=0.8)) == ""
    assert remembered("one", part("two", failed=True)) == ""
    assert remembered("one", Part(0.0, 1.0, "en", [], [])) == "one"
    assert "<|end" not in remembered("", part("a <|endoftext|> b"))
    long = remembered("<|0.00|> x<|1.00|>" * 500, part("y"))
    assert 1980 < len(long) <= 2000 and long.startswith("<|") and long.endswith(" y<|1.00|>")


def test_a_copy_of_what_was_said_is_found():
    part = Part(0.0, 1.0, "en", [Segment(0.0, 1.0, "the same words")], [])
    assert copied("<|0.00|> and the same<|1.00|><|1.00|> words again<|2.00|>", part) and not copied("other words", part)
    assert not copied("yes yes", Part(0.0, 1.0, "en", [Segment(0.0, 1.0, "yes")], []))


def test_what_was_said_has_times_if_the_window_has():
    """Else the model writes none either, and a window ends in the middle of a sentence."""
    tokenizer, context = Tokenizer(make_tokenizer()), "<|0.00|> good<|0.40|><|1.00|> better<|1.50|>"
    tokenizer.special["<|startofprev|>"] = 7
    good, better = tokenizer.encode(" good"), tokenizer.encode(" better")
    assert previous(tokenizer, "", context, 100) == [7, *good, *better]
    assert previous(tokenizer, "", context, 100, 500) == [7, 500, *good, 520, 550, *better, 575]
    assert previous(tokenizer, "", context, 6, 500) == [7, *better[-1:], 575]


def part_of(*texts, failed=False, mean_logprob=-0.1):
    segments = [Segment(0.0, 1.0, text, mean_logprob=mean_logprob) for text in texts]
    return Part(0.0, 1.0, "en", segments, [], failed, resume=1.0)


@pytest.mark.parametrize(
    "led, alone, stays",
    [
        (part_of("led", mean_logprob=-0.2), part_of("alone"), "led"),  # sure enough: not asked twice
        (part_of("led", mean_logprob=-0.5), part_of("alone", mean_logprob=-0.4), "alone"),
        (part_of("led", mean_logprob=-0.5), part_of("alone", mean_logprob=-0.6), "led"),
        (part_of(), part_of("alone", mean_logprob=-0.9), "alone"),  # speech that the context hid
        (part_of("led", failed=True), part_of("alone", mean_logprob=-0.9), "alone"),
        (part_of("led", mean_logprob=-0.9), part_of("alone", failed=True), "led"),
        (part_of("what was said"), part_of("alone", mean_logprob=-0.9), "alone"),  # a copy
    ],
)
def test_a_text_that_its_context_led_astray_is_found_without(whisper, monkeypatch, led, alone, stays):
    windows, asked = whisper.windows, []

    def answer(jobs, length, rules, options, states, nested):
        context = states[jobs[0].recording].context
        asked.append(context)
        return [led if context else alone], states

    monkeypatch.setattr(windows, "_alike", answer)
    recording = RecordingState(LanguageState("zh", context="<|0.00|> what was said<|1.00|>"))
    job = Job(Window(0, torch.zeros(16000)), recording)
    [found] = windows.decode([job], Options(context=True))
    assert [segment.text for segment in found.segments] == [stays]
    assert (len(asked) == 1) == (found is led and led.segments[0].mean_logprob > -0.3)


@pytest.mark.parametrize(
    "model, options, message",
    [
        ("glm", {"prompt": "names"}, "prompt is given, but GLM-ASR was trained with one prompt only.*take hotwords"),
        ("glm", {"context": True}, "context is given, but GLM-ASR was trained"),
        ("glm", {"instruction": "Write <|user|>"}, "instruction has the special token '<.user.>'"),
        ("article", {"prompt": "names"}, "prompt is given, but this model's vocabulary has no <.startofprev.>"),
        ("article", {"context": True}, "context is given, but this model's vocabulary has no"),
        ("article", {"instruction": "names"}, "instruction is given, which GLM-ASR reads"),
        ("whisper", {"prompt": "a <|nospeech|>"}, "prompt has the special token '<.nospeech.>'"),
        ("whisper", {"prompt": "a" * 10_001}, "prompt is 'a+...', expected a text of at most 10,000 characters"),
        ("whisper", {"prompt": 3}, "prompt is 3, expected a text"),
        ("whisper", {"context": 1}, "context is 1, expected True or False"),
        ("whisper", {"instruction": None}, "instruction is None, expected a text"),
    ],
)
def test_what_cannot_be_said(request, model, options, message):
    with pytest.raises(OptionError, match=message):
        request.getfixturevalue(model).check(options=Options(**options))


def test_another_instruction_is_an_experiment(glm, monkeypatch):
    seen, _ = asked(glm, monkeypatch, noise(), instruction="Write digits", guards=False)
    assert "Write digits" in glm.tokenizer.decode(seen[0], skip_special=True)
    plain, _ = asked(glm, monkeypatch, noise(), guards=False)
    assert glm.config.instruction in glm.tokenizer.decode(plain[0], skip_special=True)
